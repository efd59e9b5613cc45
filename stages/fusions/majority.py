"""Majority voting: each pixel has the label of most teachers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from ensdistill.stages.fusions.method import Fused, Fuser, FusionMethod

if TYPE_CHECKING:
    from ensdistill.data.decoding import UInt8
    from ensdistill.stages.functional.labelmodel import LabelModel


def _fuser(recipe: Fused, model: LabelModel | None) -> Fuser:
    return partial(_vote, n_classes=len(recipe.classes))


def _vote(label_maps: UInt8, n_classes: int) -> tuple[UInt8, None]:
    from ensdistill.stages.functional.fusion import majority

    return majority(label_maps, n_classes), None


MAJORITY: Final = FusionMethod(
    "majority", "majority of the teachers' labels", _fuser, baseline=True
)
