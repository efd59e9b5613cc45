"""`certainty[t]`: how sure the probe of teacher t is of each class (paper, section 3.2, Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import UInt8
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.certainty import CertaintySums, certainty_sums, mean_certainty
from ensdistill.stages.functional.numbers import or_none
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import Running
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.nodes.certainty.plan import Certainty, Reached
from ensdistill.stages.nodes.infer.run import batches_with, see_all
from ensdistill.stages.nodes.probe.plan import folds_of


def run(job: Job[Reached, Running]) -> Certainty:
    """Sum the probe's largest softmax value per predicted class over the training images.

    Per-image float64 sums are journalled and added in image-id order, so neither a kill nor the
    number of workers changes a bit.
    """
    local = job.work.local
    classes = local.classes.classes
    job.draft.adopt(job.spares)
    missing = set(job.todo())
    job.start("images")

    def sum_up(image_id: str, labels: UInt8, sure: NDArray[np.float32]) -> None:
        found = certainty_sums(labels, sure, len(classes))
        job.draft.record(image_id, sums=found.sums.tolist(), support=found.support.tolist())
        job.progress.advance()

    probes = [job.inputs[role].path for role in job.work.uses if role != "labels"]
    for path, fold in zip(probes, folds_of(local.pictures, len(probes)), strict=True):
        if asked := missing.intersection(picture.id for picture in fold):
            _ask(job, path, asked, sum_up)
    total = reduce(
        add,
        (
            CertaintySums(
                np.array(record["sums"], np.float64), np.array(record["support"], np.int64)
            )
            for record in job.records()
        ),
    )
    mean = map(or_none, mean_certainty(total))
    labelled = LabelMaps(job.inputs["labels"]).shares()
    return Certainty(
        certainty=dict(zip(classes, mean, strict=True)),
        support=dict(zip(classes, total.support.tolist(), strict=True)),
        labelled=dict(zip(classes, labelled.tolist(), strict=True)),
        has_class={c: c in job.work.recipe.reached for c in classes},
    )


def _ask(
    job: Job[Reached, Running], probe: Path, asked: Set[str], done: Callable[..., object]
) -> None:
    """Let a probe see images; where its backbone is frozen, by the features that are stored."""
    local = job.work.local
    if local.features is None:
        see_all(job, open_network(probe, {"source": "student"}, local), asked, "both", done)
        return
    from ensdistill.stages.networks.features import open_on_features

    pixels = Pixels(local.pixels)
    seen = replace(local, pictures=tuple(chain.from_iterable(batches_with(local, asked))))
    network = open_on_features(probe, seen, pixels, job.node.id, job.progress)
    job.start("images")
    see_all(job, network, asked, "both", done, pixels)
