"""`certainty-maps[t]`, `soft-maps[t]`: scores of a teacher, kept beside its label maps.

Scores are stored in steps of 1/250, so that 0 to 1 fit below what stands for an unwritten map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensdistill.data.decoding import STEPS, UInt8, read_certainty
from ensdistill.data.splits import Picture
from ensdistill.pipeline.node import Job
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place, image_sizes
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.infer.run import open_network, see_all, speaker
from ensdistill.stages.work.items import for_each

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.stream import Want

# of `LabelWriter`: there are no labels to count
_NO_LABELS: npt.NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Reading:
    """Reads one map into the store: where to, its file and the file's digest."""

    write: LabelWriter

    def __call__(self, item: tuple[Place, str, str]) -> dict[str, Any]:
        place, file, sha256 = item
        return _write(self.write, place, read_certainty(file, place.size, sha256))


def run_labels(job: Job) -> dict[str, Any]:
    """Read how sure a teacher is from PNGs."""
    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    files = [(place, local.predictions[place.id]) for place in maps.missing]
    for_each(
        [(place, file, local.digests[file]) for place, file in files],
        _Reading(maps.write),
        lambda item, record: maps.journal(item[0], record),
        workers=local.workers,
        progress=job.progress,
    )
    return _summary(job)


def run_certainty(job: Job) -> dict[str, Any]:
    """Store a network's largest softmax value at every pixel."""
    maps = LabelMapsDraft(job, image_sizes(job))
    return _run(job, maps, "certainty", open_network(job.work, job.work.local.network))


def run_soft(job: Job) -> dict[str, Any]:
    """Store a network's softmax at its own stride: an image's (C, h, w) as a map of C * h rows."""
    images = image_sizes(job)
    network = open_network(job.work, job.work.local.network)
    grids = {images[i]: tuple(r["size"]) for i, r in job.draft.records().items()}
    grids |= {images[i]: tuple(spare.record["size"]) for i, spare in job.spares.items()}
    unknown = {images[p.id]: p for p in job.work.local.pictures if images[p.id] not in grids}
    for size, picture in unknown.items():  # only the network knows its stride
        grids[size] = _look(job, network, picture)
    maps = LabelMapsDraft(job, {i: grids[size] for i, size in images.items()})
    classes = job.work.recipe["teacher_classes"]
    return _run(job, maps, "soft", network) | {"classes": classes}


def _look(job: Job, network: FrozenNetwork | FactoryNetwork, picture: Picture) -> tuple[int, int]:
    """Return the shape of what a network says of a photograph."""
    from ensdistill.stages.networks.stream import Clock, Request

    request = Request(str(picture.image), job.work.local.digests[str(picture.image)])
    [[(found,)]] = network.stream([[request]], "soft", Clock(), speaker(job))
    rows, columns = found.shape
    return rows, columns


def _run(
    job: Job, maps: LabelMapsDraft, want: Want, network: FrozenNetwork | FactoryNetwork
) -> dict[str, Any]:
    job.start("images")
    missing = {place.id: place for place in maps.missing}

    def write(image_id: str, steps: UInt8) -> None:
        maps.journal(missing[image_id], _write(maps.write, missing[image_id], steps))
        job.progress.advance()

    see_all(job, network, set(missing), want, write)
    return _summary(job)


def _write(write: LabelWriter, place: Place, steps: UInt8) -> dict[str, Any]:
    record = write(place, steps, _NO_LABELS)
    del record["labels"]
    return record | {"mean": float(steps.mean() / STEPS)}


def _summary(job: Job) -> dict[str, Any]:
    """Return the mean over images of what is stored, a fraction."""
    means = [record["mean"] for record in job.records()]
    return {"images": len(means), "mean": float(np.mean(means))}
