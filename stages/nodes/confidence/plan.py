"""`confidence[t]`: how sure a teacher is of each of its labels.

A node of its own, so that label maps stay fresh.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ensdistill.pipeline.node import Command, Node, Upstream, Work
from ensdistill.stages.contract import Count, Record, Result, Settings, Size
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.local import LabelFiles, Running
from ensdistill.stages.nodes.given import INFER, Given
from ensdistill.stages.nodes.infer.plan import network_local, network_of
from ensdistill.stages.nodes.stage import Stage

_BYTES_PER_PIXEL: Final = 0.3


class Scores(Result):
    """The mean over images of what is stored, a fraction."""

    images: Count
    mean: float


class ScoreMap(Record):
    """A map of scores: its height and width, and its mean."""

    size: Size
    mean: float


STAGE: Final = Stage("confidence", 1, Scores, ScoreMap)


def node(given: Given, teacher: Teacher) -> Node:
    """How sure a teacher is, read from PNGs or seen by its network."""
    from_files = teacher.confidence is not None
    return STAGE.node(
        STAGE.id(teacher.name),
        f"{teacher.name}-{TRAIN}",
        [],
        partial(_from_files if from_files else by_network, given, teacher),
        Command(INFER.name, teacher.name),
        run="from_files" if from_files else "by_network",
    )


def by_network(given: Given, teacher: Teacher, upstream: Upstream) -> Work[Settings, Running]:
    """Return the work of keeping scores of a network."""
    local = network_local(given, teacher, TRAIN, upstream)
    return Work(
        Settings(network_of(given, teacher)),
        items=given.items(TRAIN, upstream),
        local=local,
        runtime=given.runtime() | {"folder": str(local.network)},
        item_bytes=given.map_bytes(TRAIN, _BYTES_PER_PIXEL),
    )


def _from_files(given: Given, teacher: Teacher, upstream: Upstream) -> Work[Settings, LabelFiles]:
    assert teacher.confidence is not None
    folder = teacher.confidence[TRAIN]
    where = f"teachers[{teacher.name}].confidence.{TRAIN}"
    items, local = given.pngs(folder, TRAIN, where, "confidence", upstream)
    return Work(
        Settings({"source": "labels"}),  # nothing but the files changes what is read
        items=items,
        local=local,
        runtime={"folder": str(given.experiment.folder(folder))},
        item_bytes=given.map_bytes(TRAIN, _BYTES_PER_PIXEL),
    )
