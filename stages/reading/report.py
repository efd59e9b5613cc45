"""What a report shows: read off published artifacts, with pictures; nothing is made for it.

Ground truth comes in only as what `evaluate` published; its files are hashed at most, to know that
it was published for them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from ensdistill.data.decoded import Pixels
from ensdistill.pipeline.config import Foreign, described
from ensdistill.pipeline.errors import CorruptError, NotReadyError
from ensdistill.pipeline.manifest import REPAIR, SHORT, Artifact, Manifest
from ensdistill.pipeline.node import NodeId, Progress
from ensdistill.pipeline.opening import parse_json, read_regular
from ensdistill.pipeline.plan import Decision, State
from ensdistill.pipeline.verify import damaged_files
from ensdistill.stages.checks.teachers import published
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.functional.agreement import Agreement
from ensdistill.stages.fusions import method_called
from ensdistill.stages.graph import uncovered
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import Local, local_of
from ensdistill.stages.nodes.evaluation.plan import evaluation_id
from ensdistill.stages.nodes.fusion.plan import FusedMaps, fusion_id
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model.plan import Modelled, label_model_id
from ensdistill.stages.nodes.policy.plan import Policy, policy_id
from ensdistill.stages.nodes.truth.plan import truth_id
from ensdistill.stages.reading import results
from ensdistill.stages.reading.gallery import Gallery, Shot, agreements, owner_of, total, unanimity
from ensdistill.stages.reading.tables import overlap_note
from ensdistill.stages.training import METRICS

Bars = Callable[[str], Progress]

_POINTS: Final = 200  # of a curve
_UNLABELLED: Final = 0.05  # share of pixels without a fused label that is worth a word


def gather(experiment: Experiment, split: str | None, bars: Bars) -> dict[str, Any]:
    """Return all that a report shows, with the evaluation on a labelled split if it is published.

    Returns
    -------
    dict
        ``about`` (what was run), ``splits``, ``teachers``, ``classes``, ``nodes`` and ``cost``,
        ``warnings`` and ``messages``; without ground truth ``policy``, ``certainty``, ``seldom``
        (of each teacher the classes that its probe sees on too few pixels), ``reliability``,
        ``fused``, ``agreement``, ``gallery`` and ``curves``; with it ``scores`` and
        ``scored_gallery``. What has not been made is None or empty.

    Raises
    ------
    NotReadyError
        If nothing is published.
    CorruptError
        If what is to be shown is damaged.
    """
    opens = () if split is None else ("student", "truth")
    decisions = results.evaluated(experiment, split, opens=opens)
    made = {n: d.artifact for n, d in decisions.items() if d.artifact is not None}
    if not made:
        raise NotReadyError(
            f"{experiment.path}: nothing is published that a report could show; run `ensdistill "
            "run` first"
        )
    manifests = {n: a.manifest for n, a in made.items()}
    table = experiment.classes
    standing = results.standing(experiment, decisions)
    fused = results.told(FusedMaps, fusion_id(), decisions)
    scores = _scores(experiment, split, decisions)
    pairs, gallery = _looked_at(experiment, TRAIN, decisions, bars)
    _, scored_gallery = (
        (None, []) if scores is None else _looked_at(experiment, str(split), decisions, bars)
    )
    return {
        "about": _about(experiment, manifests),
        "splits": [_split(experiment, name, made) for name in experiment.config.target],
        "teachers": [_teacher(experiment, t, manifests) for t in experiment.teachers],
        "classes": [
            {"name": name, "colour": f"#{bytes(colour).hex()}"}
            for name, colour in zip(table.classes, table.colours, strict=True)
        ],
        "nodes": _nodes(decisions),
        "cost": _cost(manifests),
        "warnings": _warnings(experiment, decisions, standing, fused, scores),
        "messages": [
            {"node": n, "text": text.removeprefix(f"{n}: ")}
            for n, m in manifests.items()
            for text in m.provenance.get("messages", ())
        ],
        "policy": standing.policy,
        "certainty": {t: found.certainty for t, found in standing.certainty.items()},
        "seldom": _seldom(experiment, standing),
        "reliability": standing.reliability,
        "fused": None if fused is None else _with_shares(fused),
        "agreement": None if pairs is None else _agreement(experiment, pairs),
        "gallery": gallery,
        "curves": _curves(made),
        "scores": scores,
        "scored_gallery": scored_gallery,
    }


def _about(experiment: Experiment, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    last = max(manifests.values(), key=lambda m: m.finished)
    return {
        "name": f"{experiment.path.parent.name}/{experiment.path.name}",
        "file": experiment.path.read_text("utf-8"),
        "table": experiment.classes.name,
        "method": experiment.config.fusion.method,
        "version": version("ensdistill"),
        "finished": last.finished[:19].replace("T", " "),
        "made_with": {
            key: last.provenance[key]
            for key in ("platform", "python", "packages")
            if key in last.provenance
        },
        "device": next(
            (m.runtime["device"] for m in manifests.values() if m.runtime.get("device")), None
        ),
    }


def _split(experiment: Experiment, name: str, made: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return what is known of a split; its images are those of any teacher's label maps there."""
    pictures = experiment.pictures(name)
    seen = next(
        (made[n] for t in experiment.teachers if (n := infer_id(t.name, name)) in made), None
    )
    sizes = [] if seen is None else sorted({tuple(r["size"]) for r in seen.items})
    return {
        "name": name,
        "images": len(pictures),
        "labelled": pictures[0].labels is not None,
        "sizes": [list(size) for size in sizes],
        "digest": None if seen is None else seen.manifest.recipe["items"]["sha256"][:SHORT],
    }


def _teacher(
    experiment: Experiment, teacher: Teacher, manifests: Mapping[str, Manifest]
) -> dict[str, Any]:
    if teacher.network is None:
        kind, where = "label maps", (teacher.labels or {})[TRAIN]
    else:
        kind, where = teacher.network.kind, teacher.network.path
    found = manifests.get(infer_id(teacher.name))
    return {
        "name": teacher.name,
        "kind": kind,
        "where": where,
        "classes": teacher.classes or experiment.classes.name,
        "digest": None if found is None else found.content[:SHORT],
    }


def _nodes(decisions: Mapping[str, Decision]) -> list[dict[str, Any]]:
    """Return a row for each node that is made, or that the next `run` would make."""
    rows = []
    for node_id, d in decisions.items():
        found = None if d.artifact is None else d.artifact.manifest
        rows.append(
            {
                "id": node_id,
                "state": d.state.value,
                "reason": d.reason,
                "seconds": None if found is None else found.seconds,
                "items": d.total,
                "written": 0 if found is None else found.written,
                "reused": 0 if found is None else found.reused,
                "bytes": 0 if found is None else found.disk_bytes,
                "finished": "" if found is None else found.finished[:19].replace("T", " "),
            }
        )
    return rows


def _cost(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return what everything took, and what of it the last command found in the cache.

    What was taken image by image from other artifacts is counted at the rate of the images that
    were computed beside them, where there are any.
    """
    last = max(manifests.values(), key=lambda m: m.finished)
    begun = last.provenance.get("begun")
    now = {n: m for n, m in manifests.items() if begun is not None and _later(m.finished, begun)}
    cached = {n: m for n, m in manifests.items() if n not in now}
    reused = [m for m in manifests.values() if m.reused]
    return {
        "command": None if begun is None else last.provenance["command"],
        "seconds": sum(m.seconds for m in manifests.values()),
        "made": sorted(now),
        "made_seconds": sum(m.seconds for m in now.values()),
        "cached": sorted(cached),
        "cached_seconds": sum(m.seconds for m in cached.values()),
        "reused": sum(m.reused for m in reused),
        "reused_seconds": sum(m.seconds / m.written * m.reused for m in reused if m.written),
        "bytes": sum(m.disk_bytes for m in manifests.values()),
    }


def _later(one: str, other: str) -> bool:
    def seconds(time: str) -> float:
        return datetime.datetime.fromisoformat(time).timestamp()

    return bool(one) and seconds(one) >= seconds(other)


def _warnings(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    standing: results.Standing,
    fused: FusedMaps | None,
    scores: Mapping[str, Any] | None,
) -> list[str]:
    """Return all that a reader should know before believing the figures."""
    found = [
        f"{n} is {d.state.value}: {d.reason}"
        for n, d in decisions.items()
        if d.state is not State.FRESH and d.node.id.at is None
    ]
    student = experiment.config.student
    if student.watch is not None:
        selected = (
            "; its best checkpoint there is the student" if student.checkpoint == "best" else ""
        )
        found.append(
            f"the student was trained watching the ground truth of {student.watch}{selected}"
        )
    policy = standing.policy
    if policy is not None and method_called(experiment.config.fusion.method).policy is not None:
        found += [
            f"policy: no probe is sure of {c} on enough pixels; it goes to {policy.teacher[c]} "
            "(fallback)"
            for c in policy.fallback
        ]
        found += [f"policy: no teacher labels {c}" for c, t in policy.teacher.items() if t is None]
    model = results.told(Modelled, label_model_id(), decisions)
    if model is not None and not model.converged:
        found.append(f"the label model did not settle in {model.rounds} rounds")
    if standing.doubt is not None:
        found.append(f"label model: {standing.doubt}")
    if fused is not None:
        if absent := [c for c, pixels in fused.labels.items() if not pixels]:
            found.append(f"in no fused label: {', '.join(absent)}")
        if 1 - fused.coverage > _UNLABELLED:
            found.append(f"{1 - fused.coverage:.1%} of the pixels have no fused label")
    for name, of in published(experiment, decisions).items():
        found += [f"{name} {text}" for text in of["warnings"]]
    if scores is not None:
        if note := overlap_note(scores):
            found.append(f"{scores['split']}: {note}")
        if missing := uncovered(experiment, scores["split"]):
            found.append(f"without label maps on {scores['split']}: {', '.join(missing)}")
    return found


def _seldom(experiment: Experiment, standing: results.Standing) -> dict[str, list[str]]:
    """Return of each teacher the classes whose certainty has less support than a policy asks."""
    least = experiment.config.policy.min_support
    return {
        t: [c for c, pixels in of.support.items() if pixels < least * sum(of.support.values())]
        for t, of in standing.certainty.items()
    }


def _with_shares(fused: FusedMaps) -> dict[str, Any]:
    """Return the result of the fusion, with each class's share of the pixels."""
    pixels = sum(fused.labels.values()) / fused.coverage if fused.coverage else 0
    shares = {c: count / pixels if pixels else 0.0 for c, count in fused.labels.items()}
    return {**fused.to_json(), "shares": shares}


def _agreement(experiment: Experiment, found: Agreement) -> dict[str, Any]:
    """Return agreement as fractions, None where there is nothing to agree on.

    ``unanimous`` is of the pixels that any teacher labels, ``unlabelled`` of all, ``pairs`` of the
    pixels that either of the two labels, and ``classes`` of each class's fused pixels.
    """
    names = [t.name for t in experiment.teachers]
    settled = zip(found.settled.tolist(), found.fused.tolist(), strict=True)
    either = found.either
    return {
        "unanimous": unanimity(found),
        "unlabelled": 1 - found.labelled / found.pixels,
        "pairs": {
            one: {
                other: float(found.pairs[j, k] / either[j, k]) if either[j, k] else None
                for k, other in enumerate(names)
            }
            for j, one in enumerate(names)
        },
        "classes": {
            c: None if not of else part / of
            for c, (part, of) in zip(experiment.classes.classes, settled, strict=True)
        },
    }


def _looked_at(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision], bars: Bars
) -> tuple[Agreement | None, list[Shot]]:
    """Return how far the teachers agree on a split, and its gallery, if it is fused."""
    method = experiment.config.fusion.method
    fusion = fusion_id(method, split)
    fused = _maps(decisions, fusion)
    names = [t.name for t in experiment.teachers]
    teachers = {t: _maps(decisions, infer_id(t, split)) for t in names}
    present = {t: maps for t, maps in teachers.items() if maps is not None}
    if fused is None or len(present) < len(names):
        return None, []
    found = agreements(
        list(present.values()),
        fused,
        len(experiment.classes),
        workers=experiment.config.runtime.workers,
        progress=bars(f"agreement on {split}"),
    )
    made = {f"fused ({method})": fused}
    if split != TRAIN and (student := _maps(decisions, infer_id("student", split))) is not None:
        made["student"] = student
    chosen = None
    if method_called(method).policy is not None:
        chosen = results.told(Policy, policy_id(), decisions)
    work = decisions[fusion].work
    assert work is not None
    gallery = Gallery(
        pictures={p.id: p for p in experiment.pictures(split)},
        digests=local_of(work, Local).digests,
        pixels=Pixels(experiment.pixels),
        table=experiment.classes,
        teachers=present,
        made=made,
        fused=fused,
        owner=None if chosen is None else owner_of(chosen.teacher, names),
        truth=None if split == TRAIN else _maps(decisions, truth_id(split)),
    )
    return total(found), gallery.draw(found, bars(f"pictures of {split}"))


def _maps(decisions: Mapping[str, Decision], node_id: NodeId) -> LabelMaps | None:
    artifact = results.made(node_id, decisions)
    return None if artifact is None else LabelMaps(artifact)


def _curves(made: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Return loss and watched mIoU over the steps of each training.

    Raises
    ------
    CorruptError
        If a file of one is not what was written.
    """
    found = []
    for node_id, artifact in made.items():
        if artifact.manifest.stage in ("probe", "student"):
            if (damage := next(damaged_files(artifact), None)) is not None:
                raise CorruptError(f"{damage}; {REPAIR}")
            records = _metrics(artifact.path / METRICS)
            found.append(
                {
                    "node": node_id,
                    "loss": _thin([(r["step"], r["loss"]) for r in records if "loss" in r]),
                    "miou": _thin([(r["step"], r["miou"]) for r in records if "miou" in r]),
                }
            )
    return found


class _Metric(Foreign):
    step: Annotated[int, Field(ge=0)]
    loss: float | None = None
    miou: float | None = None


def _metrics(file: Path) -> list[dict[str, Any]]:
    """Return the records of a training's course, each of which is as it should be."""
    try:
        records = [parse_json(line) for line in read_regular(file).splitlines()]
    except (OSError, ValueError) as error:
        raise CorruptError(f"{file}: cannot be read ({error}); {REPAIR}") from error
    for record in records:
        described(file, record, _Metric, CorruptError)
    return records


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `_POINTS` of them and the last one."""
    step = -(-len(points) // _POINTS) or 1
    kept: Iterable[tuple[int, float]] = points[::step]
    return [*kept, *points[-1:]] if points and (len(points) - 1) % step else list(kept)


def _scores(
    experiment: Experiment, split: str | None, decisions: Mapping[str, Decision]
) -> dict[str, Any] | None:
    """Return ``results.json`` with confusion matrices, None without a published evaluation."""
    if split is None or decisions[evaluation_id(split)].artifact is None:
        return None
    return results.with_confmats(results.results(experiment, split, decisions), decisions)
