"""What networks of other libraries take and what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ensdistill.pipeline.errors import DataError

_NAMES: Final = ("out", "logits")  # torchvision's, that of transformers


class Fixed(NamedTuple):
    """The sizes of images that a file was written for, None where any will do."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None


def reason(error: Exception) -> str:
    """Return an error of another library on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_as_fixed(
    call: Callable[[Tensor], Tensor], images: Tensor, fixed: Fixed, file: Path
) -> Tensor:
    """Return what a network answers to (N, 3, H, W) images, one by one if it takes but one.

    Raises
    ------
    DataError
        If it takes other sizes only, which are named, or fails.
    OutOfMemoryError
        If there is no memory for so many images.
    """
    count, _, height, width = images.shape
    if fixed.height not in (None, height) or fixed.width not in (None, width):
        only = f"{fixed.height or 'any'}x{fixed.width or 'any'}"
        size = f"[{fixed.height or height}, {fixed.width or width}]"
        raise DataError(
            f"{file} takes images of {only} (height x width) alone, and these are "
            f"{height}x{width}; say `preprocess: {{size: {size}}}` on the teacher, or export it "
            "for any size"
        )
    if fixed.batch not in (None, 1, count):
        raise DataError(
            f"{file} takes {fixed.batch} images at a time, and these are {count}; export it for "
            "one, or for any number"
        )
    parts = [image[None] for image in images] if fixed.batch == 1 else [images]
    try:
        return torch.cat([call(part) for part in parts])
    except (DataError, torch.OutOfMemoryError):  # fewer images at once may do
        raise
    except Exception as error:
        sizes = "x".join(map(str, images.shape))
        raise DataError(
            f"{file} fails on images of {sizes} ({reason(error)}); if their sizes "
            "have to be multiples of a number, say `divisor` on the network"
        ) from error


def scores_of(found: object) -> Tensor:
    """Return the scores among what a network returned.

    Parameters
    ----------
    found : object
        A tensor, which is returned as it is; or a mapping, sequence or other object, whose ``out``
        or ``logits`` is meant, and without these its first tensor of four dimensions.

    Returns
    -------
    Tensor
        (N, C, h, w) scores, or whatever tensor the network returns by itself.

    Raises
    ------
    DataError
        If there is no such tensor; it lists what there is.
    """
    if isinstance(found, Tensor):
        return found
    parts = dict(_parts(found))
    for name in _NAMES:
        if isinstance(parts.get(name), Tensor):
            return parts[name]  # type: ignore[no-any-return]
    for part in parts.values():
        if isinstance(part, Tensor) and part.ndim == 4:
            return part
    inside = ", ".join(f"{name}: {_kind(part)}" for name, part in parts.items())
    raise DataError(
        f"the network returned {type(found).__name__}{f' of {inside}' if inside else ''}; expected "
        "a tensor of (N, C, h, w) scores, alone, as `out` or `logits`, or among others"
    )


def _parts(found: object) -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping):
        yield from ((str(name), part) for name, part in found.items())
        return
    if isinstance(found, (tuple, list)):
        names = getattr(found, "_fields", range(len(found)))
        yield from ((str(name), part) for name, part in zip(names, found, strict=True))
        return
    yield from vars(found).items() if hasattr(found, "__dict__") else ()


def _kind(part: object) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__
