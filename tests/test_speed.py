"""A loose guard of the speed that `tests/benchmarks` measures: twice what is allowed there."""

from functools import partial

import numpy as np
import pytest
import torch
from benchmarks import certainty, kernels, maps
from benchmarks.measure import turns
from PIL import Image

from ensdistill.data.store import LabelStore
from ensdistill.stages.functional.scores import confusion

SHAPE = (512, 1024)


@pytest.fixture(scope="module")
def scene():
    """A scene and what four teachers make of it."""
    return maps.street(0, teachers=4, shape=SHAPE)


def check(works, ours, other, most):
    """Fail if `ours` takes more than `most` times what `other` does, twice: machines are busy."""
    found = [turns(works, rounds=3).ratio(ours, other)]
    if found[0] > most:
        found.append(turns(works, rounds=3).ratio(ours, other))
    assert min(found) <= most, found


# The rule `ignore` does not reach its goal of 5, since its claims are counted by class: 6 to 9 are
# measured, and twice that is what is guarded.
@pytest.mark.parametrize(
    ("rule", "holes", "most"), [("window", "window", 40), ("ignore", "ignore", 18)]
)
def test_channel_wise(scene, rule, holes, most):
    planes = scene[1]
    owner = maps.owner_near(planes, 0.08)
    works = {"ours": kernels.fuse(planes, owner, rule, holes), "max": kernels.highest(planes)}
    check(works, "ours", "max", most)


@pytest.mark.parametrize(("weights", "most"), [(None, 4), (np.arange(1, 5), 6)])
def test_majority(scene, weights, most):
    works = {"ours": kernels.vote(scene[1], weights), "max": kernels.highest(scene[1])}
    check(works, "ours", "max", most)


def test_majority_of_many(scene):
    planes = np.concatenate([scene[1], scene[1][:3]])
    works = {"ours": kernels.vote(planes), "max": kernels.highest(planes)}
    check(works, "ours", "max", 12)


def test_store(scene, tmp_path):
    plane, file = scene[1][0], tmp_path / "0.png"
    labels = LabelStore.create(tmp_path / "maps.zarr", 1, *SHAPE)
    writing = {
        "write": lambda: labels.write(0, plane),
        "save": lambda: Image.fromarray(plane).save(file),
    }
    check(writing, "write", "save", 1 / 3)
    reading = {
        "read": lambda: labels.read(0, *SHAPE),
        "open": lambda: np.asarray(Image.open(file)),
    }
    check(reading, "read", "open", 1 / 3)


def test_certainty(scene):
    logits = certainty.logits_of(scene[0])
    works = {
        name: partial(work, logits, SHAPE)
        for name, work in (("ours", certainty.ours), ("plain", certainty.plain))
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check(works, "ours", "plain", 1.2)
    finally:
        torch.set_num_threads(threads)


def test_confusion(scene):
    target, predictions = scene[0], scene[1][:3]

    def plain():
        for plane in predictions:
            np.bincount((maps.CLASSES * target.astype(int) + plane).ravel(), minlength=361)

    works = {"ours": lambda: confusion(target, predictions, maps.CLASSES), "plain": plain}
    check(works, "ours", "plain", 0.5)
