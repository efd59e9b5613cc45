"""Generated fleets: teachers of two or three families that share errors of whole segments.

The scenes are the demo's, in eleven classes. A segment is all pixels of a class that hang together
in a block of the image. Teachers take whole segments for another class, three ways: all teachers
the same one (what is hard for everybody), all of a family the same one (what one architecture or
one source does not see), or each its own. How often depends on the class and on the skill of the
teacher. Borders are each teacher's own.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import TARGET

CLASSES = (
    "road",
    "pavement",
    "building",
    "fence",
    "pole",
    "sign",
    "vegetation",
    "sky",
    "person",
    "bicyclist",
    "car",
)
C = len(CLASSES)
SIZE = (144, 288)
BLOCK = 36  # pixels

# Where each of Cityscapes' train ids goes.
GROUPS = (0, 1, 2, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 10, 10, 10, 9, 9)
# How often a teacher of skill 1 takes a segment of a class for another one, before fleets differ.
HARD = np.array([0.06, 0.25, 0.10, 0.55, 0.55, 0.45, 0.12, 0.08, 0.45, 0.5, 0.2])
# How much there is of each class: what is frequent is often taken for the rest.
FREQUENT = np.array([6, 3, 6, 1, 0.6, 0.6, 5, 2, 0.7, 0.7, 2.0])
OWN = 0.25  # part of a teacher's errors that are its own, of those of its family
COMMON = 0.5  # part of them that are everybody's
FOLLOWS = 0.85  # of the errors of others that a teacher would share, those that it does
MOST = 0.95  # the largest rate of errors


class Fleet(NamedTuple):
    """The teachers of a world.

    `families` says how many belong to each, `skill` is a factor on each teacher's errors: the one
    below 0.6 is strong, those of 1.7 and more are weak.
    """

    seed: int
    families: tuple[int, ...]
    skill: tuple[float, ...]

    @property
    def family(self):
        """(T,) which family each teacher is of."""
        return np.repeat(np.arange(len(self.families)), self.families)

    @property
    def teachers(self):
        return tuple(f"{'abc'[f]}{t}" for t, f in enumerate(self.family))


FLEETS = {
    "fleet6": Fleet(0, (3, 3), (0.55, 1.0, 1.1, 0.9, 1.7, 2.0)),
    "fleet7": Fleet(1, (3, 2, 2), (0.55, 1.0, 1.8, 0.9, 1.1, 1.0, 2.0)),
    "fleet9": Fleet(2, (4, 3, 2), (0.9, 1.0, 1.8, 1.1, 0.55, 1.0, 2.0, 0.9, 1.1)),
}
LARGE = Fleet(3, (5, 4, 3), (0.9, 1.0, 1.8, 1.1, 1.0, 0.55, 1.0, 2.0, 0.9, 1.1, 1.0, 1.2))
"""One to measure time on."""


class _Errors(NamedTuple):
    """Errors of one origin: (C, C) what a class is taken for, (C,) how often."""

    taken_for: np.ndarray
    rate: np.ndarray


class _Segments(NamedTuple):
    """(H, W) the segment of each pixel, (S,) the class of each segment, 255 for the own car."""

    of_pixel: np.ndarray
    classes: np.ndarray

    @property
    def known(self):
        """The classes as an index: the own car is as hard as a car."""
        return np.minimum(self.classes, C - 1)


class Painter:
    """Draws the scenes of a fleet one after the other, with what its teachers say of each."""

    def __init__(self, fleet):
        self.fleet, self._index = fleet, 0
        self._random = random = np.random.default_rng(1000 + fleet.seed)
        teachers = range(len(fleet.skill))
        mistakes = [_mistakes(random) for _ in fleet.families]
        rates = [_rates(random, 0.6) for _ in fleet.families]
        self._families = [_Errors(*of) for of in zip(mistakes, rates, strict=True)]
        mistakes = [_mistakes(random) for _ in teachers]
        rates = [_rates(random, 0.5) for _ in teachers]
        self._own = [_Errors(*of) for of in zip(mistakes, rates, strict=True)]
        self._common = _Errors(_mistakes(random), _rates(random, 0.4))

    def draw(self):
        """Return (H, W) the truth of the next scene and (T, H, W) the teachers' label maps."""
        _, labels = draw_scene(self.fleet.seed, self._index, TARGET, SIZE)
        self._index += 1
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(GROUPS)] = GROUPS
        truth = table[labels]
        return truth, self._labelled(_segments(truth))

    def _labelled(self, segments):
        random, known = self._random, segments.known
        in_family = random.random((len(self._families), len(known)))
        in_all = random.random(len(known))
        by_family = [self._mistaken(f, known) for f in self._families]
        by_all = self._mistaken(self._common, known)
        maps = []
        for skill, family, own in zip(self.fleet.skill, self.fleet.family, self._own, strict=True):
            said = segments.classes.copy()
            wrong = random.random(len(known)) < own.rate[known] * skill * OWN
            said = np.where(wrong, self._mistaken(own, known), said)
            wrong = self._shared(in_family[family], self._families[family].rate[known] * skill)
            said = np.where(wrong, by_family[family], said)
            wrong = self._shared(in_all, self._common.rate[known] * COMMON * skill**0.5)
            said = np.where(wrong, by_all, said)
            label_map = self._displaced(said[segments.of_pixel], skill**0.5)
            # the own car has no class: a teacher sees something there
            maps.append(np.where(label_map == IGNORE_INDEX, CLASSES.index("building"), label_map))
        return np.stack(maps).astype(np.uint8)

    def _mistaken(self, errors, classes):
        """What each segment would be taken for."""
        limits = errors.taken_for.cumsum(axis=1)[classes]
        drawn = self._random.random(len(classes))[:, None]
        return (drawn > limits).sum(axis=1).clip(0, C - 1)

    def _shared(self, drawn, rate):
        """In which segments a teacher makes an error that is not its own alone."""
        follows = self._random.random(len(drawn)) < FOLLOWS
        return (drawn < np.clip(rate, 0, MOST)) & follows

    def _displaced(self, labels, pixels):
        """Move borders smoothly by about so many pixels."""
        zoom = (SIZE[0] / 6, SIZE[1] / 10)
        dy, dx = (
            ndimage.zoom(self._random.normal(0, pixels, (6, 10)), zoom, order=1) for _ in "yx"
        )
        ys, xs = np.indices(SIZE)
        y = np.clip(np.rint(ys + dy), 0, SIZE[0] - 1).astype(int)
        x = np.clip(np.rint(xs + dx), 0, SIZE[1] - 1).astype(int)
        return labels[y, x]


def _mistakes(random):
    """(C, C) what a class is taken for: mostly one or two others."""
    share = random.dirichlet(np.full(C, 0.15), C) * FREQUENT
    np.fill_diagonal(share, 0)
    return share / share.sum(axis=1, keepdims=True)


def _rates(random, spread):
    """(C,) how often."""
    return np.clip(HARD * random.lognormal(0, spread, C), 0, 0.8)


def _segments(truth):
    ys, xs = np.indices(truth.shape)
    block = (ys // BLOCK) * 1000 + xs // BLOCK
    of_pixel, classes = np.zeros(truth.shape, np.int64), []
    for label in np.unique(truth):
        here = truth == label
        connected, _ = ndimage.label(here)
        _, segment = np.unique((connected * 1_000_000 + block)[here], return_inverse=True)
        of_pixel[here] = segment + len(classes)
        classes += [int(label)] * (segment.max() + 1)
    return _Segments(of_pixel, np.array(classes))
