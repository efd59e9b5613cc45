"""What networks in files of other libraries take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.answers import joined


class Fixed(NamedTuple):
    """The sizes of images that a file was written for, None where any will do."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None


def reason(error: Exception) -> str:
    """Return an error of another library on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_as_fixed(call: Callable[[Tensor], Any], images: Tensor, fixed: Fixed, file: Path) -> Any:
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
    try:
        if fixed.batch == 1 != count:
            return joined([call(image[None]) for image in images])
        return call(images)
    except (DataError, torch.OutOfMemoryError):  # fewer images at once may do
        raise
    except Exception as error:
        sizes = "x".join(map(str, images.shape))
        raise DataError(
            f"{file} fails on images of {sizes} ({reason(error)}); if their sizes "
            "have to be multiples of a number, say `divisor` on the network"
        ) from error
