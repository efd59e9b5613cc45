"""The ground truth of a split is decoded once, by `evaluate`, into label maps of its own."""

import json
import shutil

import numpy as np
import pytest
from worlds import UNCHECKED

from ensdistill.data import decoding
from ensdistill.stages.labelmaps import LabelMaps


@pytest.fixture
def world(world):
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    return world


def decoded(monkeypatch):
    """Return the list of files that are decoded from now on."""
    files, read = [], decoding.read_values
    monkeypatch.setattr(
        decoding,
        "read_values",
        lambda path, *a, **k: files.append(str(path)) or read(path, *a, **k),
    )
    return files


def test_it_holds_what_the_files_say(world):
    world.call("evaluate", "--upstream")
    artifact = world.artifact("truth@val")
    maps = LabelMaps(artifact)
    assert set(maps) == {i for split, i in world.truth if split == "val"}
    for image_id in maps:
        assert np.array_equal(maps.read(image_id), world.truth["val", image_id])
    counts = artifact.manifest.result["labels"]
    assert list(counts.values()) == maps.shares().tolist()
    assert artifact.manifest.result["images"] == 3


def test_a_second_evaluation_decodes_no_ground_truth(world, monkeypatch):
    world.call("evaluate", "--upstream")
    world.add_teacher("c", lambda label: label)
    world.call("infer-teacher")
    files = decoded(monkeypatch)
    world.call("evaluate", "--upstream")
    some = [file for file in files if "teachers/c/train" in file]
    assert len(some) == 5  # by which it is compared with the others
    # what `check` looks at, and `infer`, of the new teacher on val
    assert len(files) == 5 + 2 * 3
    assert all("teachers/c/val" in file for file in files if file not in some)


def test_one_changed_file_is_decoded_alone(world):
    world.call("evaluate", "--upstream")
    world.save("labels", "val", "val_000001_000019", np.full((48, 64), 3))
    found = world.json("explain", "truth@val")
    assert found["state"] == "waiting"  # nobody has looked at the new file yet
    world.call("evaluate")
    made = world.artifact("truth@val").manifest
    assert (made.written, made.reused) == (1, 2)


def test_the_same_bytes_in_another_encoding_are_another_truth(world):
    for (split, image_id), label in world.truth.items():
        if split == "val":
            world.save("labels", "val", image_id, np.full_like(label, 7))
    for encoding, expected in (("train_ids", 7), ("label_ids", 0), ("train_ids", 7)):
        world.settings["target"]["val"]["ids"] = encoding
        world.write()
        world.call("evaluate", "--upstream")
        maps = LabelMaps(world.artifact("truth@val"))
        assert {v for i in maps for v in np.unique(maps.read(i))} == {expected}


def test_one_of_another_size_than_its_image_is_never_stored(world, monkeypatch):
    """`check` refuses it too: the store must not rely on that."""
    from ensdistill.stages.checks import files as check

    monkeypatch.setattr(check, "check", lambda *_, **__: UNCHECKED)
    world.save("labels", "val", "val_000001_000019", np.zeros((24, 64)))
    text = world.refuse("evaluate", "--upstream")
    assert "val_000001_000019.png: 24x64 pixels (height x width), its image has 48x64" in text


def test_the_oracle_and_the_evaluation_wait_for_it(world):
    found = {d["node"]: d for d in world.json("status")}
    assert found["truth@val"]["reason"] == "waits for the labels of val to be opened"
    assert found["policy[oracle]@val"]["reason"] == "waits for truth@val"
    assert "truth@val (waiting)" in world.call("explain", "evaluation@val")
    world.call("run")
    text = world.call("explain", "truth@val")
    assert text.startswith("truth@val is fresh\n")
    below = text.split("below it: ")[1].splitlines()[0].split(", ")
    assert {"policy[oracle]@val", "evaluation@val"} <= set(below)
    assert "\ntruth@val: " in world.call("status", "-v")


def test_gc_keeps_it_whether_or_not_the_labels_are_remembered(world):
    world.call("run")
    (world.root / "work/files.json").unlink()
    kept = {k["node"]: k["reason"] for k in world.json("gc")}
    assert kept["truth@val"] == "may be a node that waits"
    world.call("run")
    assert {k["node"]: k["reason"] for k in world.json("gc")}["truth@val"] == "is truth@val"
    world.settings["target"]["val"].pop("labels")
    world.write()
    assert {k["node"]: k["reason"] for k in world.json("gc")}["truth@val"] is None


def test_teachers_may_be_called_truth(world):
    world.add_teacher("truth", lambda label: label)
    found = world.json("evaluate", "--upstream")
    scores = {m["name"]: m["miou"] for m in found["methods"]}
    assert scores["truth"] == 100 > scores["a"]
    assert world.artifact("policy[oracle]@val").manifest.result["teacher"]["road"] is not None


# Runs commands and prints for each its exit code, its error and the ground truth that it opened.
WATCHED = """
import json, os, sys
from pathlib import Path

root, opened = Path(sys.argv[1]), set()

def watch(event, args):
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(str(root / "labels")):
            opened.add(os.path.basename(path))

sys.addaudithook(watch)

from click.testing import CliRunner
from ensdistill.cli.__main__ import cli

found = []
for command in json.load(sys.stdin):
    if command[0] == "write":
        for file in (root / "labels/val").iterdir():
            file.write_bytes((root / command[1] / file.name).read_bytes())
    elif command[0] == "spoil":
        (chunk,) = root.glob(f"work/{command[1]}-*/maps.zarr/c.1.0.0")
        chunk.write_bytes(b"spoilt")
    else:
        opened.clear()
        result = CliRunner().invoke(cli, [*command, "-c", str(root / "experiment.yaml")])
        found.append([result.exit_code, str(result.exception or ""), sorted(opened)])
print(json.dumps(found))
"""
PLANS = [
    "check",
    "status",
    "status --rehash",
    "run --dry-run",
    "evaluate --dry-run --fusions all",
    "explain evaluation@val",
    "gc --delete",
]
WORK = [
    "infer-teacher",
    "select-policy",
    "fuse",
    "train-student",
    "run --no-evaluate",
    "status -v",
    "verify",
]
STEPS = [
    ("write rubbish", None),
    *((command, "nothing") for command in (*PLANS, *WORK)),
    ("evaluate", "one"),
    ("write truth", None),
    ("evaluate", "all"),
    *((command, "nothing") for command in (*PLANS, "verify", "run", "evaluate")),
    ("spoil infer/a-val", None),
    ("verify --repair", "nothing"),
    ("spoil truth/val", None),
    ("verify --repair", "the second"),
    ("evaluate", "nothing"),
]


@pytest.mark.slow
def test_nothing_but_an_evaluation_opens_ground_truth_and_that_once(world, python):
    """Neither to decode nor to hash it; until then rubbish lies there."""
    world.settings["fusion"] = {"method": "channel", "window": 5}
    world.write()
    shutil.copytree(world.root / "labels/val", world.root / "truth")
    files = sorted(p.name for p in (world.root / "truth").iterdir())
    (world.root / "rubbish").mkdir()
    for file in files:
        (world.root / "rubbish" / file).write_bytes(b"no image")
    commands = [command.split() for command, _ in STEPS]
    told = json.loads(python(WATCHED, world.root, input=json.dumps(commands)))
    expected = {"nothing": [], "all": files, "the second": files[1:2]}
    asked = [step for step in STEPS if step[1]]
    for (command, what), (code, error, opened) in zip(asked, told, strict=True):
        if what == "one":
            assert code == 1 and "labels/val/val_000000_000019.png" in error
            assert opened
        else:
            assert code == 0, (command, error)
            assert opened == expected[what], command
