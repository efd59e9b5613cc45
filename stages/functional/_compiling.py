"""What the compiled loops share: how they are compiled, and words of eight pixels."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

EACH: Final = np.uint64(0x0101010101010101)
"""Times a byte: a word of eight such bytes."""
BYTE: Final = np.uint64(255)
EIGHT: Final = np.uint64(8)

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    """Compile a function when it is first called, or load it as it was compiled before."""
    return cast(_F, numba.njit(cache=True, nogil=True)(function))
