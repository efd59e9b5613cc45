"""`confidence[t]`: how sure a teacher is of each of its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensdistill.data.decoding import read_confidence
from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import Settings
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place, image_sizes
from ensdistill.stages.local import LabelFiles, Running
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.nodes.keeping import keep, mean_of, write_scores
from ensdistill.stages.nodes.reading import file_of
from ensdistill.stages.nodes.scores import Scores


@dataclass(frozen=True)
class _Reading:
    """Reads one map into the store: where to, its file and the file's digest."""

    write: LabelWriter

    def __call__(self, item: tuple[Place, tuple[str, str]]) -> dict[str, Any]:
        place, (file, sha256) = item
        return write_scores(self.write, place, read_confidence(file, place.size, sha256))


def from_files(job: Job[Settings, LabelFiles]) -> Scores:
    """Read how sure a teacher is from PNGs."""
    local, maps = job.work.local, LabelMapsDraft(job, image_sizes(job))
    maps.fill(job, lambda place: file_of(local, place), _Reading(maps.write))
    return Scores(images=len(job.work.items), mean=mean_of(job))


def by_network(job: Job[Settings, Running]) -> Scores:
    """Store a network's largest softmax value at every pixel."""
    local, maps = job.work.local, LabelMapsDraft(job, image_sizes(job))
    network = open_network(local.network, job.work.recipe.to_json(), local)
    keep(job, maps, "confidence", network)
    return Scores(images=len(job.work.items), mean=mean_of(job))
