"""The compiled loops behind `fusion`, imported only when one of them is called.

All arithmetic is on integers, so no result depends on the order of the loops. The arrays come
checked: a label is a class id or 255, and in the fusion a class id is below 64. Label maps come
read-only and contiguous, so that each loop is compiled for one type of array.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

# A plane of claims holds the class of a pixel's one claim, or one of these.
MANY: Final = 254
NONE: Final = 255

# What becomes of a pixel with several claims, or without one.
IGNORE: Final = 0
WINDOW: Final = 1
RANK: Final = 2

# Pixels that the loops without geometry treat at a time: few enough to stay in the nearest cache.
# These loops do not branch, so that each step is made for many pixels at once.
BLOCK: Final = 4096

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(function: _F) -> _F:
    return cast(_F, numba.njit(cache=True, nogil=True)(function))


@_jit
def find_claims(
    label_maps: NDArray[np.uint8], owned: NDArray[np.uint64], claims: NDArray[np.uint8]
) -> None:
    """Write the claims of flat label maps (T, N); bit c of `owned[t]`: t decides class c."""
    teachers, pixels = label_maps.shape
    for start in range(0, pixels, BLOCK):
        stop = min(start + BLOCK, pixels)
        claims[start:stop] = NONE
        for t in range(teachers):
            _claim(label_maps[t, start:stop], owned[t], claims[start:stop])


@_jit
def _claim(labels: NDArray[np.uint8], classes: np.uint64, claims: NDArray[np.uint8]) -> None:
    for i in range(len(claims)):
        label = labels[i]
        claim = claims[i]
        bit = (classes >> np.uint64(label & np.uint8(63))) & np.uint64(1)
        more = label if claim == NONE else np.uint8(MANY)
        claims[i] = more if (label < 64) & (bit != 0) else claim


@_jit
def resolve(
    label_maps: NDArray[np.uint8],
    owned: NDArray[np.uint64],
    claims: NDArray[np.uint8],
    rank: NDArray[np.intp],
    radius: int,
    conflict: int,
    holes: int,
    fused: NDArray[np.uint8],
    singles: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> int:
    """Write the fused map, and return the number of pixels with several claims.

    `rank[c]` orders the classes for the rule `RANK`, the best first. `singles` counts the pixels
    with one claim, and `counts` those claimed in, won in and filled without a conflict, by class.

    `columns[x, c]` counts the claims of class c in column x of the window's rows. It follows the
    window down the image, and changes only where the claims of the row that enters differ from
    those of the row that leaves.
    """
    height, width = claims.shape
    classes = len(rank)
    columns = np.zeros((width, (classes + 7) // 8 * 8), np.int32)  # whole vectors of lanes
    window = np.zeros(columns.shape[1], np.int32)
    windowed = conflict == WINDOW or holes == WINDOW
    conflicts = 0
    if windowed:
        for y in range(min(radius, height)):
            _step(columns, label_maps, owned, claims, y, np.int32(1))
    for y in range(height):
        if windowed:
            enter = y + radius
            leave = y - radius - 1
            if enter < height and leave >= 0:
                _move(columns, label_maps, owned, claims, enter, leave)
            elif enter < height:
                _step(columns, label_maps, owned, claims, enter, np.int32(1))
            elif leave >= 0:
                _step(columns, label_maps, owned, claims, leave, np.int32(-1))
        left = 0
        right = 0
        window[:] = 0
        fused[y] = claims[y]
        x = 0
        while x < width:
            claim = claims[y, x]
            if claim < MANY:
                start = x
                while x < width and claims[y, x] == claim:
                    x += 1
                singles[claim] += x - start
                continue
            rule = conflict if claim == MANY else holes
            label = 255
            if rule == WINDOW:
                first = max(0, x - radius)
                last = min(width, x + radius + 1)
                # Slide from the pixel resolved before, unless starting anew is less work.
                if (first - left) + (last - right) >= last - first:
                    window[:] = 0
                    left = first
                    right = first
                for i in range(right, last):
                    column = columns[i]
                    for lane in range(len(window)):
                        window[lane] += column[lane]
                for i in range(left, first):
                    column = columns[i]
                    for lane in range(len(window)):
                        window[lane] -= column[lane]
                left = first
                right = last
                most = 0
                for c in range(classes):
                    if window[c] > most:
                        most = window[c]
                        label = c
            elif rule == RANK:
                label = _best_ranked(label_maps, y, x, owned, rank)
            fused[y, x] = label
            if claim == MANY:
                conflicts += 1
                _add_claims(counts[0], label_maps, y, x, owned, 1)
                if label != 255:
                    counts[1, label] += 1
            elif label != 255:
                counts[2, label] += 1
            x += 1
    return conflicts


@_jit
def _is_claim(label: int, classes: int) -> bool:
    return label < 64 and (classes >> np.uint64(label)) & np.uint64(1) != 0


@_jit
def _add_claims(
    counts: NDArray[Any],
    label_maps: NDArray[np.uint8],
    y: int,
    x: int,
    owned: NDArray[np.uint64],
    step: int | np.int32,
) -> None:
    for t in range(len(owned)):
        label = label_maps[t, y, x]
        if _is_claim(label, owned[t]):
            counts[label] += step


@_jit
def _best_ranked(
    label_maps: NDArray[np.uint8],
    y: int,
    x: int,
    owned: NDArray[np.uint64],
    rank: NDArray[np.intp],
) -> int:
    best = 255
    for t in range(len(owned)):
        label = label_maps[t, y, x]
        if _is_claim(label, owned[t]) and (best == 255 or rank[label] < rank[best]):
            best = label
    return best


@_jit
def _step(
    columns: NDArray[np.int32],
    label_maps: NDArray[np.uint8],
    owned: NDArray[np.uint64],
    claims: NDArray[np.uint8],
    y: int,
    step: np.int32,
) -> None:
    """Let row y enter the window's rows (`step` 1) or leave them (-1)."""
    for x in range(len(columns)):
        claim = claims[y, x]
        if claim < MANY:
            columns[x, claim] += step
        elif claim == MANY:
            _add_claims(columns[x], label_maps, y, x, owned, step)


@_jit
def _move(
    columns: NDArray[np.int32],
    label_maps: NDArray[np.uint8],
    owned: NDArray[np.uint64],
    claims: NDArray[np.uint8],
    enter: int,
    leave: int,
) -> None:
    """Let one row enter and another leave."""
    for x in range(len(columns)):
        new = claims[enter, x]
        old = claims[leave, x]
        if new == old and new != MANY:
            continue
        if old < MANY:
            columns[x, old] -= np.int32(1)
        elif old == MANY:
            _add_claims(columns[x], label_maps, leave, x, owned, np.int32(-1))
        if new < MANY:
            columns[x, new] += np.int32(1)
        elif new == MANY:
            _add_claims(columns[x], label_maps, enter, x, owned, np.int32(1))


@_jit
def vote(label_maps: NDArray[np.uint8], winner: NDArray[np.uint8]) -> None:
    """Write the plurality of the votes of flat label maps (T, N).

    The votes for a teacher's label are the teachers that agree with it. Of the teachers whose
    label has the most votes, the first in order decides.
    """
    teachers, pixels = label_maps.shape
    votes = np.empty((teachers, BLOCK), np.uint8)
    most = np.empty(BLOCK, np.uint8)
    for start in range(0, pixels, BLOCK):
        stop = min(start + BLOCK, pixels)
        votes[:] = 1
        most[:] = 0
        winner[start:stop] = 255
        for t in range(teachers):
            for s in range(t):
                _agree(label_maps[t, start:stop], label_maps[s, start:stop], votes[t], votes[s])
        for t in range(teachers):
            _elect(label_maps[t, start:stop], votes[t], most, winner[start:stop])


@_jit
def _agree(
    ours: NDArray[np.uint8],
    theirs: NDArray[np.uint8],
    our_votes: NDArray[np.uint8],
    their_votes: NDArray[np.uint8],
) -> None:
    for i in range(len(ours)):
        agree = np.uint8(ours[i] == theirs[i])
        our_votes[i] += agree
        their_votes[i] += agree


@_jit
def _elect(
    labels: NDArray[np.uint8],
    votes: NDArray[np.uint8],
    most: NDArray[np.uint8],
    winner: NDArray[np.uint8],
) -> None:
    for i in range(len(labels)):
        label = labels[i]
        count = votes[i]
        better = (label != 255) & (count > most[i])
        winner[i] = label if better else winner[i]
        most[i] = count if better else most[i]
