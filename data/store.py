"""Label maps in one Zarr v3 array: one image, one chunk, one atomic write."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.pipeline.errors import CorruptError, DataError

UInt8 = npt.NDArray[np.uint8]

# Never a legal label. With its default settings Zarr stores no chunk that equals the fill value,
# so a fill of 255 would make a finished image that is all ignored look unwritten.
UNWRITTEN: Final = 254

_DESCRIPTION: Final = "zarr.json"
_CHUNK: Final = re.compile(r"c\.(\d+)\.0\.0")

# Opening an existing array ignores `config=` (zarr-python issue 2931), hence the global setting.
# Without it each write costs 8 ms more, and chunks equal to the fill value are dropped.
_OPENING = threading.Lock()


class LabelStore:
    """(N, H, W) uint8 train ids; smaller images are padded with 255 at the right and bottom.

    Parameters
    ----------
    path : Path
        The array's folder.
    writable : bool
        Open for writing; the array must exist either way (see `create`).
    """

    def __init__(self, path: Path, *, writable: bool = False):
        self.path = path
        try:
            with _OPENING, zarr.config.set({"array.write_empty_chunks": True}):
                array = zarr.open_array(path, mode="r+" if writable else "r", zarr_format=3)
        except Exception as error:  # Zarr has no kind of its own for spoilt metadata
            raise CorruptError(f"{path}: is no readable label store ({error})") from error
        self._array: zarr.Array[Any] = array

    @classmethod
    def create(cls, path: Path, count: int, height: int, width: int) -> LabelStore:
        """Return a writable store; what is there of it is kept.

        Its description is the same for every writer, so it is written anew if it is not whole.

        Raises
        ------
        CorruptError
            If a store of another shape is there.
        """
        described: dict[str, Buffer] = {}
        zarr.create_array(
            MemoryStore(described),
            shape=(count, height, width),
            chunks=(1, height, width),
            dtype=np.uint8,
            fill_value=UNWRITTEN,
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
            chunk_key_encoding={"name": "default", "separator": "."},
            zarr_format=3,
        )
        description = described[_DESCRIPTION].to_bytes()
        file = path / _DESCRIPTION
        if not file.exists() or file.read_bytes() != description:
            found = None
            with suppress(CorruptError):
                found = cls(path).shape
            if found not in (None, (count, height, width)):
                raise CorruptError(
                    f"{path}: holds {found}, expected {(count, height, width)}; delete it"
                )
            path.mkdir(parents=True, exist_ok=True)
            temporary = path / f"{_DESCRIPTION}.{os.urandom(16).hex()}.partial"
            temporary.write_bytes(description)
            temporary.replace(file)
        return cls(path, writable=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, and height and width of the largest one."""
        count, height, width = self._array.shape
        return count, height, width

    def present(self) -> set[int]:
        """Return the positions that were written, by one directory listing."""
        names = (_CHUNK.fullmatch(name) for name in os.listdir(self.path))  # noqa: PTH208
        return {int(found[1]) for found in names if found}

    def write(self, index: int, label_map: UInt8) -> None:
        """Store (h, w) train ids at a position, in one atomic write.

        Raises
        ------
        ValueError
            If it is not uint8, holds the fill value or does not fit.
        """
        if label_map.dtype != np.uint8:  # Zarr would wrap 256 to 0
            raise ValueError(f"label map of {label_map.dtype}, expected uint8")
        count, height, width = self.shape
        if index not in range(count):  # Zarr would take -1 for the last one
            raise ValueError(f"image {index} in a store of {count}")
        h, w = label_map.shape
        if h > height or w > width:
            raise ValueError(f"label map of {h}x{w} in a store of {height}x{width}")
        if (label_map == UNWRITTEN).any():
            raise ValueError(f"label {UNWRITTEN} is reserved")
        chunk = label_map
        if (h, w) != (height, width):
            chunk = np.full((height, width), IGNORE_INDEX, np.uint8)
            chunk[:h, :w] = label_map
        self._array[index] = chunk

    def read(self, index: int, height: int, width: int) -> UInt8:
        """Return the (height, width) train ids at a position.

        Raises
        ------
        DataError
            If the image was never written.
        CorruptError
            If its checksum does not hold, or the store no longer fits what it was written as.
        """
        file = self.path / chunk_name(index)
        if not file.exists():
            raise DataError(f"{self.path}: image {index} was not written")
        try:
            chunk = np.asarray(self._array[index])
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptError(
                f"{file}: does not decode ({error}); `ensdistill verify --repair` makes it good"
            ) from error
        label_map = chunk[:height, :width]
        # the checksum covers the chunk, not `zarr.json`, which says where it is and how large
        if label_map.shape != (height, width) or (label_map == UNWRITTEN).any():
            raise CorruptError(
                f"{file}: does not hold {height}x{width} labels; "
                "`ensdistill verify --repair` makes it good"
            )
        return label_map


def chunk_name(index: int) -> str:
    """Return the file below a store that holds the image at a position."""
    return f"c.{index}.0.0"


def chunk_index(file: str) -> int:
    """Return the position that a chunk's file stands for."""
    return int(PurePosixPath(file).name.split(".")[1])


def checksum(label_map: UInt8) -> str:
    """Return the sha256 of a label map's true-size pixels, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(label_map).data).hexdigest()
