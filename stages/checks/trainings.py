"""What a probe and the student are going to train, tried before there are labels for them."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import image_size
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import Command, Node, NodeId, Progress, Upstream, Work
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.workspace import Snapshot
from ensdistill.stages.contract import Settings
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Probe, Training
from ensdistill.stages.functional.augmentation import draw_look
from ensdistill.stages.graph import VERSIONS, build, build_all
from ensdistill.stages.local import Learning, local_of
from ensdistill.stages.networks.backbones import STRIDES
from ensdistill.stages.networks.features import (
    Encoder,
    FeatureCache,
    bytes_of,
    require_room,
)
from ensdistill.stages.networks.fitting import beginnings
from ensdistill.stages.networks.foreign import reason
from ensdistill.stages.networks.frozen import (
    LAYOUT_ADVICE,
    asks_for_layout,
    here,
    pick_device,
    set_threads,
)
from ensdistill.stages.networks.initial import describe_initial
from ensdistill.stages.networks.state_dicts import some_of
from ensdistill.stages.networks.students import plain_name
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.learning import training_local, training_recipe
from ensdistill.stages.training import loop
from ensdistill.stages.training.optimizers import trained
from ensdistill.stages.training.ranks import Ranks, require_parts, together
from ensdistill.stages.training.samples import (
    AnySample,
    FeatureSample,
    Sample,
    largest_window,
)
from ensdistill.stages.work.items import Silence, portable, processes
from ensdistill.stages.work.warned import Warned, issue, kept, taken

_KIND: Final = "training 2"  # in the memory of facts; change it when what is found out changes
_CROPS: Final = 2  # of which every batch has as many, whatever it is cut into


def sections(experiment: Experiment) -> list[str]:
    """Return the sections whose trainings are worth a try, in the order in which they train.

    The student's, and the probe's where this experiment trains probes, or gives them a network or
    first weights of their own.
    """
    config = experiment.config
    own = config.probe.network != Probe().network or config.probe.init is not None
    probes = own or any(node.stage == "probe" for node in build(experiment))
    return ["probe", "student"] if probes else ["student"]


def try_trainings(
    experiment: Experiment, sections: Sequence[str], progress: Progress, *, apart: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Build probe or student, let two crops of noise through two steps of it, and read it back.

    What was found is remembered by the recipe, which holds the digests of code and weights, and by
    what else decides it (see `here`).

    Parameters
    ----------
    sections : sequence of str
        ``probe``, ``student`` or both.
    apart : bool
        Whether code of the user's is tried in a process of its own: what it leaves behind (an
        operator that can be registered once, a number of threads) must not meet what comes after.

    Returns
    -------
    found : dict
        Each of `sections` to ``network``, ``weights`` and ``tensors`` (how many are
        trained), ``body`` and ``head`` (``lr``, ``tensors`` and ``names``), ``frozen`` (names of
        what is not trained), ``init`` (what was loaded, as a sentence), ``device``, ``steps``,
        ``settles`` (whether these are the most), ``folds``, ``seconds_per_step`` (of a whole batch,
        on this machine), ``features`` (None, or of a frozen backbone: ``folder``, and of those
        that are not stored there ``images``, ``bytes`` and ``seconds``) and ``warnings``.
    problems : list of str
        What is wrong, each with its key.
    """
    if not sections:
        return {}, []
    config = experiment.config
    device = pick_device(config.runtime.device)
    set_threads(config.runtime.threads)
    where = [*here(device), config.runtime.channels_last]
    progress.start(len(sections), 0, "trainings")
    found: dict[str, Any] = {}
    problems: list[str] = []
    for section in sections:
        try:
            recipe, local = planned(experiment, section)
            require_parts(section, recipe, together())
            key = digest([VERSIONS[section], recipe, where])
            facts = experiment.files.recalled(key, _KIND)
            if facts is None:
                call = _tried_apart if apart and local.factory is not None else tried
                facts = call(section, recipe, local, device)
                torch.cuda.empty_cache()  # teachers in other processes may need all of it
                experiment.files.learn(key, _KIND, facts)
            found[section] = _told(experiment, section, local, facts)
        except EnsdistillError as error:
            problems.append(str(error))
        progress.advance()
    experiment.files.save()
    return found, problems


def features_of(experiment: Experiment) -> list[dict[str, Json]]:
    """Return what the features are of that this experiment's trainings read, on any machine."""
    found, stages = [], {node.stage for node in build_all(experiment)}
    for section in ("probe", "student"):
        if section in stages and getattr(experiment.config, section).train == "decoder":
            recipe, local = planned(experiment, section)
            order = loop.Order(section, recipe, replace(local, device="cpu"), {}, Pixels())
            found.append(loop.Training(order, Silence(), None, Ranks()).encoder().about())
    return found


def planned(experiment: Experiment, section: str) -> tuple[dict[str, Json], Learning]:
    """Return recipe and needs of a training, without the labels that it learns from."""
    given, settings = Given(experiment), getattr(experiment.config, section)

    def work(upstream: Upstream) -> Work[Settings, Learning]:
        recipe = Settings(training_recipe(given, settings))
        return Work(recipe, local=training_local(given, settings, upstream))

    node = Node(NodeId(section), section, VERSIONS[section], [], work, "", Command("check"))
    planned = plan([node], Snapshot({}, {}, {}))[node.id].work
    assert planned is not None
    recipe, local = planned.recipe.to_json(), local_of(planned, Learning)
    if recipe["crop"] is None:
        size = settings.input_size or image_size(local.pictures[0].image)
        recipe["crop"] = list(largest_window([size]))
    return recipe, local


def _tried_apart(
    section: str, recipe: Mapping[str, Json], local: Learning, device: torch.device
) -> dict[str, Any]:
    """Return what `tried` does, in a process of its own."""
    with processes(1, torch.get_num_threads(), _begin, local.threads) as pool:
        try:
            facts, warned, error = pool.submit(_try_here, section, recipe, local, device).result()
        except BrokenProcessPool:
            raise DataError(
                f"{section}.network: the process that tried it was ended, by its own code or for "
                "want of memory"
            ) from None
    issue(warned)
    if error is not None:
        raise error
    return facts


def _begin(threads: int | None) -> None:
    os.dup2(2, 1)  # what its code prints must not get into our results
    set_threads(threads)


def _try_here(*arguments: Any) -> tuple[dict[str, Any], list[tuple[Warned, int]], Exception | None]:
    facts: dict[str, Any] = {}
    failed = None
    with kept() as warned:
        try:
            facts = tried(*arguments)
        except Exception as error:
            failed = portable(error)
    return facts, taken(warned), failed


def tried(
    section: str, recipe: Mapping[str, Json], local: Learning, device: torch.device
) -> dict[str, Any]:
    """Return what a training's network is, and what a step of it costs."""
    smaller = {**recipe, "batch_size": _CROPS, "accumulate": 1}
    order = loop.Order(section, smaller, local, {}, Pixels())
    benchmark = torch.backends.cudnn.benchmark
    try:
        with redirect_stdout(sys.stderr):  # what its code prints must not get into our results
            attempt = loop.Training(order, Silence(), None, Ranks())
            features = _of_encoder(attempt.encoder(), local, recipe) if local.features else None
            channels = None if features is None else features["channels"]
            seconds = attempt.rehearse(_noise(smaller, len(local.classes), channels))
    except EnsdistillError:
        raise
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{section}.crop: {_CROPS} crops of {_size(recipe)} are too many for the memory of "
            f"{device}; make them smaller"
        ) from error
    except Exception as error:
        advice = f". {LAYOUT_ADVICE}" if asks_for_layout(error) else ""
        raise DataError(
            f"{section}.network: it fails in a step on {_CROPS} crops of {_size(recipe)} on "
            f"{device} ({reason(error)}){advice}"
        ) from error
    finally:
        torch.backends.cudnn.benchmark = benchmark
    return {
        **_facts(attempt.network, recipe),
        "init": attempt.initialised,
        "features": features,
        "said": [
            f"{section}: {text}" for text in (attempt.read, attempt.doubt) if text is not None
        ],
        "device": str(device),
        "seconds_per_step": seconds * cast("int", recipe["batch_size"]) / _CROPS,
    }


def _of_encoder(encoder: Encoder, local: Learning, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a frozen backbone's features lie, and what those of an image cost."""
    assert local.features is not None
    size = recipe["input_size"] or image_size(local.pictures[0].image)
    photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    encoder.encode("noise", photograph)  # the first warms up
    begin = time.perf_counter()
    encoder.encode("noise", photograph)
    return {
        "folder": encoder.cache(local.features).folder.name,
        "channels": encoder.backbone.channels,
        "seconds": time.perf_counter() - begin,
    }


def _noise(
    recipe: Mapping[str, Any], classes: int, channels: tuple[int, int] | None = None
) -> AnySample:
    """Return crops of random pixels, or of features of so many channels, with all classes."""
    height, width = recipe["crop"]
    shape = (_CROPS, height, width)
    if channels is not None:
        shape = (_CROPS, height // STRIDES[0], width // STRIDES[0])
    random = torch.Generator().manual_seed(recipe["seed"])
    labels = (torch.arange(math.prod(shape)) % classes).to(torch.uint8).view(shape)
    weight = torch.empty((_CROPS, 0, 0), dtype=torch.uint8)
    if channels is not None:
        low, high = (
            torch.randn((_CROPS, height // s, width // s, n), generator=random).half()
            for s, n in zip(STRIDES, channels, strict=True)
        )
        return FeatureSample(low, high, labels, weight)
    looks = np.random.default_rng(recipe["seed"])
    look = [draw_look(looks, recipe["colour"], recipe["blur"]) for _ in range(_CROPS)]
    return Sample(
        torch.randint(0, 256, (*shape, 3), generator=random, dtype=torch.uint8),
        labels,
        weight,
        torch.from_numpy(np.stack(look)),
    )


def _facts(network: nn.Module, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much of a network is trained, and at which rates."""
    body, head = trained(network, recipe.get("head"))
    frozen = [plain_name(n) for n, p in network.named_parameters() if not p.requires_grad]
    weights = body | head
    modules = beginnings(weights)

    def group(parameters: Collection[str], factor: float) -> dict[str, Any]:
        """Return how many tensors are trained at a rate, and the modules that they are in."""
        among = [plain_name(name) for name in parameters]
        names = [m for m in modules if any(fnmatchcase(name, m) for name in among)]
        return {"lr": recipe["lr"] * factor, "tensors": len(parameters), "names": some_of(names)}

    own = {} if "head" not in recipe else {"names": some_of(recipe["head"])}
    return {
        "weights": sum(p.numel() for p in weights.values()),
        "tensors": len(weights),
        "body": group(body, 1),
        "head": group(head, recipe["head_lr_factor"]) | own,
        "frozen": some_of(frozen),
    }


def _told(
    experiment: Experiment, section: str, local: Learning, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was found of a training, with what is of this experiment."""
    settings: Training = getattr(experiment.config, section)
    network = settings.network
    loaded = {k: v for k, v in (facts["init"] or {}).items() if k != "frozen"}
    of_network = {k: v for k, v in facts.items() if k != "said"}
    return {
        "network": network.hf or network.factory or network.architecture,
        **of_network,
        "init": describe_initial(loaded, local) if loaded else None,
        "steps": settings.steps,
        "settles": settings.settle is not None,
        "folds": settings.folds if isinstance(settings, Probe) else 1,
        "features": facts["features"] and _missing(experiment, section, local, facts["features"]),
        "warnings": [*facts["said"], *_too_large(experiment, section, settings)],
    }


def _missing(
    experiment: Experiment, section: str, local: Learning, features: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the features cost that are not stored yet, and refuse what has no room."""
    assert local.features is not None
    cache, given = FeatureCache(local.features / features["folder"]), local.digests
    size = getattr(experiment.config, section).input_size
    paths = {given[str(p.image)]: p.image for p in local.pictures}
    missing = [path for sha256, path in paths.items() if not cache.file(sha256).exists()]
    need = sum(bytes_of(size or image_size(path), features["channels"]) for path in missing)
    if missing:
        require_room(cache.folder, len(missing), need, section)
    return {
        "folder": str(cache.folder),
        "images": len(missing),
        "bytes": need,
        "seconds": len(missing) * features["seconds"],
    }


def _too_large(experiment: Experiment, section: str, settings: Training) -> list[str]:
    """Return what there is to say of crops that no image fills, however far it is enlarged."""
    known = [experiment.files.recall(p.image, "photograph") for p in experiment.pictures(TRAIN)]
    sizes = {(fact["height"], fact["width"]) for fact in known if fact is not None}
    if settings.input_size is not None:
        sizes = {settings.input_size}
    if not sizes or settings.crop is None:
        return []
    if settings.train == "decoder":  # a crop may have all cells of an image, and no fewer
        grid = STRIDES[-1]
        sizes = {(h + -h % grid, w + -w % grid) for h, w in sizes}
    (height, width), most = settings.crop, settings.scale[1]

    def filled(size: tuple[int, int]) -> float:
        """Return the share of a crop that an image of a size fills at the largest scale."""
        h, w = (max(1, round(side * most)) for side in size)
        return min(height, h) * min(width, w) / (height * width)

    best = max(sorted(sizes), key=filled)
    if filled(best) == 1:
        return []
    enlarged = "" if most == 1 else f", {most:g} times that at the largest `scale`"
    return [
        f"{section}.crop: {height}x{width} pixels (height x width) are more than any image has: "
        f"{best[0]}x{best[1]} at most{enlarged}. At least {100 * (1 - filled(best)):.0f} % of each "
        f"crop is padding without a label; set `crop: [{min(height, best[0])}, "
        f"{min(width, best[1])}]`, or a larger `input_size`"
    ]


def _size(recipe: Mapping[str, Any]) -> str:
    return "x".join(map(str, recipe["crop"]))
