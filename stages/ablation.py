"""`ablation`: what bad teachers cost, and which teachers together beat the best of them.

The robustness and the flexibility of Chao, Cheng, Lee (CVPR Workshops 2021, Tables 2 and 3), for
the label model and majority voting. Ground truth is opened here, to score what was fused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ensdistill.data.pictures import Decoder
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.fusion import majority
from ensdistill.stages.functional.labelmodel import LabelModel, Votes, count, fit, fuse, join
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.functional.spoiling import relabel_segments
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored
from ensdistill.stages.labelmodel import IMAGES, spread
from ensdistill.stages.parallel import for_each

SHARE: Final = 0.4
"""The part of the segments that the teacher `segments` has wrong."""
BAD: Final = ("segments", "constant", "copy")
"""The bad teachers, in the order in which they join."""
LEAST: Final = 3
"""Teachers of the smallest composition: two of them have no majority."""
METHODS: Final = ("label-model", "majority")

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Members = tuple[int, ...]  # the places of some teachers among all, in the order of their names
_Labelled = tuple[str, str, list[Stored]]  # a file of ground truth, its digest, the label maps


@dataclass(frozen=True)
class _Teachers:
    """Reads what the teachers say of an image, and makes up what bad ones would.

    Attributes
    ----------
    readers : tuple of LabelReader
        Of the T teachers.
    n_classes : int
        C.
    constant : int
        The class that one bad teacher sees everywhere.
    """

    readers: tuple[LabelReader, ...]
    n_classes: int
    constant: int

    def __call__(self, stored: Sequence[Stored]) -> UInt8:
        """Return (T + 2, H, W): the teachers' maps, then those of `segments` and `constant`."""
        maps = [read(one) for read, one in zip(self.readers, stored, strict=True)]
        # by the image alone, so that neither order nor workers matter
        seed = hashlib.sha256(stored[0].id.encode(errors="surrogatepass")).digest()
        random = np.random.default_rng(int.from_bytes(seed))
        segments = relabel_segments(maps[0], SHARE, self.n_classes, random)
        return np.stack([*maps, segments, np.full_like(maps[0], self.constant)])


@dataclass(frozen=True)
class _Counting:
    """Counts the votes in a training image: of the teachers, and with the bad ones."""

    teachers: _Teachers

    def __call__(self, stored: list[Stored]) -> tuple[Votes, Votes]:
        maps, n_classes = self.teachers(stored), self.teachers.n_classes
        return count(maps[:-2], n_classes), count(maps, n_classes)


@dataclass(frozen=True)
class _Scoring:
    """Counts the confusions of each teacher and bad teacher in an image, (T + 2, C, C + 1)."""

    teachers: _Teachers
    decoder: Decoder

    def __call__(self, item: _Labelled) -> Int64:
        file, sha256, stored = item
        target = self.decoder.read(file, sha256)
        return confusion(target, self.teachers(stored), self.teachers.n_classes)


@dataclass(frozen=True)
class _Fitting:
    """Fits the label model to some teachers' votes.

    Attributes
    ----------
    plain, spoilt : Votes
        Of the teachers, and with the bad ones; the bad ones break the images into so many patterns
        that all fits would be slow.
    n_classes : int
        C.
    """

    plain: Votes
    spoilt: Votes
    n_classes: int

    def __call__(self, members: Members) -> LabelModel:
        teachers = self.plain.patterns.shape[1]
        votes = self.plain if max(members) < teachers else self.spoilt
        return fit(votes.of(members), self.n_classes)


@dataclass(frozen=True)
class _Fusing:
    """Fuses an image by every composition, and counts (compositions, 2, C, C + 1) confusions."""

    teachers: _Teachers
    decoder: Decoder
    models: tuple[tuple[Members, LabelModel], ...]

    def __call__(self, item: _Labelled) -> Int64:
        file, sha256, stored = item
        target, maps = self.decoder.read(file, sha256), self.teachers(stored)
        n_classes = self.teachers.n_classes
        confmats = np.empty((len(self.models), len(METHODS), n_classes, n_classes + 1), np.int64)
        for k, (members, model) in enumerate(self.models):
            theirs = maps[list(members)]
            fused = np.stack([fuse(theirs, model)[0], majority(theirs, n_classes)])
            confmats[k] = confusion(target, fused, n_classes)
        return confmats


def run(job: Job) -> dict[str, Any]:
    """Fuse the split by every composition of teachers, and with bad ones, and score it all."""
    local: Local = job.work.local
    size, names = len(local.classes), [str(name) for name in _list(job.work.recipe["teachers"])]
    train, split = (
        [LabelMaps(job.inputs[role]) for role in sorted(job.inputs) if role.startswith(kind)]
        for kind in ("train", "split")
    )
    constant = int(np.argmax(np.sum([m.shares() for m in train], axis=0)))
    ids = spread(sorted(train[0]), IMAGES)
    votes = _count(job, _Teachers(_readers(train), size, constant), train, ids)
    teachers = _Teachers(_readers(split), size, constant)
    decoder = Decoder(local.to_target, palette=local.palette)
    items = [
        (str(p.labels), local.digests[str(p.labels)], [m.find(p.id) for m in split])
        for p in local.pictures
    ]
    alone = _mious(_add_up(job, items, _Scoring(teachers, decoder)))
    everyone = tuple(range(len(names)))
    worst = int(np.argmin(alone[: len(names)]))
    bad = (len(names), len(names) + 1, worst)
    crowds = [everyone + bad[:k] for k in range(len(BAD) + 1)]
    wanted = [*(compositions(len(names)) or [everyone]), *crowds[1:]]
    models = _fit(job, _Fitting(*votes, size), wanted)
    fused = _mious(_add_up(job, items, _Fusing(teachers, decoder, tuple(models))))
    scores = dict(zip((members for members, _ in models), fused, strict=True))
    made_from = (names[0], local.classes.classes[constant], names[worst])
    return {
        "images": len(items),
        "train_images": len(ids),
        "teachers": {t: _number(v) for t, v in zip(names, alone, strict=False)},
        "robustness": _robustness([scores[c] for c in crowds], made_from, alone[list(bad)]),
        "flexibility": _flexibility(names, alone, scores),
    }


def compositions(teachers: int) -> list[Members]:
    """Return all compositions of at least `LEAST` of so many teachers, small ones first."""
    sizes = range(LEAST, teachers + 1)
    return [members for size in sizes for members in combinations(range(teachers), size)]


def _readers(maps: Sequence[LabelMaps]) -> tuple[LabelReader, ...]:
    return tuple(m.reader for m in maps)


def _count(
    job: Job, teachers: _Teachers, maps: Sequence[LabelMaps], ids: Sequence[str]
) -> tuple[Votes, Votes]:
    """Count the votes in the training images: of the teachers, and with the bad ones."""
    votes: dict[str, tuple[Votes, Votes]] = {}
    job.progress.start(len(ids), 0, "training images")
    for_each(
        [[m.find(image_id) for m in maps] for image_id in ids],
        _Counting(teachers),
        lambda stored, found: votes.update({stored[0].id: found}),
        workers=job.work.local.workers,
        progress=job.progress,
    )
    # in the order of the ids: the sums of EM depend on it in their last digits
    plain, spoilt = zip(*(votes[image_id] for image_id in ids), strict=True)
    return join(plain), join(spoilt)


def _fit(
    job: Job, fitting: _Fitting, wanted: Sequence[Members]
) -> list[tuple[Members, LabelModel]]:
    """Fit the label model to the votes of each composition."""
    models: dict[Members, LabelModel] = {}
    job.progress.start(len(wanted), 0, "compositions")
    for_each(
        wanted,
        fitting,
        lambda members, model: models.update({members: model}),
        workers=job.work.local.workers,
        progress=job.progress,
    )
    return [(members, models[members]) for members in wanted]


def _add_up(job: Job, items: Sequence[_Labelled], work: Callable[[_Labelled], Int64]) -> Int64:
    """Return the sum of the confusions that `work` counts in each image."""
    total: Int64 = np.zeros(1, np.int64)

    def add(_: _Labelled, found: Int64) -> None:
        nonlocal total
        total = total + found  # integers, in any order

    job.progress.start(len(items), 0, "images")
    for_each(items, work, add, workers=job.work.local.workers, progress=job.progress)
    return total


def _mious(confmats: Int64) -> Float64:
    """Return the mIoU in percent of (..., C, C + 1) confusions, 255 counted as wrong."""
    flat = confmats.reshape(-1, *confmats.shape[-2:])
    found = np.array([100 * mean_iou(iou(confmat)) for confmat in flat])
    return found.reshape(confmats.shape[:-2])


def _robustness(
    scores: Sequence[Float64], made_from: Sequence[str], alone: Float64
) -> list[dict[str, Any]]:
    """Return what each further bad teacher costs.

    Parameters
    ----------
    scores : sequence of (2,) float64
        mIoU in percent by method without bad teachers, with one, and so on.
    made_from : sequence of str
        What each bad teacher is a copy of, or the class that it sees everywhere.
    alone : (3,) float64
        mIoU in percent of each bad teacher.
    """
    told: list[dict[str, Any]] = [{"added": None, "of": None, "miou": None}]
    told += [
        {"added": kind, "of": of, "miou": _number(miou)}
        for kind, of, miou in zip(BAD, made_from, alone, strict=True)
    ]
    return [
        {"bad": k, **row, **_by_method(found), "loss": _by_method(scores[0] - found)}
        for k, (row, found) in enumerate(zip(told, scores, strict=True))
    ]


def _flexibility(
    names: Sequence[str], alone: Float64, scores: Mapping[Members, Float64]
) -> dict[str, Any]:
    """Return every composition beside its best member, and how often a method is no worse.

    Parameters
    ----------
    names : sequence of str
        The T teachers.
    alone : float64
        mIoU in percent of each of them, and more.
    scores : mapping
        Composition to (2,) float64, mIoU in percent by method.
    """
    rows, margins = [], []
    for members in compositions(len(names)):
        best = max(members, key=lambda t: alone[t])
        margins.append(scores[members] - alone[best])
        rows.append(
            {
                "teachers": [names[t] for t in members],
                "best": names[best],
                "best_miou": _number(alone[best]),
                **_by_method(scores[members]),
            }
        )
    gained = np.array(margins).reshape(-1, len(METHODS))
    none = np.full(len(METHODS), np.nan)
    return {
        "compositions": rows,
        **_by_method((gained >= 0).mean(axis=0) if rows else none),
        "margin": _by_method(gained.mean(axis=0) if rows else none),
    }


def _by_method(values: Float64) -> dict[str, float | None]:
    return {method: _number(v) for method, v in zip(METHODS, values, strict=True)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _list(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value
