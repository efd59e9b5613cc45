"""What is done to the label model, one task at a time, in as many processes as there are cores."""

from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import majority
from ensdistill.stages.functional.labelmodel import fit, fuse, posterior
from ensdistill.stages.functional.scores import confusion, iou, mean_iou

from .worlds import count_all

FEW = (1, 3, 10)  # images that a model is fitted to, and that it fuses
DRAWS = 12  # of such images
NOISE = -1  # stands for a teacher who knows nothing, where a constant one is a class id

WORLDS = {}
"""The worlds by name: the processes that are forked have them from here."""


class Task(NamedTuple):
    """A thing to do, and the constants of the label model that it is done with.

    `kind` is a function of this module, without its underscore; `what` is the last of its
    arguments, `teachers` are positions, of which one may occur again as a copy.
    """

    kind: str
    world: str
    split: str
    teachers: tuple
    what: object = None
    constants: tuple = ()


class Judged(NamedTuple):
    """What a label model is worth.

    Attributes
    ----------
    miou
        In percent, of the fused labels of `val`.
    weights, reliability
        (T,) and (T, C), what the model says of its teachers.
    chances
        (2, 101) int64: labelled pixels by the percent that `posterior` gives them, and how many of
        them are right; None where nobody asked.
    """

    miou: float
    weights: np.ndarray
    reliability: np.ndarray
    chances: np.ndarray | None = None


def perform(tasks, processes):
    """Return the result of each task."""
    first, *others = dict.fromkeys(tasks)
    results = {first: _perform(first)}  # what is compiled for it the forked ones have
    if processes == 1:
        return results | {task: _perform(task) for task in others}
    with get_context("fork").Pool(processes) as pool:
        return results | dict(zip(others, pool.map(_perform, others, chunksize=1), strict=True))


@contextmanager
def constants(values):
    """Run with other constants of the label model: pairs of name and value."""
    before = {name: getattr(labelmodel, name) for name, _ in values}
    try:
        for name, value in values:
            setattr(labelmodel, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(labelmodel, name, value)


def _perform(task):
    with constants(task.constants):
        return KINDS[task.kind](WORLDS[task.world], task.split, list(task.teachers), task.what)


def _model(world, split, teachers, calibrated):
    """Fit to a split and judge on `val`, its `chances` if they are wanted."""
    n_classes = len(world.classes)
    model = fit(world.votes(split).of(teachers), n_classes)
    maps = [np.ascontiguousarray(m[teachers]) for m in world.maps["val"]]
    return _judged(model, maps, world.truth, n_classes, calibrated)


def _majority(world, _, teachers, __):
    """Return the mIoU of the plurality, in percent."""
    n_classes = len(world.classes)
    fused = (majority(np.ascontiguousarray(m[teachers]), n_classes) for m in world.maps["val"])
    return _miou(fused, world.truth, n_classes)


def _useless(world, split, teachers, label):
    """Add a teacher who knows nothing, and judge."""
    n_classes = len(world.classes)

    def joined(maps):
        random = np.random.default_rng(0)
        return [
            np.concatenate([m[teachers], _idle(random, m.shape[1:], label, n_classes)])
            for m in maps
        ]

    model = fit(count_all(joined(world.maps[split]), n_classes), n_classes)
    return _judged(model, joined(world.maps["val"]), world.truth, n_classes)


def _few(world, _, teachers, images):
    """Fit to some images of `val`, and return by how much their mIoU exceeds majority's."""
    n_classes = len(world.classes)
    maps = [np.ascontiguousarray(world.maps["val"][i][teachers]) for i in images]
    truth = [world.truth[i] for i in images]
    model = fit(count_all(maps, n_classes), n_classes)
    plural = _miou((majority(m, n_classes) for m in maps), truth, n_classes)
    return _judged(model, maps, truth, n_classes).miou - plural


KINDS = {"model": _model, "majority": _majority, "useless": _useless, "few": _few}


def _judged(model, maps, truth, n_classes, calibrated=False):
    fused = [fuse(m, model)[0] for m in maps]
    chances = _chances(model, maps, fused, truth) if calibrated else None
    return Judged(_miou(fused, truth, n_classes), model.weights, model.reliability, chances)


def _miou(fused, truth, n_classes):
    pairs = zip(fused, truth, strict=True)
    confmat = sum(confusion(target, label_map[None], n_classes)[0] for label_map, target in pairs)
    return 100 * mean_iou(iou(confmat))


def _chances(model, maps, fused, truth):
    chances = np.zeros((2, 101), np.int64)
    for votes, label_map, target in zip(maps, fused, truth, strict=True):
        percent = posterior(votes, label_map, model)[0]
        judged = (target != 255) & (label_map != 255)
        chances[0] += np.bincount(percent[judged], minlength=101)
        chances[1] += np.bincount(percent[judged & (label_map == target)], minlength=101)
    return chances


def _idle(random, shape, label, n_classes):
    """(1, H, W) the labels of a teacher who knows nothing."""
    if label != NOISE:
        return np.full((1, *shape), label, np.uint8)
    return random.integers(0, n_classes, (1, *shape), np.uint8)
