"""Bad teachers made on purpose, to see what a fusion makes of them."""

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX
from ensdistill.stages.functional._checks import check_form, check_highest, check_n_classes

__all__ = ["relabel_segments"]


def relabel_segments(
    labels: NDArray[np.uint8], share: float, n_classes: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Give a share of the segments of a label map another class each, as a bad teacher does.

    A segment is all pixels of a class that hang together by their sides. So a bad teacher's errors
    look like labels and not like noise (Chao, Cheng, Lee, CVPR Workshops 2021, Table 2).

    Parameters
    ----------
    labels
        (H, W) uint8 of class ids 0..C-1 or 255. 255 is no segment and stays.
    share
        The fraction in [0, 1] of the segments, of whatever size, that is relabelled; their number
        is rounded.
    n_classes
        C, 1 to 254.
    random
        Draws the segments and, evenly among the other classes, what they become.

    Returns
    -------
    spoilt
        (H, W) uint8.

    Raises
    ------
    TypeError
        If `labels` is not uint8.
    ValueError
        If it is not (H, W), a label is neither a class id nor 255, `share` is outside [0, 1], or
        there is no other class.
    """
    check_n_classes(n_classes)
    check_form("labels", labels, ndim=2)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    check_highest("labels", int(labels.max(initial=0, where=labels != IGNORE_INDEX)), n_classes)
    segments, classes = _segments(labels)
    chosen = random.choice(len(classes), round(share * len(classes)), replace=False)
    if len(chosen) and n_classes == 1:
        raise ValueError("a segment can be relabelled only where there are two classes")
    classes[chosen] += random.integers(1, max(n_classes, 2), len(chosen))
    # segment 0 is what has no label
    return np.append(IGNORE_INDEX, classes % n_classes).astype(np.uint8)[segments]


def _segments(labels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each pixel's segment, from 1, 0 without a label; and their classes."""
    from ensdistill.data.loops import flat
    from ensdistill.stages.functional._counting import find_segments

    pixels = flat(labels)
    first = np.empty(pixels.shape, np.int64)
    find_segments(pixels, labels.shape[1], first)
    begins = np.flatnonzero((first == np.arange(len(first))) & (pixels != IGNORE_INDEX))
    begins = begins[np.argsort(pixels[begins], kind="stable")]  # class by class
    numbers = np.zeros(pixels.shape, np.int64)
    numbers[begins] = np.arange(1, len(begins) + 1)
    return numbers[first].reshape(labels.shape), pixels[begins].astype(np.int64)
