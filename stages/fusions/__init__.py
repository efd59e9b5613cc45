"""The menu of fusion methods: a new one is a module here and a line below."""

from __future__ import annotations

from typing import Final

from ensdistill.stages.fusions.channel import CHANNEL, CHANNEL_ORACLE, CHANNEL_RELIABILITY
from ensdistill.stages.fusions.label_model import LABEL_MODEL
from ensdistill.stages.fusions.majority import MAJORITY
from ensdistill.stages.fusions.method import FusionMethod

__all__ = [
    "CHANNEL",
    "LABEL_MODEL",
    "MAJORITY",
    "METHODS",
    "FusionMethod",
    "is_yardstick",
    "method_called",
]

METHODS: Final[tuple[FusionMethod, ...]] = (
    LABEL_MODEL,
    CHANNEL,
    CHANNEL_RELIABILITY,
    MAJORITY,
    CHANNEL_ORACLE,
)


def is_yardstick(name: str) -> bool:
    """Whether a method of tables is chosen by ground truth, and so is never the best."""
    return any(method.is_yardstick and method.name == name for method in METHODS)


def method_called(name: str) -> FusionMethod:
    """Return the method of a name."""
    return next(method for method in METHODS if method.name == name)
