"""Reading label PNGs, against Pillow."""

import io

import numpy as np
from PIL import Image

from ensdistill.data import png

from . import maps
from .measure import figure, turns

MOSAICS = 4


def encoded(labels, palette):
    """Return a label map as Pillow writes it."""
    image = Image.fromarray(labels)
    if palette:
        image = Image.frombytes("P", image.size, labels.tobytes())
        image.putpalette([value // 3 for value in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def opened(content):
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image)


def unpacked(content):
    return png.unpack(content).pixels()


def each(work, files):
    """Return a call of the work on one file after another."""

    def run():
        for content in files:
            work(content)

    return run


def reading(root):
    sets = {"easy": maps.street(0)[1], "hard": maps.street(0, hard=True)[1]}
    if mosaics := maps.camvid(MOSAICS, images=1):
        sets["CamVid"] = mosaics[0]
    for name, label_maps in sets.items():
        for form in ("grey", "palette"):
            files = [encoded(labels, form == "palette") for labels in label_maps]
            for content, labels in zip(files, label_maps, strict=True):
                assert np.array_equal(opened(content), labels)
                assert np.array_equal(unpacked(content), labels)
            times = turns({work.__name__: each(work, files) for work in (opened, unpacked)})
            yield figure(
                f"Pillow / read of a label PNG, {form}, {name}",
                times.ratio("opened", "unpacked"),
                at_least=4.5 if form == "grey" else None,  # of the other Pillow filters no row
                better="more",
                note=f"{1e3 * times.median('unpacked') / len(files):.2f} ms",
            )


MEASURES = (reading,)
