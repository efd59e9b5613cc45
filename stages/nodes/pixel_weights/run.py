"""`pixel-weights`: how sure the label model is of each fused label, for the student's loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import OfClasses
from ensdistill.stages.functional.labelmodel import LabelModel, posterior
from ensdistill.stages.functional.numbers import or_none, share
from ensdistill.stages.labelmaps import (
    LabelMaps,
    LabelMapsDraft,
    LabelReader,
    Made,
    Stored,
    read_all,
)
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.label_model.run import read_model
from ensdistill.stages.nodes.pixel_weights.plan import Weighed


def run(job: Job[OfClasses, Local]) -> Weighed:
    """Weigh every fused label of the training images: 0 to 100 percent, 0 where there is none.

    Means are fractions, of whole numbers that add up exactly: neither a kill nor the number of
    workers changes a bit.
    """
    local = job.work.local
    inputs = dict(job.inputs)
    model, fused = read_model(inputs.pop("model")), LabelMaps(inputs.pop("fused"))
    sources = [*map(LabelMaps, inputs.values()), fused]
    maps = LabelMapsDraft(job, {item.id: fused.size(item.id) for item in job.work.items})
    weighing = partial(_weigh, [s.reader for s in sources], model)
    maps.fill(lambda image_id: [s.find(image_id) for s in sources], weighing)
    records = job.records()
    pixels = np.sum([record["labels"] for record in records], axis=0)
    sums = np.sum([record["sums"] for record in records], axis=0)
    means = map(_mean, sums, pixels)
    return Weighed(
        images=len(records),
        mean=_mean(sums.sum(), pixels.sum()),
        classes=dict(zip(local.classes.classes, means, strict=True)),
    )


def _weigh(readers: Sequence[LabelReader], model: LabelModel, stored: Sequence[Stored]) -> Made:
    """Weigh the labels of an image; its maps are those of the model's teachers, then the fused."""
    maps = read_all(readers, stored)
    percent, pixels, sums = posterior(maps[:-1], maps[-1], model)
    mean = _mean(sums.sum(), pixels.sum())
    return percent, {"labels": pixels.tolist(), "sums": sums.tolist(), "mean": mean}


def _mean(percents: np.int64, pixels: np.int64) -> float | None:
    return or_none(share(percents, 100 * pixels))
