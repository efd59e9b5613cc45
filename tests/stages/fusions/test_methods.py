"""The menu of fusion methods, and CONTRIBUTING's "How to add a fusion", line by line."""

import json

import numpy as np
import pytest
from PIL import Image
from worlds import COMMANDS

from ensdistill.stages.experiment.schema import Fusion
from ensdistill.stages.fusions import METHODS

# Lines 1 and 2, and one more entry in the menu.
FIRST = '''
import numpy as np
from ensdistill.stages import fusions

def first(label_maps):
    """Each pixel has the label of the first teacher that gives it one."""
    fused = np.full(label_maps.shape[1:], 255, np.uint8)
    for labels in label_maps[::-1]:
        fused = np.where(labels == 255, fused, labels)
    return fused, None

told = "the first label of any teacher"
fusions.METHODS += (fusions.FusionMethod("first", told, lambda recipe, model: first),)
'''


@pytest.fixture
def added(world, python):
    """Return what runs commands where there is one method more."""
    world.settings["fusion"] = {"method": "first"}
    world.settings["runtime"] = world.settings.get("runtime", {}) | {"workers": 0}
    world.write()

    def call(*commands):
        given = json.dumps([[*command, "-c", str(world.file)] for command in commands])
        return json.loads(python(FIRST + COMMANDS, given))

    return call


@pytest.mark.slow
def test_a_method_is_one_function_and_one_entry(world, added):
    out = world.root / "exported"
    commands = [
        ["check", "--json"],
        ["run"],
        ["evaluate", "--fusions", "all", "--upstream", "--json"],
        ["doctor", "--json"],
        ["report", "-o", str(world.root / "report.html")],
        ["export", "labels", "-o", str(out)],
        ["export", "student", "-o", str(out / "student.safetensors"), "--as", "state-dict"],
        ["status", "--check"],
    ]
    told = added(*commands)
    assert [code for code, *_ in told] == [0] * len(commands), told
    found = json.loads(told[2][1])
    assert found["fusion"] == "first"
    fused = {m["name"] for m in found["methods"] if m["kind"] == "fusion"}
    assert fused == {"first", *(m.name for m in METHODS)}
    assert found["beside"]["method"] == "first"
    assert "the first label of any teacher" in (out / "student.safetensors.md").read_text()
    assert "first" in (world.root / "report.html").read_text()
    (exported,) = (out / "labels" / "train").glob("*000000_*.png")
    folders = [world.settings["teachers"][k]["labels"]["train"] for k in range(2)]
    expected = np.full(np.array(Image.open(exported)).shape, 255)
    for folder in sorted(folders, reverse=True):
        (file,) = (world.root / folder).glob("*000000_*.png")
        labels = np.array(Image.open(file))
        expected = np.where(labels == 255, expected, labels)
    assert (np.array(Image.open(exported)) == expected).all()


def test_what_a_method_is_called_is_no_teachers_name(world, added):
    world.settings["teachers"][0]["name"] = "first"
    world.write()
    [[code, _, error]] = added(["check"])
    assert code != 0
    assert "'first' is the name of a method in tables; choose another" in error


def test_the_schema_takes_each_method_that_is_no_yardstick():
    for method in METHODS:
        if method.is_own:
            assert Fusion(method=method.name).method == method.name
    for other in (*(m.name for m in METHODS if not m.is_own), "soft", 3, None, ["majority"]):
        with pytest.raises(ValueError, match="expected 'label-model', 'channel' or 'majority'"):
            Fusion(method=other)
    assert len({method.name for method in METHODS}) == len(METHODS)
