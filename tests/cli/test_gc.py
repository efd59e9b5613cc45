"""`ensdistill gc`: what stays, what goes, and that nothing goes unasked."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from worlds import TINY

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.locks import Locks, Needs
from ensdistill.pipeline.ownership import MARK, own
from ensdistill.pipeline.workspace import mark_of


def garbage(world, *more):
    return {row["node"] or row["kind"] for row in world.json("gc", *more) if row["reason"] is None}


@pytest.fixture
def made(world):
    """A world in which all but the evaluation was made, with a policy by hand."""
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.write()
    world.call("run", "--no-evaluate")
    return world


def test_what_the_experiment_makes_stays(made):
    assert garbage(made) == set()
    assert "nothing reaches 0 of 5 folders" in made.call("gc")
    made.call("gc", "--delete")
    assert made.call("run", "--no-evaluate").startswith("nothing to do")


def test_what_a_changed_setting_left_behind_goes_when_asked(made):
    made.settings["fusion"]["window"] = 3
    made.write()
    made.call("run", "--no-evaluate")
    assert garbage(made) == {"fusion", "student"}
    text = made.call("gc")
    assert "nothing reaches 2 of 7 folders" in text
    assert "nothing was deleted" in text
    assert len(made.artifacts()) == 7
    assert garbage(made, "--keep-last", "2") == set()
    rows = made.json("gc", "--delete")
    assert [r["node"] for r in rows if r["deleted"]] == ["fusion", "student"]
    assert all(r["bytes"] > 0 for r in rows)
    assert len(made.artifacts()) == 5
    assert made.call("run", "--no-evaluate").startswith("nothing to do")


def test_what_lends_its_images_to_the_next_run_stays(made):
    made.save("images", "train", "train_000009_000019", made_image(made))
    for teacher in "ab":
        label = made_image(made)[..., 0] + (teacher == "a")
        made.save(f"teachers/{teacher}", "train", "train_000009_000019", label)
    assert garbage(made) == set()
    made.call("gc", "--delete")
    report = made.json("infer-teacher")
    assert [(r["written"], r["reused"]) for r in report["ran"]] == [(1, 5), (1, 5)]
    assert garbage(made) == {"infer[a]", "infer[b]"}


def test_damage_above_a_node_that_is_not_fresh_stops_nothing(made):
    """What it would take is not known then, so the last that was made for it stays."""
    made.settings["fusion"]["window"] = 3
    made.write()
    index = made.artifact("infer[a]").path / "items.jsonl"
    index.write_bytes(index.read_bytes().replace(b"content", b"c0ntent", 1))
    made.call("verify", expect=1)
    assert garbage(made) == set()
    made.call("gc", "--delete")
    assert {"fusion", "student"} <= {a.manifest.node for a in made.artifacts()}


def test_what_is_shared_with_what_stays_frees_nothing(made):
    for kind in ("images/train", "teachers/a/train", "teachers/b/train"):
        (made.root / kind / "train_000004_000019.png").unlink()
    made.call("run", "--no-evaluate")
    rows = {r["path"]: r for r in made.json("gc")}
    old = next(r for r in rows.values() if r["node"] == "infer[a]" and r["reason"] is None)
    new = made.artifact("infer[a]")
    maps = [f for f in Path(old["path"]).rglob("c.*") if f.stat().st_nlink == 2]
    assert len(maps) == len(new.items) == 4
    everything = sum(f.stat().st_size for f in Path(old["path"]).rglob("*") if f.is_file())
    assert old["bytes"] == everything - sum(f.stat().st_size for f in maps)
    before = inodes(rows)
    made.call("gc", "--delete")
    assert made.call("verify").startswith("no damage")
    after = inodes(rows)
    freed = sum(size for inode, size in before.items() if inode not in after)
    assert freed == sum(r["bytes"] for r in rows.values() if r["reason"] is None)


def inodes(folders):
    """Return inode to bytes of all files below some folders."""
    files = (f for folder in folders for f in Path(folder).rglob("*") if f.is_file())
    return {f.stat().st_ino: f.stat().st_size for f in files}


def made_image(world):
    import numpy as np

    return np.full((48, 64, 3), 2, np.uint8)


def test_what_may_turn_out_to_be_fresh_stays(world):
    world.call("run", "--no-evaluate")
    world.add_teacher("c", lambda label: label)
    assert world.states()["fusion"] == "waiting"
    assert garbage(world) <= {"policy"}
    world.call("gc", "--delete")
    assert {"fusion", "student"} <= {a.manifest.node for a in world.artifacts()}


def test_a_student_that_teaches_stays(made):
    student = made.artifact("student").path
    made.settings["teachers"].append({"name": "s", "network": {"student": str(student)}})
    made.settings["student"] = TINY | {"lr": 0.02}
    made.write()
    made.call("run", "--no-evaluate")
    assert garbage(made) == set()
    made.call("gc", "--delete")
    assert student.exists()


def test_every_experiment_given_keeps_what_it_makes(made):
    first = made.file.read_text()
    made.settings["fusion"]["window"] = 3
    made.write()
    made.call("run", "--no-evaluate")
    other = made.root / "other.yaml"
    other.write_text(first)
    assert garbage(made, "-c", str(other)) == set()
    assert garbage(made) == {"fusion", "student"}


def test_experiments_of_two_workspaces_are_refused(made):
    other = made.root / "other.yaml"
    other.write_text(made.file.read_text().replace("workspace: work", "workspace: elsewhere"))
    assert "different workspaces" in made.refuse("gc", "-c", str(other))


def test_drafts_and_corrupt_artifacts_that_nothing_reaches_go(made):
    draft = made.root / "work" / "fusion" / "old-0123456789ab"
    own(draft, mark_of(draft))
    (draft / "journal-1.jsonl").write_bytes(b"x" * 100)
    corrupt = made.root / "work" / "fusion" / "old-ba9876543210"
    own(corrupt, mark_of(corrupt))
    (corrupt / "manifest.json").write_bytes(b"{")
    found = {r["kind"]: r for r in made.json("gc") if r["reason"] is None}
    assert found["draft"]["bytes"] == 100 + len(b"ensdistill fusion 0123456789ab\n")
    assert set(found) == {"draft", "corrupt"}
    made.call("gc", "--delete")
    assert not draft.exists()
    assert not corrupt.exists()


def test_a_draft_that_the_experiment_fills_stays(made):
    folder = made.artifact("fusion").path
    (folder / "manifest.json").unlink()
    assert made.states()["fusion"] == "partial"
    assert garbage(made) == set()


def test_an_artifact_of_the_experiment_stays_when_it_is_corrupt(made):
    (made.artifact("fusion").path / "manifest.json").write_bytes(b"{")
    assert garbage(made) == set()


def test_a_killed_run_lends_its_images_and_stays(world):
    world.call("infer-teacher")
    folder = world.artifact("infer[a]").path
    (folder / "manifest.json").unlink()
    add_image(world)
    assert garbage(world) == set()
    world.call("gc", "--delete")
    report = world.json("infer-teacher", "a")
    assert [(r["written"], r["reused"]) for r in report["ran"]] == [(1, 5)]


def test_a_renamed_teacher_still_lends_its_images(world):
    world.call("infer-teacher")
    world.settings["teachers"][0]["name"] = "z"
    world.write()
    add_image(world)
    assert world.json("explain", "infer[z]")["would"]["reuse"] == 5
    world.call("gc", "--delete")
    report = world.json("infer-teacher", "z")
    assert [(r["written"], r["reused"]) for r in report["ran"]] == [(1, 5)]


def add_image(world):
    world.save("images", "train", "train_000009_000019", made_image(world))
    for teacher in "ab":
        label = made_image(world)[..., 0] + (teacher == "a")
        world.save(f"teachers/{teacher}", "train", "train_000009_000019", label)


def test_what_a_running_process_reads_stays(made):
    from ensdistill.stages.graph import load

    used = made.artifact("fusion").path
    made.settings["fusion"]["window"] = 3
    made.write()
    made.call("run", "--no-evaluate")
    assert garbage(made) == {"fusion", "student"}
    locks = load(made.file).workspace.locks
    with locks.hold("student-0123456789ab", "student", uses=[str(used)]):
        assert garbage(made) == {"student"}
        rows = {r["path"]: r["reason"] for r in made.json("gc")}
        assert rows[str(used)].startswith("is read by process ")


def test_one_folder_that_cannot_be_deleted_does_not_keep_the_others(made, monkeypatch):
    made.settings["fusion"]["window"] = 3
    made.write()
    made.call("run", "--no-evaluate")
    delete = shutil.rmtree

    def refuse(folder, *more):
        if folder.parent.name == "fusion":
            raise PermissionError(13, "Permission denied", str(folder))
        delete(folder, *more)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    text = made.call("gc", "--delete", "--json", expect=1)
    rows = {r["node"]: r for r in json.loads(text) if r["reason"] is None}
    assert rows["student"]["deleted"]
    assert "Permission denied" in rows["fusion"]["left"]


def cached(world, *more):
    """Return how many decoded images stay and how many go."""
    rows = [row for row in world.json("gc", *more) if row["kind"] == "cache"]
    counts = {row["reason"] is not None: row["files"] for row in rows}
    folder = world.root / "work" / ".pixels"
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != MARK)
    assert "--delete" in more or sum(row["bytes"] for row in rows) == size
    return counts.get(True, 0), counts.get(False, 0)


def test_decoded_images_that_no_experiment_trains_on_go(made):
    folder = made.root / "work" / ".pixels"
    assert cached(made) == (5, 0)
    assert "and 0 of 5 decoded images" in made.call("gc")
    (made.root / "images" / "train" / "train_000001_000019.png").unlink()
    (folder / f"{'0123' * 16}.rgb.4567.partial").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"")  # not ours
    assert cached(made) == (4, 2)
    assert "2 files of .pixels" in made.call("gc")
    assert len(list(folder.iterdir())) == 8
    assert cached(made, "--delete") == (4, 2)
    assert cached(made) == (4, 0)
    assert len(list(folder.iterdir())) == 6
    assert (folder / "notes.txt").exists()


def test_features_of_no_training_go(world):
    lite = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.settings["student"] = TINY | lite | {"train": "decoder", "input_size": [32, 48]}
    world.write()
    world.call("train-student", "--upstream")
    world.settings["student"] |= {"input_size": None}
    world.write()
    world.call("train-student", "--upstream")

    def features():
        rows = [r for r in world.json("gc") if r["kind"] == "cache" and ".features" in r["path"]]
        return sorted((r["files"], r["reason"] is not None) for r in rows)

    assert features() == [(5, False), (5, True)]  # of another input size, and what is trained on
    text = world.call("gc")
    assert "and 5 of 10 images' features" in text and "5 files of .features/" in text
    (world.root / "images" / "train" / "train_000001_000019.png").unlink()
    assert features() == [(1, False), (4, True), (5, False)]
    world.settings["runtime"]["device"] = "cuda"  # perhaps not here: it decides no name of a folder
    world.write()
    world.call("gc", "--delete")
    assert features() == [(4, True)]
    del world.settings["student"]["train"]
    world.write()
    assert features() == [(4, False)]
    (notes := world.root / "work" / ".features" / "notes").mkdir()
    (notes / f"{'01' * 32}.f16").write_bytes(b"")  # not ours
    world.call("gc", "--delete")
    assert features() == [] and len(list(notes.iterdir())) == 1


def test_without_a_cache_all_decoded_images_go(made):
    first = made.file.read_text()
    made.settings["runtime"]["cache"] = False
    made.write()
    assert cached(made) == (0, 5)
    assert garbage(made) == {"cache"}
    other = made.root / "other.yaml"
    other.write_text(first)
    assert cached(made, "-c", str(other)) == (5, 0)
    text = made.call("gc", "--delete")
    assert "5 files of .pixels" in text and "deleted" in text
    assert cached(made) == (0, 0)


def test_decoded_images_that_cannot_be_deleted_are_told(made, monkeypatch):
    made.settings["runtime"]["cache"] = False
    made.write()
    delete = Path.unlink

    def refuse(self, **more):
        if self.suffix == ".rgb":
            raise PermissionError(13, "Permission denied", str(self))
        delete(self, **more)

    monkeypatch.setattr(Path, "unlink", refuse)
    rows = json.loads(made.call("gc", "--delete", "--json", expect=1))
    assert "Permission denied" in next(r["left"] for r in rows if r["kind"] == "cache")


@pytest.fixture
def left_behind(made):
    """A world with garbage: a fusion and a student of another setting."""
    made.settings["fusion"]["window"] = 3
    made.write()
    made.call("run", "--no-evaluate")
    assert garbage(made) == {"fusion", "student"}
    return made


def test_folders_that_are_only_called_as_ours_are_stay(made):
    work = made.root / "work"
    users = [work / "recordings" / "drive-202611271430", work / "fusion" / "old-ba9876543210"]
    for folder in users:
        folder.mkdir(parents=True)
        (folder / "raw.bin").write_bytes(b"raw")
        (folder / "manifest.json").write_bytes(b'{"version": 3}')
    (work / "notes-202611271430").mkdir()
    (work / "fusion" / "list-202611271430").write_bytes(b"no folder")
    assert garbage(made) == set()
    for command in (("gc", "--delete"), ("verify",), ("verify", "--repair"), ("status",)):
        made.call(*command)
    for folder in users:
        assert (folder / "raw.bin").read_bytes() == b"raw"
        assert (folder / "manifest.json").exists()
    assert (work / "fusion" / "list-202611271430").exists()


def test_a_copy_elsewhere_in_the_workspace_stays(left_behind):
    garbage_now = next(r for r in left_behind.json("gc") if r["reason"] is None)
    copy = left_behind.root / "work" / "backup" / Path(garbage_now["path"]).name
    shutil.copytree(garbage_now["path"], copy)
    rows = {r["path"]: r["reason"] for r in left_behind.json("gc")}
    assert rows[str(copy)] == "does not bear our mark; delete it yourself"
    left_behind.call("gc", "--delete")
    assert (copy / "manifest.json").exists()


@pytest.mark.parametrize("linked", ["stage", "artifact"])
def test_what_lies_behind_a_link_stays(left_behind, tmp_path, linked):
    row = next(r for r in left_behind.json("gc") if r["reason"] is None and r["node"] == "fusion")
    there = Path(row["path"])
    here = there.parent if linked == "stage" else there
    elsewhere = here.rename(tmp_path / "elsewhere")
    here.symlink_to(elsewhere)
    rows = {r["path"]: r["reason"] for r in left_behind.json("gc")}
    assert rows[str(there)] == "lies behind a link; delete it there"
    before = sorted(elsewhere.rglob("*"))
    left_behind.call("gc", "--delete")
    assert sorted(elsewhere.rglob("*")) == before


def test_a_cache_that_is_a_link_or_not_ours_stays(made, tmp_path):
    made.settings["runtime"]["cache"] = False
    made.write()
    folder = made.root / "work" / ".pixels"
    assert cached(made) == (0, 5)
    (folder / MARK).rename(tmp_path / "mark")
    assert cached_rows(made) == []
    (tmp_path / "mark").rename(folder / MARK)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    assert cached_rows(made) == []
    made.call("gc", "--delete")
    assert len(list(elsewhere.glob("*.rgb"))) == 5


def cached_rows(world):
    return [row for row in world.json("gc") if row["kind"] == "cache"]


def test_what_a_command_under_way_needs_stays_and_is_told(left_behind):
    locks = Locks(left_behind.root / "work" / ".locks")
    rows = [r for r in left_behind.json("gc") if r["reason"] is None]
    fusion = Path(next(r["path"] for r in rows if r["node"] == "fusion"))
    with locks.needing() as say:
        assert garbage(left_behind) == set()  # it does not know yet what it needs
        say(Needs(artifacts=frozenset([f"fusion-{fusion.name[-12:]}"])))
        assert garbage(left_behind) == {"student"}
        reasons = {r["path"]: r["reason"] for r in left_behind.json("gc")}
        assert reasons[str(fusion)].startswith("is needed by a command under way (process ")
        say(Needs(stages=frozenset(["student"])))
        assert garbage(left_behind) == {"fusion"}
    assert garbage(left_behind) == {"fusion", "student"}


def test_a_command_that_begins_while_garbage_is_deleted_keeps_it(left_behind, monkeypatch):
    from ensdistill.pipeline import gc as module

    other = Locks(left_behind.root / "work" / ".locks").needing()
    survey = module.survey

    def late(*arguments, **more):
        found = survey(*arguments, **more)
        other.__enter__()
        return found

    monkeypatch.setattr("ensdistill.cli.commands.gc.survey", late)
    text = left_behind.call("gc", "--delete", expect=1)
    other.__exit__(None, None, None)
    monkeypatch.undo()
    assert "is needed by a command under way" in text
    assert garbage(left_behind) == {"fusion", "student"}


@pytest.mark.parametrize("command", [("report",), ("export", "labels")])
def test_what_is_read_for_somebody_stays(left_behind, monkeypatch, command):
    from ensdistill.stages.export import labels
    from ensdistill.stages.reading import report

    seen = []
    for module, name in ((report, "gather"), (labels, "export")):
        real = getattr(module, name)

        def spy(*arguments, real=real):
            seen.append(under_way(left_behind))
            return real(*arguments)

        monkeypatch.setattr(module, name, spy)
    left_behind.call(*command, "-o", str(left_behind.root / "out"))
    assert seen == [[True]]
    assert under_way(left_behind) == []


def under_way(world):
    """Return of each command under way whether it needs everything, as another process sees it."""
    needed = Locks(world.root / "work" / ".locks").needed()
    return [needs.everything for needs in needed.values()]


def test_locks_behind_a_link_are_refused_and_nothing_there_goes(made, tmp_path):
    locks = made.root / "work" / ".locks"
    shutil.rmtree(locks)
    (tmp_path / "mine").mkdir()
    for name in ("command-history.json", "command-history.lock"):
        (tmp_path / "mine" / name).write_text("{}")
    locks.symlink_to(tmp_path / "mine")
    for command in (("gc",), ("gc", "--delete")):
        assert ".locks: is a link" in made.refuse(*command)
    assert len(list((tmp_path / "mine").iterdir())) == 2
    made.call("status")


def test_a_folder_of_pixels_of_others_is_not_adopted(made):
    folder = made.root / "work" / ".pixels"
    shutil.rmtree(folder)
    folder.mkdir()
    files = [folder / f"{'a' * 64}.png", folder / "notes.txt"]
    for file in files:
        file.write_bytes(b"mine")
    made.settings["student"]["steps"] = 5
    made.write()
    made.call("run", "--no-evaluate")
    made.call("gc", "--delete")
    assert not (folder / MARK).exists()
    assert all(file.read_bytes() == b"mine" for file in files)


def test_drafts_of_an_earlier_version_are_gone_on_with_and_never_deleted(made):
    folder = made.artifact("fusion").path
    (folder / "manifest.json").unlink()
    (folder / MARK).unlink()
    (folder / "items.jsonl").rename(folder / "journal-0123456789ab.jsonl")
    assert made.states()["fusion"] == "partial"
    made.settings["fusion"]["window"] = 3
    made.write()
    rows = {r["path"]: r["reason"] for r in made.json("gc")}
    assert rows[str(folder)] == "does not bear our mark; delete it yourself"
    made.settings["fusion"]["window"] = 5
    made.write()
    made.call("fuse")
    assert made.artifact("fusion").path == folder
    assert (folder / MARK).exists()


def test_a_wait_for_commands_of_another_machine_is_said(left_behind, monkeypatch):
    locks = Locks(left_behind.root / "work" / ".locks")
    with locks.needing():
        (file,) = locks.folder.glob("command-*.json")
        holder = json.loads(file.read_bytes())
    file.write_text(json.dumps(holder | {"machine": "far", "host": "far"}))
    monkeypatch.setattr("ensdistill.pipeline.locks.time.sleep", lambda _: None)
    result = CliRunner().invoke(cli, ["gc", "-c", str(left_behind.file)])
    assert "waiting 15 s for a sign of life of 1 commands" in result.stderr
    assert not file.exists()


def test_a_folder_that_became_a_link_meanwhile_stays(left_behind, tmp_path, monkeypatch):
    from ensdistill.pipeline import gc as module

    survey = module.survey
    moved = []

    def late(*arguments, **more):
        found = survey(*arguments, **more)
        fusion = next(k.path for k in found if k.reason is None and k.node == "fusion")
        moved.append(fusion.rename(tmp_path / "elsewhere"))
        fusion.symlink_to(moved[0])
        return found

    monkeypatch.setattr("ensdistill.cli.commands.gc.survey", late)
    assert "is a link to" in left_behind.call("gc", "--delete", expect=1)
    assert (moved[0] / "manifest.json").exists()
