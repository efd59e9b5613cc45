"""Many teachers: roles stand in the order of the names, whatever their spelling sorts like."""

import numpy as np
import pytest
from worlds import TINY, World

from ensdistill.pipeline.node import NodeId
from ensdistill.stages.nodes.given import called, numbered

NAMES = [f"t{k:03}" for k in range(102)]
BAD = "t100"


@pytest.fixture
def crowd(tmp_path):
    """One image, and 102 teachers of three classes, of whom one guesses."""
    world = World.__new__(World)
    world.root, world.file = tmp_path, tmp_path / "experiment.yaml"
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (8, 8))
    world.truth = {("train", "i"): label}
    world.save("images", "train", "i", np.zeros((8, 8, 3)))
    for name in NAMES:
        spoilt = rng.random((8, 8)) < (0.9 if name == BAD else 0.1)
        world.teacher(name, lambda _, s=spoilt: np.where(s, rng.integers(0, 3, (8, 8)), label))
    world.settings = {
        "version": 1,
        "workspace": "work",
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"images": "images/train/*.png"}},
        "teachers": [{"name": n, "labels": {"train": f"teachers/{n}/train"}} for n in NAMES],
        "fusion": {"method": "label-model"},
        "student": TINY,
        "runtime": {"device": "cpu", "workers": 0, "threads": 1},
    }
    world.write()
    return world


def test_roles_stand_in_the_order_that_is_meant():
    found = numbered("teacher", [NodeId("infer", name) for name in NAMES])
    assert list(found)[98:] == ["teacher98", "teacher99", "teacher100", "teacher101"]
    assert list(called(found).values()) == NAMES


@pytest.mark.slow
def test_what_is_known_of_the_hundredth_teacher_bears_its_name(crowd):
    """As text ``teacher100`` would stand behind ``teacher10``, and every name shift from there."""
    found = crowd.json("select-policy", "--upstream")["reliability"]
    assert list(found) == NAMES
    assert min(NAMES, key=lambda name: found[name]["road"]) == BAD
    assert found[BAD]["road"] < 0.6 < min(found[n]["road"] for n in NAMES if n != BAD)
    assert crowd.json("explain", "label-model")["called"]["teacher100"] == BAD
