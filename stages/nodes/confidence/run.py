"""`confidence[t]`: how sure a teacher is of each of its labels.

Scores are stored in steps of 1/250, so that 0 to 1 fit below what stands for an unwritten map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensdistill.data.decoding import STEPS, UInt8, read_confidence
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.contract import Settings
from ensdistill.stages.labelmaps import LabelMapsDraft, Made, image_sizes
from ensdistill.stages.local import LabelFiles, Local, Running
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.nodes.confidence.plan import Scores
from ensdistill.stages.nodes.infer.run import png_of, see_all

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.stream import Want


def from_files(job: Job[Settings, LabelFiles]) -> Scores:
    """Read how sure a teacher is from PNGs."""
    local, sizes = job.work.local, image_sizes(job)
    maps = LabelMapsDraft(job, sizes)
    maps.fill(lambda image_id: (*png_of(local, image_id), sizes[image_id]), _read)
    return Scores(images=len(job.work.items), mean=mean_of(job))


def by_network(job: Job[Settings, Running]) -> Scores:
    """Store a network's largest softmax value at every pixel."""
    local, maps = job.work.local, LabelMapsDraft(job, image_sizes(job))
    network = open_network(local.network, job.work.recipe.to_json(), local)
    keep(job, maps, "confidence", network)
    return Scores(images=len(job.work.items), mean=mean_of(job))


def keep(
    job: Job[Told, Local],
    maps: LabelMapsDraft,
    want: Want,
    network: FrozenNetwork | FactoryNetwork,
) -> None:
    """Store what is wanted of a network for every image."""
    job.start("images")

    def write(image_id: str, steps: UInt8) -> None:
        maps.put(image_id, *_with_mean(steps))
        job.progress.advance()

    see_all(job, network, set(maps.missing), want, write)


def mean_of(job: Job[Told, Local]) -> float:
    """Return the mean over images of what is stored, a fraction."""
    return float(np.mean([record["mean"] for record in job.records()]))


def _read(given: tuple[str, str, tuple[int, int]]) -> Made:
    file, sha256, size = given
    return _with_mean(read_confidence(file, size, sha256))


def _with_mean(steps: UInt8) -> Made:
    return steps, {"mean": float(steps.mean() / STEPS)}
