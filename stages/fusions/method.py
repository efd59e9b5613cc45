"""What a fusion method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ensdistill.stages.contract import Recipe

if TYPE_CHECKING:
    from ensdistill.data.decoding import UInt8
    from ensdistill.stages.functional.fusion import FusionCounts
    from ensdistill.stages.functional.labelmodel import LabelModel

Fuser: TypeAlias = "Callable[[UInt8], tuple[UInt8, FusionCounts | None]]"
"""From the (T, H, W) label maps of an image to the (H, W) fused one, and counts if it has any."""


@dataclass(frozen=True)
class Fused(Recipe):
    """What decides how label maps are fused: the name of the method, and the classes."""

    method: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class FusionMethod:
    """A way to make one label map of many.

    Attributes
    ----------
    name : str
        In experiment files and tables.
    told : str
        What a student's card says of it.
    fuser : callable
        Returns what fuses by a recipe and, where it needs one, a label model. What is returned is
        sent to other processes; what is heavy is imported in here.
    needs_model : bool
        Whether it needs the label model of all teachers.
    policy : str or None
        Which policy it takes each class by: the experiment's own, that of another strategy, or
        none. By a policy only the teachers that it uses are read.
    baseline : bool
        Whether it is scored beside every other.
    """

    name: str
    told: str
    fuser: Callable[[Fused, LabelModel | None], Fuser]
    needs_model: bool = False
    policy: Literal["own", "reliability", "oracle"] | None = None
    baseline: bool = False

    @property
    def is_yardstick(self) -> bool:
        """Whether it is chosen by ground truth: never the best, and for no experiment to ask."""
        return self.policy == "oracle"

    @property
    def is_own(self) -> bool:
        """Whether an experiment may ask for it."""
        return self.policy in (None, "own")
