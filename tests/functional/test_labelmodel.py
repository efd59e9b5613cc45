from collections import Counter
from dataclasses import fields, replace
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import channel_wise, majority
from ensdistill.stages.functional.labelmodel import (
    LabelModel,
    Votes,
    count,
    fit,
    fuse,
    grid,
    join,
    opinions,
    posterior,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
close = {"rtol": 1e-9, "atol": 1e-9}


# The model once more, slowly: every pixel has an entry for every class, nothing is merged. What
# the teachers say is `votes` (N, T), and `cells` (N,) is the cell that a pixel lies in.


def dense_grid(height, width):
    """How many rows and columns of cells there are."""
    rows = min(labelmodel.BANDS, height)
    return rows, min(max(1, round(rows * width / height)), width)


def dense_cells(height, width):
    """(H * W,), the cell of each pixel."""
    rows, columns = dense_grid(height, width)
    y, x = np.arange(height), np.arange(width)
    row = np.searchsorted([i * height // rows for i in range(rows)], y, side="right") - 1
    column = np.searchsorted([j * width // columns for j in range(columns)], x, side="right") - 1
    return (row[:, None] * columns + column).ravel()


def dense_images(images):
    """Votes and cells of several images, one after the other, and the band of each cell."""
    votes, cells, bands, before = [], [], [], 0
    for label_maps in images:
        votes.append(label_maps.reshape(len(label_maps), -1).T)
        cells.append(dense_cells(*label_maps.shape[1:]) + before)
        before = cells[-1].max() + 1
        rows, columns = dense_grid(*label_maps.shape[1:])
        bands += [row * labelmodel.BANDS // rows for row in range(rows) for _ in range(columns)]
    return np.concatenate(votes), np.concatenate(cells), np.array(bands)


def one_hot(votes, n_classes):
    return votes[..., None] == np.arange(n_classes)


def dense_plurality(votes, weights, n_classes):
    """(N,), the label with the most weight, the lowest of several; -1 without any weight."""
    total = np.einsum("ntl,t->nl", one_hot(votes, n_classes), weights)
    near = total >= total.max(axis=1, keepdims=True) - 1e-9
    return np.where(total.any(axis=1), near.argmax(axis=1), -1)


def dense_agreement(labels, others, n_classes):
    """Mean IoU of a teacher's labels with those of the others, where they have any."""
    there = others >= 0
    scores = []
    for c in range(n_classes):
        ours, theirs = there & (labels == c), there & (others == c)
        if (ours | theirs).any():
            scores.append((ours & theirs).sum() / (ours | theirs).sum())
    return np.mean(scores) if scores else 0.0


def dense_tempering(votes, n_classes):
    teachers = range(votes.shape[1])
    # A teacher's every label weighs the same, however many pixels have it.
    sizes = [np.array([(vote == v).sum() for v in range(256)])[vote] for vote in votes.T]
    unique = np.ones(len(teachers))
    for _ in range(2):
        alike = dense_alike(votes, sizes, unique, n_classes)
        copy = alike**labelmodel.COPY
        unique = 1 / (1 + copy.sum(axis=1))
        if unique.min() > 0.9:
            break
    agreement = np.zeros(len(teachers))
    for t in teachers:
        others = np.where(np.arange(len(teachers)) == t, 0, 1)
        agreement[t] = dense_agreement(
            votes[:, t], dense_plurality(votes, others, n_classes), n_classes
        )
    heard = agreement >= labelmodel.HEARD * agreement.max()
    shared = 0.0
    for t, s in permutations(np.flatnonzero(heard), 2):
        shared += unique[t] * unique[s] * alike[t, s] * (1 - copy[t, s])
    return heard * unique / (1 + shared / unique[heard].sum())


def dense_alike(votes, sizes, unique, n_classes):
    """(T, T), how often t or s deviates as the other does from what all others say."""
    teachers = range(votes.shape[1])
    alike = np.zeros((len(teachers), len(teachers)))
    for t, s in permutations(teachers, 2) if len(teachers) > 2 else ():
        others = np.where(np.isin(teachers, [t, s]), 0, unique)
        rest = dense_plurality(votes, others, n_classes)
        deviates = (rest >= 0) & (votes[:, t] != 255) & (votes[:, t] != rest)
        if deviates.any():
            both = deviates & (votes[:, t] == votes[:, s])
            part = (both / sizes[t]).sum() / (deviates / sizes[t]).sum()
            alike[t, s] += part / 2
            alike[s, t] += part / 2
    return alike


def dense_shares(said, weights):
    """(N, C), the first guess: the weight of the votes for each class, as a fraction."""
    return normalised((said * weights[:, None]).sum(axis=1))


def normalised(rows):
    total = rows.sum(axis=1, keepdims=True)
    return np.divide(rows, total, out=np.zeros(rows.shape), where=total > 0)


def dense_likelihood(votes, model):
    """(N, C) of the candidates, over that of the likeliest; 0 for the other classes."""
    said = one_hot(votes, model.prior.shape[1])
    evidence = model.weights[:, None, None] * np.log(model.confusions)
    evidence = np.einsum("ntl,tcl->nc", said.astype(float), evidence, optimize=True)
    heard = model.weights > 0
    evidence = np.where(said[:, heard].any(axis=1), evidence, -np.inf)
    best = evidence.max(axis=1, keepdims=True)
    return np.exp(evidence - np.where(np.isfinite(best), best, 0))


def dense_posterior(votes, cells, bands, mass, model):
    """The E step: (N, C) posterior, and the (cells, C) priors that it came from."""
    own = np.where(mass.any(axis=1, keepdims=True), normalised(mass), model.prior[bands])
    priors = (own + labelmodel.HELD * model.prior[bands]) / (1 + labelmodel.HELD)
    return normalised(dense_likelihood(votes, model) * priors[cells]), priors


def by_cell(posterior, cells):
    return np.stack([posterior[cells == i].sum(axis=0) for i in range(cells.max() + 1)])


def dense_fit(images, n_classes):
    votes, cells, bands = dense_images(images)
    tempered = dense_tempering(votes, n_classes)
    first = dense_em(votes, cells, bands, n_classes, tempered, labelmodel.FIRST)
    known = ~np.isnan(first.reliability)
    quality = np.where(known, first.reliability, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    weights = tempered * np.sqrt(np.maximum(quality / quality.max(), labelmodel.HEARD))
    model = dense_em(votes, cells, bands, n_classes, weights, labelmodel.ROUNDS)
    said = one_hot(votes[:, weights > 0], n_classes).any(axis=1)
    if not (said.sum(axis=1) > 1).any():
        return replace(model, fallback="no teacher contradicts another")
    return model


def dense_em(votes, cells, bands, n_classes, weights, most):
    said = one_hot(votes, n_classes)
    posterior = dense_shares(said, weights)
    confusions = np.zeros((len(weights), n_classes, n_classes))
    for rounds in range(1, most + 1):
        counts = np.einsum("nc,ntl->tcl", posterior, said.astype(float), optimize=True)
        before = confusions
        confusions = (counts + 1) / (counts + 1).sum(axis=2, keepdims=True)
        mass = by_cell(posterior, cells)
        prior = np.stack([mass[bands == k].sum(axis=0) + 1 for k in range(labelmodel.BANDS)])
        model = LabelModel(weights, confusions, normalised(prior), weights, rounds)
        posterior, _ = dense_posterior(votes, cells, bands, mass, model)
        converged = np.abs(confusions - before).max() < labelmodel.TOLERANCE
        if converged:
            break
    hits = np.einsum("nc,ntc->tc", dense_right(votes, dense_merged(votes, posterior), model), said)
    settled = posterior.any(axis=1)[:, None, None]  # by those who are heard
    union = posterior.sum(axis=0) + (said & settled).sum(axis=0) - hits
    reliability = np.where(union > 0, hits / np.where(union > 0, union, 1), np.nan)
    return LabelModel(weights, confusions, normalised(prior), reliability, rounds, converged)


def dense_merged(votes, posterior):
    """The posterior as the mean over all pixels with the same votes."""
    _, which = np.unique(votes, axis=0, return_inverse=True)
    which = which.ravel()
    sums = np.stack([np.bincount(which, p) for p in posterior.T], axis=1)
    return (sums / np.bincount(which)[:, None])[which]


def dense_right(votes, posterior, model):
    """(N, C), how often each class is right that has such a share of the posterior."""
    factor, power, alone, most = labelmodel.ODDS
    heard = votes[:, model.weights > 0]
    candidates = one_hot(heard, posterior.shape[1]).any(axis=1)
    share = normalised(posterior).clip(1 - most, most)
    odds = factor * np.sqrt((heard != 255).sum(axis=1))[:, None] * (share / (1 - share)) ** power
    odds = np.where(candidates.sum(axis=1, keepdims=True) == 1, alone * odds, odds)
    return np.where(candidates & posterior.any(axis=1, keepdims=True), odds / (1 + odds), 0)


def dense_fuse(label_maps, model):
    """(H * W, C), how likely each class is at each pixel; zeros where nobody votes."""
    votes, cells, bands = dense_images([label_maps])
    n_classes = model.prior.shape[1]
    if model.fallback is not None:
        return dense_shares(one_hot(votes, n_classes), (model.weights > 0).astype(float))
    priors = np.empty((cells.max() + 1, n_classes))
    for cell in range(len(priors)):
        there = votes[cells == cell]
        only, band = np.zeros(len(there), np.intp), bands[[cell]]
        posterior = dense_shares(one_hot(there, n_classes), model.weights)
        before = None
        for _ in range(labelmodel._CELL_ROUNDS + 1):
            mass = by_cell(posterior, only)
            posterior, prior = dense_posterior(there, only, band, mass, model)
            if before is not None and np.abs(prior - before).max() < labelmodel._CELL_TOLERANCE:
                break
            before = prior
        priors[cell] = prior
    (height, width), (rows, columns) = label_maps.shape[1:], dense_grid(*label_maps.shape[1:])
    step = max(1, width // (columns * labelmodel._STEPS))
    down = nearness((np.arange(height) + 0.5) / height * rows, rows)
    along = nearness((np.arange(width) // step + 0.5) * step / width * columns, columns)
    priors = priors.reshape(rows, columns, -1)
    priors = np.einsum("yr,xk,rkc->yxc", down, along, priors, optimize=True)
    likelihood = dense_likelihood(votes, model)
    return normalised(likelihood * priors.reshape(likelihood.shape))


def nearness(positions, cells):
    """(N, cells), how near each position is to the middle of each cell, from 1 to 0 at the next."""
    middles = np.arange(cells) + 0.5
    return np.stack([np.interp(positions, middles, row) for row in np.eye(cells)], axis=1)


def streets(seed, teachers, n_classes, shape, *, silence=0.1):
    """Maps of areas, with errors in blocks, noise, and pixels without a label."""
    rng = np.random.default_rng(seed)
    _, height, width = size = (teachers, *shape)
    areas = rng.integers(0, n_classes, (-(-height // 6), -(-width // 6)))
    areas = np.kron(areas, np.ones((6, 6), np.int64))
    maps = np.broadcast_to(areas[:height, :width], size)
    blocks = rng.integers(0, n_classes, (teachers, -(-height // 3), -(-width // 4)))
    blocks = np.kron(blocks, np.ones((1, 3, 4), np.int64))[:, :height, :width]
    wrong = np.linspace(0.2, 0.6, teachers)[:, None, None]
    maps = np.where(rng.random(blocks.shape) < wrong, blocks, maps)
    return np.where(rng.random(size) < silence, 255, maps).astype(np.uint8)


def fleet(kind, seed, teachers, n_classes, shape):
    maps = streets(seed, teachers, n_classes, shape, silence=0.0 if kind == "loud" else 0.1)
    if kind == "silent":
        maps[seed % teachers] = 255
    elif kind == "copies":
        maps[teachers // 2 :] = maps[0]
    elif kind == "corner":
        maps[:, : -(-shape[0] // 2), : -(-shape[1] // 2)] = 255
    elif kind == "noise":
        noise = np.random.default_rng(seed).integers(0, n_classes + 1, maps.shape)
        maps = np.where(noise == n_classes, 255, noise).astype(np.uint8)
    return maps


KINDS = ["plain", "loud", "silent", "copies", "corner", "noise"]
SIZES = [(1, 1), (3, 5), (17, 23), (24, 48), (60, 33)]
CASES = [
    (kind, teachers, 2 + (k + teachers) % 5, SIZES[(k + teachers + half) % 5])
    for k, kind in enumerate(KINDS)
    for teachers in range(1, 6)
    for half in (0, 2)
]


@pytest.mark.parametrize(("kind", "teachers", "n_classes", "shape"), CASES)
def test_agrees_with_the_dense_model(kind, teachers, n_classes, shape):
    images = [
        fleet(kind, len(kind) + teachers, teachers, n_classes, shape),
        fleet("plain", teachers, teachers, n_classes, (7, 9)),
    ]
    assert_agrees(images, n_classes)


@st.composite
def problems(draw):
    """Label maps of one little image, with many ties and holes, where at least somebody votes."""
    n_classes = draw(st.integers(1, 5))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 11)))
    label_maps = draw(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(n_classes), 255]))
    )
    assume((label_maps != 255).any())
    return label_maps, n_classes


@quick
@given(problem=problems())
def test_agrees_with_the_dense_model_on_one_little_image(problem):
    label_maps, n_classes = problem
    assert_agrees([label_maps], n_classes)


def assert_agrees(images, n_classes):
    for label_maps in images:
        assert_counts(count(label_maps, n_classes), label_maps)
    votes = join([count(label_maps, n_classes) for label_maps in images])
    expected = dense_fit(images, n_classes)
    model = fit(votes, n_classes)
    assert_close(model, expected)
    for name in ("rounds", "converged", "fallback"):
        assert getattr(model, name) == getattr(expected, name)
    for label_maps in images:
        fused, _ = fuse(label_maps, model)
        dense = dense_fuse(label_maps, model)
        assert_clear_labels(fused, dense)
        for other in (fused, majority(label_maps, n_classes), elsewhere(fused, n_classes)):
            right = dense_right(dense_images([label_maps])[0], dense, model)
            assert_percents(posterior(label_maps, other, model), other, right)


def elsewhere(fused, n_classes):
    """Other labels, so that many pixels have one that nobody gave them, and some none."""
    rolled = np.roll(fused, (1, 2), axis=(0, 1)).astype(int)
    return np.where((rolled % 3 == 2) | (rolled == 255), 255, n_classes - 1 - rolled).astype(
        np.uint8
    )


def assert_percents(found, fused, dense):
    """The percents are those of the dense model, but where its last digits round it."""
    percent, pixels, sums = found
    assert (percent.dtype, pixels.dtype, sums.dtype) == (np.uint8, np.int64, np.int64)
    padded = np.pad(dense, ((0, 0), (0, 256 - dense.shape[1])))
    expected = 100 * np.take_along_axis(padded, fused.reshape(-1, 1).astype(int), axis=1)[:, 0]
    near = np.abs(expected % 1 - 0.5) < 1e-6
    assert (np.abs(percent.ravel() - expected) < 0.5 + 1e-6).all()
    rounded = np.floor(expected + 0.5)
    np.testing.assert_array_equal(percent.ravel()[~near], rounded[~near])
    assert not percent[fused == 255].any()
    for c in range(dense.shape[1]):
        assert pixels[c] == (fused == c).sum()
        assert sums[c] == percent[fused == c].sum(dtype=int)


def assert_clear_labels(fused, posterior):
    """The labels are the likeliest ones, wherever two are not about equally likely."""
    second, best = np.sort(np.pad(posterior, ((0, 0), (1, 0))), axis=1)[:, -2:].T
    clear = best - second > 1e-6
    np.testing.assert_array_equal(fused.ravel()[clear], posterior.argmax(axis=1)[clear])
    np.testing.assert_array_equal(fused.ravel() == 255, best == 0)


def assert_close(model, expected):
    for name in ("weights", "confusions", "prior", "reliability"):
        got, wanted = getattr(model, name), getattr(expected, name)
        np.testing.assert_allclose(got, wanted, err_msg=name, **close)


def by_pattern(votes):
    """For each cell a Counter of pixels by what the teachers say."""
    cells = [Counter() for _ in votes.starts[1:]]
    for i, cell in enumerate(cells):
        for row in range(votes.starts[i], votes.starts[i + 1]):
            cell[tuple(votes.patterns[row].tolist())] += int(votes.pixels[row])
    return cells


def assert_counts(votes, label_maps):
    flat, cells, bands = dense_images([label_maps])
    expected = [Counter() for _ in range(cells.max() + 1)]
    for row, cell in zip(flat.tolist(), cells.tolist(), strict=True):
        expected[cell][tuple(row)] += 1
    assert by_pattern(votes) == expected
    np.testing.assert_array_equal(votes.bands, bands)
    assert len(votes.pixels) == sum(map(len, expected))  # each pattern of a cell once
    assert votes.pixels.sum() == label_maps[0].size
    assert (votes.patterns.dtype, votes.pixels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 7, 16, 31, 100, 257])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16, 31, 100, 257])
def test_cells_tile_the_image(height, width):
    covered = np.zeros((height, width), int)
    boxes = grid(height, width)
    for top, bottom, left, right in boxes:
        assert top < bottom
        assert left < right
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    if width >= height >= 16:  # about square
        sides = (boxes[:, 1] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 2])
        assert (sides > 0.4).all()
        assert (sides < 2.5).all()


def test_a_teacher_who_knows_nothing_is_not_heard():
    maps = streets(0, 4, 12, (48, 96))
    constant = np.full_like(maps[:1], 5)
    model, crowd = (fit(count(m, 12), 12) for m in (maps, np.concatenate([maps, constant])))
    assert (model.weights > 0).all()
    assert crowd.weights[4] == 0 and (crowd.weights[:4] > 0).all()
    assert np.isfinite(crowd.reliability[4, 5])
    alone = np.full((5, 1, 1), 255, np.uint8)
    alone[4] = 5
    assert fuse(alone, crowd)[0] == 255


@quick
@given(problem=problems())
def test_fused_labels_are_among_those_given(problem):
    label_maps, n_classes = problem
    model = fit(count(label_maps, n_classes), n_classes)
    fused, counts = fuse(label_maps, model)
    assert fused.dtype == np.uint8
    label_maps = label_maps[model.weights > 0]
    silent = (label_maps == 255).all(axis=0)
    np.testing.assert_array_equal(fused == 255, silent)
    assert ((fused == label_maps).any(axis=0) | silent).all()
    said = one_hot(label_maps, n_classes).any(axis=0)
    alone = said.sum(axis=-1) == 1
    np.testing.assert_array_equal(fused[alone], said.argmax(axis=-1)[alone])
    several = said.sum(axis=-1) > 1
    assert counts.claimed.tolist() == said.sum(axis=(0, 1)).tolist()
    assert counts.conflict.tolist() == said[several].sum(axis=0).tolist()
    assert (counts.conflict <= counts.claimed).all()
    assert counts.label.tolist() == [(fused == c).sum() for c in range(n_classes)]
    assert counts.won.tolist() == [(fused[several] == c).sum() for c in range(n_classes)]
    assert counts.conflicts == several.sum()
    assert counts.holes == counts.ignored == silent.sum()
    assert counts.pixels == fused.size == counts.label.sum() + counts.ignored
    assert not counts.filled.any()


@quick
@given(problem=problems())
def test_a_model_is_made_of_probabilities(problem):
    label_maps, n_classes = problem
    model = fit(count(label_maps, n_classes), n_classes)
    assert (model.weights >= 0).all()
    assert (model.weights <= 1).all()
    assert (model.confusions > 0).all()
    np.testing.assert_allclose(model.confusions.sum(axis=2), 1)
    assert (model.prior > 0).all()
    np.testing.assert_allclose(model.prior.sum(axis=1), 1)
    known = model.reliability[~np.isnan(model.reliability)]
    assert ((known >= 0) & (known <= 1 + 1e-12)).all()
    settled = label_maps[:, (label_maps[model.weights > 0] != 255).any(axis=0)]
    present = one_hot(settled, n_classes).any(axis=(0, 1))
    np.testing.assert_array_equal(np.isnan(model.reliability).all(axis=0), ~present)


@quick
@given(problem=problems())
def test_a_fused_label_has_the_largest_posterior(problem):
    label_maps, n_classes = problem
    model = fit(count(label_maps, n_classes), n_classes)
    fused, _ = fuse(label_maps, model)
    sure, *_ = posterior(label_maps, fused, model)
    each = np.stack(
        [posterior(label_maps, np.full_like(fused, c), model)[0] for c in range(n_classes)]
    )
    said = one_hot(label_maps[model.weights > 0], n_classes).any(axis=0).transpose(2, 0, 1)
    assert not each[~said].any()
    assert (sure >= each).all()
    alone = said.sum(axis=0) == 1
    assert (sure[alone] > 70).all()


@pytest.mark.parametrize(("voices", "expected"), [(1, 90), (2, 93), (3, 94), (6, 96)])
def test_more_voices_without_contradiction_are_more_certain(voices, expected):
    maps = streets(0, 6, 4, (48, 96), silence=0)
    model = fit(count(maps, 4), 4)
    label_maps = np.full((6, 1, 2), 255, np.uint8)
    label_maps[:voices] = 2
    found, *_ = posterior(label_maps, np.array([[2, 1]], np.uint8), model)
    assert found.tolist() == [[expected, 0]]


def test_without_contradictions_the_majority_counts():
    """Nothing is known of who errs, so that nobody's vote is worth more, whatever he labels."""
    maps = np.repeat(streets(0, 1, 4, (48, 96)), 3, axis=0)
    model = fit(count(maps, 4), 4)
    assert model.fallback == "no teacher contradicts another"
    fused, _ = fuse(maps, model)
    np.testing.assert_array_equal(fused, maps[0])
    label_maps = np.array([[[3, 2, 255]], [[3, 1, 255]], [[1, 255, 255]]], np.uint8)
    for order in permutations(range(3)):
        assert fuse(label_maps[list(order)], model)[0].tolist() == [[3, 1, 255]]
    percent, *_ = posterior(label_maps, np.array([[1, 1, 1]], np.uint8), model)
    assert 0 < percent[0, 0] < percent[0, 1]


def test_where_the_model_does_not_settle_the_majority_counts(monkeypatch):
    monkeypatch.setattr(labelmodel, "ROUNDS", 3)
    maps = streets(1, 3, 2, (48, 96), silence=0)  # no vote of three teachers on two classes ties
    model = fit(count(maps, 2), 2)
    assert (model.rounds, model.converged) == (3, False)
    assert model.fallback == "the model did not settle in 3 rounds"
    expected = majority(maps, 2)
    np.testing.assert_array_equal(fuse(maps, model)[0], expected)
    assert (fuse(maps, replace(model, fallback=None))[0] != expected).any()


def test_a_label_that_a_window_gave_and_no_teacher_does_not_count():
    label_maps = np.zeros((2, 7, 9), np.uint8)
    label_maps[:, 3, 4] = 255  # a hole that the window fills
    label_maps[:, 3, 6] = 2  # which nobody owns: a hole too
    model = fit(count(label_maps, 3), 3)
    fused, _ = channel_wise(
        label_maps, np.array([0, 1, -1]), window=3, conflict="window", holes="window"
    )
    assert not fused.any()
    percent, pixels, sums = posterior(label_maps, fused, model)
    assert percent[3, 4] == percent[3, 6] == 0
    assert pixels.tolist() == [63, 0, 0] and sums.tolist() == [61 * 93, 0, 0]


def test_who_is_not_heard_makes_no_label_probable():
    maps = streets(0, 4, 12, (48, 96))
    crowd = fit(count(np.concatenate([maps, np.full_like(maps[:1], 5)]), 12), 12)
    assert crowd.weights[4] == 0
    alone = np.full((5, 1, 2), 255, np.uint8)
    alone[4], alone[0, 0, 1] = 5, 3
    for label in (3, 5):
        found, *_ = posterior(alone, np.full((1, 2), label, np.uint8), crowd)
        assert found.tolist() == [[0, 90 if label == 3 else 0]]


def test_counts_add_up():
    maps = [fleet("plain", seed, 3, 4, (11, 13)) for seed in (0, 1)]
    model = fit(join([count(m, 4) for m in maps]), 4)
    parts = [fuse(m, model)[1] for m in maps]
    total = reduce(add, parts)
    for field in fields(total):
        expected = sum(np.asarray(getattr(p, field.name)) for p in parts)
        np.testing.assert_array_equal(getattr(total, field.name), expected)
    assert total.pixels == 2 * 11 * 13 == total.label.sum() + total.ignored


@quick
@given(problem=problems(), data=st.data())
def test_votes_of_some_teachers(problem, data):
    label_maps, n_classes = problem
    chosen = data.draw(st.lists(st.integers(0, len(label_maps) - 1), min_size=1, unique=True))
    of = count(label_maps, n_classes).of(chosen)
    alone = count(label_maps[chosen], n_classes)
    # to the order of the rows, on which the last digits of a fit depend
    for field in fields(of):
        np.testing.assert_array_equal(getattr(of, field.name), getattr(alone, field.name))


def test_votes_of_some_teachers_in_several_images():
    images = [fleet("plain", seed, 4, 5, (30, 41)) for seed in (0, 1)]
    of = join([count(m, 5) for m in images]).of([3, 0, 1])
    alone = join([count(m[[3, 0, 1]], 5) for m in images])
    for field in fields(of):
        np.testing.assert_array_equal(getattr(of, field.name), getattr(alone, field.name))
    model, expected = fit(of, 5), fit(alone, 5)
    np.testing.assert_array_equal(model.confusions, expected.confusions)


def test_a_fit_to_some_teachers_is_one_to_their_maps():
    label_maps = fleet("plain", 5, 5, 4, (30, 40))
    for chosen in ([0, 1, 2], [4, 1], [3], [2, 0, 4, 1]):
        some = fit(count(label_maps, 4).of(chosen), 4)
        assert_close(some, fit(count(label_maps[chosen], 4), 4))


def test_join_keeps_the_order():
    images = [fleet("plain", 3, 2, 3, shape) for shape in [(5, 9), (1, 1), (12, 8)]]
    votes = [count(m, 3) for m in images]
    joined = join(votes)
    assert by_pattern(joined) == [cell for v in votes for cell in by_pattern(v)]
    assert joined.starts[0] == 0
    assert joined.starts[-1] == len(joined.pixels) == len(joined.patterns)
    assert by_pattern(join([joined])) == by_pattern(joined)
    assert by_pattern(join([join(votes[:2]), votes[2]])) == by_pattern(joined)
    assert_close(fit(join(votes[::-1]), 3), fit(joined, 3))


def test_a_fit_is_the_same_every_time():
    label_maps = fleet("plain", 9, 4, 5, (40, 60))
    models = [fit(count(label_maps, 5), 5) for _ in range(2)]
    for field in fields(LabelModel):
        one, two = (np.asarray(getattr(model, field.name)) for model in models)
        assert one.tobytes() == two.tobytes()
    fused = [fuse(label_maps, model)[0] for model in models]
    np.testing.assert_array_equal(*fused)


@pytest.mark.parametrize("teachers", [2, 3, 5])
def test_the_order_of_the_teachers_means_nothing(teachers):
    label_maps = fleet("plain", 20 + teachers, teachers, 5, (40, 60))
    model = fit(count(label_maps, 5), 5)
    for order in list(permutations(range(teachers)))[1::7]:
        moved = fit(count(label_maps[list(order)], 5), 5)
        for name in ("weights", "confusions", "reliability"):
            expected = getattr(model, name)[list(order)]
            np.testing.assert_allclose(getattr(moved, name), expected, **close)
        fused, again = fuse(label_maps, model)[0], fuse(label_maps[list(order)], moved)[0]
        np.testing.assert_array_equal(fused, again)


@pytest.mark.parametrize("teachers", [1, 2, 3])  # among more of them many votes are ties
def test_renumbered_classes_are_fused_as_before(teachers):
    label_maps = fleet("plain", 30 + teachers, teachers, 5, (40, 60))
    number = np.full(256, 255, np.uint8)
    number[:5] = [3, 0, 4, 2, 1]
    model, other = (fit(count(m, 5), 5) for m in (label_maps, number[label_maps]))
    np.testing.assert_allclose(other.weights, model.weights, **close)
    np.testing.assert_allclose(other.reliability[:, number[:5]], model.reliability, **close)
    fused, again = fuse(label_maps, model)[0], fuse(number[label_maps], other)[0]
    np.testing.assert_array_equal(number[fused], again)


def test_a_silent_teacher_changes_nothing():
    label_maps = fleet("plain", 40, 4, 5, (40, 60))
    model = fit(count(label_maps, 5), 5)
    more = np.insert(label_maps, 2, 255, axis=0)
    wider = fit(count(more, 5), 5)
    np.testing.assert_allclose(np.delete(wider.weights, 2), model.weights, **close)
    np.testing.assert_allclose(np.delete(wider.confusions, 2, axis=0), model.confusions, **close)
    assert wider.weights[2] < 0.01
    np.testing.assert_array_equal(fuse(more, wider)[0], fuse(label_maps, model)[0])


def test_reads_strided_and_read_only_maps():
    whole = fleet("plain", 50, 3, 4, (20, 30))
    view = whole[:, ::2, ::-3]
    view.flags.writeable = False
    assert by_pattern(count(view, 4)) == by_pattern(count(view.copy(), 4))
    model = fit(count(whole, 4), 4)
    fused = fuse(view, model)[0]
    np.testing.assert_array_equal(fused, fuse(view.copy(), model)[0])
    found, *_ = posterior(view, fused.T.copy().T, model)
    np.testing.assert_array_equal(found, posterior(view.copy(), fused, model)[0])


def drawn(rng, truth, confusions):
    """(T, H, W): each teacher's label of each block of 3 x 3 pixels, drawn by its confusions."""
    labels = []
    for confusion in confusions:
        dice = rng.random((-(-truth.shape[0] // 3), -(-truth.shape[1] // 3)))
        dice = np.kron(dice, np.ones((3, 3)))[: truth.shape[0], : truth.shape[1]]
        labels.append((dice[..., None] > confusion.cumsum(axis=1)[truth]).sum(axis=-1))
    return np.minimum(labels, len(confusions[0]) - 1).astype(np.uint8)


def confusing(right, shift, n_classes=5):
    """A teacher who is right so often, and errs towards one other class for the most part."""
    towards = np.roll(np.eye(n_classes), shift, axis=1)
    return right * np.eye(n_classes) + (1 - right) * (0.8 * towards + 0.2 / n_classes)


def town(rng, confusions):
    """The classes of eight images, in areas, and what teachers of such confusions call them."""
    areas = rng.choice(5, (8, 8, 8), p=[0.35, 0.3, 0.2, 0.1, 0.05])
    truth = np.kron(areas, np.ones((1, 12, 12), np.int64))
    return truth, [drawn(rng, t, confusions) for t in truth]


def fit_all(maps):
    return fit(join([count(m, 5) for m in maps]), 5)


def fuse_all(maps, model):
    return np.array([fuse(m, model)[0] for m in maps])


@pytest.mark.parametrize("seed", range(3))
def test_recovers_what_is_right(seed):
    rng = np.random.default_rng(seed)
    confusions = [confusing(0.9, 1), confusing(0.8, 2), confusing(0.7, 3), confusing(0.6, 4)]
    truth, maps = town(rng, confusions)
    model = fit_all(maps)
    assert model.converged
    assert (np.diff(model.reliability.mean(axis=1)) < -0.02).all()
    assert np.abs(model.confusions - confusions).max() < 0.12
    assert np.abs(model.prior.mean(axis=0) - np.bincount(truth.ravel()) / truth.size).max() < 0.02

    fused = fuse_all(maps, model)
    right = (fused == truth).mean()
    assert right > np.mean([majority(m, 5) for m in maps] == truth) + 0.005
    assert right > max(np.mean(np.array(maps)[:, t] == truth) for t in range(4)) + 0.05

    constant = [np.zeros_like(m[:1]) for m in maps]
    noise = [rng.integers(0, 5, m[:1].shape, np.uint8) for m in maps]
    for useless in ([constant], [noise], [constant, noise]):
        more = [np.concatenate(m) for m in zip(maps, *useless, strict=True)]
        wider = fit_all(more)
        again = fuse_all(more, wider)
        assert np.nanmax(wider.reliability.mean(axis=1)[4:]) < 0.15
        assert (again == fused).mean() > 0.98
        assert (again == truth).mean() > right - 0.01


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_weigh_about_what_one_of_them_weighed(copies):
    _, maps = town(np.random.default_rng(1), [confusing(0.8, 1 + t % 4) for t in range(8)])
    votes = join([count(m, 5) for m in maps])
    weights = fit(votes, 5).weights
    for t in range(0, 8, 3):
        more = fit(votes.of([*range(8), *[t] * (copies - 1)]), 5).weights
        alike = more[[t, *range(8, len(more))]]
        np.testing.assert_allclose(alike, alike[0])
        assert alike.sum() == pytest.approx(weights[t], rel=0.1)
        np.testing.assert_allclose(np.delete(more[:8], t), np.delete(weights, t), rtol=0.1)


def test_ties_go_to_the_lowest_id():
    confusions = np.tile(0.6 * np.eye(4) + 0.1, (2, 1, 1))
    model = LabelModel(
        np.ones(2), confusions, np.full((labelmodel.BANDS, 4), 0.25), np.ones((2, 4))
    )
    label_maps = np.array([[[3, 1, 255, 255]], [[2, 2, 3, 255]]], np.uint8)
    for maps in (label_maps, label_maps[::-1]):
        assert fuse(maps[:, :, :1], model)[0].tolist() == [[2]]
        assert fuse(maps[:, :, 1:2], model)[0].tolist() == [[1]]
        assert fuse(maps[:, :, 2:], model)[0].tolist() == [[3, 255]]


def test_the_prior_goes_over_from_the_middle_of_one_cell_to_the_next():
    confusions = np.tile(0.6 * np.eye(2) + 0.2, (2, 1, 1))
    model = LabelModel(np.ones(2), confusions, np.full((labelmodel.BANDS, 2), 0.5), np.ones((2, 2)))
    label_maps = np.zeros((2, 80, 160), np.uint8)  # cells of 20 x 20 pixels
    label_maps[:, np.arange(80) % 5 < 3, 80:] = 1  # on the right, 3 of 5 pixels
    label_maps[:, 10] = np.array([[0], [1]])  # here nobody knows
    fused, _ = fuse(label_maps, model)
    (switch,) = np.flatnonzero(np.diff(fused[10].astype(int)))
    assert fused[10, [0, -1]].tolist() == [0, 1]
    assert 82 < switch < 90  # the cells meet at 80, where both their priors count for a half


@pytest.mark.parametrize("shape", [(90, 61), (200, 29), (29, 200), (64, 128), (7, 300)])
def test_fuses_as_the_dense_model_does_across_cells(shape):
    label_maps = fleet("corner", 70, 3, 5, shape)
    model = fit(count(label_maps[:, :40, :40], 5), 5)
    fused, _ = fuse(label_maps, model)
    dense = dense_fuse(label_maps, model)
    assert_clear_labels(fused, dense)
    right = dense_right(dense_images([label_maps])[0], dense, model)
    assert_percents(posterior(label_maps, fused, model), fused, right)
    one_prior = normalised(
        dense_likelihood(dense_images([label_maps])[0], model) * model.prior.mean(axis=0)
    )
    assert (dense.argmax(axis=1) != one_prior.argmax(axis=1)).any()  # the cells matter


@pytest.mark.parametrize("room", [1, 7, 600])
def test_noise_needs_more_room(room, monkeypatch):
    label_maps = fleet("noise", 80, 3, 5, (48, 64))
    votes = count(label_maps, 5)
    model = fit(votes, 5)
    expected, _ = fuse(label_maps, model)
    monkeypatch.setattr(labelmodel, "_ROOM", room)
    again = count(label_maps, 5)
    for name in ("patterns", "pixels", "starts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(votes, name))
    np.testing.assert_array_equal(fuse(label_maps, model)[0], expected)


@pytest.mark.parametrize(
    ("teachers", "n_classes", "shape"),
    [(2, 254, (30, 40)), (9, 65, (30, 40)), (12, 200, (20, 30)), (40, 70, (12, 10))],
)
def test_many_classes_and_many_teachers(teachers, n_classes, shape):
    label_maps = streets(teachers, teachers, n_classes, shape)
    label_maps[0, 0, 0] = n_classes - 1
    assert_counts(count(label_maps, n_classes), label_maps)
    model = fit(count(label_maps, n_classes), n_classes)
    assert ((model.weights >= 0) & (model.weights <= 1)).all()
    fused, counts = fuse(label_maps, model)
    assert counts.label.shape == (n_classes,)
    dense = dense_fuse(label_maps, model)
    assert_clear_labels(fused, dense)
    right = dense_right(dense_images([label_maps])[0], dense, model)
    assert_percents(posterior(label_maps, fused, model), fused, right)


MAPS = np.zeros((2, 3, 4), np.uint8)


@pytest.mark.parametrize("call", ["count", "fuse"])
@pytest.mark.parametrize(
    ("label_maps", "error", "message"),
    [
        (MAPS.astype(np.int64), TypeError, "label_maps must be uint8, got int64"),
        (MAPS.astype(bool), TypeError, "label_maps must be uint8, got bool"),
        (MAPS[:, 0], ValueError, r"\(N, H, W\) and not empty, got shape \(2, 4\)"),
        (MAPS[..., None], ValueError, r"\(N, H, W\)"),
        (MAPS[:, :0], ValueError, "not empty"),
        (MAPS[:, :, :0], ValueError, "not empty"),
        (MAPS + np.uint8(2), ValueError, r"holds the value 2; .* 0\.\.1 or 255"),
        (MAPS + np.uint8(254), ValueError, "holds the value 254"),
    ],
)
def test_refuses_other_maps(call, label_maps, error, message):
    model = fit(count(MAPS, 2), 2)
    with pytest.raises(error, match=message):
        count(label_maps, 2) if call == "count" else fuse(label_maps, model)


def test_refuses_maps_of_no_teacher():
    with pytest.raises(ValueError, match="not empty"):
        count(MAPS[:0], 2)


@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("value", [5, 200, 253, 254])
def test_an_illegal_label_is_found_wherever_it_is(position, value):
    label_maps = np.full((3, 9, 71), 255, np.uint8)
    label_maps[position, position, position] = value
    with pytest.raises(ValueError, match=f"label_maps holds the value {value}"):
        count(label_maps, 5)


def test_refuses_the_maps_of_other_teachers():
    model = fit(count(MAPS, 2), 2)
    for teachers in (1, 3):
        with pytest.raises(ValueError, match=f"knows 2 teachers, got label maps of {teachers}"):
            fuse(MAPS[:1].repeat(teachers, axis=0), model)
        with pytest.raises(ValueError, match=f"knows 2 teachers, got label maps of {teachers}"):
            posterior(MAPS[:1].repeat(teachers, axis=0), MAPS[0], model)


def test_refuses_fused_labels_of_another_form():
    model = fit(count(MAPS, 2), 2)
    for fused, error, message in (
        (MAPS[0].astype(np.int64), TypeError, "fused must be uint8, got int64"),
        (MAPS, ValueError, r"fused must be \(H, W\)"),
        (MAPS[0, :2], ValueError, r"fused is \(2, 4\), the label maps are \(3, 4\)"),
        (MAPS[0] + np.uint8(2), ValueError, r"fused holds the value 2; .* 0\.\.1 or 255"),
        (MAPS[0] + np.uint8(254), ValueError, "fused holds the value 254"),
    ):
        with pytest.raises(error, match=message):
            posterior(MAPS, fused, model)


def test_refuses_votes_that_say_nothing():
    silent = count(np.full((3, 5, 4), 255, np.uint8), 6)
    nothing = Votes(silent.patterns[:0], silent.pixels[:0], np.zeros(1, np.int64), silent.bands[:0])
    for votes in (silent, join([silent, silent]), nothing):
        with pytest.raises(ValueError, match="no teacher votes for any pixel"):
            fit(votes, 6)
    with pytest.raises(ValueError, match=r"votes holds the value 5; .* 0\.\.3 or 255"):
        fit(count(np.full((1, 1, 1), 5, np.uint8), 6), 4)


def votes_of(*teachers):
    """Votes in an image of one row, a list of labels for each teacher."""
    return count(np.array(teachers, np.uint8)[:, None, :], 3)


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        (([0, 1, 2],), 1),
        (([0, 1, 2], [0, 0, 0]), 2),
        (([0, 1, 2], [0, 1, 2]), 1),  # a copy
        (([0, 1, 2], [0, 1, 2], [2, 1, 0]), 2),
        (([0, 1, 2], [0, 0, 2], [2, 1, 0]), 3),
        (([0, 1, 255], [0, 255, 2], [255, 1, 2]), 1),  # they never contradict each other
        (([0, 255, 255], [255, 1, 255], [1, 0, 2]), 2),  # each meets the third alone
        (([0, 1, 2], [0, 0, 0], [255, 255, 255]), 2),  # says nothing
        (([0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]), 2),
    ],
)
def test_opinions_that_meet(teachers, expected):
    assert opinions(votes_of(*teachers), 3) == expected
    assert opinions(votes_of(*reversed(teachers)), 3) == expected


def test_an_opinion_is_held_on_more_than_a_few_pixels():
    """A copy that was resized differs here and there; a third voice on a few pixels is none."""
    random = np.random.default_rng(0)
    one, other, third = random.integers(0, 3, (3, 5000))
    copy = np.where(np.arange(5000) < 20, (one + 1) % 3, one)
    seldom = np.where(np.arange(5000) < 20, third, 255)
    assert opinions(votes_of(one, copy, other), 3) == 2
    assert opinions(votes_of(one, other, seldom), 3) == 2
    assert opinions(votes_of(one, other, third), 3) == 3
    copy[:40] = (one[:40] + 1) % 3
    assert opinions(votes_of(one, copy, other), 3) == 3


def test_opinions_of_nobody():
    with pytest.raises(ValueError, match="no teacher votes"):
        opinions(votes_of([255, 255]), 3)
