"""`policy`: which teacher each class is taken from (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.policy import Choice, Evidence, best_policy, certainty_policy
from ensdistill.stages.functional.scores import iou
from ensdistill.stages.nodes.evaluation.run import confusions


def run(job: Job) -> dict[str, Any]:
    """Choose by the probes' certainty or the label model, or take what the file assigns."""
    recipe: dict[str, Any] = job.work.recipe
    classes = job.work.local.classes.classes
    if recipe["strategy"] == "manual":
        chosen = [Choice(recipe["assign"][c], None, False) for c in classes]
        return _result("manual", chosen, classes)
    if recipe["strategy"] == "reliability":
        reliability = {t: np.array(values, float) for t, values in recipe["reliability"].items()}
        return _by_score("reliability", reliability, classes)
    evidence = {
        teacher: Evidence(
            certainty=np.array([_nan(found["certainty"][c]) for c in classes], np.float64),
            support=np.array([found["support"][c] for c in classes], np.int64),
            labelled=np.array([found["labelled"][c] for c in classes], np.int64),
            has_class=np.array([found["has_class"][c] for c in classes], bool),
        )
        for teacher, found in recipe["evidence"].items()
    }
    chosen = list(certainty_policy(evidence, len(classes), recipe["min_support"]))
    return _result("certainty", chosen, classes)


def run_oracle(job: Job) -> dict[str, Any]:
    """Choose by IoU on the split's ground truth: a yardstick that no method may use."""
    scores = {
        role.removeprefix("teacher:"): iou(confmat) for role, confmat in confusions(job).items()
    }
    return _by_score("oracle", scores, job.work.local.classes.classes)


def _by_score(
    strategy: str, scores: Mapping[str, NDArray[np.float64]], classes: Sequence[str]
) -> dict[str, Any]:
    """The policy of the best scores, which stand where other strategies have the certainty."""
    result = _result(strategy, best_policy(scores, len(classes)), classes)
    for c, name in enumerate(classes):
        teacher = result["teacher"][name]
        result["certainty"][name] = None if teacher is None else float(scores[teacher][c])
    return result


def _result(strategy: str, chosen: Sequence[Choice], classes: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(classes, chosen, strict=True))
    return {
        "strategy": strategy,
        "teacher": {c: choice.teacher for c, choice in pairs},
        "certainty": {c: choice.certainty for c, choice in pairs},
        "fallback": [c for c, choice in pairs if choice.fallback],
    }


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
