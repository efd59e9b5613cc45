"""`label-model`: how far each teacher is to be trusted with each class, from labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from pydantic import ValidationInfo, model_validator

from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.node import Node, NodeId, Upstream, Work
from ensdistill.stages.contract import Count, Maybes, Numbers, OfClasses, Result
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.given import ALL_FUSIONS, EVALUATE, Given, called, numbered
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.stage import Stage


class Modelled(Result):
    """The label model (see `functional.labelmodel.LabelModel`), and what it was fitted to.

    `opinions` is how many different ones meet at a pixel; older ones did not count them.
    """

    images: Count
    opinions: Count | None = None
    weights: list[float]
    prior: Numbers
    confusions: list[Numbers]
    reliability: Maybes
    rounds: Count
    converged: bool
    fallback: str | None

    @model_validator(mode="after")
    def _of_its_own(self, info: ValidationInfo) -> Self:
        """Refuse what is of more or fewer teachers and classes than it was made from."""
        if info.context is not None:
            manifest: Manifest = info.context
            found = manifest.recipe.get("classes")
            teachers, classes = len(manifest.inputs), len(found) if isinstance(found, list) else 0
            by_teacher = (self.weights, self.confusions, self.reliability)
            by_class: list[Sequence[object]] = [*self.prior, *self.reliability, *self.confusions]
            by_class += (row for of in self.confusions for row in of)
            sizes = {len(of) for of in by_teacher}, {len(of) for of in by_class}
            if sizes != ({teachers}, {classes}):
                raise ValueError(f"expected a model of {teachers} teachers and {classes} classes")
        return self


STAGE: Final = Stage("label-model", 2, Modelled)


def label_model_id(split: str = TRAIN) -> NodeId:
    """Return the node id of the label model that is fitted to a split."""
    return STAGE.id(split=split)


def model_id(experiment: Experiment, split: str) -> NodeId:
    """Return the node of the label model that a split is fused by."""
    return label_model_id(split if experiment.config.label_model.fit == "fused" else TRAIN)


def node(given: Given, names: list[str], split: str = TRAIN) -> Node:
    """The label model of some teachers' labels."""
    maps = numbered("teacher", [infer_id(t, split) for t in names])
    of_split = EVALUATE if given.method.needs_model else ALL_FUSIONS

    def plan(upstream: Upstream) -> Work[OfClasses, Local]:
        return Work(
            OfClasses(given.classes),
            uses=maps,
            called=called(maps),
            local=given.local(split, upstream),
        )

    return STAGE.node(
        label_model_id(split),
        "labels" if split == TRAIN else f"labels-{split}",
        list(maps.values()),
        plan,
        given.before_model if split == TRAIN else of_split,
    )


def doubt_of(teachers: int, opinions: int | None) -> str | None:
    """Return why a label model cannot tell which of its teachers errs; None where it can.

    Where two contradict each other, only a third says which of them is to be believed. `opinions`
    is how many different ones meet at a pixel; None where that was not counted.
    """
    if teachers == 1:
        return "one teacher alone cannot tell where it errs: its IoU is not estimated"
    if teachers == 2:
        return (
            "two teachers cannot tell which of them errs where they differ, a third one could: "
            "their IoU is not estimated"
        )
    if opinions is not None and opinions < 3:
        count = "never contradict each other" if opinions == 1 else "hold no more than two opinions"
        return (
            f"the {teachers} teachers {count} where they label the same pixels, so that their "
            "labels cannot tell which of them errs: their IoU is not estimated"
        )
    return None
