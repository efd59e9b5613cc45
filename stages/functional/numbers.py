"""Numbers that may not exist: NaN in arrays, None in JSON.

The way back needs no function: ``np.array(values, float)`` makes NaN of None.
"""

import math
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

__all__ = ["or_none", "share", "shares"]


def or_none(value: SupportsFloat) -> float | None:
    """Return a number as JSON holds it: a float, and None for NaN."""
    number = float(value)
    return None if math.isnan(number) else number


def share(part: SupportsFloat, whole: SupportsFloat) -> float:
    """Return part / whole, both counts below 2**53; NaN of an empty whole."""
    return float(part) / float(whole) if whole else math.nan


def shares(
    parts: NDArray[np.float64] | NDArray[np.int64], wholes: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return parts / wholes as float64 of their shape; NaN where a whole is empty."""
    result = np.full(parts.shape, np.nan)
    np.divide(parts, wholes, out=result, where=wholes > 0)
    return result
