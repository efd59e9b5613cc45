"""Label maps of an artifact, by image id: the store and the item index together.

Maps of percents (`pixel-weights`) are kept in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ensdistill.data.decoding import image_size
from ensdistill.data.store import LabelStore, UInt8, checksum, chunk_name
from ensdistill.pipeline.errors import CorruptError, DataError, EnsdistillError
from ensdistill.pipeline.journal import Record
from ensdistill.pipeline.manifest import REPAIR, Artifact
from ensdistill.pipeline.node import Job, Told
from ensdistill.pipeline.opening import NotRegularError, StrayNameError, inner, read_regular
from ensdistill.pipeline.spares import Spare
from ensdistill.stages.functional.scores import class_counts
from ensdistill.stages.local import Local
from ensdistill.stages.work.items import for_each

T = TypeVar("T")
Made = tuple[UInt8, dict[str, Any]]  # a map, and what its record says of it beside size and content

STORE: Final = "maps.zarr"


class Stored(NamedTuple):
    """Where a published label map lies.

    Attributes
    ----------
    id : str
        The image's.
    file, sha256 : str
        Below the artifact's folder, and what it must hold.
    size : tuple of int
        Height and width in pixels.
    """

    id: str
    file: str
    sha256: str
    size: tuple[int, int]


@dataclass(frozen=True)
class LabelReader:
    """Reads label maps of an artifact from its folder, in whatever process it is."""

    folder: Path
    store: LabelStore

    def __call__(self, stored: Stored, out: UInt8 | None = None) -> UInt8:
        """Return the (H, W) uint8 train ids of an image, in `out` where it is given.

        Raises
        ------
        CorruptError
            If its file is not what was written: damaged, or another image's.
        DataError
            If it cannot be read.
        """
        file = self.folder / stored.file
        try:
            file = inner(self.folder, stored.file)
            content = read_regular(file)
        except (FileNotFoundError, IsADirectoryError, NotRegularError, StrayNameError):
            content = b""
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise CorruptError(f"{file}: is not what was written for {stored.id}; {REPAIR}")
        return self.store.decode(content, file, *stored.size, out)


def read_all(readers: Sequence[LabelReader], stored: Sequence[Stored]) -> UInt8:
    """Return the (N, H, W) uint8 maps of an image in several artifacts; raises as `LabelReader`."""
    maps = np.empty((len(stored), *stored[0].size), np.uint8)
    for read, one, out in zip(readers, stored, maps, strict=True):
        read(one, out)
    return maps


class LabelMaps:
    """The published label maps of an artifact, by image id; `reader` reads what `find` finds."""

    def __init__(self, artifact: Artifact):
        self.records: Mapping[str, Record] = {r["id"]: r for r in artifact.items}
        self.reader = LabelReader(artifact.path, LabelStore(artifact.path / STORE))

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def find(self, image_id: str) -> Stored:
        """Return where the label map of an image lies."""
        record = self.records[image_id]
        file, _, sha256 = record["file"]
        return Stored(image_id, file, sha256, self.size(image_id))

    def size(self, image_id: str) -> tuple[int, int]:
        """Return height and width of an image's label map in pixels."""
        height, width = self.records[image_id]["size"]
        return height, width

    def read(self, image_id: str) -> UInt8:
        """Return the (H, W) uint8 train ids, or percents, of an image; raises as `LabelReader`."""
        return self.reader(self.find(image_id))

    def shares(self) -> npt.NDArray[np.int64]:
        """Return the pixels of each class over all images, (C,) int64."""
        counts = np.array([r["labels"] for r in self.records.values()], np.int64)
        return np.asarray(counts.sum(axis=0))


class Place(NamedTuple):
    """Where an image's label map goes: position in the store, height and width in pixels."""

    id: str
    position: int
    size: tuple[int, int]


@dataclass(frozen=True)
class LabelWriter:
    """Writes label maps into a store that is open for it, in whatever process it is."""

    store: LabelStore

    def __call__(self, place: Place, label_map: UInt8, told: Mapping[str, Any]) -> dict[str, Any]:
        """Store an image's label map and return its record, with what is `told` of it.

        Raises
        ------
        DataError
            If it has not the image's size.
        """
        size = place.size
        if label_map.shape != size:
            raise DataError(
                f"{place.id}: label map of {label_map.shape[0]}x{label_map.shape[1]}, "
                f"expected {size[0]}x{size[1]} (height x width)"
            )
        self.store.write(place.position, label_map)
        return {"size": list(size), "content": checksum(label_map), **told}


@dataclass(frozen=True)
class _Making(Generic[T]):
    """Makes a label map and writes it, in whatever process it is."""

    make: Callable[[T], Made]
    write: LabelWriter

    def __call__(self, item: tuple[Place, T]) -> dict[str, Any]:
        place, given = item
        return self.write(place, *self.make(given))


class LabelMapsDraft:
    """Label maps being written: chunk first, journal line after.

    What other artifacts hold already is taken from there first. `sizes` are the height and width of
    every item, and `missing` the ids of the images that are left to compute.
    """

    def __init__(self, job: Job[Told, Local], sizes: Mapping[str, tuple[int, int]]):
        ids = [item.id for item in job.work.items]
        height = max(sizes[i][0] for i in ids)
        width = max(sizes[i][1] for i in ids)
        self._job = job
        self._places = {i: Place(i, k, sizes[i]) for k, i in enumerate(ids)}
        self._store = LabelStore.create(job.draft.path / STORE, len(ids), height, width)
        self._write = LabelWriter(self._store)
        self._take(job.spares)
        self.missing = job.todo()

    def fill(self, given: Callable[[str], T], make: Callable[[T], Made]) -> None:
        """Make what is missing of what is `given` for an image, in several processes."""
        self._job.start("images")
        for_each(
            [(self._places[image_id], given(image_id)) for image_id in self.missing],
            _Making(make, self._write),
            lambda item, record: self.journal(item[0], record),
            workers=self._job.work.local.workers,
            progress=self._job.progress,
        )

    def put(self, image_id: str, label_map: UInt8, told: Mapping[str, Any]) -> None:
        """Store a label map, and journal it with what is told of it."""
        place = self._places[image_id]
        self.journal(place, self._write(place, label_map, told))

    def journal(self, place: Place, record: Mapping[str, Any]) -> None:
        """Journal a label map that was written."""
        self._job.draft.record(place.id, file=self._file(place.id), **record)

    def _take(self, spares: Mapping[str, Spare]) -> None:
        """Take label maps over: byte for byte, or encoded anew where the largest size differs."""
        stores = {
            folder: _readable(folder / STORE) for folder in {s.folder for s in spares.values()}
        }
        same = {}
        for image_id, spare in spares.items():
            store = stores[spare.folder]
            if store is not None and store.shape[1:] == self._store.shape[1:]:
                same[image_id] = spare
            elif store is not None and self._encode_anew(self._places[image_id], spare, store):
                # one by one: what a kill interrupts has taken as long as it takes to make
                self._job.draft.adopt({image_id: spare}, self._file, written=True)
        self._job.draft.adopt(same, self._file)

    def _encode_anew(self, place: Place, spare: Spare, store: LabelStore) -> bool:
        """Write what another store holds, unless that is spoilt or gone since."""
        content = spare.file()
        if content is None:
            return False
        with suppress(EnsdistillError):
            file = spare.folder / spare.record["file"][0]
            label_map = store.decode(content, file, *place.size)
            if checksum(label_map) == spare.record["content"]:
                self._store.write(place.position, label_map)
                return True
        return False

    def _file(self, image_id: str) -> str:
        return f"{STORE}/{chunk_name(self._places[image_id].position)}"


def _readable(path: Path) -> LabelStore | None:
    """Return the store in a folder, None if it is spoilt: then what it held is computed."""
    with suppress(EnsdistillError):
        return LabelStore(path)
    return None


def counted(label_map: UInt8, n_classes: int) -> dict[str, Any]:
    """Return what a record says of labels: the pixels of each class."""
    return {"labels": class_counts(label_map, n_classes).tolist()}


def image_sizes(job: Job[Told, Local]) -> dict[str, tuple[int, int]]:
    """Return height and width of every image of a job, from the files' headers.

    Raises
    ------
    DataError
        If an image is larger than it may be.
    """
    local = job.work.local
    return {p.id: image_size(p.image, local.max_pixels) for p in local.pictures}
