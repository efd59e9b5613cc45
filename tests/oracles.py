"""Slow, obvious loops over plain numbers: what the fast code must agree with."""

import itertools
import math
from fractions import Fraction

import numpy as np


def channel_wise(label_maps, owner, *, window, conflict, holes, certainty=None):
    """The fused map, and the counts as a dict of lists and numbers."""
    _, height, width = label_maps.shape
    n_classes = len(owner)

    def claims(y, x):
        return [c for c in range(n_classes) if owner[c] >= 0 and label_maps[owner[c], y, x] == c]

    def most_claimed(y, x):
        radius = window // 2
        count = [0] * n_classes
        for v in range(max(0, y - radius), min(height, y + radius + 1)):
            for u in range(max(0, x - radius), min(width, x + radius + 1)):
                for c in claims(v, u):
                    count[c] += 1
        return count.index(max(count)) if max(count) else 255

    def most_certain(candidates):
        best = None
        for c in candidates:
            value = -math.inf if math.isnan(certainty[c]) else certainty[c]
            if best is None or value > best[0]:
                best = (value, c)
        return best[1]

    fused = np.empty((height, width), np.uint8)
    names = ("claimed", "conflict", "won", "filled", "label")
    counts = {name: [0] * n_classes for name in names}
    counts |= {"pixels": 0, "conflicts": 0, "holes": 0, "ignored": 0}
    for y in range(height):
        for x in range(width):
            candidates = claims(y, x)
            if len(candidates) == 1:
                label = candidates[0]
            elif (conflict if candidates else holes) == "window":
                label = most_claimed(y, x)
            elif candidates and conflict == "certainty":
                label = most_certain(candidates)
            else:
                label = 255
            fused[y, x] = label
            counts["pixels"] += 1
            counts["conflicts"] += len(candidates) > 1
            counts["holes"] += not candidates
            counts["ignored"] += label == 255
            for c in candidates:
                counts["claimed"][c] += 1
                counts["conflict"][c] += len(candidates) > 1
            if label != 255:
                counts["label"][label] += 1
                counts["won"][label] += len(candidates) > 1
                counts["filled"][label] += not candidates
    return fused, counts


def windows(label_maps, owner, window):
    """The class with the most claims in each pixel's window, by summed areas: (H, W), 255 empty."""
    _, height, width = label_maps.shape
    radius = window // 2
    top = np.clip(np.arange(height) - radius, 0, height)[:, None]
    bottom = np.clip(np.arange(height) + radius + 1, 0, height)[:, None]
    left = np.clip(np.arange(width) - radius, 0, width)
    right = np.clip(np.arange(width) + radius + 1, 0, width)
    most = np.zeros((height, width), np.int64)
    label = np.full((height, width), 255, np.uint8)
    for c, teacher in enumerate(owner):
        if teacher < 0:
            continue
        area = np.zeros((height + 1, width + 1), np.int64)
        area[1:, 1:] = (label_maps[teacher] == c).cumsum(0).cumsum(1)
        count = area[bottom, right] - area[top, right] - area[bottom, left] + area[top, left]
        label[count > most] = c
        most = np.maximum(most, count)
    return label


def agreement(label_maps, fused, n_classes):
    """Every count of `Agreement`, pixel by pixel, as plain numbers and nested lists."""
    teachers, height, width = label_maps.shape
    of_pairs = [[0] * teachers for _ in range(teachers)]
    found = {"pixels": 0, "labelled": 0, "unanimous": 0}
    found |= {name: [list(row) for row in of_pairs] for name in ("pairs", "both", "either")}
    found |= {"fused": [0] * n_classes, "settled": [0] * n_classes}
    asked = [t for t in range(teachers) if (label_maps[t] != 255).any()]
    for y in range(height):
        for x in range(width):
            labels = label_maps[:, y, x].tolist()
            said = {labels[t] for t in asked}
            agreed = len(said) == 1 and 255 not in said and len(asked) >= min(2, teachers)
            found["pixels"] += 1
            found["labelled"] += any(label != 255 for label in labels)
            found["unanimous"] += agreed
            if fused[y, x] != 255:
                found["fused"][fused[y, x]] += 1
                found["settled"][fused[y, x]] += agreed
            for j, one in enumerate(labels):
                for k, other in enumerate(labels):
                    found["either"][j][k] += one != 255 or other != 255
                    if one != 255 and other != 255:
                        found["both"][j][k] += 1
                        found["pairs"][j][k] += one == other
    return found


def joint(one, other, n_classes):
    counts = [[0] * n_classes for _ in range(n_classes)]
    for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
        if a != 255 and b != 255:
            counts[a][b] += 1
    return counts


def kappa(one, other):
    """Cohen's kappa in exact fractions, of every two pixels drawn apart for chance.

    Of one who says one thing alone nothing is known.
    """
    votes = [
        (a, b)
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True)
        if a != 255 and b != 255
    ]
    if any(len(set(said)) < 2 for said in (zip(*votes, strict=True) if votes else [()])):
        return math.nan
    agreed = Fraction(sum(a == b for a, b in votes), len(votes))
    chance = Fraction(sum(a == b for a, _ in votes for _, b in votes), len(votes) ** 2)
    return float((agreed - chance) / (1 - chance))


def majority(label_maps, weights=None):
    weights = [1] * len(label_maps) if weights is None else [int(w) for w in weights]
    _, height, width = label_maps.shape
    fused = np.full((height, width), 255, np.uint8)
    for y in range(height):
        for x in range(width):
            votes = {}
            for v, weight in zip(label_maps[:, y, x].tolist(), weights, strict=True):
                if v != 255:
                    votes[v] = votes.get(v, 0) + weight
            if votes:  # a dict keeps the order in which the labels were first voted for
                fused[y, x] = max(votes, key=votes.__getitem__)
    return fused


def confusion(target, prediction, n_classes):
    confmat = [[0] * (n_classes + 1) for _ in range(n_classes)]
    for t, p in zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != 255:
            confmat[t][n_classes if p == 255 else p] += 1
    return confmat


def iou(target, prediction, n_classes, *, ignored):
    """Straight from the two maps, by sets of pixels."""
    pairs = list(enumerate(zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True)))
    pairs = [(i, t, p) for i, (t, p) in pairs if t != 255]
    if ignored == "left_out":
        pairs = [(i, t, p) for i, t, p in pairs if p != 255]
    result = []
    for c in range(n_classes):
        truth = {i for i, t, _ in pairs if t == c}
        found = {i for i, _, p in pairs if p == c}
        union = truth | found
        result.append(len(truth & found) / len(union) if union else math.nan)
    return result


def present(target, n_classes):
    return [bool((target == c).any()) for c in range(n_classes)]


def certainty_sums(labels, certainty, n_classes):
    sums, support = [0.0] * n_classes, [0] * n_classes
    for label, value in zip(labels.ravel().tolist(), certainty.ravel().tolist(), strict=True):
        if label != 255:
            sums[label] += value
            support[label] += 1
    return sums, support


def best_sum_of_certainty(allowed):
    """The largest summed certainty over all assignments of classes to teachers.

    `allowed[c]` maps the teachers that may have class c to their certainties; a class without any
    adds nothing.
    """
    options = [list(values.values()) or [0.0] for values in allowed]
    return max(math.fsum(assignment) for assignment in itertools.product(*options))


def between(estimate, iou, chosen):
    """Rank, ranked, best, lost and judged of `functional.between`, by counting who is before whom.

    Lists of lists, a row a teacher; Spearman's correlation by its definition, in fractions.
    """
    rhos, best, lost = [], 0, []
    for c, t in enumerate(chosen):
        scored = {k: row[c] for k, row in enumerate(iou) if not math.isnan(row[c])}
        both = {k: estimate[k][c] for k in scored if not math.isnan(estimate[k][c])}
        if len(both) >= 3 and len(set(both.values())) > 1 and len({scored[k] for k in both}) > 1:
            rhos.append(_spearman([both[k] for k in both], [scored[k] for k in both]))
            surest = min(both, key=lambda k: (-both[k], k))
            best += scored[surest] == max(scored.values())
        if t in scored:
            lost.append(max(scored.values()) - scored[t])
    rank, loss = (
        math.fsum(values) / len(values) if values else math.nan for values in (rhos, lost)
    )
    return rank, len(rhos), best, loss, len(lost)


def _spearman(a, b):
    n = len(a)
    # the rank among equals is the mean of theirs: one more than those below, half of those beside
    x, y = (
        [Fraction(2 * sum(w < v for w in of) + sum(w == v for w in of) + 1, 2) for v in of]
        for of in (a, b)
    )
    middle = Fraction(n + 1, 2)
    product = sum((p - middle) * (q - middle) for p, q in zip(x, y, strict=True))
    lengths = [sum((p - middle) ** 2 for p in of) for of in (x, y)]
    return float(product) / math.sqrt(lengths[0] * lengths[1])
