"""Checks that several functions make of their arguments."""

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX

_DIMS = {2: "(H, W)", 3: "(N, H, W)"}


def check_n_classes(n_classes: int, most: int = 254) -> None:
    """Raise ValueError unless 1 <= n_classes <= most."""
    if not 1 <= n_classes <= most:
        raise ValueError(f"the number of classes must be 1 to {most}, got {n_classes}")


def check_form(name: str, labels: NDArray[np.uint8], *, ndim: int) -> None:
    """Raise unless `labels` is a non-empty uint8 array."""
    if labels.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, got {labels.dtype}")
    if labels.ndim != ndim or 0 in labels.shape:
        raise ValueError(f"{name} must be {_DIMS[ndim]} and not empty, got shape {labels.shape}")


def check_highest(name: str, highest: int, n_classes: int) -> None:
    """Raise ValueError if the highest label but 255 is no class id."""
    if highest >= n_classes:
        raise ValueError(
            f"{name} holds the value {highest}; expected class ids 0..{n_classes - 1} "
            f"or {IGNORE_INDEX}"
        )


def check_counted(name: str, counts: NDArray[np.int64], n_classes: int) -> None:
    """Raise ValueError if (256,) counts any label that is neither a class id nor 255."""
    check_highest(name, int(np.flatnonzero(counts[:IGNORE_INDEX]).max(initial=-1)), n_classes)
