"""The compiled loops behind `labelmodel`, imported only when one of them is called.

Most pixels have the votes of their left neighbour: maps are read as runs of equal votes, and equal
votes are kept once as a pattern. Candidates of a pattern are the labels that somebody votes for, in
rising order; nothing is ever stored for the other classes.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.compiling import Int64, UInt8, UInt64, jit
from ensdistill.stages.functional import IGNORE_INDEX

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

_SILENT: Final = np.uint8(IGNORE_INDEX)
_TIE: Final = 1e-9  # of sums of weights, whose last digits hang on the order
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)


@jit
def mark_changes(label_maps: UInt8, changes: UInt8) -> int:
    """Mark where votes differ from the left neighbour's, and return the highest label but 255.

    `changes` is (H, W) or wider.
    """
    teachers, height, width = label_maps.shape
    highest = np.uint8(0)  # of label + 1, so that 255 counts least
    for y in range(height):
        row = changes[y]
        row[:] = 0
        for t in range(teachers):
            votes = label_maps[t, y]
            for x in range(1, width):
                row[x] |= np.uint8(votes[x] != votes[x - 1])
            for x in range(width):
                highest = max(highest, np.uint8(votes[x] + np.uint8(1)))
    return int(highest) - 1


@jit
def _place(votes: UInt8, known: int, slots: Int32, patterns: UInt8) -> int:
    """Return where a pattern stands, entered as number `known` if it is new."""
    teachers = len(votes)
    mixed = np.uint64(0)
    for t in range(teachers):
        mixed = (mixed ^ np.uint64(votes[t])) * _FACTOR
        mixed ^= mixed >> np.uint64(29)
    mask = len(slots) - 1
    slot = np.int64(mixed >> np.uint64(16)) & mask
    while slots[slot]:
        found = slots[slot] - 1
        equal = True
        for t in range(teachers):
            equal &= patterns[found, t] == votes[t]
        if equal:
            return int(found)
        slot = (slot + 1) & mask
    slots[slot] = known + 1
    for t in range(teachers):
        patterns[known, t] = votes[t]
    return known


@jit
def read_image(
    label_maps: UInt8,
    changes: UInt8,
    words: UInt64,
    boxes: Int64,
    slots: Int32,
    patterns: UInt8,
    rows: Int64,
    places: Int32,
    pixels: Int64,
    starts: Int64,
    runs: Int32,
) -> tuple[int, int]:
    """Read an image cell by cell as runs of patterns.

    Parameters
    ----------
    label_maps, changes, words
        (T, H, W), what `mark_changes` found, and the same memory as words of eight pixels.
    boxes
        (cells, 4): top, bottom, left, right.
    slots
        A hash table: zeros; a power of two, at least twice P.
    patterns
        (P, T) out: what is voted anywhere.
    rows
        (P,) -1: scratch, the row of a pattern in the cell that is read.
    places, pixels, starts
        (P,), (P,) and (cells + 1,) out: the patterns of each cell and how many pixels have them;
        cell i has the rows `starts[i]` to `starts[i + 1]`.
    runs
        (N, 4) out: row, first column, end and pattern of each run of a cell.

    Returns
    -------
    tuple
        How many patterns and runs there are; -1 and -1 if there is no room for them.
    """
    votes = np.empty(len(label_maps), np.uint8)
    known, n_rows, n_runs = 0, 0, 0
    for i in range(len(boxes)):
        starts[i] = n_rows
        for y in range(boxes[i, 0], boxes[i, 1]):
            x, border = boxes[i, 2], boxes[i, 3]
            while x < border:
                end = x + 1
                while end < border and changes[y, end] == 0:
                    whole = end % 8 == 0 and end + 8 <= border and words[y, end // 8] == 0
                    end += 8 if whole else 1
                if n_rows == len(places) or n_runs == len(runs):
                    return -1, -1
                for t in range(len(votes)):
                    votes[t] = label_maps[t, y, x]
                place = _place(votes, known, slots, patterns)
                known = max(known, place + 1)
                if rows[place] < starts[i]:
                    rows[place] = n_rows
                    places[n_rows], pixels[n_rows] = place, 0
                    n_rows += 1
                pixels[rows[place]] += end - x
                runs[n_runs, 0], runs[n_runs, 1] = y, x
                runs[n_runs, 2], runs[n_runs, 3] = end, place
                n_runs += 1
                x = end
    starts[len(boxes)] = n_rows
    return known, n_runs


@jit
def enrol(rows: UInt8, slots: Int32, patterns: UInt8, places: Int32) -> int:
    """Write each row's pattern to `places`, its votes once to `patterns`; return their number."""
    known = 0
    for r in range(len(rows)):
        places[r] = _place(rows[r], known, slots, patterns)
        known = max(known, places[r] + 1)
    return known


@jit
def merge(
    starts: Int64,
    places: Int32,
    pixels: Int64,
    rows: Int64,
    merged: Int32,
    sums: Int64,
    begins: Int64,
) -> int:
    """Count each pattern of a cell once, in the order in which `read_image` would meet them.

    Parameters
    ----------
    starts, places, pixels
        (cells + 1,), (R,) and (R,): as of `read_image`, but for patterns that a cell has twice.
    rows
        (P,) -1: scratch, the row of a pattern in the cell that is read.
    merged, sums, begins
        (R,), (R,) and (cells + 1,) out: places, pixels and starts of what is left.

    Returns
    -------
    int
        How many rows are left.
    """
    n_rows = 0
    for i in range(len(starts) - 1):
        begins[i] = n_rows
        for r in range(starts[i], starts[i + 1]):
            place = places[r]
            if rows[place] < begins[i]:
                rows[place] = n_rows
                merged[n_rows], sums[n_rows] = place, 0
                n_rows += 1
            sums[rows[place]] += pixels[r]
    begins[len(starts) - 1] = n_rows
    return n_rows


@jit
def list_candidates(patterns: UInt8, heard: NDArray[np.bool_], candidates: UInt8) -> None:
    """Write to (P, T) the labels that `heard` (T,) teachers vote for, rising, then 255."""
    teachers = patterns.shape[1]
    for m in range(len(patterns)):
        found = 0
        for t in range(teachers):
            vote = patterns[m, t]
            j = found
            while j > 0 and candidates[m, j - 1] > vote:
                j -= 1
            listed = j > 0 and candidates[m, j - 1] == vote
            if vote == _SILENT or listed or not heard[t]:
                continue
            for k in range(found, j, -1):
                candidates[m, k] = candidates[m, k - 1]
            candidates[m, j] = vote
            found += 1
        for j in range(found, teachers):
            candidates[m, j] = _SILENT


@jit
def share_votes(patterns: UInt8, candidates: UInt8, weights: Float64, shares: Float64) -> None:
    """Write to (P, T) the weight of the votes for each candidate, as a fraction."""
    teachers = patterns.shape[1]
    for m in range(len(patterns)):
        total = 0.0
        for j in range(teachers):
            shares[m, j] = 0.0
            if candidates[m, j] == _SILENT:
                continue
            for t in range(teachers):
                if patterns[m, t] == candidates[m, j]:
                    shares[m, j] += weights[t]
            total += shares[m, j]
        for j in range(teachers):
            if total > 0.0:
                shares[m, j] /= total


@jit
def weigh(patterns: UInt8, candidates: UInt8, evidence: Float64, likelihood: Float64) -> None:
    """Write to (P, T) each candidate's likelihood, over that of the likeliest.

    `evidence` is (T, C, C): weight times log p(vote | class).
    """
    teachers = patterns.shape[1]
    for m in range(len(patterns)):
        best = -np.inf
        for j in range(teachers):
            c = candidates[m, j]
            if c == _SILENT:
                break
            total = 0.0
            for t in range(teachers):
                if patterns[m, t] != _SILENT:
                    total += evidence[t, c, patterns[m, t]]
            likelihood[m, j] = total
            best = max(best, total)
        for j in range(teachers):
            known_label = candidates[m, j] != _SILENT
            likelihood[m, j] = np.exp(likelihood[m, j] - best) if known_label else 0.0


@jit
def sum_shares(
    places: Int32, pixels: Int64, candidates: UInt8, shares: Float64, mass: Float64
) -> None:
    """Add to (C,) the pixels of each class in a cell, by (P, T) shares of its patterns."""
    for r in range(len(places)):
        m = places[r]
        for j in range(candidates.shape[1]):
            if candidates[m, j] == _SILENT:
                break
            mass[candidates[m, j]] += pixels[r] * shares[m, j]


@jit
def sum_all_shares(
    starts: Int64,
    places: Int32,
    pixels: Int64,
    candidates: UInt8,
    shares: Float64,
    mass: Float64,
) -> None:
    """Add to (cells, C) the pixels of each class in all cells, as `sum_shares` does in one."""
    for i in range(len(starts) - 1):
        begin, end = starts[i], starts[i + 1]
        sum_shares(places[begin:end], pixels[begin:end], candidates, shares, mass[i])


@jit
def expect(
    places: Int32,
    pixels: Int64,
    candidates: UInt8,
    likelihood: Float64,
    prior: Float64,
    held: float,
    mass: Float64,
    posterior: Float64,
) -> float:
    """Make one E step in a cell, and return the largest change of its prior.

    Parameters
    ----------
    places, pixels
        (R,) the patterns of the cell and how many pixels have them.
    candidates, likelihood
        (P, T) of `list_candidates` and `weigh`.
    prior
        (C,) of the band.
    held
        How much of `prior` there is in the cell's, as a fraction of the cell's pixels.
    mass
        (C,) in and out: the pixels of each class in the cell.
    posterior
        (R, T) out, of the candidates; as it was where the cell has no mass.
    """
    total = mass.sum()
    if total == 0.0:
        return 0.0
    before = (mass / total + held * prior) / (1.0 + held)
    mass[:] = 0.0
    for r in range(len(places)):
        m = places[r]
        scale = 0.0
        for j in range(candidates.shape[1]):
            c = candidates[m, j]
            if c == _SILENT:
                break
            posterior[r, j] = likelihood[m, j] * before[c]
            scale += posterior[r, j]
        for j in range(candidates.shape[1]):
            c = candidates[m, j]
            if c == _SILENT:
                break
            posterior[r, j] /= scale
            mass[c] += pixels[r] * posterior[r, j]
    after = (mass / mass.sum() + held * prior) / (1.0 + held)
    return float(np.abs(after - before).max())


@jit
def expect_all(
    starts: Int64,
    bands: UInt8,
    places: Int32,
    pixels: Int64,
    candidates: UInt8,
    likelihood: Float64,
    prior: Float64,
    held: float,
    mass: Float64,
    found: Float64,
) -> None:
    """Make one E step in all cells; `found` (P, T) gets the pixels of each candidate.

    Cell i has the rows `starts[i]` to `starts[i + 1]`, (C,) `mass[i]` and `prior[bands[i]]`.
    """
    posterior = np.empty((np.diff(starts).max(), candidates.shape[1]))
    found[:] = 0.0
    for i in range(len(starts) - 1):
        begin, end = starts[i], starts[i + 1]
        if not mass[i].any():  # nobody who is heard votes here
            continue
        expect(
            places[begin:end],
            pixels[begin:end],
            candidates,
            likelihood,
            prior[bands[i]],
            held,
            mass[i],
            posterior,
        )
        for r in range(begin, end):
            m = places[r]
            for j in range(candidates.shape[1]):
                if candidates[m, j] == _SILENT:
                    break
                found[m, j] += pixels[r] * posterior[r - begin, j]


@jit
def count_votes(patterns: UInt8, candidates: UInt8, found: Float64, counts: Float64) -> None:
    """Add to (T, C, C) how many pixels of each class each teacher gave each label."""
    for m in range(len(patterns)):
        for j in range(patterns.shape[1]):
            c = candidates[m, j]
            if c == _SILENT:
                break
            for t in range(patterns.shape[1]):
                if patterns[m, t] != _SILENT:
                    counts[t, c, patterns[m, t]] += found[m, j]


@jit
def count_deviations(
    patterns: UInt8, candidates: UInt8, pixels: Float64, weights: Float64, labelled: Float64
) -> Any:
    """Return how often t deviates from the rest, and s alike, each label of t weighing the same.

    `labelled` is (T, 256): the pixels of each label. Both results are (T, T), by t and s; the rest
    is the label with the most weight among all but these two, the first of several.
    """
    teachers = patterns.shape[1]
    deviations, alike = np.zeros((teachers, teachers)), np.zeros((teachers, teachers))
    said = np.empty(teachers)
    place = np.empty(teachers, np.int64)
    for m in range(len(patterns)):
        if candidates[m, 1] == _SILENT:
            continue
        known = 0
        while known < teachers and candidates[m, known] != _SILENT:
            said[known] = 0.0
            known += 1
        for t in range(teachers):
            place[t] = -1
            for j in range(known):
                if patterns[m, t] == candidates[m, j]:
                    place[t] = j
                    said[j] += weights[t]
        for t in range(teachers):
            for s in range(t):
                if place[t] < 0 and place[s] < 0:
                    continue
                rest, most = -1, 0.0
                for j in range(known):
                    others = said[j]
                    if place[t] == j:
                        others -= weights[t]
                    if place[s] == j:
                        others -= weights[s]
                    if others > most + _TIE:
                        rest, most = j, others
                if rest < 0:
                    continue
                for one, other in ((t, s), (s, t)):
                    if place[one] >= 0 and place[one] != rest:
                        weight = pixels[m] / labelled[one, patterns[m, one]]
                        deviations[one, other] += weight
                        alike[one, other] += weight * (place[t] == place[s])
    return deviations, alike


@jit
def compare_with_others(
    patterns: UInt8, candidates: UInt8, pixels: Float64, confmats: Float64
) -> None:
    """Add to (T, C, C + 1) each teacher's labels by what most of the others say, the first of
    several.
    """
    teachers, silent = patterns.shape[1], confmats.shape[2] - 1
    for m in range(len(patterns)):
        for t in range(teachers):
            others, most = -1, 0
            for j in range(teachers):
                if candidates[m, j] == _SILENT:
                    break
                votes = 0
                for s in range(teachers):
                    votes += s != t and patterns[m, s] == candidates[m, j]
                if votes > most:
                    others, most = int(candidates[m, j]), votes
            if others >= 0:
                vote = patterns[m, t]
                confmats[t, others, silent if vote == _SILENT else vote] += pixels[m]


@jit
def settle(
    starts: Int64,
    bands: UInt8,
    places: Int32,
    pixels: Int64,
    candidates: UInt8,
    shares: Float64,
    likelihood: Float64,
    prior: Float64,
    held: float,
    tolerance: float,
    rounds: int,
    priors: Float64,
) -> None:
    """Find the prior of each cell: `priors` (cells, C) out; the rest as in `expect_all`."""
    mass = np.empty(prior.shape[1])
    posterior = np.empty((np.diff(starts).max(), candidates.shape[1]))
    for i in range(len(starts) - 1):
        here, counted = places[starts[i] : starts[i + 1]], pixels[starts[i] : starts[i + 1]]
        mass[:] = 0.0
        sum_shares(here, counted, candidates, shares, mass)
        for _ in range(rounds):
            change = expect(
                here, counted, candidates, likelihood, prior[bands[i]], held, mass, posterior
            )
            if change < tolerance:
                break
        total = mass.sum()
        for c in range(len(mass)):
            general = prior[bands[i], c]
            own = mass[c] / total if total > 0.0 else general
            priors[i, c] = (own + held * general) / (1.0 + held)


@jit
def _between(position: float, cells: int) -> tuple[int, int, float]:
    """The cells whose middles a position, in cells, lies between, and how near the second is."""
    first = int(np.floor(position - 0.5))
    near = position - 0.5 - first
    return max(first, 0), min(first + 1, cells - 1), near


@jit
def _compare(
    m: int,
    above: float,
    before: float,
    candidates: UInt8,
    likelihood: Float64,
    priors: Float64,
    found: Float64,
) -> float:
    """Write to (T,) how likely each candidate of a pattern is at a place, and return their sum.

    `above` and `before` are the cells between the place and the image's top and left.
    """
    upper_row, lower_row, down = _between(above, priors.shape[0])
    left, right, along = _between(before, priors.shape[1])
    total = 0.0
    for j in range(candidates.shape[1]):
        c = candidates[m, j]
        if c == _SILENT:
            break
        upper = priors[upper_row, left, c] * (1.0 - along) + priors[upper_row, right, c] * along
        lower = priors[lower_row, left, c] * (1.0 - along) + priors[lower_row, right, c] * along
        found[j] = likelihood[m, j] * (upper * (1.0 - down) + lower * down)
        total += found[j]
    return total


@jit
def write_labels(
    runs: Int32,
    candidates: UInt8,
    likelihood: Float64,
    priors: Float64,
    step: int,
    fused: UInt8,
    counts: Int64,
) -> None:
    """Write the likeliest label of each pixel, with the prior between the middles of cells.

    Parameters
    ----------
    runs
        Of `read_image`.
    candidates, likelihood
        (P, T) of `list_candidates` and `weigh`.
    priors
        (rows of cells, columns of cells, C).
    step
        Columns of pixels that share a prior.
    fused
        (H, W) out.
    counts
        (4, 256), in and out: pixels where a label is a candidate, where it is one of several, that
        became it though there were several, and that became it.
    """
    height, width = fused.shape
    rows, columns = priors.shape[:2]
    found = np.empty(candidates.shape[1])
    for i in range(len(runs)):
        y, begin, end, m = runs[i, 0], runs[i, 1], runs[i, 2], runs[i, 3]
        several = candidates.shape[1] > 1 and candidates[m, 1] != _SILENT
        for j in range(candidates.shape[1]):
            c = candidates[m, j]
            if c == _SILENT:
                break
            counts[0, c] += end - begin
            counts[1, c] += (end - begin) * several
        if not several:
            fused[y, begin:end] = candidates[m, 0]
            counts[3, candidates[m, 0]] += end - begin
            continue
        above = (y + 0.5) / height * rows
        while begin < end:
            stop = min((begin // step + 1) * step, end)
            before = (begin // step + 0.5) * step / width * columns
            _compare(m, above, before, candidates, likelihood, priors, found)
            label, best = _SILENT, -1.0
            for j in range(candidates.shape[1]):
                if candidates[m, j] == _SILENT:
                    break
                if found[j] > best:
                    label, best = candidates[m, j], found[j]
            fused[y, begin:stop] = label
            counts[2, label] += stop - begin
            counts[3, label] += stop - begin
            begin = stop


@jit
def calibrate(share: float, voters: int, unanimous: bool, odds: Float64) -> float:
    """How often a candidate with such a share of the posterior is right.

    `odds` is (4,), see `labelmodel.ODDS`.
    """
    share = min(max(share, 1.0 - odds[3]), odds[3])
    right = odds[0] * np.sqrt(voters) * (share / (1.0 - share)) ** odds[1]
    if unanimous:
        right *= odds[2]
    return float(right / (1.0 + right))


@jit
def count_voters(patterns: UInt8, m: int, weights: Float64) -> int:
    """How many teachers who are heard vote in a pattern."""
    voters = 0
    for t in range(len(weights)):
        voters += weights[t] > 0.0 and patterns[m, t] != _SILENT
    return voters


@jit
def calibrate_all(
    patterns: UInt8,
    candidates: UInt8,
    weights: Float64,
    odds: Float64,
    found: Float64,
    right: Float64,
) -> None:
    """Write to (P, T) the pixels of which a candidate is right, from those that have it."""
    for m in range(len(patterns)):
        total = found[m].sum()
        voters = count_voters(patterns, m, weights)
        right[m] = 0.0
        for j in range(patterns.shape[1]):
            if candidates[m, j] == _SILENT or total == 0.0:
                break
            alone = j == 0 and (patterns.shape[1] == 1 or candidates[m, 1] == _SILENT)
            right[m, j] = total * calibrate(found[m, j] / total, voters, alone, odds)


@jit
def write_posterior(
    runs: Int32,
    patterns: UInt8,
    candidates: UInt8,
    weights: Float64,
    odds: Float64,
    likelihood: Float64,
    priors: Float64,
    step: int,
    fused: UInt8,
    percent: UInt8,
    counts: Int64,
) -> None:
    """Write how probable each pixel's fused label is, with the prior of `write_labels`.

    Parameters
    ----------
    runs, candidates, likelihood, priors, step
        As in `write_labels`.
    patterns, weights
        (P, T) and (T,), for how many voices there are.
    odds
        As in `calibrate`.
    fused
        (H, W), of any method.
    percent
        (H, W) out: 0 to 100, to the nearest; 0 where the fused label is no candidate.
    counts
        (2, 256), in and out: the pixels of each fused label, and the sum of their percents.
    """
    height, width = fused.shape
    rows, columns = priors.shape[:2]
    found = np.empty(candidates.shape[1])
    for i in range(len(runs)):
        y, begin, end, m = runs[i, 0], runs[i, 1], runs[i, 2], runs[i, 3]
        several = candidates.shape[1] > 1 and candidates[m, 1] != _SILENT
        found[0] = total = 1.0  # of the one label that was given
        voters = count_voters(patterns, m, weights)
        above = (y + 0.5) / height * rows
        while begin < end:
            stop = end
            if several:
                stop = min((begin // step + 1) * step, end)
                before = (begin // step + 0.5) * step / width * columns
                total = _compare(m, above, before, candidates, likelihood, priors, found)
            while begin < stop:
                label, first = fused[y, begin], begin
                while begin < stop and fused[y, begin] == label:
                    begin += 1
                sure = 0
                for j in range(candidates.shape[1]):
                    if candidates[m, j] == label and label != _SILENT:
                        share = calibrate(found[j] / total, voters, not several, odds)
                        sure = int(100.0 * share + 0.5)
                percent[y, first:begin] = sure
                counts[0, label] += begin - first
                counts[1, label] += sure * (begin - first)
