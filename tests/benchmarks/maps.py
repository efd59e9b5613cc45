"""Label maps to measure on: street scenes made up from a seed, and CamVid's where they are given.

Made-up teachers err as networks do: they move boundaries a little, and in whole regions they say a
related class, partly the same one in the same regions.
"""

import os
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw

CLASSES = 19
SHAPE = (1024, 2048)

# Train ids, and what a network may say instead of each.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
RELATED = {
    ROAD: (SIDEWALK, TERRAIN, CAR),
    SIDEWALK: (ROAD, TERRAIN, WALL),
    BUILDING: (WALL, VEGETATION, FENCE, SKY),
    WALL: (BUILDING, FENCE, SIDEWALK),
    FENCE: (WALL, BUILDING, VEGETATION),
    POLE: (BUILDING, VEGETATION, FENCE),
    LIGHT: (POLE, BUILDING, SIGN),
    SIGN: (BUILDING, LIGHT, POLE),
    VEGETATION: (BUILDING, TERRAIN, FENCE),
    TERRAIN: (SIDEWALK, VEGETATION, ROAD),
    SKY: (BUILDING, VEGETATION),
    PERSON: (RIDER, BUILDING, CAR),
    RIDER: (PERSON, BICYCLE, MOTORCYCLE),
    CAR: (TRUCK, BUS, ROAD),
    TRUCK: (BUS, CAR, BUILDING),
    BUS: (TRUCK, TRAIN, BUILDING),
    TRAIN: (BUS, BUILDING, TRUCK),
    MOTORCYCLE: (BICYCLE, CAR),
    BICYCLE: (MOTORCYCLE, FENCE, SIDEWALK),
}

# What shares of a class's regions a teacher gets wrong (between them by class), how much of that
# the teachers have in common, and by how many pixels of 1024 rows boundaries move.
EASY = {"doubt": (0.005, 0.075), "shared": 0.55, "moved": 2.0}
HARD = {"doubt": (0.02, 0.2), "shared": 0.5, "moved": 3.0}


def street(seed, teachers=7, shape=SHAPE, hard=False):
    """Return a scene, (H, W) uint8 train ids, and the teachers' label maps of it, (T, H, W)."""
    random = np.random.default_rng(seed)
    scene = _scene(random, shape)
    level = HARD if hard else EASY
    common = _noise(random, shape, 160)
    # What most teachers say instead of a class.
    favourite = np.array([others[0] for others in RELATED.values()], np.uint8)
    label_maps = np.empty((teachers, *shape), np.uint8)
    for label_map in label_maps:
        moved = _moved(random, scene, level["moved"], 40)
        own = _noise(random, shape, 130)
        doubt = level["shared"] ** 0.5 * common + (1 - level["shared"]) ** 0.5 * own
        doubt += 0.12 * _noise(random, shape, 16)  # so that the regions' edges are rough
        wrong = random.uniform(*level["doubt"], CLASSES)
        limit = np.array([NormalDist().inv_cdf(1 - w) for w in wrong], np.float32)
        other = np.array([random.choice(others) for others in RELATED.values()], np.uint8)
        said = np.where(random.random(CLASSES) < 0.6, favourite, other)
        np.copyto(label_map, np.where(doubt > limit[moved], said[moved], moved))
    return scene, label_maps


def random_owner(seed, teachers, classes=CLASSES):
    """Return (C,) intp, the teacher of each class; every teacher has one if there are enough."""
    random = np.random.default_rng(seed)
    return random.permutation(np.arange(classes) % teachers).astype(np.intp)


def owner_near(label_maps, share, tries=24):
    """Return the random owner under which nearest to this share of pixels is unresolved."""
    owners = [random_owner(seed, len(label_maps)) for seed in range(tries)]
    few = label_maps[:, ::4, ::4]
    return min(owners, key=lambda owner: abs(unresolved(few, owner) - share))


def unresolved(label_maps, owner):
    """Return the fraction of pixels where no class, or several, are claimed."""
    claims = np.zeros(label_maps.shape[1:], np.uint8)
    for t, label_map in enumerate(label_maps):
        owned = np.zeros(256, np.uint8)
        owned[: len(owner)] = owner == t
        claims += owned[label_map]
    return float(np.mean(claims != 1))


def camvid(teachers, images=4, shape=(1024, 1920)):
    """Return (T, H, W) mosaics of 3 x 4 frames each as networks have labelled them.

    Empty unless the environment variable ENSDISTILL_CAMVID names the folder.
    """
    folders, names = _predictions()
    if not names:
        return []
    folders = folders[:teachers]
    # Neighbouring frames look alike: a mosaic takes its twelve from all over the drive.
    return [
        np.stack([_mosaic(f, names[k :: len(names) // 12], shape) for f in folders])
        for k in range(images)
    ]


def frames(count):
    """Return (360, 480) label maps of CamVid's frames from all over the drive, of all teachers.

    As they are: the seams of `camvid` are nothing that a network draws. Empty as that is.
    """
    folders, names = _predictions()
    if not names:
        return []
    files = [
        folders[k % len(folders)] / name for k, name in enumerate(names[:: len(names) // count])
    ]
    return [np.asarray(Image.open(file)) for file in files[:count]]


def _predictions():
    """Return CamVid's folders of predictions, one for each teacher, and the names in each."""
    root = os.environ.get("ENSDISTILL_CAMVID")
    if not root:
        return [], []
    folders = sorted(path / "train" for path in Path(root, "teachers").iterdir())
    return folders, sorted(p.name for p in folders[0].glob("*.png"))


def _mosaic(folder, names, shape):
    frames = [np.asarray(Image.open(folder / name)) for name in names[:12]]
    rows = [np.concatenate(frames[y : y + 4], axis=1) for y in (0, 4, 8)]
    return np.concatenate(rows)[: shape[0], : shape[1]]


def _noise(random, shape, cell):
    """Return smooth (H, W) float32 of mean 0 and variance 1 that changes over `cell` pixels."""
    grid = random.standard_normal((shape[0] // cell + 4, shape[1] // cell + 4)).astype(np.float32)
    image = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    values = np.asarray(image)
    return (values - values.mean()) / values.std()


def _moved(random, labels, pixels, cell):
    """Return the labels with every pixel taken from a place some pixels away, smoothly so."""
    height, width = labels.shape
    pixels = pixels * height / 1024
    y = np.arange(height, dtype=np.float32)[:, None] + pixels * _noise(random, labels.shape, cell)
    x = np.arange(width, dtype=np.float32) + pixels * _noise(random, labels.shape, cell)
    at = np.rint(y).clip(0, height - 1).astype(np.intp) * width
    at += np.rint(x).clip(0, width - 1).astype(np.intp)
    return labels.ravel()[at]


def _scene(random, shape):
    """Return (H, W) uint8 train ids: what is far first, what is near over it."""
    height, width = shape
    unit = height / 1024  # pixels are meant at 1024 rows
    image = Image.new("L", (width, height), SKY)
    draw = ImageDraw.Draw(image)
    horizon = random.uniform(0.42, 0.5) * height
    middle = random.uniform(0.4, 0.6) * width

    def box(kind, x, bottom, wide, high):
        draw.rectangle((x, bottom - high, x + wide, bottom), fill=int(kind))

    def blob(kind, x, y, wide, high):
        draw.ellipse((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), fill=int(kind))

    x = 0.0
    while x < width:  # a skyline, lower towards the end of the road
        wide = random.uniform(90, 330) * unit
        away = min(1.0, abs(x + wide / 2 - middle) / (0.45 * width))
        high = horizon * random.uniform(0.25, 0.5) + horizon * away * random.uniform(0.2, 0.8)
        box(BUILDING, x, horizon + 90 * unit, wide, high + 90 * unit)
        x += wide * random.uniform(0.85, 1.15)
    for _ in range(random.integers(3, 8)):  # trees
        x, size = random.uniform(0, width), random.uniform(120, 330) * unit
        for _ in range(6):
            dx, dy = random.normal(0, 0.3 * size, 2)
            blob(VEGETATION, x + dx, horizon - 0.3 * size + dy, 0.8 * size, 0.6 * size)
        box(VEGETATION, x - 0.6 * size, horizon + 80 * unit, 1.2 * size, 110 * unit)

    draw.rectangle((0, horizon + 60 * unit, width, height), fill=SIDEWALK)
    for kind, count in ((WALL, 2), (FENCE, 3), (TERRAIN, 3)):
        for _ in range(random.integers(1, count + 1)):
            x, wide = random.uniform(0, width), random.uniform(150, 450) * unit
            deep = random.uniform(0, 40) * unit
            box(kind, x, horizon + 70 * unit + deep, wide, random.uniform(25, 80) * unit)
    left, right = random.uniform(-0.25, 0.1) * width, random.uniform(0.9, 1.25) * width
    top = horizon + 20 * unit
    end = [(middle + 30 * unit, top), (middle - 30 * unit, top)]
    if random.random() < 0.5:
        verge = random.uniform(40, 160) * unit
        draw.polygon([(left - verge, height), (right + verge, height), *end], fill=TERRAIN)
    draw.polygon([(left, height), (right, height), *end], fill=ROAD)

    # Things on the ground, from far to near: at depth z their feet are at `y` and sizes scale by z.
    kinds = [CAR, PERSON, POLE, SIGN, LIGHT, BICYCLE, RIDER, MOTORCYCLE, TRUCK, BUS, TRAIN]
    shares = np.array([34, 22, 18, 7, 5, 5, 3, 2, 1.5, 1.5, 1])
    count = random.integers(30, 55)
    things = random.choice(kinds, count, p=shares / shares.sum())
    for kind, z in zip(things, np.sort(random.beta(1.0, 2.5, count)), strict=True):
        y = horizon + (45 + 480 * z) * unit
        edge = left if random.random() < 0.5 else right
        near = (y - top) / (height - top)
        x = middle + (edge - middle) * near * random.uniform(0.75, 1.5)
        s = (14 + 250 * z) * unit  # a person's height
        if kind == CAR:
            box(CAR, x - s, y - 0.1 * s, 2 * s, 0.5 * s)
            blob(CAR, x, y - 0.5 * s, 1.5 * s, 0.7 * s)
            blob(CAR, x - 0.6 * s, y - 0.12 * s, 0.4 * s, 0.35 * s)
            blob(CAR, x + 0.6 * s, y - 0.12 * s, 0.4 * s, 0.35 * s)
        elif kind in (TRUCK, BUS, TRAIN):
            box(kind, x - 1.5 * s, y, 3 * s, 1.6 * s)
        elif kind == PERSON:
            _person(blob, PERSON, x, y, s)
        elif kind in (RIDER, BICYCLE, MOTORCYCLE):
            two_wheels = BICYCLE if kind == RIDER else kind
            for dx in (-0.35, 0.35):
                blob(two_wheels, x + dx * s, y - 0.25 * s, 0.5 * s, 0.5 * s)
            box(two_wheels, x - 0.35 * s, y - 0.25 * s, 0.7 * s, 0.25 * s)
            if kind == RIDER:
                _person(blob, RIDER, x, y - 0.35 * s, 0.8 * s)
        else:
            thick, high = max(3 * unit, 0.07 * s), s * random.uniform(1.8, 4)
            box(POLE, x, y, thick, high)
            if kind != POLE:
                wide, tall = (0.55, 0.5) if kind == SIGN else (0.3, 0.7)
                box(kind, x - wide * s / 2, y - high + tall * s, wide * s + thick, tall * s)
    scene = np.asarray(image)
    return _moved(random, _moved(random, scene, 4, 60), 1.5, 14)


def _person(blob, kind, x, y, size):
    blob(kind, x, y - 0.9 * size, 0.17 * size, 0.2 * size)
    blob(kind, x, y - 0.6 * size, 0.36 * size, 0.5 * size)
    blob(kind, x - 0.07 * size, y - 0.22 * size, 0.16 * size, 0.5 * size)
    blob(kind, x + 0.08 * size, y - 0.22 * size, 0.16 * size, 0.5 * size)
