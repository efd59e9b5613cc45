"""`infer[t]`: the label maps of a teacher (output unification; paper, section 3.1).

A teacher's scores are not comparable with another's; after the argmax only labels are left, and
no scale is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoding import Decoder, UInt8
from ensdistill.data.store import UNWRITTEN
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.figures import speed
from ensdistill.pipeline.node import Job, Work
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place, image_sizes
from ensdistill.stages.local import Local
from ensdistill.stages.work.items import Queue, for_each

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.stream import Want


@dataclass(frozen=True)
class _Reading:
    """Reads one prediction into the store: where to, its file and the file's digest."""

    decoder: Decoder
    write: LabelWriter

    def __call__(self, item: tuple[Place, str, str]) -> dict[str, Any]:
        place, file, sha256 = item
        return self.write(place, self.decoder.read(file, sha256, place.size))


def run_labels(job: Job) -> dict[str, Any]:
    """Read PNGs of labels, a teacher's or the ground truth, into a label store."""
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
    """Run a network over the images into a label store.

    Batches are cut from the whole list, so that what else is missing changes no label: logits
    differ in their last bits between batches of different sizes.
    """
    local: Local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    if not maps.missing:
        return _summary(job)
    to_target = np.full(256, UNWRITTEN, np.uint8)  # which no class is called
    to_target[IGNORE_INDEX] = IGNORE_INDEX
    for own, goal in local.to_target.items():
        to_target[own] = goal
    missing = {place.id: place for place in maps.missing}

    def write(image_id: str, labels: UInt8) -> None:
        found = to_target.take(labels)
        if (found == UNWRITTEN).any():
            raise DataError(
                f"{image_id}: the network's output is an id that is neither one of its "
                f"{len(local.to_target.keys() - {IGNORE_INDEX})} declared classes nor "
                f"{IGNORE_INDEX}"
            )
        maps.journal(missing[image_id], maps.write(missing[image_id], found))
        job.progress.advance()

    folder = job.inputs["network"].path if "network" in job.inputs else local.network
    see_all(job, open_network(job.work, folder), set(missing), "labels", write)
    return _summary(job)


def see_all(
    job: Job,
    network: FrozenNetwork | FactoryNetwork,
    missing: Set[str],
    want: Want,
    done: Callable[..., object],
) -> None:
    """Let a network see all batches in which an image is missing.

    Parameters
    ----------
    job : Job
        Its local's pictures are the images. What the network ran on is noted there.
    network : FrozenNetwork or FactoryNetwork
        The network; closed afterwards.
    missing : set of str
        Ids of the images that `done` is to be called for.
    want : str
        See `networks.stream.Want`.
    done : callable
        Gets an image's id and what is wanted of it, in a thread of its own, one after another.
    """
    from ensdistill.stages.networks.stream import Clock, Request

    local: Local = job.work.local
    size = local.batch_size
    pictures = [local.pictures[k : k + size] for k in range(0, len(local.pictures), size)]
    batches = [batch for batch in pictures if any(p.id in missing for p in batch)]
    requests = [
        [Request(str(p.image), local.digests[str(p.image)]) for p in batch] for batch in batches
    ]
    clock = Clock()
    begin = time.perf_counter()
    with (
        closing(network),
        Queue() as queue,
        closing(network.stream(requests, want, clock, speaker(job))) as found,
    ):
        for batch, of_batch in zip(batches, found, strict=True):
            with clock.spent("write"):
                for picture, arrays in zip(batch, of_batch, strict=True):
                    if picture.id in missing:
                        queue.put(done, picture.id, *arrays)
        job.ran_on.update(network.facts)
    seconds = time.perf_counter() - begin
    job.ran_on["time"] = clock.shares(seconds)
    if missing:
        fast = speed(seconds / len(missing), "images")
        job.progress.message(f"{job.node.id}: {fast} ({clock.shares(seconds)})")


def speaker(job: Job) -> Callable[[str], None]:
    """Return what reports a network's messages as those of a node."""
    return lambda text: job.progress.message(f"{job.node.id}: {text}")


def open_network(work: Work, folder: Path | None) -> FrozenNetwork | FactoryNetwork:
    """Return the network of a node, which lies in a folder or file unless code makes it."""
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import load_network

    local: Local = work.local
    if work.recipe["source"] == "factory":
        assert local.factory is not None
        local.require_weights()
        return FactoryNetwork(local.factory, work.recipe, local)
    return load_network(folder, work.recipe, local)


def _summary(job: Job) -> dict[str, Any]:
    """Return how many pixels each class has."""
    counts = np.sum([record["labels"] for record in job.records()], axis=0)
    classes = job.work.local.classes.classes
    return {
        "images": len(job.work.items),
        "labels": dict(zip(classes, counts.tolist(), strict=True)),
    }
