"""The label model: how far each teacher is to be trusted with each class, from labels alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from ensdistill.stages.fusions.method import Fused, Fuser, FusionMethod

if TYPE_CHECKING:
    from ensdistill.stages.functional.labelmodel import LabelModel


def _fuser(recipe: Fused, model: LabelModel | None) -> Fuser:
    from ensdistill.stages.functional import labelmodel

    assert model is not None
    return partial(labelmodel.fuse, model=model)


LABEL_MODEL: Final = FusionMethod(
    "label-model",
    "label model of all teachers' labels (Dawid and Skene)",
    _fuser,
    needs_model=True,
)
