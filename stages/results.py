"""What is read off published artifacts: the policy, and ``results.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import NotReadyError
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.plan import Decision
from ensdistill.stages import doubts, tables
from ensdistill.stages.experiment import TRAIN, Experiment
from ensdistill.stages.graph import ablation_id, infer_id

_DIGITS: Final = 6
_ORDER: Final = ("teacher", "fusion", "probe", "student")


def policy(decisions: Mapping[str, Decision]) -> dict[str, Any] | None:
    """Return the result of the policy node, None where the experiment has none."""
    artifact = decisions["policy"].artifact if "policy" in decisions else None
    return None if artifact is None else artifact.manifest.result


def certainty(experiment: Experiment, decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """Return teacher to the result of its certainty node, where there is one."""
    found = {}
    for teacher in experiment.teachers:
        decision = decisions.get(f"certainty[{teacher.name}]")
        if decision is not None and decision.artifact is not None:
            found[teacher.name] = decision.artifact.manifest.result
    return found


def reliability(
    experiment: Experiment, decisions: Mapping[str, Decision]
) -> dict[str, dict[str, float | None]]:
    """Return teacher to the IoU per class that the label model expects of it.

    Empty where there is no model, or it cannot tell (see `doubt`).
    """
    artifact = decisions["label-model"].artifact if "label-model" in decisions else None
    if artifact is None or doubt(decisions) is not None:
        return {}
    rows = artifact.manifest.result["reliability"]
    return {
        t.name: dict(zip(experiment.classes.classes, row, strict=True))
        for t, row in zip(experiment.teachers, rows, strict=True)
    }


def doubt(decisions: Mapping[str, Decision]) -> str | None:
    """Return why the label model cannot tell which teacher errs; None where it can, or is none."""
    artifact = decisions["label-model"].artifact if "label-model" in decisions else None
    if artifact is None:
        return None
    found = artifact.manifest.result
    return doubts.of_model(len(found["weights"]), found.get("opinions"))  # older ones did not count


def results(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Return the content of ``results.json``.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    split : str
        A labelled split whose evaluation is published.
    decisions : mapping
        Node id to decision, of a plan made afterwards.
    """
    evaluation = _evaluation(split, decisions)
    made = {n: d.artifact.manifest for n, d in decisions.items() if d.artifact is not None}
    scored = sorted(evaluation["methods"], key=lambda m: (_ORDER.index(m["kind"]), m["name"]))
    methods = [{k: v for k, v in m.items() if k != "confmat"} for m in scored]
    fusions = {
        m["name"]: made[node_id]
        for m in methods
        if m["kind"] == "fusion" and (node_id := f"fusion[{m['name']}]@{split}") in made
    }
    chosen = policy(decisions) or {"teacher": {}, "fallback": []}
    sure = {t: r["certainty"] for t, r in certainty(experiment, decisions).items()}
    reliable = reliability(experiment, decisions)
    student = experiment.config.student
    shared = len(experiment.overlap(split))
    return {
        "split": split,
        "overlap": {TRAIN: shared} if shared else {},
        "classes": evaluation["classes"],
        "fusion": experiment.config.fusion.method,
        "methods": methods,
        "student_selected_on": student.watch if student.keep == "best" else None,
        "conflict": {name: m.result.get("conflict") for name, m in fusions.items()},
        "policy": chosen["teacher"],
        "policy_fallback": chosen["fallback"],
        "certainty": sure,
        "reliability": reliable,
        "doubt": doubt(decisions),
        "estimates": estimates(methods, {"certainty": sure, "reliability": reliable}),
        "seconds": {n: manifest.seconds for n, manifest in made.items()},
        "seconds_per_image": {name: _per_image(m) for name, m in fusions.items()},
    }


def estimates(
    methods: Sequence[Mapping[str, Any]],
    estimated: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return how well what was estimated of the teachers' classes goes with their IoU.

    Parameters
    ----------
    methods : sequence of mapping
        As in ``results.json``; their `iou` by class, in percent.
    estimated : mapping
        Kind of estimate to teacher to class to a fraction, None where there is none.

    Returns
    -------
    dict
        Teacher to kind to ``cosine`` similarity and ``rank`` correlation over the classes that
        have both (paper, Fig. 6), None where these are too few. Only what was estimated.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for method in (m for m in methods if m["kind"] == "teacher"):
        kinds = {k: of[method["name"]] for k, of in estimated.items() if method["name"] in of}
        if kinds:
            found[method["name"]] = {k: _alike(v, method["iou"]) for k, v in kinds.items()}
    return found


def _alike(
    estimate: Mapping[str, float | None], iou: Mapping[str, float | None]
) -> dict[str, float | None]:
    import numpy as np

    from ensdistill.stages.functional.scores import cosine_similarity, rank_correlation

    # as floats None is NaN; the percents of the IoU change neither number
    a, b = (np.array([values[c] for c in iou], float) for values in (estimate, iou))
    values = {"cosine": cosine_similarity(a, b), "rank": rank_correlation(a, b)}
    # rounded, as the last digits depend on the processor
    return {k: None if math.isnan(v) else round(v, _DIGITS) for k, v in values.items()}


def write_results(
    experiment: Experiment,
    split: str,
    decisions: Mapping[str, Decision],
    *,
    all_fusions: bool = False,
) -> dict[str, Any]:
    """Write ``results.json`` into the workspace and return its content.

    Only the first labelled split has that name; a further one writes ``results-<split>.json``,
    and the scores of all fusions stand in ``results-all.json`` or ``results-all-<split>.json``.
    """
    found = results(experiment, split, decisions)
    file = file_of(experiment, split, "results" + "-all" * all_fusions, "json")
    atomic.update_bytes(file, atomic.json_bytes(found, indent=1))
    return found


def confmats(split: str, decisions: Mapping[str, Decision]) -> dict[tuple[str, str], Any]:
    """Return the confusion matrix of every method of a split's evaluation.

    Returns
    -------
    dict
        Kind and name of the method to C lists of C + 1 pixel counts, ``[target][prediction]``; the
        last is of predictions of 255.
    """
    methods = _evaluation(split, decisions)["methods"]
    return {(m["kind"], m["name"]): m["confmat"] for m in methods}


def write_tables(
    found: Mapping[str, Any], matrices: Mapping[tuple[str, str], Any], files: Sequence[Path]
) -> None:
    """Write scores as tables, each in the format that the file's suffix names.

    Parameters
    ----------
    found : mapping
        The content of ``results.json``.
    matrices : mapping
        Of the same evaluation, see `confmats`; only JSON holds them.
    files : sequence of Path
        Their suffixes are among those of `tables.WRITERS`.
    """
    methods = [{**m, "confmat": matrices[m["kind"], m["name"]]} for m in found["methods"]]
    for file in files:
        text = tables.WRITERS[file.suffix]({**found, "methods": methods})
        atomic.update_bytes(file, text.encode())


def write_ablation(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Write ``ablation.json`` into the workspace, named as `write_results` does; return it."""
    artifact = decisions[ablation_id(split)].artifact
    if artifact is None:
        raise NotReadyError(f"{ablation_id(split)} is not there any more; run again")
    found = {"split": split, **artifact.manifest.result}
    file = file_of(experiment, split, "ablation", "json")
    atomic.update_bytes(file, atomic.json_bytes(found, indent=1))
    return found


def file_of(experiment: Experiment, split: str, stem: str, suffix: str) -> Path:
    """Return a file in the workspace, whose name has no split if it is the first labelled one."""
    name = stem if split == experiment.labelled[0] else f"{stem}-{split}"
    return experiment.workspace.root / f"{name}.{suffix}"


def _evaluation(split: str, decisions: Mapping[str, Decision]) -> dict[str, Any]:
    decision = decisions.get(f"evaluation@{split}")
    if decision is None or decision.artifact is None:
        raise NotReadyError(f"evaluation@{split} is not there any more; run again")
    return decision.artifact.manifest.result


def _per_image(made: Manifest) -> float | None:
    """The seconds an image took; None where not all were made at once."""
    return made.seconds / made.written if made.written == made.result["images"] else None


def not_covered(experiment: Experiment, split: str, decisions: Mapping[str, Decision]) -> list[str]:
    """Return the teachers without label maps on a split."""
    return [t.name for t in experiment.teachers if infer_id(t.name, split) not in decisions]
