"""The folder of artifacts: what counts as published, drafts, publishing and locks."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ensdistill.pipeline import atomic
from ensdistill.pipeline import workspace as module
from ensdistill.pipeline.errors import CorruptError, LockedError
from ensdistill.pipeline.workspace import Artifact, Draft, Manifest, Workspace, now

A, B = "a" * 64, "b" * 64


def manifest(fingerprint=A, node="fusion", **more):
    fields = {"version": 1, "recipe": {"window": 3}, "inputs": {}, "result": {"n": 1}}
    return Manifest(node=node, stage="fusion", fingerprint=fingerprint, **(fields | more))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


@pytest.fixture
def publish(workspace):
    """Publish an artifact with two items and return it."""

    def run(fingerprint=A, **more):
        draft = workspace.draft("fusion", "fused", fingerprint)
        for item in ("x", "y"):
            draft.record(item, size=[1, 2])
        return draft.publish(manifest(fingerprint, **more), list(draft.records().values()))

    return run


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_workspace_that_is_not_there_is_empty(workspace):
    snapshot = workspace.scan()
    assert (snapshot.published, snapshot.drafts, snapshot.corrupt) == ({}, {}, {})
    assert snapshot.latest("fusion") is None


def test_a_draft_becomes_an_artifact_with_its_manifest(workspace, publish):
    key = ("fusion", A[:12])
    draft = workspace.draft("fusion", "fused", A)
    assert draft.path == workspace.root / "fusion" / "fused-aaaaaaaaaaaa"
    assert workspace.scan().drafts == {key: draft.path}
    draft.record("x")
    draft.close()
    snapshot = workspace.scan()
    assert snapshot.progress(key) == 1
    artifact = publish()
    snapshot = workspace.scan()
    assert snapshot.drafts == snapshot.corrupt == {}
    assert snapshot.published == {A: artifact}
    assert snapshot.published[A].manifest == manifest()
    assert artifact.items() == [{"id": "x", "size": [1, 2]}, {"id": "y", "size": [1, 2]}]
    assert names(artifact.path) == ["items.json", "manifest.json"]


def test_the_manifest_comes_last_and_what_a_draft_needed_goes_after_it(
    workspace, publish, monkeypatch
):
    (workspace.draft("fusion", "fused", A).path / "draft-state.pt").write_bytes(b"state")
    events, replace, unlink = [], Path.replace, Path.unlink

    def replaced(self, target):
        events.append(target.name)
        return replace(self, target)

    def unlinked(self, *arguments, **more):
        events.append(self.name.split("-")[0])
        return unlink(self, *arguments, **more)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    publish()
    assert events == ["items.json", "manifest.json", "journal", "draft"]


def test_what_a_kill_left_of_a_write_is_not_published(workspace, publish):
    draft = workspace.draft("fusion", "fused", A)
    for name in ("manifest.json.0123abcd.partial", "items.json.0123abcd.partial"):
        (draft.path / name).write_bytes(b"{")
    assert names(publish().path) == ["items.json", "manifest.json"]


def test_journals_beside_a_manifest_are_harmless(workspace, publish):
    artifact = publish()
    (artifact.path / "journal-1.jsonl").write_text('{"id": "z"}\n{"id"')
    assert workspace.scan().published == {A: artifact}
    assert [r["id"] for r in artifact.items()] == ["x", "y"]


def test_records_of_all_sessions_are_found(workspace):
    draft = workspace.draft("fusion", "fused", A)
    (draft.path / "journal-1.jsonl").write_text('{"id": "x", "n": 1}\n{"id": "y", "n"')
    (draft.path / "journal-2.jsonl").write_text('{"id": "y", "n": 2}\n')
    draft.record("z", n=3)
    draft.close()
    assert draft.records() == {i: {"id": i, "n": n} for i, n in (("x", 1), ("y", 2), ("z", 3))}
    assert draft.written == 1


def test_records_may_be_counted_while_another_process_publishes(workspace, monkeypatch):
    draft = workspace.draft("fusion", "fused", A)
    draft.record("x")
    draft.close()
    real = module.read_journal

    def published_meanwhile(path):
        path.unlink()
        return real(path)

    monkeypatch.setattr(module, "read_journal", published_meanwhile)
    assert workspace.scan().progress(("fusion", A[:12])) == 0


def test_threads_share_one_journal(workspace, monkeypatch):
    draft = workspace.draft("fusion", "fused", A)
    made, real = [], module.Journal

    def slow(path):
        made.append(path)
        time.sleep(0.02)
        return real(path)

    monkeypatch.setattr(module, "Journal", slow)
    start = threading.Barrier(6)

    def work(k):
        start.wait()
        for n in range(20):
            draft.record(f"{k}-{n}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    draft.close()
    assert len(made) == 1
    assert draft.written == len(draft.records()) == 120


def test_a_draft_is_found_again_under_another_name(workspace):
    first = workspace.draft("fusion", "fused", A)
    first.record("x")
    first.close()
    renamed = first.path.rename(first.path.with_name("nicer-name-aaaaaaaaaaaa"))
    assert workspace.draft("fusion", "other", A).path == renamed
    assert workspace.draft("fusion", "other", A).records() == {"x": {"id": "x"}}
    assert workspace.draft("fusion", "other", B).path != renamed
    assert workspace.draft("probe", "other", A).path.parent.name == "probe"


def test_a_renamed_artifact_is_still_published(workspace, publish):
    path = publish().path
    path.rename(path.with_name("my-favourite-aaaaaaaaaaaa"))
    assert workspace.scan().published[A].path.name == "my-favourite-aaaaaaaaaaaa"


def test_other_folders_are_not_artifacts(workspace, publish):
    publish()
    for name in ("fusion/notes", "fusion/x-aaaa", "fusion/x-AAAAAAAAAAAA", ".trash/x-aaaaaaaaaaaa"):
        (workspace.root / name).mkdir(parents=True)
    (workspace.root / "files.json").write_text("{}")
    snapshot = workspace.scan()
    assert set(snapshot.published) == {A}
    assert snapshot.drafts == snapshot.corrupt == {}


GOOD = json.dumps(asdict(manifest()))


@pytest.mark.parametrize(
    "content",
    [
        "",
        GOOD[:-1],
        "[]",
        "null",
        "{}",
        GOOD[:-1] + ', "unheard": 1}',
        GOOD.replace(A, B),
        GOOD.replace('"node"', '"nodes"'),
        GOOD.replace("fusion", "fus\udcffion"),
    ],
)
def test_a_spoilt_manifest_is_corrupt_and_says_where(workspace, publish, content):
    path = publish().path / "manifest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    snapshot = workspace.scan()
    assert snapshot.published == snapshot.drafts == {}
    assert list(snapshot.corrupt) == [("fusion", A[:12])]
    assert str(path) in snapshot.corrupt["fusion", A[:12]]


def test_a_folder_copied_under_another_fingerprint_is_corrupt(workspace, publish):
    path = publish().path
    path.rename(path.with_name(f"fused-{B[:12]}"))
    said = workspace.scan().corrupt["fusion", B[:12]]
    assert f"fingerprint {A[:12]} in a folder named for {B[:12]}" in said


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"[{")])
def test_an_unreadable_item_index_is_refused_with_the_way_out(publish, spoil):
    artifact = publish()
    spoil(artifact.path / "items.json")
    with pytest.raises(CorruptError, match=r"items\.json: .*delete the folder .* and run again"):
        artifact.items()


def test_the_latest_artifact_of_a_node_is_the_one_finished_last(workspace, publish):
    publish(A, finished="2024-02-01T00:00:00+00:00")
    publish(B, finished="2024-01-01T00:00:00+00:00")
    publish("c" * 64, node="probe", finished="2024-03-01T00:00:00+00:00")
    assert workspace.scan().latest("fusion").manifest.fingerprint == A
    assert workspace.scan().latest("student") is None


def test_times_sort_as_text():
    times = [now() for _ in range(50)]
    assert times == sorted(times)
    assert all(t.endswith("+00:00") for t in times)


def test_a_failed_publish_leaves_a_draft_and_its_journal(workspace, publish, monkeypatch):
    replace = Path.replace

    def full(self, target):
        if target.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        publish()
    monkeypatch.undo()
    draft = workspace.draft("fusion", "fused", A)
    assert names(draft.path) == ["items.json", f"journal-{os.getpid()}.jsonl"]
    assert list(draft.records()) == ["x", "y"]
    assert workspace.scan().published == {}
    assert workspace.scan().drafts == {("fusion", A[:12]): draft.path}
    assert publish() == workspace.scan().published[A]


@pytest.mark.parametrize("result", [{"miou": float("nan")}, {"x": [float("inf")]}, {"x": {1, 2}}])
def test_a_result_that_json_cannot_carry_is_not_published(workspace, publish, result):
    with pytest.raises((ValueError, TypeError)):
        publish(result=result)
    assert workspace.scan().published == {}


def test_a_replaced_file_is_old_or_new_but_never_torn(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic.write_bytes(path, b"old")

    def fail(*_):
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(path, b"new")
    assert names(tmp_path) == ["x.json"]
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_name_that_is_no_utf8_survives_publishing(workspace):
    name = b"stra\xdfe".decode(errors="surrogateescape")
    draft = workspace.draft("fusion", "fused", A)
    draft.record(name)
    draft.publish(manifest(runtime={"folder": name}), [{"id": name}])
    artifact = workspace.scan().published[A]
    assert artifact.items() == [{"id": name}]
    assert artifact.manifest.runtime == {"folder": name}


HOLD = """
import sys
from pathlib import Path
from ensdistill.pipeline.workspace import Workspace
with Workspace(Path(sys.argv[1])).lock("fusion", "a" * 64, "fusion@val"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(workspace):
    """A process that holds the lock of artifact A until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, workspace.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_names_its_holder_until_that_is_gone(workspace, holder):
    with pytest.raises(LockedError) as caught, workspace.lock("fusion", A, "fusion@val"):
        pytest.fail("two processes hold one lock")
    said = str(caught.value)
    for part in ("fusion@val", f"process {holder.pid}", socket.gethostname(), "since 20"):
        assert part in said
    assert "wait for it or stop it" in said
    with workspace.lock("fusion", B, "other"), workspace.lock("probe", A, "other"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workspace.lock("fusion", A, "fusion@val"):
        pass


def test_a_lock_without_a_readable_holder_still_refuses(workspace, holder):
    for path in (workspace.root / ".locks").glob("*.json"):
        path.write_bytes(b"{")
    with (
        pytest.raises(LockedError, match="by another process"),
        workspace.lock("fusion", A, "fusion"),
    ):
        pytest.fail("two processes hold one lock")


def test_a_lock_is_free_after_a_failure(workspace):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), workspace.lock("fusion", A, "fusion"):
            raise error
    with workspace.lock("fusion", A, "fusion"):
        said = json.loads((workspace.root / ".locks" / "fusion-aaaaaaaaaaaa.json").read_text())
        assert (said["pid"], said["node"]) == (os.getpid(), "fusion")
    assert list((workspace.root / ".locks").glob("*.json")) == []


def test_locks_are_no_artifacts(workspace):
    with workspace.lock("fusion", A, "fusion"):
        snapshot = workspace.scan()
    assert (snapshot.published, snapshot.drafts, snapshot.corrupt) == ({}, {}, {})


def test_a_draft_needs_no_lock_to_be_counted(tmp_path):
    assert Draft(tmp_path).records() == {}
    assert Artifact(tmp_path, manifest()).manifest.format == 1
