"""`infer[t]`: the label maps of a teacher (output unification; paper, section 3.1).

A teacher's scores are not comparable with another's; after the argmax only labels are left, and
no scale is.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.pictures import Decoder
from ensdistill.pipeline.node import Job
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place, image_sizes
from ensdistill.stages.parallel import for_each

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork


@dataclass(frozen=True)
class _Reading:
    """Reads one prediction into the store: where to, its file and the file's digest."""

    decoder: Decoder
    write: LabelWriter

    def __call__(self, item: tuple[Place, str, str]) -> dict[str, Any]:
        place, file, sha256 = item
        return self.write(place, self.decoder.read(file, sha256))


def run_labels(job: Job) -> dict[str, Any]:
    """Read a teacher's PNGs into a label store."""
    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    files = [(place, local.predictions[place.id]) for place in maps.missing]
    for_each(
        [(place, file, local.digests[file]) for place, file in files],
        _Reading(Decoder(local.to_target, palette=local.palette), maps.write),
        lambda item, record: maps.journal(item[0], record),
        workers=local.workers,
        progress=job.progress,
    )
    return _summary(job)


def run_network(job: Job) -> dict[str, Any]:
    """Run a network over the images into a label store, one image at a time.

    Single images, since logits differ in their last bits between batch sizes.
    """
    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    if not maps.missing:
        return _summary(job)
    to_target = np.full(256, IGNORE_INDEX, np.uint8)
    for own, goal in local.to_target.items():
        to_target[own] = goal
    images = {p.id: p.image for p in local.pictures}
    with closing(_network(job)) as network:
        job.ran_on.update(network.facts)
        for place in maps.missing:
            file = images[place.id]
            labels = network.label(file, local.digests[str(file)])
            maps.journal(place, maps.write(place, to_target[labels]))
            job.progress.advance()
    return _summary(job)


def _network(job: Job) -> FrozenNetwork | FactoryNetwork:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import load_network

    local: Local = job.work.local
    recipe: dict[str, Any] = job.work.recipe
    if recipe["source"] == "factory":
        assert local.factory is not None
        local.require_weights()
        return FactoryNetwork(
            local.factory,
            recipe["preprocess"],
            recipe["teacher_classes"],
            recipe.get("divisor", 1),
            local.device,
            local.threads,
        )
    folder = job.inputs["network"].path if "network" in job.inputs else local.network
    return load_network(folder, recipe, local)


def _summary(job: Job) -> dict[str, Any]:
    """Return how many pixels the teacher gives to each class."""
    counts = np.sum([record["labels"] for record in job.records()], axis=0)
    classes = job.work.local.classes.classes
    return {
        "images": len(job.work.items),
        "labels": dict(zip(classes, counts.tolist(), strict=True)),
    }
