"""`fusion`: one label map from many, materialised (paper, section 3.3).

Only the label maps of teachers that a policy uses are read, by fingerprint and not by name: a new
teacher that wins no class leaves the fusion fresh.
"""

from __future__ import annotations

from typing import Final

from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, Work
from ensdistill.stages.contract import ByClass, Count, Labelled, LabelMap, Named
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.fusions.channel import ByOwner
from ensdistill.stages.fusions.method import Fused, FusionMethod
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.given import Given, called, numbered
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model.plan import model_id
from ensdistill.stages.nodes.policy.plan import Policy, policy_of
from ensdistill.stages.nodes.stage import Stage


class FusedMaps(Labelled):
    """Of fused label maps, as fractions: `coverage` is the share of the pixels that have a label.

    The others (see `run.shares`) are not there where the method does not count them.
    """

    coverage: float
    conflict: float | None = None
    hole: float | None = None
    ignored: float | None = None
    classes: ByClass[Named] | None = None


class FusedMap(LabelMap):
    """A fused label map, and what its method counted."""

    counts: dict[str, Count | list[Count]] | None = None


STAGE: Final = Stage("fusion", 1, FusedMaps, FusedMap)


def fusion_id(method: str | None = None, split: str = TRAIN) -> NodeId:
    """Return the node id of the fused labels, or of those of a split by a method."""
    return STAGE.id(None if split == TRAIN else method, split)


def node(
    given: Given, method: FusionMethod, command: Command, names: list[str], split: str = TRAIN
) -> Node:
    """One label map from many, by a method."""
    maps = [infer_id(t, split) for t in names]
    policy = policy_of(method, split)
    model = model_id(given.experiment, split) if method.needs_model else None

    def plan(upstream: Upstream) -> Work[Fused, Local]:
        recipe = Fused(method.name, given.classes)
        # by name, for ties and for the model's teachers: the order is part of it
        uses = numbered("teacher", maps)
        if policy is not None:
            chosen = Policy.model_validate(upstream.content(policy))
            recipe, uses = _by_owner(given, method, chosen, maps, names, upstream)
        return Work(
            recipe,
            uses=uses if model is None else uses | {"model": model},
            items=given.items(split, upstream),
            called=called(uses),
            local=given.local(split, upstream),
            item_bytes=given.map_bytes(split),
        )

    return STAGE.node(
        fusion_id(method.name, split),
        f"{method.name}-{split}",
        [*maps, *(n for n in (policy, model) if n is not None)],
        plan,
        command,
    )


def _by_owner(
    given: Given,
    method: FusionMethod,
    chosen: Policy,
    maps: list[NodeId],
    names: list[str],
    upstream: Upstream,
) -> tuple[ByOwner, dict[str, NodeId]]:
    """Return what decides a fusion by a policy, and the label maps that it reads."""
    settings = given.experiment.config.fusion
    prints = {t: upstream.fingerprint(m) for t, m in zip(names, maps, strict=True)}
    by_print = {prints[t]: m for t, m in zip(names, maps, strict=True)}
    # by the first class that each one owns: neither names nor other teachers matter
    owner = {c: chosen.teacher[c] for c in given.classes}
    used = list(dict.fromkeys(prints[t] for t in owner.values() if t is not None))
    recipe = ByOwner(
        method.name,
        given.classes,
        owner={c: None if t is None else used.index(prints[t]) for c, t in owner.items()},
        window=settings.window,
        conflict=settings.conflict,
        holes=settings.holes,
        certainty=chosen.certainty if settings.conflict == "certainty" else None,
    )
    return recipe, numbered("teacher", [by_print[found] for found in used])
