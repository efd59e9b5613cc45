"""Where teachers agree, and where they do not: known without any ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX
from ensdistill.stages.functional._checks import check_form
from ensdistill.stages.functional.scores import class_counts

__all__ = ["Agreement", "agreement", "claims"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far T teachers agree, in pixels; those of several images add up exactly.

    Attributes
    ----------
    pixels, unanimous
        All pixels, and those that every teacher gives the same label (255 is one).
    pairs
        (T, T) int64, the pixels that two teachers give the same label; symmetric.
    fused
        (C,) int64, the pixels of each class in the fused map.
    settled
        (C,) int64, those of them that are unanimous.
    """

    pixels: int
    unanimous: int
    pairs: NDArray[np.int64]
    fused: NDArray[np.int64]
    settled: NDArray[np.int64]

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            pixels=self.pixels + other.pixels,
            unanimous=self.unanimous + other.unanimous,
            pairs=self.pairs + other.pairs,
            fused=self.fused + other.fused,
            settled=self.settled + other.settled,
        )


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
        If the shapes do not fit, or `fused` holds a value that is neither a class id nor 255.
    """
    check_form("label_maps", label_maps, ndim=3)
    check_form("fused", fused, ndim=2)
    if fused.shape != label_maps.shape[1:]:
        raise ValueError(
            f"label_maps and fused must have one size, got {label_maps.shape[1:]} and {fused.shape}"
        )
    teachers = len(label_maps)
    pairs = np.full((teachers, teachers), fused.size, np.int64)
    unanimous = np.ones(fused.shape, bool)
    for k in range(teachers):
        for j in range(k):
            same = label_maps[j] == label_maps[k]
            pairs[j, k] = pairs[k, j] = np.count_nonzero(same)
            if j == 0:
                unanimous &= same
    return Agreement(
        pixels=fused.size,
        unanimous=int(np.count_nonzero(unanimous)),
        pairs=pairs,
        fused=class_counts(fused, n_classes),
        settled=class_counts(np.where(unanimous, fused, IGNORE_INDEX).astype(np.uint8), n_classes),
    )


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
