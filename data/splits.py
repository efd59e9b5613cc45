"""Lists of images and of the label files that belong to them. No image is opened here."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from ensdistill.pipeline.errors import DataError, grouped, raise_all
from ensdistill.pipeline.opening import read_regular

# What follows the name that an image shares with its label file.
_SUFFIXES: Final = (
    "_leftImg8bit",  # Cityscapes, IDD
    "_gtFine_labelIds",
    "_gtFine_labelTrainIds",
    "_gtFine_color",
    "_gtCoarse_labelIds",  # and Foggy Driving
    "_gtCoarse_labelTrainIds",
    "_gtCoarse_color",
    "_gtFine_labelids",  # IDD
    "_gtFine_labelcsTrainIds",
    "_gtFine_labellevel3Ids",
    "_rgb_anon",  # ACDC, Dark Zurich
    "_gt_labelIds",
    "_gt_labelTrainIds",
    "_gt_labelColor",
    "_train_id",  # BDD100K
)
# Of Foggy and Rain Cityscapes: several images share a label file, so that it stays in their ids.
_WEATHER: Final = re.compile(
    r"_leftImg8bit_(foggy[A-Za-z]*_beta_[\d.]+"
    r"|rain_alpha_[\d.]+_beta_[\d.]+_dropsize_[\d.]+_pattern_\d+)$"
)

_PICTURES: Final = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """An image of a split.

    Its `id` is the file's stem without what data sets append to it; after its folder and ``/``
    where stems are not unique in the split.
    """

    id: str
    image: Path
    labels: Path | None = None  # its ground truth, where the split declares one


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
        Patterns (``**`` allowed), relative to `base` unless absolute. A part that is a name with
        brackets is taken as that name where it exists.
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
        raise DataError(
            f"{where}.images: no file matches {images!r} (seen from {base}){_hint(images, base)}"
        )
    if labels is None:
        return [Picture(i, Path(path)) for i, path in found.items()]
    files = _glob(labels, base)
    truth = paired(found, files, f"{where}.labels", shared=True)
    missing = [i for i in found if i not in truth]
    if missing:
        strange = "" if files else _hint(labels, base)
        if files and not truth:  # names that follow no known rule, rather than missing files
            other = min(image_id(path.rpartition(os.sep)[2]) for path in files)
            strange = f", and that of a label file is {other}"
        raise DataError(
            f"{where}.labels: {len(missing)} of {len(found)} images have no label file among "
            f"{len(files)} that match {labels!r}; the first is {missing[0]}{strange}. Where only "
            "some are labelled, name these by `list: FILE`, with image and label file on each line"
        )
    return [Picture(i, Path(path), Path(truth[i])) for i, path in found.items()]


def from_cityscapes(root: str, split: str, base: Path, where: str) -> list[Picture]:
    """Return a split of a Cityscapes tree (``leftImg8bit`` and, where it is there, ``gtFine``)."""
    folder = base / expanded(root)
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
    path = base / expanded(file)
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}.list: {path} cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    wide = [row for row in rows if len(row) > 2]
    if wide:
        raise DataError(f"{path}: expected `image` or `image<tab>labels`, found {wide[0]!r}")
    labelled = sum(len(row) == 2 for row in rows)
    if labelled not in (0, len(rows)):
        raise DataError(f"{path}: {labelled} of {len(rows)} lines name a label file; all or none")
    listed = [[_as_written(str(path.parent / cell.strip())) for cell in row] for row in rows]
    images = _by_id([row[0] for row in listed], where)
    if not images:
        raise DataError(f"{path}: lists no image")
    labels = {row[0]: Path(row[1]) for row in listed if labelled}
    pictures = [Picture(i, Path(image), labels.get(image)) for i, image in images.items()]
    named = [("image", p.image) for p in pictures] + [("labels", p.labels) for p in pictures]
    gone = [(role, p) for role, p in named if p is not None and not p.is_file()]
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
        raise DataError(f"{where}: {_broken(folder) or f'{folder} is no folder'}")
    files = [f"{at}{os.sep}{name}" for at, names in walk(folder) for name in names]
    pngs = [path for path in files if path.lower().endswith(".png")]
    found = paired(ids, pngs, where)
    missing = [i for i in ids if i not in found]
    if missing:
        used = set(found.values())
        others = [path for path in files if path not in used]
        other = min(map(os.path.basename, others), default=None)
        there = "nothing else is there" if other is None else f"beside others there is {other}"
        broken = next((f"; {b}" for b in map(_broken, sorted(others)) if b), "")
        raise DataError(
            f"{where}: {len(missing)} of {len(ids)} images have no prediction in {folder}; "
            f"expected {missing[0]}.png (or {missing[0]}_leftImg8bit.png), {there}{broken}. For an "
            "image that was not labelled a PNG without a label (255, or black in a palette) will do"
        )
    return found


def paired(
    ids: Collection[str], files: Iterable[str], where: str, *, shared: bool = False
) -> dict[str, str]:
    """Return the file of each image id, of those ids that have one, in their order.

    Files are told by their names; by their folders as well where names are not unique. What is
    common to all folders at either end does not count.

    Parameters
    ----------
    ids : collection of str
        Those of all images of a split.
    files : iterable of str
        Their label files or predictions, and perhaps others.
    where : str
        The key of the experiment file, for errors.
    shared : bool
        Whether images of one place in several kinds of weather may have a file in common.

    Raises
    ------
    DataError
        If an id has two files, or it cannot be told whose a file is.
    """
    wanted: dict[str, list[str]] = {}
    for i in ids:
        wanted.setdefault(_normal(_without_weather(i.rpartition("/")[2])), []).append(i)
    named: dict[str, list[str]] = {}
    for path in files:
        key = _normal(_without_weather(image_id(path.rpartition(os.sep)[2])))
        if key in wanted:
            named.setdefault(key, []).append(path)
    found = {}
    doubtful = []
    for key, paths in named.items():
        if len(paths) == len(wanted[key]) == 1:
            found[wanted[key][0]] = paths[0]
        else:
            doubtful.append(key)
    if doubtful:
        apart = _apart(path.rpartition(os.sep)[0] for paths in named.values() for path in paths)
        nested = any("/" in i for key in wanted for i in wanted[key])
        for key in sorted(doubtful):
            found |= _told_apart(wanted[key], sorted(named[key]), apart if nested else {}, where)
    if not shared:
        _require_own(found, where)
    return {i: found[i] for i in ids if i in found}


def _told_apart(
    ids: Sequence[str], paths: Sequence[str], apart: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return the file of each id, of those that have one, where all are of one name.

    `apart` holds the folders' names that count, and is empty where none do.
    """
    found = {}
    for i in ids:
        folder, _, name = _normal(i).rpartition("/")
        fits = [p for p in paths if _normal(image_id(p.rpartition(os.sep)[2])) == name] or paths
        if apart:
            at = {p: p.rpartition(os.sep)[0] for p in fits}
            same = [p for p in fits if apart[at[p]] == folder]
            fits = same or [p for p in fits if folder and _normal(at[p]).endswith(f"/{folder}")]
        if len(fits) > 1:
            raise _twice(where, *fits[:2])
        if fits:
            found[i] = fits[0]
    if not found and len(ids) > 1:
        raise _whose(where, paths[0], ids[0], ids[1])
    return found


def _require_own(found: Mapping[str, str], where: str) -> None:
    """Refuse a file that is two images'."""
    if len(set(found.values())) == len(found):
        return
    owners: dict[str, str] = {}
    for i, path in found.items():
        if (other := owners.setdefault(path, i)) != i:
            raise _whose(where, path, other, i)


def walk(top: Path | str, *, hidden: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and all below it, each once and with the names of the files in it.

    Links to folders are followed, after all else: what lies behind one is found by its own name
    where it has one here. A link to a folder that the top one lies in leads in a circle and is left
    out, as are hidden folders if so wished.

    Raises
    ------
    DataError
        If a folder cannot be listed.
    """
    top = os.fspath(top)
    seen = set(map(str, Path(os.path.realpath(top)).parents))
    folders, links = [top], list[str]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
        at = folders.pop() if folders else links.pop()
        if (real := os.path.realpath(at)) in seen:
            continue
        seen.add(real)
        names = []
        try:
            with os.scandir(at) as entries:
                for entry in entries:
                    linked = entry.is_symlink()
                    # `isdir` is no error where a link leads to itself
                    if not (os.path.isdir(entry.path) if linked else entry.is_dir()):  # noqa: PTH112
                        names.append(entry.name)
                    elif hidden or not entry.name.startswith("."):
                        (links if linked else folders).append(entry.path)
        except OSError as error:
            raise DataError(f"{at}: cannot be listed ({error.strerror})") from error
        yield at, names


def expanded(text: str) -> Path:
    """Return a path with the home for a ``~`` at its beginning, where there is a home."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - which raises where there is none


def _broken(path: Path | str) -> str | None:
    """Return where a link to nothing leads, None if the path is no such link."""
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
        return f"{path} is a link to {os.readlink(path)}, which is not there"  # noqa: PTH115
    return None


def _without_weather(stem: str) -> str:
    return _WEATHER.sub("", stem) if "_leftImg8bit_" in stem else stem


def _normal(text: str) -> str:
    """Return a text in one of the forms in which Unicode writes it: macOS uses another one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _require_goal(path: str) -> None:
    """Refuse a link to nothing, which may have led to a folder of images."""
    if (broken := _broken(path)) is not None:
        raise DataError(f"{broken}; mend or remove it")


def _as_written(path: str) -> str:
    """Return a path as the file system writes it, where that is another form of Unicode."""
    if path.isascii() or os.path.lexists(path):
        return path
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100
    return next(_expand(parts[0], list(map(glob.escape, parts[1:]))), path)


def _apart(folders: Iterable[str]) -> dict[str, str]:
    """Return each folder without the parts that all have in common, at the front and the end."""
    # without `..`, which would lead out of the folder of whoever writes a file by an id
    parts = {folder: Path(os.path.normpath(_normal(folder))).parts for folder in set(folders)}
    first = _alike(parts.values())
    rest = {folder: of[first:] for folder, of in parts.items()}
    last = _alike(of[::-1] for of in rest.values())
    return {folder: "/".join(of[: len(of) - last]) for folder, of in rest.items()}


def _alike(paths: Iterable[Sequence[str]]) -> int:
    """Return with how many equal parts all paths begin."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))


def _glob(pattern: str, base: Path) -> list[str]:
    """Return the files that a pattern matches, sorted."""
    parts = expanded(pattern).parts
    if not parts:
        return []
    # part by part, and not joined to a folder whose own name may hold `[`
    found = _expand(os.fspath(base), parts)
    paths = sorted({os.path.normpath(path) for path in found})  # `**/**` finds a file twice
    deep = "**" in pattern  # finds folders too, whatever they are called
    return [
        p for p in paths if (not deep and p.lower().endswith(_PICTURES)) or not Path(p).is_dir()
    ]


def _expand(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield what the parts of a pattern match in a folder."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below, names in walk(folder, hidden=False):
            for name in names:
                if not name.lower().endswith(_PICTURES):  # an image is missed where it is read
                    _require_goal(os.path.join(below, name))  # noqa: PTH118
            yield from _expand(below, rest or ("*",))
        return
    for name in _matching(folder, part):
        path = os.path.join(folder, name)  # noqa: PTH118
        if not rest:
            yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from _expand(path, rest)
        else:
            _require_goal(path)


def _matching(folder: str, part: str) -> list[str]:
    """Return the names in a folder that one part of a pattern matches."""
    magic = glob.has_magic(part)
    if os.path.lexists(os.path.join(folder, part)) and (not magic or "[" in part):  # noqa: PTH118
        return [part]
    if not magic and part.isascii():
        return []
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    fits = re.compile(fnmatch.translate(_normal(part))).match
    hidden = part.startswith(".")
    return [n for n in names if fits(_normal(n)) and (hidden or not n.startswith("."))]


def _hint(pattern: str, base: Path) -> str:
    """Return what may be meant by a pattern that matches nothing, as the rest of a sentence."""
    path = base / expanded(pattern)
    if path.is_dir():
        return f"; it is a folder, name its files by a pattern: {pattern.rstrip('/')}/*"
    if "{" in pattern:
        return "; `{a,b}` stands for itself here: name all files of a folder by `*`, or one ending"
    if "[" in pattern:
        return "; `[` begins a set of characters, and one that is part of a name is written `[[]`"
    if path.parent.is_dir():
        other = min((p.name for p in path.parent.iterdir()), default=None)
        return "; its folder is empty" if other is None else f"; beside others there is {other}"
    return ""


def _by_id(paths: Sequence[str], where: str) -> dict[str, str]:
    """Return the image of each id, sorted by id."""
    paths = sorted(paths)
    split = [path.rpartition(os.sep) for path in paths]
    ids = [image_id(name) for _, _, name in split]
    if len(set(map(_normal, ids))) < len(ids):
        apart = _apart(folder for folder, _, _ in split)
        ids = [
            "/".join(filter(None, (apart[f], i))) for (f, _, _), i in zip(split, ids, strict=True)
        ]
    found: dict[str, str] = {}
    for i, path in zip(ids, paths, strict=True):
        if (other := found.setdefault(_normal(i), path)) is not path:
            raise _twice(where, other, path)
    return dict(sorted(zip(ids, paths, strict=True)))


def _twice(where: str, *paths: str) -> DataError:
    one, other = sorted(paths)
    key = image_id(os.path.basename(one))  # noqa: PTH119
    text = f"{where}: {one} and {other} have the same image id {key!r}"
    if one != other and _normal(one) == _normal(other):
        text += "; their names differ in Unicode's normal form alone, and look the same: rename one"
    return DataError(text)


def _whose(where: str, path: str, one: str, other: str) -> DataError:
    return DataError(
        f"{where}: {path} may belong to the image {one} or to {other}; put each file into a folder "
        f"called as that of its image, and call it as the image: {one}.png"
    )
