"""Decoding the training images once, before the first step."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from functools import partial

from ensdistill.data.decoded import PixelCache, Pixels, cached_bytes, is_free
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.ownership import is_own, own
from ensdistill.stages.experiment.experiment import PIXELS_MARK
from ensdistill.stages.local import Local
from ensdistill.stages.work.items import for_each

_SHARE = 0.9  # of the free disk that may be filled: the training writes as well


def prepare(local: Local, name: str, progress: Progress) -> Pixels:
    """Check what is cached of the images, decode the rest, and return what reads them.

    Nothing here changes a number, and nothing that the cache lacks is a failure: what it does not
    hold is decoded for every crop.

    Parameters
    ----------
    local : Local
        The images, their digests and the cache's folder.
    name : str
        The node, for messages.
    progress : Progress
        Where to report.

    Raises
    ------
    DataError
        If an image that is not cached is unreadable or is another one than was planned for, or the
        cache's folder is a link.
    """
    if local.pixels is None:
        return Pixels(local.digests)
    cache = PixelCache(local.pixels)
    paths = {local.digests[str(p.image)]: str(p.image) for p in local.pictures}
    whole: set[str] = set()
    try:
        if not is_own(local.pixels, PIXELS_MARK) and not is_free(local.pixels):
            raise OSError("it holds files of others")
        own(local.pixels, PIXELS_MARK)
        present = sorted(cache.open() & paths.keys())
        if present:
            _check(cache, present, whole, local, name, progress)
        missing = {sha256: path for sha256, path in paths.items() if sha256 not in whole}
        if missing:
            _fill(cache, missing, whole, local, name, progress)
    except OSError as error:
        progress.message(
            f"{name}: {cache.folder} cannot hold decoded images ({error}); what it lacks is "
            "decoded for every crop (`runtime: {cache: false}` does so from the start)"
        )
    return Pixels(local.digests, cache, whole)


def _check(
    cache: PixelCache,
    present: list[str],
    whole: set[str],
    local: Local,
    name: str,
    progress: Progress,
) -> None:
    """Add to `whole` what is whole of what is present, and say what is not."""
    faults: dict[str, str] = {}

    def done(sha256: str, fault: str | None) -> None:
        if fault is None:
            whole.add(sha256)
        else:
            faults[sha256] = fault

    progress.start(len(present), 0, "cached images")
    for_each(present, cache.fault, done, workers=local.workers, progress=progress)
    if faults:
        sha256 = min(faults)
        progress.message(
            f"{name}: {len(faults)} of {len(present)} cached images are not used, such as "
            f"{cache.file(sha256)} ({faults[sha256]}); decoding them again"
        )


def _fill(
    cache: PixelCache,
    missing: Mapping[str, str],
    whole: set[str],
    local: Local,
    name: str,
    progress: Progress,
) -> None:
    """Decode what is missing and add it to `whole`, if the disk has room for it.

    Raises
    ------
    OSError
        If it cannot be written; what was, is deleted again.
    """
    need = sum(map(cached_bytes, missing.values()))
    free = shutil.disk_usage(cache.folder).free
    takes = f"{len(missing)} decoded images take {need / 1e9:.3g} GB"
    if need > _SHARE * free:
        progress.message(
            f"{name}: {takes} of the {free / 1e9:.3g} GB that are free where {cache.folder} is: "
            "too much, so each is decoded for every crop"
        )
        return
    progress.message(f"{name}: {takes} in {cache.folder} ({free / 1e9:.3g} GB are free)")
    images = list(missing.items())
    random.Random().shuffle(images)  # so that trainings which begin together share the work
    progress.start(len(images), 0, "images")
    try:
        for_each(
            images,
            partial(_write, cache),
            lambda image, _: whole.add(image[0]),
            workers=local.workers,
            progress=progress,
        )
    except OSError:
        whole -= missing.keys()
        cache.discard(missing)  # a full disk would not take the training's checkpoint either
        raise


def _write(cache: PixelCache, image: tuple[str, str]) -> None:
    cache.write(*image)
