"""Reading label PNGs, against Pillow, and what `check` takes for them."""

import io
import shutil

import numpy as np
import yaml
from PIL import Image

from ensdistill.data import png
from ensdistill.stages.checks import files
from ensdistill.stages.graph import load
from ensdistill.stages.work.items import Silence

from . import maps
from .measure import figure, turns

MOSAICS = 4
TEACHERS, IMAGES, MANY = 4, 6, 3000


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


def experiment(root, teachers):
    """Write an experiment of photographs and teachers' label maps, no two of them the same."""
    for k in range(IMAGES):
        scene, label_maps = maps.street(k, teachers=teachers)
        for t, labels in enumerate((scene, *label_maps)):
            path = root / (f"teachers/{t}/{k}.png" if t else f"images/{k}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    settings = {
        "version": 1,
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"images": "images/*.jpg"}},
        "teachers": [
            {"name": f"t{t}", "labels": {"train": f"teachers/{t}"}} for t in range(1, teachers + 1)
        ],
        "student": {"steps": 1, "batch_size": 2, "crop": [256, 256]},
        "runtime": {"device": "cpu", "workers": 1},
    }
    (root / "experiment.yaml").write_text(yaml.safe_dump(settings))


def checking(root):
    """`check` of one teacher and of several: what further ones cost, but for starting workers."""

    def checked(teachers):
        def run():
            shutil.rmtree(root / f"{teachers}/work", ignore_errors=True)
            files.check(load(root / f"{teachers}/experiment.yaml"), ["train"], Silence())

        return run

    for teachers in (1, TEACHERS):
        experiment(root / f"{teachers}", teachers)
    times = turns({f"{teachers}": checked(teachers) for teachers in (1, TEACHERS)})
    each = (times.median(f"{TEACHERS}") - times.median("1")) / (TEACHERS - 1) / IMAGES
    yield figure(
        f"check of {TEACHERS} x {MANY} label PNGs, on two cores",
        MANY * TEACHERS * each / 2,
        "s",
        at_least=20,
        note=f"{1e3 * each:.2f} ms of one core each",
    )


MEASURES = (reading, checking)
