"""`infer[t]`: the label maps of a teacher (output unification; paper, section 3.1).

A teacher's scores are not comparable with another's; after the argmax only labels are left, and
no scale is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.pictures import Decoder, read_image
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.node import Job
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMapsDraft, image_sizes
from ensdistill.stages.parallel import for_each


def run_labels(job: Job) -> dict[str, Any]:
    """Read a teacher's PNGs into a label store."""
    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    decoder = Decoder(local.to_target, palette=local.palette)
    job.start("images")

    def one(image_id: str) -> None:
        file = local.predictions[image_id]
        maps.write(image_id, decoder.read(file, local.digests[file]))

    for_each(maps.missing, one, workers=local.workers, progress=job.progress)
    return _summary(job)


def run_network(job: Job) -> dict[str, Any]:
    """Run a network over the images into a label store, one image at a time.

    Single images, since logits differ in their last bits between batch sizes.
    """
    import torch

    from ensdistill.stages.functional.unify import unify
    from ensdistill.stages.networks.frozen import load_network, platform_facts

    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    if not maps.missing:
        return _summary(job)
    folder = job.inputs["network"].path if "network" in job.inputs else local.network
    network = load_network(folder, job.work.recipe, local)
    job.ran_on.update(platform_facts(network.device))
    to_target = np.full(256, IGNORE_INDEX, np.uint8)
    for own, goal in local.to_target.items():
        to_target[own] = goal
    images = {p.id: p.image for p in local.pictures}
    for image_id in maps.missing:
        file = images[image_id]
        image = read_image(file, local.digests[str(file)])
        height, width, _ = image.shape
        labels, sure = unify(
            network.logits(image), (height, width), align_corners=network.align_corners
        )
        if torch.isnan(sure).any():
            raise DataError(f"{job.node.id}: the network's output for {image_id} is not a number")
        maps.write(image_id, to_target[labels.cpu().numpy()])
        job.progress.advance()
    return _summary(job)


def _summary(job: Job) -> dict[str, Any]:
    """Return how many pixels the teacher gives to each class."""
    counts = np.sum([record["labels"] for record in job.records()], axis=0)
    classes = job.work.local.classes.classes
    return {
        "images": len(job.work.items),
        "labels": dict(zip(classes, counts.tolist(), strict=True)),
    }
