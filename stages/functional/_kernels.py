"""The compiled loops behind `fusion`, imported only when one of them is called.

All arithmetic is on integers, so no result depends on the order of the loops. Label maps come
read-only and contiguous, so that each loop is compiled for one type of array. The innermost loops
do not branch and walk along rows, so that each step is made for many pixels at once; indices that
are sums are unsigned, since a negative one would count from the end and keep the compiler from it.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.compiling import BYTE, EACH, EIGHT, Int64, UInt8, UInt64, jit

# A plane of claims holds the class of a pixel's one claim, or one of these.
PADDING: Final = 253
MANY: Final = 254
NONE: Final = 255

TILE: Final = 64
"""Columns of a tile: what is known of the claims in a tile says which of them need a look."""
BAND: Final = 16
"""Rows of a tile, where it is asked which classes claim anything in it."""
CHUNK: Final = 4
"""Tiles that follow the window down the image together."""
SLOTS: Final = 6
"""Classes of one teacher that are looked for at once."""
LANES: Final = 4
"""Most classes whose claims in a window are counted at once."""
BLOCK: Final = 4096
"""Pixels that the votes are counted of at a time: few enough to stay in the nearest cache."""

_HIGH: Final = np.uint64(0x8080808080808080)
# What a value among the claims means for its tile: 1 that it has conflicts, 2 that it has holes.
_STATE: Final = np.array([0] * MANY + [1, 2])
_BIT: Final = np.array([1 << v if v < 64 else 0 for v in range(256)], np.uint64)


@jit
def find_claims(
    label_maps: UInt8,
    planes: NDArray[np.intp],
    classes: UInt8,
    claims: UInt8,
    words: UInt64,
    unsettled: UInt8,
    present: UInt64,
    seen: Int64,
    contested: Int64,
) -> int:
    """Write the plane of claims of label maps (T, H, W), and return the highest label but 255.

    Parameters
    ----------
    label_maps
        (T, H, W).
    planes, classes
        (N,) and (N, SLOTS): each row names a teacher and classes that it decides, filled up with
        `PADDING`. Every teacher is named once at least, so that all labels are looked at.
    claims, words
        (H, W padded to whole tiles), the result, and the same memory as (H, ...) words of eight
        pixels. The padding is filled already.
    unsettled
        (H, tiles), out: 1 where a tile of the row holds `MANY`, 2 where `NONE`, 3 where both.
    present
        (bands, tiles), in and out: bit c is set if class c claims something in the tile.
    seen
        (256,), in and out: how often each value stands in `claims`.
    contested
        (256,), in and out: the claims of each class that meet another.
    """
    height, width = label_maps.shape[1:]
    highest = np.uint8(0)  # of label + 1, so that 255 counts least
    for y in range(height):
        row = claims[y, :width]
        row[:] = NONE
        for k in range(len(planes)):
            found = _claim(
                label_maps[planes[k], y],
                classes[k, 0],
                classes[k, 1],
                classes[k, 2],
                classes[k, 3],
                classes[k, 4],
                classes[k, 5],
                row,
            )
            highest = max(highest, found)
        _survey(words[y], unsettled[y], present[y // BAND], seen)
        _contest(label_maps, y, planes, classes, row, unsettled[y], present[y // BAND], contested)
    return int(highest) - 1


@jit
def _claim(
    labels: UInt8,
    a: np.uint8,
    b: np.uint8,
    c: np.uint8,
    d: np.uint8,
    e: np.uint8,
    f: np.uint8,
    claims: UInt8,
) -> np.uint8:
    """Let a teacher's labels of six classes claim; return the highest of label + 1."""
    highest = np.uint8(0)
    for i in range(len(labels)):
        label = labels[i]
        # 0 if it is one of the six: less work for a processor than six comparisons
        off_a, off_b, off_c = np.uint8(label ^ a), np.uint8(label ^ b), np.uint8(label ^ c)
        off_d, off_e, off_f = np.uint8(label ^ d), np.uint8(label ^ e), np.uint8(label ^ f)
        off = min(off_a, off_b, off_c, off_d, off_e, off_f)
        claim = claims[i]
        more = label if claim == np.uint8(NONE) else np.uint8(MANY)
        claims[i] = more if off == np.uint8(0) else claim
        highest = max(highest, np.uint8(label + np.uint8(1)))
    return highest


@jit
def _survey(words: UInt64, unsettled: UInt8, present: UInt64, seen: Int64) -> None:
    """Note what a row of claims holds, most of it by tiles and words that hold one value."""
    for tile in range(len(unsettled)):
        first = words[8 * tile]
        value = np.int64(first & BYTE)
        same = (first & BYTE) * EACH
        differs = np.uint64(0)
        for k in range(8 * tile, 8 * tile + 8):
            differs |= words[k] ^ same
        if differs == np.uint64(0):
            seen[value] += 64
            present[tile] |= _BIT[value]
            unsettled[tile] = _STATE[value]
            continue
        classes = present[tile]
        state = 0
        for k in range(8 * tile, 8 * tile + 8):
            word = words[k]
            value = np.int64(word & BYTE)
            if (word & BYTE) * EACH == word:
                seen[value] += 8
                classes |= _BIT[value]
                state |= _STATE[value]
                continue
            for _ in range(8):
                value = np.int64(word & BYTE)
                word >>= EIGHT
                seen[value] += 1
                classes |= _BIT[value]
                state |= _STATE[value]
        present[tile] = classes
        unsettled[tile] = state


@jit
def _contest(
    label_maps: UInt8,
    row: int,
    planes: NDArray[np.intp],
    classes: UInt8,
    claims: UInt8,
    unsettled: UInt8,
    present: UInt64,
    contested: Int64,
) -> None:
    """Note whose claims meet in a row, tile by tile where any do."""
    y = np.uint64(row)
    for tile in range(len(unsettled)):
        if not unsettled[tile] & 1:
            continue
        start = np.uint64(tile * TILE)
        pixels = min(TILE, len(claims) - tile * TILE)
        here = present[tile]
        for k in range(len(planes)):
            t = np.uint64(planes[k])
            a, b, c = classes[k, 0], classes[k, 1], classes[k, 2]
            d, e, f = classes[k, 3], classes[k, 4], classes[k, 5]
            n_a = n_b = n_c = n_d = n_e = n_f = np.uint8(0)
            for i in range(pixels):
                x = start + np.uint64(i)
                label = label_maps[t, y, x]
                many = claims[x] == np.uint8(MANY)
                n_a = np.uint8(n_a + np.uint8(many & (label == a)))
                n_b = np.uint8(n_b + np.uint8(many & (label == b)))
                n_c = np.uint8(n_c + np.uint8(many & (label == c)))
                n_d = np.uint8(n_d + np.uint8(many & (label == d)))
                n_e = np.uint8(n_e + np.uint8(many & (label == e)))
                n_f = np.uint8(n_f + np.uint8(many & (label == f)))
            here |= _add(contested, a, n_a) | _add(contested, b, n_b) | _add(contested, c, n_c)
            here |= _add(contested, d, n_d) | _add(contested, e, n_e) | _add(contested, f, n_f)
        present[tile] = here


@jit
def _add(counts: Int64, label: np.uint8, count: np.uint8) -> np.uint64:
    """Count a class, and return its bit if there is any of it."""
    counts[label] += count
    return _BIT[label] if count else np.uint64(0)


@jit
def resolve(
    label_maps: UInt8,
    owner: NDArray[np.intp],
    claims: UInt8,
    words: UInt64,
    unsettled: UInt8,
    present: UInt64,
    radius: int,
    wanted: int,
    columns: NDArray[Any],
    lane: int,
    became: Int64,
) -> None:
    """Give unsettled pixels the class with the most claims in the window around them.

    Parameters
    ----------
    label_maps, claims, words, unsettled, present
        As for `find_claims`, which has filled them; `claims` is changed.
    owner
        (C,), the teacher of each class or -1.
    radius
        Of the window, at most the larger edge of the image.
    wanted
        Which pixels: 1 for `MANY`, 2 for `NONE`, 3 for both.
    columns
        (C + 1, radius + padded width + radius + 1) of zeros: the claims of each class in a column
        of the window's rows. It follows the window down the image. The last class has none.
    lane
        Bits that hold the number of claims in a window: 16, or 32 for large windows.
    became
        (3, 256), in and out: the pixels that became a class or 255, of those that were settled
        (of no use), `MANY` and `NONE`.
    """
    height = label_maps.shape[1]
    tiles = present.shape[1]
    moving = np.zeros(-(-tiles // CHUNK), np.uint64)
    near = np.zeros((tiles, len(columns) + LANES), np.intp)
    n_near = np.zeros(tiles, np.intp)
    rows = (-1, -1)
    most = np.empty(TILE, np.uint64)
    inside = np.empty(TILE + 2 * radius + 1, np.uint64)
    before = np.empty(8, np.uint64)
    for y in range(-radius, height):
        enter, leave = y + radius, y - radius - 1
        moving[:] = 0
        for tile in range(tiles):
            if enter < height:
                moving[tile // CHUNK] |= present[enter // BAND, tile]
            if leave >= 0:
                moving[tile // CHUNK] |= present[leave // BAND, tile]
        _move(columns, radius, label_maps, owner, moving, enter, leave)
        if y < 0:
            continue
        bands = (max(0, y - radius) // BAND, min(height - 1, y + radius) // BAND)
        if bands != rows:
            rows = bands
            _list_near(present, bands[0], bands[1], radius, len(columns) - 1, near, n_near)
        _fill(
            claims[y],
            words[y],
            unsettled[y],
            wanted,
            columns,
            radius,
            lane,
            near,
            n_near,
            most,
            inside,
            before,
            became,
        )


@jit
def _move(
    columns: NDArray[Any],
    radius: int,
    label_maps: UInt8,
    owner: NDArray[np.intp],
    moving: UInt64,
    enter: int,
    leave: int,
) -> None:
    """Let one row enter the window and another leave it, where there are such rows.

    Only for the classes that `moving` says may claim something there, by chunks of tiles.
    """
    height, width = label_maps.shape[1:]
    y, z = np.uint64(enter), np.uint64(leave)
    for chunk in range(len(moving)):
        start = np.uint64(chunk * CHUNK * TILE)
        first = start + np.uint64(radius)
        pixels = min(CHUNK * TILE, width - chunk * CHUNK * TILE)
        for c in range(len(owner)):
            if not (moving[chunk] >> np.uint64(c)) & np.uint64(1):
                continue
            t = np.uint64(owner[c])
            row = np.uint64(c)
            label = np.uint8(c)
            if enter < height and leave >= 0:
                for i in range(pixels):
                    x = start + np.uint64(i)
                    columns[row, first + np.uint64(i)] += np.uint8(
                        label_maps[t, y, x] == label
                    ) - np.uint8(label_maps[t, z, x] == label)
            elif enter < height:
                for i in range(pixels):
                    columns[row, first + np.uint64(i)] += np.uint8(
                        label_maps[t, y, start + np.uint64(i)] == label
                    )
            elif leave >= 0:
                for i in range(pixels):
                    columns[row, first + np.uint64(i)] -= np.uint8(
                        label_maps[t, z, start + np.uint64(i)] == label
                    )


@jit
def _list_near(
    present: UInt64,
    first: int,
    last: int,
    radius: int,
    n_classes: int,
    near: NDArray[np.intp],
    n_near: NDArray[np.intp],
) -> None:
    """List the classes that may claim something in the windows of each tile of these bands.

    Each list is filled up with the class `n_classes`, which claims nothing.
    """
    tiles = present.shape[1]
    reach = -(-radius // TILE)
    above = np.zeros(tiles, np.uint64)
    for band in range(first, last + 1):
        above |= present[band]
    for tile in range(tiles):
        classes = np.uint64(0)
        for other in range(max(0, tile - reach), min(tiles, tile + reach + 1)):
            classes |= above[other]
        count = 0
        for c in range(n_classes):
            near[tile, count] = c
            if (classes >> np.uint64(c)) & np.uint64(1):
                count += 1
        near[tile, count : count + LANES] = n_classes
        n_near[tile] = count


@jit
def _fill(
    claims: UInt8,
    words: UInt64,
    unsettled: UInt8,
    wanted: int,
    columns: NDArray[Any],
    radius: int,
    lane: int,
    near: NDArray[np.intp],
    n_near: NDArray[np.intp],
    most: UInt64,
    inside: UInt64,
    before: UInt64,
    became: Int64,
) -> None:
    """Resolve a row.

    In a tile that holds a wanted pixel the windows of all pixels from the first to the last such
    word are counted, for several classes at once: a word has a lane for each. `inside[i]` sums the
    columns left of i, so that a window is the difference of two sums, even after these have
    overflown.
    """
    packed = 64 // lane
    mask = (np.uint64(1) << np.uint64(lane)) - np.uint64(1)
    one = np.uint64(lane)
    two = np.uint64(2 * lane % 64)  # with two lanes the other slots hold no claims
    three = np.uint64(3 * lane % 64)
    six = np.uint64(6)
    empty = len(columns) - 1
    window = np.uint64(2 * radius + 1)
    low = np.uint8(MANY if wanted & 1 else NONE)
    high = np.uint8(NONE if wanted & 2 else MANY)
    for tile in range(len(unsettled)):
        if not unsettled[tile] & wanted:
            continue
        first, last = 8, 0
        for k in range(8):
            before[k] = words[8 * tile + k]
            # a byte of 254 or 255 is one whose complement is 0 but for the lowest bit
            rest = ~(before[k] | EACH)
            if (rest - EACH) & ~rest & _HIGH:
                first, last = min(first, k), k + 1
        start = np.uint64(tile * TILE + 8 * first)
        pixels = 8 * (last - first)
        n_columns = pixels + 2 * radius + 1
        for i in range(pixels):
            most[i] = 0
        for k in range(0, n_near[tile], packed):
            a = np.uint64(near[tile, k])
            b = np.uint64(near[tile, k + 1])
            c = np.uint64(near[tile, k + 2] if packed == LANES else empty)
            d = np.uint64(near[tile, k + 3] if packed == LANES else empty)
            for i in range(n_columns):
                x = start + np.uint64(i)
                inside[i] = (
                    np.uint64(columns[a, x])
                    | (np.uint64(columns[b, x]) << one)
                    | (np.uint64(columns[c, x]) << two)
                    | (np.uint64(columns[d, x]) << three)
                )
            total = np.uint64(0)
            for i in range(n_columns):
                column = inside[i]
                inside[i] = total
                total += column
            # Count above, 63 - class below: the largest number is the most claims, ties to the
            # lowest class. An empty slot counts nothing, whatever stands below.
            top = np.uint64(63)
            low_a, low_b = top - min(a, top), top - min(b, top)
            low_c, low_d = top - min(c, top), top - min(d, top)
            for i in range(pixels):
                count = inside[np.uint64(i) + window] - inside[i]
                best = max(most[i], ((count & mask) << six) | low_a)
                best = max(best, (((count >> one) & mask) << six) | low_b)
                if packed == LANES:
                    best = max(best, (((count >> two) & mask) << six) | low_c)
                    best = max(best, (((count >> three) & mask) << six) | low_d)
                most[i] = best
        for i in range(pixels):
            best = most[i]
            label = (
                np.uint8(np.uint64(63) - (best & np.uint64(63)))
                if best > np.uint64(63)
                else np.uint8(NONE)
            )
            claim = claims[start + np.uint64(i)]
            claims[start + np.uint64(i)] = label if low <= claim <= high else claim
        for k in range(first, last):
            word = before[k]
            for i in range(tile * TILE + 8 * k, tile * TILE + 8 * k + 8):
                was = np.int64(word & BYTE)
                word >>= EIGHT
                became[_STATE[was], claims[i]] += 1


@jit
def give_up(claims: UInt8) -> None:
    """Make pixels of `MANY` 255."""
    for y in range(len(claims)):
        row = claims[y]
        for x in range(len(row)):
            row[x] = np.uint8(NONE) if row[x] == np.uint8(MANY) else row[x]


@jit
def rank(
    label_maps: UInt8, ranks: NDArray[np.int16], claims: UInt8, unsettled: UInt8, won: Int64
) -> None:
    """Give pixels of `MANY` to the claiming class of the lowest rank.

    `ranks` is (T, 256), the rank of a teacher's label, or 256 where it claims nothing; `won`
    counts the pixels by their class.
    """
    teachers, height, width = label_maps.shape
    for y in range(height):
        for tile in range(unsettled.shape[1]):
            if not unsettled[y, tile] & 1:
                continue
            for x in range(tile * TILE, min(width, tile * TILE + TILE)):
                if claims[y, x] != MANY:
                    continue
                label, best = np.uint8(NONE), np.int16(256)
                for t in range(teachers):
                    mine = label_maps[t, y, x]
                    better = ranks[t, mine] < best
                    label = mine if better else label
                    best = ranks[t, mine] if better else best
                claims[y, x] = label
                won[label] += 1


@jit
def vote_of_four(a: UInt8, b: UInt8, c: UInt8, d: UInt8, weights: UInt8, winner: UInt8) -> int:
    """Write the plurality of weighted votes of four flat label maps; return the highest label.

    As `vote`, and several times as fast, since nothing but the result goes through memory. The
    weights sum to less than 256.
    """
    for_a, for_b, for_c, for_d = weights[0], weights[1], weights[2], weights[3]
    highest = np.uint8(0)
    none, one = np.uint8(0), np.uint8(1)
    for i in range(len(winner)):
        p, q, r, s = a[i], b[i], c[i], d[i]
        for_p = np.uint8(for_a + (for_b if p == q else none) + (for_c if p == r else none))
        for_p = np.uint8(for_p + (for_d if p == s else none))
        for_q = np.uint8(for_b + (for_c if q == r else none) + (for_d if q == s else none))
        for_r = np.uint8(for_c + (for_d if r == s else none))
        most = for_p if p != np.uint8(255) else none
        count = for_q if q != np.uint8(255) else none
        label = q if count > most else p
        most = max(most, count)
        count = for_r if r != np.uint8(255) else none
        label = r if count > most else label
        most = max(most, count)
        count = for_d if s != np.uint8(255) else none
        label = s if count > most else label
        winner[i] = label
        next_p, next_q = np.uint8(p + one), np.uint8(q + one)
        next_r, next_s = np.uint8(r + one), np.uint8(s + one)
        highest = max(highest, next_p, next_q, next_r, next_s)
    return int(highest) - 1


@jit
def vote(label_maps: UInt8, weights: NDArray[Any], none: NDArray[Any], winner: UInt8) -> int:
    """Write the plurality of weighted votes of flat label maps (T, N); return the highest label.

    The votes for a teacher's label are counted from it and the teachers after it alone. That is
    all of them for the first teacher that votes for a label, and fewer for the next ones, so that
    of the labels with most votes the first one wins. 255 does not count as the highest label.

    `none` is (BLOCK,) of zeros of the type of `weights`, which can hold the sum of all.
    """
    teachers, pixels = label_maps.shape
    votes = none.copy()
    most = none.copy()
    highest = np.uint8(0)
    for start in range(0, pixels, BLOCK):
        stop = min(start + BLOCK, pixels)
        winner[start:stop] = 255
        most[:] = 0
        for t in range(teachers):
            labels = label_maps[t, start:stop]
            votes[:] = weights[t]
            for s in range(t + 1, teachers, 3):
                u, v = min(s + 1, teachers - 1), min(s + 2, teachers - 1)
                _agree(
                    labels,
                    label_maps[s, start:stop],
                    label_maps[u, start:stop],
                    label_maps[v, start:stop],
                    weights[s],
                    weights[u] if u == s + 1 else none[0],
                    weights[v] if v == s + 2 else none[0],
                    none[0],
                    votes,
                )
            highest = max(highest, _elect(labels, votes, most, winner[start:stop]))
    return int(highest) - 1


@jit
def _agree(
    labels: UInt8,
    a: UInt8,
    b: UInt8,
    c: UInt8,
    weight_a: Any,
    weight_b: Any,
    weight_c: Any,
    zero: Any,
    votes: NDArray[Any],
) -> None:
    for i in range(len(labels)):
        label = labels[i]
        votes[i] += (
            (weight_a if label == a[i] else zero)
            + (weight_b if label == b[i] else zero)
            + (weight_c if label == c[i] else zero)
        )


@jit
def _elect(labels: UInt8, votes: NDArray[Any], most: NDArray[Any], winner: UInt8) -> np.uint8:
    """Let labels win that have more votes than those before; return the highest of label + 1."""
    highest = np.uint8(0)
    for i in range(len(labels)):
        label, count, so_far, before = labels[i], votes[i], most[i], winner[i]
        # 255 does not vote. Asked by itself: `&` of both questions keeps the compiler from it.
        more, top = label if count > so_far else before, max(count, so_far)
        winner[i] = before if label == np.uint8(255) else more
        most[i] = so_far if label == np.uint8(255) else top
        highest = max(highest, np.uint8(label + np.uint8(1)))
    return highest
