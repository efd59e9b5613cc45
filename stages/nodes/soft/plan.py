"""`soft[t]`: a teacher's softmax at its network's own stride.

A node of its own, so that label maps stay fresh.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ensdistill.pipeline.node import Command, Node, NodeId
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.nodes.confidence.plan import by_network
from ensdistill.stages.nodes.given import INFER, Given
from ensdistill.stages.nodes.scores import ScoreMap, SoftScores
from ensdistill.stages.nodes.stage import Stage

STAGE: Final = Stage("soft", 1, SoftScores, ScoreMap)


def soft_id(teacher: str) -> NodeId:
    """Return the node id of a teacher's softmax."""
    return STAGE.id(teacher)


def node(given: Given, teacher: Teacher) -> Node:
    """Softmax of a teacher's network."""
    return STAGE.node(
        soft_id(teacher.name),
        f"{teacher.name}-{TRAIN}",
        [],
        partial(by_network, given, teacher),
        Command(INFER.name, teacher.name),
    )
