"""Training samples: crops of decoded photographs against decoding them for each crop."""

import time
from hashlib import sha256
from itertools import islice

import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils.data import default_collate

from ensdistill.data.decoded import PixelCache, Pixels
from ensdistill.data.decoding import read_image
from ensdistill.data.splits import Picture
from ensdistill.data.store import LabelStore, chunk_name
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import STORE, LabelReader, Stored
from ensdistill.stages.local import Learning
from ensdistill.stages.training.loop import Order, Training
from ensdistill.stages.training.samples import Samples
from ensdistill.stages.work.items import Silence
from ensdistill.stages.work.pixels import prepare

from . import maps
from .measure import ROUNDS, Turns, figure, turns

PICTURES, BATCH, STEPS = 4, 4, 8
AHEAD = 5  # batches that two loaders hold ready, and one
CROP = (512, 1024)
RECIPE = {
    "steps": 10**6,
    "batch_size": BATCH,
    "crop": CROP,
    "input_size": None,
    "scale": [1, 1],
    "flip": True,
    "colour": 0.0,
    "blur": 0.0,
    "class_mix": 0.0,
    "rare_class_temperature": None,
    "seed": 0,
}


class Labels:
    """Label maps by image id, as training reads them."""

    def __init__(self, root):
        store = LabelStore.create(root / STORE, PICTURES, *maps.SHAPE)
        self._reader, self._stored = LabelReader(root, store), {}
        for k in range(PICTURES):
            store.write(k, maps.street(k, teachers=1)[1][0])
            file = f"{STORE}/{chunk_name(k)}"
            digest = sha256((root / file).read_bytes()).hexdigest()
            self._stored[str(k)] = Stored(str(k), file, digest, maps.SHAPE)

    def read(self, image_id):
        """Return a label map."""
        return self._reader(self._stored[image_id])


def photograph(seed):
    """Return (H, W, 3) uint8: a scene in colours, lit unevenly, with a camera's noise."""
    random = np.random.default_rng(seed)
    scene, _ = maps.street(seed, teachers=1)
    colours = random.integers(40, 200, (256, 3))
    light = Image.fromarray(random.integers(0, 60, (16, 32)).astype(np.uint8))
    lit = (
        colours[scene]
        + np.asarray(light.resize(maps.SHAPE[::-1], Image.Resampling.BICUBIC))[..., None]
    )
    return (lit + random.normal(0, 1.5, lit.shape)).clip(0, 255).astype(np.uint8)


def local_of(root, suffix, **more):
    """Write photographs and return what training knows of them, beside what decodes them."""
    pictures, digests = [], {}
    for k in range(PICTURES):
        path = root / f"{k}{suffix}"
        Image.fromarray(photograph(k)).save(path, **more)
        pictures.append(Picture(str(k), path))
        digests[str(path)] = sha256(path.read_bytes()).hexdigest()
    runtime = {"device": "cpu", "workers": 1, "threads": 1, "checkpoint_every": 1}
    local = Learning(
        pictures=tuple(pictures), classes=None, **runtime, keep_checkpoints=1, digests=digests
    )
    return local, Pixels()


def kept(root, local):
    """Return what reads the photographs from a cache."""
    cache = PixelCache(root / ".pixels")
    cache.open()
    for path, digest in local.digests.items():
        cache.write(digest, path)
    return Pixels(cache.folder, local.digests.values())


def crops(root):
    local, decoding = local_of(root, ".png")
    cached = kept(root, local)
    picture = local.pictures[0]
    cache, digest = PixelCache(root / ".pixels"), local.digests[str(picture.image)]

    def crop(reader):
        whole = reader.read(picture.image, digest)
        return whole[200 : 200 + CROP[0], 300 : 300 + CROP[1]].copy()

    times = turns(
        {
            "decode": lambda: crop(decoding),
            "map": lambda: crop(cached),
            "check": lambda: cache.fault(digest),
            "image": lambda: read_image(picture.image),
        }
    )
    note = f"PNG of {picture.image.stat().st_size / 1e6:.2f} MB, and its sha256"
    yield figure("crop from the cache", 1e3 * times.median("map"), "ms", 0.3)
    yield figure("check of a cached image", 1e3 * times.median("check"), "ms")
    goals = {"at_least": 100, "better": "more", "note": note}
    yield figure("decode / map, crop", times.ratio("decode", "map"), **goals)


def whole(root):
    labels = Labels(root)
    png, decoding = local_of(root, ".png")
    jpeg, decoding_jpeg = local_of(root, ".jpg", quality=95)
    readers = {
        "PNG": (png, decoding),
        "JPEG": (jpeg, decoding_jpeg),
        "cache": (png, kept(root, png)),
    }
    torch.set_num_threads(1)

    def batch(local, reader):
        samples = Samples(local, labels, RECIPE, (0, 0, 0), reader)
        return lambda: default_collate([samples[k] for k in range(BATCH)])

    times = turns({name: batch(*found) for name, found in readers.items()})
    for name in readers:
        goals = {"at_least": 640} if name == "cache" else {}
        rate = BATCH / times.median(name)
        yield figure(f"whole samples, {name}", rate, "/s", **goals, better="more")
    yield figure("PNG / cache, whole sample", times.ratio("PNG", "cache"), "x", 25, better="more")


def loop(root):
    """The loop of training a tiny network, on what the loader brings and on ready tensors."""
    for k in range(PICTURES):
        _, (labels,) = maps.street(k, teachers=1)
        for folder, array in (("images", photograph(k)), ("teacher", labels)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{k}.png")
    settings = {
        "version": 1,
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"images": "images/*.png"}},
        "teachers": [{"name": "one", "labels": {"train": "teacher"}}],
        "fusion": {"method": "majority"},
        "student": {
            "network": {"arch": "tiny"},
            "steps": 10**6,
            "batch_size": 8,
            "crop": [256, 512],
            "scale": [1, 1],
        },
        "runtime": {"device": "cpu", "workers": 2},
    }
    (root / "experiment.yaml").write_text(yaml.safe_dump(settings))
    experiment = load(root / "experiment.yaml")
    nodes = build(experiment)
    run(nodes, experiment.workspace, ["fusion"], lambda _: Silence(), upstream=True)
    decisions = plan(nodes, experiment.workspace.scan())
    work = decisions["student"].work
    inputs = {"labels": decisions["fusion"].artifact}
    torch.set_num_threads(2)  # as a user's training has them
    pixels = prepare(work.local, "student", Silence())
    training = Training(
        Order("student", work.recipe.to_json(), work.local, inputs, pixels), Silence(), None
    )
    step_of = training.stepper()
    loaded = iter(training.batches(training.samples(), 0))
    ready = next(loaded)

    def step(batch):
        loss, _ = step_of(0, batch)
        loss.item()

    def seconds(batches):
        begin = time.perf_counter()
        for batch in batches:
            step(batch)
        return time.perf_counter() - begin

    times = Turns(loaded=[], ready=[])
    for _ in range(ROUNDS):
        seconds(islice(loaded, AHEAD))  # what the loaders had made meanwhile
        times["loaded"].append(seconds(islice(loaded, STEPS)))
        time.sleep(1)  # until the loaders rest
        times["ready"].append(seconds([ready] * STEPS))
    note = f"{8 * STEPS / times.median('ready'):.1f} images/s ready, 2 threads and 2 loaders"
    share = 100 * times.ratio("ready", "loaded")
    yield figure(
        "images/s of the loop / of ready tensors", share, "%", 90, better="more", note=note
    )


MEASURES = (crops, whole, loop)
