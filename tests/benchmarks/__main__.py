"""Figures of the engine: `python -m tests.benchmarks [--json FILE]`.

Not part of the tests: times depend on the machine, so what can be is given as a ratio of two
measurements taken in turns.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from ensdistill.data.store import LabelStore, checksum, chunk_name
from ensdistill.pipeline import atomic
from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.verify import damages

TEACHERS, IMAGES = 7, 3000
ROUNDS = 7
TINY = {"network": {"arch": "tiny"}, "steps": 2, "batch_size": 2, "crop": [8, 8]}


def figure(name, value, unit, at_least=None, stretch=None):
    """Return a figure and whether it holds (smaller is better)."""
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "at_least": at_least,
        "stretch": stretch,
        "holds": at_least is None or value <= at_least,
    }


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def experiment(root):
    """Write an experiment of many tiny images, each file different from all others."""
    for k in range(IMAGES):
        image = np.zeros((8, 8, 3))
        image[0, 0] = (k % 256, k // 256, 0)
        save(root / f"images/{k:05}.png", image)
        for t in range(TEACHERS):
            label = np.zeros((8, 8))
            label[0, :4] = (k % 19, k // 19 % 19, k // 361 % 19, t)
            save(root / f"teachers/{t}/{k:05}.png", label)
    settings = {
        "version": 1,
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"images": "images/*.png"}},
        "teachers": [
            {"name": f"t{t}", "labels": {"train": f"teachers/{t}"}} for t in range(TEACHERS)
        ],
        "probe": TINY,
        "student": TINY,
        "runtime": {"device": "cpu", "workers": 2},
    }
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
    return [
        figure(f"status, {TEACHERS} x {IMAGES} images", statistics.median(times), "s", 0.5, 0.35)
    ]


def filled(folder, maps):
    """Return a draft of label maps that is ready to be published."""
    folder.mkdir(parents=True)
    store = LabelStore.create(folder / "labels.zarr", len(maps), *maps[0].shape)
    draft = Draft(folder, {str(k): "" for k in range(len(maps))})
    for k, label in enumerate(maps):
        store.write(k, label)
        draft.record(str(k), sha256=checksum(label), file=f"labels.zarr/{chunk_name(k)}")
    return draft


def street(random, shape=(360, 480)):
    """Return a label map about as hard to compress as a real one."""
    blocks = random.integers(0, 19, (shape[0] // 12, shape[1] // 12))
    return np.kron(blocks, np.ones((12, 12))).astype(np.uint8)


def publishing(root):
    """What forcing files to disk costs at publishing, and what checking them does."""
    random = np.random.default_rng(0)
    maps = [street(random) for _ in range(367)]
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
    return [
        figure("publish, forced / not forced", median["publish"] / median["unforced"], "ratio"),
        figure(
            "forcing / filling the draft",
            (median["publish"] - median["unforced"]) / median["fill"],
            "ratio",
        ),
        figure("forcing 367 label maps", median["publish"] - median["unforced"], "s"),
        figure("check 367 label maps on resume", median["resume"], "s"),
        figure("verify 367 label maps", median["verify"], "s"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    figures = []
    for measure in (publishing, status):
        with tempfile.TemporaryDirectory() as folder:
            figures += measure(Path(folder))
    for f in figures:
        goal = "" if f["at_least"] is None else f"  (<= {f['at_least']}: {f['holds']})"
        print(f"{f['name']:40} {f['value']:10.4f} {f['unit']}{goal}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
