"""The label store against PNG files, and against its codec alone."""

import os

import numcodecs
import numpy as np
from PIL import Image

from ensdistill.data.store import LabelStore, chunk_name

from . import maps
from .measure import figure, turns

SCENES, FRAMES = 4, 20


def store(root):
    for name, hard in (("easy", False), ("hard", True)):
        scenes = [maps.street(seed, hard=hard)[1] for seed in range(SCENES)]
        yield from compared(root, name, scenes)
    frames = maps.frames(FRAMES)
    if frames:
        yield from compared(root, f"{FRAMES} CamVid frames", [frames])


def compared(root, name, groups):
    """Write and read label maps one after another, in every form: all of the first group.

    The bytes are those of all groups.
    """
    found = [sizes(root / f"{name} {k}", group) for k, group in enumerate(groups)]
    ratios = [stored / png for stored, png in found]
    ratio = sum(stored for stored, _ in found) / sum(png for _, png in found)
    note = f"{sum(len(group) for group in groups)} label maps"
    if len(groups) > 1:
        note += f" of {len(groups)} scenes, each {min(ratios):.3f} to {max(ratios):.3f}"
    yield figure(f"label store bytes / PNG, {name}", ratio, "x", 0.95, note=note)
    planes = groups[0]
    labels = LabelStore(root / f"{name} 0/maps.zarr", writable=True)
    files = [root / f"{name} 0/{k}.png" for k in range(len(planes))]
    codec = numcodecs.Zstd(level=1)
    packed = [codec.encode(plane) for plane in planes]

    def each(work):
        """Return a call of the work on all of the label maps."""
        return lambda: [work(k) for k in range(len(planes))]

    times = turns(
        {
            "write": each(lambda k: labels.write(k, planes[k])),
            "save": each(lambda k: Image.fromarray(planes[k]).save(files[k])),
            "encode": each(lambda k: codec.encode(planes[k])),
        }
    )
    times |= turns(
        {
            "read": each(lambda k: labels.read(k, *planes[k].shape)),
            "open": each(lambda k: np.asarray(Image.open(files[k]))),
            "decode": each(lambda k: codec.decode(packed[k])),
        }
    )
    for title, png, ours, codec_alone, stretch in (
        ("write", "save", "write", "encode", 10),
        ("read", "open", "read", "decode", 12),
    ):
        ratio, note = times.ratio(png, ours), f"{times.ratio(ours, codec_alone):.2f} x zstd 1 alone"
        goals = {"at_least": 6, "stretch": stretch, "better": "more"}
        yield figure(f"PNG / label store, {title}, {name}", ratio, **goals, note=note)


def sizes(folder, planes):
    """Write label maps in both forms and return the bytes that they take."""
    folder.mkdir()
    labels = LabelStore.create(folder / "maps.zarr", len(planes), *planes[0].shape)
    files = [folder / f"{k}.png" for k in range(len(planes))]
    for k, (plane, file) in enumerate(zip(planes, files, strict=True)):
        labels.write(k, plane)
        Image.fromarray(plane).save(file)
    chunks = [labels.path / chunk_name(k) for k in range(len(planes))]
    return [sum(file.stat().st_size for file in found) for found in (chunks, files)]


def scan(root):
    labels = LabelStore.create(root / "maps.zarr", 2975, 1, 1)
    labels.write(0, np.zeros((1, 1), np.uint8))
    for k in range(1, 2975):
        os.link(labels.path / chunk_name(0), labels.path / chunk_name(k))
    assert len(labels.present()) == 2975
    times = turns({"scan": labels.present})
    yield figure("which of 2975 label maps are done", 1e3 * times.median("scan"), "ms")


MEASURES = (store, scan)
