"""`evaluation`: scores on a labelled split. Only here, in the oracle, in the ablation and in
training told to watch a split is the target's ground truth opened.
"""

from __future__ import annotations

import math
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
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored
from ensdistill.stages.parallel import for_each

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counting:
    """Counts one image's confusions: its ground truth, the file's digest, and all predictions."""

    decoder: Decoder
    readers: tuple[LabelReader, ...]
    n_classes: int

    def __call__(self, item: tuple[str, str, list[Stored]]) -> Int64:
        file, sha256, stored = item
        target = self.decoder.read(file, sha256)
        predictions = [read(one) for read, one in zip(self.readers, stored, strict=True)]
        return confusion(target, np.stack(predictions), self.n_classes)


def run(job: Job) -> dict[str, Any]:
    """Count confusions of every method against the ground truth and score them."""
    local: Local = job.work.local
    size = len(local.classes)
    maps = [LabelMaps(artifact) for artifact in job.inputs.values()]
    truth = [(p.id, str(p.labels)) for p in local.pictures]
    confmats = np.zeros((len(maps), size, size + 1), np.int64)
    job.progress.start(len(truth), 0, "images")
    for_each(
        [(file, local.digests[file], [m.find(image_id) for m in maps]) for image_id, file in truth],
        _Counting(
            Decoder(local.to_target, palette=local.palette), tuple(m.reader for m in maps), size
        ),
        lambda _, found: np.add(confmats, found, out=confmats),  # integers, in any order
        workers=local.workers,
        progress=job.progress,
    )
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
