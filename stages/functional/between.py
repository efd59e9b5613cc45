"""Whether what is estimated of teachers orders them as their IoU does, class by class.

Over the classes of one teacher an estimate may follow the IoU well and still choose badly: a policy
compares teachers. Arrays have a row a teacher, in the order in which ties are broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional.scores import rank_correlation

__all__ = ["Between", "between"]


@dataclass(frozen=True)
class Between:
    """How far an estimate tells which of the teachers is better.

    Attributes
    ----------
    rank
        Mean over classes of the rank correlation of estimate and IoU between the teachers, in
        [-1, 1]; NaN if no class can be ranked.
    ranked
        How many classes can be: three teachers have both, and not all of them one value.
    best
        At how many of these the teacher with the highest estimate is also the best by IoU.
    lost
        Mean over classes of what the IoU of the chosen teacher is below that of the best, in the
        unit of the IoU; NaN if no choice can be judged.
    judged
        How many classes that is over: those whose chosen teacher has an IoU.
    """

    rank: float
    ranked: int
    best: int
    lost: float
    judged: int


def between(
    estimate: NDArray[np.float64], iou: NDArray[np.float64], chosen: Sequence[int | None]
) -> Between:
    """Compare the order of teachers by an estimate with that by IoU.

    Parameters
    ----------
    estimate
        (T, C) float64, what is expected of each teacher at each class; NaN where nothing is.
    iou
        (T, C) float64, a fraction or in percent; NaN for a teacher that is not scored, and for a
        class without ground truth.
    chosen
        C rows of the teachers that a policy gives the classes to, None for nobody.

    Returns
    -------
    Between

    Raises
    ------
    ValueError
        If the shapes differ, or a row that is chosen is none of them.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.5], [0.8, 0.6], [0.7, 0.7]])
    >>> iou = np.array([[0.9, 0.5], [0.6, 0.4], [0.3, 0.2]])
    >>> between(sure, iou, [0, 2])
    Between(rank=0.0, ranked=2, best=1, lost=0.15, judged=2)
    """
    if estimate.ndim != 2 or estimate.shape != iou.shape or len(chosen) != estimate.shape[1]:
        raise ValueError(
            f"expected estimate and iou of one size (T, C) and C choices, got {estimate.shape}, "
            f"{iou.shape} and {len(chosen)}"
        )
    if outside := [t for t in chosen if t is not None and not 0 <= t < len(iou)]:
        raise ValueError(f"chosen must be rows in 0..{len(iou) - 1} or None, got {outside}")
    ranks: list[float] = []
    lost: list[float] = []
    best = 0
    for t, sure, scores in zip(chosen, estimate.T, iou.T, strict=True):
        rank = rank_correlation(sure, scores)
        if not np.isnan(rank):
            ranks.append(rank)
            # one that is not scored cannot be told to be the best
            surest = np.nanargmax(np.where(np.isnan(scores), np.nan, sure))
            best += int(scores[surest] == np.nanmax(scores))
        if t is not None and not np.isnan(scores[t]):
            lost.append(float(np.nanmax(scores) - scores[t]))
    return Between(_mean(ranks), len(ranks), best, _mean(lost), len(lost))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
