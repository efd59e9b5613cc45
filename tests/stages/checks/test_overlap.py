"""Images that are trained on are not scored, unless the experiment file says so by name."""

import json
import shutil

import numpy as np
import pytest


@pytest.fixture
def world(world):
    """A world whose val has a copy of a training image, under another name."""
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    for kind in ("images", "labels", "teachers/a", "teachers/b"):
        folder = world.root / kind
        shutil.copy(folder / "train/train_000002_000019.png", folder / "val/copy.png")
    return world


def permit(world, *names):
    world.settings["target"]["val"]["overlap"] = list(names)
    world.write()


@pytest.mark.parametrize("command", [["check"], ["evaluate", "--upstream"], ["run"]])
def test_a_copy_under_another_name_is_found(world, command):
    text = world.refuse(*command)
    assert "DataError: target.val: 1 of its 4 images are among those of target.train" in text
    images = world.root / "images"
    assert (
        f"{images / 'val/copy.png'}, holds the same bytes as "
        f"{images / 'train/train_000002_000019.png'}" in text
    )
    assert "`overlap: [train]` on target.val" in text
    assert not list(world.root.glob("work/*/"))


def test_what_is_not_scored_may_overlap(world):
    world.call("run", "--no-evaluate")
    world.settings["target"]["val"].pop("labels")
    world.write()
    world.call("check")
    world.call("run")


def test_a_permitted_overlap_is_told(world):
    permit(world, "train")
    world.call("check")
    text = world.call("evaluate", "--upstream", "-o", str(world.root / "t.md"))
    assert "\nval: 1 of its images are also in train\n" in text
    assert "; 1 of its images are also in train\n" in (world.root / "t.md").read_text()
    results = json.loads((world.root / "work/results.json").read_text())
    assert results["overlap"] == {"train": 1}
    # it permits and changes nothing, so nothing is made again for it
    world.save("images", "val", "copy", np.zeros((48, 64, 3)))
    permit(world)
    world.call("evaluate", "--upstream")
    assert json.loads((world.root / "work/results.json").read_text())["overlap"] == {}


@pytest.mark.parametrize("names", [["trian"], ["val"], "train"])
def test_other_names_are_refused(world, names):
    world.settings["target"]["val"]["overlap"] = names
    world.write()
    text = world.refuse("check")
    assert "ConfigError" in text and "target.val.overlap" in text


def test_training_images_have_no_overlap_to_permit(world):
    world.settings["target"]["train"]["overlap"] = ["train"]
    world.write()
    assert "target.train.overlap: is for splits that are scored" in world.refuse("check")


def test_an_unreadable_image_is_one_problem(world):
    (world.root / "images/val/copy.png").write_bytes(b"no image")
    text = world.refuse("check")
    assert text.count("copy.png") == 1 and "cannot be read" in text
