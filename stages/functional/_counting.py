"""The compiled loops that count labels, imported only when one is called.

Most of a label map is areas of one label, so that whole words of eight pixels are counted at once.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

_EACH: Final = np.uint64(0x0101010101010101)  # times a byte: a word of eight such bytes
_BYTE: Final = np.uint64(255)
_EIGHT: Final = np.uint64(8)

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(function: _F) -> _F:
    return cast(_F, numba.njit(cache=True, nogil=True)(function))


def as_words(labels: UInt8) -> tuple[UInt64, UInt8]:
    """Return a label map as words of eight pixels and the pixels that are left over, read-only."""
    flat = np.ascontiguousarray(labels).reshape(-1).view()
    flat.flags.writeable = False
    whole = len(flat) // 8 * 8
    return flat[:whole].view(np.uint64), flat[whole:]


@_jit
def count_labels(words: UInt64, rest: UInt8, counts: Int64) -> None:
    """Add to (256,) how often each label stands there."""
    for k in range(len(words)):
        word = words[k]
        label = word & _BYTE
        if label * _EACH == word:
            counts[label] += 8
            continue
        for _ in range(8):
            counts[word & _BYTE] += 1
            word >>= _EIGHT
    for i in range(len(rest)):
        counts[rest[i]] += 1


@_jit
def count_pairs(
    targets: UInt64, target_rest: UInt8, words: UInt64, rest: UInt8, counts: Int64
) -> None:
    """Add to (256, 256) how often each pair of target and label stands there."""
    for k in range(len(words)):
        target, word = targets[k], words[k]
        wanted, label = target & _BYTE, word & _BYTE
        if wanted * _EACH == target and label * _EACH == word:
            counts[wanted, label] += 8
            continue
        for _ in range(8):
            counts[target & _BYTE, word & _BYTE] += 1
            target >>= _EIGHT
            word >>= _EIGHT
    for i in range(len(rest)):
        counts[target_rest[i], rest[i]] += 1


@_jit
def sum_by_label(
    labels: UInt8, values: NDArray[Any], sums: NDArray[np.float64], counts: Int64
) -> bool:
    """Add flat values to (256,) float64 by label, in their order; return whether all are fractions.

    Values at 255 are summed but not looked at. The sum of one label stays in a register until
    another label comes: memory would be four times as slow.
    """
    legal = True
    now = labels[0]
    total = sums[now]
    begin = 0
    for i in range(len(labels)):
        label = labels[i]
        if label != now:
            sums[now] = total
            counts[now] += i - begin
            now, begin, total = label, i, sums[label]
        value = np.float64(values[i])
        total += value
        legal &= (value >= 0.0) & (value <= 1.0) | (label == np.uint8(255))
    sums[now] = total
    counts[now] += len(labels) - begin
    return legal
