"""Finding damage: whatever byte of an artifact changes is found and named, and taken out."""

import json
import os
from pathlib import Path

import pytest

from ensdistill.pipeline.draft import Draft, unpublish
from ensdistill.pipeline.fingerprint import fingerprint
from ensdistill.pipeline.manifest import RECORDED, Manifest, SpoiltManifestError, read_manifest
from ensdistill.pipeline.verify import Damage, damages, withdraw

KEYS = {i: f"key of {i}" for i in ("x", "y", "straße")}
NAME = fingerprint("fusion", 1, {"window": 3}, {})
MANIFEST = Manifest(
    "fusion@val",
    "fusion",
    1,
    NAME,
    {"window": 3},
    {},
    {"n": 1},
    made_from={"labels": "c" * 64},
    runtime={"device": "cpu"},
    seconds=1.5,
    finished="2024-01-01",
)


def fill(folder, keys=KEYS):
    draft = Draft(folder, keys)
    (folder / "maps").mkdir(exist_ok=True)
    (folder / "maps" / "zarr.json").write_bytes(b"{}")
    for k, item_id in enumerate(keys):
        if item_id not in draft.records():
            (folder / "maps" / f"c.{k}").write_bytes(b"map of " + item_id.encode())
            draft.record(item_id, file=f"maps/c.{k}", n=k)
    return draft


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "fusion" / f"fused-{NAME[:12]}"
    path.mkdir(parents=True)
    fill(path).publish(MANIFEST)
    return path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def found(folder):
    return [(d.file, d.item, d.field) for d in damages(folder)]


FILES = ["items.jsonl", "manifest.json", "maps/c.0", "maps/c.1", "maps/c.2", "maps/zarr.json"]
LOST = {"maps/c.0": "x", "maps/c.1": "y", "maps/c.2": "straße"}


def test_a_whole_artifact_has_no_damage_and_each_byte_is_read_once(folder):
    assert list(contents(folder)) == FILES
    checked = []
    assert damages(folder, checked.append) == []
    size = sum(len(c) for name, c in contents(folder).items() if name != "manifest.json")
    assert sum(checked) == size == read_manifest(folder).disk_bytes


@pytest.mark.parametrize("name", FILES)
def test_no_byte_of_a_file_can_change_unnoticed(folder, name):
    file = folder / name
    whole = file.read_bytes()
    step = 7 if name == "manifest.json" else 1  # see test_manifest.py
    for k in range(0, len(whole), step):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1 << k % 7]) + whole[k + 1 :])
        said = found(folder)
        assert said, k
        assert {file_name for file_name, _, _ in said} == {name}
        if name in LOST:
            assert said == [(name, LOST[name], None)]
    file.write_bytes(whole)
    assert damages(folder) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [b"\n", b"\0", b"{}\n"])
def test_more_bytes_are_noticed(folder, name, more):
    for content in (more + contents(folder)[name], contents(folder)[name] + more):
        (folder / name).write_bytes(content)
        assert {file for file, _, _ in found(folder)} == {name}


@pytest.mark.parametrize("name", FILES)
def test_wherever_a_file_is_cut_it_is_noticed(folder, name):
    whole = contents(folder)[name]
    for length in range(0, len(whole), 11 if name == "manifest.json" else 1):
        (folder / name).write_bytes(whole[:length])
        said = damages(folder)
        assert {d.file for d in said} == {name}
        if name in LOST:
            assert said[0].reason == f"holds {length} bytes, {len(whole)} were written"


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_file_that_is_gone_is_named(folder, name):
    (folder / name).unlink()
    assert damages(folder) == [Damage(folder, name, "is gone", item=LOST.get(name))]


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_file_that_cannot_be_read_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    (said,) = damages(folder)
    assert (said.file, said.item) == (name, LOST.get(name))
    assert said.reason.startswith("cannot be read (")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_spoilt_line_names_number_and_item(folder, number):
    file = folder / "items.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"n": ', b'"m": ')
    file.write_bytes(b"".join(lines))
    (said,) = damages(folder)
    assert (said.file, said.item) == ("items.jsonl", list(KEYS)[number - 1])
    assert said.reason == f"line {number} is not what was written"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[:-1],
        lambda lines: lines[1:],
        lambda lines: [*lines, lines[0]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], b"\n", *lines[1:]],
        lambda lines: [],
    ],
)
def test_whole_lines_that_are_lost_added_or_moved_are_noticed(folder, spoil):
    file = folder / "items.jsonl"
    file.write_bytes(b"".join(spoil(file.read_bytes().splitlines(keepends=True))))
    (said,) = damages(folder)
    assert (said.file, said.item) == ("items.jsonl", None)


def test_all_damages_are_found_at_once(folder):
    for name in ("maps/c.0", "maps/c.2", "maps/zarr.json"):
        (folder / name).write_bytes(b"")
    file = folder / "items.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"n": 1', b'"n": 7'))
    assert sorted(found(folder), key=str) == sorted(
        [
            ("maps/c.0", "x", None),
            ("maps/c.2", "straße", None),
            ("maps/zarr.json", None, None),
            ("items.jsonl", "y", None),
        ],
        key=str,
    )


def spoil_field(folder, **fields):
    """Change fields of a manifest behind its back."""
    file = folder / "manifest.json"
    file.write_bytes(json.dumps(json.loads(file.read_bytes()) | fields, indent=1).encode())


def test_a_spoilt_field_is_named_and_the_files_are_still_checked_where_they_can(folder):
    (folder / "maps" / "c.1").unlink()
    spoil_field(folder, seconds=3)
    assert found(folder) == [("manifest.json", None, "seconds"), ("maps/c.1", "y", None)]
    spoil_field(folder, seconds=3, runtime={})
    assert [f for _, _, f in found(folder)] == ["runtime", "seconds", None]
    spoil_field(folder, result={})
    assert ("manifest.json", None, "result") in found(folder)


def test_a_damage_reads_as_one_line_with_its_path(folder):
    (folder / "maps" / "c.1").write_bytes(b"map of Y")
    (folder / "maps" / "zarr.json").unlink()
    spoil_field(folder, seconds=3)
    manifest, other, item = map(str, damages(folder))
    assert manifest == f"{folder}/manifest.json (field seconds): is not what was written"
    assert item == f"{folder}/maps/c.1 (item y): its bytes are not what was written"
    assert other == f"{folder}/maps/zarr.json: is gone"


# withdrawing


def test_damaged_items_are_taken_out_and_made_again(folder):
    before = contents(folder)
    (folder / "maps" / "c.1").write_bytes(b"map of Y")
    (folder / "maps" / "zarr.json").unlink()
    assert withdraw(folder, damages(folder)) is True
    assert sorted(contents(folder)) == ["items.jsonl", "maps/c.0", "maps/c.2", "repair-begun"]
    assert set(Draft(folder, KEYS).records()) == {"x", "straße"}
    draft = fill(folder)
    assert draft.written == 1
    artifact = draft.publish(MANIFEST)
    assert damages(folder) == []
    after = contents(folder)
    assert {k: v for k, v in after.items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
    assert artifact.manifest.content == Manifest(**fields_of(before["manifest.json"])).content


def fields_of(raw):
    values = json.loads(raw)
    return {k: v for k, v in values.items() if k not in ("checks", "check")}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole.replace(b'"n": 1', b'"n": 7'),
        lambda whole: whole.splitlines(keepends=True)[0] + whole.splitlines(keepends=True)[2],
    ],
)
def test_a_lost_line_costs_its_item(folder, spoil):
    before = contents(folder)
    file = folder / "items.jsonl"
    file.write_bytes(spoil(file.read_bytes()))
    assert withdraw(folder, damages(folder)) is True
    draft = fill(folder)
    assert draft.written == 1
    draft.publish(MANIFEST)
    assert contents(folder)["items.jsonl"] == before["items.jsonl"]


def test_a_lost_index_costs_all_items(folder):
    before = contents(folder)
    (folder / "items.jsonl").unlink()
    assert withdraw(folder, damages(folder)) is True
    draft = fill(folder)
    assert draft.written == 3
    draft.publish(MANIFEST)
    assert contents(folder)["items.jsonl"] == before["items.jsonl"]


@pytest.mark.parametrize("name", RECORDED)
def test_a_spoilt_field_that_nothing_depends_on_is_emptied(folder, name):
    before, files = read_manifest(folder), contents(folder)
    spoil_field(folder, **{name: "spoilt"})
    assert withdraw(folder, damages(folder)) is False
    after = read_manifest(folder)
    assert damages(folder) == []
    assert getattr(after, name) == getattr(Manifest("n", "s", 1, "f", {}, {}, {}), name)
    assert {k for k, v in vars(after).items() if v != vars(before)[k]} <= {name}
    assert {k: v for k, v in contents(folder).items() if k != "manifest.json"} == {
        k: v for k, v in files.items() if k != "manifest.json"
    }


def test_all_has_reached_the_disk_before_a_manifest_stands_again(folder, monkeypatch):
    content = (folder / "maps" / "c.0").read_bytes()
    (folder / "maps" / "c.0").unlink()
    (folder / "maps" / "c.0").write_bytes(content)  # as it is got back by hand
    spoil_field(folder, seconds=3)
    found = damages(folder)
    synced, fsync = [], os.fsync

    def told(file):
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", told)
    assert withdraw(folder, found) is False
    before = synced[: next(k for k, name in enumerate(synced) if name.startswith("manifest.json"))]
    assert {"items.jsonl", "zarr.json", "c.0", "c.1", "c.2", "maps"} <= set(before)


def test_another_spelling_is_put_right(folder):
    before = contents(folder)
    (folder / "manifest.json").write_bytes(before["manifest.json"].replace(b"\n", b"\r\n"))
    assert withdraw(folder, damages(folder)) is False
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["result", "content", "files", "node", "made_from", "recipe"])
def test_a_spoilt_field_that_matters_makes_a_draft_that_keeps_its_items(folder, name):
    before = contents(folder)
    spoil_field(folder, **{name: {}})
    assert withdraw(folder, damages(folder)) is True
    with pytest.raises(FileNotFoundError):
        read_manifest(folder)
    draft = fill(folder)
    assert draft.written == 0
    draft.publish(MANIFEST)
    assert contents(folder)["items.jsonl"] == before["items.jsonl"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 30])
def test_an_unreadable_manifest_makes_a_draft_that_keeps_its_items(folder, content):
    (folder / "manifest.json").write_bytes(content)
    (said,) = damages(folder)
    assert said.file == "manifest.json"
    assert withdraw(folder, [said]) is True
    assert set(Draft(folder, KEYS).records()) == set(KEYS)


def test_a_damaged_file_beside_a_spoilt_field_still_makes_a_draft(folder):
    spoil_field(folder, seconds=3)
    (folder / "maps" / "c.0").unlink()
    assert withdraw(folder, damages(folder)) is True
    assert set(Draft(folder, KEYS).records()) == {"y", "straße"}


def test_damage_that_a_spoilt_field_hid_is_not_published_again(folder):
    spoil_field(folder, result={})
    (folder / "maps" / "c.0").write_bytes(b"map of X")
    withdraw(folder, damages(folder))
    assert set(Draft(folder, KEYS).records()) == {"y", "straße"}


def test_a_withdrawn_artifact_is_not_trusted_even_where_the_withdrawal_was_killed(
    folder, monkeypatch
):
    (folder / "maps" / "c.0").unlink()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("ensdistill.pipeline.draft.atomic.sync_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        unpublish(folder)
    assert not (folder / "manifest.json").exists()


def test_what_a_killed_repair_withdrew_is_still_found_by_the_next(folder):
    (folder / "maps" / "c.0").unlink()
    withdraw(folder, damages(folder))
    (said,) = damages(folder)
    assert "was withdrawn by a repair that did not finish" in str(said)
    assert withdraw(folder, [said]) is True
    fill(folder).publish(MANIFEST)
    assert damages(folder) == []
    assert not (folder / "repair-begun").exists()


def test_a_kill_while_a_field_is_emptied_loses_no_file(folder, monkeypatch):
    spoil_field(folder, seconds=3)
    before = contents(folder)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ensdistill.pipeline.atomic.write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw(folder, damages(folder))
    after = contents(folder)
    assert {k: v for k, v in before.items() if k != "manifest.json"}.items() <= after.items()
    with pytest.raises((SpoiltManifestError, FileNotFoundError)):
        read_manifest(folder)
