"""The network that a training starts from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.graph import Local
from ensdistill.stages.networks.state_dicts import read_tensors, some_of
from ensdistill.stages.networks.students import (
    HfSegmentation,
    build_student,
    in_head,
    named_as_in,
    pad_to_multiple,
    plain_name,
)

_SMALL: Final = 64  # pixels a side


def initial_network(
    recipe: Mapping[str, Any], local: Local
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Build the network of a probe or a student as it is before the first step.

    With `init` its body is loaded from there and its head made anew, whatever weights a folder of
    transformers holds. What no gradient reaches (an auxiliary head, above all) is frozen.

    Returns
    -------
    nn.Module
        (N, 3, H, W) float32 to (N, C, h, w) logits.
    dict or None
        ``loaded``: number of tensors; ``head``: the tensors made anew; ``unexpected``: those of
        the file that the network lacks; ``frozen``: those that no gradient reaches. Of many names
        the first, and how many more. None where there is nothing to tell.

    Raises
    ------
    DataError
        If the weights are not those of the body, or the network does not return logits.
    """
    divisor = recipe.get("divisor", 1)
    classes = len(local.classes)
    network = build_student(
        recipe["network"],
        classes,
        local.network,
        recipe["seed"],
        local.factory,
        weights=local.init is None,
    )
    report: dict[str, Any] = {}
    if isinstance(network, HfSegmentation) and network.loaded is not None:
        report = {k: v if k == "loaded" else some_of(v) for k, v in network.loaded.items()}
    if local.init is not None:
        report = _load_body(network, local.init)
    frozen = _freeze_unreached(network, classes, recipe["crop"], divisor)
    if frozen and not isinstance(recipe["network"], str):  # of our own it is known
        report["frozen"] = some_of(frozen)
    return pad_to_multiple(network, divisor), report or None


def describe_initial(report: Mapping[str, Any], local: Local) -> str:
    """Return a report of `initial_network` as a sentence."""
    parts = []
    if "loaded" in report:
        parts.append(f"{report['loaded']} tensors of {local.init or local.network}")
    for key, text in (
        ("head", "made anew in the head"),
        ("unexpected", "not used of that file"),
        ("frozen", "not trained, as no gradient reaches them"),
    ):
        if report.get(key):
            parts.append(f"{text}: {', '.join(report[key])}")
    return "; ".join(parts)


def _load_body(network: nn.Module, file: Path) -> dict[str, Any]:
    try:
        found = read_tensors(file, trusted=False, advice="save a state_dict alone")
    except DataError as error:
        raise DataError(f"init: {error}") from error
    if isinstance(network, HfSegmentation):
        found = named_as_in(network, found)
    own = network.state_dict()
    body = {k: v for k, v in own.items() if not in_head(k)}
    loaded, problems = {}, []
    for name, tensor in body.items():
        other = found.get(plain_name(name))
        if other is not None and other.shape == tensor.shape:
            loaded[name] = other
        elif other is not None:
            problems.append(f"{name} is {list(other.shape)} there and {list(tensor.shape)} here")
        # a counter that only cumulative BatchNorm reads, absent from old checkpoints
        elif not name.endswith("num_batches_tracked"):
            problems.append(f"{name} {list(tensor.shape)} is not there")
    if problems:
        raise DataError(
            f"init: {file} lacks {len(problems)} of the {len(body)} tensors of the network's body "
            f"in their shapes: {'; '.join(some_of(problems))}; it holds {', '.join(some_of(found))}"
            ". Give the weights of this network, or no `init`"
        )
    network.load_state_dict(loaded, strict=False)
    known = {plain_name(name) for name in own}
    return {
        "loaded": len(loaded),
        "head": some_of(plain_name(name) for name in own if in_head(name)),
        "unexpected": some_of(name for name in found if name not in known),
    }


def _freeze_unreached(
    network: nn.Module, classes: int, crop: tuple[int, int], divisor: int
) -> list[str]:
    """Freeze the weights that no gradient reaches, and return their names.

    Tried on a copy; first with part of a crop, which costs little, and with a whole one where the
    network does not take that.

    Raises
    ------
    DataError
        If the network does not turn images into logits, or nothing of it can be trained.
    """
    trial = copy.deepcopy(network)
    for part in (max(1, min(crop) // _SMALL), 1):
        height, width = (side // part for side in crop)
        images = torch.zeros(2, 3, height + -height % divisor, width + -width % divisor)
        try:
            # some are used only in one of the two modes, or left out at random while training
            for mode in (False, True):
                _require_logits(trial.train(mode)(images), classes).sum().backward()  # type: ignore[no-untyped-call]
            break
        except DataError:
            raise
        except Exception as error:
            if part == 1:
                size = "x".join(map(str, images.shape))
                raise DataError(
                    f"network: it fails on images of {size} ({type(error).__name__}: {error}); if "
                    "their sizes have to be multiples of a number, say `divisor` on the network"
                ) from error
    reached = {name for name, p in trial.named_parameters() if p.grad is not None}
    frozen = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name not in reached:
            parameter.requires_grad_(False)
            frozen.append(plain_name(name))
    return frozen


def _require_logits(found: object, classes: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[0] != 2:
        what = f"{list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            f"network: it returned {what} for 2 images; expected a tensor of (N, C, h, w) logits, "
            "in training as in evaluation"
        )
    if found.shape[1] != classes:
        raise DataError(
            f"network: its logits have {found.shape[1]} channels, the experiment has {classes} "
            "classes; say so to the function, by its `kwargs`"
        )
    if not found.requires_grad:
        raise DataError("network: no gradient reaches its weights, so it cannot be trained")
    return found
