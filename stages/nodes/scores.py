"""What the plans of scores that are kept beside label maps share."""

from __future__ import annotations

from typing import Final

from ensdistill.stages.contract import Count, Record, Result, Size

BYTES_PER_PIXEL: Final = 0.3


class Scores(Result):
    """The mean over images of what is stored, a fraction."""

    images: Count
    mean: float


class SoftScores(Scores):
    """The same, and the teacher's own classes in the order of the maps."""

    classes: list[str]


class ScoreMap(Record):
    """A map of scores: its height and width, and its mean."""

    size: Size
    mean: float
