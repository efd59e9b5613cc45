"""How the files of finished items get from one artifact to another: linked, or else copied."""

import errno
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ensdistill.pipeline import atomic
from ensdistill.pipeline.draft import REPAIR_BEGUN, unpublish
from ensdistill.pipeline.errors import LockedError
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.spares import Links
from ensdistill.pipeline.verify import damages
from ensdistill.pipeline.workspace import Workspace

NAMES = {"x": "maps/c.0", "y": "maps/c.1"}
KEYS = {"x": "key of x", "y": "key of y"}
OLD, NEW = "a" * 64, "b" * 64


class World:
    """A workspace with an artifact of two items, and a draft that wants them."""

    def __init__(self, root):
        self.workspace = Workspace(root)
        self.old = self.draft(OLD)
        for item_id, name in NAMES.items():
            self.write(self.old, name, f"map of {item_id}")
            self.old.record(item_id, file=name, n=1)
        self.published = self.publish(self.old, OLD)
        for name in NAMES.values():  # a coarse clock may not have moved meanwhile
            os.utime(self.published.path / name, (1, 1))
        self.new = self.draft(NEW)

    def draft(self, fingerprint):
        draft = self.workspace.draft("fusion", "fused", fingerprint, KEYS)
        (draft.path / "maps").mkdir(exist_ok=True)
        return draft

    def write(self, draft, name, text):
        atomic.write_bytes(draft.path / name, text.encode(), sync=False)

    def publish(self, draft, fingerprint):
        return draft.publish(Manifest("fusion", "fusion", 1, fingerprint, {}, {}, {}))

    def spares(self, draft=None):
        return self.workspace.spares("fusion", KEYS, (draft or self.new).path)

    def adopt(self, spares=None):
        """Take all over and return which items came."""
        self.new.adopt(self.spares() if spares is None else spares, NAMES.get)
        return set(self.new.records())

    def file(self, fingerprint, item_id):
        return self.workspace.root / f"fusion/fused-{fingerprint[:12]}" / NAMES[item_id]

    def shared(self):
        """The items whose two names are one file."""
        files = {i: [self.file(f, i) for f in (OLD, NEW)] for i in NAMES}
        there = {i: pair for i, pair in files.items() if all(f.exists() for f in pair)}
        return {i for i, (old, new) in there.items() if old.samefile(new)}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def age(file, content):
    """Change a file in its place so that no stat tells, as a disk does that forgets."""
    was = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_published_items_are_linked_and_their_lines_are_taken_as_they_are(world):
    assert world.adopt() == {"x", "y"}
    assert world.shared() == {"x", "y"}
    assert (world.new.written, world.new.reused) == (0, 2)
    (journal,) = world.new.path.glob("journal-*")
    index = (world.published.path / "items.jsonl").read_bytes()
    assert journal.read_bytes() == index
    assert (world.publish(world.new, NEW).path / "items.jsonl").read_bytes() == index
    assert damages(world.new.path) == []


def test_a_linked_item_under_another_name_is_recorded_there(world):
    world.new.adopt({"x": world.spares()["x"]}, lambda _: "maps/c.7")
    record = world.new.records()["x"]
    assert record == world.old.records()["x"] | {"file": ["maps/c.7", *record["file"][1:]]}
    assert (world.new.path / "maps/c.7").samefile(world.file(OLD, "x"))


def test_many_items_are_journalled_by_few_writes(world, monkeypatch):
    written, write = [], os.write

    def counted(file, data):
        written.append(data)
        return write(file, data)

    spare = world.spares()["x"]
    draft = world.workspace.draft(
        "fusion", "fused", "c" * 64, {str(k): "key of x" for k in range(500)}
    )
    monkeypatch.setattr(os, "write", counted)
    draft.adopt(dict.fromkeys(draft.keys, spare), lambda i: f"c.{i}")
    assert len(written) <= 5
    assert len(draft.records()) == draft.reused == 500


def test_what_its_publication_forced_to_the_disk_is_not_forced_again(world, monkeypatch):
    synced, fsync = [], os.fsync

    def told(file):
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    world.new.adopt({"x": world.spares()["x"]}, NAMES.get)
    world.write(world.new, NAMES["y"], "map of y")
    world.new.record("y", file=NAMES["y"], n=1)
    monkeypatch.setattr(os, "fsync", told)
    world.publish(world.new, NEW)
    assert "c.0" not in synced
    assert {"c.1", "maps", world.new.path.name} <= set(synced)


def test_what_took_the_place_of_a_link_is_forced(world, monkeypatch):
    world.adopt()
    world.write(world.new, NAMES["x"], "another")
    world.new.record("x", file=NAMES["x"], n=2)
    synced, fsync = [], os.fsync

    def told(file):
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", told)
    world.publish(world.new, NEW)
    assert "c.0" in synced
    assert world.file(OLD, "x").read_bytes() == b"map of x"


@pytest.mark.parametrize("how", ["draft", "spoilt manifest", "journal"])
def test_what_may_not_be_on_the_disk_is_copied(world, how):
    if how == "draft":
        (world.published.path / "manifest.json").unlink()
    elif how == "spoilt manifest":
        (world.published.path / "manifest.json").write_bytes(b"{")
    else:  # which a kill left behind
        index = world.published.path / "items.jsonl"
        index.rename(world.published.path / "journal-0.jsonl")
        index.write_bytes(b"")
    assert world.adopt() == {"x", "y"}
    assert world.shared() == set()


def test_a_file_that_changed_since_is_read_and_refused_if_it_is_spoilt(world):
    world.file(OLD, "x").write_bytes(b"map of X")
    os.utime(world.file(OLD, "y"))  # but its bytes are the same
    assert set(world.spares()) == {"y"}
    assert world.adopt() == {"y"}
    assert world.shared() == set()


@pytest.mark.parametrize("content", [b"map of", b"map of x ", b""])
def test_a_file_of_another_length_is_refused(world, content):
    age(world.file(OLD, "x"), content)
    assert world.adopt() == {"y"}


def test_one_that_changes_between_the_look_and_the_link_is_refused(world):
    spares = world.spares()
    world.file(OLD, "x").write_bytes(b"map of X")
    assert world.adopt(spares) == {"y"}
    assert not world.file(NEW, "x").exists()


def test_damage_to_one_is_damage_to_both_and_named_in_both(world):
    world.adopt()
    world.publish(world.new, NEW)
    age(world.file(OLD, "x"), b"map of X")
    for fingerprint in (OLD, NEW):
        (found,) = damages(world.file(fingerprint, "x").parents[1])
        assert (found.item, found.reason) == ("x", "its bytes are not what was written")


@pytest.mark.parametrize("first", [OLD, NEW])
def test_repairing_one_leaves_the_file_of_the_other(world, first):
    world.adopt()
    world.publish(world.new, NEW)
    age(world.file(OLD, "x"), b"map of X")
    other = {OLD: NEW, NEW: OLD}[first]
    folder = world.file(first, "x").parents[1]
    atomic.write_bytes(folder / REPAIR_BEGUN, b"")
    unpublish(folder, [NAMES["x"]])
    draft = world.draft(first)
    assert set(draft.records()) == {"y"}
    # nothing that was not read comes from the other, which is damaged as well
    assert set(world.spares(draft)) == {"y"}
    world.write(draft, NAMES["x"], "map of x")
    draft.record("x", file=NAMES["x"], n=1)
    world.publish(draft, first)
    assert damages(folder) == []
    assert world.file(other, "x").read_bytes() == b"map of X"
    assert world.shared() == {"y"}


def test_what_was_published_last_lends_first(world):
    world.adopt()
    last = world.publish(world.new, NEW)
    third = world.draft("0" * 64)
    assert {s.folder for s in world.spares(third).values()} == {last.path}


def test_deleting_one_leaves_the_other_whole(world):
    world.adopt()
    world.publish(world.new, NEW)
    for name in NAMES.values():
        (world.published.path / name).unlink()
    assert damages(world.new.path) == []


def test_what_a_killed_session_linked_is_replaced_and_not_written_through(world):
    world.new.path.joinpath("maps").mkdir(exist_ok=True)
    os.link(world.file(OLD, "y"), world.file(NEW, "x"))
    assert world.adopt() == {"x", "y"}
    assert world.file(OLD, "y").read_bytes() == b"map of y"
    assert world.shared() == {"x", "y"}
    (world.new.path / "again").mkdir()
    world.file(NEW, "x").unlink()
    os.link(world.file(OLD, "y"), world.file(NEW, "x"))
    world.write(world.new, NAMES["x"], "computed")
    assert world.file(OLD, "y").read_bytes() == b"map of y"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_where_there_can_be_no_links_items_are_copied_after_one_attempt(world, monkeypatch, code):
    tried = []

    def refused(*_, **__):
        tried.append(1)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "supports_follow_symlinks", {refused})
    assert world.adopt() == {"x", "y"}
    assert world.shared() == set()
    assert len(tried) == 1
    assert damages(world.publish(world.new, NEW).path) == []


def test_what_belongs_to_somebody_else_is_copied(world, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert world.adopt() == {"x", "y"}
    assert world.shared() == set()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["link", "inner link", "pipe", "folder"])
def test_nothing_but_a_file_of_the_artifact_is_linked(world, tmp_path, what):
    spares = world.spares()
    file, outside = world.file(OLD, "x"), tmp_path / "outside"
    age(file, file.read_bytes())
    file.rename(outside)
    if what == "link":
        file.symlink_to(outside)
    elif what == "inner link":
        outside.rename(file.with_name("real"))
        file.symlink_to("real")
    elif what == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    expected = {"y", "x"} if what == "inner link" else {"y"}  # that one is copied
    for found in (None, spares):
        assert world.adopt(found) == expected
        assert not world.file(NEW, "x").is_symlink()
        assert not world.file(NEW, "x").exists() or stat.S_ISREG(
            world.file(NEW, "x").lstat().st_mode
        )


def test_nothing_is_linked_out_of_a_folder_that_is_a_link(world, tmp_path):
    spares = world.spares()
    maps = world.published.path / "maps"
    maps.rename(tmp_path / "outside")
    maps.symlink_to(tmp_path / "outside")
    for found in (spares, world.spares()):
        assert world.adopt(found) == set()
    assert list((world.new.path / "maps").iterdir()) == []


def test_a_spare_that_is_gone_is_refused(world):
    spares = world.spares()
    world.file(OLD, "x").unlink()
    assert world.adopt(spares) == {"y"}
    assert world.shared() == {"y"}


def test_a_record_of_another_id_or_name_gets_a_line_of_its_own(world):
    spare = world.spares()["x"]
    world.new.adopt({"y": replace(spare, record=spare.record | {"key": KEYS["y"]})}, NAMES.get)
    world.new.close()
    again = world.draft(NEW)
    assert again.records() == world.new.records()
    assert again.records()["y"]["file"][0] == NAMES["y"]


def test_a_record_that_names_no_file_lends_none(world):
    spares = world.spares()
    bare = {k: v for k, v in spares["x"].record.items() if k != "file"}
    assert world.adopt(spares | {"x": replace(spares["x"], record=bare)}) == {"y"}
    assert not world.file(NEW, "x").exists()


def test_who_lost_the_draft_replaces_nothing_in_it(world):
    world.write(world.new, NAMES["x"], "of another")

    def lost():
        raise LockedError("taken over")

    world.new.guard = lost
    with pytest.raises(LockedError):
        world.adopt()
    assert world.file(NEW, "x").read_bytes() == b"of another"
    assert not world.file(NEW, "y").exists()


def test_of_many_lenders_few_folders_are_open_at_once(world, monkeypatch):
    spare, spares = world.spares()["x"], {}
    for k in range(60):
        folder = world.published.path.with_name(f"fused-{k:012x}")
        shutil.copytree(world.published.path, folder)
        spares[str(k)] = replace(spare, folder=folder)
    opened, take = [], Links.take

    def counted(*arguments):
        inode = take(*arguments)
        opened.append(len(list(Path("/dev/fd").iterdir())))
        return inode

    monkeypatch.setattr(Links, "take", counted)
    draft = world.workspace.draft("fusion", "fused", "c" * 64, dict.fromkeys(spares, "key of x"))
    draft.adopt(spares, lambda i: f"c.{i}")
    assert len(opened) == 60
    assert max(opened) - min(opened) < 50
    assert draft.reused == 60 and draft.path.joinpath("c.59").samefile(folder / NAMES["x"])
