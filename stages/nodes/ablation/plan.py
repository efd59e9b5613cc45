"""`ablation`: what bad teachers cost, and which teachers together beat the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ConfigDict

from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, Work
from ensdistill.stages.contract import Count, Counts, Named, OfClasses, Record, Result
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.ablation.compositions import as_items
from ensdistill.stages.nodes.evaluation import plan as evaluation
from ensdistill.stages.nodes.fusion import plan as fusion
from ensdistill.stages.nodes.given import Given, called, numbered
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model import plan as label_model
from ensdistill.stages.nodes.stage import Stage
from ensdistill.stages.nodes.truth.plan import truth_id

_BYTES_PER_CONFUSION: Final = 7  # of two methods, most of them 0


class ByMethod(Result):
    """What stands beside a number of each method, under its name."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: Named


class Spoilt(ByMethod):
    """What methods score with so many bad teachers, and what that costs."""

    bad: Count
    added: str | None
    of: str | None = None
    miou: float | None
    loss: Named | None = None


class Composition(ByMethod):
    """What methods score with some of the teachers, and the best of these."""

    teachers: list[str]
    best: str
    best_miou: float | None


class Flexibility(ByMethod):
    """In which share of compositions a method is no worse than the best, and its mean margin."""

    compositions: list[Composition]
    margin: Named


class Ablated(Result):
    """What an ablation found out (see `run.run`)."""

    images: Count
    fitted_images: Count
    teachers: Named
    robustness: list[Spoilt]
    flexibility: Flexibility


class Confusions(Record):
    """A composition's confusion matrices, by method."""

    confmats: list[Counts]


STAGE: Final = Stage("ablation", 2, Ablated, Confusions)


@dataclass(frozen=True)
class Recipe(OfClasses):
    """What decides an ablation.

    `versions` are those of stages whose arithmetic it uses without reading what they publish, and
    `fit` is what label models are fitted to (see `schema.LabelModel`).
    """

    versions: Mapping[str, int]
    fit: str


def ablation_id(split: str) -> NodeId:
    """Return the node id of the ablation on a split."""
    return STAGE.id(split=split)


def node(given: Given, split: str) -> Node:
    """The ablation on a split that all teachers label."""
    fit = given.experiment.config.label_model.fit
    uses = numbered("split", [infer_id(t, split) for t in given.names])
    if fit == "train":
        uses |= numbered("train", map(infer_id, given.names))
    used = (label_model.STAGE, fusion.STAGE, evaluation.STAGE)

    def plan(upstream: Upstream) -> Work[Recipe, Local]:
        return Work(
            Recipe(given.classes, {stage.name: stage.version for stage in used}, fit),
            uses=uses | {"truth": truth_id(split)},
            items=as_items(given.names, train=fit == "train"),
            called=called(uses),
            local=given.local(split, upstream),
            item_bytes=lambda: _BYTES_PER_CONFUSION * len(given.classes) ** 2,
        )

    return STAGE.node(
        ablation_id(split),
        split,
        [*uses.values(), truth_id(split)],
        plan,
        Command("ablate", f"--split {split}"),
        unit="compositions",
    )
