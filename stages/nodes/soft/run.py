"""`soft[t]`: a teacher's softmax at its network's own stride."""

from __future__ import annotations

from ensdistill.data.decoded import Pixels
from ensdistill.data.splits import Picture
from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import Settings
from ensdistill.stages.labelmaps import LabelMapsDraft, image_sizes
from ensdistill.stages.local import Running
from ensdistill.stages.networks.factory import FactoryNetwork
from ensdistill.stages.networks.frozen import FrozenNetwork
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.networks.stream import Clock, Request
from ensdistill.stages.nodes.confidence.run import keep, mean_of
from ensdistill.stages.nodes.infer.run import speaker
from ensdistill.stages.nodes.soft.plan import SoftScores


def run(job: Job[Settings, Running]) -> SoftScores:
    """Store a network's softmax: an image's (C, h, w) as a map of C * h rows."""
    images = image_sizes(job)
    local, recipe = job.work.local, job.work.recipe
    network = open_network(local.network, recipe.to_json(), local)
    grids = {images[i]: tuple(r["size"]) for i, r in job.draft.records().items()}
    grids |= {images[i]: tuple(spare.record["size"]) for i, spare in job.spares.items()}
    unknown = {images[p.id]: p for p in job.work.local.pictures if images[p.id] not in grids}
    for size, picture in unknown.items():  # only the network knows its stride
        grids[size] = _look(job, network, picture)
    maps = LabelMapsDraft(job, {i: grids[size] for i, size in images.items()})
    keep(job, maps, "soft", network)
    classes = recipe.values["teacher_classes"]
    return SoftScores.model_validate(
        {"images": len(images), "mean": mean_of(job), "classes": classes}
    )


def _look(
    job: Job[Settings, Running], network: FrozenNetwork | FactoryNetwork, picture: Picture
) -> tuple[int, int]:
    """Return the shape of what a network says of a photograph."""
    local = job.work.local
    request = Request(str(picture.image), local.digests[str(picture.image)])
    [[(found,)]] = network.stream([[request]], "soft", Pixels(local.pixels), Clock(), speaker(job))
    rows, columns = found.shape
    return rows, columns
