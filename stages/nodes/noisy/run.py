"""`noisy[t~20]`: the label maps of teacher t with noise, at 20 % (paper, Fig. 5)."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Final

import numpy as np

from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.spoiling import relabel_segments
from ensdistill.stages.labelmaps import (
    LabelMaps,
    LabelMapsDraft,
    LabelReader,
    Made,
    Stored,
    counted,
)
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.noisy.plan import Noise, NoisyMaps

SEED: Final = 0


def run(job: Job[Noise, Local]) -> NoisyMaps:
    """Give a share of the segments of every label map another class."""
    recipe, labels = job.work.recipe, LabelMaps(job.inputs["labels"])
    images = {item.id: item.made_from["image"] for item in job.work.items}
    maps = LabelMapsDraft(job, {image_id: labels.size(image_id) for image_id in images})
    maps.fill(lambda i: (images[i], labels.find(i)), partial(_spoil, labels.reader, recipe))
    records = job.records()
    shares = np.sum([record["labels"] for record in records], axis=0)
    return NoisyMaps(
        images=len(records),
        labels=dict(zip(recipe.classes, shares.tolist(), strict=True)),
        changed=sum(record["changed"] for record in records),
    )


def _spoil(read: LabelReader, recipe: Noise, given: tuple[str, Stored]) -> Made:
    """Spoil the label map of an image, by the digest of its photograph."""
    image, stored = given
    # not by the image's id, which is in no key: under another one its map is taken as it is
    seed = hashlib.sha256(f"{SEED} {recipe.level} {image}".encode()).digest()
    random, n_classes = np.random.default_rng(int.from_bytes(seed)), len(recipe.classes)
    own = read(stored)
    spoilt = relabel_segments(own, recipe.level / 100, n_classes, random)
    changed = int(np.count_nonzero(spoilt != own))
    return spoilt, {**counted(spoilt, n_classes), "changed": changed}
