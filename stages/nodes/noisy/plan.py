"""`noisy[t~20]`: the label maps of teacher t with noise, at 20 % (paper, Fig. 5).

A probe of each level tells whether certainty falls as labels get worse. At level 0, without noise,
it is the teacher's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, Work
from ensdistill.stages.contract import Count, Labelled, LabelMap, OfClasses
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.certainty import plan as certainty
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.probe import plan as probe
from ensdistill.stages.nodes.stage import Stage

LEVELS: Final = (0, 5, 10, 20, 40, 60)
"""Percent of the segments that get another class; at 0 the labels are the teacher's own."""


class NoisyMaps(Labelled):
    """Of noisy label maps: `changed` is how many pixels have another label than the teacher's."""

    changed: Count


class NoisyMap(LabelMap):
    """A noisy label map, and how many of its pixels have another label than the teacher's."""

    changed: Count


STAGE: Final = Stage("noisy", 1, NoisyMaps, NoisyMap)


@dataclass(frozen=True)
class Noise(OfClasses):
    """Which part of the segments gets another class, in percent."""

    level: int


def called(teacher: str, level: int) -> str:
    """Return what a teacher's labels with noise are called; no teacher's name has a ``~``."""
    return f"{teacher}~{level}" if level else teacher


def labels_id(teacher: str, level: int) -> NodeId:
    """Return the node id of a teacher's labels with noise."""
    return STAGE.id(called(teacher, level)) if level else infer_id(teacher)


def node(given: Given, teacher: Teacher, level: int) -> Node:
    """Label maps of a teacher on the training images, with noise in them."""
    labels = infer_id(teacher.name)

    def plan(upstream: Upstream) -> Work[Noise, Local]:
        return Work(
            Noise(given.classes, level),
            uses={"labels": labels},
            items=given.items(TRAIN, upstream),
            local=given.local(TRAIN, upstream),
            item_bytes=given.map_bytes(TRAIN),
        )

    node_id, name = labels_id(teacher.name, level), called(teacher.name, level)
    return STAGE.node(node_id, name, [labels], plan, _command(teacher))


def probed(given: Given, teacher: Teacher, level: int) -> list[Node]:
    """The probes of a teacher's labels with noise, and how sure these are."""
    labels, name = labels_id(teacher.name, level), called(teacher.name, level)
    reached, command = given.classes, _command(teacher)
    if not level:
        reached = given.reached(teacher)
        if given.experiment.config.policy.strategy == "certainty":
            command = given.before_policy
    probes = probe.nodes(given, labels, name, command)
    return [*probes, certainty.node(given, labels, name, reached, command)]


def _command(teacher: Teacher) -> Command:
    return Command("ablate", f"--noise {teacher.name}")
