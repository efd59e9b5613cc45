"""What networks in files of other libraries take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.stages.networks.answers import joined

_OF_DEVICE: Final = re.compile("(CUDA|cuDNN|HIP) error.*")
_FULL: Final = ("out of memory", "ALLOC_FAILED")


class Fixed(NamedTuple):
    """The sizes of images that a file was written for, None where any will do."""

    batch: int | None = None
    height: int | None = None
    width: int | None = None


def reason(error: Exception) -> str:
    """Return an error of another library on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def device_failure(error: Exception) -> str | None:
    """Return what there is to say of an error that a GPU reports; None for any other.

    A GPU reports late: what torch was doing when it heard of it may be something else altogether.
    """
    found = _OF_DEVICE.search(str(error))  # a thread that hears of it says something before
    if isinstance(error, torch.OutOfMemoryError) or found is None:
        return None
    if any(word in found[0] for word in _FULL):
        return (
            f"the GPU has no memory left ({found[0]}), perhaps for another process's sake, which "
            "`nvidia-smi` shows; make room there, or lower `batch_size`"
        )
    return (
        f"the GPU reports an error ({found[0]}), of this step or of an earlier one. With the "
        "environment variable CUDA_LAUNCH_BLOCKING=1, `ensdistill -v` shows where; an index out "
        "of range, which is the usual cause, is named on the CPU: `runtime: {device: cpu}`"
    )


@contextmanager
def refusing(what: str, remedy: str = "") -> Iterator[None]:
    """Raise what another library raises meanwhile as a `DataError`: what is wrong, and why."""
    try:
        yield
    except EnsdistillError:
        raise
    except Exception as error:
        raise DataError(f"{what} ({reason(error)}){remedy}") from error


@contextmanager
def blaming_device(name: str = "") -> Iterator[None]:
    """Raise what a GPU reports meanwhile as a `DataError` that begins with a name."""
    try:
        yield
    except RuntimeError as error:
        if (text := device_failure(error)) is None:
            raise
        raise DataError(f"{name}{text}") from error


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
        if device_failure(error) is not None:
            raise
        if "CUDA out of memory" in str(error):  # as the interpreter of TorchScript tells it
            raise torch.OutOfMemoryError(reason(error)) from error
        sizes = "x".join(map(str, images.shape))
        raise DataError(
            f"{file} fails on images of {sizes} ({reason(error)}); if their sizes "
            "have to be multiples of a number, say `divisor` on the network"
        ) from error
