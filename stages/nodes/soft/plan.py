"""`soft[t]`: a teacher's softmax at its network's own stride.

A node of its own, so that label maps stay fresh.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ensdistill.pipeline.node import Command, Node
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.nodes.confidence.plan import ScoreMap, Scores, by_network
from ensdistill.stages.nodes.given import INFER, Given
from ensdistill.stages.nodes.stage import Stage


class SoftScores(Scores):
    """The mean, and the teacher's own classes in the order of the maps."""

    classes: list[str]


STAGE: Final = Stage("soft", 1, SoftScores, ScoreMap)


def node(given: Given, teacher: Teacher) -> Node:
    """Softmax of a teacher's network."""
    return STAGE.node(
        STAGE.id(teacher.name),
        f"{teacher.name}-{TRAIN}",
        [],
        partial(by_network, given, teacher),
        Command(INFER.name, teacher.name),
    )
