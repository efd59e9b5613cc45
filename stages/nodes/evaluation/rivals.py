"""What is shown beside every fusion: what majority or the best teacher would have given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensdistill.stages.fusions import MAJORITY

Scores = Mapping[str, float | None]


def rivals(method: str, score: str, fusions: Scores, teachers: Scores) -> dict[str, Any] | None:
    """Return how far a fusion is above majority and the best teacher.

    Parameters
    ----------
    method : str
        The fusion.
    score : str
        The key of the score that they are compared by, ``miou`` or ``miou_present``.
    fusions, teachers : mapping
        Name to that score in percent, all on one split; the first of equal teachers is the best.

    Returns
    -------
    dict or None
        ``method``, ``score`` and its ``value``; ``majority`` and ``teacher`` (with its ``name``),
        each with its ``value`` and the ``difference`` to it in points. ``majority`` is None where
        it is the method itself; all is where the method or every teacher has no score.
    """
    own = fusions.get(method)
    alone = {t: value for t, value in teachers.items() if value is not None}
    if own is None or not alone:
        return None
    majority = None if method == MAJORITY.name else fusions.get(MAJORITY.name)
    best = max(alone, key=lambda t: alone[t])
    return {
        "method": method,
        "score": score,
        "value": own,
        MAJORITY.name: None if majority is None else _compared(own, majority),
        "teacher": {"name": best, **_compared(own, alone[best])},
    }


def _compared(own: float, value: float) -> dict[str, float]:
    return {"value": value, "difference": own - value}
