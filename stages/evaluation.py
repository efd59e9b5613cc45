"""`evaluation`: scores on a labelled split, by its ground truth as `truth` decoded it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ensdistill.data.classes import ClassTable
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.scores import (
    confusion,
    coverage,
    iou,
    mean_iou,
    pixel_accuracy,
)
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored, read_all
from ensdistill.stages.parallel import for_each

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counting:
    """Counts one image's confusions, of its ground truth with all predictions."""

    readers: tuple[LabelReader, ...]
    n_classes: int

    def __call__(self, stored: list[Stored]) -> Int64:
        maps = read_all(self.readers, stored)
        return confusion(maps[0], maps[1:], self.n_classes)


def run(job: Job) -> dict[str, Any]:
    """Count confusions of every method against the ground truth and score them."""
    local: Local = job.work.local
    predictions = {role: artifact for role, artifact in job.inputs.items() if role != "truth"}
    confmats = count(job, predictions)
    methods = []
    for role, confmat in zip(predictions, confmats, strict=True):
        kind, name = role.split(":", 1)
        scores = method_scores(confmat, local.classes)
        methods.append({"name": name, "kind": kind, **scores, "confmat": confmat.tolist()})
    return {"classes": list(local.classes.classes), "methods": methods}


def count(job: Job, predictions: Mapping[str, Artifact]) -> Int64:
    """Count the confusions of label maps with the job's input `truth` over all its images.

    Returns
    -------
    confmats
        (P, C, C + 1) int64, in the order of the predictions; see `scores.confusion`.
    """
    local: Local = job.work.local
    size = len(local.classes)
    truth = LabelMaps(job.inputs["truth"])
    maps = [truth, *(LabelMaps(artifact) for artifact in predictions.values())]
    confmats = np.zeros((len(predictions), size, size + 1), np.int64)
    job.progress.start(len(truth), 0, "images")
    for_each(
        [[m.find(image_id) for m in maps] for image_id in truth],
        _Counting(tuple(m.reader for m in maps), size),
        lambda _, found: np.add(confmats, found, out=confmats),  # integers, in any order
        workers=local.workers,
        progress=job.progress,
    )
    return confmats


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
