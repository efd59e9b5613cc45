"""`fusion`: one label map from many, materialised (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.fusion import FusionCounts, channel_wise, majority
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps, LabelMapsDraft
from ensdistill.stages.parallel import for_each


def run(job: Job) -> dict[str, Any]:
    """Fuse every image of the split by the recipe's method."""
    local: Local = job.work.local
    recipe: dict[str, Any] = job.work.recipe
    classes = local.classes.classes
    teachers = [LabelMaps(job.inputs[role]) for role in sorted(job.inputs)]
    if not teachers:
        raise DataError("the policy gives no class to any teacher: there is nothing to fuse")
    maps = LabelMapsDraft(job, {item.id: teachers[0].size(item.id) for item in job.work.items})
    job.start("images")
    if recipe["method"] == "channel":
        owner = np.array([_or(recipe["owner"][c], -1) for c in classes], np.intp)
        certainty = None
        if recipe["conflict"] == "certainty":
            certainty = np.array([_or(recipe["certainty"][c], np.nan) for c in classes])

    def one(image_id: str) -> None:
        labels = np.stack([t.read(image_id) for t in teachers])
        if recipe["method"] == "majority":
            maps.write(image_id, majority(labels, len(classes)))
            return
        fused, counts = channel_wise(
            labels,
            owner,
            window=recipe["window"],
            conflict=recipe["conflict"],
            holes=recipe["holes"],
            certainty=certainty,
        )
        maps.write(image_id, fused, counts=_to_json(counts))

    for_each(maps.missing, one, workers=local.workers, progress=job.progress)
    records = job.records()
    labelled = np.sum([record["labels"] for record in records], axis=0)
    pixels = sum(h * w for h, w in (record["size"] for record in records))
    result: dict[str, Any] = {
        "images": len(records),
        "coverage": float(labelled.sum() / pixels),
        "labels": dict(zip(classes, labelled.tolist(), strict=True)),
    }
    if recipe["method"] == "channel":
        counted = (_from_json(record["counts"]) for record in records)
        result |= shares(reduce(add, counted), classes)
    return result


def shares(counts: FusionCounts, classes: tuple[str, ...]) -> dict[str, Any]:
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
                "contested": _fraction(counts.conflict[c], counts.claimed[c]),
                "from_conflict": _fraction(counts.won[c], counts.label[c]),
                "from_hole": _fraction(counts.filled[c], counts.label[c]),
            }
            for c, name in enumerate(classes)
        },
    }


def _fraction(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _to_json(counts: FusionCounts) -> dict[str, Any]:
    return {f.name: np.asarray(getattr(counts, f.name)).tolist() for f in fields(counts)}


def _from_json(record: dict[str, Any]) -> FusionCounts:
    values: dict[str, Any] = {
        k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in record.items()
    }
    return FusionCounts(**values)
