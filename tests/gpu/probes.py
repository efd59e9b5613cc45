"""Four probes at once on one device, against one after another."""

import json
import subprocess
import sys
import time

from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load
from ensdistill.stages.nodes.infer.plan import infer_id
from tests.benchmarks.measure import figure

from .clock import Watched
from .networks import write
from .scenes import TEACHERS, link


def select_policy(file):
    """Run the command, and return what it reports and how long it took."""
    command = [sys.executable, "-m", "ensdistill.cli", "select-policy", "-c", str(file), "--json"]
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout), time.perf_counter() - begin


def read_labels(file):
    """Make what the probes are trained on, so that it takes no time of theirs."""
    experiment = load(file)
    nodes = build(experiment)
    labels = [infer_id(teacher.name) for teacher in experiment.teachers]
    run(nodes, experiment.workspace, labels, lambda _: Watched())


def experiment_of(folder, jobs, sizes):
    """Write an experiment whose policy asks probes, some of them at a time."""
    scenes = folder.parents[1] / "scenes"
    link(folder.parents[1], "png", folder / "images", sizes.scenes)
    names = [f"teacher{t}" for t in range(TEACHERS)]
    height, width = sizes.crop
    settings = {
        "target": {"train": {"images": "images/*.png"}},
        "teachers": [{"name": n, "labels": {"train": str(scenes / n)}} for n in names],
        "policy": {"strategy": "certainty"},
        "fusion": {"method": "channel"},
        "probe": {
            "network": {"arch": "mobilenetv2-deeplabv3plus"},
            "steps": sizes.whole,
            "batch_size": 4,
            "crop": [height // 2, width // 2],
            "precision": "bfloat16",
        },
        "runtime": {"device": sizes.device, "jobs": jobs, "workers": min(3, sizes.workers)},
    }
    return write(folder / "experiment.yaml", settings)


def measure(folder, sizes):
    taken = {}
    for jobs in (1,) if sizes.smoke else (TEACHERS, 1):
        file = experiment_of(folder / f"jobs{jobs}", jobs, sizes)
        read_labels(file)
        report, taken[jobs] = select_policy(file)
        stages = [r["node"] for r in report["ran"] if r["node"].startswith("probe")]
        each = sum(r["seconds"] for r in report["ran"] if r["node"] in stages) / len(stages)
        note = f"{each:.1f} s of each probe"
        yield figure(f"policy of {len(stages)} probes, {jobs} at once", taken[jobs], "s", note=note)
    if len(taken) > 1:
        yield figure("one after another / four at once", taken[1] / taken[TEACHERS], better="more")
