"""The worlds that the label model is judged on: several teachers' label maps, and the truth.

No file is copied: what is on disk is read where it lies, and how its labels are meant is taken from
what lies beside it.
"""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

from ensdistill.data.classes import TABLES, class_map, parse_table, to_target_ids
from ensdistill.pipeline.workspace import Workspace
from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.truth.plan import truth_id

from .families import CLASSES, FLEETS, Painter

VARIABLES = {"camvid": "ENSDISTILL_CAMVID", "labelmefacade": "ENSDISTILL_LMF"}
KINDS = (*VARIABLES, "fleets")
FLEET_SCENES = {"train": 80, "val": 40}
SAMPLE = 40  # about so many compositions of a generated fleet


@dataclass(frozen=True)
class World:
    """Label maps of T teachers, and the truth of those of `val`.

    Attributes
    ----------
    maps
        Split to a list of (T, H, W) uint8, class ids or 255.
    truth
        Of `val`, a list of (H, W) uint8.
    every
        Of all compositions of teachers, one in so many is looked at.
    """

    name: str
    classes: tuple
    teachers: tuple
    maps: dict
    truth: list
    every: int = 1
    _votes: dict = field(default_factory=dict)

    @property
    def everybody(self):
        return tuple(range(len(self.teachers)))

    @property
    def compositions(self):
        """Sets of three teachers and more, that of all among them."""
        found = [*members(self.everybody, 3)]
        return list(dict.fromkeys([*found[:: self.every], found[-1]]))

    @cached_property
    def iou(self):
        """(T, C) of each teacher, in percent."""
        pairs = zip(self.truth, self.maps["val"], strict=True)
        confmats = sum(confusion(truth, maps, len(self.classes)) for truth, maps in pairs)
        return 100 * np.array([iou(confmat) for confmat in confmats])

    @cached_property
    def miou(self):
        """(T,) of each teacher, in percent."""
        return np.array([mean_iou(of) for of in self.iou])

    @property
    def pairs(self):
        return list(itertools.combinations(self.everybody, 2))

    def votes(self, split):
        """Return the votes in all images of a split, counted once for a number of bands."""
        key = split, labelmodel.BANDS
        if key not in self._votes:
            self._votes[key] = count_all(self.maps[split], len(self.classes))
        return self._votes[key]


def members(teachers, least):
    """Yield all sets of so many teachers and more."""
    for size in range(least, len(teachers) + 1):
        yield from itertools.combinations(teachers, size)


def count_all(maps, n_classes):
    """Return the votes in (T, H, W) label maps of several images."""
    return labelmodel.join([labelmodel.count(m, n_classes) for m in maps])


class Folder(NamedTuple):
    """A real data set on disk: `teachers/<name>/<split>/*.png` and `labels/val`.

    `ids` is a table of 256 from what a teacher's file holds to class ids.
    """

    name: str
    root: Path
    classes: tuple
    ids: np.ndarray

    @property
    def teachers(self):
        return tuple(sorted(p.name for p in (self.root / "teachers").iterdir()))

    def image_ids(self, split):
        return sorted(p.stem for p in (self.root / "images" / split).iterdir())

    def maps(self, split, stride=1):
        """Yield the (T, H, W) label maps of each image."""
        folders = [self.root / "teachers" / t / split for t in self.teachers]

        def read(image_id):
            planes = [_read(folder / f"{image_id}.png", stride) for folder in folders]
            return self.ids[np.stack(planes)]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(read, self.image_ids(split))

    def truth(self, stride=1):
        """Return the (H, W) labels of each image of `val`."""
        folder = self.root / "labels" / "val"
        return [_read(folder / f"{image_id}.png", stride) for image_id in self.image_ids("val")]

    def world(self, splits, stride, every):
        maps = {split: list(self.maps(split, stride)) for split in splits}
        truth = self.truth(stride)
        return World(self.name, self.classes, self.teachers, maps, truth, every)


def on_disk(kind):
    """Return the data set that a variable names, None where it is not set."""
    root = os.environ.get(VARIABLES[kind])
    if not root:
        return None
    told = _told(Path(root) / "README.md")
    classes, ids = (_camvid if kind == "camvid" else _labelmefacade)(Path(root), told)
    table = np.full(256, 255, np.uint8)
    table[list(ids)] = list(ids.values())
    return Folder(kind, Path(root), classes, table)


def fleet(name, of=FLEETS, scenes=FLEET_SCENES):
    """Return a generated world."""
    painter = Painter(of[name])
    maps, truth = {}, []
    for split in ("train", "val"):
        drawn = [painter.draw() for _ in range(scenes[split])]
        maps[split] = [m for _, m in drawn]
        truth = [t for t, _ in drawn]
    world = World(name, CLASSES, of[name].teachers, maps, truth)
    return replace(world, every=-(-len(world.compositions) // SAMPLE))


def city(folder):
    """Return the target city of what `ensdistill demo` made, with the teachers trained there."""
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    snapshot = Workspace(folder / settings["workspace"]).scan()
    teachers = tuple(sorted(teacher["name"] for teacher in settings["teachers"]))
    maps = {}
    for split in ("train", "val"):
        made = [LabelMaps(_last(snapshot, infer_id(t, split))) for t in teachers]
        maps[split] = [np.stack([m.read(i) for m in made]) for i in sorted(made[0])]
    labels = LabelMaps(_last(snapshot, truth_id("val")))
    truth = [labels.read(i) for i in sorted(labels)]
    name = f"city{settings['probe']['seed']}"
    return World(name, TABLES["cityscapes19"].classes, teachers, maps, truth)


def _last(snapshot, node_id):
    found = snapshot.of_node(node_id)
    if not found:
        raise SystemExit(f"{node_id} is not made: is this a folder of `ensdistill demo`?")
    return found[0]


def _read(file, stride):
    return np.asarray(Image.open(file))[::stride, ::stride]


def _told(readme):
    """Return the first YAML block of a data set's README: how its labels are meant."""
    return yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", readme.read_text(), re.S | re.M)[1])


def _camvid(_, told):
    return TABLES["camvid11"].classes, {i: entry["camvid"] for i, entry in told.items()}


def _labelmefacade(root, told):
    file, teacher = told["classes"]["table"], told["teachers"][0]
    table = parse_table(file, yaml.safe_load((root / file).read_text()))
    source = TABLES[teacher["classes"]]
    mapping = class_map(source, table, teacher["map"], "README.md")
    return table.classes, to_target_ids(source, table, mapping)
