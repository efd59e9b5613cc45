"""Caches: folders with one checksummed file per photograph, read by memory map.

What they hold can be made again, so that it enters no fingerprint, and what is missing or not whole
is.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import google_crc32c
import numpy as np
import numpy.typing as npt

from ensdistill.pipeline.opening import open_regular, read_regular

T = TypeVar("T")
Content = bytes | mmap.mmap

# form, maker, sha256 of the photograph's file
_HEAD: Final = struct.Struct("<16s32s32s")
_CHECKSUM: Final = struct.Struct("<I")
_ABANDONED: Final = 3600  # seconds after which nobody is writing a temporary file any more


class Cache(ABC, Generic[T]):
    """A folder with one file per photograph, named by the sha256 of the photograph's own file.

    Equal photographs of several splits and experiments share one. Any number of processes may
    fill it at once; it need not exist until something is written. A file is a header, with the
    `sizes` of what it holds and a checksum of header and content, and that content.
    """

    suffix: ClassVar[str]
    form: ClassVar[bytes]  # 16 bytes: what a file begins with
    sizes: ClassVar[int]  # how many a header has
    foreign: ClassVar[str]  # says that another maker made it

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    @abstractmethod
    def maker(self) -> bytes:
        """At most 32 bytes: what the same photograph would give otherwise is not used."""

    @abstractmethod
    def length(self, sizes: Sequence[int]) -> int:
        """Return how many bytes content of these sizes has."""

    @abstractmethod
    def view(self, content: Content, start: int, sizes: Sequence[int]) -> T:
        """Return the content of a file, which begins at `start`."""

    @classmethod
    def start(cls) -> int:
        """Return where the content of a file begins."""
        return cls._header().size + _CHECKSUM.size

    @classmethod
    def _header(cls) -> struct.Struct:
        return struct.Struct(f"{_HEAD.format}{cls.sizes}I")

    def file(self, sha256: str) -> Path:
        """Return where that of a photograph lies, or would."""
        return self.folder / f"{sha256}{self.suffix}"

    def open(self) -> set[str]:
        """Make the folder, sweep what was left half-written, and return whose files are there.

        Raises
        ------
        OSError
            If it cannot be made or listed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found = set()
        partial = re.compile(rf"[0-9a-f]{{64}}{re.escape(self.suffix)}\..+\.partial")
        for entry in os.scandir(self.folder):
            if entry.name.endswith(self.suffix):
                found.add(entry.name.removesuffix(self.suffix))
            elif partial.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # renamed or swept meanwhile
                    if time.time() - entry.stat().st_mtime > _ABANDONED:
                        Path(entry).unlink()
        return found

    def is_free(self) -> bool:
        """Whether the folder is not there, or holds nothing but what such a cache may hold."""
        if not self.folder.is_dir():
            return True
        ours = re.compile(rf"[0-9a-f]{{64}}{re.escape(self.suffix)}(\..+\.partial)?")
        return all(ours.fullmatch(name) for name in os.listdir(self.folder))  # noqa: PTH208

    def fault(self, sha256: str) -> str | None:
        """Read all of a photograph's file and return what is wrong with it, None if nothing."""
        try:
            self._whole(sha256)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        except ValueError as error:
            return str(error)
        return None

    def read(self, sha256: str) -> T | None:
        """Return what is kept of a photograph, None if there is none whose checksum holds."""
        try:
            return self._whole(sha256)
        except (OSError, ValueError):
            return None

    def _whole(self, sha256: str) -> T:
        """Return all that is kept of a photograph.

        Raises
        ------
        OSError, ValueError
            If it cannot be read, or is not whole.
        """
        # read, not mapped: a disk that fails raises here and would kill a process that maps
        content = read_regular(self.file(sha256))
        sizes = self._sizes(content, sha256)
        header, start = self._header().size, self.start()
        written = _CHECKSUM.unpack_from(content, header)[0]
        if written != _crc(content[:header], [np.frombuffer(content, np.uint8, offset=start)]):
            raise ValueError("its checksum differs")
        return self.view(content, start, sizes)

    def keep(self, sha256: str, sizes: Sequence[int], parts: Sequence[npt.NDArray[Any]]) -> None:
        """Keep contiguous arrays, one after another, in one atomic write.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        header = _HEAD.pack(self.form, self.maker, bytes.fromhex(sha256))
        header += struct.pack(f"<{self.sizes}I", *sizes)
        bodies = [part.reshape(-1).view(np.uint8) for part in parts]
        file = self.file(sha256)
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.partial")
        try:
            with temporary.open("wb") as out:
                out.write(header + _CHECKSUM.pack(_crc(header, bodies)))
                for body in bodies:
                    out.write(body.data)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def discard(self, digests: Iterable[str]) -> None:
        """Delete the files of photographs, those that are there."""
        for sha256 in digests:
            self.file(sha256).unlink(missing_ok=True)

    def map(self, sha256: str) -> T | None:
        """Return what is kept of a photograph as a map of its file, which no change reaches.

        Only what is looked at is read. The map outlives the file. None if there is no file of the
        right size, photograph and maker; its checksum is left to `fault`.
        """
        try:
            with open_regular(self.file(sha256)) as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            sizes = self._sizes(content, sha256)
        except (OSError, ValueError):
            return None
        return self.view(content, self.start(), sizes)

    def _sizes(self, content: Content, sha256: str) -> Sequence[int]:
        """Return the sizes that the header of a whole file gives.

        Raises
        ------
        ValueError
            If the file is another one, or not as long as it says.
        """
        if len(content) < self.start():
            raise ValueError("it is truncated")
        form, maker, name, *sizes = self._header().unpack_from(content)
        if form != self.form:
            raise ValueError("it has another form")
        if maker != self.maker.ljust(32, b"\0"):
            raise ValueError(self.foreign)
        if name != bytes.fromhex(sha256):
            raise ValueError("it holds another image")
        if len(content) != self.start() + self.length(sizes):
            shape = "x".join(map(str, sizes))
            raise ValueError(f"it is {len(content)} bytes long, not what {shape} take")
        return sizes


def _crc(header: bytes, bodies: Iterable[npt.NDArray[np.uint8]]) -> int:
    found = google_crc32c.value(header)
    for body in bodies:
        found = google_crc32c.extend(found, body)
    return int(found)
