"""Label maps as PNGs, in trees that programs for segmentation read as they are."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from PIL import Image

from ensdistill.data.classes import IGNORE_INDEX, ClassTable
from ensdistill.data.decoding import UInt8, read_image
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.pipeline.escaping import as_utf8
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.opening import real_path
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.export.guides import guide
from ensdistill.stages.export.layout import Layout, kind_of
from ensdistill.stages.export.target import (
    Written,
    as_json,
    drafted,
    require_absent,
    require_fresh,
    summed,
    write,
)
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored
from ensdistill.stages.local import Local, local_of
from ensdistill.stages.nodes.fusion.plan import fusion_id
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.reading.outputs import require_outside_artifacts
from ensdistill.stages.work.items import for_each

Ids = Literal["train-ids", "label-ids", "palette"]

_CITYSCAPES: Final = re.compile(r"([^_]+)_\d+_\d+")  # <city>_<seq>_<frame>
_IMAGE: Final = "_leftImg8bit.png"
_SUFFIXES: Final[dict[str, str]] = {
    "train-ids": "_gtFine_labelTrainIds.png",
    "label-ids": "_gtFine_labelIds.png",
    "palette": "_gtFine_color.png",
}
_UNLABELLED: Final = 0  # Cityscapes' id of what nobody labelled
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # as file systems of Windows say
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold


def _name(image_id: str) -> str:
    """Return an id without its folder."""
    return image_id.rpartition("/")[2]


@dataclass(frozen=True)
class Order:
    """The label maps that are to be exported: to a folder, or the zip for Cityscapes' server.

    `local` has their images, sorted by id, and what these must hold. With `copy_images` they are
    copied and not linked.
    """

    experiment: Experiment
    artifact: Artifact
    local: Local
    split: str
    ids: Ids
    target: Path
    copy_images: bool

    @property
    def zipped(self) -> bool:
        """Whether it is for the server of Cityscapes."""
        return _is_zip(self.target)

    @cached_property
    def layout(self) -> Layout | None:
        """The tree of Cityscapes for its images, else two folders; None for a zip."""
        if self.zipped:
            return None
        split = self.split
        if all(
            p.image.name == p.id + _IMAGE and _CITYSCAPES.fullmatch(p.id)
            for p in self.local.pictures
        ):
            suffix = _SUFFIXES[self.ids]
            return Layout(f"leftImg8bit/{split}", f"gtFine/{split}", _IMAGE, suffix, True)
        suffixes = {p.image.suffix for p in self.local.pictures}
        if len(suffixes) > 1:
            suffixes = {kind_of(suffix) for suffix in suffixes}
        # no loader reads a folder of several; PNG loses nothing
        suffix = next(iter(suffixes)) if len(suffixes) == 1 else ".png"
        nested = any("/" in p.id for p in self.local.pictures)
        return Layout(f"images/{split}", f"labels/{split}", suffix, ".png", False, nested)

    @cached_property
    def converted(self) -> list[str]:
        """The images that are written as PNG, as the folder's images end differently."""
        if (layout := self.layout) is None:
            return []
        return [p.image.name for p in self.local.pictures if not layout.takes(p.image)]

    @property
    def summary(self) -> dict[str, Any]:
        """What is said of it before anything is written."""
        return {
            "target": str(self.target),
            "split": self.split,
            "ids": self.ids,
            "images": len(self.local.pictures),
            "layout": None if self.layout is None else [self.layout.images, self.layout.labels],
            "converted": self.converted,
        }


def order(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    target: Path,
    *,
    of: str,
    split: str,
    ids: Ids,
    copy_images: bool,
) -> Order:
    """Return what is to be exported, after refusing what cannot be.

    These are the label maps `of` ``fusion``, of ``student`` or of a teacher, and go into a zip if
    the target ends in ``.zip``.

    Raises
    ------
    ConfigError
        If there are no such label maps or ids, or the target exists or is among artifacts.
    NotReadyError
        If the label maps are not published and fresh.
    """
    node_id = _node(experiment, decisions, of, split)
    if _is_zip(target) and ids != "label-ids":
        raise ConfigError(
            f"{target.name} would be for the server of Cityscapes, which takes label ids; say "
            "`--ids label-ids`, or name a folder"
        )
    if _is_zip(target) and copy_images:
        raise ConfigError(f"{target.name}: the server of Cityscapes takes no images")
    if ids == "label-ids":
        _require_label_ids(experiment.classes)
    require_absent(target)
    require_outside_artifacts(target, experiment)
    artifact = require_fresh(decisions, node_id)
    work = decisions[node_id].work
    assert work is not None
    local = local_of(work, Local)
    found = Order(experiment, artifact, local, split, ids, target, copy_images)
    if found.zipped:
        _require_for_server(found)
    return found


def _is_zip(target: Path) -> bool:
    return target.suffix.lower() == ".zip"


def _node(experiment: Experiment, decisions: Mapping[str, Decision], of: str, split: str) -> str:
    """Return the node whose label maps are meant."""
    names = [t.name for t in experiment.teachers]
    if of == "fusion" and of in names:
        raise ConfigError("a teacher is named 'fusion' too; rename it, or it cannot be told apart")
    if of not in ("fusion", "student", *names):
        raise ConfigError(
            f"--of is {of!r}; expected fusion, student or a teacher ({', '.join(names)})"
        )
    if split not in experiment.config.target:
        declared = ", ".join(experiment.config.target)
        raise ConfigError(f"target declares no split {split!r}; there are {declared}")
    node_id = infer_id(of, split)
    if of == "fusion":
        node_id = fusion_id(experiment.config.fusion.method, split)
    if node_id not in decisions:
        labelled = ", ".join(experiment.labelled) or "none"
        raise ConfigError(
            f"{of} has no label maps of {split}: other images than those of {TRAIN}, and the "
            f"student's labels, are made by `ensdistill evaluate` for labelled splits ({labelled}) "
            "that every teacher in question covers. To label others, make them the train split of "
            "an experiment whose teacher is the student: `network: {student: FOLDER}`"
        )
    return node_id


def _require_label_ids(table: ClassTable) -> None:
    if not table.label_ids:
        raise ConfigError(f"class table {table.name} has no label ids; export `--ids train-ids`")
    if (most := max(table.label_ids)) > IGNORE_INDEX:
        raise ConfigError(
            f"class table {table.name} has the label id {most}; expected at most {IGNORE_INDEX}, "
            "as PNGs of label ids are of 8 bits"
        )


def _require_for_server(found: Order) -> None:
    table = found.experiment.classes
    if table.label_ids.get(_UNLABELLED) != IGNORE_INDEX:
        raise ConfigError(
            f"class table {table.name} is not Cityscapes': its label id {_UNLABELLED} is not "
            "one that evaluation ignores; name a folder"
        )
    names: dict[str, Path] = {}
    for picture in found.local.pictures:
        name = _name(picture.id)
        if not _CITYSCAPES.fullmatch(name) or not name.isprintable():
            raise DataError(
                f"target.{found.split}: {picture.image.name} is no image of Cityscapes; its server "
                "looks for <city>_<seq>_<frame>"
            )
        if (other := names.setdefault(name, picture.image)) != picture.image:
            raise DataError(
                f"target.{found.split}: {other} and {picture.image} have one name, and the server "
                "of Cityscapes knows no folders; name a folder to export to"
            )


def values_of(table: ClassTable, ids: Ids) -> UInt8:
    """Return the pixel value of every train id, (256,) uint8.

    As label ids, 255 becomes 0 where the table says that 0 is ignored, as Cityscapes' does.
    """
    values = np.arange(256, dtype=np.uint8)
    if ids == "label-ids":
        for label_id, train_id in table.label_ids.items():
            if train_id != IGNORE_INDEX:
                values[train_id] = label_id
        if table.label_ids.get(_UNLABELLED) == IGNORE_INDEX:
            values[IGNORE_INDEX] = _UNLABELLED
    return values


def png(values: UInt8, table: ClassTable | None = None) -> bytes:
    """Return uint8 as an 8-bit PNG: (H, W, 3), or (H, W), with the palette of a table if given."""
    image = Image.fromarray(values)
    if table is not None:
        colours = [part for colour in table.colours for part in colour]
        image.putpalette(colours + [0] * (768 - len(colours)))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class _Task(NamedTuple):
    """An image: where its label map lies, what its file must hold, and where both go."""

    stored: Stored
    image: Path
    sha256: str
    place: str


class _Done(NamedTuple):
    """What was written of an image, and how many of its pixels are 255."""

    written: list[Written]
    ignored: int


@dataclass(frozen=True)
class _Writing:
    """Writes what there is of an image, in whatever process it is."""

    reader: LabelReader
    folder: Path
    table: ClassTable
    ids: Ids
    layout: Layout | None
    copy_images: bool

    def __call__(self, task: _Task) -> _Done:
        labels = self.reader(task.stored)
        content = png(
            values_of(self.table, self.ids)[labels], self.table if self.ids == "palette" else None
        )
        ignored = int(np.count_nonzero(labels == IGNORE_INDEX))
        if self.layout is None:
            return _Done([write(self.folder, f"{task.place}_pred.png", content)], ignored)
        layout = self.layout
        name = f"{layout.labels}/{task.place}"
        written = [write(self.folder, name + layout.label_suffix, content)]
        if layout.by_city and self.ids == "train-ids" and self.table.label_ids:
            written += self._for_detectron2(name, labels)
        written += self._image(task)
        return _Done(written, ignored)

    def _for_detectron2(self, name: str, labels: UInt8) -> list[Written]:
        """Write what its loader of Cityscapes looks for beside the train ids.

        The size is in the polygons' file. No instances are known: Cityscapes then has a thing's
        label id as its instance id.
        """
        height, width = labels.shape
        size = json.dumps({"imgHeight": height, "imgWidth": width, "objects": []}).encode()
        same = png(values_of(self.table, "label-ids")[labels])
        contents = {"labelIds.png": same, "instanceIds.png": same, "polygons.json": size}
        return [write(self.folder, f"{name}_gtFine_{k}", v) for k, v in contents.items()]

    def _image(self, task: _Task) -> list[Written]:
        assert self.layout is not None
        name = f"{self.layout.images}/{task.place}{self.layout.image_suffix}"
        if not self.layout.takes(task.image):
            return [write(self.folder, name, png(read_image(task.image, task.sha256)))]
        if self.copy_images:
            content = task.image.read_bytes()
            if hashlib.sha256(content).hexdigest() != task.sha256:
                raise DataError(f"{task.image}: changed since this command looked at it")
            return [write(self.folder, name, content)]
        link = self.folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(real_path(task.image))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise DataError(
                f"{link.parent}: links cannot be made here ({error.strerror}); repeat with "
                "--copy-images"
            ) from error
        return []


def export(given: Order, progress: Progress) -> dict[str, Any]:
    """Write an export and return what was written, as JSON-able data.

    Raises
    ------
    CorruptError
        If a label map is not what was published.
    DataError
        If an image changed meanwhile.
    """
    maps, layout, table = LabelMaps(given.artifact), given.layout, given.experiment.classes
    tasks = [
        _Task(
            maps.find(p.id),
            p.image,
            given.local.digests[str(p.image)],
            _name(p.id) if layout is None else layout.place(p.id),
        )
        for p in given.local.pictures
    ]
    written: list[Written] = []
    ignored = 0

    def done(_: _Task, found: _Done) -> None:
        nonlocal ignored
        written.extend(found.written)
        ignored += found.ignored

    progress.start(len(tasks), 0, "images")
    with drafted(given.target) as draft:
        folder = draft / "tree" if given.zipped else draft / given.target.name
        folder.mkdir()
        for_each(
            tasks,
            _Writing(maps.reader, folder, table, given.ids, layout, given.copy_images),
            done,
            workers=given.experiment.config.runtime.workers,
            progress=progress,
        )
        pixels = sum(height * width for height, width in (t.stored.size for t in tasks))
        about = {**given.summary, "pixels": pixels, "ignored": ignored}
        if layout is None:
            _zip(folder, draft / given.target.name)
            written = [summed(given.target.name, (draft / given.target.name).read_bytes())]
        else:
            text = guide(
                given.experiment.path.name,
                given.artifact.manifest,
                table,
                layout,
                given.ids,
                about,
                given.target.name,
            )
            written.append(write(folder, "README.md", as_utf8(text)))
    return as_json(given.artifact, written, **about)


def _zip(folder: Path, file: Path) -> None:
    """Pack the files of a folder; the same files always give the same bytes."""
    with zipfile.ZipFile(file, "w") as packed:
        for path in sorted(folder.iterdir()):
            # stored: PNGs are compressed
            entry = zipfile.ZipInfo(path.name, _NO_DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            packed.writestr(entry, path.read_bytes())
