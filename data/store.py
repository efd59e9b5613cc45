"""Label maps in one Zarr v3 array: one image, one chunk, one atomic write."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import zstd

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.pipeline.errors import CorruptError, DataError
from ensdistill.pipeline.opening import NotRegularError, read_json, read_regular

UInt8 = npt.NDArray[np.uint8]

# Never a legal label. With its default settings Zarr stores no chunk that equals the fill value,
# so a fill of 255 would make a finished image that is all ignored look unwritten.
UNWRITTEN: Final = 254

_DESCRIPTION: Final = "zarr.json"
_CHUNK: Final = re.compile(r"c\.(\d+)\.0\.0")
_LEVEL: Final = 1  # of zstd: higher ones take ten times as long for a fifth of the bytes
_REPAIR: Final = "`ensdistill verify --repair` makes it good"


class LabelStore:
    """(N, H, W) uint8 train ids; smaller images are padded with 255 at the right and bottom.

    Zarr makes the array. Its description and chunks are read, and chunks written, here, byte for
    byte as Zarr does it: its way through an event loop and a thread takes longer than the codec.

    Parameters
    ----------
    path : Path
        The array's folder.
    writable : bool
        Open for writing; the array must exist either way (see `create`).
    """

    def __init__(self, path: Path, *, writable: bool = False):
        self.path = path
        self.shape = _shape(path)  # images, and height and width of the largest one
        self._writable = writable

    @classmethod
    def create(cls, path: Path, count: int, height: int, width: int) -> LabelStore:
        """Return a writable store; what is there of it is kept.

        Its description is the same for every writer, so it is written anew if it is not whole.

        Raises
        ------
        CorruptError
            If a store of another shape is there.
        """
        description = _described((count, height, width))
        file = path / _DESCRIPTION
        there = None
        with suppress(OSError):
            there = read_regular(file)
        if there != description:
            found = None
            with suppress(CorruptError):
                found = _shape(path)
            if found not in (None, (count, height, width)):
                raise CorruptError(
                    f"{path}: holds {found}, expected {(count, height, width)}; delete it"
                )
            path.mkdir(parents=True, exist_ok=True)
            _replace(file, description)
        return cls(path, writable=True)

    def present(self) -> set[int]:
        """Return the positions that were written, by one directory listing."""
        names = (_CHUNK.fullmatch(name) for name in os.listdir(self.path))  # noqa: PTH208
        return {int(found[1]) for found in names if found}

    def write(self, index: int, label_map: UInt8) -> None:
        """Store (h, w) train ids at a position, in one atomic write.

        Raises
        ------
        ValueError
            If the store is read-only, or the label map is not uint8, holds the fill value or does
            not fit.
        """
        if not self._writable:
            raise ValueError(f"{self.path} is read-only")
        if label_map.dtype != np.uint8:
            raise ValueError(f"label map of {label_map.dtype}, expected uint8")
        count, height, width = self.shape
        if index not in range(count):
            raise ValueError(f"image {index} in a store of {count}")
        h, w = label_map.shape
        if h > height or w > width:
            raise ValueError(f"label map of {h}x{w} in a store of {height}x{width}")
        if _holds_unwritten(label_map):
            raise ValueError(f"label {UNWRITTEN} is reserved")
        chunk = np.ascontiguousarray(label_map)
        if (h, w) != (height, width):
            chunk = np.full((height, width), IGNORE_INDEX, np.uint8)
            chunk[:h, :w] = label_map
        packed = zstd.compress(chunk, _LEVEL)
        _replace(self.path / chunk_name(index), packed + _crc(packed))

    def read(self, index: int, height: int, width: int) -> UInt8:
        """Return the (height, width) train ids at a position.

        Raises
        ------
        DataError
            If the image was never written.
        CorruptError
            If its checksum does not hold, or it does not hold so many labels.
        """
        file = self.path / chunk_name(index)
        try:
            content = read_regular(file)
        except FileNotFoundError:
            raise DataError(f"{self.path}: image {index} was not written") from None
        except (IsADirectoryError, NotRegularError) as error:
            raise CorruptError(f"{file}: cannot be read ({error}); {_REPAIR}") from error
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        label_map = self.decode(content, file, height, width)
        # the checksum covers the chunk, not `zarr.json`, which says how large it is
        if _holds_unwritten(label_map):
            raise CorruptError(f"{file}: does not hold {height}x{width} labels; {_REPAIR}")
        return label_map

    def decode(
        self, content: bytes, file: Path, height: int, width: int, out: UInt8 | None = None
    ) -> UInt8:
        """Return the (height, width) train ids, in `out` if given, that a chunk's file holds.

        Raises
        ------
        CorruptError
            As `read`.
        """
        if out is None:
            out = np.empty((height, width), np.uint8)
        fits = out.shape == self.shape[1:] and out.flags.c_contiguous
        chunk = out if fits else np.empty(self.shape[1:], np.uint8)
        chunk[-1, -1] = UNWRITTEN  # which stays if there is too little
        try:
            if content[-4:] != _crc(content[:-4]):
                raise ValueError("its checksum does not hold")
            zstd.decompress(content[:-4], chunk)
            if chunk[-1, -1] == UNWRITTEN:
                raise ValueError(f"less than {chunk.size} labels")
        except (ValueError, RuntimeError) as error:
            raise CorruptError(f"{file}: does not decode ({error}); {_REPAIR}") from error
        label_map = chunk[:height, :width]
        if label_map.shape != (height, width):
            raise CorruptError(f"{file}: does not hold {height}x{width} labels; {_REPAIR}")
        if not fits:
            out[:] = label_map
        return out


def _described(shape: tuple[int, int, int]) -> bytes:
    """Return the description that Zarr writes for an array of this shape."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.core.buffer import Buffer

    described: dict[str, Buffer] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(described),
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype=np.uint8,
        fill_value=UNWRITTEN,
        compressors=(ZstdCodec(level=_LEVEL), Crc32cCodec()),
        chunk_key_encoding={"name": "default", "separator": "."},
        zarr_format=3,
    )
    return described[_DESCRIPTION].to_bytes()


def _shape(path: Path) -> tuple[int, int, int]:
    """Return the shape of the array in a folder.

    Its description is read as the JSON that it is: a reader need not wait for Zarr to be imported.

    Raises
    ------
    CorruptError
        If there is none, or one that is laid out otherwise.
    """
    try:
        found = read_json(path / _DESCRIPTION)
        count, height, width = found["shape"]
        if not all(type(n) is int and n > 0 for n in found["shape"]):
            raise ValueError("its shape is none")
        laid_out = {key: found[key] for key in ("zarr_format", "node_type", "data_type")}
        laid_out |= {"chunks": found["chunk_grid"], "keys": found["chunk_key_encoding"]}
        laid_out["codecs"] = [codec["name"] for codec in found["codecs"]]
        if laid_out != _layout(height, width):
            raise ValueError("it is laid out otherwise")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"{path}: is no readable label store ({error})") from error
    return count, height, width


def _layout(height: int, width: int) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": "uint8",
        "chunks": {"name": "regular", "configuration": {"chunk_shape": [1, height, width]}},
        "keys": {"name": "default", "configuration": {"separator": "."}},
        "codecs": ["bytes", "zstd", "crc32c"],
    }


def _holds_unwritten(label_map: UInt8) -> bool:
    # as signed numbers 254 and 255 are -2 and -1: one look settles it for less than 128 classes
    return bool(label_map.view(np.int8).min() < -1 and (label_map == UNWRITTEN).any())


def _crc(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(4, "little")


def _replace(file: Path, content: bytes) -> None:
    """Write a file in one step; readers see it whole or not at all."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(16)}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(file)
        raise


def chunk_name(index: int) -> str:
    """Return the file below a store that holds the image at a position."""
    return f"c.{index}.0.0"


def checksum(label_map: UInt8) -> str:
    """Return the sha256 of a label map's true-size pixels, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(label_map).data).hexdigest()
