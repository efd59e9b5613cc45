"""`fusion`: one label map from many, materialised (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial, reduce
from operator import add
from threading import Thread
from typing import Any

import numpy as np

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import FusionCounts, warm_up
from ensdistill.stages.functional.numbers import or_none, share
from ensdistill.stages.fusions import method_called
from ensdistill.stages.fusions.method import Fused, Fuser
from ensdistill.stages.labelmaps import (
    LabelMaps,
    LabelMapsDraft,
    LabelReader,
    Made,
    Stored,
    counted,
    read_all,
)
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.fusion.plan import FusedMaps
from ensdistill.stages.nodes.label_model.run import read_model


def run(job: Job[Fused, Local]) -> FusedMaps:
    """Fuse every image of the split by the recipe's method."""
    recipe, inputs = job.work.recipe, dict(job.inputs)
    classes = recipe.classes
    model = inputs.pop("model", None)
    if not inputs:
        raise DataError("the policy gives no class to any teacher: there is nothing to fuse")
    method = method_called(recipe.method)
    fuser = method.fuser(recipe, None if model is None else read_model(model))
    # while the teachers' indices are read
    Thread(target=warm_up if model is None else labelmodel.warm_up, daemon=True).start()
    teachers = [LabelMaps(artifact) for artifact in inputs.values()]
    maps = LabelMapsDraft(job, {item.id: teachers[0].size(item.id) for item in job.work.items})
    fusing = partial(_fuse, [t.reader for t in teachers], fuser, len(classes))
    maps.fill(lambda image_id: [t.find(image_id) for t in teachers], fusing)
    records = job.records()
    labelled = np.sum([record["labels"] for record in records], axis=0)
    pixels = sum(h * w for h, w in (record["size"] for record in records))
    counts = [_from_json(record["counts"]) for record in records if "counts" in record]
    told: dict[str, Json] = {
        "images": len(records),
        "coverage": float(labelled.sum() / pixels),
        "labels": dict(zip(classes, labelled.tolist(), strict=True)),
    }
    return FusedMaps.model_validate(told | shares(reduce(add, counts), classes) if counts else told)


def _fuse(
    readers: Sequence[LabelReader], fuse: Fuser, n_classes: int, stored: Sequence[Stored]
) -> Made:
    """Fuse the label maps of an image, in the order of the roles, which is that of the names."""
    fused, counts = fuse(read_all(readers, stored))
    if counts is None:
        return fused, counted(fused, n_classes)
    return fused, {"labels": counts.label.tolist(), "counts": _to_json(counts)}


def shares(counts: FusionCounts, classes: tuple[str, ...]) -> dict[str, Json]:
    """Return fusion counts as fractions a person can read.

    Returns
    -------
    dict
        ``conflict``, ``hole`` and ``ignored``: fractions of all pixels. ``classes``: for each
        class the fraction of its claims that met another claim (None without claims), and of its
        fused pixels those that came from a conflict and from a hole (None without pixels).
    """
    return {
        "conflict": counts.conflicts / counts.pixels,
        "hole": counts.holes / counts.pixels,
        "ignored": counts.ignored / counts.pixels,
        "classes": {
            name: {
                "contested": or_none(share(counts.conflict[c], counts.claimed[c])),
                "from_conflict": or_none(share(counts.won[c], counts.label[c])),
                "from_hole": or_none(share(counts.filled[c], counts.label[c])),
            }
            for c, name in enumerate(classes)
        },
    }


def _to_json(counts: FusionCounts) -> dict[str, Any]:
    return {f.name: np.asarray(getattr(counts, f.name)).tolist() for f in fields(counts)}


def _from_json(record: dict[str, Any]) -> FusionCounts:
    values: dict[str, Any] = {
        k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in record.items()
    }
    return FusionCounts(**values)
