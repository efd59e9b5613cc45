"""What is given as labels is what it says, in every command that reads it."""

import numpy as np
import pytest
from PIL import Image

from ensdistill.stages.graph import load


def label_files(world, teacher="a", split="train"):
    return sorted((world.root / "teachers" / teacher / split).glob("*.png"))


def as_jpeg(path):
    with Image.open(path) as image:
        image.convert("L").save(path, "JPEG", quality=100)


def test_ids_in_three_channels_give_the_labels_of_one(world):
    """cv2.imwrite of a merged mask, and most annotation tools."""
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    before = {n: world.artifact(n).manifest.content for n in ("infer[a]", "fusion")}
    for file in label_files(world):
        with Image.open(file) as image:
            Image.merge("RGB", [image] * 3).save(file)
    world.call("check")
    world.call("fuse", "--upstream")
    assert {n: world.artifact(n).manifest.content for n in before} == before


@pytest.mark.parametrize("command", ["check", "infer-teacher", "run"])
def test_a_jpeg_is_refused_as_labels_whatever_its_name_is(world, command):
    file = label_files(world)[2]
    as_jpeg(file)
    text = world.refuse(command)
    assert f"{file}: its content is JPEG" in text
    assert "converting this file does not bring them back" in text


def test_a_jpeg_is_no_ground_truth(world):
    file = sorted((world.root / "labels" / "val").glob("*.png"))[1]
    as_jpeg(file)
    assert f"{file}: its content is JPEG" in world.refuse("run")


def test_what_was_accepted_by_older_rules_is_looked_at_again(world):
    """Facts are remembered by content, so that a JPEG that was once accepted would stay so."""
    file = label_files(world)[0]
    as_jpeg(file)
    with Image.open(file) as image:
        values, counts = np.unique(np.asarray(image), return_counts=True)
        fact = {"height": image.height, "width": image.width}
    fact["values"] = {str(v): int(n) for v, n in zip(values, counts, strict=True) if v < 19}
    files = load(world.file).files
    files.learn(files.digest(file), "values-False", fact)
    files.save()
    assert f"{file}: its content is JPEG" in world.refuse("check")
