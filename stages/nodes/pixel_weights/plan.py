"""`pixel-weights`: how sure the label model is of each fused label, whatever method fused it."""

from __future__ import annotations

from typing import Final

from ensdistill.pipeline.node import Node, NodeId, Upstream, Work
from ensdistill.stages.contract import ByClass, Count, LabelMap, OfClasses, Result
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.fusion.plan import fusion_id
from ensdistill.stages.nodes.given import FUSE, Given, called, numbered
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model.plan import label_model_id
from ensdistill.stages.nodes.stage import Stage

_BYTES_PER_PIXEL: Final = 0.1  # of six teachers on CamVid; 0.03 of four on made-up streets


class Weighed(Result):
    """Mean weights, fractions: of all fused labels, and of those of each class."""

    images: Count
    mean: float | None
    classes: ByClass[float | None]


class WeightMap(LabelMap):
    """A map of percents, and the sum of those of each class."""

    sums: list[Count]


STAGE: Final = Stage("pixel-weights", 2, Weighed, WeightMap)


def pixel_weights_id() -> NodeId:
    """Return the node id of the pixel weights."""
    return STAGE.id()


def node(given: Given) -> Node:
    """Pixel weights of the fused labels."""
    maps = numbered("teacher", map(infer_id, given.names))
    uses = maps | {"fused": fusion_id(), "model": label_model_id()}

    def plan(upstream: Upstream) -> Work[OfClasses, Local]:
        return Work(
            OfClasses(given.classes),
            uses=uses,
            items=given.items(TRAIN, upstream),
            called=called(maps),
            local=given.local(TRAIN, upstream),
            item_bytes=given.map_bytes(TRAIN, _BYTES_PER_PIXEL),
        )

    return STAGE.node(pixel_weights_id(), f"posterior-{TRAIN}", list(uses.values()), plan, FUSE)
