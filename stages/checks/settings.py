"""Settings that an experiment file gives and that nothing reads, as it stands.

None is refused, since one file may serve several methods: a window may wait for `fusion: {method:
channel}`. But who sets one for the label model, which has none, should know. Light, as `status`
says it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.presets import PAPER
from ensdistill.stages.experiment.schema import TRAIN, Config, Training
from ensdistill.stages.fusions import method_called

ALL_FUSIONS: Final = "only by `evaluate --fusions all`"
NOTHING: Final = "by nothing"
NOTHING_YET: Final = "by nothing yet"


def unread(experiment: Experiment) -> dict[str, list[str]]:
    """Return the settings that the file gives and the chosen methods do not read.

    Returns
    -------
    dict
        Who reads them (`ALL_FUSIONS`, `NOTHING` or `NOTHING_YET`) to dotted keys, such as
        ``fusion.window``.
    """
    found: dict[str, list[str]] = {}
    for key, reader in (*_of_methods(experiment.config), *_of_splits(experiment)):
        found.setdefault(reader, []).append(key)
    return found


def sentences(found: Mapping[str, list[str]]) -> list[str]:
    """Return what `unread` returned as text, a line for each reader."""
    return [f"read {reader}: {', '.join(keys)}" for reader, keys in found.items()]


def _of_methods(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what belongs to fusions, policies and trainings."""
    by_policy = method_called(config.fusion.method).policy is not None
    given = config.fusion.model_fields_set
    windowed = "window" in (config.fusion.conflict, config.fusion.holes)
    for key in ("window", "conflict", "holes"):
        if key in given and key == "window" and not windowed:
            yield "fusion.window", NOTHING
        elif key in given and not by_policy:
            yield f"fusion.{key}", ALL_FUSIONS
    strategy = config.policy.strategy
    for key in sorted(config.policy.model_fields_set):
        if key == "min_support" and strategy != "certainty":
            yield "policy.min_support", NOTHING
        elif not by_policy:
            yield f"policy.{key}", ALL_FUSIONS
    if strategy == "certainty" and by_policy:
        yield from _of_training("probe", config.probe)
    else:
        reader = ALL_FUSIONS if strategy == "certainty" else NOTHING
        if "probe" in config.model_fields_set:
            yield "probe", reader
        for key in sorted({"jobs", "scheduler"} & config.runtime.model_fields_set):
            yield f"runtime.{key}", reader
    yield from _of_training("student", config.student)
    if config.student.watch is None and "watch_every" in config.student.model_fields_set:
        yield "student.watch_every", NOTHING


def _of_training(section: str, settings: Training) -> Iterator[tuple[str, str]]:
    by_preset = settings.preset == "paper" and settings.momentum == PAPER["momentum"].value
    given = "momentum" in settings.model_fields_set and not by_preset
    if settings.optimizer == "adamw" and given:
        yield f"{section}.momentum", NOTHING


def _of_splits(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield splits, and what teachers have for them, that no stage opens."""
    config, read = experiment.config, (TRAIN, *experiment.labelled)
    for key in sorted({"labels", "ids"} & config.target[TRAIN].model_fields_set):
        yield f"target.{TRAIN}.{key}", NOTHING
    for split in config.target:
        if split not in read:
            yield f"target.{split}", NOTHING
    for teacher in config.teachers:
        where = f"teachers[{teacher.name}]"
        for split in teacher.labels or {}:
            if split not in read:
                yield f"{where}.labels.{split}", NOTHING
        for key in ("confidence", "keep"):
            if getattr(teacher, key):
                yield f"{where}.{key}", NOTHING_YET
