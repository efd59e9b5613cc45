"""Photographs decoded once, as raw pixels that are read by memory map.

A cache: pixels are what decoding gives, so that they enter no fingerprint, and whatever is missing
or not whole is decoded from the photograph itself.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import google_crc32c
import numpy as np
import PIL
from PIL import features

from ensdistill.data.decoding import UInt8, image_size, read_image
from ensdistill.pipeline.opening import open_regular, read_regular

_FORM: Final = b"ensdistill px 1\n"
# another decoder may give other pixels of a JPEG, so theirs are not used
_DECODER: Final = f"Pillow {PIL.__version__} jpg {features.version('jpg')}".encode()[:32]
# form, decoder, sha256 of the photograph's file, height, width; checksum of these and the pixels
_HEADER: Final = struct.Struct("<16s32s32sII")
_CHECKSUM: Final = struct.Struct("<I")
_START: Final = _HEADER.size + _CHECKSUM.size
_PIXELS: Final = re.compile(r"[0-9a-f]{64}\.rgb")
_PARTIAL: Final = re.compile(r"[0-9a-f]{64}\.rgb\..+\.partial")
_ABANDONED: Final = 3600  # seconds after which nobody is writing a temporary file any more


class PixelCache:
    """A folder with one file per photograph, named by the sha256 of the photograph's own file.

    Equal photographs of several splits and experiments share one. Any number of processes may
    fill it at once; it need not exist until something is written. A file is a header and
    (H, W, 3) uint8 RGB.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, sha256: str) -> Path:
        """Return where a photograph's pixels lie, or would."""
        return self.folder / f"{sha256}.rgb"

    def open(self) -> set[str]:
        """Make the folder, sweep what was left half-written, and return whose pixels are there.

        Raises
        ------
        OSError
            If it cannot be made or listed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found = set()
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".rgb"):
                found.add(entry.name.removesuffix(".rgb"))
            elif _PARTIAL.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # renamed or swept meanwhile
                    if time.time() - entry.stat().st_mtime > _ABANDONED:
                        Path(entry).unlink()
        return found

    def fault(self, sha256: str) -> str | None:
        """Read all of a photograph's pixels and return what is wrong with them, None if nothing."""
        try:
            self._whole(sha256)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        except ValueError as error:
            return str(error)
        return None

    def read(self, sha256: str) -> UInt8 | None:
        """Return a photograph's (H, W, 3) uint8 RGB, None if there is none whose checksum holds."""
        try:
            return self._whole(sha256)
        except (OSError, ValueError):
            return None

    def _whole(self, sha256: str) -> UInt8:
        """Return all of a photograph's pixels.

        Raises
        ------
        OSError, ValueError
            If they cannot be read, or are not whole.
        """
        # read, not mapped: a disk that fails raises here and would kill a process that maps
        content = read_regular(self.file(sha256))
        height, width = _size(content, sha256)
        written = _CHECKSUM.unpack_from(content, _HEADER.size)[0]
        pixels = np.frombuffer(content, np.uint8, offset=_START).reshape(height, width, 3)
        if written != _crc(content[: _HEADER.size], pixels):
            raise ValueError("its checksum differs")
        return pixels

    def write(self, sha256: str, path: Path | str) -> UInt8:
        """Return a photograph, decoded and kept in one atomic write, unless it is there whole.

        Raises
        ------
        DataError
            As `read_image`.
        OSError
            If the pixels cannot be written.
        """
        if (found := self.read(sha256)) is not None:  # another process was faster
            return found
        pixels = np.ascontiguousarray(read_image(path, sha256))
        height, width, _ = pixels.shape
        header = _HEADER.pack(_FORM, _DECODER, bytes.fromhex(sha256), height, width)
        file = self.file(sha256)
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.partial")
        try:
            with temporary.open("wb") as out:
                out.write(header + _CHECKSUM.pack(_crc(header, pixels)))
                out.write(pixels.data)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return pixels

    def cannot_hold(self, error: OSError) -> str:
        """Say that nothing can be kept, and what that means."""
        return (
            f"{self.folder} cannot hold decoded images ({error}); what it lacks is decoded "
            "whenever it is read (`runtime: {cache: false}` does so from the start)"
        )

    def discard(self, digests: Iterable[str]) -> None:
        """Delete the pixels of photographs, those that are there."""
        for sha256 in digests:
            self.file(sha256).unlink(missing_ok=True)

    def map(self, sha256: str) -> UInt8 | None:
        """Return a photograph's (H, W, 3) uint8 RGB as a map of its file, which no change reaches.

        Only what is looked at is read. The map outlives the file. None if there are no pixels of
        this size, photograph and decoder; their checksum is left to `fault`.
        """
        try:
            with open_regular(self.file(sha256)) as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            height, width = _size(content, sha256)
        except (OSError, ValueError):
            return None
        return np.frombuffer(content, np.uint8, offset=_START).reshape(height, width, 3)


class Pixels:
    """What reads photographs: from a cache where they lie there, and else from their own files.

    Files are opened for each read and not held: it may be sent to, and forked into, any number of
    processes.

    Parameters
    ----------
    folder : Path, optional
        The cache's.
    whole : collection of str
        Digests of those whose checksum was seen to hold: of these only what is looked at is read.
    keeps : bool
        Whether the cache gets what it lacks, as long as that can be written.

    Attributes
    ----------
    remarks : list of str
        What there is to say of the cache.
    """

    def __init__(
        self, folder: Path | None = None, whole: Iterable[str] = (), *, keeps: bool = False
    ):
        self.folder, self.keeps = folder, keeps
        self.remarks: list[str] = []
        self._whole = frozenset(whole)
        self._kept: list[str] = []

    def read(self, path: Path | str, sha256: str) -> UInt8:
        """Return a photograph as `read_image` does, perhaps read-only."""
        if self.folder is None:
            return read_image(path, sha256)
        cache = PixelCache(self.folder)
        # there is no map of what `gc` took meanwhile
        found = cache.map(sha256) if sha256 in self._whole else cache.read(sha256)
        if found is None and self.keeps:
            found = self._keep(cache, path, sha256)
        return read_image(path, sha256) if found is None else found

    def _keep(self, cache: PixelCache, path: Path | str, sha256: str) -> UInt8 | None:
        """Return a photograph that is kept from now on, None if that fails."""
        try:
            found = cache.write(sha256, path)
        except OSError as error:
            if self.keeps:  # and no other thread was faster
                self.keeps = False
                self.remarks.append(cache.cannot_hold(error))
            with suppress(OSError):
                cache.discard(self._kept)  # on a full disk there would be no room for results
            return None
        self._kept.append(sha256)
        return found


def is_free(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but what a cache may hold."""
    if not folder.is_dir():
        return True
    names = os.listdir(folder)  # noqa: PTH208
    return all(_PIXELS.fullmatch(name) or _PARTIAL.fullmatch(name) for name in names)


def cached_bytes(path: Path | str) -> int:
    """Return the bytes that the pixels of a photograph take, refused as by `image_size`."""
    height, width = image_size(Path(path))
    return _START + 3 * height * width


def _size(content: bytes | mmap.mmap, sha256: str) -> tuple[int, int]:
    """Return height and width, as the header of a whole file gives them.

    Raises
    ------
    ValueError
        If the file is another one, or not as long as it says.
    """
    if len(content) < _START:
        raise ValueError("it is truncated")
    form, decoder, name, height, width = _HEADER.unpack_from(content)
    if form != _FORM:
        raise ValueError("it has another form")
    if decoder.rstrip(b"\0") != _DECODER:
        raise ValueError("another version of Pillow decoded it")
    if name != bytes.fromhex(sha256):
        raise ValueError("it holds another image")
    if len(content) != _START + 3 * height * width:
        raise ValueError(f"it is {len(content)} bytes long, not what {height}x{width} pixels take")
    return height, width


def _crc(header: bytes, pixels: UInt8) -> int:
    return int(google_crc32c.extend(google_crc32c.value(header), pixels))
