"""A label model: what several teachers' labels say of the class of a pixel, without ground truth.

The model of Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM
Algorithm", Applied Statistics 28 (1979): teacher t gives a pixel of class c the label l with
probability theta_t[c, l], independently of the other teachers, and EM finds theta and the classes
at once. STAPLE (Warfield, Zou, Wells, 2004) is the same for segmentations. Four things keep it to
what the teachers mean, where errors are shared and classes are rare:

- *Candidates.* The class of a pixel is one of the labels that it was given (as in learning from
  candidate labels; Cour, Sapp, Taskar, 2011). Without it hidden classes wander off.
- *A prior by place.* What is at the top of an image is seldom what is at its bottom: each of
  `BANDS` bands has a prior of its own, over all images. And the classes of a cell of a band, about
  square, have one that holds to its band's, as in the local STAPLE of Commowick, Akhondi-Asl,
  Warfield (2012); it goes over from the middle of one cell to that of the next.
- *Tempering.* Teachers share their errors, so that their votes say less than independent ones:
  p ~ theta ** weight. Estimates that correlate by r are worth 1 / (1 + (T - 1) r) each; for r
  stands how often two teachers deviate alike from the others. Its mean tempers all votes to the
  same degree, as whoever contradicts a wrong plurality deviates alike, too: by teacher it would
  punish the good ones. Copies only are counted by teacher, as one.
- *Quality.* A first fit hears every teacher by that alone, a second one also by the square root of
  what the first found of him: the mean IoU of his labels with the model's classes. Who agrees less
  than `HEARD` times as well with the others as the best does is not heard at all: a teacher who
  knows nothing would make his label a candidate everywhere.

The constants were chosen on three kinds of worlds together (see stages/DESIGN.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX
from ensdistill.stages.functional._checks import (
    check_counted,
    check_form,
    check_highest,
    check_n_classes,
)
from ensdistill.stages.functional.fusion import FusionCounts, frozen
from ensdistill.stages.functional.numbers import shares
from ensdistill.stages.functional.scores import iou, mean_iou

__all__ = [
    "LabelModel",
    "Votes",
    "count",
    "fit",
    "fuse",
    "grid",
    "join",
    "opinions",
    "posterior",
    "warm_up",
]

BANDS: Final = 6
"""Rows of cells of an image."""
HELD: Final = 3
"""How much of its band's prior there is in a cell's, as a multiple of the cell's pixels."""
COPY: Final = 8
"""The power of two teachers' alikeness by which a vote counts as a copy of the other."""
TOLERANCE: Final = 1e-3
"""EM ends when no probability of a confusion matrix changes by more."""
ROUNDS: Final = 200
"""The most rounds of EM."""
FIRST: Final = 7
"""The rounds of the first fit, of which only each teacher's quality is wanted."""
HEARD: Final = 0.1
"""The part of the best teacher's agreement with the others below which one is not heard. Also the
floor of quality: who is heard counts as if his were at least this part of the best one's."""
ODDS: Final = (0.22, 0.5, 3.0, 0.995)
"""The odds that a candidate is right: ODDS[0] times the root of the number of voices, times the
odds of its share of the posterior (at most ODDS[3]) to the power of ODDS[1], times ODDS[2] where
nobody contradicts it. EM is too sure of itself, as errors are shared."""
COPIES: Final = 0.005
"""Who contradicts another on less of the pixels that both label has the same opinion."""

_CELL_TOLERANCE: Final = 1e-3
_CELL_ROUNDS: Final = 20
_STEPS: Final = 8  # steps of the prior from one cell to the next
_ROOM: Final = 1 << 15  # patterns of an image, at first

UInt8 = NDArray[np.uint8]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes in an image or in several, counted by cell and pattern.

    Attributes
    ----------
    patterns
        (R, T) uint8, what the T teachers say: class ids or 255.
    pixels
        (R,) int64, how many pixels of the cell they say it of.
    starts
        (cells + 1,) int64: cell i has the rows `starts[i]` to `starts[i + 1]`.
    bands
        (cells,) uint8, which of the `BANDS` of its image a cell is in, from the top.
    """

    patterns: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    starts: NDArray[np.int64]
    bands: NDArray[np.uint8]

    def of(self, teachers: Sequence[int]) -> "Votes":
        """Return the votes of some teachers only, just as if no other had been counted."""
        from ensdistill.stages.functional import _voting as voting

        patterns = np.empty((len(self.pixels), len(teachers)), np.uint8)
        places, merged = np.empty((2, len(self.pixels)), np.int32)
        slots = _hash_table(len(self.pixels))
        known = voting.enrol(frozen(self.patterns[:, teachers]), slots, patterns, places)
        pixels, starts = np.empty_like(self.pixels), np.empty_like(self.starts)
        rows = voting.merge(
            self.starts, places, self.pixels, np.full(known, -1), merged, pixels, starts
        )
        return Votes(patterns[merged[:rows]], pixels[:rows].copy(), starts, self.bands)


@dataclass(frozen=True, eq=False)
class LabelModel:
    """What is known of the teachers.

    Attributes
    ----------
    weights
        (T,) float64 in [0, 1], how much each teacher's vote counts, as the exponent of its
        likelihood: less the more errors are shared and the worse the teacher is, 0 if not heard.
    confusions
        (T, C, C) float64 above 0, `confusions[t, c, l]` = p(label l | class c); rows sum to 1.
    prior
        (BANDS, C) float64 above 0, the classes' shares of each band of all images; rows sum to 1.
    reliability
        (T, C) float64, the IoU that is expected of each teacher's class; NaN where neither the
        teacher nor the model has it. Its order is more to be trusted than its values.
    rounds
        How many rounds EM took.
    converged
        Whether EM ended of itself.
    fallback
        Why the majority of the votes counts instead; None where it does not.
    """

    weights: Float64
    confusions: Float64
    prior: Float64
    reliability: Float64
    rounds: int = 0
    converged: bool = True
    fallback: str | None = None


def grid(height: int, width: int) -> NDArray[np.int64]:
    """Return the cells of an image, about square: (cells, 4) top, bottom, left, right in pixels."""
    rows, columns = _cells(height, width)
    ys, xs = np.arange(rows + 1) * height // rows, np.arange(columns + 1) * width // columns
    return np.array(
        [(ys[i], ys[i + 1], xs[j], xs[j + 1]) for i in range(rows) for j in range(columns)],
        np.int64,
    )


def count(label_maps: NDArray[np.uint8], n_classes: int) -> Votes:
    """Count the votes of an image by cell.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255, one map for each teacher.
    n_classes
        C, 1 to 254.

    Raises
    ------
    TypeError
        If `label_maps` is not uint8.
    ValueError
        If it is not (T, H, W), or a label is neither a class id nor 255.
    """
    image = _Image(label_maps, n_classes)
    return Votes(image.patterns[image.places], image.pixels, image.starts, image.bands)


def join(votes: Sequence[Votes]) -> Votes:
    """Return the votes of several images as one."""
    ends = np.cumsum([0, *(len(v.pixels) for v in votes)])
    starts = [v.starts[:-1] + end for v, end in zip(votes, ends, strict=False)]
    return Votes(
        np.concatenate([v.patterns for v in votes]),
        np.concatenate([v.pixels for v in votes]),
        np.append(np.concatenate(starts), ends[-1]),
        np.concatenate([v.bands for v in votes]),
    )


def fit(votes: Votes, n_classes: int) -> LabelModel:
    """Fit the label model by EM, from votes alone.

    Parameters
    ----------
    votes
        Of many images (`join`).
    n_classes
        C, 1 to 254.

    Raises
    ------
    ValueError
        If nobody votes at all.
    """
    table = _Table(votes, n_classes)
    tempered = _tempering(table)
    table.listen(tempered > 0)
    quality = _mean_reliability(_em(table, tempered, FIRST).reliability)
    # equal teachers stay equal, whatever order their pixels were summed in: sums of votes tie
    weights = tempered * np.sqrt(np.maximum(quality / quality.max(), HEARD)).round(12)
    model = _em(table, weights, ROUNDS)
    return replace(model, fallback=_fallback(table, model))


def opinions(votes: Votes, n_classes: int) -> int:
    """Count the different opinions that meet: who errs is only to be told of three or more.

    Teachers of one opinion contradict each other on less than `COPIES` of the pixels that both
    label, as a copy does, or two that know a single class.

    Returns
    -------
    int
        The most opinions that pixels hold, on at least `COPIES` of those with a label; of votes as
        in `fit`, with the same errors.
    """
    table = _Table(votes, n_classes)
    said = table.patterns != IGNORE_INDEX
    teachers = said.shape[1]
    opinion = np.arange(teachers)
    for i in range(teachers):
        for j in range(i):
            both = said[:, i] & said[:, j]
            differ = both & (table.patterns[:, i] != table.patterns[:, j])
            if both.any() and table.pixels[differ].sum() < COPIES * table.pixels[both].sum():
                opinion[opinion == opinion[i]] = opinion[j]
    held = sum(said[:, opinion == one].any(axis=1).astype(int) for one in np.unique(opinion))
    meet = np.bincount(held, table.pixels)[1:][::-1].cumsum()[::-1]  # at least 1, 2, ...
    return int(np.count_nonzero(meet >= COPIES * meet[0]))


def fuse(
    label_maps: NDArray[np.uint8], model: LabelModel
) -> tuple[NDArray[np.uint8], FusionCounts]:
    """Give each pixel the likeliest of the labels that the teachers give it.

    By a model with a `fallback` it is the label that most of them give it.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255, in the order of the model's teachers. 255 never
        votes.
    model
        From `fit`.

    Returns
    -------
    fused
        (H, W) uint8; ties go to the lowest id; 255 where nobody who is heard votes.
    counts
        Each label that a pixel is given counts as a claim. Nothing is ever filled.

    Raises
    ------
    TypeError
        If `label_maps` is not uint8.
    ValueError
        If it is not (T, H, W) with the model's T, or a label is neither a class id nor 255.
    """
    from ensdistill.stages.functional import _voting as voting

    n_classes = model.prior.shape[1]
    runs, _, candidates, likelihood, priors, step = _settle(label_maps, model)
    fused = np.empty(label_maps.shape[1:], np.uint8)
    counts = np.zeros((4, 256), np.int64)
    voting.write_labels(runs, candidates, likelihood, priors, step, fused, counts)
    claimed, conflict, won, label = counts[:, :n_classes]
    return fused, FusionCounts(
        claimed=claimed,
        conflict=conflict,
        won=won,
        filled=np.zeros(n_classes, np.int64),
        label=label,
        pixels=fused.size,
        conflicts=int(won.sum()),
        holes=int(counts[3, IGNORE_INDEX]),
        ignored=int(counts[3, IGNORE_INDEX]),
    )


def posterior(
    label_maps: NDArray[np.uint8], fused: NDArray[np.uint8], model: LabelModel
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Say how probable each pixel's fused label is by the model, whatever method fused it.

    It is how often such a label is right, calibrated (`ODDS`) by its share of the posterior (of
    the votes, by a model with a `fallback`), by how many vote and by whether all agree: no label is
    more probable than that of `fuse`, and those of a pixel need not add up to 100 percent. A label
    that no teacher who is heard gives (a window may fill or settle a pixel with it) has none.

    Parameters
    ----------
    label_maps, model
        As in `fuse`, with the same errors.
    fused
        (H, W) uint8 of class ids or 255.

    Returns
    -------
    percent
        (H, W) uint8, 0 to 100, rounded to the nearest; where all who are heard and vote give the
        fused label, from 90 for one of them to 96 for six; 0 where it is 255 or no candidate.
    pixels
        (C,) int64, the pixels of each fused label.
    sums
        (C,) int64, the sum of their percents. Both add up exactly over images.

    Raises
    ------
    TypeError, ValueError
        If `fused` is not as above.
    """
    from ensdistill.stages.functional import _voting as voting

    n_classes = model.prior.shape[1]
    runs, patterns, candidates, likelihood, priors, step = _settle(label_maps, model)
    check_form("fused", fused, ndim=2)
    if fused.shape != label_maps.shape[1:]:
        raise ValueError(f"fused is {fused.shape}, the label maps are {label_maps.shape[1:]}")
    percent = np.empty(fused.shape, np.uint8)
    counts = np.zeros((2, 256), np.int64)
    voting.write_posterior(
        runs,
        patterns,
        candidates,
        model.weights,
        np.array(ODDS),
        likelihood,
        priors,
        step,
        frozen(fused),
        percent,
        counts,
    )
    check_counted("fused", counts[0], n_classes)
    return percent, counts[0, :n_classes], counts[1, :n_classes]


def warm_up() -> None:
    """Compile, or load, what `fuse` needs."""
    one = np.ones((1, 1, 1))
    fuse(np.zeros((1, 1, 1), np.uint8), LabelModel(one[0, 0], one, np.ones((BANDS, 1)), one[0]))


class _Settled(NamedTuple):
    """What the model knows of an image: what `write_labels` and `write_posterior` begin with."""

    runs: NDArray[np.int32]
    patterns: NDArray[np.uint8]
    candidates: NDArray[np.uint8]
    likelihood: Float64
    priors: Float64
    step: int


def _settle(label_maps: NDArray[np.uint8], model: LabelModel) -> _Settled:
    from ensdistill.stages.functional import _voting as voting

    n_classes = model.prior.shape[1]
    check_form("label_maps", label_maps, ndim=3)
    if len(label_maps) != len(model.weights):
        raise ValueError(
            f"the model knows {len(model.weights)} teachers, got label maps of {len(label_maps)}"
        )
    image = _Image(label_maps, n_classes)
    candidates = np.empty_like(image.patterns)
    voting.list_candidates(image.patterns, model.weights > 0, candidates)
    priors = np.ones((len(image.bands), n_classes))
    if model.fallback is not None:
        likelihood = _shares(image.patterns, candidates, np.where(model.weights > 0, 1.0, 0.0))
    else:
        likelihood = _likelihood(image.patterns, candidates, model.weights, model.confusions)
        voting.settle(
            image.starts,
            image.bands,
            image.places,
            image.pixels,
            candidates,
            _shares(image.patterns, candidates, model.weights),
            likelihood,
            model.prior,
            HELD,
            _CELL_TOLERANCE,
            _CELL_ROUNDS,
            priors,
        )
    height, width = label_maps.shape[1:]
    rows, columns = _cells(height, width)
    return _Settled(
        image.runs,
        image.patterns,
        candidates,
        likelihood,
        priors.reshape(rows, columns, n_classes),
        max(1, width // (columns * _STEPS)),
    )


class _Image:
    """An image as runs of equal votes, cell by cell; the arrays as in `_voting.read_image`."""

    def __init__(self, label_maps: NDArray[np.uint8], n_classes: int):
        check_n_classes(n_classes)
        check_form("label_maps", label_maps, ndim=3)

        from ensdistill.stages.functional import _voting as voting

        label_maps = frozen(label_maps)
        teachers, height, width = label_maps.shape
        changes = np.empty((height, -(-width // 8) * 8), np.uint8)
        check_highest("label_maps", voting.mark_changes(label_maps, changes), n_classes)
        boxes = grid(height, width)
        room, known = _ROOM, -1
        while known < 0:  # maps of noise need more room than maps of streets
            patterns = np.empty((room, teachers), np.uint8)
            places, pixels = np.empty(room, np.int32), np.empty(room, np.int64)
            runs = np.empty((4 * room, 4), np.int32)
            self.starts = np.empty(len(boxes) + 1, np.int64)
            known, n_runs = voting.read_image(
                label_maps,
                changes,
                changes.view(np.uint64),
                boxes,
                _hash_table(room),
                patterns,
                np.full(room, -1),
                places,
                pixels,
                self.starts,
                runs,
            )
            room *= 4
        rows, columns = _cells(height, width)
        self.bands = np.repeat(np.arange(rows) * BANDS // rows, columns).astype(np.uint8)
        self.patterns, self.runs = patterns[:known], runs[:n_runs]
        self.places, self.pixels = places[: self.starts[-1]], pixels[: self.starts[-1]]


class _Table:
    """Votes with each pattern once."""

    def __init__(self, votes: Votes, n_classes: int):
        from ensdistill.stages.functional import _voting as voting

        check_n_classes(n_classes)
        labelled = votes.patterns != IGNORE_INDEX
        check_highest("votes", int(votes.patterns.max(initial=0, where=labelled)), n_classes)
        patterns, slots = np.empty_like(votes.patterns), _hash_table(len(votes.patterns))
        self.votes, self.n_classes = votes, n_classes
        self.places = np.empty(len(votes.patterns), np.int32)
        known = voting.enrol(frozen(votes.patterns), slots, patterns, self.places)
        self.patterns = patterns[:known]
        self.pixels: Float64 = np.bincount(self.places, votes.pixels, known).astype(np.float64)
        self.candidates = np.empty_like(self.patterns)
        self.listen(np.ones(patterns.shape[1], bool))
        if not labelled.any():
            raise ValueError("no teacher votes for any pixel")

    def listen(self, heard: NDArray[np.bool_]) -> None:
        """Take the labels of some teachers for candidates."""
        from ensdistill.stages.functional import _voting as voting

        voting.list_candidates(self.patterns, heard, self.candidates)


def _fallback(table: _Table, model: LabelModel) -> str | None:
    """Say why the evidence does not carry the model, if it does not.

    Two teachers, one family or a single image do carry it: see stages/DESIGN.md for what the model
    gains on majority there.
    """
    if (table.candidates[:, 1:] == IGNORE_INDEX).all():
        return "no teacher contradicts another"
    if not model.converged:
        return f"the model did not settle in {model.rounds} rounds"
    return None


def _tempering(table: _Table) -> Float64:
    """(T,) what a vote of each teacher is worth before its quality counts; 0 if it is not heard."""
    from ensdistill.stages.functional import _voting as voting

    teachers, n_classes = table.patterns.shape[1], table.n_classes
    confmats = np.zeros((teachers, n_classes, n_classes + 1))
    voting.compare_with_others(table.patterns, table.candidates, table.pixels, confmats)
    agreement = np.array([mean_iou(iou(c)) for c in confmats.astype(np.int64)])
    agreement = np.nan_to_num(agreement)
    heard = agreement >= HEARD * agreement.max()
    unique = np.ones(teachers)
    for _ in range(2):
        alike = _alike(table, unique)
        copy = alike**COPY
        unique = 1 / (1 + copy.sum(axis=1))
        if unique.min() > 0.9:
            break  # else what all but two say is asked anew, where copies count once
    voices = unique * heard
    shared = voices @ (alike * (1 - copy)) @ voices / voices.sum()
    return np.asarray((voices / (1 + shared)).round(12))


def _alike(table: _Table, weights: Float64) -> Float64:
    """(T, T), the part of where t or s deviates from the others that both call the same; 0 to 1."""
    from ensdistill.stages.functional import _voting as voting

    teachers = table.patterns.shape[1]
    if teachers < 3:  # nobody to compare two with
        return np.zeros((teachers, teachers))
    labelled = np.stack([np.bincount(v, table.pixels, 256) for v in table.patterns.T]).astype(float)
    deviations, alike = voting.count_deviations(
        table.patterns, table.candidates, table.pixels, weights, labelled
    )
    shared = np.divide(alike, deviations, out=np.zeros_like(alike), where=deviations > 0)
    shared = (shared + shared.T) / 2
    np.fill_diagonal(shared, 0.0)
    return np.asarray(shared)


def _em(table: _Table, weights: Float64, most: int) -> LabelModel:
    """Let EM run from the votes to where nothing changes, or for so many rounds."""
    from ensdistill.stages.functional import _voting as voting

    votes, n_classes = table.votes, table.n_classes
    shares = _shares(table.patterns, table.candidates, weights)
    found = shares * table.pixels[:, None]
    mass = np.zeros((len(votes.bands), n_classes))
    voting.sum_all_shares(votes.starts, table.places, votes.pixels, table.candidates, shares, mass)
    confusions = np.zeros((len(weights), n_classes, n_classes))
    rounds, converged = 0, False
    while rounds < most and not converged:
        before, confusions = confusions, _maximise(table, found)
        converged = bool(np.abs(confusions - before).max() < TOLERANCE)
        prior = _by_band(mass, votes.bands)
        voting.expect_all(
            votes.starts,
            votes.bands,
            table.places,
            votes.pixels,
            table.candidates,
            _likelihood(table.patterns, table.candidates, weights, confusions),
            prior,
            HELD,
            mass,
            found,
        )
        rounds += 1
    reliability = _reliability(table, weights, found)
    return LabelModel(weights, confusions, prior, reliability, rounds, converged)


def _maximise(table: _Table, found: Float64) -> Float64:
    """The M step: (T, C, C) p(label | class)."""
    counts = _count(table, found) + 1
    return np.asarray(counts / counts.sum(axis=2, keepdims=True))


def _by_band(mass: Float64, bands: NDArray[np.uint8]) -> Float64:
    """(BANDS, C), the prior, from (cells, C) the pixels of each class."""
    prior = np.ones((BANDS, mass.shape[1]))
    np.add.at(prior, bands, mass)
    return np.asarray(prior / prior.sum(axis=1, keepdims=True))


def _count(table: _Table, found: Float64) -> Float64:
    """(T, C, C), how many pixels of each class each teacher gave each label."""
    from ensdistill.stages.functional import _voting as voting

    counts = np.zeros((table.patterns.shape[1], table.n_classes, table.n_classes))
    voting.count_votes(table.patterns, table.candidates, found, counts)
    return counts


def _shares(patterns: UInt8, candidates: UInt8, weights: Float64) -> Float64:
    """(P, T), the weight of the votes for each candidate of a pattern, as a fraction."""
    from ensdistill.stages.functional import _voting as voting

    found = np.empty(patterns.shape)
    voting.share_votes(patterns, candidates, weights, found)
    return found


def _likelihood(
    patterns: UInt8, candidates: UInt8, weights: Float64, confusions: Float64
) -> Float64:
    """(P, T), each candidate's likelihood, over that of the likeliest."""
    from ensdistill.stages.functional import _voting as voting

    likelihood = np.empty(patterns.shape)
    evidence = weights[:, None, None] * np.log(confusions)
    voting.weigh(patterns, candidates, evidence, likelihood)
    return likelihood


def _reliability(table: _Table, weights: Float64, found: Float64) -> Float64:
    """(T, C): the IoU of a teacher's label with the class, in expected pixels."""
    from ensdistill.stages.functional import _voting as voting

    right = np.empty_like(found)
    voting.calibrate_all(table.patterns, table.candidates, weights, np.array(ODDS), found, right)
    hits = np.diagonal(_count(table, right), axis1=1, axis2=2)
    of_class = np.bincount(table.candidates.ravel(), found.ravel(), 256)[: table.n_classes]
    union = of_class + _count(table, found).sum(axis=1) - hits
    return shares(hits, union)


def _mean_reliability(reliability: Float64) -> Float64:
    """(T,), over the classes that teacher or model knows; 0 for who knows none."""
    known = ~np.isnan(reliability)
    return np.asarray(np.where(known, reliability, 0).sum(1) / np.maximum(known.sum(1), 1))


def _cells(height: int, width: int) -> tuple[int, int]:
    rows = min(BANDS, height)
    return rows, min(max(1, round(rows * width / height)), width)


def _hash_table(entries: int) -> NDArray[np.int32]:
    return np.zeros(1 << (2 * max(entries, 1) - 1).bit_length(), np.int32)
