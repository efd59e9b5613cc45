"""Confusion matrices and the scores read off them.

A confusion matrix here is `confmat[target, prediction]`, int64, of shape (C, C + 1): the last
column counts the labelled pixels that were predicted as `IGNORE_INDEX`. Matrices of several images
add up exactly, in any order.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX
from ensdistill.stages.functional._checks import check_counted, check_form, check_n_classes
from ensdistill.stages.functional.numbers import share, shares

__all__ = [
    "class_counts",
    "confusion",
    "cosine_similarity",
    "coverage",
    "iou",
    "mean_iou",
    "pixel_accuracy",
    "present",
    "rank_correlation",
]


def confusion(
    target: NDArray[np.uint8], predictions: NDArray[np.uint8], n_classes: int
) -> NDArray[np.int64]:
    """Count how often each target class was predicted as each class, or not at all.

    Parameters
    ----------
    target
        (H, W) uint8 of class ids 0..C-1 or 255. Pixels with target 255 are left out.
    predictions
        (P, H, W) uint8 of class ids 0..C-1 or 255, label maps that are scored on the one target.
    n_classes
        C, 1 to 254.

    Returns
    -------
    confmats
        (P, C, C + 1) int64, `confmat[target, prediction]` for each of them; the last column counts
        prediction 255.

    Raises
    ------
    TypeError
        If a label map is not uint8.
    ValueError
        If the shapes differ, or a map holds a value that is neither a class id nor 255.

    Examples
    --------
    >>> target = np.array([[0, 0, 1, 255]], np.uint8)
    >>> predictions = np.array([[[0, 1, 255, 1]]], np.uint8)
    >>> confusion(target, predictions, 2)
    array([[[1, 1, 0],
            [0, 0, 1]]])
    """
    check_n_classes(n_classes)
    check_form("target", target, ndim=2)
    check_form("predictions", predictions, ndim=3)
    if target.shape != predictions.shape[1:]:
        raise ValueError(
            f"target and predictions must have one size, got {target.shape} and "
            f"{predictions.shape[1:]}"
        )

    from ensdistill.data.loops import as_words
    from ensdistill.stages.functional._counting import count_pairs

    columns = [*range(n_classes), IGNORE_INDEX]
    wanted = as_words(target)
    confmats = np.empty((len(predictions), n_classes, n_classes + 1), np.int64)
    for k, prediction in enumerate(predictions):
        every_value = np.zeros((256, 256), np.int64)
        count_pairs(*wanted, *as_words(prediction), every_value.reshape(-1))
        check_counted("target", every_value.sum(axis=1), n_classes)
        check_counted("predictions", every_value.sum(axis=0), n_classes)
        confmats[k] = every_value[:n_classes, columns]
    return confmats


def class_counts(labels: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    """Return (C,) int64, the pixels of each class in a label map.

    Labels are (H, W) uint8, and refused otherwise, as by `confusion`.
    """
    check_n_classes(n_classes)
    check_form("labels", labels, ndim=2)

    from ensdistill.data.loops import as_words, count_values

    counts = np.zeros(256, np.int64)
    count_values(*as_words(labels), counts)
    check_counted("labels", counts, n_classes)
    return counts[:n_classes]


def iou(
    confmat: NDArray[np.int64], *, ignored: Literal["wrong", "left_out"] = "wrong"
) -> NDArray[np.float64]:
    """Intersection over union of each class, TP / (TP + FP + FN).

    Parameters
    ----------
    confmat
        (C, C + 1) integers, from `confusion`.
    ignored
        Whether a labelled pixel that was predicted as 255 counts as a miss (`wrong`) or not at all
        (`left_out`: the score of the covered pixels alone).

    Returns
    -------
    iou
        (C,) float64, a fraction in [0, 1]; NaN for a class absent from target and prediction.

    Raises
    ------
    ValueError
        If `confmat` is not (C, C + 1), or `ignored` is neither of the two.
    TypeError
        If `confmat` does not hold integers.
    """
    n_classes = _check_confmat(confmat)
    if ignored not in ("wrong", "left_out"):
        raise ValueError(f"ignored must be 'wrong' or 'left_out', got {ignored!r}")
    predicted = confmat[:, :n_classes]
    hits = np.diagonal(predicted)
    in_target = (confmat if ignored == "wrong" else predicted).sum(axis=1)
    union = in_target + predicted.sum(axis=0) - hits
    return shares(hits, union)


def mean_iou(iou_values: NDArray[np.float64], classes: Sequence[int] | None = None) -> float:
    """Mean IoU over all classes, or over a subset such as the 13 of mIoU*.

    Parameters
    ----------
    iou_values
        (C,) float64 fractions; NaN entries are left out of the mean.
    classes
        Ids of the subset; all classes by default.

    Returns
    -------
    miou
        A fraction in [0, 1]; NaN if no class of the subset has a score.

    Raises
    ------
    ValueError
        If `iou_values` has not one dimension, or `classes` names an id outside 0..C-1 or one twice.
    """
    if iou_values.ndim != 1:
        raise ValueError(f"iou_values must be (C,), got shape {iou_values.shape}")
    if classes is not None:
        outside = [c for c in classes if not 0 <= c < len(iou_values)]
        if outside or len(set(classes)) != len(classes):
            raise ValueError(
                f"classes must be different ids in 0..{len(iou_values) - 1}, got {list(classes)}"
            )
        iou_values = iou_values[list(classes)]
    scored = iou_values[~np.isnan(iou_values)]
    return float(scored.mean()) if scored.size else float("nan")


def present(confmat: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(C,) bool, which classes occur in the ground truth: the same for all that it judges.

    `iou` also scores a class that only the prediction has (0), so that means over all scored
    classes may be over different ones for different predictions; over these they are not.

    Examples
    --------
    >>> confmat = np.array([[2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]])
    >>> iou(confmat).round(2)
    array([0.67, 0.  , 0.  ])
    >>> present(confmat)
    array([ True, False,  True])
    """
    _check_confmat(confmat)
    occurs: NDArray[np.bool_] = confmat.sum(axis=1) > 0
    return occurs


def coverage(confmat: NDArray[np.int64]) -> float:
    """Fraction in [0, 1] of the labelled pixels that have a prediction; NaN without such pixels."""
    n_classes = _check_confmat(confmat)
    return share(confmat[:, :n_classes].sum(), confmat.sum())


def pixel_accuracy(confmat: NDArray[np.int64]) -> float:
    """Fraction in [0, 1] of the labelled pixels predicted right; 255 is wrong; NaN without any."""
    n_classes = _check_confmat(confmat)
    return share(np.trace(confmat[:, :n_classes]), confmat.sum())


def cosine_similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine of the angle between two vectors over classes (Chao, Cheng, Lee 2021, Fig. 6).

    Parameters
    ----------
    a, b
        (C,) float64, in units of their own; a class is left out unless both are finite.

    Returns
    -------
    cosine
        In [-1, 1]; NaN if fewer than two classes are left, or a vector is zero there.

    Raises
    ------
    ValueError
        If they are not of one size (C,).
    """
    a, b = _both_finite(a, b)
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / length, -1, 1)) if len(a) >= 2 and length else float("nan")


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's correlation of the ranks of two vectors over classes; equals share a rank.

    Of vectors as in `cosine_similarity`, in [-1, 1]; NaN if fewer than three classes are left, or
    all have one value.
    """
    a, b = _both_finite(a, b)
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value; equals share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _both_finite(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the entries where both vectors are finite."""
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two vectors of one size (C,), got {a.shape} and {b.shape}")
    finite = np.isfinite(a) & np.isfinite(b)
    return a[finite], b[finite]


def _check_confmat(confmat: NDArray[np.int64]) -> int:
    if confmat.ndim != 2 or confmat.shape[1] != confmat.shape[0] + 1:
        raise ValueError(f"confmat must be (C, C + 1), got shape {confmat.shape}")
    if not np.issubdtype(confmat.dtype, np.integer):
        raise TypeError(f"confmat must hold integers, got {confmat.dtype}")
    return int(confmat.shape[0])
