"""`evaluation`: scores on a labelled split.

The target's ground truth is a node of label maps (`truth`), made for this one and for the oracle,
so that its PNGs are decoded once. Beside it only the ablation and training told to watch a split
open it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensdistill.data.classes import ClassTable
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.functional.numbers import or_none
from ensdistill.stages.functional.scores import confusion, coverage, iou, mean_iou, pixel_accuracy
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.evaluation.plan import Evaluated, Recipe, Role
from ensdistill.stages.work.items import for_each

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counting:
    """Counts one image's confusions; its maps are the ground truth and all P predictions."""

    readers: tuple[LabelReader, ...]
    n_classes: int

    def __call__(self, stored: list[Stored]) -> Int64:
        (read, truth), *predictions = zip(self.readers, stored, strict=True)
        target = read(truth)
        confmats = np.empty((len(predictions), self.n_classes, self.n_classes + 1), np.int64)
        one = np.empty((1, *truth.size), np.uint8)  # all at once would be new memory every time
        for confmat, (read, prediction) in zip(confmats, predictions, strict=True):
            read(prediction, one[0])
            confmat[:] = confusion(target, one, self.n_classes)[0]
        return confmats


def run(job: Job[Recipe, Local]) -> Evaluated:
    """Count confusions of every method against the ground truth and score them."""
    table = job.work.local.classes
    methods = []
    for role, confmat in confusions(job).items():
        assert isinstance(role, Role)
        told = {"name": role.name, "kind": role.kind, **method_scores(confmat, table)}
        methods.append(told | {"confmat": confmat.tolist()})
    return Evaluated.model_validate({"classes": list(table.classes), "methods": methods})


def confusions(job: Job[Told, Local]) -> dict[str, Int64]:
    """Return the confusions of each input with the one whose role is ``truth``.

    Returns
    -------
    dict
        Role to (C, C + 1) int64, ``confmat[target, prediction]``, summed over all images.

    Raises
    ------
    DataError
        If no pixel of the ground truth is labelled.
    """
    require_labelled(job)
    local = job.work.local
    size = len(local.classes)
    roles = sorted(role for role in job.inputs if role != "truth")
    maps = [LabelMaps(job.inputs[role]) for role in ("truth", *roles)]
    confmats = np.zeros((len(roles), size, size + 1), np.int64)
    job.progress.start(len(local.pictures), 0, "images")
    for_each(
        [[m.find(p.id) for m in maps] for p in local.pictures],
        _Counting(tuple(m.reader for m in maps), size),
        lambda _, found: np.add(confmats, found, out=confmats),  # integers, in any order
        workers=local.workers,
        progress=job.progress,
    )
    return dict(zip(roles, confmats, strict=True))


def require_labelled(job: Job[Told, Local]) -> None:
    """Refuse, by a `DataError`, a ground truth without a labelled pixel: it can judge nothing."""
    if not any(job.inputs["truth"].manifest.result["labels"].values()):
        raise DataError(
            f"{job.node.id}: the ground truth has no labelled pixel, so nothing can be scored; "
            "look into the files that `labels:` of the split names, and set `ids:` to what they "
            "hold"
        )


def method_scores(confmat: Int64, table: ClassTable) -> dict[str, Json]:
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
    wrong, left_out = iou(confmat), iou(confmat, ignored="left_out")
    return {
        "miou": _percent(mean_iou(wrong)),
        "iou": dict(zip(table.classes, map(_percent, wrong), strict=True)),
        "miou_covered": _percent(mean_iou(left_out)),
        "iou_covered": dict(zip(table.classes, map(_percent, left_out), strict=True)),
        "coverage": or_none(coverage(confmat)),
        "pixel_accuracy": _percent(pixel_accuracy(confmat)),
        "miou_subsets": {
            name: _percent(mean_iou(wrong, [table.classes.index(c) for c in members]))
            for name, members in table.subsets.items()
        },
    }


def _percent(value: float) -> float | None:
    return or_none(100 * value)
