"""`policy`: which teacher each class is taken from (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.policy import Choice, Evidence, best_policy, certainty_policy
from ensdistill.stages.functional.scores import iou
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.certainty.plan import Certainty
from ensdistill.stages.nodes.evaluation.run import confusions
from ensdistill.stages.nodes.policy.plan import (
    Assigned,
    ByCertainty,
    ByReliability,
    Policy,
    Strategy,
)


def run(job: Job[Strategy, Local]) -> Policy:
    """Choose by the probes' certainty or the label model, or take what the file assigns."""
    recipe, classes = job.work.recipe, job.work.local.classes.classes
    if isinstance(recipe, Assigned):
        chosen: Sequence[Choice] = [Choice(recipe.assign[c], None, False) for c in classes]
    elif isinstance(recipe, ByReliability):
        scores = {t: np.array(values, float) for t, values in recipe.reliability.items()}
        return _by_score(recipe.strategy, scores, classes)
    else:
        assert isinstance(recipe, ByCertainty)
        chosen = by_certainty(recipe.evidence, classes, recipe.min_support)
    return _result(recipe.strategy, chosen, classes)


def oracle(job: Job[Strategy, Local]) -> Policy:
    """Choose by IoU on the split's ground truth: a yardstick that no method may use."""
    found = confusions(job).items()
    scores = {job.work.called[role]: iou(confmat) for role, confmat in found}
    return _by_score(job.work.recipe.strategy, scores, job.work.local.classes.classes)


def by_certainty(
    certainty: Mapping[str, Certainty], classes: Sequence[str], min_support: float
) -> Sequence[Choice]:
    """Choose a teacher for each of the classes by what is published of the probes' certainty."""
    evidence = {t: evidence_of(found, classes) for t, found in certainty.items()}
    return certainty_policy(evidence, len(classes), min_support)


def evidence_of(found: Certainty, classes: Sequence[str]) -> Evidence:
    """Return what was published of a probe, by class in the order of train ids."""
    return Evidence(
        certainty=np.array([found.certainty[c] for c in classes], np.float64),  # None is NaN
        support=np.array([found.support[c] for c in classes], np.int64),
        labelled=np.array([found.labelled[c] for c in classes], np.int64),
        has_class=np.array([found.has_class[c] for c in classes], bool),
    )


def _by_score(
    strategy: str, scores: Mapping[str, NDArray[np.float64]], classes: Sequence[str]
) -> Policy:
    """The policy of the best scores, which stand where other strategies have the certainty."""
    chosen = best_policy(scores, len(classes))
    found = _result(strategy, chosen, classes)
    best = {
        name: None if teacher is None else float(scores[teacher][c])
        for c, (name, teacher) in enumerate(found.teacher.items())
    }
    return found.model_copy(update={"certainty": best})


def _result(strategy: str, chosen: Sequence[Choice], classes: Sequence[str]) -> Policy:
    pairs = list(zip(classes, chosen, strict=True))
    return Policy(
        strategy=strategy,
        teacher={c: choice.teacher for c, choice in pairs},
        certainty={c: choice.certainty for c, choice in pairs},
        fallback=[c for c, choice in pairs if choice.fallback],
    )
