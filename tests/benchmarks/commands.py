"""What a user waits for: commands over images of Cityscapes' size by four teachers, as a whole.

Each is timed over few and over many images. What one more image takes is the difference, and a
whole Cityscapes is that many times it: what a command takes to begin is left out of it.
"""

import numpy as np
import yaml
from PIL import Image

from . import maps
from .engine import shell
from .measure import figure

TEACHERS, SCENES = 4, 8
FEW, MANY = 150, 450  # worker processes are worth their start for both
TRAIN, VAL = 2975, 500  # of Cityscapes
WAIT = (
    ("labels of four teachers", TRAIN, ("infer-teacher",)),
    ("label model", TRAIN, ("select-policy",)),
    ("fuse", TRAIN, ("fuse",)),
    ("status", TRAIN, ("status",)),
    ("evaluate val, ground truth in PNGs", VAL, ("evaluate",)),
    ("evaluate val again", VAL, ("evaluate",)),
    ("one more image", TRAIN, ("fuse", "--upstream")),
)


class Streets:
    """An experiment of photographs that nobody looks at, and of their label maps in PNGs."""

    def __init__(self, root, count):
        self.root, self.count = root, count
        self.folders = [root / "images", root / "truth"]
        self.folders += [root / f"teachers/{t}" for t in range(TEACHERS)]
        for folder in self.folders:
            folder.mkdir(parents=True)

    def make(self, scenes):
        """Write all of it; no two files are alike."""
        for k in range(self.count):
            self.add(k, scenes)
        teachers = [
            {"name": f"t{t}", "labels": dict.fromkeys(("train", "val"), f"teachers/{t}")}
            for t in range(TEACHERS)
        ]
        images = {"images": "images/*.png"}
        val = images | {"labels": "truth/*.png", "overlap": ["train"]}
        settings = {
            "version": 1,
            "classes": {"table": "cityscapes19"},
            "target": {"train": images, "val": val},
            "teachers": teachers,
            "student": {"network": {"arch": "tiny"}},
        }
        (self.root / "experiment.yaml").write_text(yaml.safe_dump(settings))

    def add(self, k, scenes):
        """Write image k and its label maps."""
        truth, label_maps = scenes[k % SCENES]
        planes = np.stack([np.zeros_like(truth), truth, *label_maps])
        planes[:, 0, :8] = [k >> bit & 1 for bit in range(8)]
        for folder, plane in zip(self.folders, planes, strict=True):
            Image.fromarray(plane).save(folder / f"{k:04}.png")


def commands(root):
    scenes = [maps.street(seed, TEACHERS) for seed in range(SCENES)]
    times = {}
    for count in (FEW, MANY):
        made = Streets(root / str(count), count)
        made.make(scenes)
        for name, _, command in WAIT:
            if name == "one more image":
                made.add(count, scenes)
            times[name, count] = shell(made.root, *command)
        size = {
            stage: sum(f.stat().st_size for f in made.root.glob(f"work/{stage}/*/maps.zarr/c.*"))
            for stage in ("infer", "fusion")
        }
    for name, images, _ in WAIT:
        few, many = times[name, FEW], times[name, MANY]
        each = (many - few) / (MANY - FEW)
        note = f"{1 / each:.0f} images/s; {few:.1f} s for {FEW}, {many:.1f} s for {MANY}"
        yield figure(f"{name}, {images} images", each * images + few - each * FEW, "s", note=note)
    for stage, bytes_ in size.items():
        maps_ = len(list(made.root.glob(f"work/{stage}/*/maps.zarr/c.*")))
        yield figure(f"bytes of a label map of {stage}", bytes_ / maps_ / 1e3, "kB")


MEASURES = (commands,)
