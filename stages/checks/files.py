"""Finding everything that can be wrong with the inputs before any work is done."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoded import PixelCache
from ensdistill.data.decoding import (
    image_size,
    inspect_confidence,
    inspect_image,
    inspect_values,
    require_same,
    times_larger,
    values_size,
)
from ensdistill.data.splits import Picture, predictions
from ensdistill.pipeline.errors import DataError, EnsdistillError, grouped, raise_all
from ensdistill.pipeline.node import Progress
from ensdistill.stages.checks import labels
from ensdistill.stages.checks.labels import LabelFolder
from ensdistill.stages.checks.networks import require_declared
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.fusions import method_called
from ensdistill.stages.networks.files import require_module
from ensdistill.stages.nodes.label_model.plan import doubt_of
from ensdistill.stages.work.items import for_each

_LOSSY: Final = 3  # times as many values as classes


class _Expected(NamedTuple):
    """What the files of a folder must hold.

    Attributes
    ----------
    of : str
        The key of the experiment file that names them, such as ``teachers[a].labels.train``.
    kind : str
        As the memory of facts calls it: ``photograph``, ``confidences``, ``ids`` or ``colours``.
    declared : LabelFolder or None
        What ids and colours mean, of no file yet.
    """

    of: str
    kind: str
    declared: LabelFolder | None = None


class _Job(NamedTuple):
    """A file to be looked at: whose image it belongs to, and what it must be."""

    picture: Picture
    expected: _Expected
    file: Path


# what was learnt of a file as a kind of it: each file's state is asked for once
_Facts = dict[tuple[Path, str], Mapping[str, Any] | None]


class _Problem(NamedTuple):
    """What is wrong with a file (see `errors.grouped`)."""

    cause: Hashable
    text: str


def check(
    experiment: Experiment,
    splits: Sequence[str],
    progress: Progress,
    *,
    opens: Collection[str] = (),
) -> dict[str, Any]:
    """Read every image and every prediction of `splits` once and refuse what is not as declared.

    What was found out is remembered by content, so that a second check reads nothing. Ground truth
    is listed, and opened only for the sake of the stages `opens` (see `graph.build`).

    Returns
    -------
    dict
        ``splits``: name to image count, sizes and, where the ground truth was opened, ``truth``.
        ``teachers``: name to its kind, its map, the classes it leaves out and, by split,
        ``labels``. Truth and labels are described by how many ``files`` there are, the ``shares``
        of the classes, the ``coverage``, the classes ``absent`` from all files, and ``warnings``.
        ``warnings``: what is about no single folder.

    Raises
    ------
    DataError
        With all problems found, each naming its file.
    """
    problems: list[str] = []
    jobs: list[_Job] = []
    pictures = {}
    for split in splits:
        with _told_in(problems):
            pictures[split] = experiment.pictures(split)
            photograph = _Expected(f"target.{split}", "photograph")
            jobs += [_Job(p, photograph, p.image) for p in pictures[split]]
            if _opened(experiment, split, opens):
                truth = _truth(experiment, split)
                jobs += [_Job(p, truth, p.labels) for p in pictures[split] if p.labels is not None]
            for expected, folder in _folders(experiment, split):
                with _told_in(problems):
                    found = predictions(folder, [p.id for p in pictures[split]], expected.of)
                    jobs += [_Job(p, expected, Path(found[p.id])) for p in pictures[split]]
    for teacher in experiment.teachers:
        if teacher.network is not None:
            with _told_in(problems):
                require_declared(experiment, teacher)
    for section in ("probe", "student"):
        network = getattr(experiment.config, section).network
        if network.factory is not None:
            with _told_in(problems):
                require_module(experiment.source(network, f"{section}.network"))
    problems += _about_packages(experiment)
    facts: _Facts = {}
    problems += _read_all(experiment, jobs, facts, progress)
    scored = [s for s, found in pictures.items() if s != TRAIN and found[0].labels is not None]
    if TRAIN in pictures:
        problems += filter(None, (_trained_on(experiment, split) for split in scored))
    counted = {} if problems else _counted(jobs, facts)
    without = {of: labels.without_label(found) for of, found in counted.items()}
    problems += [f"{of}: {why}" for of, why in without.items() if why is not None]
    raise_all(problems, DataError)
    return {
        "splits": {s: _split_summary(experiment, s, counted, facts) for s in pictures},
        "teachers": {t.name: _teacher_summary(experiment, t, counted) for t in experiment.teachers},
        "warnings": [
            *_about_splits(experiment, scored),
            *_about_classes(experiment),
            *_about_fusion(experiment),
        ],
    }


def warnings_of(found: Mapping[str, Any]) -> list[str]:
    """Return all warnings of a check, each with what it is about."""
    about = [(_of_truth(split), of["truth"]) for split, of in found["splits"].items()]
    for name, teacher in found["teachers"].items():
        about += [(_of_labels(name, split), of) for split, of in teacher["labels"].items()]
    told = [f"{of}: {text}" for of, facts in about if facts for text in facts["warnings"]]
    return [*told, *found["warnings"]]


@contextmanager
def _told_in(problems: list[str]) -> Iterator[None]:
    """Go on after a refusal, which is one of many."""
    try:
        yield
    except EnsdistillError as error:
        problems.append(str(error))


def _of_truth(split: str) -> str:
    return f"target.{split}.labels"


def _of_labels(teacher: str, split: str) -> str:
    return f"teachers[{teacher}].labels.{split}"


def _encoded(of: str, declared: LabelFolder) -> _Expected:
    return _Expected(of, "colours" if declared.ids == "palette" else "ids", declared)


def _truth(experiment: Experiment, split: str) -> _Expected:
    """Return what the ground truth of a split must be."""
    table, encoding = experiment.classes, experiment.config.target[split].encoding
    goals = {c: c for c in table.classes}
    return _encoded(_of_truth(split), LabelFolder(f"target.{split}", encoding, table, goals))


def _folders(experiment: Experiment, split: str) -> Iterator[tuple[_Expected, Path]]:
    """Yield what the PNGs that teachers have for a split must be, and the folders of these."""
    for teacher in experiment.teachers:
        where = f"teachers[{teacher.name}]"
        if teacher.labels is not None and split in teacher.labels:
            table, goals = experiment.teacher_table(teacher), experiment.teacher_map(teacher)
            declared = LabelFolder(where, teacher.ids, table, goals)
            expected = _encoded(_of_labels(teacher.name, split), declared)
            yield expected, experiment.folder(teacher.labels[split])
        if teacher.confidence is not None and split in teacher.confidence:
            sure = _Expected(f"{where}.confidence.{split}", "confidences")
            yield sure, experiment.folder(teacher.confidence[split])


def _about_splits(experiment: Experiment, scored: Sequence[str]) -> Iterator[str]:
    """Yield what can't be scored, of splits with ground truth."""
    for split in scored:
        if not any(t.network or split in (t.labels or {}) for t in experiment.teachers):
            yield (
                f"target.{split}: no teacher has label maps of it; only the student can be scored "
                "there"
            )


def _about_classes(experiment: Experiment) -> Iterator[str]:
    """Yield which classes no teacher can label."""
    reached = {g for t in experiment.teachers for g in experiment.teacher_map(t).values()}
    if absent := [c for c in experiment.classes.classes if c not in reached]:
        yield (
            f"classes: no teacher can label {', '.join(absent)}: no fused label is going to be one "
            "of these, and a student is not taught them. Where a teacher knows them by another "
            "name, say so in its `map:`"
        )


def _about_fusion(experiment: Experiment) -> Iterator[str]:
    """Yield what the chosen method can't know of so few teachers."""
    method = method_called(experiment.config.fusion.method)
    strategy = experiment.config.policy.strategy
    asks = method.needs_model or (method.policy is not None and strategy == "reliability")
    if asks and (doubt := doubt_of(len(experiment.teachers), None)) is not None:
        yield f"label model: {doubt}"


def _about_packages(experiment: Experiment) -> Iterator[str]:
    """Yield what is missing for what `runtime` asks for."""
    for key, package, extra in (
        ("tensorboard", "tensorboard", "tensorboard"),
        ("scheduler", "distributed", "cluster"),
    ):
        if getattr(experiment.config.runtime, key) is not None and find_spec(package) is None:
            yield (
                f"runtime.{key}: the package {package} is missing; "
                f"pip install 'ensdistill[{extra}]'"
            )


class Item(NamedTuple):
    """A file to be looked into: what it must hold, as what kind (see `_Expected`), for which image.

    Of so many pixels at `most`; decoded images are kept in `pixels`.
    """

    file: Path
    sha256: str
    kind: str
    image: Path
    most: int
    pixels: Path | None = None


def look(item: Item) -> dict[str, Any] | str:
    """Look into a file, whose header must be as it may be before the rest is decoded.

    A photograph whose pixels are cached was decoded. Others are not cached here: whether any stage
    is going to read them is not known, and to keep them takes as long again.

    Returns a text if it is unreadable or does not fit its image.
    """
    file, sha256, kind = item.file, item.sha256, item.kind
    try:
        if kind == "photograph":
            image_size(file, item.most)
            cached = None if item.pixels is None else PixelCache(item.pixels).read(sha256)
            if cached is not None:
                return {"height": cached.shape[0], "width": cached.shape[1]}
            return inspect_image(file, sha256)
        size = values_size(file, item.most)
        try:
            wanted = image_size(item.image)
        except DataError:  # which is told of the image
            wanted = None
        if wanted is not None:
            _require_fit(kind, file, size, wanted)
        if kind == "confidences":
            return inspect_confidence(file, sha256)
        return inspect_values(file, sha256, palette=kind == "colours")
    except EnsdistillError as error:
        return str(error)


def _read_all(
    experiment: Experiment, jobs: Sequence[_Job], facts: _Facts, progress: Progress
) -> list[str]:
    """Inspect files in parallel and return the problems, in the order of `jobs`; fill in `facts`.

    The same finding on many files of a folder is one problem, so that it hides no other.
    """
    files = experiment.files
    found: dict[int, _Problem] = {}
    unknown: dict[tuple[Path, str], list[int]] = {}  # by file and kind, the positions in `jobs`
    items: list[Item] = []
    runtime = experiment.config.runtime

    def unreadable(k: int, text: str) -> None:
        finding = re.sub(r"\d+", "#", text.removeprefix(f"{jobs[k].file}: "))  # whatever figures
        found[k] = _Problem((jobs[k].expected.of, finding), text)

    for k, job in enumerate(jobs):
        try:
            kind = job.expected.kind
            if (job.file, kind) not in facts:
                facts[job.file, kind] = files.recall(job.file, kind)
            fact = facts[job.file, kind]
            if fact is not None and fact["height"] * fact["width"] <= runtime.max_pixels:
                continue
            if not (of_file := unknown.setdefault((job.file, kind), [])):
                image, sha256 = job.picture.image, files.digest(job.file)
                most, pixels = runtime.max_pixels, experiment.pixels
                items.append(Item(job.file, sha256, kind, image, most, pixels))
            of_file.append(k)
        except EnsdistillError as error:
            unreadable(k, str(error))
    progress.start(len(jobs), len(jobs) - len(items), "files")

    def learn(item: Item, fact: dict[str, Any] | str) -> None:
        if isinstance(fact, str):
            for k in unknown[item.file, item.kind]:
                unreadable(k, fact)
        else:
            files.learn(item.sha256, item.kind, fact)
            facts[item.file, item.kind] = fact

    try:
        for_each(items, look, learn, workers=runtime.workers, progress=progress)
    finally:
        files.save()  # also what was learnt before Ctrl-C
    for k, job in enumerate(jobs):
        if k not in found and (problem := _judged(job, facts)) is not None:
            found[k] = problem
    return grouped(found[k] for k in sorted(found))


def _require_fit(kind: str, file: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse a file that has not the size that its image's asks for."""
    if kind == "confidences":
        times_larger(file, size, wanted)
    else:
        require_same(file, size, wanted)


def _judged(job: _Job, facts: _Facts) -> _Problem | None:
    """Return what is wrong with a file that can be read."""
    of, kind, declared = job.expected
    fact = facts.get((job.file, kind))
    image = facts.get((job.picture.image, "photograph"))
    if fact is None or image is None or kind == "photograph":
        return None  # what cannot be read was reported as the file's own problem
    size, wanted = (fact["height"], fact["width"]), (image["height"], image["width"])
    try:
        _require_fit(kind, job.file, size, wanted)
    except DataError as error:
        return _Problem((of, "size"), str(error))
    if declared is None:
        return None
    legal = declared.table.legal_values(declared.ids)
    strange = {int(v): n for v, n in fact["values"].items() if int(v) not in legal}
    if not strange:
        return None
    value, count = min(strange.items())
    shown = f"colour #{value:06x}" if declared.ids == "palette" else f"value {value}"
    return _Problem(
        (of, value),
        f"{job.file}: {shown} on {count} pixels is outside the {declared.ids} of class table "
        f"{declared.table.name} ({_legal(declared)}); {_remedy(declared, value, fact['values'])}",
    )


def _legal(declared: LabelFolder) -> str:
    if declared.ids == "train_ids":
        return f"0..{len(declared.table) - 1} and 255"
    if declared.ids == "palette":
        return "its colours, and black"
    known = sorted(declared.table.label_ids)
    return f"{known[0]}..{known[-1]} and 255"


def _remedy(declared: LabelFolder, strange: int, found: Mapping[str, int]) -> str:
    """Return what to do about values outside the table, of which `strange` is the lowest."""
    table, where = declared.table, declared.where
    own = "`ids: label_ids` and a class table of your own with a `label_id` for each class"
    label_ids = {*table.label_ids, IGNORE_INDEX}
    look_like_label_ids = bool(table.label_ids) and all(int(v) in label_ids for v in found)
    if declared.ids == "train_ids":
        highest = max(int(v) for v in found if int(v) != IGNORE_INDEX)
        counted = f"if they count from 1, and 0 is no class, {own} and `ignored_label_ids: [0]`"
        if highest == len(table):
            more = f"; if they are label ids, set `ids: label_ids` on {where}"
            return counted + more * look_like_label_ids
        if look_like_label_ids:
            return f"these look like label ids: set `ids: label_ids` on {where}"
    if len(found) > _LOSSY * len(table):
        return (
            f"and there are {len(found)} values in all: lossy compression or smooth resizing makes "
            "such, and nothing brings the ids back; save the file as PNG from where it came from, "
            "resized by nearest neighbour if at all"
        )
    keys = "`ids:`" if where.startswith("target.") else "`ids:` and `classes:`"
    remedy = f"set {keys} of {where} to what its files hold"
    if declared.ids == "palette":
        return remedy
    return f"{remedy}; if {strange} is no class, {own} and `ignored_label_ids: [{strange}]`"


def _counted(jobs: Sequence[_Job], facts: _Facts) -> dict[str, LabelFolder]:
    """Return what the label files of each folder hold together, by the key that names them."""
    folders: dict[str, LabelFolder] = {}
    values: dict[str, Counter[str]] = defaultdict(Counter)
    files: Counter[str] = Counter()
    for job in jobs:
        of, kind, declared = job.expected
        if declared is not None:
            fact = facts[job.file, kind]
            assert fact is not None
            folders[of] = declared
            files[of] += 1
            values[of].update(fact["values"])
    return {
        of: replace(folder, files=files[of], values={int(v): n for v, n in values[of].items()})
        for of, folder in folders.items()
    }


def _trained_on(experiment: Experiment, split: str) -> str | None:
    """Return what is wrong with a split that is scored if some of its images are trained on."""
    if TRAIN in experiment.config.target[split].overlap:
        return None
    try:
        shared = experiment.overlap(split)
    except EnsdistillError:
        return None  # a file that cannot be read was reported already
    if not shared:
        return None
    image, trained = shared[0]
    more = "is that file" if image == trained else f"holds the same bytes as {trained}"
    return (
        f"target.{split}: {len(shared)} of its {len(experiment.pictures(split))} images are among "
        f"those of target.{TRAIN}; the first, {image}, {more}. Scores on images that were trained "
        f"on say little; take them out, or permit it with `overlap: [{TRAIN}]` on target.{split}"
    )


def _opened(experiment: Experiment, split: str, opens: Collection[str]) -> bool:
    """Whether a split's ground truth is going to be read anyway."""
    watched = "student" in opens and experiment.config.student.watch == split
    scored = "truth" in opens and split in experiment.labelled
    return watched or scored


def _split_summary(
    experiment: Experiment, split: str, counted: Mapping[str, LabelFolder], facts: _Facts
) -> dict[str, Any]:
    pictures = experiment.pictures(split)
    looked_at = [facts[p.image, "photograph"] for p in pictures]
    sizes = sorted({(f["height"], f["width"]) for f in looked_at if f is not None})
    truth = counted.get(_of_truth(split))
    return {
        "images": len(pictures),
        "labelled": pictures[0].labels is not None,
        "sizes": [list(s) for s in sizes],
        "truth": None if truth is None else labels.described(truth),
    }


def _teacher_summary(
    experiment: Experiment, teacher: Teacher, counted: Mapping[str, LabelFolder]
) -> dict[str, Any]:
    mapping = experiment.teacher_map(teacher)
    kind = "labels" if teacher.network is None else teacher.network.kind
    reached = {goal for goal in mapping.values() if goal is not None}
    return {
        "kind": kind,
        "map": {own: goal for own, goal in mapping.items() if own != goal},
        "left_out": [own for own, goal in mapping.items() if goal is None],
        "never_labels": [c for c in experiment.classes.classes if c not in reached],
        "labels": {
            split: labels.described(counted[of])
            for split in teacher.labels or {}
            if (of := _of_labels(teacher.name, split)) in counted
        },
    }
