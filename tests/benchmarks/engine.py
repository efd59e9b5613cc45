"""The engine: publishing what was made, and looking at what is there."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from ensdistill.data.store import LabelStore, checksum, chunk_name
from ensdistill.pipeline import atomic
from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.verify import damages
from ensdistill.pipeline.workspace import Workspace

from .measure import ROUNDS, cpu, figure

TEACHERS, IMAGES = 7, 3000
GROWTH = (1000, 4000, 16000)
TINY = {"network": {"arch": "tiny"}, "steps": 2, "batch_size": 2, "crop": [8, 8]}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def experiment(root, images=IMAGES, teachers=TEACHERS, *, labelled=False):
    """Write an experiment of many tiny images, each file different from all others.

    Of a labelled one a split of the same images has teacher 0's labels for ground truth.
    """
    for k in range(images):
        image = np.zeros((8, 8, 3))
        image[0, 0] = (k % 256, k // 256, 0)
        save(root / f"images/{k:05}.png", image)
        for t in range(teachers):
            label = np.zeros((8, 8))
            label[0, :4] = (k % 19, k // 19 % 19, k // 361 % 19, t)
            save(root / f"teachers/{t}/{k:05}.png", label)
    settings = {
        "version": 1,
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"images": "images/*.png"}},
        "teachers": [
            {"name": f"t{t}", "labels": {"train": f"teachers/{t}"}} for t in range(teachers)
        ],
        "probe": TINY,
        "student": TINY,
        "runtime": {"device": "cpu", "workers": 2},
    }
    if labelled:
        split = {"images": "images/*.png", "labels": "teachers/0/*.png", "overlap": ["train"]}
        settings["target"]["val"] = split
        for t, teacher in enumerate(settings["teachers"]):
            teacher["labels"]["val"] = f"teachers/{t}"
    (root / "experiment.yaml").write_text(yaml.safe_dump(settings))


def shell(root, *arguments):
    """Run a command in a process of its own and return the seconds it took."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ensdistill.cli", *arguments],
        cwd=root,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begin


def status(root):
    """Seconds until `status` has answered, everything fresh."""
    experiment(root)
    shell(root, "run")
    times = [shell(root, "status", "--check") for _ in range(ROUNDS)]
    yield figure(f"status, {TEACHERS} x {IMAGES} images", statistics.median(times), "s", 0.5, 0.35)


def growth(root):
    """How the time of the commands that look at every image grows with their number.

    Of each: seconds per 1,000 images beyond the first ones, and how much more the last 12,000 cost
    than as many of the ones before.
    """
    commands = {
        "check": ("check",),
        "infer and fuse": ("fuse", "--upstream"),
        "status": ("status",),
        "fuse, fresh": ("fuse",),
        "verify": ("verify",),
        "gc": ("gc",),
        "report": ("report",),
    }
    times = {}
    experiment(root / "first", images=1)
    shell(root / "first", "check")  # read from a cold disk, libraries would be charged to the few
    for count in GROWTH:
        folder = root / str(count)
        experiment(folder, images=count, teachers=3)
        times[count] = {name: shell(folder, *command) for name, command in commands.items()}
    few, some, many = GROWTH
    for name in commands:
        first = (times[some][name] - times[few][name]) / (some - few)
        last = (times[many][name] - times[some][name]) / (many - some)
        note = ", ".join(f"{count}: {times[count][name]:.2f} s" for count in GROWTH)
        yield figure(f"{name}, each 1,000 of 3 x {many} images", 1000 * last, "s", note=f"  {note}")
        if 1000 * first > 0.01:  # else the clock, and not the command, is measured
            yield figure(f"{name}, an image among {many} / among {some}", last / first, "x", 1.5)


def filled(folder, maps):
    """Return a draft of label maps that is ready to be published."""
    folder.mkdir(parents=True)
    store = LabelStore.create(folder / "maps.zarr", len(maps), *maps[0].shape)
    draft = Draft(folder, {str(k): "" for k in range(len(maps))})
    for k, label in enumerate(maps):
        store.write(k, label)
        draft.record(str(k), content=checksum(label), file=f"maps.zarr/{chunk_name(k)}")
    return draft


def blocks(random, shape=(360, 480)):
    """Return a label map about as hard to compress as a real one."""
    values = random.integers(0, 19, (shape[0] // 12, shape[1] // 12))
    return np.kron(values, np.ones((12, 12))).astype(np.uint8)


def publishing(root):
    """What forcing files to disk costs at publishing, and what checking them does."""
    random = np.random.default_rng(0)
    maps = [blocks(random) for _ in range(367)]
    manifest = Manifest("n", "infer", 1, "0" * 64, {}, {}, {})
    times = {name: [] for name in ("fill", "publish", "unforced", "resume", "verify")}

    def timed(name, work):
        begin = time.perf_counter()
        found = work()
        times[name].append(time.perf_counter() - begin)
        return found

    for k in range(ROUNDS):
        draft = timed("fill", lambda k=k: filled(root / f"infer/a{k}-{'0' * 12}", maps))
        timed("resume", lambda draft=draft: Draft(draft.path, draft.keys))
        artifact = timed("publish", lambda draft=draft: draft.publish(manifest))
        assert timed("verify", lambda artifact=artifact: damages(artifact.path)) == []
        with mock.patch.object(atomic.os, "fsync", lambda _: None):
            other = filled(root / f"infer/b{k}-{'0' * 12}", maps)
            timed("unforced", lambda other=other: other.publish(manifest))
    median = {name: statistics.median(found) for name, found in times.items()}
    forcing = median["publish"] - median["unforced"]
    yield figure("publish, forced / not forced", median["publish"] / median["unforced"])
    yield figure("forcing / filling the draft", forcing / median["fill"])
    yield figure("forcing 367 label maps", forcing, "s")
    yield figure("check 367 label maps on resume", median["resume"], "s")
    yield figure("verify 367 label maps", median["verify"], "s")


def changed(root):
    """What the engine does where one image of many changed: all others are of the last artifact."""
    content = np.random.default_rng(0).bytes(30_000)
    manifest = Manifest("fusion", "fusion", 1, "", {}, {}, {})
    table = {"labels": [0] * 19, "size": [1024, 2048]}

    def draft(workspace, number, keys):
        name = f"{number:012}".ljust(64, "0")
        made = workspace.draft("fusion", "fused", name, keys)
        (made.path / "maps").mkdir(exist_ok=True)
        return made, replace(manifest, fingerprint=name)

    def first(workspace, count):
        keys = {f"{k:05}": checksum(np.uint8(list(f"{k:05}"))) for k in range(count)}
        made, said = draft(workspace, 0, keys)
        for k, item_id in enumerate(keys):
            (made.path / f"maps/{k}").write_bytes(content)
            made.record(item_id, file=f"maps/{k}", **table)
        made.publish(said)
        return keys

    def again(workspace, keys, number):
        """Make the next one, in which the image of this number is another."""
        ids = list(keys)
        keys[ids[number]] = checksum(np.uint8([number]))
        made, said = draft(workspace, number, keys)
        spares = workspace.spares("fusion", keys, made.path)
        made.adopt(spares, lambda item_id: f"maps/{int(item_id)}")
        (made.path / f"maps/{number}").write_bytes(content)
        made.record(ids[number], file=f"maps/{number}", **table)
        made.reload()
        made.publish(said)
        assert made.reused == len(keys) - 1

    def timed(*arguments):
        begin, used = time.perf_counter(), cpu()
        again(*arguments)
        return time.perf_counter() - begin, cpu() - used

    workspace = Workspace(root / "many")
    keys = first(workspace, GROWTH[-1])
    walls, used = zip(*[timed(workspace, keys, k) for k in range(1, 6)], strict=True)
    note = f"  {statistics.median(walls):.1f} s"
    yield figure(f"one changed of {GROWTH[-1]}, CPU", statistics.median(used), "s", 1, note=note)
    workspace = Workspace(root / "few")
    keys = first(workspace, GROWTH[0])
    ratios = []
    for k in range(1, 2 * ROUNDS, 2):
        linked, _ = timed(workspace, keys, k)
        with mock.patch.object(os, "link", side_effect=OSError):
            copied, _ = timed(workspace, keys, k + 1)
        ratios.append(linked / copied)
    yield figure(
        f"one changed of {GROWTH[0]}, wall, linked / copied", statistics.median(ratios), "x", 0.2
    )


MEASURES = (publishing, status, growth, changed)
