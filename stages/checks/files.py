"""Finding everything that can be wrong with the inputs before any work is done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ensdistill.data import images
from ensdistill.data.classes import IGNORE_INDEX, ClassTable, Ids
from ensdistill.data.images import Picture
from ensdistill.data.pictures import (
    inspect_certainty,
    inspect_image,
    inspect_values,
    times_larger,
)
from ensdistill.pipeline.errors import DataError, EnsdistillError, raise_all
from ensdistill.pipeline.node import Progress
from ensdistill.stages.checks.networks import require_declared, require_module
from ensdistill.stages.experiment import TRAIN, Experiment, Teacher
from ensdistill.stages.parallel import for_each


@dataclass(frozen=True)
class _Values:
    """What the values of a label file must be.

    Attributes
    ----------
    where : str
        The key of the experiment file that declares them.
    ids : str
        The encoding.
    table : ClassTable
        The classes.
    """

    where: str
    ids: Ids
    table: ClassTable


@dataclass(frozen=True)
class _Certainty:
    """That a file says how sure a teacher is; `where` as in `_Values`."""

    where: str


_Expected = _Values | _Certainty | None  # None: a photograph


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
        ``splits``: name to image count and sizes. ``teachers``: name to its kind, its map and the
        classes it leaves out.

    Raises
    ------
    DataError
        With all problems found, each naming its file.
    """
    problems: list[str] = []
    jobs: list[tuple[Picture, _Expected, Path]] = []
    pictures = {}
    for split in splits:
        try:
            pictures[split] = experiment.pictures(split)
        except EnsdistillError as error:
            problems.append(str(error))
            continue
        jobs += [(p, None, p.image) for p in pictures[split]]
        if _opened(experiment, split, opens):
            encoding = experiment.config.target[split].encoding
            truth = _Values(f"target.{split}", encoding, experiment.classes)
            jobs += [(p, truth, p.labels) for p in pictures[split] if p.labels is not None]
        for teacher in experiment.teachers:
            if teacher.labels is not None and split in teacher.labels:
                where = f"teachers[{teacher.name}].labels.{split}"
                folder = experiment.folder(teacher.labels[split])
                try:
                    found = images.predictions(folder, [p.id for p in pictures[split]], where)
                except EnsdistillError as error:
                    problems.append(str(error))
                    continue
                table = experiment.teacher_table(teacher)
                values = _Values(f"teachers[{teacher.name}]", teacher.ids, table)
                jobs += [(p, values, Path(found[p.id])) for p in pictures[split]]
            if teacher.certainty is not None and split in teacher.certainty:
                where = f"teachers[{teacher.name}].certainty.{split}"
                folder = experiment.folder(teacher.certainty[split])
                try:
                    found = images.predictions(folder, [p.id for p in pictures[split]], where)
                except EnsdistillError as error:
                    problems.append(str(error))
                    continue
                jobs += [(p, _Certainty(where), Path(found[p.id])) for p in pictures[split]]
    for teacher in experiment.teachers:
        if teacher.network is not None:
            try:
                require_declared(experiment, teacher)
            except EnsdistillError as error:
                problems.append(str(error))
    for section in ("probe", "student"):
        network = getattr(experiment.config, section).network
        if network.factory is not None:
            try:
                root = experiment.folder(network.root)
                require_module(root, network.factory, f"{section}.network.factory")
            except EnsdistillError as error:
                problems.append(str(error))
    for key, package, extra in (
        ("tensorboard", "tensorboard", "tensorboard"),
        ("scheduler", "distributed", "cluster"),
    ):
        if getattr(experiment.config.runtime, key) is not None and find_spec(package) is None:
            problems.append(
                f"runtime.{key}: the package {package} is missing; "
                f"pip install 'ensdistill[{extra}]'"
            )
    problems += _read_all(experiment, jobs, progress)
    scored = [s for s, found in pictures.items() if s != TRAIN and found[0].labels is not None]
    if TRAIN in pictures:
        problems += filter(None, (_trained_on(experiment, split) for split in scored))
    raise_all(problems, DataError)
    return {
        "splits": {s: _sizes(experiment, found) for s, found in pictures.items()},
        "teachers": {t.name: _teacher_summary(experiment, t) for t in experiment.teachers},
    }


def _look(item: tuple[Path, str, str]) -> dict[str, Any] | str:
    """Look into a file: its path, digest, and what is asked. Returns a text if it is unreadable."""
    path, sha256, kind = item
    try:
        if kind == "photograph":
            return inspect_image(path, sha256)
        if kind == "certainties":
            return inspect_certainty(path, sha256)
        return inspect_values(path, sha256, palette=kind == "colours")
    except EnsdistillError as error:
        return str(error)


def _read_all(
    experiment: Experiment, jobs: Sequence[tuple[Picture, _Expected, Path]], progress: Progress
) -> list[str]:
    """Inspect files in parallel and return the problems, in the order of `jobs`."""
    files = experiment.files
    found: dict[int, str] = {}
    unknown: dict[tuple[Path, str, str], list[int]] = {}  # to the positions in `jobs`
    for k, (_, values, file) in enumerate(jobs):
        kind = _kind(values)
        try:
            if files.recall(file, kind) is None:
                unknown.setdefault((file, files.digest(file), kind), []).append(k)
        except EnsdistillError as error:
            found[k] = str(error)
    progress.start(len(jobs), len(jobs) - len(unknown), "files")

    def learn(item: tuple[Path, str, str], fact: dict[str, Any] | str) -> None:
        if isinstance(fact, str):
            found.update(dict.fromkeys(unknown[item], fact))
        else:
            files.learn(item[1], item[2], fact)

    workers = experiment.config.runtime.workers
    try:
        for_each(list(unknown), _look, learn, workers=workers, progress=progress)
    finally:
        files.save()  # also what was learnt before Ctrl-C
    for k, (picture, values, file) in enumerate(jobs):
        if k not in found and values is not None:
            try:
                _check_values(experiment, picture, values, file)
            except EnsdistillError as error:
                found[k] = str(error)
    return [found[k] for k in sorted(found)]


def _kind(expected: _Expected) -> str:
    """What is asked of a file, as it is called in the memory of facts."""
    if isinstance(expected, _Values):
        return "colours" if expected.ids == "palette" else "ids"
    return "photograph" if expected is None else "certainties"


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


def _check_values(
    experiment: Experiment, picture: Picture, values: _Values | _Certainty, file: Path
) -> None:
    fact = experiment.files.recall(file, _kind(values))
    try:
        image = experiment.files.recall(picture.image, "photograph")
    except EnsdistillError:
        image = None
    if fact is None or image is None:
        return  # reported already, as the file's own problem
    size, expected = (fact["height"], fact["width"]), (image["height"], image["width"])
    if isinstance(values, _Certainty):
        times_larger(file, size, expected)
        return
    if size != expected:
        raise DataError(
            f"{file}: {size[0]}x{size[1]} pixels (height x width), its image has "
            f"{expected[0]}x{expected[1]}; resize the files of {values.where} to the images"
        )
    legal = values.table.legal_values(values.ids)
    strange = {int(v): n for v, n in fact["values"].items() if int(v) not in legal}
    if strange:
        value, count = min(strange.items())
        shown = f"colour #{value:06x}" if values.ids == "palette" else f"value {value}"
        raise DataError(
            f"{file}: {shown} on {count} pixels is outside the {values.ids} of class table "
            f"{values.table.name} ({_legal(values)}); {_remedy(values, fact['values'])}"
        )


def _legal(values: _Values) -> str:
    if values.ids == "train_ids":
        return f"0..{len(values.table) - 1} and 255"
    if values.ids == "palette":
        return "its colours, and black"
    known = sorted(values.table.label_ids)
    return f"{known[0]}..{known[-1]} and 255"


def _remedy(values: _Values, found: Mapping[str, int]) -> str:
    """Return what to do about values outside the table."""
    table = values.table
    label_ids = {*table.label_ids, IGNORE_INDEX}
    if values.ids == "train_ids" and table.label_ids and all(int(v) in label_ids for v in found):
        return f"these look like label ids: set `ids: label_ids` on {values.where}"
    return f"set `ids:` and `classes:` of {values.where} to what its files hold"


def _sizes(experiment: Experiment, pictures: Sequence[Picture]) -> dict[str, Any]:
    facts = [experiment.files.recall(p.image, "photograph") for p in pictures]
    sizes = sorted({(f["height"], f["width"]) for f in facts if f is not None})
    return {
        "images": len(pictures),
        "labelled": pictures[0].labels is not None,
        "sizes": [list(s) for s in sizes],
    }


def _teacher_summary(experiment: Experiment, teacher: Teacher) -> dict[str, Any]:
    mapping = experiment.teacher_map(teacher)
    kind = "labels" if teacher.network is None else teacher.network.kind
    reached = {goal for goal in mapping.values() if goal is not None}
    return {
        "kind": kind,
        "map": {own: goal for own, goal in mapping.items() if own != goal},
        "left_out": [own for own, goal in mapping.items() if goal is None],
        "never_labels": [c for c in experiment.classes.classes if c not in reached],
    }
