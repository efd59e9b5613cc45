"""The table of a world: which tasks it takes, and what is read off their results."""

from typing import NamedTuple

import numpy as np

from ensdistill.stages.functional.scores import rank_correlation

from .judging import DRAWS, FEW, NOISE, WORLDS, Task

COPIES = (1, 3)
BINS = 10


class Figure(NamedTuple):
    """A line of the table; `form` is how its value is written."""

    name: str
    value: float
    form: str


def tasks(world, split):
    """Return all that the table of a world takes."""
    groups = [*world.compositions, *world.pairs]
    found = [Task("majority", world.name, "val", t) for t in groups]
    found += [_model(world, split, t, calibrated=True) for t in world.compositions]
    found += [_model(world, split, t) for t in world.pairs]
    for t in world.everybody:
        found += [_model(world, split, changed) for changed in _changed(world, t)]
    found += [_useless(world, split, label) for label in (NOISE, *range(len(world.classes)))]
    return found + [task for task, _ in _few(world, split)]


def _model(world, split, teachers, *, calibrated=False):
    return Task("model", world.name, split, teachers, calibrated)


def _useless(world, split, label):
    return Task("useless", world.name, split, world.everybody, label)


def _changed(world, teacher):
    """Yield everybody without a teacher, and with copies of it."""
    yield tuple(t for t in world.everybody if t != teacher)
    yield from (world.everybody + (teacher,) * copies for copies in COPIES)


def _few(world, split):
    """Return tasks with their number of images: all teachers, and three, in turns."""
    if split != "val":
        return []  # it is the same whatever the rest is fitted to
    found, total, everybody = [], len(world.truth), world.everybody
    for number in FEW:
        for draw in range(DRAWS):
            images = {(draw * total // DRAWS + k * 7) % total for k in range(number)}
            three = tuple((draw // 2 + k) % len(everybody) for k in range(3))
            teachers = everybody if draw % 2 else three
            found.append((Task("few", world.name, "val", teachers, tuple(sorted(images))), number))
    return found


class Found:
    """The results of a world's tasks, read as figures.

    Parameters
    ----------
    results
        Task to what came of it.
    split
        What the models were fitted to: `val`, which is fused, or `train`.
    """

    def __init__(self, world, split, results):
        self._world, self._split, self._results = world, split, results
        self.full = self.judged(world.everybody)

    def judged(self, teachers):
        """Return what a model of some teachers is worth."""
        for calibrated in (True, False):
            task = _model(self._world, self._split, teachers, calibrated=calibrated)
            if task in self._results:
                return self._results[task]
        raise KeyError(teachers)

    def majority(self, teachers):
        """Return the mIoU of their plurality."""
        return self._results[Task("majority", self._world.name, "val", teachers)]

    def figures(self):
        """Yield the whole table."""
        yield from self._everybody()
        yield from self._against("compositions", self._world.compositions)
        yield from self._by_size()
        pairs = self._world.pairs
        yield Figure("pairs: label model", np.mean([self.judged(t).miou for t in pairs]), ".2f")
        yield from self._against("pairs", pairs)
        yield from self._ranks()
        yield from self._reliability()
        yield from self._changes()
        yield from self._calibration()
        yield from self._few()

    def teachers(self):
        """Yield a dict for each teacher: what it scores, what is said of it, what it changes."""
        for t, name in enumerate(self._world.teachers):
            without, *copied = (
                self.full.miou - self.judged(c).miou for c in _changed(self._world, t)
            )
            yield {
                "teacher": name,
                "mIoU": self._world.miou[t],
                "weight": self.full.weights[t],
                "reliability": 100 * np.nanmean(self.full.reliability[t]),
                "adds": without,
                **{f"copies: {n}": -gain for n, gain in zip(COPIES, copied, strict=True)},
            }

    def _everybody(self):
        yield Figure("all teachers: label model", self.full.miou, ".2f")
        yield Figure("all teachers: majority", self.majority(self._world.everybody), ".2f")
        yield Figure("best teacher", self._world.miou.max(), ".2f")

    def _against(self, name, groups):
        """Yield how models compare with majority, and with the best of their teachers."""
        yield Figure(f"{name}: number", len(groups), ".0f")
        for other, gains in (("majority", self._plural(groups)), ("best", self._best(groups))):
            yield Figure(f"{name}: against {other}, mean", gains.mean(), "+.2f")
            yield Figure(f"{name}: at or above {other}, %", 100 * np.mean(gains >= 0), ".0f")
            yield Figure(f"{name}: against {other}, least", gains.min(), "+.2f")

    def _plural(self, groups):
        return np.array([self.judged(t).miou - self.majority(t) for t in groups])

    def _best(self, groups):
        return np.array([self.judged(t).miou - self._world.miou[list(t)].max() for t in groups])

    def _by_size(self):
        for size in range(3, len(self._world.teachers) + 1):
            groups = [t for t in self._world.compositions if len(t) == size]
            for other, gains in (("majority", self._plural), ("best", self._best)):
                yield Figure(f"{size} teachers: against {other}", gains(groups).mean(), "+.2f")

    def _ranks(self):
        """Yield how well the model tells good teachers from bad ones."""
        said = {
            "weights": lambda judged: judged.weights,
            "reliability": lambda judged: np.nanmean(judged.reliability, axis=1),
        }
        for name, of in said.items():
            every = [
                rank_correlation(of(self.judged(t)), self._world.miou[list(t)])
                for t in self._world.compositions
            ]
            yield Figure(f"ranks of {name}: all teachers", every[-1], ".2f")
            yield Figure(f"ranks of {name}: compositions", np.nanmean(every), ".2f")

    def _reliability(self):
        errors = 100 * self.full.reliability - self._world.iou
        yield Figure("reliability - IoU: mean, points", np.nanmean(errors), "+.1f")
        yield Figure("reliability - IoU: mean distance, points", np.nanmean(abs(errors)), ".1f")

    def _changes(self):
        rows = list(self.teachers())
        yield Figure("least that a teacher adds", min(r["adds"] for r in rows), "+.2f")
        for number in COPIES:
            change = min(r[f"copies: {number}"] for r in rows)
            yield Figure(f"copies of a teacher, {number}: worst change", change, "+.2f")
        constant = [self._with_useless(c) for c in range(len(self._world.classes))]
        yield Figure("a constant teacher more: worst change", min(constant), "+.2f")
        yield Figure("a teacher of noise more: change", self._with_useless(NOISE), "+.2f")

    def _with_useless(self, label):
        task = _useless(self._world, self._split, label)
        return self._results[task].miou - self.full.miou

    def _calibration(self):
        errors = [calibration_error(self.judged(t).chances) for t in self._world.compositions]
        yield Figure("calibration error: all teachers", errors[-1], ".3f")
        yield Figure("calibration error: compositions", np.mean(errors), ".3f")

    def _few(self):
        drawn = _few(self._world, self._split)
        for number in FEW:
            gains = np.array([self._results[task] for task, n in drawn if n == number])
            if len(gains):
                name = f"fitted to {number} image{'s' * (number > 1)}"
                yield Figure(f"{name}: against majority, mean", gains.mean(), "+.2f")
                yield Figure(f"{name}: at or above majority, %", 100 * np.mean(gains >= 0), ".0f")


def calibration_error(chances):
    """Return the mean distance of said and seen probability over the pixels, by ten bins."""
    pixels, right = chances
    bins = np.minimum(np.arange(101) * BINS // 100, BINS - 1)
    said = np.bincount(bins, pixels * np.arange(101) / 100)
    seen = np.bincount(bins, right)
    return float(abs(said - seen).sum() / max(pixels.sum(), 1))


def gains(name, results, constants=()):
    """Return what a world's compositions gain on majority, and the mIoU of all its teachers."""
    world = WORLDS[name]
    mious = [results[t].miou for t in sweep_tasks(world, constants)]
    plural = [results[Task("majority", name, "val", t)] for t in world.compositions]
    return np.array(mious) - plural, mious[-1]


def sweep_tasks(world, constants):
    """Return the tasks of a world's compositions with other constants."""
    return [Task("model", world.name, "val", t, False, constants) for t in world.compositions]
