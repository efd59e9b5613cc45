"""`policy`: which teacher each class is taken from (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from pydantic import ValidationInfo, model_validator

from ensdistill.pipeline.figures import some
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.node import Node, NodeId, Upstream, Work
from ensdistill.stages.contract import ByClass, Recipe, Result
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.fusions import FusionMethod
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.certainty.plan import Certainty, certainty_id
from ensdistill.stages.nodes.given import ALL_FUSIONS, EVALUATE, Given, called
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model.plan import label_model_id
from ensdistill.stages.nodes.stage import Stage
from ensdistill.stages.nodes.truth.plan import truth_id


class Policy(Result):
    """The policy pi: class to teacher, None for a class that none labels.

    `certainty` is what each teacher was chosen by, `fallback` are classes of which no probe is sure
    on enough pixels.
    """

    strategy: str
    teacher: ByClass[str | None]
    certainty: ByClass[float | None]
    fallback: list[str]

    @model_validator(mode="after")
    def _of_its_own(self, info: ValidationInfo) -> Self:
        """Refuse classes and teachers that it was not made from."""
        if strange := [c for c in self.fallback if c not in self.teacher]:
            raise ValueError(f"fallback: {some(strange)} is no class")
        known = None if info.context is None else _teachers(info.context)
        if known and (strange := [t for t in self.teacher.values() if t and t not in known]):
            raise ValueError(f"teacher: {some(strange)} is none that it was made from")
        return self


def _teachers(manifest: Manifest) -> set[str]:
    """Return the teachers that a policy was chosen from, in the ways that a recipe names them."""
    known = {*manifest.called.values()}
    for key in ("evidence", "reliability", "assign"):
        if isinstance(found := manifest.recipe.get(key), dict):
            names = found.values() if key == "assign" else found
            known |= {name for name in names if isinstance(name, str)}
    return known


STAGE: Final = Stage("policy", 1, Policy)


@dataclass(frozen=True)
class Strategy(Recipe):
    """What decides a policy: what it is chosen by."""

    strategy: str


@dataclass(frozen=True)
class Assigned(Strategy):
    """A policy that the experiment file spells out: class to teacher."""

    assign: Mapping[str, str | None]


@dataclass(frozen=True)
class ByScore(Strategy):
    """A policy by scores of each class: here of the ground truth of a split, which is an input."""

    classes: tuple[str, ...]


@dataclass(frozen=True)
class ByReliability(ByScore):
    """A policy by the IoU that the label model expects: teacher to that of each class."""

    reliability: Mapping[str, list[float | None]]


@dataclass(frozen=True)
class ByCertainty(ByScore):
    """A policy by teachers' certainties, which count on a share `min_support` of the pixels."""

    min_support: float
    evidence: Mapping[str, Certainty]


def policy_id(by: str | None = None, split: str = TRAIN) -> NodeId:
    """Return the node id of the experiment's policy, or of that by another strategy."""
    return STAGE.id(by, split)


def policy_of(method: FusionMethod, split: str) -> NodeId | None:
    """Return the node id of the policy that a method fuses a split by."""
    if method.policy is None:
        return None
    by = None if method.policy == "own" else method.policy
    return policy_id(by, split if method.is_yardstick else TRAIN)


def node(given: Given, by: str | None = None) -> Node:
    """The policy of the experiment; `by` names another strategy."""
    settings, classes = given.experiment.config.policy, given.classes
    strategy = by or settings.strategy
    needs: list[NodeId] = []
    if strategy == "reliability":
        needs = [label_model_id()]
    elif strategy == "certainty":
        needs = [certainty_id(t) for t in given.names]

    def plan(upstream: Upstream) -> Work[Strategy, Local]:
        recipe: Strategy
        if strategy == "reliability":
            found = upstream.content(label_model_id())["reliability"]
            by_teacher = dict(zip(given.names, found, strict=True))
            recipe = ByReliability(strategy, classes, by_teacher)
        elif strategy == "manual":
            assign = settings.assign or {}
            recipe = Assigned(strategy, {c: assign.get(c) for c in classes})
        else:
            evidence = {
                t: Certainty.model_validate(upstream.content(certainty_id(t))) for t in given.names
            }
            recipe = ByCertainty(strategy, classes, settings.min_support, evidence)
        return Work(recipe, local=given.local(TRAIN, upstream))

    command = given.before_policy if by is None else ALL_FUSIONS
    return STAGE.node(policy_id(by), strategy, needs, plan, command)


def oracle(given: Given, split: str) -> Node:
    """Each class from the teacher that is best at it on the split's own ground truth."""
    maps = {f"teacher:{t}": infer_id(t, split) for t in given.covering(split)}
    uses = {"truth": truth_id(split)} | maps

    def plan(upstream: Upstream) -> Work[Strategy, Local]:
        return Work(
            ByScore("oracle", given.classes),
            uses=uses,
            called=called(maps),
            local=given.local(split, upstream),
        )

    return STAGE.node(
        policy_id("oracle", split),
        f"oracle-{split}",
        list(uses.values()),
        plan,
        EVALUATE,
        run="oracle",
    )
