"""Lists of images and of the label files that belong to them. No file is opened here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ensdistill.pipeline.errors import DataError, grouped, raise_all

# What Cityscapes appends to `<city>_<seq>_<frame>`.
_SUFFIXES: Final = (
    "_leftImg8bit",
    "_gtFine_labelIds",
    "_gtFine_labelTrainIds",
    "_gtFine_color",
)

_PICTURES: Final = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """An image of a split.

    Attributes
    ----------
    id : str
        The file's stem without a Cityscapes suffix; unique in the split.
    image : Path
        The image file.
    labels : Path or None
        Its ground truth, where the split declares one.
    """

    id: str
    image: Path
    labels: Path | None = None


def image_id(name: str) -> str:
    """Return the id of an image, of its ground truth or of a prediction, from its file's name."""
    stem, dot, _ = name.rpartition(".")
    stem = stem if stem and dot else name
    if stem.endswith(_SUFFIXES):
        for suffix in _SUFFIXES:
            stem = stem.removesuffix(suffix)
    return stem


def from_globs(images: str, labels: str | None, base: Path, where: str) -> list[Picture]:
    """Return the pictures that glob patterns match, sorted by id.

    Parameters
    ----------
    images, labels : str
        Patterns (``**`` allowed), relative to `base` unless absolute.
    base : Path
        The folder of the experiment file.
    where : str
        The key of the experiment file, for errors.

    Raises
    ------
    DataError
        If nothing matches, two files have one id, or an image has no label file.
    """
    found = _by_id(_glob(images, base), f"{where}.images")
    if not found:
        raise DataError(f"{where}.images: no file matches {images!r} (seen from {base})")
    if labels is None:
        return [Picture(i, Path(path)) for i, path in found.items()]
    truth = _by_id(_glob(labels, base), f"{where}.labels")
    missing = [i for i in found if i not in truth]
    if missing:
        raise DataError(
            f"{where}.labels: {len(missing)} of {len(found)} images have no label file among "
            f"{len(truth)} that match {labels!r}; the first is {missing[0]}. Where only some are "
            "labelled, name these by `list: FILE`, with image and label file on each line"
        )
    return [Picture(i, Path(path), Path(truth[i])) for i, path in found.items()]


def from_cityscapes(root: str, split: str, base: Path, where: str) -> list[Picture]:
    """Return a split of a Cityscapes tree (``leftImg8bit`` and, where it is there, ``gtFine``)."""
    folder = base / Path(root).expanduser()
    literal = Path(glob.escape(str(folder)))
    images = str(literal / "leftImg8bit" / split / "*" / "*_leftImg8bit.png")
    labels = str(literal / "gtFine" / split / "*" / "*_gtFine_labelIds.png")
    has_labels = (folder / "gtFine" / split).is_dir()
    return from_globs(images, labels if has_labels else None, base, where)


def from_list(file: str, base: Path, where: str) -> list[Picture]:
    """Return the pictures of a list file.

    Each line holds an image and, after a tab, optionally its label file, relative to the list
    file's folder. Empty lines and lines that begin with ``#`` are skipped.
    """
    path = base / Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}.list: {path} cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    wide = [row for row in rows if len(row) > 2]
    if wide:
        raise DataError(f"{path}: expected `image` or `image<tab>labels`, found {wide[0]!r}")
    labelled = sum(len(row) == 2 for row in rows)
    if labelled not in (0, len(rows)):
        raise DataError(f"{path}: {labelled} of {len(rows)} lines name a label file; all or none")
    images = _by_id((str(path.parent / row[0].strip()) for row in rows), where)
    if not images:
        raise DataError(f"{path}: lists no image")
    labels = {
        image_id(Path(r[0].strip()).name): path.parent / r[1].strip() for r in rows if labelled
    }
    pictures = [Picture(i, Path(image), labels.get(i)) for i, image in images.items()]
    listed = [("image", p.image) for p in pictures] + [("labels", p.labels) for p in pictures]
    gone = [(role, p) for role, p in listed if p is not None and not p.is_file()]
    raise_all(grouped((r, f"{path}: lists {p}, which is no file") for r, p in gone), DataError)
    return pictures


def predictions(folder: Path, ids: Sequence[str], where: str) -> dict[str, str]:
    """Return the PNG of each image id below a folder of predictions.

    As text: planning looks at thousands of them, and `Path` costs ten times as much.

    Raises
    ------
    DataError
        If the folder is missing, an id has no file, or an id has two.
    """
    if not folder.is_dir():
        raise DataError(f"{where}: {folder} is no folder")
    wanted = set(ids)
    found: dict[str, str] = {}
    other = None
    for parent, _, names in os.walk(folder):
        for name in names:
            key = image_id(name)
            if key not in wanted or not name.lower().endswith(".png"):
                other = min(other or name, name)
            else:
                path = f"{parent}{os.sep}{name}"
                if key in found:
                    raise _twice(where, key, found[key], path)
                found[key] = path
    missing = [i for i in ids if i not in found]
    if missing:
        there = "nothing else is there" if other is None else f"beside others there is {other}"
        raise DataError(
            f"{where}: {len(missing)} of {len(ids)} images have no prediction in {folder}; "
            f"expected {missing[0]}.png (or {missing[0]}_leftImg8bit.png), {there}. For an image "
            "that was not labelled a PNG without a label (255, or black in a palette) will do"
        )
    return {i: found[i] for i in ids}


def _glob(pattern: str, base: Path) -> list[str]:
    # `root_dir` and not a joined pattern: the folder's own name may hold `[`
    full = str(Path(pattern).expanduser())
    found = glob.glob(full, root_dir=base, recursive=True)  # noqa: PTH207
    root = os.fspath(base)
    # a set: `**/**` finds a file twice
    paths = {os.path.normpath(os.path.join(root, p)) for p in found}  # noqa: PTH118
    deep = "**" in pattern  # finds folders too, whatever they are called
    return [
        p for p in paths if (not deep and p.lower().endswith(_PICTURES)) or not Path(p).is_dir()
    ]


def _by_id(paths: Iterable[str], where: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        key = image_id(path.rpartition(os.sep)[2])
        if key in found:
            raise _twice(where, key, found[key], path)
        found[key] = path
    return {key: found[key] for key in sorted(found)}


def _twice(where: str, key: str, *paths: str) -> DataError:
    one, other = sorted(paths)
    return DataError(f"{where}: {one} and {other} have the same image id {key!r}")
