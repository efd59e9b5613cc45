"""What is read off published artifacts: the policy, and ``results.json``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import NotReadyError
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import NodeId
from ensdistill.pipeline.plan import Decision, State, plan
from ensdistill.stages.checks import suspicion
from ensdistill.stages.contract import Named, Result
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.fusions import LABEL_MODEL, MAJORITY, method_called
from ensdistill.stages.graph import build, scored, uncovered
from ensdistill.stages.nodes.ablation.plan import ablation_id
from ensdistill.stages.nodes.certainty.plan import Certainty, certainty_id
from ensdistill.stages.nodes.evaluation.plan import Evaluated, Method, evaluation_id
from ensdistill.stages.nodes.evaluation.rivals import rivals
from ensdistill.stages.nodes.fusion.plan import FusedMaps, fusion_id
from ensdistill.stages.nodes.label_model.plan import Modelled, doubt_of, label_model_id, model_id
from ensdistill.stages.nodes.policy.plan import Policy, policy_id
from ensdistill.stages.nodes.truth.plan import truth_id
from ensdistill.stages.reading.outputs import RESULTS, write_fixed

ResultT = TypeVar("ResultT", bound=Result)

FORMAT: Final = 1  # of ``results.json`` and its like; later keys are read past
DIGITS: Final = 6
_ORDER: Final = ("teacher", "fusion", "probe", "student")
_NOT_MADE: Final = {
    "student": "not trained",
    "probe": "not trained",
    LABEL_MODEL.name: "label model not fitted",
    "policy": "policy not chosen",
}


class Standing(NamedTuple):
    """How the teachers stand at each class, as far as that is told without ground truth.

    By teacher: the `certainty` of its probe, where it has one, and the IoU of each class that the
    label model expects of it, `reliability`. That is empty where there is no model, or a `doubt`:
    why the model cannot tell which teacher errs.
    """

    policy: Policy | None
    certainty: dict[str, Certainty]
    reliability: dict[str, Named]
    doubt: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return self._asdict() | {
            "policy": self.policy and self.policy.to_json(),
            "certainty": {t: found.to_json() for t, found in self.certainty.items()},
        }


def standing(experiment: Experiment, decisions: Mapping[str, Decision]) -> Standing:
    """Return what is published of how the teachers stand."""
    classes, names = experiment.classes.classes, [t.name for t in experiment.teachers]
    found = {t: told(Certainty, certainty_id(t), decisions) for t in names}
    certainty = {t: of for t, of in found.items() if of is not None}
    reliability, doubt = {}, None
    model = told(Modelled, label_model_id(), decisions)
    if model is not None:
        doubt = doubt_of(len(model.weights), model.opinions)
        if doubt is None:
            rows = [dict(zip(classes, row, strict=True)) for row in model.reliability]
            reliability = dict(zip(names, rows, strict=True))
    return Standing(told(Policy, policy_id(), decisions), certainty, reliability, doubt)


def told(
    result: type[ResultT], node_id: NodeId, decisions: Mapping[str, Decision]
) -> ResultT | None:
    """Return what a node published; None where it is not there."""
    artifact = made(node_id, decisions)
    return None if artifact is None else result.told_by(artifact)


def made(node_id: NodeId, decisions: Mapping[str, Decision]) -> Artifact | None:
    """Return the artifact of a node; None where it is not there, or there is no such node."""
    return decisions[node_id].artifact if node_id in decisions else None


def evaluated(
    experiment: Experiment, split: str | None, *, opens: Collection[str] = ()
) -> dict[str, Decision]:
    """Plan with the nodes of all fusions if they are scored on `split`, else without.

    `opens` as for `graph.build`.
    """
    snapshot = experiment.workspace.scan()
    if split is not None:
        every = plan(build(experiment, opens=opens, all_fusions=True), snapshot)
        beside = every.get(evaluation_id(split, beside=True))
        if beside is not None and beside.artifact is not None:
            return every
    return plan(build(experiment, opens=opens), snapshot)


def results(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Return the content of ``results.json``, by a plan made after a split was evaluated.

    Returns
    -------
    dict
        Among others ``methods`` with, in percent, ``miou``: the mean of the IoU of every class
        that is in the ground truth or in the method's own prediction, which are ``miou_classes``
        many and may be others for another method; and ``miou_present``: the mean over
        ``classes_present``, those that are in the ground truth, the same for every method.
        ``beside``: what majority and the best teacher have of the latter (see `rivals.rivals`).
        ``truth``: a digest of the ground truth as it was decoded. ``nodes``: see `costs`.
    """
    classes = list(experiment.classes.classes)
    found = sorted(_methods(split, decisions), key=lambda m: (_ORDER.index(m.kind), m.name))
    methods = [_with_present(m) for m in found]
    there = {(m.kind, m.name) for m in found}
    missing = not_scored(experiment, split, decisions)
    names = [m.name for m in found if m.kind == "fusion"]
    fusions = {name: a for name in names if (a := made(fusion_id(name, split), decisions))}
    known = standing(experiment, decisions)
    sure = {t: of.certainty for t, of in known.certainty.items()}
    estimated = {"certainty": sure, "reliability": known.reliability}
    chosen = _choices(known, classes, experiment.config.policy.min_support)
    present = [c for c, row in zip(classes, found[0].confmat, strict=True) if sum(row)]
    truth = made(truth_id(split), decisions)
    student = experiment.config.student
    shared = len(experiment.overlap(split))
    return {
        "format": FORMAT,
        "experiment": experiment.path.name,
        "split": split,
        "truth": truth and truth.manifest.content,
        "overlap": {TRAIN: shared} if shared else {},
        "classes": classes,
        "classes_present": present,
        "subsets": {name: list(members) for name, members in experiment.classes.subsets.items()},
        "fusion": experiment.config.fusion.method,
        "methods": methods,
        "beside": _beside(experiment.config.fusion.method, methods),
        "not_scored": [m for m in missing if (m["kind"], m["name"]) not in there],
        "student_selected_on": student.watch if student.checkpoint == "best" else None,
        "conflict": {name: FusedMaps.told_by(a).conflict for name, a in fusions.items()},
        "policy": known.policy.teacher if known.policy else {},
        "policy_fallback": known.policy.fallback if known.policy else [],
        "certainty": sure,
        "reliability": known.reliability,
        "doubt": known.doubt,
        "label_model": _rule(experiment, split, decisions),
        "suspicions": _of_truth(split, found, classes),
        "estimates": estimates(methods, estimated),
        "between_teachers": between_teachers(methods, present, estimated, chosen),
        "nodes": costs(decisions),
        "seconds_per_image": {name: _per_image(a) for name, a in fusions.items()},
    }


def costs(decisions: Mapping[str, Decision]) -> list[dict[str, Any]]:
    """Return what each node took that is there: seconds, and items computed and reused.

    A node is its ``stage``, ``of`` what it is (such as a teacher) and its ``split``; None for one
    of its stage, and for the images that are trained on.
    """
    return [
        {
            "stage": node_id.stage,
            "of": node_id.of,
            "split": node_id.at,
            "seconds": made.seconds,
            "computed": made.written,
            "reused": made.reused,
        }
        for node_id, made in (
            (d.node.id, d.artifact.manifest) for d in decisions.values() if d.artifact is not None
        )
    ]


def _rule(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any] | None:
    """Return what the label model of a split is fitted to, and why it is none; None without one."""
    model = told(Modelled, model_id(experiment, split), decisions)
    if model is None:
        return None
    rule = MAJORITY if model.fallback else LABEL_MODEL
    fit = experiment.config.label_model.fit
    return {"fit": fit, "rule": rule.name, "because": model.fallback}


def _beside(own: str, methods: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what stands beside the experiment's own fusion, None where that is not scored."""
    fusions, teachers = (
        {m["name"]: m["miou_present"] for m in methods if m["kind"] == kind}
        for kind in ("fusion", "teacher")
    )
    return rivals(own, "miou_present", fusions, teachers)


def _with_present(method: Method) -> dict[str, Any]:
    """Return a method as it stands in ``results.json``, of which an evaluation holds most."""
    import numpy as np

    from ensdistill.stages.functional.numbers import or_none
    from ensdistill.stages.functional.scores import iou, mean_iou, present

    confmat = np.array(method.confmat, np.int64)
    mean = mean_iou(iou(confmat), np.flatnonzero(present(confmat)).tolist())
    means = {
        "miou": method.miou,
        "miou_classes": sum(v is not None for v in method.iou.values()),
        "miou_present": or_none(100 * mean),
    }
    kept = method.model_dump(exclude={"confmat"}, exclude_unset=True)
    return {"name": method.name, "kind": method.kind, **means} | kept


def _of_truth(split: str, methods: Sequence[Method], classes: Sequence[str]) -> list[str]:
    """Return what is suspicious about the ground truth, by what the teachers say."""
    import numpy as np

    from ensdistill.stages.functional.agreement import kappa, turned

    confmats = [np.array(m.confmat, np.int64) for m in methods if m.kind == "teacher"]
    joints = [confmat[:, : len(classes)] for confmat in confmats]
    if not joints:
        return []
    names = {classes[c]: classes[d] for c, d in turned(np.sum(joints, axis=0)).items()}
    return suspicion.of_truth(split, [kappa(joint) for joint in joints], names)


def not_scored(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> list[dict[str, str]]:
    """Return what an evaluation does not score, or would not now, because it is not there.

    Of each ``kind`` and ``name`` as in ``results.json``, and ``why``. In a plan with all fusions
    these are looked at too.
    """
    lacking = uncovered(experiment, split)
    found = [_left_out("teacher", t, f"no label maps of {split} are declared") for t in lacking]
    method = experiment.config.fusion.method
    if lacking and not method_called(method).baseline:
        why = f"needs the label maps of all teachers on {split}"
        found.append(_left_out("fusion", method, why))
    for beside in (False, True):
        if evaluation_id(split, beside=beside) not in decisions:
            continue
        for one in scored(experiment, split, beside=beside):
            needed = None if one.needs is None else decisions[one.needs]
            if needed is None or State.FRESH in (needed.state, decisions[one.maps].state):
                continue
            found.append(_left_out(one.kind, one.name, _why_not(needed, decisions)))
    return found


def _left_out(kind: str, name: str, why: str) -> dict[str, str]:
    return {"kind": kind, "name": name, "why": why}


def _why_not(d: Decision, decisions: Mapping[str, Decision]) -> str:
    """Say that a node is not there as the experiment file wants it, and what makes it."""
    text = _NOT_MADE[d.node.stage]
    if d.state is State.CORRUPT:
        return f"{text} any more ({d.reason})"
    ready = all(decisions[n].state is State.FRESH for n in d.node.needs)
    command = f"`ensdistill {d.node.command}{'' if ready else ' --upstream'}`"
    if d.state is State.MISSING:
        return f"{text} ({command})"
    return f"{text} as the file says ({d.reason}; {command})"


def estimates(
    methods: Sequence[Mapping[str, Any]],
    estimated: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return how well what was estimated of the teachers' classes goes with their IoU.

    Parameters
    ----------
    methods : sequence of mapping
        As in ``results.json``.
    estimated : mapping
        Kind of estimate to teacher to class to a fraction, None where there is none.

    Returns
    -------
    dict
        Teacher to kind to ``cosine`` similarity and ``rank`` correlation over the classes that
        have both (paper, Fig. 6), None where these are too few; and how many ``classes`` these are,
        which may be others for another teacher. Only what was estimated.
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

    from ensdistill.stages.functional.numbers import or_none
    from ensdistill.stages.functional.scores import cosine_similarity, rank_correlation

    # as floats None is NaN; the percents of the IoU change neither number
    a, b = (np.array([values[c] for c in iou], float) for values in (estimate, iou))
    values = {"cosine": cosine_similarity(a, b), "rank": rank_correlation(a, b)}
    # rounded, as the last digits depend on the processor
    alike = {k: or_none(round(v, DIGITS)) for k, v in values.items()}
    return {**alike, "classes": int(np.isfinite(a + b).sum())}


def between_teachers(
    methods: Sequence[Mapping[str, Any]],
    present: Sequence[str],
    estimated: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    chosen: Mapping[str, Mapping[str, str | None]],
) -> dict[str, dict[str, float | None]]:
    """Return how far what was estimated of the teachers tells which of them is better at a class.

    Parameters
    ----------
    methods, estimated
        As of `estimates`.
    present : sequence of str
        The classes in the ground truth: at any other no teacher is better.
    chosen : mapping
        Kind of estimate to class to the teacher that a policy by it takes; None for nobody.

    Returns
    -------
    dict
        Kind to the fields of `functional.between.Between`, with ``lost`` in points; None for NaN.
        Only of two teachers and more that were estimated.
    """
    import numpy as np

    from ensdistill.stages.functional.between import between
    from ensdistill.stages.functional.numbers import or_none

    scored = {m["name"]: m["iou"] for m in methods if m["kind"] == "teacher"}
    found: dict[str, dict[str, float | None]] = {}
    for kind, values in estimated.items():
        if len(values) < 2:
            continue
        names = sorted({*scored, *values})
        sure, iou = (
            np.array([[of.get(t, {}).get(c) for c in present] for t in names], float)
            for of in (values, scored)
        )
        rows = [None if (t := chosen[kind][c]) is None else names.index(t) for c in present]
        told = between(sure, iou, rows)
        found[kind] = {
            "rank": or_none(round(told.rank, DIGITS)),
            "ranked": told.ranked,
            "best": told.best,
            "lost": or_none(round(told.lost, DIGITS)),
            "judged": told.judged,
        }
    return found


def _choices(
    known: Standing, classes: Sequence[str], min_support: float
) -> dict[str, dict[str, str | None]]:
    """Return which teachers a policy by certainty, and one by reliability, takes the classes from.

    As they are chosen for a policy, of which one alone is the experiment's own.
    """
    import numpy as np

    from ensdistill.stages.functional.policy import best_policy
    from ensdistill.stages.nodes.policy.run import by_certainty

    expected = {t: np.array([of[c] for c in classes], float) for t, of in known.reliability.items()}
    policies = {
        "certainty": by_certainty(known.certainty, classes, min_support),
        "reliability": best_policy(expected, len(classes)),
    }
    return {
        kind: {c: choice.teacher for c, choice in zip(classes, of, strict=True)}
        for kind, of in policies.items()
    }


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
    return _written(found, experiment, "results" + "-all" * all_fusions)


def with_confmats(found: Mapping[str, Any], decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """Return ``results.json``'s content with the confusion matrix, ``confmat``, of every method.

    C lists of C + 1 pixel counts, ``[target][prediction]``; the last is of predictions of 255.
    """
    of = {(m.kind, m.name): m.confmat for m in _methods(found["split"], decisions)}
    methods = [{**m, "confmat": of[m["kind"], m["name"]]} for m in found["methods"]]
    return {**found, "methods": methods}


def write_ablation(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Write ``ablation.json`` into the workspace, named as `write_results` does; return it."""
    artifact = decisions[ablation_id(split)].artifact
    if artifact is None:
        raise NotReadyError(f"{ablation_id(split)} is not there any more; run again")

    from ensdistill.stages.nodes.ablation.run import with_present

    classes = experiment.classes.classes
    shown = with_present(artifact.manifest.result, artifact.items, classes)
    return _written({"format": FORMAT, "split": split, **shown}, experiment, "ablation")


def _written(found: dict[str, Any], experiment: Experiment, stem: str) -> dict[str, Any]:
    """Return what was found, after writing it into the workspace."""
    file = file_of(experiment, found["split"], stem, "json")
    write_fixed(file, atomic.json_bytes(found, indent=1), RESULTS)
    return found


def file_of(experiment: Experiment, split: str, stem: str, suffix: str) -> Path:
    """Return a file in the workspace, whose name has no split if it is the first labelled one."""
    name = stem if split == experiment.labelled[0] else f"{stem}-{split}"
    return experiment.workspace.root / f"{name}.{suffix}"


def _methods(split: str, decisions: Mapping[str, Decision]) -> list[Method]:
    """Return all that the published evaluations of a split scored; that of its own must be one."""
    own, beside = (evaluation_id(split, beside=beside) for beside in (False, True))
    found = [told(Evaluated, node_id, decisions) for node_id in (own, beside)]
    if found[0] is None:
        raise NotReadyError(f"{own} is not there any more; run again")
    return [method for evaluated in found if evaluated is not None for method in evaluated.methods]


def _per_image(fusion: Artifact) -> float | None:
    """The seconds an image took; None where not all were made at once."""
    made = fusion.manifest
    images = FusedMaps.told_by(fusion).images
    return made.seconds / made.written if made.written == images else None
