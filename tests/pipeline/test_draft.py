"""Drafts: what counts as finished, what others can lend, and how a draft is published."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from ensdistill.pipeline import draft as module
from ensdistill.pipeline.draft import (
    Draft,
    UnfinishedError,
    progress_of,
    unpublish,
)
from ensdistill.pipeline.fingerprint import digest
from ensdistill.pipeline.journal import Journal, numbered_lines, read_journal, seal
from ensdistill.pipeline.manifest import Manifest, read_manifest
from ensdistill.pipeline.spares import Spare

KEYS = {"x": "key of x", "y": "key of y"}
MANIFEST = Manifest("fusion", "fusion", 1, "a" * 64, {"window": 3}, {}, {"n": 1})


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "work" / "fusion" / "fused-aaaaaaaaaaaa"
    path.mkdir(parents=True)
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def journal(folder, number, *records):
    """Write a journal as another process would."""
    written = Journal(folder / f"journal-{number}.jsonl")
    for record in records:
        written.append({"id": None, "key": "k", "made_from": {}, "content": "0", **record})
    written.close()


def fill(draft, content=b"map of "):
    """Record all items, each with a file of its own."""
    (draft.path / "maps").mkdir(exist_ok=True)
    for item_id in draft.keys:
        (draft.path / "maps" / item_id).write_bytes(content + item_id.encode())
        draft.record(item_id, file=f"maps/{item_id}", n=len(item_id))


def found(folder, keys=KEYS):
    return Draft(folder, keys).records()


# what counts


def test_a_record_holds_key_content_and_the_digest_of_all_it_says(folder):
    draft = Draft(folder, KEYS, {"x": {"image": "abc"}})
    draft.record("x", size=[1, 2])
    draft.record("y", content="given", size=[3, 4])
    draft.close()
    assert found(folder) == {
        "x": {
            "id": "x",
            "key": "key of x",
            "made_from": {"image": "abc"},
            "size": [1, 2],
            "content": digest({"size": [1, 2]}),
        },
        "y": {"id": "y", "key": "key of y", "made_from": {}, "content": "given", "size": [3, 4]},
    }
    assert draft.written == 2


def test_a_record_with_a_file_holds_its_bytes_and_sha256(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.close()
    assert found(folder) == draft.records()
    assert draft.records()["x"]["file"] == ["maps/x", 8, sha256(b"map of x")]


def test_equal_items_in_other_places_have_equal_digests(folder):
    draft = Draft(folder, KEYS)
    for item_id, name in (("x", "c.0"), ("y", "c.1")):
        (folder / name).write_bytes(b"same")
        draft.record(item_id, file=name, n=1)
    x, y = draft.records().values()
    draft.close()
    assert x["content"] == y["content"]


def test_an_item_that_is_not_of_the_list_cannot_be_recorded(folder):
    draft = Draft(folder, KEYS)
    with pytest.raises(KeyError):
        draft.record("z")
    assert draft.records() == {}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"map of X"),
        lambda file: file.write_bytes(b"map of"),
        lambda file: file.write_bytes(b"map of x "),
        lambda file: file.write_bytes(b""),
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
def test_a_record_whose_file_is_not_whole_does_not_count(folder, spoil):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.close()
    spoil(folder / "maps" / "x")
    again = Draft(folder, KEYS)
    assert set(again.records()) == {"y"}
    with pytest.raises(UnfinishedError, match="1 items, the first is x"):
        again.complete()


def test_every_byte_of_an_items_file_counts(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.close()
    file = folder / "maps" / "x"
    whole = file.read_bytes()
    for k in range(len(whole)):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :])
        assert set(found(folder)) == {"y"}
    file.write_bytes(whole)
    assert set(found(folder)) == {"x", "y"}


def test_a_record_under_another_key_does_not_count(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.close()
    assert set(found(folder, KEYS | {"x": "other"})) == {"y"}
    assert found(folder, {"x": KEYS["y"], "y": KEYS["x"]}) == {}


def test_a_record_of_no_item_or_without_key_does_not_count(folder):
    journal(
        folder,
        1,
        {"id": "z", "key": "key of z"},
        {"id": "x"},
        {"id": "x", "key": None},
        {"id": "z"},
        {"key": "key of x"},
        {},
    )
    assert found(folder) == {}


def test_a_line_that_is_not_whole_does_not_count(folder):
    draft = Draft(folder, KEYS)
    draft.record("x", n=1)
    draft.record("y", n=2)
    draft.close()
    (file,) = folder.glob("journal-*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"n": 1', b'"n": 7'))
    assert set(found(folder)) == {"y"}


def test_records_of_all_sessions_are_found(folder):
    journal(folder, 1, {"id": "x", "key": KEYS["x"], "n": 1})
    with (folder / "journal-1.jsonl").open("ab") as file:
        file.write(seal({"id": "y", "key": KEYS["y"], "n": 1})[:-9])
    journal(folder, 2, {"id": "y", "key": KEYS["y"], "n": 2})
    keys = KEYS | {"z": "key of z"}
    draft = Draft(folder, keys)
    draft.record("z", n=3)
    draft.close()
    assert {i: r["n"] for i, r in draft.records().items()} == {"x": 1, "y": 2, "z": 3}
    assert found(folder, keys) == draft.records()
    assert draft.written == 1


def test_a_later_record_counts_where_an_earlier_ones_file_was_lost(folder):
    for number, content in ((1, b"old"), (2, b"new")):
        entry = ["map", 3, sha256(content)]
        journal(folder, number, {"id": "x", "key": KEYS["x"], "file": entry, "n": number})
    for number, content in ((1, b"old"), (2, b"new")):
        (folder / "map").write_bytes(content)
        assert found(folder)["x"]["n"] == number


def test_an_item_index_counts_like_a_journal(folder):
    (folder / "items.jsonl").write_bytes(
        seal({"id": "x", "key": KEYS["x"], "made_from": {}, "content": "0"})
        + seal({"id": "y", "key": "other", "made_from": {}, "content": "0"})
    )
    assert set(found(folder)) == {"x"}


def test_what_others_did_meanwhile_is_seen_on_reload_only(folder):
    mine, other = Draft(folder, KEYS), Draft(folder, KEYS)
    other.record("y", n=2)
    mine.record("x", n=1)
    assert (set(mine.records()), set(other.records())) == ({"x"}, {"y"})
    mine.reload()
    other.reload()
    assert mine.records() == other.records()
    assert [r["id"] for r in mine.complete()] == ["x", "y"]
    assert (mine.written, other.written) == (1, 1)
    mine.close()
    other.close()


def test_what_another_published_meanwhile_is_seen_on_reload(folder):
    mine, other = Draft(folder, KEYS), Draft(folder, KEYS)
    mine.record("x", n=1)
    other.reload()
    other.record("y", n=2)
    other.publish(MANIFEST)
    mine.reload()
    mine.close()
    assert [r["n"] for r in mine.complete()] == [1, 2]


def test_a_journal_that_goes_while_it_is_read_is_no_error(folder, monkeypatch):
    Draft(folder, KEYS).record("x")

    def gone(path):
        path.unlink()
        return numbered_lines(path)

    monkeypatch.setattr(module, "numbered_lines", gone)
    assert found(folder) == {}
    assert progress_of(folder) == 0


def test_complete_is_in_stored_order_and_tells_what_is_missing(folder):
    draft = Draft(folder, {i: i for i in "dcba"})
    for item_id in "ab":
        draft.record(item_id)
    with pytest.raises(UnfinishedError, match="2 items, the first is d"):
        draft.complete()
    for item_id in "cd":
        draft.record(item_id)
    assert [r["id"] for r in draft.complete()] == list("dcba")
    draft.close()


def test_threads_share_one_journal(folder, monkeypatch):
    made, real = [], module.Journal

    def slow(path):
        made.append(path)
        time.sleep(0.02)
        return real(path)

    monkeypatch.setattr(module, "Journal", slow)
    ids = [f"{k}-{n}" for k in range(6) for n in range(20)]
    draft = Draft(folder, {i: i for i in ids})
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
    assert found(folder, draft.keys) == draft.records()


def test_progress_is_counted_without_keys_and_over_all_journals(folder):
    assert progress_of(folder) == 0
    journal(folder, 1, {"id": "x"}, {"id": "y"})
    journal(folder, 2, {"id": "y"}, {"id": "z"})
    assert progress_of(folder) == 3


# spares


@pytest.fixture
def spare(tmp_path):
    """The item `o` of another folder, whose file holds ``map of o``."""
    other = tmp_path / "other"
    other.mkdir()
    draft = Draft(other, {"o": KEYS["x"]}, {"o": {"image": "abc"}})
    fill(draft)
    draft.close()
    record = draft.records()["o"]
    return Spare(other, record, seal(record))


def test_a_spare_is_taken_over_byte_for_byte_under_its_own_id(folder, spare):
    draft = Draft(folder, KEYS)
    draft.adopt({"x": spare}, lambda _: "c.0")
    draft.close()
    assert (folder / "c.0").read_bytes() == b"map of o"
    assert (
        found(folder)
        == draft.records()
        == {"x": spare.record | {"id": "x", "file": ["c.0", 8, sha256(b"map of o")]}}
    )
    assert (draft.written, draft.reused) == (0, 1)


def test_a_spare_may_have_been_encoded_anew(folder, spare):
    draft = Draft(folder, KEYS)
    (folder / "c.0").write_bytes(b"the same in other words")
    draft.adopt({"x": spare}, lambda _: "c.0", written=True)
    draft.close()
    file = ["c.0", 23, sha256(b"the same in other words")]
    assert found(folder)["x"] == spare.record | {"id": "x", "file": file}


def test_a_spare_without_file_is_its_record(folder, tmp_path):
    record = {"id": "o", "key": KEYS["x"], "made_from": {}, "content": "s", "n": 3}
    draft = Draft(folder, KEYS)
    draft.adopt({"x": Spare(tmp_path, record, seal(record))})
    draft.close()
    assert found(folder) == {"x": record | {"id": "x"}}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"map of O"),
        lambda file: file.write_bytes(b"map of "),
        lambda file: file.write_bytes(b"map of o "),
    ],
)
def test_a_spoilt_spare_is_refused_and_leaves_no_trace(folder, spare, spoil):
    spoil(spare.folder / "maps" / "o")
    draft = Draft(folder, KEYS)
    draft.adopt({"x": spare}, lambda _: "c.0")
    draft.close()
    assert draft.records() == found(folder) == {}
    assert (draft.written, draft.reused, names(folder)) == (0, 0, [])


def test_no_byte_of_a_spare_can_be_spoilt_unnoticed(spare):
    file = spare.folder / "maps" / "o"
    whole = file.read_bytes()
    for k in range(len(whole)):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :])
        assert spare.file() is None
    file.write_bytes(whole)
    assert spare.file() == whole


# publishing


def test_publishing_leaves_index_manifest_and_files_alone(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    (folder / "draft-state.pt").write_bytes(b"state")
    (folder / "zarr.json").write_bytes(b"{}")
    for name in ("manifest.json.0123abcd.partial", "maps/x.0123abcd.partial"):
        (folder / name).write_bytes(b"{")
    journal(folder, 1, {"id": "z"})
    artifact = draft.publish(MANIFEST)
    assert names(folder) == [
        "items.jsonl",
        "manifest.json",
        "maps",
        "maps/x",
        "maps/y",
        "zarr.json",
    ]
    index = (folder / "items.jsonl").read_bytes()
    assert index == b"".join(seal(draft.records()[i]) for i in ("x", "y"))
    assert artifact.items == read_journal(folder / "items.jsonl") == draft.complete()
    manifest = read_manifest(folder)
    assert artifact.manifest == manifest
    assert manifest.files == {
        "items.jsonl": [len(index), sha256(index)],
        "zarr.json": [2, sha256(b"{}")],
    }
    assert (manifest.written, manifest.reused) == (2, 0)
    assert manifest.disk_bytes == len(index) + 2 + 8 + 8
    assert (manifest.node, manifest.recipe, manifest.result) == ("fusion", {"window": 3}, {"n": 1})


def test_every_file_of_an_artifact_is_covered(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    others = ["a", "deep/er/b", "maps/draft-c", "maps/journal-d.jsonl", "deep/manifest.json"]
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    artifact = draft.publish(MANIFEST)
    covered = {*artifact.manifest.files, *(r["file"][0] for r in artifact.items)}
    on_disk = {name for name in names(folder) if (folder / name).is_file()}
    assert on_disk - covered == {"manifest.json"}


def test_content_is_of_items_and_result_alone(folder, tmp_path):
    def content(number, items=b"map of ", result=None, other=b"", keys=KEYS):
        path = tmp_path / str(number)
        path.mkdir()
        draft = Draft(path, keys)
        for item_id in keys:
            (path / f"{number}-{item_id}").write_bytes(items)
            draft.record(item_id, file=f"{number}-{item_id}", content=sha256(items))
        (path / "other").write_bytes(other)
        manifest = Manifest("n", "s", 1, str(number), {"k": number}, {}, result or {})
        return draft.publish(manifest).manifest.content

    first = content(1)
    assert len(first) == 64
    assert content(2) == content(3, other=b"x") == first
    others = [
        content(4, items=b"x"),
        content(5, result={"n": 1}),
        content(6, keys=dict(reversed(KEYS.items()))),
        content(7, keys={"x": ""}),
        content(8, keys={}),
        content(9, keys={}, other=b"x"),
    ]
    assert len({first, *others}) == 7


def test_equal_drafts_become_equal_folders(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    one, two = Draft(folder, KEYS), Draft(other, dict(KEYS))
    fill(one)
    fill(two)
    two.record("x", file="maps/x", n=1)  # once more
    one.publish(MANIFEST)
    two.written = one.written
    two.publish(MANIFEST)
    for name in ("items.jsonl", "manifest.json", "maps/x"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_an_unfinished_draft_is_not_published(folder):
    draft = Draft(folder, KEYS)
    draft.record("y")
    with pytest.raises(UnfinishedError, match="1 items, the first is x"):
        draft.publish(MANIFEST)
    assert not (folder / "manifest.json").exists()
    assert set(found(folder)) == {"y"}


@pytest.fixture
def disk(monkeypatch):
    """What reached the disk: the events of a publication, in order."""
    events = []
    fsync, rename, unlink = os.fsync, Path.replace, Path.unlink

    def synced(file):
        path = Path(f"/proc/self/fd/{file}").readlink()
        events.append(("sync", path.name.split(".partial")[0]))
        return fsync(file)

    def renamed(self, target):
        events.append(("rename", Path(target).name))
        return rename(self, target)

    def unlinked(self, *arguments, **more):
        events.append(("unlink", self.name.split("-")[0]))
        return unlink(self, *arguments, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    return events


def test_all_has_reached_the_disk_before_the_manifest_stands(folder, disk):
    draft = Draft(folder, KEYS)
    fill(draft)
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("draft-state.pt", "zarr.json", "deep/er/file"):
        (folder / name).write_bytes(b"{}")
    disk.clear()
    draft.publish(MANIFEST)
    published = disk.index(("rename", "manifest.json"))
    before, after = disk[:published], disk[published + 1 :]
    index = before.index(("rename", "items.jsonl"))
    written = [name for what, name in before[:index] if what == "sync"]
    assert len(written) == 1  # the index itself
    assert written[0].startswith("items.jsonl.")
    synced = {name for what, name in before[index:] if what == "sync"}
    files = {"items.jsonl", "x", "y", "zarr.json", "file"}
    folders = {folder.name, "maps", "deep", "er", "fusion", "work"}
    assert files | folders <= synced
    assert before[-1][1].startswith("manifest.json.")  # the manifest's bytes, before its name
    assert before[-1][0] == "sync"
    last = {name: k for k, (what, name) in enumerate(before) if what == "sync"}
    assert max(last[f] for f in files) < min(last[f] for f in folders)
    assert after[0] == ("sync", folder.name)
    assert sorted(after[1:]) == [("unlink", "draft"), ("unlink", "journal")]


@pytest.mark.parametrize("failing", ["items.jsonl", "manifest.json"])
def test_a_failed_publish_leaves_a_draft_and_its_journal(folder, monkeypatch, failing):
    draft = Draft(folder, KEYS)
    fill(draft)
    (folder / "draft-state.pt").write_bytes(b"state")
    replace = Path.replace

    def full(self, target):
        if target.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            draft.publish(MANIFEST)
    left = names(folder)
    assert "manifest.json" not in left
    assert not [name for name in left if name.endswith(".partial")]
    assert {"draft-state.pt", "maps/x", "maps/y"} <= set(left)
    again = Draft(folder, KEYS)
    assert again.records() == draft.records()
    assert again.publish(MANIFEST).items == draft.complete()
    assert names(folder) == ["items.jsonl", "manifest.json", "maps", "maps/x", "maps/y"]


@pytest.mark.parametrize("result", [{"miou": float("nan")}, {"x": [float("inf")]}, {"x": {1, 2}}])
def test_a_result_that_json_cannot_carry_is_not_published(folder, result):
    draft = Draft(folder, KEYS)
    fill(draft)
    with pytest.raises((ValueError, TypeError)):
        draft.publish(Manifest("n", "s", 1, "f", {}, {}, result))
    assert not (folder / "manifest.json").exists()


def test_names_that_are_no_utf8_are_published(folder):
    name = b"stra\xdfe".decode(errors="surrogateescape")
    draft = Draft(folder, {name: "k"})
    draft.record(name)
    manifest = Manifest("n", "s", 1, "f", {}, {}, {}, runtime={"folder": name})
    artifact = draft.publish(manifest)
    assert [r["id"] for r in artifact.items] == [name]
    assert read_manifest(folder).runtime == {"folder": name}


def test_what_was_begun_from_other_content_is_forgotten(folder):
    draft = Draft(folder)
    draft.bind({"labels": "one"})
    (folder / "draft-state.pt").write_bytes(b"state")
    (folder / "repair-begun").write_bytes(b"")
    draft.bind({"labels": "one"})
    assert (folder / "draft-state.pt").exists()
    draft.bind({"labels": "two"})
    assert not (folder / "draft-state.pt").exists()
    assert (folder / "repair-begun").exists()


def test_a_closed_draft_journals_nothing_more(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.close()
    with pytest.raises(RuntimeError, match="closed"):
        draft.record("x")


def test_an_unpublished_artifact_is_a_draft_with_all_its_items(folder):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.publish(MANIFEST)
    unpublish(folder, ["maps/x", "not/there"])
    assert names(folder) == ["items.jsonl", "maps", "maps/y"]
    again = Draft(folder, KEYS)
    assert again.records() == {"y": draft.records()["y"]}
    (folder / "maps" / "x").write_bytes(b"map of x")
    again.record("x", file="maps/x", n=1)
    assert again.publish(MANIFEST).items == draft.complete()
    assert (again.written, again.reused) == (1, 0)
    assert names(folder) == ["items.jsonl", "manifest.json", "maps", "maps/x", "maps/y"]


def test_an_artifact_is_distrusted_before_anything_of_it_goes(folder, disk):
    draft = Draft(folder, KEYS)
    fill(draft)
    draft.publish(MANIFEST)
    disk.clear()
    unpublish(folder, ["maps/x"])
    assert disk == [("unlink", "manifest.json"), ("sync", folder.name), ("unlink", "x")]
