"""Which teachers look as if they were not as declared. Numbers in, sentences out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Final

CHANCE: Final = 0.1
"""Kappa below which two teachers agree no better than chance.

Of 13 real networks on streets that none was trained on, the two that agree least have 0.52; the
same labels with the classes in another order have -0.15 to 0.01.
"""

FEW: Final = 4
"""Fewer images tell only of a kappa below 0.

In single photographs of streets 7 % of the pairs of seven real networks are below `CHANCE`, and 2 %
below 0. In four together none are.
"""

COPIES: Final = 0.995
"""The share of the pixels that either labels on which two teachers agree that are one."""

LITTLE: Final = 0.1
"""What a teacher labels at least, as a share of what the others do.

Pseudo-labels above a high threshold leave out half of the pixels, seldom nine tenths of them.
"""


def suspicions(
    coverage: Mapping[str, float], kappas: Mapping[tuple[str, str], float | None], images: int
) -> dict[str, list[str]]:
    """Return what is suspicious about teachers, and the likely causes.

    Parameters
    ----------
    coverage : mapping
        Teacher to the share of the pixels that it labels, a fraction.
    kappas : mapping
        Two teachers, in either order, to how far they agree beyond chance (see
        `functional.agreement.kappa`): NaN where that is undefined, None where no pixel is labelled
        by both.
    images : int
        How many images that is of (see `FEW`).

    Returns
    -------
    dict
        Teacher to sentences of which it is the subject: they begin with a verb. What is of two
        alike stands at the one whose name sorts first, and names the other. Teachers of which
        nothing is to be said are left out.
    """
    known: dict[str, dict[str, float]] = {teacher: {} for teacher in coverage}
    apart: dict[str, list[str]] = {teacher: [] for teacher in coverage}
    for (one, other), value in kappas.items():
        if value is None:  # said of the one that labels less
            less, more = sorted((one, other), key=lambda teacher: coverage[teacher])
            if coverage[less]:
                apart[less].append(more)
        elif not math.isnan(value):
            known[one][other] = known[other][one] = value
    chance = CHANCE if images >= FEW else 0.0
    strange = {t for t, values in known.items() if values and max(values.values()) < chance}
    found: dict[str, list[str]] = {teacher: [] for teacher in coverage}
    for teacher, said in found.items():
        if teacher in strange:
            said.extend(_of_chance(teacher, known, strange))
        others = [share for of, share in coverage.items() if of != teacher]
        if images >= FEW and others and coverage[teacher] < LITTLE * median(others):
            said.append(_of_coverage(coverage[teacher], others))
        if apart[teacher]:
            said.append(f"labels no pixel that {' or '.join(apart[teacher])} labels")
    return {teacher: said for teacher, said in found.items() if said}


def of_copies(other: str, share: float) -> str:
    """Return what is said of a teacher that says what another one does."""
    return (
        f"says the same as {other} on {share:.2%} of the pixels that either labels: two votes of "
        "one opinion"
    )


def of_one_class(name: str) -> str:
    """Return what is said of a teacher that calls every pixel `name`, where others do not."""
    return (
        f"calls every pixel {name}: are its weights, its preprocessing, its ids and its classes as "
        "declared?"
    )


def of_turned(turned: Mapping[str, str], others: str = "the others", whose: str = "its") -> str:
    """Return what is said of classes that somebody calls by each other's names.

    `turned` is class to what `others` call it (see `functional.agreement.turned`); `whose` classes
    may be in another order than declared.
    """
    verb = "call" if others.startswith("the ") else "calls"
    told = ", ".join(f"{own} what {others} {verb} {theirs}" for own, theirs in turned.items())
    return f"calls {told}: is the order of {whose} classes as declared?"


def of_truth(split: str, beyond_chance: Sequence[float], turned: Mapping[str, str]) -> list[str]:
    """Return what is suspicious about the ground truth of a split, which teachers speak against.

    How far each agrees with it beyond chance, and what they call its classes, if by other names, is
    from `functional.agreement`.
    """
    known = [value for value in beyond_chance if not math.isnan(value)]
    if known and max(known) < CHANCE:
        return [
            f"the ground truth of {split} agrees with no teacher better than by chance (kappa "
            f"{max(known):.2f} at most): are its `ids:` and the order of its classes as declared?"
        ]
    return [f"the ground truth of {split} {of_turned(turned, 'the teachers')}"] if turned else []


def _of_chance(
    teacher: str, known: Mapping[str, Mapping[str, float]], strange: Collection[str]
) -> list[str]:
    """Return what is said of a teacher that agrees with others no better than chance."""
    values = known[teacher]
    kappa = f"{max(values.values()):.2f}"
    other = min(values)
    if len(values) > 1 or other not in strange:
        return [
            f"agrees with the others no better than chance (kappa {kappa} at most): are its ids, "
            "its channels, its preprocessing, the output taken and the order of its classes as "
            "declared?"
        ]
    if len(known[other]) > 1 or other < teacher:
        return []  # said of the other one
    return [
        f"agrees with {other} no better than chance (kappa {kappa}), and from two alone it cannot "
        "be told which is at fault: are the ids, channels and preprocessing of both, the output "
        "taken and the order of their classes as declared?"
    ]


def _of_coverage(own: float, others: Sequence[float]) -> str:
    """Return what is said of a teacher that labels little."""
    share = f"the other {others[0]:.1%}" if len(others) == 1 else f"the others {median(others):.1%}"
    return (
        f"labels {own:.1%} of the pixels, {share}: are its ids, its classes and where they go as "
        "declared?"
    )
