"""`label-model`: how far each teacher is to be trusted with each class, from labels alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Job, Told
from ensdistill.stages.contract import OfClasses
from ensdistill.stages.functional.labelmodel import LabelModel, Votes, count, fit, join, opinions
from ensdistill.stages.functional.numbers import or_none
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored, read_all
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.label_model.plan import Modelled, doubt_of
from ensdistill.stages.work.items import for_each

T = TypeVar("T")

IMAGES: Final = 512
"""The most images that the model is fitted to, spread evenly over the sorted ids."""

_DIGITS: Final = 6


def run(job: Job[OfClasses, Local]) -> Modelled:
    """Count the votes in the images of a split and fit the model to them.

    Raises
    ------
    DataError
        If no teacher labels any pixel.
    """
    n_classes = len(job.work.local.classes)
    maps = [LabelMaps(artifact) for artifact in job.inputs.values()]
    ids = spread(sorted(maps[0]), IMAGES)
    counting = partial(_count, [m.reader for m in maps], n_classes)
    every = count_votes(job, maps, ids, counting, "images")
    if (every.patterns == IGNORE_INDEX).all():
        raise DataError(f"{job.node.id}: no teacher labels any pixel of {len(ids)} images")
    model, met = fit(every, n_classes), opinions(every, n_classes)
    if model.fallback is not None:
        job.progress.message(f"{job.node.id}: {model.fallback}: the majority of the votes counts")
    if (doubt := doubt_of(len(maps), met)) is not None:
        job.progress.message(f"{job.node.id}: {doubt}")
    told = {"images": len(ids), "opinions": met, **_to_json(model)}
    return Modelled.model_validate(told)


def _count(readers: Sequence[LabelReader], n_classes: int, stored: Sequence[Stored]) -> Votes:
    return count(read_all(readers, stored), n_classes)


def count_votes(
    job: Job[Told, Local],
    maps: Sequence[LabelMaps],
    ids: Sequence[str],
    counting: Callable[[list[Stored]], Votes],
    unit: str,
) -> Votes:
    """Return the votes in images, each as `counting` has them of where its maps lie."""
    votes: dict[str, Votes] = {}
    job.progress.start(len(ids), 0, unit)
    for_each(
        [[m.find(image_id) for m in maps] for image_id in ids],
        counting,
        lambda stored, found: votes.update({stored[0].id: found}),
        workers=job.work.local.workers,
        progress=job.progress,
    )
    # in the order of the ids: the sums of EM depend on it in their last digits
    return join([votes[image_id] for image_id in ids])


def spread(given: list[T], most: int) -> list[T]:
    """Return at most so many of what was given, such as ids, spread evenly."""
    return [given[k * len(given) // most] for k in range(most)] if len(given) > most else given


def read_model(artifact: Artifact) -> LabelModel:
    """Return the model that an artifact published."""
    told = Modelled.told_by(artifact)
    return LabelModel(
        weights=np.array(told.weights),
        confusions=np.array(told.confusions),
        prior=np.array(told.prior),
        reliability=np.array(told.reliability, float),  # None is NaN
        rounds=told.rounds,
        converged=told.converged,
        fallback=told.fallback,
    )


def _to_json(model: LabelModel) -> dict[str, Any]:
    """The model as a result: by the teachers' order, and rounded, as nothing hangs on the rest."""
    reliability = [[or_none(round(v, _DIGITS)) for v in row] for row in model.reliability.tolist()]
    return {
        "weights": model.weights.round(_DIGITS).tolist(),
        "prior": model.prior.round(12).tolist(),
        # never 0, whose logarithm would forbid what was seen
        "confusions": np.maximum(model.confusions.round(9), 1e-9).tolist(),
        "reliability": reliability,
        "rounds": model.rounds,
        "converged": model.converged,
        "fallback": model.fallback,
    }
