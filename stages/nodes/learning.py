"""What the plans of probe and student share: the settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Upstream
from ensdistill.stages.contract import Count, Result
from ensdistill.stages.experiment.networks import Built
from ensdistill.stages.experiment.schema import TRAIN, Student, Training
from ensdistill.stages.local import Factory, Learning, Running
from ensdistill.stages.networks.backbones import imagenet_weights
from ensdistill.stages.networks.files import Hashed, Source
from ensdistill.stages.networks.folders import WEIGHTS
from ensdistill.stages.networks.kinds import hashed
from ensdistill.stages.nodes.given import Given, settings_of
from ensdistill.stages.nodes.truth.plan import truth_local

# what does not change the numbers, or enters a recipe in another form
_SKIPPED = {
    *("preset", "network", "trust", "init", "head", "folds"),
    *("watch", "watch_every", "checkpoint"),
}
# what enters a recipe only where it is no default: one more of these leaves the keys of all others
_UNLESS_DEFAULT = {"pixel_weights", "settle", "train"}


class Watched(Result):
    """The mIoU in percent that a training saw, and which of the two its network has."""

    last: float | None
    best: float | None
    kept: str


class Trained(Result):
    """What a training publishes beside its network.

    `loss` is the mean of the last logged window, `init` which initial weights were loaded, where
    there were any; `watched` is there where a split was watched.
    """

    steps: Count
    loss: float | None
    init: dict[str, object] | None = None
    watched: Watched | None = None


def training_recipe(given: Given, settings: Training) -> dict[str, Json]:
    """Return the part of a probe's or student's settings that changes the numbers."""
    recipe = settings.model_dump(mode="json", exclude=_SKIPPED | _UNLESS_DEFAULT)
    recipe |= settings.model_dump(mode="json", include=_UNLESS_DEFAULT, exclude_defaults=True)
    recipe["preprocess"] = settings_of(settings.preprocess)
    network: Json = settings.network.architecture
    if settings.network.paths:
        network = _hashed(given, settings).recipe
    first, path = settings.begins_with, _init(given, settings)
    if first is not None:
        file = first.file if path is None else given.experiment.files.digest(path)
        how = first.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
        recipe["init"] = {"file": file, **how} if how else file
    if settings.head_names is not None:
        recipe["head"] = sorted(set(settings.head_names))
    recipe |= divisor_of(settings.network)
    return recipe | {"network": network, "classes": list(given.classes)}


def training_local(given: Given, settings: Training, upstream: Upstream) -> Learning:
    """Return what training on the training images needs."""
    exp, runtime = given.experiment, given.experiment.config.runtime
    truth, init = None, _init(given, settings)
    if isinstance(settings, Student) and settings.watch is not None:
        truth = truth_local(given, settings.watch, upstream)
    weights = dict(_hashed(given, settings).digests) if settings.network.paths else {}
    if init is not None:
        weights[str(init)] = exp.files.digest(init)
    board = runtime.tensorboard
    return Learning(
        **vars(given.local(TRAIN, upstream, None if truth is None else truth.digests)),
        network=None if settings.network.hf is None else _source(given, settings).path,
        factory=_factory(given, settings),
        weights=weights,
        init=init,
        checkpoint_every=runtime.checkpoint_every,
        keep_checkpoints=runtime.keep_checkpoints,
        tensorboard=None if board is None else exp.folder(board),
        watch=() if truth is None else truth.pictures,
        to_target={} if truth is None else truth.to_target,
        palette=truth is not None and truth.palette,
        features=_features(given, settings),
    )


def running(
    given: Given,
    settings: Training,
    split: str,
    upstream: Upstream,
    to_target: Mapping[int, int] | None = None,
) -> Running:
    """Return what running a network needs that was trained here."""
    factory = _factory(given, settings)
    return Running(
        **vars(given.local(split, upstream)),
        factory=factory,
        weights={} if factory is None else _hashed(given, settings).digests,
        to_target=to_target or {},
        features=_features(given, settings),
    )


def _features(given: Given, settings: Training) -> Path | None:
    """Return where a training keeps what its backbone makes of the training images."""
    return given.experiment.features if settings.train == "decoder" else None


def _factory(given: Given, settings: Training) -> Factory | None:
    """Return what makes a trained network, where its architecture is a user's code."""
    return None if settings.network.factory is None else _source(given, settings).factory


def divisor_of(network: Built) -> dict[str, Json]:
    """Return the divisor of a network's input sizes as it enters a recipe."""
    return {} if network.divisor == 1 else {"divisor": network.divisor}


def _source(given: Given, settings: Training) -> Source:
    return given.experiment.source(settings.network, f"{_section(settings)}.network")


def _hashed(given: Given, settings: Training) -> Hashed:
    return hashed(_source(given, settings), given.experiment.files.digest)


def _init(given: Given, settings: Training) -> Path | None:
    """Return the file of a training's first weights; None where there is none."""
    first, key = settings.begins_with, f"{_section(settings)}.init"
    if first is None or first.file == "none":
        return None
    if first.path is None:
        assert settings.network.backbone is not None
        try:
            return imagenet_weights(settings.network.backbone)
        except DataError as error:
            raise type(error)(f"{key}: {error}") from error
    path = given.experiment.folder(first.path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        what = f"folder with {WEIGHTS}" if path.is_dir() else "file"
        raise DataError(f"{key}: {path} is no {what}")
    return file


def _section(settings: Training) -> str:
    """Return the key of the experiment file that settings are from."""
    return "student" if isinstance(settings, Student) else "probe"
