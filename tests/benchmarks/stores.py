"""The label store against PNG files, and against its codec alone."""

import os
from itertools import cycle

import numcodecs
import numpy as np
from PIL import Image

from ensdistill.data.store import LabelStore, chunk_name

from . import maps
from .measure import figure, turns


def store(root):
    yield from compared(root, "", maps.street(0)[1])
    for label_maps in maps.camvid(4, images=1):
        yield from compared(root, ", CamVid", label_maps)


def compared(root, suffix, planes):
    """Write and read a few label maps one after another, in every form."""
    labels = LabelStore.create(root / f"labels{suffix}.zarr", len(planes), *planes[0].shape)
    codec = numcodecs.Zstd(level=1)
    packed = [codec.encode(plane) for plane in planes]
    files = [root / f"{k}{suffix}.png" for k in range(len(planes))]

    def each(work):
        """Return a call of the work on the next of the label maps."""
        at = cycle(range(len(planes)))
        return lambda: work(next(at))

    times = turns(
        {
            "write": each(lambda k: labels.write(k, planes[k])),
            "save": each(lambda k: Image.fromarray(planes[k]).save(files[k])),
            "encode": each(lambda k: codec.encode(planes[k])),
        },
        least=0.1,
    )
    times |= turns(
        {
            "read": each(lambda k: labels.read(k, *planes[k].shape)),
            "open": each(lambda k: np.asarray(Image.open(files[k]))),
            "decode": each(lambda k: codec.decode(packed[k])),
        },
        least=0.1,
    )
    size = sum((labels.path / chunk_name(k)).stat().st_size for k in range(len(planes)))
    png = sum(file.stat().st_size for file in files)
    yield figure(f"label store bytes / PNG{suffix}", size / png, "x", 0.95)
    ratio = times.ratio("save", "write")
    yield figure(f"PNG / label store, write{suffix}", ratio, "x", 6, 10, better="more")
    ratio = times.ratio("open", "read")
    yield figure(f"PNG / label store, read{suffix}", ratio, "x", 6, 12, better="more")
    yield figure(f"label store, write / zstd 1 alone{suffix}", times.ratio("write", "encode"))
    yield figure(f"label store, read / zstd 1 alone{suffix}", times.ratio("read", "decode"))


def scan(root):
    labels = LabelStore.create(root / "labels.zarr", 2975, 1, 1)
    labels.write(0, np.zeros((1, 1), np.uint8))
    for k in range(1, 2975):
        os.link(labels.path / chunk_name(0), labels.path / chunk_name(k))
    assert len(labels.present()) == 2975
    times = turns({"scan": labels.present})
    yield figure("which of 2975 label maps are done", 1e3 * times.median("scan"), "ms")


MEASURES = (store, scan)
