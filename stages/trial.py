"""One image through each teacher's network, before hours are spent on all of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.pipeline.errors import DataError, EnsdistillError, raise_all
from ensdistill.pipeline.fingerprint import digest
from ensdistill.pipeline.node import Progress, Work
from ensdistill.pipeline.plan import plan
from ensdistill.stages.experiment import Experiment, Teacher
from ensdistill.stages.graph import VERSIONS, Local, build, infer_id


def try_networks(experiment: Experiment, progress: Progress) -> dict[str, Any]:
    """Let each teacher's network see the first training image.

    What it said is remembered by what the network is made from and by the image's content.

    Returns
    -------
    dict
        Teacher's name to ``image``, ``labels`` (the share of the image that it calls each of its
        own classes, the largest first) and ``warnings``.

    Raises
    ------
    DataError
        With all problems found: a network cannot be loaded or run, or its output is not as declared
        or not a number.
    """
    teachers = [t for t in experiment.teachers if t.network is not None]
    if not teachers:
        return {}
    decisions = plan(build(experiment), experiment.workspace.scan())
    progress.start(len(teachers), 0, "networks")
    found, problems = {}, []
    for teacher in teachers:
        work = decisions[infer_id(teacher.name)].work
        assert work is not None
        try:
            found[teacher.name] = _try(experiment, teacher, work, progress)
        except EnsdistillError as error:
            problems.append(f"teachers[{teacher.name}]: {error}")
        progress.advance()
    experiment.files.save()
    raise_all(problems, DataError)
    return found


def _try(
    experiment: Experiment, teacher: Teacher, work: Work, progress: Progress
) -> dict[str, Any]:
    local: Local = work.local
    image = local.pictures[0].image
    kind = f"trial-{digest([VERSIONS['infer'], work.recipe])}"
    counts = experiment.files.recall(image, kind)
    if counts is None:
        counts = _labels(work, image, progress)
        experiment.files.learn(local.digests[str(image)], kind, counts)
    classes = experiment.teacher_table(teacher).classes
    wrong = [v for v in counts if int(v) not in {*range(len(classes)), IGNORE_INDEX}]
    if wrong:
        raise DataError(
            f"its output holds the id {wrong[0]} on {counts[wrong[0]]} pixels of {image}; expected "
            f"0..{len(classes) - 1}, and {IGNORE_INDEX}"
        )
    pixels = sum(counts.values())
    names = {v: "ignored" if int(v) == IGNORE_INDEX else classes[int(v)] for v in counts}
    largest = sorted(counts, key=lambda v: (-counts[v], int(v)))
    warnings = []
    if len(counts) == 1:
        warnings.append(
            f"it calls the whole of {image} {names[largest[0]]}: are its weights, its `preprocess` "
            "and its classes what was declared?"
        )
    return {
        "image": str(image),
        "labels": {names[v]: counts[v] / pixels for v in largest},
        "warnings": warnings,
    }


def _labels(work: Work, image: Path, progress: Progress) -> dict[str, int]:
    """Return how many pixels of an image a network gives to each of its own ids."""
    from ensdistill.stages.infer import open_network
    from ensdistill.stages.networks.stream import Clock, Request

    local: Local = work.local
    request = Request(str(image), local.digests[str(image)])
    with closing(open_network(work, local.network)) as network:
        [[(labels,)]] = network.stream([[request]], "labels", Clock(), progress.message)
    values, pixels = np.unique(labels, return_counts=True)
    return {str(v): int(n) for v, n in zip(values, pixels, strict=True)}
