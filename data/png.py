"""Reading label PNGs past Pillow: 8-bit grey values or palette indices, in a fifth of its time.

What is not quite usual is left to Pillow: another form, a chunk that may mean something, a wrong
checksum, a byte too many. So what is read is always what Pillow reads, and nothing is refused here.
Only of deflate codes with unused words, which zlib never writes, ISA-L reads what is
written there, and its checksum holds, where zlib and so Pillow refuse them.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

try:
    from isal import isal_zlib

    _zlib: Any = isal_zlib
except ImportError:  # no wheels for this machine: the same in four times the time
    _zlib = zlib

# What was freed at the end of its heap glibc gives back to the system, unless it is less than twice
# the largest array that was freed before: two label maps are always more than twice one. To get the
# memory anew for each image takes twice as long as all else.
np.empty(1 << 24, np.uint8)

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY, _INDICES = b"\x08\0\0\0\0", b"\x08\3\0\0\0"  # 8 bits, not interlaced
_COLOURS: Final = {_GREY: range(1), _INDICES: range(3, 769, 3)}  # bytes of the palette
# bytes of what changes no pixel; where there are others Pillow may refuse it
_LENGTHS: Final = {b"IHDR": 13, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
_LENGTHS[b"IEND"] = 0
_IDLE: Final = b"(?:gAMA|cHRM|sRGB|pHYs|tIME)*"
_ORDER: Final = re.compile(b"IHDR" + _IDLE + b"(?:PLTE)?" + _IDLE + b"(?:IDAT)+IEND")
_MOST: Final = 1032  # times that deflate makes anything smaller


class Packed(NamedTuple):
    """A PNG of which all but its pixels was looked at, and is usual.

    Attributes
    ----------
    size : tuple of int
        Height and width in pixels.
    content : bytes
        Its rows, compressed.
    """

    size: tuple[int, int]
    content: bytes

    def pixels(self) -> UInt8 | None:
        """Return its grey values or palette indices, (H, W); None if Pillow has to read it."""
        height, width = self.size
        expected = height * (width + 1)
        if expected > _MOST * len(self.content):
            return None  # before there is memory for them
        stream = _zlib.decompressobj()
        try:
            # one byte more, or zlib would stop before the checksum behind the last one
            rows = stream.decompress(self.content, expected + 1)
        except _zlib.error:
            return None
        if len(rows) != expected or not stream.eof or stream.unused_data:
            return None

        from ensdistill.data.loops import unfilter

        if width % 8:
            rows += bytes(7)
        pixels = np.empty(height * width + 7, np.uint8)
        if not unfilter(np.frombuffer(rows, np.uint8), height, width, pixels):
            return None
        return pixels[:-7].reshape(height, width)


def unpack(content: bytes) -> Packed | None:
    """Return what a PNG's file holds; None if Pillow has to read it."""
    if not content.startswith(_SIGNATURE):
        return None
    view, at = memoryview(content), len(_SIGNATURE)
    chunks: list[tuple[bytes, memoryview]] = []
    while at < len(content):
        if len(content) < at + 12:
            return None
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + length
        if content[end : end + 4] != _zlib.crc32(view[at + 4 : end]).to_bytes(4, "big"):
            return None
        chunks.append((kind, view[at + 8 : end]))
        at = end + 4
    if _ORDER.fullmatch(b"".join(kind for kind, _ in chunks)) is None:
        return None
    if any(len(data) != _LENGTHS.get(kind, len(data)) for kind, data in chunks):
        return None
    colours = sum(len(data) for kind, data in chunks if kind == b"PLTE")
    width, height, form = struct.unpack(">II5s", chunks[0][1])
    if colours not in _COLOURS.get(form, ()):
        return None
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    if not height * width or not packed.startswith(b"\x78"):  # the window that all large ones have
        return None
    return Packed((height, width), packed)
