"""The compiled loops that count labels and segments, imported only when one is called.

Most of a label map is areas of one label, so that whole words of eight pixels are counted at once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.compiling import BYTE, EACH, EIGHT, Int64, UInt8, UInt64, jit


@jit
def count_pairs(
    targets: UInt64, target_rest: UInt8, words: UInt64, rest: UInt8, counts: Int64
) -> None:
    """Add to (65536,), by 256 times the target plus the label, how often each pair stands there.

    As long as all eight pairs of a word are those of the last such word, their count stays in a
    register.
    """
    last_target = last_word = last = np.uint64(0)
    held = 0
    for k in range(len(words)):
        target, word = targets[k], words[k]
        if (target ^ last_target) | (word ^ last_word) == np.uint64(0):
            held += 8
            continue
        wanted, label = target & BYTE, word & BYTE
        if (wanted * EACH ^ target) | (label * EACH ^ word) == np.uint64(0):
            counts[last] += held
            last_target, last_word, last, held = target, word, wanted << EIGHT | label, 8
            continue
        for _ in range(8):
            counts[(target & BYTE) << EIGHT | word & BYTE] += 1
            target >>= EIGHT
            word >>= EIGHT
    counts[last] += held
    for i in range(len(rest)):
        counts[np.uint64(target_rest[i]) << EIGHT | np.uint64(rest[i])] += 1


@jit
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


@jit
def find_segments(labels: UInt8, width: int, first: Int64) -> None:
    """Write for each pixel of a label map the first one of its segment, row by row.

    Parameters
    ----------
    labels
        (N,), the rows one after the other.
    width
        Pixels of a row.
    first
        (N,), out: indices of pixels.
    """
    for i in range(len(labels)):
        first[i] = i
        if i % width and labels[i - 1] == labels[i]:
            first[i] = _first(first, i - 1)
        if i >= width and labels[i - width] == labels[i]:
            a, b = _first(first, i), _first(first, i - width)
            first[max(a, b)] = min(a, b)
    for i in range(len(labels)):
        first[i] = first[first[i]]  # which lies before it, or is it: it is known


@jit
def _first(first: Int64, i: int) -> int:
    """Return the first pixel so far of a pixel's segment, and shorten the way to it."""
    while first[i] != i:
        first[i] = first[first[i]]
        i = first[i]
    return i
