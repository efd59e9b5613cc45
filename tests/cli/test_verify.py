"""`ensdistill verify`, on artifacts of every stage."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from opened import opened
from worlds import World, files_of, forge

from ensdistill.data.decoding import Decoder
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.repair import made_from
from ensdistill.pipeline.verify import damages
from ensdistill.stages.graph import build, load


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world in which everything was made."""
    world = World(tmp_path_factory.mktemp("made"))
    world.call("run")
    return world


@pytest.fixture
def world(made, tmp_path):
    """A copy of it."""
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    copy = World.__new__(World)
    copy.__dict__ |= vars(made) | {"root": root, "file": root / "experiment.yaml"}
    copy.settings = made.settings
    copy.call("run")  # makes nothing, but the ground truth in its new place is known
    return copy


def flip(path, position=None, rng=random):
    content = bytearray(path.read_bytes())
    position = rng.randrange(len(content)) if position is None else position
    content[position] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def files(world):
    return [a.path / name for a in world.artifacts() for name in files_of(a.path)]


def test_undamaged_is_said_to_be_so(world):
    assert "no damage in any of 18 artifacts" in world.call("verify")
    assert world.json("verify")["damages"] == []


def test_two_hundred_flipped_bits_are_all_found_and_named(world):
    rng = random.Random(0)
    everything = files(world)
    workspace = load(world.file).workspace
    for _ in range(200):
        path = rng.choice(everything)
        folder = next(f for f in workspace.folders() if path.is_relative_to(f))
        before = path.read_bytes()
        flip(path, rng=rng)
        found = damages(folder)
        name = path.relative_to(folder).as_posix()
        assert {d.file for d in found} == {name}
        if name == "manifest.json":
            assert all(d.field for d in found)
        elif name.startswith("maps.zarr/c."):
            k = int(name.split(".")[2])
            assert found[0].item.endswith(f"_{k:06}_000019")
        elif name == "items.jsonl":
            assert all("line" in d.reason for d in found)
        path.write_bytes(before)
    assert "no damage" in world.call("verify")


def test_damage_of_many_images_hides_no_other(world):
    for name in "ab":
        for k in range(5):
            chunk = world.artifact(f"infer[{name}]").path / "maps.zarr" / f"c.{k}.0.0"
            flip(chunk) if name == "a" or k == 0 else chunk.unlink()
    manifest = world.artifact("policy").path / "manifest.json"
    flip(manifest, manifest.read_bytes().index(b'"seconds"') + 12)
    a, b, gone, field, count, _ = world.call("verify", expect=1).splitlines()
    assert "c.0.0.0 (item " in a and a.endswith("are not what was written (and 4 more like it)")
    assert "c.0.0.0 (item " in b and b.endswith("are not what was written")
    assert "c.1.0.0 (item " in gone and gone.endswith("is gone (and 3 more like it)")
    assert "manifest.json (field seconds)" in field
    assert count.startswith("11 damages in 3 of 18 artifacts, ")
    assert count.endswith("; --json names each")
    assert len(json.loads(world.call("verify", "--json", expect=1))["damages"]) == 11


def test_the_command_names_file_and_image_and_exits_with_1(world):
    chunk = world.artifact("infer[a]").path / "maps.zarr" / "c.3.0.0"
    flip(chunk)
    text = world.call("verify", expect=1)
    assert f"{chunk} (item train_000003_000019): its bytes are not what was written" in text
    assert "1 damages in 1 of 18 artifacts" in text
    assert "`ensdistill verify --repair` makes it good" in text


def test_a_damaged_image_alone_is_computed_again(world):
    before = files_of(world.artifact("infer[a]").path)
    flip(world.artifact("infer[a]").path / "maps.zarr" / "c.3.0.0")
    found = world.json("verify", "--repair")["repair"]
    assert [(r["node"], r["written"], r["total"]) for r in found["ran"]] == [("infer[a]", 1, 5)]
    assert found["different"] == []
    assert found["left"] == {}
    after = files_of(world.artifact("infer[a]").path)
    assert {**after, "manifest.json": b""} == {**before, "manifest.json": b""}
    assert "nothing to do" in world.call("run")
    assert "no damage" in world.call("verify")


@pytest.mark.parametrize(
    "node",
    [
        *("infer[a]", "probe[a]", "certainty[a]", "policy", "fusion", "student"),
        *("truth@val", "evaluation@val"),
    ],
)
def test_every_damaged_file_of_every_stage_is_made_good(world, node):
    folder = world.artifact(node).path
    before = files_of(folder)
    for name in before:
        flip(folder / name)
        world.call("verify", expect=1)
        assert "all damage is made good" in world.call("verify", "--repair")
        after = files_of(folder)
        assert {**after, "manifest.json": b""} == {**before, "manifest.json": b""}
    assert set(world.states().values()) == {"fresh"}


def test_damage_everywhere_is_made_good_at_once(world):
    before = {a.manifest.node: a.manifest.content for a in world.artifacts()}
    for path in files(world):
        flip(path)
    world.call("verify", expect=1)
    world.call("verify", "--repair")
    assert {a.manifest.node: a.manifest.content for a in world.artifacts()} == before
    assert set(world.states().values()) == {"fresh"}


def test_no_later_stage_reads_damage_in_silence(world):
    shutil.rmtree(world.root / "work" / "student")
    folder = world.artifact("fusion").path
    for name, content in files_of(folder).items():
        flip(folder / name)
        text = world.refuse("train-student")
        assert "CorruptError" in text or "NotReadyError" in text, text
        assert "verify --repair" in text
        assert not list(world.root.glob("work/student/*/manifest.json"))
        (folder / name).write_bytes(content)
    world.call("train-student")


def test_a_damaged_student_does_not_teach(world):
    student = world.artifact("student").path
    world.settings = {**world.settings, "workspace": "other"}
    world.settings["teachers"] = [
        *world.settings["teachers"],
        {"name": "s", "network": {"student": str(student)}},
    ]
    world.write()
    flip(student / "model.safetensors")
    assert "is not what was written" in world.refuse("infer-teacher", "s")


COUNT = Decoder.count


def other_labels(*given):
    labels, _ = COUNT(*given)
    labels = np.where(labels == 0, np.uint8(2), labels)
    return labels, np.bincount(labels.ravel(), minlength=256)


def test_what_comes_out_different_makes_what_is_below_stale(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.write()
    world.call("run", "--no-evaluate")
    flip(world.artifact("infer[a]").path / "maps.zarr" / "c.3.0.0")
    monkeypatch.setattr(Decoder, "count", other_labels)
    found = world.json("verify", "--repair")["repair"]
    assert found["different"] == ["infer[a]"]
    monkeypatch.undo()
    states = {d["node"]: d for d in world.json("status")}
    assert states["infer[a]"]["state"] == "fresh"
    assert states["fusion"]["state"] == "stale"
    assert states["student"]["state"] == "fresh"  # until fusion comes out different too
    assert states["fusion"]["reason"] == "teacher00 was made again and came out different"
    assert "\n  inputs.teacher00.content (a): " in world.call("explain", "fusion")
    report = world.json("run", "--no-evaluate")
    assert [(r["node"], r["written"]) for r in report["ran"]] == [("fusion", 1), ("student", 0)]
    assert "nothing to do" in world.call("run", "--no-evaluate")


def test_what_the_experiment_does_not_make_is_left_with_the_reason(world):
    old = world.artifact("fusion").path
    world.settings = {**world.settings, "fusion": {"method": "channel", "window": 3}}
    world.write()
    flip(old / "maps.zarr" / "c.0.0.0")
    text = world.call("verify", "--repair", expect=1)
    assert f"{old}: left as it is (this experiment does not make it" in text
    assert files_of(old)["manifest.json"]


def test_what_lacks_its_upstream_is_left_as_it_is(world):
    folder = world.artifact("fusion").path
    flip(folder / "maps.zarr" / "c.0.0.0")
    shutil.rmtree(world.artifact("infer[a]").path)
    text = world.call("verify", "--repair", expect=1)
    assert "fusion is made from infer[a], which is missing" in text
    assert (folder / "manifest.json").exists()


def test_a_training_begun_on_other_labels_begins_anew(tmp_path, monkeypatch, on_step):
    world = World(tmp_path)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.settings["runtime"]["checkpoint_every"] = 1
    world.write()
    world.call("fuse", "--upstream")
    steps, seen = [], []

    def stop(step):
        steps.append(step)
        if step == 4:
            raise KeyboardInterrupt

    on_step(stop)
    world.call("train-student", expect=1)
    with monkeypatch.context() as other:
        flip(world.artifact("infer[a]").path / "maps.zarr" / "c.3.0.0")
        other.setattr(Decoder, "count", other_labels)
        world.call("verify", "--repair")
        world.call("fuse")
    on_step(seen.append)
    world.call("train-student")
    assert steps == [0, 1, 2, 3, 4]
    assert seen == [0, 1, 2, 3, 4, 5]


def test_ground_truth_is_opened_for_what_was_made_from_it_alone(world):
    """Whatever is remembered of it: without, no fingerprint tells which node a folder is of."""
    for node, reads in (
        ("infer[a]", False),
        ("fusion[channel]@val", False),
        ("policy[oracle]@val", True),
        ("fusion[channel-oracle]@val", True),
        ("truth@val", True),
        ("evaluation@val", True),
    ):
        folder = world.artifact(node).path
        for memory in (world.root / "work").glob("files*.json"):
            memory.unlink()
        (folder / "manifest.json").write_bytes(b"")  # it tells nothing, not even what it is of
        with opened() as paths:
            assert "all damage is made good" in world.call("verify", "--repair")
        assert any("/labels/val/" in p for p in paths) is reads, node
    assert set(world.states().values()) == {"fresh"}


def test_what_others_made_is_not_taken_for_ours(world):
    """However it is called: a folder's name says nothing where fingerprints do."""
    folder = world.artifact("policy[oracle]@val").path

    def stages():
        experiment = load(world.file)
        decisions = plan(build(experiment), experiment.workspace.scan())
        return made_from(decisions, [folder])

    assert stages() == {"truth", "infer", "policy"}
    for file in (world.root / "teachers/a/val").iterdir():
        shutil.copy(world.root / "teachers/b/val" / file.name, file)
    assert stages() == set()


def test_what_was_made_by_a_network_is_made_anew_when_that_came_out_different(world, monkeypatch):
    """The network's key is the same, so the old label maps must not pass for the new ones."""
    from ensdistill.stages.training import loop

    folder = world.artifact("student").path
    before = world.artifact("infer[student]@val").manifest.content
    flip(folder / "model.safetensors")
    rate = loop.learning_rate
    with monkeypatch.context() as other:
        other.setattr(loop, "learning_rate", lambda *a: 3 * rate(*a))
        assert world.json("verify", "--repair")["repair"]["different"] == ["student"]
    assert world.states()["infer[student]@val"] == "stale"
    world.call("run")
    manifest = world.artifact("infer[student]@val").manifest
    assert (manifest.written, manifest.reused) == (3, 0)
    assert manifest.content != before


def test_a_right_chunk_in_a_wrong_place_is_not_read(world):
    shutil.rmtree(world.root / "work" / "fusion")
    store = world.artifact("infer[a]").path / "maps.zarr"
    shutil.copy(store / "c.1.0.0", store / "c.2.0.0")
    text = world.refuse("fuse", "--upstream")
    assert "c.2.0.0: is not what was written for train_000002_000019" in text


def test_damage_to_what_is_only_recorded_is_made_good_without_a_moment_unpublished(
    world, monkeypatch
):
    path = world.artifact("student").path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seconds": ', b'"seconds": 1'))
    from ensdistill.pipeline import atomic

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as other:
        other.setattr(atomic, "write_bytes", full)
        assert "No space left" in world.refuse("verify", "--repair")
    assert path.exists()
    assert "all damage is made good" in world.call("verify", "--repair")
    assert world.states()["student"] == "fresh"


def test_an_artifact_of_another_version_is_left_alone(world):
    path = world.artifact("fusion").path / "manifest.json"
    from dataclasses import replace

    from ensdistill.pipeline.manifest import FORMAT, read_manifest

    content = replace(read_manifest(path.parent), format=FORMAT + 1).to_bytes()
    path.write_bytes(content)
    assert world.states()["fusion"] == "corrupt"
    text = world.call("verify", "--repair", expect=1)
    assert "was made by another version of ensdistill" in text
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "name", ["manifest.json", ".ensdistill", "items.jsonl", "maps.zarr/zarr.json"]
)
@pytest.mark.timeout(120)
def test_a_file_of_holes_is_damage_and_stops_nothing(world, name):
    file = world.artifact("infer[a]").path / name
    with file.open("r+b") as opened:
        opened.truncate(10**12)
    for command in (("status",), ("gc",)):
        world.call(*command)
    world.call("verify", expect=0 if name == ".ensdistill" else 1)
    world.call("verify", "--repair")
    assert world.states()["infer[a]"] == "fresh"
    assert "no damage" in world.call("verify")


@pytest.mark.parametrize(
    "changes",
    [{"seconds": 10**400}, {"seconds": 1e308}, {"disk_bytes": 10**400}, {"written": 10**400}],
    ids=["seconds", "float", "bytes", "written"],
)
def test_numbers_beyond_all_measure_are_damage(world, changes):
    forge(world.artifact("infer[a]").path, **changes)
    assert next(iter(changes)) in world.call("verify", expect=1)
    for command in (("explain", "infer[a]"), ("report",), ("status", "-v")):
        world.call(*command)
    world.call("verify", "--repair")


def test_items_that_two_artifacts_share_are_made_good_one_by_one(world):
    image, labels = (
        world.root / "images/train/train_000004_000019.png",
        [world.root / f"teachers/{t}/train/train_000004_000019.png" for t in "ab"],
    )
    gone = {path: path.read_bytes() for path in (image, *labels)}
    old = world.artifact("infer[a]").path
    for path in gone:
        path.unlink()
    world.call("run", "--no-evaluate")
    new = world.artifact("infer[a]").path
    chunk, twin = (folder / "maps.zarr" / "c.1.0.0" for folder in (old, new))
    assert chunk.samefile(twin)
    whole, when = chunk.read_bytes(), chunk.stat().st_mtime_ns
    flip(chunk)
    os.utime(chunk, ns=(when, when))  # as a disk forgets
    spoilt = chunk.read_bytes()
    for file in (chunk, twin):
        assert f"{file} (item train_000001_000019)" in world.call("verify", expect=1)
    world.call("verify", "--repair", expect=1)  # the old one is of no experiment
    assert (twin.read_bytes(), chunk.read_bytes()) == (whole, spoilt)
    for path, content in gone.items():
        path.write_bytes(content)
    world.call("verify", "--repair")
    assert (twin.read_bytes(), chunk.read_bytes()) == (whole, whole)
    assert "no damage" in world.call("verify")


def test_an_image_that_a_disk_spoilt_in_silence_is_refused_when_it_is_read(world):
    old = world.artifact("infer[a]").path
    (world.root / "images/train/train_000004_000019.png").unlink()
    chunk = old / "maps.zarr" / "c.1.0.0"
    when = chunk.stat().st_mtime_ns
    flip(chunk)
    os.utime(chunk, ns=(when, when))
    for teacher in "ab":
        (world.root / f"teachers/{teacher}/train/train_000004_000019.png").unlink()
    said = world.refuse("infer-teacher")
    assert "c.1.0.0: is not what was written for train_000001_000019" in said
    assert "verify --repair" in said
    world.call("verify", "--repair", expect=1)
    world.call("fuse", "--upstream")
