"""`import`: label maps, and arrays of confidences, as the method's published code leaves them.

A folder holds ``<image>.png`` of train ids and perhaps ``<image>.npy`` or ``.npz`` of confidences,
0..100: the softmax of all classes, (H, W, C), in the release of Chao, Cheng, Lee (CVPRW 2021), or
one value a pixel, (H, W).
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image, PngImagePlugin

from ensdistill.data import splits
from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoding import UInt8, read_values, times_larger
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError, DataError, EnsdistillError, raise_all
from ensdistill.pipeline.fingerprint import digest, file_digest
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.opening import open_regular, real_path
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.networks.whole import require_whole
from ensdistill.stages.work.items import for_each

_ARRAYS: Final = (".npz", ".npy")
_MEMBER: Final = "arr_0"  # what `numpy.savez` calls an array without a name
_MOST: Final = 100  # stands for 1
_MARK: Final = "ensdistill"  # the key of a PNG's text that says what it was made from


@dataclass(frozen=True)
class Found:
    """What lies in a teacher's folder.

    Attributes
    ----------
    labels, confidences : mapping
        Id of a training image to its label map, and to its array of confidences; those of all
        images, or none.
    splits : tuple of str
        The splits all of whose images it labels; `train` is one of them.
    extra : tuple of str
        Other PNGs and arrays: of no image, or of a split that is not labelled as a whole.
    """

    name: str
    folder: Path
    labels: Mapping[str, str]
    confidences: Mapping[str, str]
    splits: tuple[str, ...]
    extra: tuple[str, ...]


def find(experiment: Experiment) -> list[Found]:
    """List the folders of an experiment whose teachers are label maps, and match them by name.

    No file is opened.

    Raises
    ------
    DataError
        With all problems found: a folder or a label map that is missing, confidences of some
        images only, two files of one image.
    """
    problems: list[str] = []
    found = []
    for teacher in experiment.config.teachers:
        assert teacher.labels is not None
        try:
            found.append(_look(experiment, teacher.name, experiment.folder(teacher.labels[TRAIN])))
        except DataError as error:
            problems.append(str(error))
    raise_all(problems, DataError)
    return found


def _look(experiment: Experiment, name: str, folder: Path) -> Found:
    ids = [p.id for p in experiment.pictures(TRAIN)]
    labels = splits.predictions(folder, ids, name)
    files = [f"{at}{os.sep}{file}" for at, names in splits.walk(folder) for file in names]
    pngs = [path for path in files if path.lower().endswith(".png")]
    sure = [path for path in files if path.lower().endswith(_ARRAYS)]
    arrays = splits.paired(ids, sure, f"{name}, confidences")
    covered, used = [TRAIN], {*labels.values(), *arrays.values()}
    for split in (s for s in experiment.config.target if s != TRAIN):
        of_split = [p.id for p in experiment.pictures(split)]
        found = splits.paired(of_split, pngs, name)
        if len(found) == len(of_split):
            covered.append(split)
            used.update(found.values())
    missing = [i for i in ids if i not in arrays]
    if arrays and missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(ids)} images have no confidences in {folder}, the "
            f"first is {missing[0]}; expected those of all images, or of none"
        )
    extra = sorted(path for path in (*pngs, *sure) if path not in used)
    return Found(name, folder, labels, arrays, tuple(covered), tuple(extra))


def require_outside(found: Sequence[Found], folder: Path) -> None:
    """Refuse, with ConfigError, to write ``folder / teacher`` into a folder that is imported."""
    for goal in (folder / one.name for one in found):
        for one in found:
            if real_path(goal).is_relative_to(real_path(one.folder)):
                raise ConfigError(
                    f"confidences: {goal} lies in {one.folder}, where {one.name}'s label maps are; "
                    "nothing is written there, choose another folder"
                )


class _Conversion(NamedTuple):
    """One array of confidences: its file, the label map, where the PNG goes, the image's size."""

    source: Path
    labels: str
    target: Path
    size: tuple[int, int]


class _Converted(NamedTuple):
    """What became of it: whether the PNG was not there already, and pixels of the label map.

    Those that have a label, and those of another class than the one that is most certain.
    """

    written: bool
    labelled: int
    other: int


def convert(
    experiment: Experiment, found: Sequence[Found], folder: Path, progress: Progress
) -> dict[str, dict[str, int]]:
    """Make PNGs of all confidences: ``folder / teacher / <image id>.png``.

    They are 8-bit grey, of which 255 stands for 1. Each says what it was made from, so that a
    second import takes those that are there.

    The experiment's label maps were checked (`files.check`), and `folder` may be written to (see
    `require_outside`).

    Returns
    -------
    dict
        Teacher to `written` and `reused` PNGs, and of those written `labelled` pixels and `other`,
        whose label is not the class that the array is most certain of (arrays of all classes).

    Raises
    ------
    DataError
        If an array is not of confidences 0..100 for its image, or a PNG that is there was not made
        here.
    """
    sizes = {}
    for picture in experiment.pictures(TRAIN):
        fact = experiment.files.recall(picture.image, "photograph")
        assert fact is not None  # checked
        sizes[picture.id] = (fact["height"], fact["width"])
    counts = {
        one.name: dict.fromkeys(("written", "reused", "labelled", "other"), 0) for one in found
    }
    jobs: dict[_Conversion, str] = {}
    for one in found:
        for key, source in one.confidences.items():
            target = folder / one.name / f"{key}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            jobs[_Conversion(Path(source), one.labels[key], target, sizes[key])] = one.name

    def add(job: _Conversion, made: _Converted) -> None:
        of = counts[jobs[job]]
        of["written" if made.written else "reused"] += 1
        of["labelled"] += made.labelled
        of["other"] += made.other

    progress.start(len(jobs), 0, "images")
    workers = experiment.config.runtime.workers
    work = partial(_convert, len(experiment.classes))
    for_each(list(jobs), work, add, workers=workers, progress=progress)
    return counts


def _convert(n_classes: int, job: _Conversion) -> _Converted:
    """Make one PNG; see `convert`."""
    mark = digest([file_digest(job.source), file_digest(job.labels)])
    if _is_made(job.target, mark):
        return _Converted(False, 0, 0)
    labels = read_values(job.labels, palette=False)
    grey, other = confidence_grey(job.source, labels, job.size, n_classes)
    text = PngImagePlugin.PngInfo()
    text.add_text(_MARK, mark)
    content = io.BytesIO()
    Image.fromarray(grey).save(content, "PNG", pnginfo=text)
    atomic.write_bytes(job.target, content.getvalue(), sync=False)
    return _Converted(True, int(np.count_nonzero(labels != IGNORE_INDEX)), other)


def _is_made(target: Path, mark: str) -> bool:
    """Whether a PNG was made from these files; DataError if not by an import at all."""
    try:
        with open_regular(target) as file, Image.open(file, formats=["PNG"]) as image:
            found = image.info.get(_MARK)
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError, ValueError):
        found = None
    if found is None:
        raise DataError(
            f"{target}: is there already and was not made by `ensdistill import`; it is not "
            "overwritten, choose another folder"
        )
    return bool(found == mark)


def confidence_grey(
    path: Path, labels: npt.NDArray[Any], size: tuple[int, int], n_classes: int
) -> tuple[UInt8, int]:
    """Return how sure a teacher is of each of its labels, from a file of confidences 0..100.

    Parameters
    ----------
    path : Path
        A ``.npy`` or ``.npz`` of one array of numbers: (h, w), of the image's size or a whole
        fraction of it, or (H, W, C), the confidence of every class.
    labels : (H, W) int
        The train ids, 255 where there is no label.
    size : (int, int)
        H and W of the image in pixels.
    n_classes : int
        C.

    Returns
    -------
    grey : (h, w) or (H, W) uint8
        255 stands for 1, and is right to half a step: where there is a label that of its class,
        elsewhere the largest of all.
    other : int
        Pixels whose label is not the class of the largest confidence.

    Raises
    ------
    DataError
        If the file holds pickles, several arrays, an array of another shape, or values outside
        0..100.
    """
    values = _read_array(path, size, n_classes)
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= _MOST):  # and not its opposite: NaN is neither
        wrong = highest if lowest >= 0 else lowest
        raise DataError(f"{path}: holds {wrong}; expected confidences 0..{_MOST}")
    if 0 < highest <= 1:
        raise DataError(
            f"{path}: its largest value is {highest}, as if 1 stood for certain; expected "
            f"confidences 0..{_MOST}"
        )
    other = 0
    if values.ndim == 3:
        known = labels != IGNORE_INDEX
        own = np.where(known, labels, 0)[..., None]
        of_label, most = np.take_along_axis(values, own, axis=2)[..., 0], values.max(axis=2)
        other = int(np.count_nonzero(known & (of_label < most)))
        values = np.where(known, of_label, most)
    grey = np.multiply(values, 255 / _MOST, dtype=np.float64)
    return np.asarray(np.round(grey), np.uint8), other


def _read_array(path: Path, size: tuple[int, int], n_classes: int) -> npt.NDArray[Any]:
    """Return the one array of a file, of which nothing is unpacked before its header was judged."""
    require_whole(path)
    try:
        if path.suffix.lower() == ".npy":
            with open_regular(path) as file:
                _require_header(file, path, size, n_classes)
                file.seek(0)
                return np.asarray(npy.read_array(file, allow_pickle=False))
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            member = _member(path, archive.namelist())
            with archive.open(member) as file:
                _require_header(file, path, size, n_classes)
            with archive.open(member) as file:
                return np.asarray(npy.read_array(file, allow_pickle=False))
    except EnsdistillError:
        raise
    # zlib.error and more: whatever a damaged file makes them trip over
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as an array ({error}); replace the file"
        ) from error


def _member(path: Path, names: Sequence[str]) -> str:
    """Return which file of an archive holds the confidences."""
    if len(names) == 1:
        return names[0]
    if f"{_MEMBER}.npy" in names:
        return f"{_MEMBER}.npy"
    shown = ", ".join(n.removesuffix(".npy") for n in names) or "none"
    raise DataError(f"{path}: holds the arrays {shown}; expected one, or one called {_MEMBER}")


def _require_header(file: IO[bytes], path: Path, size: tuple[int, int], n_classes: int) -> None:
    """Refuse an array of anything but numbers, or of another shape."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise DataError(f"{path}: is of npy version {version}; expected an array of numbers")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds pickled Python objects, which run code when they are read; save the "
            "confidences as an array of numbers"
        )
    if dtype.kind not in "uif":
        raise DataError(f"{path}: holds values of type {dtype}; expected numbers 0..{_MOST}")
    if shape == (*size, n_classes):
        return
    if len(shape) != 2 or min(shape) < 1:
        raise DataError(
            f"{path}: an array of shape {shape}; expected {size} (height, width of the image), a "
            f"whole fraction of both, or {(*size, n_classes)}"
        )
    times_larger(path, shape, size)
