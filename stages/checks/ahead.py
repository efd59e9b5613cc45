"""What a run is going to meet, tried before it begins: networks, trainings, and how long they take.

What is found wrong after hours of inference could have been found before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from ensdistill.data.decoding import image_size
from ensdistill.pipeline.errors import DataError, raise_all
from ensdistill.pipeline.figures import duration
from ensdistill.pipeline.node import NodeId, Progress
from ensdistill.pipeline.plan import Decision, State
from ensdistill.stages.checks.networks import try_networks
from ensdistill.stages.checks.teachers import on_some_images
from ensdistill.stages.checks.trainings import try_trainings
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Teacher, Training
from ensdistill.stages.graph import kept_ids
from ensdistill.stages.networks.frozen import pick_device
from ensdistill.stages.nodes.certainty import plan as certainty
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.infer.plan import infer_id, trained_id
from ensdistill.stages.nodes.probe.plan import probe_ids

_BACKWARD: Final = 3  # times as long as its forward pass a step of a training takes
_NAMED: Final = 4  # nodes whose time is said
_WORTH_SAYING: Final = 10.0  # seconds


def look_ahead(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    wanted: Collection[str],
    bar: Callable[[str], Progress],
    *,
    trainings: Collection[str] = (),
    apart: bool = True,
) -> dict[str, Any]:
    """Try the networks and trainings that nodes are going to need, as far as they are not fresh.

    The experiment's files have been checked (`files.check`).

    Parameters
    ----------
    wanted : collection of str
        Ids of the nodes that are to be made.
    bar : callable
        Returns the progress of a part of the work, by its name.
    trainings : collection of str
        ``probe`` and ``student``, where they are to be tried whether or not a node needs them.
    apart : bool
        Whether this process goes on to make nodes (see `try_trainings`).

    Returns
    -------
    dict
        ``trainings`` and ``trials``: see `try_trainings` and `try_networks`. ``together``: the
        teachers beside each other on a few images (see `teachers.compared`). ``seconds``: node id
        to about how long it takes on this machine, of what takes long.

    Raises
    ------
    DataError
        With all problems found.
    """
    config = experiment.config
    todo = {n: d for n, d in decisions.items() if n in wanted and d.state is not State.FRESH}
    needed = {d.node.stage for d in todo.values()} | {*trainings}
    sections = [section for section in ("probe", "student") if section in needed]
    networks = [
        t
        for t in experiment.teachers
        if t.network is not None and not todo.keys().isdisjoint(_passes(experiment, t))
    ]
    if sections or networks:
        pick_device(config.runtime.device)
    trials, problems = try_networks(experiment, decisions, networks, bar("check"))
    trained, more = try_trainings(experiment, sections, bar("check"), apart=apart)
    raise_all([*more, *problems], DataError)
    seen = {name: trial.pop("samples") for name, trial in trials.items()}
    together = on_some_images(experiment, decisions, seen)
    experiment.files.save()
    return {
        "trainings": trained,
        "trials": trials,
        "together": together,
        "seconds": _seconds(experiment, todo, trials, trained),
    }


def warnings_of(found: Mapping[str, Any]) -> list[str]:
    """Return all warnings of what `look_ahead` found, each with what it is about."""
    of_teachers = {n: list(t["warnings"]) for n, t in found["trials"].items()}
    for name, of in found["together"].items():
        of_teachers[name] = of_teachers.get(name, []) + of["warnings"]
    told = [f"teachers[{name}]: {text}" for name, of in of_teachers.items() for text in of]
    return told + [text for t in found["trainings"].values() for text in t["warnings"]]


def told(found: Mapping[str, Any], jobs: int) -> str | None:
    """Return what a run is going to take, in words; None where that is not worth saying.

    That is by what `look_ahead` found, with so many probes made at a time as `jobs` says.
    """
    seconds: Mapping[NodeId, float] = found["seconds"]
    most = "at most " if any(t["settles"] for t in found["trainings"].values()) else ""
    by_name: dict[str, float] = {}
    for node_id, value in seconds.items():
        name = {"probe": "probes", "certainty": "probes"}.get(node_id.stage, node_id)
        by_name[name] = by_name.get(name, 0.0) + value / (jobs if name == "probes" else 1)
    total = sum(by_name.values())
    if total < _WORTH_SAYING:
        return None
    longest = sorted(by_name, key=lambda name: -by_name[name])[:_NAMED]
    parts = [f"{name} {duration(by_name[name])}" for name in by_name if name in longest]
    more = f", and {len(by_name) - len(parts)} more" if len(by_name) > len(parts) else ""
    return (
        f"networks and trainings are going to take {most}about {duration(total)}, by one image and "
        f"one step on this machine: {', '.join(parts)}{more}"
    )


def _passes(experiment: Experiment, teacher: Teacher) -> list[NodeId]:
    """Return the nodes for which a teacher's network sees images."""
    splits = (TRAIN, *experiment.labelled)
    return [*(infer_id(teacher.name, split) for split in splits), *kept_ids(teacher)]


def _own_passes(experiment: Experiment) -> dict[NodeId, tuple[str, str]]:
    """Return the nodes for which a network that is trained here sees images: section and split."""
    given = Given(experiment)
    found: dict[NodeId, tuple[str, str]] = {}
    for split in experiment.labelled:
        for t in experiment.teachers:
            for probe in probe_ids(given, t.name):
                found[trained_id(probe, split)] = ("probe", split)
        found[trained_id(NodeId("student"), split)] = ("student", split)
    return found


def _seconds(
    experiment: Experiment,
    todo: Mapping[str, Decision],
    trials: Mapping[str, Mapping[str, Any]],
    trained: Mapping[str, Mapping[str, Any]],
) -> dict[NodeId, float]:
    """Return about how long nodes take, in the order in which they are made."""
    each = {
        node_id: trials[teacher.name]
        for teacher in experiment.teachers
        if teacher.name in trials
        for node_id in _passes(experiment, teacher)
    }
    asked = [d.node.id for d in todo.values() if d.node.stage == certainty.STAGE.name]
    own = _own_passes(experiment) | dict.fromkeys(asked, ("probe", TRAIN))
    # by folder: whoever comes first computes them, for all that share them
    features = {f["folder"]: f["seconds"] for t in trained.values() if (f := t["features"])}
    found: dict[NodeId, float] = {}
    for d in todo.values():
        node_id = d.node.id
        if d.node.stage in trained:
            of = trained[d.node.stage]
            found[node_id] = of["steps"] * of["seconds_per_step"]
            if of["features"] is not None:
                found[node_id] += features.pop(of["features"]["folder"], 0.0)
        elif node_id in each:
            trial = each[node_id]
            found[node_id] = trial["starting"] + (d.total - d.done) * trial["seconds"]
        elif node_id in own and own[node_id][0] in trained:
            section, split = own[node_id]
            pictures = experiment.pictures(split)
            missing = len(pictures) if d.work is None else d.total - d.done
            settings: Training = getattr(experiment.config, section)
            size = settings.input_size or image_size(pictures[0].image)
            crops = math.prod(size) / (math.prod(settings.crop or size) * settings.batch_size)
            found[node_id] = missing * crops * trained[section]["seconds_per_step"] / _BACKWARD
    return found
