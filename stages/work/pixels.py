"""What reads the images of a node, and decoding those of a training before its first step."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from ensdistill.data.decoded import PixelCache, Pixels, cached_bytes
from ensdistill.pipeline.node import Progress
from ensdistill.stages.local import PIXELS_MARK, Learning
from ensdistill.stages.work.caching import opened, whole_of
from ensdistill.stages.work.items import for_each

_SHARE = 0.9  # of the free disk that may be filled: the node writes as well


def reader(
    folder: Path | None, files: Iterable[tuple[str, str]], say: Callable[[str], object]
) -> Pixels:
    """Return what reads images one after another, and keeps each if there is room for all.

    `files` are path and sha256 of each image, `folder` is the cache's.

    Raises
    ------
    DataError
        If an image that is not cached is none, or the cache's folder is a link.
    """
    if folder is None:
        return Pixels()
    cache = PixelCache(folder)
    try:
        present = opened(cache, PIXELS_MARK)
        missing = {sha256: path for path, sha256 in files if sha256 not in present}
        return Pixels(folder, keeps=not missing or _has_room(cache, missing, say))
    except OSError as error:
        say(cache.cannot_hold(error))
        return Pixels(folder)


def prepare(local: Learning, name: str, progress: Progress) -> Pixels:
    """Check what is cached of the images, decode the rest, and return what reads them.

    Nothing here changes a number, and nothing that the cache lacks is a failure: what it does not
    hold is decoded for every crop.

    Raises
    ------
    DataError
        If an image that is not cached is unreadable or is another one than was planned for, or the
        cache's folder is a link.
    """
    if local.pixels is None:
        return Pixels()
    cache = PixelCache(local.pixels)
    files = [str(p.image) for p in (*local.pictures, *local.watch)]
    paths = {local.digests[file]: file for file in files}
    whole: set[str] = set()

    def say(text: str) -> None:
        progress.message(f"{name}: {text}")

    try:
        present = sorted(opened(cache, PIXELS_MARK) & paths.keys())
        if present:
            what, again = "cached images", "decoding them again"
            whole |= whole_of(cache, present, local.workers, progress, say, what, again)
        missing = {sha256: path for sha256, path in paths.items() if sha256 not in whole}
        if missing and _has_room(cache, missing, say):
            _fill(cache, missing, whole, local.workers, progress)
    except OSError as error:
        say(cache.cannot_hold(error))
    return Pixels(local.pixels, whole)


def _has_room(cache: PixelCache, missing: Mapping[str, str], say: Callable[[str], object]) -> bool:
    """Whether the disk has room for what is missing; say how much that is."""
    need = sum(map(cached_bytes, missing.values()))
    free = shutil.disk_usage(cache.folder).free
    takes = f"{len(missing)} decoded images take {need / 1e9:.3g} GB"
    if need > _SHARE * free:
        say(
            f"{takes} of the {free / 1e9:.3g} GB that are free where {cache.folder} is: too much, "
            "so each is decoded whenever it is read"
        )
        return False
    say(f"{takes} in {cache.folder} ({free / 1e9:.3g} GB are free)")
    return True


def _fill(
    cache: PixelCache,
    missing: Mapping[str, str],
    whole: set[str],
    workers: int,
    progress: Progress,
) -> None:
    """Decode what is missing and add it to `whole`.

    Raises
    ------
    OSError
        If it cannot be written; what was, is deleted again.
    """
    images = list(missing.items())
    random.Random().shuffle(images)  # so that trainings which begin together share the work
    progress.start(len(images), 0, "images")
    try:
        for_each(
            images,
            partial(_write, cache),
            lambda image, _: whole.add(image[0]),
            workers=workers,
            progress=progress,
        )
    except OSError:
        whole -= missing.keys()
        cache.discard(missing)  # a full disk would not take the training's checkpoint either
        raise


def _write(cache: PixelCache, image: tuple[str, str]) -> None:
    cache.write(*image)
