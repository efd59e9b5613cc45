"""`fusion`: one label map from many, materialised (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial, reduce
from operator import add
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import FusionCounts, channel_wise, majority, warm_up
from ensdistill.stages.labelmaps import (
    LabelMaps,
    LabelMapsDraft,
    LabelReader,
    LabelWriter,
    Place,
    Stored,
    read_all,
)
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.labelmodel.run import read_model
from ensdistill.stages.work.items import for_each

Method = Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], FusionCounts | None]]


@dataclass(frozen=True)
class _Fusing:
    """Reads, fuses and writes one image: where to, and where the teachers' label maps lie.

    Attributes
    ----------
    readers : tuple of LabelReader
        In the order of the roles, which is that of the names.
    method : callable
        From (T, H, W) label maps to the fused map and, where the method has any, its counts.
    write : LabelWriter
        Stores the fused map.
    """

    readers: tuple[LabelReader, ...]
    method: Method
    write: LabelWriter

    def __call__(self, item: tuple[Place, list[Stored]]) -> dict[str, Any]:
        place, stored = item
        fused, counts = self.method(read_all(self.readers, stored))
        if counts is None:
            return self.write(place, fused)
        return {**self.write(place, fused, counts.label), "counts": _to_json(counts)}


def run(job: Job) -> dict[str, Any]:
    """Fuse every image of the split by the recipe's method."""
    local: Local = job.work.local
    recipe: dict[str, Any] = job.work.recipe
    classes = local.classes.classes
    inputs = dict(job.inputs)
    model = inputs.pop("model", None)
    if not inputs:
        raise DataError("the policy gives no class to any teacher: there is nothing to fuse")
    method = _method(recipe, classes, model)
    # while the teachers' indices are read
    Thread(target=warm_up if model is None else labelmodel.warm_up, daemon=True).start()
    teachers = [LabelMaps(inputs[role]) for role in sorted(inputs)]
    maps = LabelMapsDraft(job, {item.id: teachers[0].size(item.id) for item in job.work.items})
    job.start("images")
    readers = tuple(t.reader for t in teachers)
    for_each(
        [(place, [t.find(place.id) for t in teachers]) for place in maps.missing],
        _Fusing(readers, method, maps.write),
        lambda item, record: maps.journal(item[0], record),
        workers=local.workers,
        progress=job.progress,
    )
    records = job.records()
    labelled = np.sum([record["labels"] for record in records], axis=0)
    pixels = sum(h * w for h, w in (record["size"] for record in records))
    result: dict[str, Any] = {
        "images": len(records),
        "coverage": float(labelled.sum() / pixels),
        "labels": dict(zip(classes, labelled.tolist(), strict=True)),
    }
    if recipe["method"] != "majority":
        counted = (_from_json(record["counts"]) for record in records)
        result |= shares(reduce(add, counted), classes)
    return result


def _method(recipe: Mapping[str, Any], classes: tuple[str, ...], model: Artifact | None) -> Method:
    """Return what fuses by a recipe."""
    if recipe["method"] == "majority":
        return partial(_majority, n_classes=len(classes))
    if model is not None:
        return partial(labelmodel.fuse, model=read_model(model.manifest.result))
    certainty = None
    if recipe["conflict"] == "certainty":
        certainty = np.array([_or(recipe["certainty"][c], np.nan) for c in classes])
    return partial(
        channel_wise,
        owner=np.array([_or(recipe["owner"][c], -1) for c in classes], np.intp),
        window=recipe["window"],
        conflict=recipe["conflict"],
        holes=recipe["holes"],
        certainty=certainty,
    )


def _majority(label_maps: NDArray[np.uint8], n_classes: int) -> tuple[NDArray[np.uint8], None]:
    return majority(label_maps, n_classes), None


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
