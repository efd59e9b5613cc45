"""Photographs decoded once, as raw pixels that are read by memory map.

A cache: pixels are what decoding gives, so that they enter no fingerprint, and whatever is missing
or not whole is decoded from the photograph itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import PIL
from PIL import features

from ensdistill.data.cached import Cache, Content
from ensdistill.data.decoding import UInt8, image_size, read_image

_DECODER: Final = f"Pillow {PIL.__version__} jpg {features.version('jpg')}".encode()[:32]


class PixelCache(Cache[UInt8]):
    """Photographs as (H, W, 3) uint8 RGB."""

    suffix = ".rgb"
    form = b"ensdistill px 1\n"
    sizes = 2  # H, W
    foreign = "another version of Pillow decoded it"

    @property
    def maker(self) -> bytes:
        """Another decoder may give other pixels of a JPEG."""
        return _DECODER

    def length(self, sizes: Sequence[int]) -> int:
        """Return how many bytes the pixels take."""
        height, width = sizes
        return 3 * height * width

    def view(self, content: Content, start: int, sizes: Sequence[int]) -> UInt8:
        """Return them as an array."""
        return np.frombuffer(content, np.uint8, offset=start).reshape(*sizes, 3)

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
        self.keep(sha256, pixels.shape[:2], [pixels])
        return pixels

    def cannot_hold(self, error: OSError) -> str:
        """Say that nothing can be kept, and what that means."""
        return (
            f"{self.folder} cannot hold decoded images ({error}); what it lacks is decoded "
            "whenever it is read (`runtime: {cache: false}` does so from the start)"
        )


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


def cached_bytes(path: Path | str) -> int:
    """Return the bytes that the pixels of a photograph take, refused as by `image_size`."""
    height, width = image_size(Path(path))
    return PixelCache.start() + 3 * height * width
