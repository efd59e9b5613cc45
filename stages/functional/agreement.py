"""Where teachers agree, and where they do not: known without any ground truth.

Two teachers agree on a pixel if both label it, and say the same class; two that leave it without a
label do not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX
from ensdistill.stages.functional._checks import check_form
from ensdistill.stages.functional.scores import class_counts, confusion

__all__ = ["Agreement", "agreement", "claims", "joint", "kappa", "turned"]


TURNED: Final = 0.002
"""The share of the pixels that a class has at least, to tell that it goes by another's name."""

_EXCHANGED: Final = 0.005  # the same, of one of two that are exchanged
_PART: Final = 0.1  # of such a class that goes by the other's name at least
_SELDOM: Final = 0.1  # as often at most by its own name


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far T teachers agree, in pixels; those of several images add up exactly.

    Attributes
    ----------
    pixels
        All pixels.
    labelled
        Those that at least one teacher labels.
    unanimous
        Those that every teacher labels, all with the same class. A teacher that labels nothing of
        an image is not asked about it, if two others are left.
    pairs
        (T, T) int64, the pixels to which two teachers give the same class; symmetric. The diagonal
        counts what each labels.
    both
        (T, T) int64, the pixels that two teachers both label.
    fused
        (C,) int64, the pixels of each class in the fused map.
    settled
        (C,) int64, those of them that are unanimous.
    """

    pixels: int
    labelled: int
    unanimous: int
    pairs: NDArray[np.int64]
    both: NDArray[np.int64]
    fused: NDArray[np.int64]
    settled: NDArray[np.int64]

    @property
    def either(self) -> NDArray[np.int64]:
        """(T, T), the pixels that at least one of two teachers labels."""
        each = np.diagonal(self.pairs)
        return each[:, None] + each - self.both

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def agreement(label_maps: NDArray[np.uint8], fused: NDArray[np.uint8], n_classes: int) -> Agreement:
    """Count the pixels on which teachers agree.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255.
    fused
        (H, W) uint8 of class ids 0..C-1 or 255, what was made of them.
    n_classes
        C, 1 to 254.

    Raises
    ------
    TypeError
        If a label map is not uint8.
    ValueError
        If the shapes do not fit, or a map holds a value that is neither a class id nor 255.
    """
    check_form("label_maps", label_maps, ndim=3)
    check_form("fused", fused, ndim=2)
    if fused.shape != label_maps.shape[1:]:
        raise ValueError(
            f"label_maps and fused must have one size, got {label_maps.shape[1:]} and {fused.shape}"
        )
    teachers = len(label_maps)
    pairs, both = np.empty((2, teachers, teachers), np.int64)
    for j in range(teachers):
        joints = confusion(label_maps[j], label_maps[j:], n_classes)[..., :n_classes]
        for k, counts in enumerate(joints, start=j):
            pairs[j, k] = pairs[k, j] = np.trace(counts)
            both[j, k] = both[k, j] = counts.sum()
    lowest = label_maps.min(axis=0)  # 255 is the highest of all
    asked = label_maps[np.diagonal(pairs) > 0]
    unanimous = (asked == lowest).all(axis=0) & (lowest != IGNORE_INDEX)
    unanimous &= len(asked) >= min(2, teachers)  # one of several agrees with nobody
    return Agreement(
        pixels=fused.size,
        labelled=int(np.count_nonzero(lowest != IGNORE_INDEX)),
        unanimous=int(np.count_nonzero(unanimous)),
        pairs=pairs,
        both=both,
        fused=class_counts(fused, n_classes),
        settled=class_counts(np.where(unanimous, fused, np.uint8(IGNORE_INDEX)), n_classes),
    )


def joint(one: NDArray[np.uint8], other: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    """Count how often two teachers call a pixel what; those of several images add up.

    Returns
    -------
    joint
        (C, C) int64 of the pixels that both label: rows are the classes of `one`, columns those of
        `other`. Both are label maps as in `confusion`, with the same errors.
    """
    return confusion(one, other[None], n_classes)[0, :, :n_classes]


def kappa(joint: NDArray[np.int64]) -> float:
    """Return how far two teachers agree beyond chance (Cohen, 1960).

    Chance is what they would agree by if each gave its own share of pixels to each class, blindly:
    two that call nearly all road agree on nearly all, and know nothing of each other.

    Parameters
    ----------
    joint
        (C, C) counts of pixels that both label, from `joint`.

    Returns
    -------
    kappa
        1 where they agree on all pixels, 0 where no more than by chance, negative where less; NaN
        without pixels, and where one of them calls all of these a single class, as a specialist
        does that knows no other: chance then explains all that it says.

    Raises
    ------
    ValueError
        If `joint` is not (C, C).
    """
    if joint.ndim != 2 or joint.shape[0] != joint.shape[1]:
        raise ValueError(f"joint must be (C, C), got shape {joint.shape}")
    if min(np.count_nonzero(joint.any(axis=axis)) for axis in (0, 1)) < 2:
        return float("nan")
    pixels = joint.sum()
    expected = float((joint.sum(axis=1) / pixels) @ (joint.sum(axis=0) / pixels))
    return float((np.trace(joint) / pixels - expected) / (1 - expected))


def turned(calls: NDArray[np.int64]) -> dict[int, int]:
    """Return classes that somebody seems to call by each other's names.

    Parameters
    ----------
    calls
        (C, C) counts of pixels: rows are what one calls them, columns what the others do.

    Returns
    -------
    dict
        Class to what the others call it. Two that are exchanged: what one calls either of them, the
        others call the other one, and hardly ever the same. Or more in a circle, of which the
        others call most of each by the next one's name. Classes of less than `TURNED` of the pixels
        tell nothing.

    Raises
    ------
    ValueError
        If `calls` is not (C, C).
    """
    if calls.ndim != 2 or calls.shape[0] != calls.shape[1]:
        raise ValueError(f"calls must be (C, C), got shape {calls.shape}")
    sizes, own = calls.sum(axis=1), np.diagonal(calls)
    pixels = max(1, sizes.sum())
    best = calls.argmax(axis=1)
    clear = (2 * calls.max(axis=1) > sizes) & (sizes >= TURNED * pixels)
    found = {c: int(best[c]) for c in np.flatnonzero(clear).tolist() if best[c] != c}
    while found.keys() != {*found.values()}:
        named = {*found.values()}
        found = {c: d for c, d in found.items() if c in named and d in found}
    often = (calls >= _PART * sizes[:, None]) & (_SELDOM * calls > own[:, None])
    often &= sizes[:, None] >= _EXCHANGED * pixels
    pairs = np.argwhere(np.triu(often & often.T)).tolist()
    for c, d in sorted(pairs, key=lambda pair: -(calls[*pair] + calls[*pair[::-1]])):
        if not {c, d} & found.keys():
            found |= {c: d, d: c}
    return found


def claims(
    label_maps: NDArray[np.uint8], owner: NDArray[np.intp] | None = None
) -> NDArray[np.uint8]:
    """Count the labels that each pixel may get: 0 is a hole, 1 is settled, more are a conflict.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255.
    owner
        (C,) the index of the teacher that decides class c, or -1: then class c claims a pixel if
        its owner says c there (paper, section 3.3). Without it every label that a teacher gives
        the pixel is a claim; 255 claims nothing.

    Returns
    -------
    claims
        (H, W) uint8.

    Raises
    ------
    TypeError, ValueError
        If `label_maps` is not (T, H, W) uint8.
    """
    check_form("label_maps", label_maps, ndim=3)
    found = np.zeros(label_maps.shape[1:], np.uint8)
    if owner is not None:
        for c, teacher in enumerate(owner):
            if teacher >= 0:
                found += label_maps[teacher] == c
        return found
    ordered = np.sort(label_maps, axis=0)
    for k, labels in enumerate(ordered):
        new = labels != IGNORE_INDEX
        found += new if k == 0 else new & (labels != ordered[k - 1])
    return found
