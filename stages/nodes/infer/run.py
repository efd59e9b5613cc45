"""`infer[t]`: the label maps of a teacher (output unification; paper, section 3.1).

A teacher's scores are not comparable with another's; after the argmax only labels are left, and
no scale is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from contextlib import closing
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import Decoder, UInt8
from ensdistill.data.splits import Picture
from ensdistill.data.store import UNWRITTEN
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.figures import speed
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.contract import Labelled
from ensdistill.stages.labelmaps import LabelMapsDraft, Made, counted, image_sizes
from ensdistill.stages.local import LabelFiles, Local, Running
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.nodes.infer.plan import ByNetwork
from ensdistill.stages.work.items import Queue
from ensdistill.stages.work.pixels import reader

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.stream import Want


def from_files(job: Job[Told, LabelFiles]) -> Labelled:
    """Read PNGs of labels, a teacher's or the ground truth, into a label store."""
    local, sizes = job.work.local, image_sizes(job)
    decoder = Decoder(local.to_target, palette=local.palette)
    LabelMapsDraft(job, sizes).fill(
        lambda image_id: (*png_of(local, image_id), sizes[image_id]),
        partial(_read, decoder, len(local.classes)),
    )
    return _summary(job)


def _read(decoder: Decoder, n_classes: int, given: tuple[str, str, tuple[int, int]]) -> Made:
    labels, counts = decoder.count(*given)
    return labels, {"labels": counts[:n_classes].tolist()}


def png_of(local: LabelFiles, image_id: str) -> tuple[str, str]:
    """Return the PNG of an image, and what it has to hold."""
    file = local.predictions[image_id]
    return file, local.digests[file]


def _summary(job: Job[Told, Local]) -> Labelled:
    """Return how many pixels each class has."""
    counts = np.sum([record["labels"] for record in job.records()], axis=0)
    labels = dict(zip(job.work.local.classes.classes, counts.tolist(), strict=True))
    return Labelled(images=len(job.work.items), labels=labels)


def by_network(job: Job[ByNetwork, Running]) -> Labelled:
    """Run a network over the images into a label store.

    Batches are cut from the whole list, so that what else is missing changes no label: logits
    differ in their last bits between batches of different sizes.
    """
    local = job.work.local
    maps = LabelMapsDraft(job, image_sizes(job))
    job.start("images")
    if not maps.missing:
        return _summary(job)
    to_target = np.full(256, UNWRITTEN, np.uint8)  # which no class is called
    to_target[IGNORE_INDEX] = IGNORE_INDEX
    for own, goal in local.to_target.items():
        to_target[own] = goal

    def write(image_id: str, labels: UInt8) -> None:
        found = to_target.take(labels)
        if (found == UNWRITTEN).any():
            raise DataError(
                f"{image_id}: the network's output is an id that is neither one of its "
                f"{len(local.to_target.keys() - {IGNORE_INDEX})} declared classes nor "
                f"{IGNORE_INDEX}"
            )
        maps.put(image_id, found, counted(found, len(local.classes)))
        job.progress.advance()

    folder = job.inputs["network"].path if "network" in job.inputs else local.network
    network = open_network(folder, job.work.recipe.to_json(), local)
    see_all(job, network, set(maps.missing), "labels", write)
    return _summary(job)


def see_all(
    job: Job[Told, Local],
    network: FrozenNetwork | FactoryNetwork,
    missing: Set[str],
    want: Want,
    done: Callable[..., object],
    pixels: Pixels | None = None,
) -> None:
    """Let a network see all batches in which an image is missing, and close it.

    `done` gets the id of each such image and what is wanted of it (see `networks.stream.Want`), in
    a thread of its own, one after another. What the network ran on is noted in the job. `pixels`
    read the photographs; without them all that is read is kept.
    """
    from ensdistill.stages.networks.stream import Clock, Request

    local = job.work.local
    batches = batches_with(local, missing)
    requests = [
        [Request(str(p.image), local.digests[str(p.image)]) for p in batch] for batch in batches
    ]
    clock, say = Clock(), speaker(job)
    begin = time.perf_counter()
    with (
        closing(network),
        Queue() as queue,
        closing(
            network.stream(
                requests,
                want,
                pixels := pixels or reader(local.pixels, chain.from_iterable(requests), say),
                clock,
                say,
            )
        ) as found,
    ):
        for batch, of_batch in zip(batches, found, strict=True):
            with clock.spent("write"):
                for picture, arrays in zip(batch, of_batch, strict=True):
                    if picture.id in missing:
                        queue.put(done, picture.id, *arrays)
        job.ran_on.update(network.facts)
    for text in pixels.remarks:
        say(text)
    seconds = time.perf_counter() - begin
    shares = clock.shares(seconds)
    job.ran_on["time"] = dict(shares)
    if missing:
        fast = speed(seconds / len(missing), "images")
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        job.progress.message(f"{job.node.id}: {fast} ({told})")


def batches_with(local: Local, missing: Set[str]) -> list[tuple[Picture, ...]]:
    """Return the batches, of all images in their order, in which one is missing."""
    size = local.batch_size
    batches = [local.pictures[k : k + size] for k in range(0, len(local.pictures), size)]
    return [batch for batch in batches if any(p.id in missing for p in batch)]


def speaker(job: Job[Told, Local]) -> Callable[[str], None]:
    """Return what reports a network's messages as those of a node."""
    return lambda text: job.progress.message(f"{job.node.id}: {text}")
