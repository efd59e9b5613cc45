"""`evaluation`: scores on a labelled split. Only here, in the oracle and in training told to watch
a split is the target's ground truth opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ensdistill.data.classes import ClassTable
from ensdistill.data.pictures import Decoder
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.scores import (
    confusion,
    coverage,
    iou,
    mean_iou,
    pixel_accuracy,
)
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.parallel import for_each

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counting:
    """Counts one image's confusions, of all methods against one ground truth."""

    truth: Mapping[str, str]
    digests: Mapping[str, str]
    decoder: Decoder
    methods: tuple[LabelMaps, ...]
    n_classes: int

    def __call__(self, image_id: str) -> Int64:
        file = self.truth[image_id]
        target = self.decoder.read(file, self.digests[file])
        predictions = np.stack([labels.read(image_id) for labels in self.methods])
        return confusion(target, predictions, self.n_classes)


def run(job: Job) -> dict[str, Any]:
    """Count confusions of every method against the ground truth and score them."""
    local: Local = job.work.local
    size = len(local.classes)
    truth = {p.id: str(p.labels) for p in local.pictures}
    counting = _Counting(
        truth,
        {file: local.digests[file] for file in truth.values()},
        Decoder(local.to_target, palette=local.palette),
        tuple(LabelMaps(artifact) for artifact in job.inputs.values()),
        size,
    )
    confmats = np.zeros((len(job.inputs), size, size + 1), np.int64)

    def add(_: str, found: Int64) -> None:  # integers: the order changes nothing
        confmats.__iadd__(found)

    job.progress.start(len(truth), 0, "images")
    for_each(list(truth), counting, add, workers=local.workers, progress=job.progress)
    methods = []
    for role, confmat in zip(job.inputs, confmats, strict=True):
        kind, name = role.split(":", 1)
        scores = method_scores(confmat, local.classes)
        methods.append({"name": name, "kind": kind, **scores, "confmat": confmat.tolist()})
    return {"classes": list(local.classes.classes), "methods": methods}


def method_scores(confmat: Int64, table: ClassTable) -> dict[str, Any]:
    """Return a method's scores as they stand in ``results.json``.

    Parameters
    ----------
    confmat : (C, C + 1) int64
        ``confmat[target, prediction]``, last column: predicted 255.
    table : ClassTable
        The classes and the declared subsets.

    Returns
    -------
    dict
        ``miou``, ``iou``, ``miou_covered``, ``iou_covered``, ``miou_subsets`` and
        ``pixel_accuracy`` in percent, ``coverage`` as a fraction; None for a class that is absent
        from both prediction and ground truth.
    """
    values: dict[str, Any] = {}
    treatments: tuple[tuple[str, Literal["wrong", "left_out"]], ...] = (
        ("", "wrong"),
        ("_covered", "left_out"),
    )
    for suffix, ignored in treatments:
        per_class = iou(confmat, ignored=ignored)
        values["miou" + suffix] = _percent(mean_iou(per_class))
        values["iou" + suffix] = {
            c: _percent(v) for c, v in zip(table.classes, per_class.tolist(), strict=True)
        }
    values["coverage"] = _number(coverage(confmat))
    values["pixel_accuracy"] = _percent(pixel_accuracy(confmat))
    wrong = iou(confmat)
    values["miou_subsets"] = {
        name: _percent(mean_iou(wrong, [table.classes.index(c) for c in members]))
        for name, members in table.subsets.items()
    }
    return values


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value
