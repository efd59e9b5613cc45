"""`certainty[t]`: how sure the probe of teacher t is of each class (paper, section 3.2, Fig. 6)."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np

from ensdistill.data.pictures import read_image
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.certainty import CertaintySums, certainty_sums, mean_certainty
from ensdistill.stages.functional.unify import unify
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.networks.frozen import load_network, platform_facts


def run(job: Job) -> dict[str, Any]:
    """Sum the probe's largest softmax value per predicted class over the training images.

    Per-image float64 sums are journalled and added in image-id order, so neither a kill nor the
    number of workers changes a bit.
    """
    local: Local = job.work.local
    classes = local.classes.classes
    for image_id, spare in job.spares.items():
        job.draft.adopt(image_id, spare)
    missing = set(job.todo())
    job.start("images")
    network = load_network(job.inputs["probe"].path, {"source": "student"}, local)
    job.ran_on.update(platform_facts(network.device))
    for picture in local.pictures:
        if picture.id not in missing:
            continue
        image = read_image(picture.image, local.digests[str(picture.image)])
        height, width, _ = image.shape
        labels, sure = unify(
            network.logits(image), (height, width), align_corners=network.align_corners
        )
        found = certainty_sums(labels.cpu().numpy(), sure.cpu().numpy(), len(classes))
        job.draft.record(picture.id, sums=found.sums.tolist(), support=found.support.tolist())
        job.progress.advance()
    total = reduce(
        add,
        (
            CertaintySums(
                np.array(record["sums"], np.float64), np.array(record["support"], np.int64)
            )
            for record in job.records()
        ),
    )
    mean = [None if np.isnan(v) else float(v) for v in mean_certainty(total)]
    labelled = LabelMaps(job.inputs["labels"]).shares()
    reached = job.work.recipe["reached"]
    assert isinstance(reached, list)
    return {
        "certainty": dict(zip(classes, mean, strict=True)),
        "support": dict(zip(classes, total.support.tolist(), strict=True)),
        "labelled": dict(zip(classes, labelled.tolist(), strict=True)),
        "has_class": {c: c in reached for c in classes},
    }
