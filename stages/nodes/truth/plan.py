"""`truth`: the ground truth of a labelled split, decoded once for all that is scored on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import (
    Command,
    Item,
    Items,
    Node,
    NodeId,
    Upstream,
    WaitingError,
    Work,
)
from ensdistill.stages.contract import Labelled, LabelMap, OfClasses
from ensdistill.stages.local import LabelFiles
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.stage import Stage

STAGE: Final = Stage("truth", 1, Labelled, LabelMap)


@dataclass(frozen=True)
class Recipe(OfClasses):
    """What decides which labels are read: how files are encoded, raw value to train id or 255."""

    encoding: str
    values: Mapping[int, int]


def truth_id(split: str) -> NodeId:
    """Return the node id of the decoded ground truth of a split."""
    return STAGE.id(split=split)


def node(given: Given, split: str) -> Node:
    """Ground truth of a split as label maps."""

    def plan(upstream: Upstream) -> Work[Recipe, LabelFiles]:
        digests = _digests(given, split, "truth")
        return Work(
            Recipe(given.classes, *_encoded(given, split)),
            items=Items(Item(i, {"labels": found}) for i, found in digests.items()),
            local=truth_local(given, split, upstream),
            item_bytes=given.map_bytes(split),
        )

    command = Command("evaluate", f"--split {split}")
    return STAGE.node(truth_id(split), split, [], plan, command)


def truth_digest(given: Given, split: str) -> str:
    """Return one digest of a watched split's ground truth: its files and what they mean.

    Raises
    ------
    WaitingError
        If a file is not remembered and may not be opened for the sake of the student.
    """
    found = _digests(given, split, "student")
    digests: list[Json] = [[image_id, sha256] for image_id, sha256 in found.items()]
    meaning = Recipe(given.classes, *_encoded(given, split)).to_json()
    return digest([meaning["encoding"], meaning["values"], *digests])


def truth_local(given: Given, split: str, upstream: Upstream) -> LabelFiles:
    """Return what reading the ground truth of a split needs."""
    exp = given.experiment
    encoding, values = _encoded(given, split)
    labels = {p.id: str(p.labels) for p in exp.pictures(split) if p.labels is not None}
    known = {file: exp.files.known(file) for file in labels.values()}
    digests = {file: found for file, found in known.items() if found is not None}
    return LabelFiles(
        **vars(given.local(split, upstream, digests)),
        predictions=labels,
        to_target=values,
        palette=encoding == "palette",
    )


def _digests(given: Given, split: str, stage: str) -> dict[str, str]:
    """Return image id to the digest of its ground truth; raises as `truth_digest`."""
    files = given.experiment.files
    digests = {}
    for p in given.experiment.pictures(split):
        if p.labels is None:
            raise ConfigError(f"target.{split} declares no labels")
        found = files.digest(p.labels) if stage in given.opens else files.known(p.labels)
        if found is None:
            raise WaitingError(f"the labels of {split} to be opened")
        digests[p.id] = found
    return digests


def _encoded(given: Given, split: str) -> tuple[str, Mapping[int, int]]:
    """Return how a split's ground truth is encoded, and which train id each value is."""
    encoding = given.experiment.config.target[split].encoding
    return encoding, given.experiment.classes.legal_values(encoding)
