"""The compiled loops over pixels of a byte, imported only when one of them is called.

Most of a label map is areas of one label, so that whole words of eight pixels are looked at first.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.compiling import BYTE, EACH, EIGHT, Int64, UInt8, UInt64, jit

NONE, SUB, UP, AVERAGE, PAETH = range(5)  # what a row of a PNG is told by (its specification, 9.2)
_LAST: Final = np.uint64(56)  # bits below the last byte of a word


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in one dimension, contiguous and read-only: one type to compile for."""
    view = np.ascontiguousarray(array).reshape(-1).view()
    view.flags.writeable = False
    return view


def as_words(pixels: UInt8) -> tuple[UInt64, UInt8]:
    """Return pixels as words of eight and those that are left over, read-only."""
    pixels = flat(pixels)
    whole = len(pixels) // 8 * 8
    return pixels[:whole].view(np.uint64), pixels[whole:]


@jit
def count_values(words: UInt64, rest: UInt8, counts: Int64) -> None:
    """Add to (256,) how often each value stands there."""
    last, times = np.uint64(0), 0
    for k in range(len(words)):
        word = words[k]
        if word != last:
            _add(last, times, counts)
            last, times = word, 0
        times += 1
    _add(last, times, counts)
    for i in range(len(rest)):
        counts[rest[i]] += 1


@jit
def look_up(words: UInt64, rest: UInt8, table: UInt8, found: UInt8, counts: Int64) -> None:
    """Write for each value what a (256,) table holds for it, and add to (256,) how often that is.

    `found` is (N,), as long as words and rest together.
    """
    into = found[: 8 * len(words)].view(np.uint64)
    last, told, times = np.uint64(0), table[0] * EACH, 0
    for k in range(len(words)):
        word = words[k]
        if word != last:
            _add(told, times, counts)
            last, times = word, 0
            for _ in range(8):
                told = told >> EIGHT | np.uint64(table[word & BYTE]) << _LAST
                word >>= EIGHT
        times += 1
        into[k] = told
    _add(told, times, counts)
    for i in range(len(rest)):
        value = table[rest[i]]
        found[8 * len(words) + i] = value
        counts[value] += 1


@jit
def _add(word: np.uint64, times: int, counts: Int64) -> None:
    """Count the eight values of a word so many times."""
    value = word & BYTE
    if value * EACH == word:
        counts[value] += 8 * times
        return
    for _ in range(8):
        counts[word & BYTE] += times
        word >>= EIGHT


@jit
def unfilter(rows: UInt8, height: int, width: int, pixels: UInt8) -> bool:
    """Write the pixels of a PNG of one byte each; return whether each row says how it was filtered.

    Where what was subtracted is what stands there, as in areas of one label, whole words are equal
    to what is above or to the left.

    Parameters
    ----------
    rows
        (N,), each behind the byte that says how. Where the width is no multiple of eight there are
        seven bytes more, as whole words are read.
    pixels
        (N,), out: row after row, and seven bytes more, which have no meaning.
    """
    blank = np.zeros(width + 7, np.uint8)
    for y in range(height):
        kind = rows[y * (width + 1)]
        rest = rows[y * (width + 1) + 1 :]
        above = pixels[(y - 1) * width :] if y else blank
        line = pixels[y * width :]
        left = before = np.uint64(0)  # of the pixel, and of that above it
        if kind == NONE:
            for x in range(width):
                line[x] = rest[x]
        elif kind == UP:
            for x in range(width):
                line[x] = np.uint8(rest[x] + above[x])
        elif kind == SUB:
            for x in range(0, width, 8):
                more = _load(rest, np.uint64(x))
                word = left * EACH
                if more:
                    word = np.uint64(0)
                    for _ in range(8):
                        left = (more + left) & BYTE
                        word = word >> EIGHT | left << _LAST
                        more >>= EIGHT
                _store(line, np.uint64(x), word)
        elif kind == AVERAGE:
            for x in range(0, width, 8):
                more, over = _load(rest, np.uint64(x)), _load(above, np.uint64(x))
                word = over
                if more or over != left * EACH:
                    word = np.uint64(0)
                    for _ in range(8):
                        left = (more + ((left + (over & BYTE)) >> np.uint64(1))) & BYTE
                        word = word >> EIGHT | left << _LAST
                        more >>= EIGHT
                        over >>= EIGHT
                _store(line, np.uint64(x), word)
        elif kind == PAETH:
            for x in range(0, width, 8):
                more, over = _load(rest, np.uint64(x)), _load(above, np.uint64(x))
                if not more and left == before:
                    word = over
                    left = before = over >> _LAST
                elif not more and over == before * EACH:
                    word = left * EACH
                else:
                    word = np.uint64(0)
                    for _ in range(8):
                        upper = over & BYTE
                        left = (more + _nearest(left, upper, before)) & BYTE
                        before = upper
                        word = word >> EIGHT | left << _LAST
                        more >>= EIGHT
                        over >>= EIGHT
                _store(line, np.uint64(x), word)
        else:
            return False
    return True


@jit
def _nearest(left: np.uint64, upper: np.uint64, before: np.uint64) -> np.uint64:
    """Return which of three neighbours is next to left + upper - before; the first of equals."""
    a, b, c = np.int32(left), np.int32(upper), np.int32(before)
    to_left, to_upper = abs(b - c), abs(a - c)
    to_before = abs(a + b - c - c)
    other = upper if to_upper <= to_before else before
    return left if to_left <= to_upper and to_left <= to_before else other


@jit
def _load(row: UInt8, x: np.uint64) -> np.uint64:
    """Return eight bytes from `x` on, the first as the lowest; one load, once it is compiled."""
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(row[x + np.uint64(i)]) << np.uint64(8 * i)
    return word


@jit
def _store(row: UInt8, x: np.uint64, word: np.uint64) -> None:
    """Write eight bytes from `x` on."""
    for i in range(8):
        row[x + np.uint64(i)] = np.uint8(word >> np.uint64(8 * i))
