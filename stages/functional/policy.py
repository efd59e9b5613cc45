"""Which teacher decides which class.

The policy of Chao, Cheng, Lee (CVPRW 2021) gives each class to the teacher whose probe is most
certain of it. The summed certainty is a sum over classes of terms that share nothing, so choosing
class by class maximises it. Teachers are named; neither their order nor the order of a mapping
means anything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Choice", "Evidence", "best_policy", "certainty_policy", "supported"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one teacher and its probe, per class.

    Attributes
    ----------
    certainty
        (C,) float64, the probe's mean certainty, a fraction in [0, 1]; NaN where `support` is 0.
    support
        (C,) int64, the pixels that the probe predicts as the class.
    labelled
        (C,) int64, the pixels that the teacher itself labels as the class.
    has_class
        (C,) bool, whether the teacher's class map reaches the class at all.
    """

    certainty: NDArray[np.float64]
    support: NDArray[np.int64]
    labelled: NDArray[np.int64]
    has_class: NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """The teacher that decides one class.

    Attributes
    ----------
    teacher
        Its name, or None if the class is unassigned.
    certainty
        Its probe's mean certainty of the class, a fraction in [0, 1]; None if the class is
        unassigned, a fallback (no probe is then trusted with the class), or was not chosen by
        certainty.
    fallback
        Whether the class was given by the fallback rule of `certainty_policy`.
    """

    teacher: str | None
    certainty: float | None
    fallback: bool


UNASSIGNED = Choice(teacher=None, certainty=None, fallback=False)


def certainty_policy(
    evidence: Mapping[str, Evidence], n_classes: int, min_support: float
) -> tuple[Choice, ...]:
    """Give each class to the teacher whose probe is most certain of it.

    For each class c, the first of these rules that finds a teacher decides:

    1. the largest certainty of c, among the teachers that label c themselves and whose probes
       support it: at least one pixel, and at least `min_support` of all the probe's pixels;
    2. the fallback: among the teachers that label c, the largest mean certainty over the classes
       that their probes support; a teacher whose probe supports no class comes last;
    3. nobody: no teacher labels c, so none could claim a pixel for it. What probes predict does
       not count here; a probe may predict a class that its teacher never labels, and a policy that
       believed it would lose the class.

    Ties go to the name that sorts first. NaN never wins.

    Parameters
    ----------
    evidence
        By the teachers' names.
    n_classes
        C.
    min_support
        A share of the probe's pixels, a fraction in [0, 1]; 0 asks for a single pixel.

    Returns
    -------
    tuple of Choice
        One for each class id.

    Raises
    ------
    ValueError
        If an array is not (C,), a teacher labels a class that it does not have, or `min_support`
        is not a fraction.
    """
    if not 0 <= min_support <= 1:
        raise ValueError(f"min_support must be a fraction in [0, 1], got {min_support}")
    for name, known in evidence.items():
        _check_evidence(name, known, n_classes)
    enough = {name: supported(known, min_support) for name, known in evidence.items()}
    overall = {name: _mean(known.certainty[enough[name]]) for name, known in evidence.items()}

    def choose(c: int) -> Choice:
        labelling = [name for name, known in evidence.items() if known.labelled[c] > 0]
        certain = {
            name: float(evidence[name].certainty[c]) for name in labelling if enough[name][c]
        }
        if certain:
            teacher = _best(certain)
            return Choice(teacher, certain[teacher], fallback=False)
        if labelling:
            return Choice(_best({name: overall[name] for name in labelling}), None, fallback=True)
        return UNASSIGNED

    return tuple(choose(c) for c in range(n_classes))


def best_policy(scores: Mapping[str, NDArray[np.float64]], n_classes: int) -> tuple[Choice, ...]:
    """Give each class to the teacher with the best score for it, such as an IoU (the oracle).

    Parameters
    ----------
    scores
        By the teachers' names, (C,) float64; NaN never wins.
    n_classes
        C.

    Returns
    -------
    tuple of Choice
        One for each class id, without a certainty; ties go to the name that sorts first, and a
        class that nobody has a score for is unassigned.

    Raises
    ------
    ValueError
        If an array is not (C,).
    """
    for name, values in scores.items():
        _check_shape(name, "scores", values.shape, n_classes)

    def choose(c: int) -> Choice:
        known = {name: float(v[c]) for name, v in scores.items() if not math.isnan(v[c])}
        return Choice(_best(known), None, fallback=False) if known else UNASSIGNED

    return tuple(choose(c) for c in range(n_classes))


def supported(known: Evidence, min_support: float) -> NDArray[np.bool_]:
    """Return the classes that a probe supports, (C,) bool: see `certainty_policy`, rule 1."""
    enough = known.support >= max(1, min_support * int(known.support.sum()))
    return np.asarray(enough & known.has_class & ~np.isnan(known.certainty))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else -math.inf


def _best(values: Mapping[str, float]) -> str:
    return min(values, key=lambda name: (-values[name], name))


def _check_evidence(name: str, known: Evidence, n_classes: int) -> None:
    for field in ("certainty", "support", "labelled", "has_class"):
        _check_shape(name, field, getattr(known, field).shape, n_classes)
    if np.any((known.labelled > 0) & ~known.has_class):
        raise ValueError(f"teacher {name!r} labels a class that it does not have")


def _check_shape(name: str, field: str, shape: tuple[int, ...], n_classes: int) -> None:
    if shape != (n_classes,):
        raise ValueError(f"{field} of teacher {name!r} must be ({n_classes},), got shape {shape}")
