"""The folder of artifacts: what counts as published, what is a draft, who can lend what."""

import pytest

from ensdistill.pipeline import atomic
from ensdistill.pipeline.fingerprint import fingerprint
from ensdistill.pipeline.journal import seal
from ensdistill.pipeline.manifest import FORMAT, Artifact, Manifest
from ensdistill.pipeline.workspace import Workspace, lock_name, now

A, B, C = (fingerprint("fusion", 1, {"window": n}, {}) for n in (3, 5, 7))
KEYS = {"x": "key of x", "y": "key of y"}


def manifest(name=A, node="fusion", **more):
    window = {A: 3, B: 5, C: 7}[name]
    return Manifest(node, "fusion", 1, name, {"window": window}, {}, **({"result": {}} | more))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


@pytest.fixture
def begin(workspace):
    """Record items, each with a file of its own, in a draft, and return it."""

    def run(name=A, keys=KEYS, items=None):
        draft = workspace.draft("fusion", "fused", name, keys)
        for item_id in keys if items is None else items:
            (draft.path / f"c.{item_id}").write_bytes(b"map")
            draft.record(item_id, file=f"c.{item_id}", size=[1, 2])
        draft.close()
        return draft

    return run


@pytest.fixture
def publish(begin):
    """Publish an artifact with two items and return it."""

    def run(name=A, keys=KEYS, **more):
        return begin(name, keys).publish(manifest(name, **more))

    return run


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_workspace_that_is_not_there_is_empty(workspace):
    snapshot = workspace.scan()
    assert (snapshot.published, snapshot.drafts, snapshot.corrupt) == ({}, {}, {})
    assert snapshot.of_node("fusion") == []
    assert workspace.spares("fusion", KEYS, workspace.root / "fusion") == {}
    assert not workspace.root.exists()


def test_a_draft_becomes_an_artifact_with_its_manifest(workspace, begin, publish):
    key = ("fusion", A[:12])
    draft = begin(items=["x"])
    assert draft.path == workspace.root / "fusion" / f"fused-{A[:12]}"
    snapshot = workspace.scan()
    assert snapshot.drafts == {key: draft.path}
    assert snapshot.progress(key) == 1
    artifact = publish()
    snapshot = workspace.scan()
    assert snapshot.drafts == snapshot.corrupt == {}
    assert snapshot.published == {A: artifact}
    assert [r["id"] for r in snapshot.published[A].items] == ["x", "y"]
    assert names(artifact.path) == [".ensdistill", "c.x", "c.y", "items.jsonl", "manifest.json"]


def test_a_draft_knows_what_its_items_are_made_from(workspace):
    draft = workspace.draft("fusion", "fused", A, KEYS, {"x": {"image": "abc"}})
    draft.record("x")
    draft.close()
    again = workspace.draft("fusion", "fused", A, KEYS)
    assert again.records()["x"]["made_from"] == {"image": "abc"}
    assert workspace.draft("fusion", "fused", A).records() == {}


def test_journals_beside_a_manifest_are_harmless(workspace, publish):
    artifact = publish()
    (artifact.path / "journal-1.jsonl").write_bytes(seal({"id": "z"}) + b'{"id"')
    assert workspace.scan().published == {A: artifact}
    assert [r["id"] for r in workspace.scan().published[A].items] == ["x", "y"]


def test_a_draft_is_found_again_under_another_name(workspace, begin):
    first = begin(items=["x"])
    renamed = first.path.rename(first.path.with_name(f"nicer-name-{A[:12]}"))
    assert workspace.draft("fusion", "other", A).path == renamed
    assert workspace.draft("fusion", "other", A, KEYS).records() == first.records()
    assert workspace.draft("fusion", "other", B).path != renamed
    assert workspace.draft("probe", "other", A).path.parent.name == "probe"


def test_a_renamed_artifact_is_still_published(workspace, publish):
    path = publish().path
    path.rename(path.with_name(f"my-favourite-{A[:12]}"))
    assert workspace.scan().published[A].path.name == f"my-favourite-{A[:12]}"


def test_other_folders_are_not_artifacts(workspace, publish):
    publish()
    others = ("fusion/notes", "fusion/x-aaaa", "fusion/x-AAAAAAAAAAAA", ".trash/x-aaaaaaaaaaaa")
    for name in others:
        (workspace.root / name).mkdir(parents=True)
    (workspace.root / "files.json").write_text("{}")
    snapshot = workspace.scan()
    assert set(snapshot.published) == {A}
    assert snapshot.drafts == snapshot.corrupt == {}


GOOD = manifest().to_bytes()


@pytest.mark.parametrize(
    "content",
    [b"", GOOD[:-1], b"[]", b"null", b"{}", GOOD.replace(b"3", b"4"), b"\xff" + GOOD[1:]],
    ids=repr,
)
def test_a_spoilt_manifest_is_corrupt_and_says_where(workspace, publish, content):
    path = publish().path / "manifest.json"
    path.write_bytes(content)
    snapshot = workspace.scan()
    assert snapshot.published == snapshot.drafts == {}
    assert list(snapshot.corrupt) == [("fusion", A[:12])]
    assert str(path) in snapshot.corrupt["fusion", A[:12]]


def test_a_folder_copied_under_another_fingerprint_is_corrupt(workspace, publish):
    path = publish().path
    path.rename(path.with_name(f"fused-{B[:12]}"))
    said = workspace.scan().corrupt["fusion", B[:12]]
    assert f"holds fusion {A[:12]}, not what the folder is named for" in said


def test_a_folder_moved_to_another_stage_is_corrupt(workspace, publish):
    path = publish().path
    path.parent.rename(path.parent.with_name("infer"))
    snapshot = workspace.scan()
    assert snapshot.published == {}
    assert list(snapshot.corrupt) == [("infer", A[:12])]


def test_the_latest_artifact_of_a_node_is_the_one_finished_last(workspace, publish):
    publish(A, finished="2024-02-01T00:00:00+00:00")
    publish(B, finished="2024-01-01T00:00:00+00:00")
    publish(C, node="probe", finished="2024-03-01T00:00:00+00:00")
    assert workspace.scan().of_node("fusion")[0].manifest.fingerprint == A
    assert workspace.scan().of_node("student") == []


def test_times_sort_as_text():
    times = [now() for _ in range(50)]
    assert times == sorted(times)
    assert all(t.endswith("+00:00") for t in times)


def test_a_replaced_file_is_old_or_new_but_never_torn(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic.write_bytes(path, b"old")

    def fail(*_):
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            atomic.write_bytes(path, b"new")
    assert names(tmp_path) == ["x.json"]
    assert path.read_bytes() == b"old"
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["x.json"]


def test_locks_are_no_artifacts(workspace):
    with workspace.locks.hold(lock_name("fusion", A), "fusion"):
        assert workspace.locks.folder.is_relative_to(workspace.root)
        snapshot = workspace.scan()
    assert (snapshot.published, snapshot.drafts, snapshot.corrupt) == ({}, {}, {})


def test_a_lock_is_named_for_stage_and_folder():
    assert lock_name("fusion", A) == f"fusion-{A[:12]}"


def test_an_artifact_is_its_folder_and_manifest(tmp_path):
    assert Artifact(tmp_path, manifest()).manifest.format == FORMAT


# spares


def test_items_of_artifacts_and_drafts_are_lent_by_key_alone(workspace, begin, publish):
    published = publish(A, {"other name": "k1", "x": "k2"})
    draft = begin(B, {"y": "k3", "z": "k4"}, items=["y"])
    mine = workspace.draft("fusion", "fused", C)
    wanted = {"x": "k1", "other name": "k3", "a": "k4", "b": "k5", "c": "key of x"}
    found = workspace.spares("fusion", wanted, mine.path)
    assert {i: (s.folder, s.record["id"]) for i, s in found.items()} == {
        "x": (published.path, "other name"),
        "other name": (draft.path, "y"),
    }
    assert {s.file() for s in found.values()} == {b"map"}
    assert workspace.spares("fusion", {}, mine.path) == {}


def test_one_item_is_lent_to_all_that_want_it(workspace, publish):
    publish(A)
    found = workspace.spares("fusion", dict.fromkeys("abc", "key of x"), workspace.root)
    assert {i: s.record["id"] for i, s in found.items()} == {"a": "x", "b": "x", "c": "x"}


def test_nothing_is_lent_from_the_folder_that_asks(workspace, begin, publish):
    draft, published = begin(A), publish(B)
    assert {s.folder for s in workspace.spares("fusion", KEYS, draft.path).values()} == {
        published.path
    }
    assert {s.folder for s in workspace.spares("fusion", KEYS, published.path).values()} == {
        draft.path
    }


def test_nothing_is_lent_to_another_stage(workspace, publish):
    publish(A)
    assert workspace.spares("infer", KEYS, workspace.root) == {}


def test_spoilt_lines_are_not_lent(workspace, begin):
    folder = begin(A).path
    (file,) = folder.glob("journal-*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"id": "x"', b'"id": "X"') + b'{"id": "y"')
    assert set(workspace.spares("fusion", KEYS, workspace.root)) == {"y"}


def test_items_are_lent_from_an_artifact_whose_manifest_is_spoilt(workspace, publish):
    (publish(A).path / "manifest.json").write_bytes(b"{")
    assert set(workspace.spares("fusion", KEYS, workspace.root)) == {"x", "y"}


def test_a_whole_item_is_lent_where_another_copy_is_spoilt(workspace, publish):
    folders = [publish(A).path, publish(B).path]
    for spoilt in folders:
        (spoilt / "c.x").write_bytes(b"Map")
        found = workspace.spares("fusion", KEYS, workspace.root)
        assert found["x"].file() == found["y"].file() == b"map"
        (spoilt / "c.x").write_bytes(b"map")


def test_a_folder_that_goes_meanwhile_lends_nothing(workspace, begin, monkeypatch):
    begin(A)
    monkeypatch.setattr(
        "ensdistill.pipeline.workspace.numbered_lines",
        lambda path, _: path.with_name("x").read_bytes(),
    )
    assert workspace.spares("fusion", KEYS, workspace.root) == {}
