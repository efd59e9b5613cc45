"""Experiments side by side: what stands in their results, and how far apart it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ensdistill.pipeline.config import Foreign, described, read_object
from ensdistill.pipeline.errors import ConfigError, NotReadyError, shown
from ensdistill.pipeline.opening import real_path
from ensdistill.stages.functional import MAX_FUSED
from ensdistill.stages.graph import load
from ensdistill.stages.nodes.evaluation.plan import evaluation_id
from ensdistill.stages.nodes.policy.plan import Policy, policy_id
from ensdistill.stages.reading import results
from ensdistill.stages.reading.tables import Mean, means, missing

_RESULTS: Final = "results.json"

Percent = Annotated[float, Field(ge=0, le=100)]
Kind = Literal["teacher", "fusion", "probe", "student"]
Names = Annotated[list[str], Field(min_length=1, max_length=MAX_FUSED)]


class _Method(Foreign):
    kind: Kind
    name: str
    miou: Percent | None
    miou_present: Percent | None
    miou_subsets: dict[str, Percent | None] = Field(default_factory=dict)
    iou: dict[str, Percent | None]


class _NotScored(Foreign):
    kind: Kind
    name: str
    why: str


class _Node(Foreign):
    stage: str
    seconds: Annotated[float, Field(ge=0, le=1e12)]
    computed: Annotated[int, Field(ge=0, le=10**12)]
    reused: Annotated[int, Field(ge=0, le=10**12)]


class _Results(Foreign):
    """What is read of a ``results.json``, all of which may be written by hand."""

    format: Annotated[int, Field(ge=1, le=results.FORMAT)]
    experiment: str
    split: str
    truth: str | None
    classes: Names
    classes_present: list[str]
    subsets: dict[str, Names]
    fusion: str
    methods: list[_Method]
    not_scored: list[_NotScored]
    policy: dict[str, str | None]
    nodes: list[_Node]

    @model_validator(mode="after")
    def _of_one_table(self) -> Self:
        for key, once in (
            ("classes", self.classes),
            ("methods", [f"{m.kind} {m.name}" for m in self.methods]),
        ):
            if twice := [name for name, count in Counter(once).items() if count > 1]:
                raise ValueError(f"{key} has {shown(twice[0])} twice; expected each once")
        named = [*self.classes, *(c for members in self.subsets.values() for c in members)]
        for k, method in enumerate(self.methods):
            for key, found, wanted in (
                ("iou", method.iou, named),
                ("miou_subsets", method.miou_subsets, self.subsets),
            ):
                for name in wanted:
                    if name not in found:
                        raise ValueError(f"the key {f'methods[{k}].{key}.{name}'!r} is missing")
        return self


@dataclass(frozen=True)
class Summary:
    """What is known of one experiment; its `source` is the file, or a ``results.json``.

    `classes` are in the order of the table, `teachers` sorted; `policy` is empty where the fusion
    needs none. `scores` are what ``results.json`` holds, None where nothing is evaluated; `cost` is
    stage to seconds, images computed and images reused.
    """

    source: Path
    classes: tuple[str, ...]
    teachers: tuple[str, ...]
    fusion: str
    policy: Mapping[str, str | None]
    scores: Mapping[str, Any] | None
    cost: Mapping[str, Mapping[str, float]]


def summary(source: Path, split: str | None) -> Summary:
    """Read what is known of an experiment file, a workspace or a ``results.json``.

    `split` is the labelled one; needed where an experiment declares several.

    Raises
    ------
    ConfigError
        If it is none of these, or the split cannot be told.
    NotReadyError
        If a workspace holds no results.
    """
    if source.is_dir():
        if not (source / _RESULTS).is_file():
            raise NotReadyError(
                f"{source}: holds no {_RESULTS}; run `ensdistill evaluate` on its experiment, or "
                "name the experiment file instead"
            )
        return _of_results(source / _RESULTS, split)
    if not source.exists():
        raise ConfigError(
            f"{source}: no such file; expected an experiment file, a workspace or a {_RESULTS}"
        )
    return _of_results(source, split) if source.suffix == ".json" else _of_file(source, split)


def compare(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return at least two experiments side by side, the first one as the measure.

    Returns
    -------
    dict
        ``experiments``: label, source, teachers, fusion and cost of each. ``teachers``: for every
        name that any of them has, which have it. ``policy``: class to the teacher in each.
        ``methods``: those that all were scored by, with IoU, the means (``miou``,
        ``miou_present`` and declared subsets), over how many ``classes`` each mean is, and
        ``delta``, the differences to the first, in points of a percent; ``fusion`` is each
        experiment's own. ``notes``: what was not scored or could not be checked, and which means
        are over different classes.

    Raises
    ------
    ConfigError
        If their classes differ, or they were scored on other ground truth.
    """
    first = summaries[0]
    for other in summaries[1:]:
        if set(other.classes) != set(first.classes):
            lacking = sorted(set(first.classes) ^ set(other.classes))
            raise ConfigError(
                f"{first.source} and {other.source} cannot be compared: {', '.join(lacking[:6])} "
                f"{'is' if len(lacking) == 1 else 'are'} among the classes of one alone"
            )
    labels = _labels([s.source for s in summaries])
    methods, notes = _methods(summaries, labels)
    names = sorted({t for s in summaries for t in s.teachers})
    return {
        "experiments": [
            {
                "label": label,
                "source": str(s.source),
                "split": None if s.scores is None else s.scores["split"],
                "teachers": list(s.teachers),
                "fusion": s.fusion,
                "cost": {stage: dict(cost) for stage, cost in s.cost.items()},
            }
            for label, s in zip(labels, summaries, strict=True)
        ],
        "classes": list(first.classes),
        "teachers": {name: [name in s.teachers for s in summaries] for name in names},
        "policy": {
            c: [s.policy.get(c) for s in summaries]
            for c in first.classes
            if any(s.policy for s in summaries)
        },
        "methods": methods,
        "notes": notes,
    }


def _methods(
    summaries: Sequence[Summary], labels: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the methods that all were scored by, and what a reader of them must know."""
    without = [str(s.source) for s in summaries if s.scores is None]
    if without:
        return [], [f"not evaluated: {', '.join(without)} (`ensdistill evaluate` does it)"]
    all_scores = [s.scores for s in summaries if s.scores is not None]
    first = summaries[0]
    notes = []
    for other, scores in zip(summaries[1:], all_scores[1:], strict=True):
        if scores["split"] != all_scores[0]["split"]:
            raise ConfigError(
                f"{first.source} was scored on {all_scores[0]['split']} and {other.source} on "
                f"{scores['split']}; evaluate both on one split (--split)"
            )
        if scores["truth"] is None or all_scores[0]["truth"] is None:
            notes.append(
                f"whether {first.source} and {other.source} were scored by the same ground truth "
                "is not known"
            )
        elif scores["truth"] != all_scores[0]["truth"]:
            raise ConfigError(
                f"{first.source} and {other.source} were scored on other images or by other ground "
                f"truth, though both call it {scores['split']}: their scores cannot be compared"
            )
    for summary, label, scores in zip(summaries, labels, all_scores, strict=True):
        if summary.source.suffix == ".json":
            notes.append(
                f"{label} holds what was evaluated last in its workspace, which was "
                f"{scores['experiment']}"
            )
        notes += [f"{label}: {text}" for text in missing(scores["not_scored"])]
    named = [_by_name(scores) for scores in all_scores]
    common = [key for key in named[0] if all(key in other for other in named[1:])]
    found = []
    for key in common:
        of_each = [
            means({**scores, "methods": [of[key]]})
            for scores, of in zip(all_scores, named, strict=True)
        ]
        rows = {
            name: [each[name] for each in of_each]
            for name in of_each[0]
            if all(name in each for each in of_each)
        }
        found.append(_side_by_side(key, [of[key] for of in named], rows, first.classes))
        notes += [_unlike(key, row, labels) for row in rows.values() if _differ(row)]
    return found, notes


def _by_name(scores: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the methods by what they are called here; ``fusion`` is the experiment's own."""
    found = {}
    for method in scores["methods"]:
        kind, name = method["kind"], method["name"]
        found[kind if kind == "student" else f"{kind} {name}"] = method
        if kind == "fusion" and name == scores["fusion"]:
            found["fusion"] = method
    order = ("fusion", "student")
    return {key: found[key] for key in sorted(found, key=lambda k: (k not in order, k))}


def _side_by_side(
    key: str,
    methods: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Sequence[Mean]],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return one method of all experiments; `rows` are its means, each of every experiment."""
    values = {name: [mean.values[0] for mean in row] for name, row in rows.items()}
    iou = {c: [m["iou"][c] for m in methods] for c in classes}
    return {
        "method": key,
        "names": [m["name"] for m in methods],
        **values,
        "classes": {name: [len(mean.classes[0]) for mean in row] for name, row in rows.items()},
        "iou": iou,
        "delta": {
            **{name: _deltas(v) for name, v in values.items()},
            "iou": {c: _deltas(v) for c, v in iou.items()},
        },
    }


def _differ(row: Sequence[Mean]) -> bool:
    return len({mean.classes[0] for mean in row}) > 1


def _unlike(key: str, row: Sequence[Mean], labels: Sequence[str]) -> str:
    """Say that a mean is over other classes in one experiment than in another."""
    sets = [mean.classes[0] for mean in row]
    counts = [f"{len(of)} in {label}" for of, label in zip(sets, labels, strict=True)]
    apart = sorted(frozenset.union(*sets) - frozenset.intersection(*sets))
    return (
        f"{key}: {row[0].label} is over different classes ({', '.join(counts)}; not in all: "
        f"{', '.join(apart)}), and so is its difference"
    )


def _deltas(values: Sequence[float | None]) -> list[float | None]:
    first = values[0]
    return [None if v is None or first is None else v - first for v in values]


def _of_file(file: Path, split: str | None) -> Summary:
    """Read what is published and fresh for an experiment file; no ground truth is opened."""
    experiment = load(file)
    labelled = experiment.labelled
    if split is not None and split not in labelled:
        raise ConfigError(
            f"{file}: labelled splits are {', '.join(labelled) or '(none)'}; {split!r} is none"
        )
    if split is None and len(labelled) > 1:
        raise ConfigError(f"{file}: labelled splits are {', '.join(labelled)}; say which (--split)")
    split = split or next(iter(labelled), None)
    decisions = results.evaluated(experiment, split)
    experiment.files.save()
    scores = None
    if split is not None and decisions[evaluation_id(split)].artifact is not None:
        scores = results.results(experiment, split, decisions)
    chosen = results.told(Policy, policy_id(), decisions)
    return Summary(
        source=file,
        classes=experiment.classes.classes,
        teachers=tuple(t.name for t in experiment.teachers),
        fusion=experiment.config.fusion.method,
        policy={} if chosen is None else chosen.teacher,
        scores=scores,
        cost=_cost(results.costs(decisions)),
    )


def _cost(nodes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what nodes took (see `results.costs`), by stage."""
    cost: dict[str, dict[str, float]] = {}
    for node in nodes:
        of = cost.setdefault(node["stage"], {"seconds": 0.0, "computed": 0, "reused": 0})
        for key in of:
            of[key] += node[key]
    return cost


def _of_results(file: Path, split: str | None) -> Summary:
    found = read_object(file, ConfigError)
    if lacking := [key for key in _Results.model_fields if key not in found]:
        raise ConfigError(
            f"{file}: is no {_RESULTS} of ensdistill: it has no {lacking[0]!r}; expected an "
            f"experiment file, a workspace or a {_RESULTS} (`ensdistill evaluate` writes one of an "
            "earlier version anew)"
        )
    found = described(file, found, _Results, ConfigError).model_dump()
    if split is not None and found["split"] != split:
        raise ConfigError(f"{file}: holds the scores of {found['split']}, not of {split}")
    return Summary(
        source=file,
        classes=tuple(found["classes"]),
        teachers=tuple(
            sorted(
                m["name"]
                for m in (*found["methods"], *found["not_scored"])
                if m["kind"] == "teacher"
            )
        ),
        fusion=found["fusion"],
        policy=found["policy"],
        scores=found,
        cost=_cost(found["nodes"]),
    )


def _labels(sources: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    parts = [real_path(s).parts for s in sources]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(p[-count:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{k + 1}: {s}" for k, s in enumerate(sources)]  # one of them twice
