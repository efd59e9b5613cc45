"""`ablation`: what bad teachers cost, what each real one gives, which beat the best of them.

The robustness and the flexibility of Chao, Cheng, Lee (CVPR Workshops 2021, Tables 2 and 3), for
the label model and majority voting, scored by ground truth as `truth` decoded it.

Each composition is an item: some are fused together, in one pass over the images, and journalled.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ensdistill.pipeline.journal import Record
from ensdistill.pipeline.node import Job, Progress
from ensdistill.stages.functional.fusion import majority
from ensdistill.stages.functional.labelmodel import LabelModel, Votes, count, fit, fuse
from ensdistill.stages.functional.numbers import or_none
from ensdistill.stages.functional.scores import confusion, iou, mean_iou, present
from ensdistill.stages.functional.spoiling import relabel_segments
from ensdistill.stages.fusions import LABEL_MODEL, MAJORITY
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored, read_all
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.ablation.compositions import (
    BAD,
    Members,
    as_items,
    compositions,
    crowds,
    wanted,
    without_one,
)
from ensdistill.stages.nodes.ablation.plan import Ablated, Recipe
from ensdistill.stages.nodes.evaluation.rivals import rivals
from ensdistill.stages.nodes.evaluation.run import require_labelled
from ensdistill.stages.nodes.label_model.run import IMAGES, count_votes, spread
from ensdistill.stages.work.items import for_each

SHARE: Final = 0.4
"""The part of the segments that the teacher `segments` has wrong."""
METHODS: Final = (LABEL_MODEL.name, MAJORITY.name)

_TOGETHER: Final = 4  # compositions at least that share a pass over the images
_SECONDS: Final = 10.0  # of work that an interruption may lose, where more than these are fast

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
_Fitter = Callable[[Members], LabelModel]


@dataclass(frozen=True)
class _Teachers:
    """Reads what T teachers say of an image, and makes up what bad ones would if they are asked.

    One of these sees the class `constant` everywhere.
    """

    readers: tuple[LabelReader, ...]
    n_classes: int
    constant: int
    bad: bool

    def __call__(self, stored: Sequence[Stored]) -> UInt8:
        """Return the (T, H, W) maps, or (T + 2, H, W): with those of `segments` and `constant`."""
        maps = read_all(self.readers, stored)
        if not self.bad:
            return maps
        # by the image alone, so that neither order nor workers matter
        seed = hashlib.sha256(stored[0].id.encode(errors="surrogatepass")).digest()
        random = np.random.default_rng(int.from_bytes(seed))
        segments = relabel_segments(maps[0], SHARE, self.n_classes, random)
        return np.stack([*maps, segments, np.full_like(maps[0], self.constant)])


def _count(teachers: _Teachers, stored: Sequence[Stored]) -> Votes:
    return count(teachers(stored), teachers.n_classes)


def _fit(votes: Votes, n_classes: int, members: Members) -> LabelModel:
    """Fit the label model to the votes of some members, of all that were counted."""
    return fit(votes.of(members), n_classes)


@dataclass(frozen=True)
class _Fusing:
    """Fuses an image by some compositions, and counts their confusions with the `truth`.

    `models` are members and label model of each; none of a member alone, that needs no fusing.
    """

    teachers: _Teachers
    truth: LabelReader
    models: tuple[tuple[Members, LabelModel | None], ...]

    def __call__(self, stored: list[Stored]) -> list[Int64]:
        """Return (2, C, C + 1) of each composition, in the order of `METHODS`, or (1, C, C + 1)."""
        target, maps = self.truth(stored[0]), self.teachers(stored[1:])
        n_classes = self.teachers.n_classes
        confmats = []
        for members, model in self.models:
            fused = theirs = maps[list(members)]
            if model is not None:
                fused = np.stack([fuse(theirs, model)[0], majority(theirs, n_classes)])
            confmats.append(confusion(target, fused, n_classes))
        return confmats


class _Steps:
    """Advances by compositions while smaller steps of them are done."""

    def __init__(self, progress: Progress, compositions: int, steps: int):
        self._progress, self._compositions, self._steps = progress, compositions, steps
        self._done = self._told = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        """Do `count` further steps."""
        self._done += count
        due = self._done * self._compositions // self._steps - self._told
        if due:
            self._told += due
            self._progress.advance(due, note)


def run(job: Job[Recipe, Local]) -> Ablated:
    """Fuse the split by every composition of teachers, and with bad ones, and score it all."""
    require_labelled(job)
    job.draft.adopt(job.spares)
    making = _Making(job)
    making.run()
    return Ablated.model_validate(making.result())


class _Making:
    """Makes the items that are missing, and the result of all."""

    def __init__(self, job: Job[Recipe, Local]):
        self.job = job
        self.local = job.work.local
        self.size = len(self.local.classes)
        # of the split that is scored and, where models are fitted to others, of the training images
        maps = [(n.at, job.inputs[role]) for role, n in job.work.uses.items() if role != "truth"]
        self.split = [LabelMaps(artifact) for at, artifact in maps if at == job.node.id.at]
        train = [LabelMaps(artifact) for at, artifact in maps if at != job.node.id.at]
        self.fitted = train or self.split
        self.constant = int(np.argmax(np.sum([m.shares() for m in self.fitted], axis=0)))
        self.images = spread(sorted(self.fitted[0]), IMAGES)
        self.truth = LabelMaps(job.inputs["truth"])
        self.labelled = [[m.find(i) for m in (self.truth, *self.split)] for i in self.truth]
        ids = [item.id for item in job.work.items]
        self.names = ids[: len(self.split)]
        self.ids = dict(zip(wanted(len(self.names)), ids, strict=True))

    def run(self) -> None:
        """Make what is missing: first members alone, as the worst of them is copied."""
        todo = set(self.job.todo())
        missing = [members for members, item_id in self.ids.items() if item_id in todo]
        alone = [members for members in missing if len(members) == 1]
        some = [members for members in missing if len(members) > 1]
        self.job.start("compositions")
        if alone:
            self._fuse(alone)
        if some:
            # quick beside the fits, and so not kept: 0.7 s of CamVid, 4 s with bad teachers
            votes = self._count(bad=any(self._bad(members) for members in some))
            self.job.start("compositions")
            self._make(some, partial(_fit, votes, self.size))

    def result(self) -> dict[str, Any]:
        """Return the scores of all items."""
        scores = self._scores(self.job.records())
        worst = self.names[self._worst(scores)]
        made_from = (self.names[0], self.local.classes.classes[self.constant], worst)
        return {
            "images": len(self.labelled),
            "fitted_images": len(self.images),
            **_told(self.names, scores, made_from),
        }

    def _scores(self, records: Iterable[Record]) -> dict[Members, Float64]:
        """Return the (2,) mIoU in percent of finished items, by method."""
        return _measured(_confmats(self.names, records), _miou)

    def _worst(self, scores: Mapping[Members, Float64]) -> int:
        return int(np.argmin([scores[member,][0] for member in range(len(self.names))]))

    def _bad(self, members: Members) -> bool:
        return members[-1] >= len(self.names)

    def _teachers(self, maps: Sequence[LabelMaps], *, bad: bool) -> _Teachers:
        return _Teachers(tuple(m.reader for m in maps), self.size, self.constant, bad)

    def _count(self, *, bad: bool) -> Votes:
        """Count the votes in the images to fit to, with those of bad teachers or without."""
        counting = partial(_count, self._teachers(self.fitted, bad=bad))
        return count_votes(self.job, self.fitted, self.images, counting, "images to fit to")

    def _make(self, missing: Sequence[Members], fitting: _Fitter) -> None:
        """Fit, fuse and journal compositions, so many together that little can be lost."""
        together = _TOGETHER
        while missing:
            batch, missing = missing[:together], missing[together:]
            begin = time.perf_counter()
            self._fuse(batch, fitting)
            spent = time.perf_counter() - begin
            together = max(_TOGETHER, int(len(batch) * _SECONDS / spent))

    def _fuse(self, batch: Sequence[Members], fitting: _Fitter | None = None) -> None:
        """Fuse every image by some compositions, score that, and journal it.

        `fitting` is None for members alone, who need no label model.
        """
        heard = [self._heard(members) for members in batch]
        models: dict[Members, LabelModel] = {}
        fits = 0 if fitting is None else len(batch)
        steps = _Steps(self.job.progress, len(batch), fits + len(self.labelled))
        if fitting is not None:
            for_each(
                heard,
                fitting,
                lambda members, model: models.update({members: model}),
                workers=self.local.workers,
                progress=steps,
            )
        fusing = _Fusing(
            self._teachers(self.split, bad=any(self._bad(members) for members in batch)),
            self.truth.reader,
            tuple((members, models.get(members)) for members in heard),
        )
        totals: list[Int64] = [np.zeros(1, np.int64)] * len(batch)

        def add(_: list[Stored], found: list[Int64]) -> None:
            totals[:] = [total + one for total, one in zip(totals, found, strict=True)]

        for_each(self.labelled, fusing, add, workers=self.local.workers, progress=steps)
        for members, total in zip(batch, totals, strict=True):
            self.job.draft.record(self.ids[members], confmats=total.tolist())

    def _heard(self, members: Members) -> Members:
        """Return members with the worst teacher in the place of its copy."""
        copy = len(self.names) + BAD.index("copy")
        if copy not in members:
            return members
        worst = self._worst(self._scores(self.job.draft.records().values()))
        return tuple(worst if member == copy else member for member in members)


def with_present(
    result: Mapping[str, Any], records: Iterable[Record], classes: Sequence[str]
) -> dict[str, Any]:
    """Return a published result with what its means are over, as its confusions tell.

    Returns
    -------
    dict
        The `result`, and what follows from the items of its artifact (see `_shown`). In each row
        ``classes``: the key of each mIoU to how many classes it is over. ``classes_present``: those
        that occur in the ground truth. ``present``: all again by the mean over these, which is over
        the same for all.
    """
    names = list(result["teachers"])
    made_from = [row["of"] for row in result["robustness"][1:]]
    confmats = _confmats(names, records)
    there = np.flatnonzero(present(confmats[0,][0])).tolist()
    found = _shown(names, _measured(confmats, _miou), made_from, "miou")
    over_present = _measured(confmats, lambda confmat: _miou(confmat, there))
    return {
        **result,
        **_with_classes(names, found, confmats, made_from),
        "classes_present": [classes[c] for c in there],
        "present": _shown(names, over_present, made_from, "miou_present"),
    }


def _with_classes(
    names: Sequence[str],
    found: Mapping[str, Any],
    confmats: Mapping[Members, Int64],
    made_from: Sequence[str],
) -> dict[str, Any]:
    """Return what is shown, and in each row over how many ``classes`` its means are."""
    counts = _measured(confmats, lambda confmat: np.isfinite(iou(confmat)).sum())

    def over(
        rows: Sequence[Mapping[str, Any]],
        composed: Sequence[Members],
        key: str,
        alone: Sequence[int | None],
    ) -> list[dict[str, Any]]:
        told = []
        for row, members, one in zip(rows, composed, alone, strict=True):
            of = dict(zip(METHODS, counts[members].tolist(), strict=True))
            of[key] = None if one is None else int(counts[one,][0])
            told.append({**row, "classes": of})
        return told

    size = len(names)
    flexibility, left_out = found["flexibility"], found["leave_one_out"]
    rows = flexibility["compositions"]
    best = [names.index(row["best"]) for row in rows]
    bad = [None, *_bad(names, made_from)]
    rest = without_one(size)
    return {
        **found,
        "robustness": over(found["robustness"], crowds(size), "miou", bad),
        "leave_one_out": left_out
        | {"teachers": over(left_out["teachers"], rest, "miou", range(len(rest)))},
        "flexibility": flexibility
        | {"compositions": over(rows, compositions(size), "best_miou", best)},
    }


def _confmats(names: Sequence[str], records: Iterable[Record]) -> dict[Members, Int64]:
    """Return the confusions of finished items: a matrix a method, or one of a member alone."""
    items = dict(zip((i.id for i in as_items(names)), wanted(len(names)), strict=True))
    return {items[r["id"]]: np.array(r["confmats"], np.int64) for r in records}


def _measured(
    confmats: Mapping[Members, Int64], measure: Callable[[Int64], float]
) -> dict[Members, Float64]:
    """Return the (2,) measures of confusions, by method."""
    return {
        members: np.broadcast_to([measure(confmat) for confmat in of], len(METHODS))
        for members, of in confmats.items()
    }


def _miou(confmat: Int64, classes: Sequence[int] | None = None) -> float:
    """Return the mIoU in percent, 255 wrong, over `classes` or all that have an IoU."""
    return 100 * mean_iou(iou(confmat), classes)


def _bad(names: Sequence[str], made_from: Sequence[str]) -> list[int]:
    """Return the places of the bad teachers; the copy is where what it is a copy of is."""
    return [len(names), len(names) + 1, names.index(made_from[-1])]


def _told(
    names: Sequence[str], scores: Mapping[Members, Float64], made_from: Sequence[str]
) -> dict[str, Any]:
    """Return what there is to say of scores: (2,) float64, mIoU in percent by method, of members.

    `made_from` is what each bad teacher is a copy of, or the class that it sees everywhere.
    """
    alone = np.array([scores[member,][0] for member in range(len(names) + 2)])
    spoilt = [scores[members] for members in crowds(len(names))]
    return {
        "teachers": {t: or_none(v) for t, v in zip(names, alone, strict=False)},
        "robustness": _robustness(spoilt, made_from, alone[_bad(names, made_from)]),
        "flexibility": _flexibility(names, alone, scores),
    }


def _shown(
    names: Sequence[str], scores: Mapping[Members, Float64], made_from: Sequence[str], score: str
) -> dict[str, Any]:
    """Return what `_told` says and what follows from it, which is not kept.

    That is what stands ``beside`` the label model of all teachers (see `rivals.rivals`),
    ``leave_one_out``, and in ``flexibility`` also ``on_majority``. `score` is the key of what the
    scores are, ``miou`` or ``miou_present``.
    """
    told = _told(names, scores, made_from)
    return told | {
        "beside": rivals(METHODS[0], score, told["robustness"][0], told["teachers"]),
        "leave_one_out": _leave_one_out(names, scores),
        "flexibility": told["flexibility"] | {"on_majority": _on_majority(scores, len(names))},
    }


def _leave_one_out(names: Sequence[str], scores: Mapping[Members, Float64]) -> dict[str, Any]:
    """Return what each teacher gives: the score of all, less that of all others.

    Returns
    -------
    dict
        ``teachers``: a row each with its own ``miou``, the scores by method without it, and what it
        ``gives``, negative where it costs. ``weakest``: by method the one that gives least, None
        where there are no rows.
    """
    rest = without_one(len(names))
    if not rest:
        return {"teachers": [], "weakest": dict.fromkeys(METHODS)}
    without = np.array([scores[members] for members in rest])
    gives = scores[tuple(range(len(names)))] - without
    weakest = zip(METHODS, gives.argmin(axis=0).tolist(), gives.min(axis=0), strict=True)
    return {
        "teachers": [
            {
                "teacher": name,
                "miou": or_none(scores[t,][0]),
                **_by_method(without[t]),
                "gives": _by_method(gives[t]),
            }
            for t, name in enumerate(names)
        ],
        "weakest": {m: {"teacher": names[t], "gives": or_none(v)} for m, t, v in weakest},
    }


def _on_majority(scores: Mapping[Members, Float64], teachers: int) -> dict[str, float | None]:
    """Return in which share of compositions the label model is no worse than majority.

    And by how much it is better on average; both None where there are no compositions.
    """
    composed = np.array([scores[members] for members in compositions(teachers)])
    if not composed.size:
        return {"share": None, "margin": None}
    gained = composed[:, 0] - composed[:, 1]
    return {"share": float((gained >= 0).mean()), "margin": or_none(gained.mean())}


def _robustness(
    scores: Sequence[Float64], made_from: Sequence[str], alone: Float64
) -> list[dict[str, Any]]:
    """Return what each further bad teacher costs.

    `scores` are without bad teachers, with one, and so on; `alone` is the mIoU in percent of each.
    """
    told: list[dict[str, Any]] = [{"added": None, "of": None, "miou": None}]
    told += [
        {"added": kind, "of": of, "miou": or_none(miou)}
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

    `alone` is the mIoU in percent of each of the T teachers, and more.
    """
    rows, margins = [], []
    for members in compositions(len(names)):
        best = max(members, key=lambda t: alone[t])
        margins.append(scores[members] - alone[best])
        rows.append(
            {
                "teachers": [names[t] for t in members],
                "best": names[best],
                "best_miou": or_none(alone[best]),
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
    return {method: or_none(v) for method, v in zip(METHODS, values, strict=True)}
