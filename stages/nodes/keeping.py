"""Scores of a teacher that are kept beside its label maps.

They are stored in steps of 1/250, so that 0 to 1 fit below what stands for an unwritten map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensdistill.data.decoding import STEPS, UInt8
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.labelmaps import LabelMapsDraft, LabelWriter, Place
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.infer.run import see_all

if TYPE_CHECKING:
    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.stream import Want

# of `LabelWriter`: there are no labels to count
_NO_LABELS: npt.NDArray[np.int64] = np.zeros(0, np.int64)


def keep(
    job: Job[Told, Local],
    maps: LabelMapsDraft,
    want: Want,
    network: FrozenNetwork | FactoryNetwork,
) -> None:
    """Store what is wanted of a network for every image."""
    job.start("images")
    missing = {place.id: place for place in maps.missing}

    def write(image_id: str, steps: UInt8) -> None:
        maps.journal(missing[image_id], write_scores(maps.write, missing[image_id], steps))
        job.progress.advance()

    see_all(job, network, set(missing), want, write)


def write_scores(write: LabelWriter, place: Place, steps: UInt8) -> dict[str, Any]:
    """Store a map of scores, and return what its record says of it."""
    record = write(place, steps, _NO_LABELS)
    del record["labels"]
    return record | {"mean": float(steps.mean() / STEPS)}


def mean_of(job: Job[Told, Local]) -> float:
    """Return the mean over images of what is stored, a fraction."""
    return float(np.mean([record["mean"] for record in job.records()]))
