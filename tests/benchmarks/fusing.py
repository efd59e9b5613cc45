"""The whole stage `fuse` against its parts, and how work spreads over images and processes."""

import os
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from unittest import mock

import numcodecs
import numpy as np
import yaml
from PIL import Image

from ensdistill.data.classes import TABLES
from ensdistill.pipeline.runner import run
from ensdistill.stages import labelmaps
from ensdistill.stages.functional.fusion import channel_wise
from ensdistill.stages.graph import build, load
from ensdistill.stages.work import items

from . import maps
from .measure import ROUNDS, cpu, extra_memory, figure, turns

TEACHERS, WINDOW = 4, 35
SCENES = 12  # different ones; more images have the same label maps again
FEW, MANY = 32, 128


class Silent:
    def start(self, total, done, unit): ...

    def advance(self, count=1, note=""): ...

    def message(self, text): ...


class Fusion:
    """An experiment of teachers' predictions in PNGs, whose label maps are ready to be fused."""

    def __init__(self, root, images, shape=maps.SHAPE):
        self.root, self.images, self.shape = root, images, shape

    def make(self):
        """Return the label maps, (T, H, W), of which the images' are made."""
        root, shape = self.root, self.shape
        scenes = [maps.street(seed, TEACHERS, shape)[1] for seed in range(SCENES)]
        self.owner = maps.owner_near(scenes[0], 0.08)
        folders = [root / "images", *(root / f"teachers/{t}" for t in range(TEACHERS))]
        for folder in folders:
            folder.mkdir(parents=True)
        for k in range(self.images):
            image = np.zeros(shape, np.uint8)
            image[0, :2] = divmod(k, 256)  # so that none is taken for another
            Image.fromarray(image).save(folders[0] / f"{k:04}.png")
            for folder, plane in zip(folders[1:], scenes[k % SCENES], strict=True):
                file = folder / f"{k:04}.png"
                if k < SCENES:
                    Image.fromarray(plane).save(file)
                else:
                    os.link(folder / f"{k % SCENES:04}.png", file)
        classes = TABLES["cityscapes19"].classes
        assign = {c: f"t{t}" for c, t in zip(classes, self.owner, strict=True)}
        teachers = [
            {"name": f"t{t}", "labels": {"train": f"teachers/{t}"}} for t in range(TEACHERS)
        ]
        settings = {
            "version": 1,
            "classes": {"table": "cityscapes19"},
            "target": {"train": {"images": "images/*.png"}},
            "teachers": teachers,
            "policy": {"strategy": "manual", "assign": assign},
            "fusion": {"method": "channel", "window": WINDOW},
            "runtime": {"device": "cpu", "workers": 1},
        }
        (root / "experiment.yaml").write_text(yaml.safe_dump(settings))
        by_model = settings | {"fusion": {"method": "label-model"}}
        (root / "by_model.yaml").write_text(yaml.safe_dump(by_model))
        weighed = by_model | {"student": {"pixel_weights": "posterior"}}
        (root / "weighed.yaml").write_text(yaml.safe_dump(weighed))
        self.fuse(upstream=True)
        return scenes

    def by_model(self):
        """Fit the label model and fuse by it."""
        shutil.rmtree(self.root / "work/label-model", ignore_errors=True)
        self.fuse(upstream=True, file="by_model.yaml")

    def fuse(self, upstream=False, file="experiment.yaml", node="fusion"):
        """Make fused labels, or weights, as the command does: plan, check, fuse, publish."""
        shutil.rmtree(self.root / "work" / node, ignore_errors=True)
        experiment = load(self.root / file)
        nodes, workspace = build(experiment), experiment.workspace
        report = run(nodes, workspace, [node], lambda _: Silent(), upstream=upstream)
        experiment.files.save()
        assert report.ran[-1].written == self.images

    def through(self, for_each):
        """Make them with something else between the images."""
        with mock.patch.object(labelmaps, "for_each", for_each):
            self.fuse()

    def kernel(self, planes):
        rules = {"conflict": "window", "holes": "window"}
        return channel_wise(planes, self.owner, window=WINDOW, **rules)[0]

    def parts(self, packed, images):
        """Run kernel and codec alone, in memory."""
        codec = numcodecs.Zstd(level=1)
        planes = np.empty((TEACHERS, *self.shape), np.uint8)
        for k in range(images):
            for plane, content in zip(planes, packed[k % SCENES], strict=True):
                codec.decode(content, out=plane)
            codec.encode(self.kernel(planes))

    def pngs(self, images):
        """Run the same kernel over folders of PNGs."""
        out = self.root / "fused"
        out.mkdir(exist_ok=True)
        for k in range(images):
            files = [self.root / f"teachers/{t}/{k:04}.png" for t in range(TEACHERS)]
            planes = np.stack([np.asarray(Image.open(file)) for file in files])
            Image.fromarray(self.kernel(planes)).save(out / f"{k:04}.png")


def loop(ids, work, done, *, workers, progress):
    for item_id in ids:
        done(item_id, work(item_id))


def spread(processes):
    """Return `for_each` with that many worker processes from the start."""

    def for_each(ids, work, done, *, workers, progress):
        items.share_out(ids, work, done, processes, progress)

    return for_each


def pack(scenes):
    codec = numcodecs.Zstd(level=1)
    return [[codec.encode(plane) for plane in planes] for planes in scenes]


def stage(root):
    made = Fusion(root, 4 * SCENES)
    packed = pack(made.make())
    parts, pngs = partial(made.parts, packed, SCENES), partial(made.pngs, SCENES)
    times = turns({"stage": made.fuse, "parts": parts, "pngs": pngs})
    note = f"{1e3 * times.median('stage') / made.images:.2f} ms an image, T=4"
    share = 4 * times.ratio("parts", "stage")
    yield figure("kernel and codec alone / fuse", share, "x", 0.75, 0.92, better="more", note=note)
    ratio = 4 * times.ratio("pngs", "stage")
    yield figure("PNG folders with the same kernel / fuse", ratio, "x", 3, 5, better="more")


def frames(root):
    """What is the same for each image, however small: its files, its records."""
    large, small = Fusion(root / "large", SCENES), Fusion(root / "small", 4 * SCENES, (360, 480))
    for made in (large, small):
        made.make()
    times = turns({"large": large.fuse, "small": small.fuse})
    pixels = [made.images * made.shape[0] * made.shape[1] for made in (large, small)]
    ratio = times.ratio("small", "large") * pixels[0] / pixels[1]
    note = f"{1e3 * times.median('small') / small.images:.2f} ms an image"
    yield figure("fuse, a pixel of 360x480 / of 1024x2048", ratio, note=note)


def label_model(root):
    made = Fusion(root, 4 * SCENES)
    made.make()
    times = turns({"model": made.by_model, "channel": made.fuse})
    note = f"{1e3 * times.median('model') / made.images:.2f} ms an image, T=4"
    title = "label model, fitted to all images, and fuse by it / fuse by a policy"
    yield figure(title, times.ratio("model", "channel"), "x", 3, 2, note=note)


def weights(root):
    made = Fusion(root, 4 * SCENES)
    made.make()
    made.by_model()
    weigh = partial(made.fuse, file="weighed.yaml", node="pixel-weights")
    times = turns({"fuse": partial(made.fuse, file="by_model.yaml"), "weigh": weigh})
    each = {k: 1e3 * times.median(k) / made.images for k in ("weigh", "fuse")}
    note = f"{each['weigh']:.2f} and {each['fuse']:.2f} ms an image, T=4"
    title = "weights of fused labels / fuse by the label model"
    yield figure(title, times.ratio("weigh", "fuse"), "x", 2, 1.5, note=note)
    size = {
        stage: sum(f.stat().st_size for f in root.glob(f"work/{stage}/*/maps.zarr/c.*"))
        for stage in ("pixel-weights", "fusion")
    }
    note = f"{size['pixel-weights'] / made.images / 1e3:.1f} kB an image"
    yield figure(
        "bytes of weights / of fused labels", size["pixel-weights"] / size["fusion"], note=note
    )


class Stamped:
    """Work that also returns which process did it, and when it was done."""

    def __init__(self, work):
        self.work = work

    def __call__(self, item_id):
        return self.work(item_id), os.getpid(), time.perf_counter()


def processes(root):
    few, many = Fusion(root / "few", FEW), Fusion(root / "many", MANY)
    few.make()
    packed = pack(many.make())
    yield from dask(few, many)
    yield from workers(many, packed)


def dask(few, many):
    """CPU time of an image more, so that starting a process does not count."""
    assert MANY >= items._PARTITION * items._SPREAD  # tasks as large as they are at work
    works = {
        (name, made.images): partial(made.through, way)
        for made in (few, many)
        for name, way in (("loop", loop), ("dask", spread(1)))
    }
    times = turns(works, clock=cpu)
    more = {
        name: [b - a for a, b in zip(times[name, FEW], times[name, MANY], strict=True)]
        for name in ("loop", "dask")
    }
    ratio = statistics.median(d / p for d, p in zip(more["dask"], more["loop"], strict=True))
    yield figure("fuse through dask / a plain loop", ratio, "x", 1.10, 1.05)


def workers(made, packed):
    """Images a second, from when all processes have done one to when the first has none left."""

    def rate(processes):
        stamps = []

        def for_each(ids, work, done, *, workers, progress):
            def unpack(item_id, found):
                result, *stamp = found
                stamps.append(stamp)
                done(item_id, result)

            items.share_out(ids, Stamped(work), unpack, processes, progress)

        made.through(for_each)
        ends = {pid: sorted(end for p, end in stamps if p == pid) for pid, _ in stamps}
        assert len(ends) == processes
        begin = max(end[0] for end in ends.values())
        until = min(end[-1] for end in ends.values())
        return sum(begin < end <= until for _, end in stamps) / (until - begin)

    def bound(processes):
        """Return what the machine has: the rate of as many processes that share nothing."""
        begin = time.perf_counter() + 0.1
        works = [partial(made.parts, packed, SCENES)] * processes
        return sum(pool.map(_rate, works, [begin] * processes))

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        bound(2)  # starts and compiles
        rates = [(rate(1), rate(2), bound(1), bound(2)) for _ in range(ROUNDS)]
    ratio = statistics.median(b / a for a, b, _, _ in rates)
    title = "two worker processes / one, wall"
    one, two = (statistics.median(rate[k] for rate in rates) for k in (0, 1))
    note = f"{two:.0f} and {one:.0f} images/s"
    yield figure(title, ratio, "x", 1.75, 1.95, better="more", note=note)
    ratio = statistics.median(b / a for _, _, a, b in rates)
    note = "processes that share nothing: what the machine had to give"
    yield figure(f"{title}, kernel and codec alone", ratio, "x", better="more", note=note)


def _rate(work, begin):
    """Return how many rounds of SCENES images a second this process does from `begin` on."""
    while time.perf_counter() < begin:
        pass
    rounds = 0
    while time.perf_counter() < begin + 0.3:
        work()
        rounds += 1
    return rounds / (time.perf_counter() - begin)


def nothing(item_id, result=None): ...


def scheduling(root):
    """CPU time an item where there is nothing to do, beyond that of starting a process."""

    def seconds(for_each, count):
        ids = [f"{k:07}" for k in range(count)]
        begin = cpu()
        for_each(ids, nothing, nothing, workers=1, progress=Silent())
        return cpu() - begin

    start = statistics.median(seconds(spread(1), 1) for _ in range(3))
    for count in (10_000, 100_000, 1_000_000):
        cost = 1e6 * (seconds(spread(1), count) - start) / count
        goal = 10 if count == 1_000_000 else None
        yield figure(f"dask, {count:,} images without work", cost, "us/image", goal)
    cost = seconds(items.for_each, 100_000) * 10
    yield figure("one process, 100,000 images without work", cost, "us/image")


def memory(root):
    small, large = Fusion(root / "small", 2, (64, 128)), Fusion(root / "large", 4)
    for made in (small, large):
        made.make()
    found = extra_memory(prepare, small.fuse, large.fuse)
    planes = TEACHERS * maps.SHAPE[0] * maps.SHAPE[1] / 1e6
    yield figure("memory of a worker beyond its T=4 planes", found - planes, "MB", 8, 5)
    found = extra_memory(prepare, small.by_model, large.by_model)
    yield figure("the same, by the label model", found - planes, "MB", 16)


def prepare(small, large):
    """Return the stage on large images, tried on small ones before."""
    small()
    return large


MEASURES = (stage, frames, label_model, weights, processes, scheduling, memory)
