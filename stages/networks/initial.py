"""The network that a training starts from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.backbones import BACKBONES, Name, backbone_of
from ensdistill.stages.networks.fitting import Way, advice, beginnings, fit
from ensdistill.stages.networks.renaming import renamed
from ensdistill.stages.networks.state_dicts import below, load_into, read_tensors, some_of
from ensdistill.stages.networks.students import (
    HfSegmentation,
    build_student,
    in_head,
    pad_to_multiple,
    plain_name,
)

_SMALL: Final = 64  # pixels a side
_BACKBONE: Final = "backbone."


def initial_network(
    recipe: Mapping[str, Any], local: Learning
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Build the network of a probe or a student as it is before the first step.

    With `init` its body, or what the recipe says of it, is loaded from there and its head made
    anew, whatever weights a folder of transformers holds. What no gradient reaches (an auxiliary
    head, above all) is frozen.

    Returns
    -------
    nn.Module
        (N, 3, H, W) float32 to (N, C, h, w) logits.
    dict or None
        ``loaded``: number of tensors; ``head``: the tensors made anew; ``left``: others that were
        not to be loaded; ``unexpected``: those of the file that the network lacks; ``frozen``:
        those that no gradient reaches. Of many names the first, and how many more. ``headless``
        where all was loaded, as none of its names is in the head. None where there is nothing to
        tell.

    Raises
    ------
    DataError
        If the network cannot be built or does not return logits, `head` is none of it, or the
        weights are not its own. The text begins with the key that is wrong.
    """
    divisor, head = recipe.get("divisor", 1), recipe.get("head")
    classes = len(local.classes)
    with _under("network"):
        network = build_student(
            recipe["network"],
            classes,
            local.network,
            recipe["seed"],
            local.factory,
            weights=local.init is None and recipe.get("init") != "none",
            head=head,
        )
    _require_head(network, head)
    report: dict[str, Any] = {}
    if isinstance(network, HfSegmentation) and network.loaded is not None:
        report = {k: v if k == "loaded" else some_of(v) for k, v in network.loaded.items()}
    if local.init is not None:
        report = _load(network, local.init, _way(recipe), classes, backbone_of(recipe["network"]))
    crop = recipe["crop"] or (_SMALL, _SMALL)
    frozen = _freeze_unreached(network, classes, crop, divisor)
    if frozen and not isinstance(recipe["network"], str):  # of our own it is known
        report["frozen"] = some_of(frozen)
    return pad_to_multiple(network, divisor), report or None


def describe_initial(report: Mapping[str, Any], local: Learning) -> str:
    """Return a report of `initial_network` as a sentence."""
    parts = []
    if "loaded" in report:
        parts.append(f"{report['loaded']} tensors of {local.init or local.network}")
    for key, text in (
        ("head", "made anew in the head"),
        ("left", "left as they were made"),
        ("unexpected", "not used of that file"),
        ("frozen", "not trained, as no gradient reaches them"),
    ):
        if report.get(key):
            parts.append(f"{text}: {', '.join(report[key])}")
    if report.get("headless"):
        parts.append("none was made anew, as none of its names is in the head (`head:` says which)")
    return "; ".join(parts)


@contextmanager
def _under(key: str) -> Iterator[None]:
    """Name the key that an error is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def _require_head(network: nn.Module, head: Sequence[str] | None) -> None:
    names = [plain_name(name) for name in network.state_dict()]
    for pattern in head or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataError(
                f"head: {pattern!r} fits no name of the network; they begin with "
                f"{', '.join(beginnings(names))}, such as {names[-1]}"
            )


def _way(recipe: Mapping[str, Any]) -> Way:
    """Return how the first weights are loaded; a recipe may hold the file's digest alone."""
    init, head = recipe.get("init"), recipe.get("head")
    given = init if isinstance(init, Mapping) else {}
    return Way(
        given.get("into", ""),
        given.get("strip", ""),
        given.get("head") == "keep",
        None if head is None else tuple(head),
    )


def _load(
    network: nn.Module, file: Path, way: Way, classes: int, backbone: Name | None
) -> dict[str, Any]:
    with _under("init"):
        tensors = read_tensors(file, trusted=False, advice="save a state_dict alone")
    if backbone:
        with _under("init"):
            tensors = renamed(tensors, file, backbone)
    if backbone and not way.into and not below(tensors, f"{way.strip}{_BACKBONE}"):
        way = replace(way, into=_BACKBONE)  # the file is of a backbone alone
    own = network.state_dict()
    for key, prefix, names, whose in (
        ("strip", way.strip, tensors, str(file)),
        ("into", way.into, own, "the network"),
    ):
        if not below(names, prefix):
            raise DataError(
                f"init.{key}: no tensor of {whose} begins with {prefix}; they begin with "
                f"{', '.join(some_of(beginnings(names)))}"
            )
    with _under("init"):
        found = fit(network, tensors, file, way)
    anew = [name for name in own if in_head(name, way.head)]
    if way.keep and not set(anew) & set(found.wanted):
        where = f"below {way.into}" if way.into else "of the network"
        raise DataError(f"init.head: there is none to keep: no tensor {where} is in the head")
    if not found.wanted:
        raise DataError(
            "init: all that it could load is in the head, and made anew; say `head: keep` on "
            "`init`, or which names are the head, by `head: [PATTERN]` beside it"
        )
    headless = not (anew or way.into or way.keep)
    if found.problems:
        part = way.into[:-1] or ("head and body" if way.keep else "body")
        none = " (none of its names is in the head, so that all have to be)" if headless else ""
        raise DataError(
            f"init: {file} lacks {len(found.problems)} of the {len(found.wanted)} tensors of the "
            f"network's {part} in their shapes{none}: "
            f"{'; '.join(some_of(found.problems.values()))}; it holds {', '.join(some_of(tensors))}"
            f". {advice(network, tensors, file, way, classes)}"
        )
    with _under("init"):
        load_into(network, found.loaded, file)
    wanted = {*found.wanted, *anew}
    classifier = BACKBONES[backbone].classifier if backbone else ()
    report: dict[str, Any] = {
        "loaded": len(found.loaded),
        "head": some_of(plain_name(name) for name in anew if name not in found.loaded),
        "unexpected": some_of(n for n in found.unused if not n.startswith(classifier)),
    }
    if left := [plain_name(name) for name in own if name not in wanted]:
        report["left"] = some_of(left)
    if headless:
        report["headless"] = True
    return report


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
