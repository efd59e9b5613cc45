"""Label maps that are read from PNGs: a teacher's, or the ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.data.decoding import Decoder
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.contract import Labelled
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place, image_sizes
from ensdistill.stages.local import LabelFiles, Local


@dataclass(frozen=True)
class _Reading:
    """Reads one prediction into the store: where to, its file and the file's digest."""

    decoder: Decoder
    write: LabelWriter

    def __call__(self, item: tuple[Place, tuple[str, str]]) -> dict[str, Any]:
        place, (file, sha256) = item
        return self.write(place, self.decoder.read(file, sha256, place.size))


def read_labels(job: Job[Told, LabelFiles]) -> Labelled:
    """Read PNGs of labels into a label store."""
    local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    decoder = Decoder(local.to_target, palette=local.palette)
    maps.fill(job, lambda place: file_of(local, place), _Reading(decoder, maps.write))
    return summary(job)


def file_of(local: LabelFiles, place: Place) -> tuple[str, str]:
    """Return the PNG of an image, and what it has to hold."""
    file = local.predictions[place.id]
    return file, local.digests[file]


def summary(job: Job[Told, Local]) -> Labelled:
    """Return how many pixels each class has."""
    counts = np.sum([record["labels"] for record in job.records()], axis=0)
    classes = job.work.local.classes.classes
    labels = dict(zip(classes, counts.tolist(), strict=True))
    return Labelled(images=len(job.work.items), labels=labels)
