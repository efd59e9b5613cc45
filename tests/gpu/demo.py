"""The demo, whole, on a device: what its methods score, and how long it takes."""

import json
import subprocess
import sys
import time

from tests.benchmarks.measure import figure

# As `ensdistill demo`, which promises the bits of a CPU, but for where it runs.
DEMO = """
import json, sys
from ensdistill.stages.demo import experiments
device, smoke, out = sys.argv[1:]
experiments.RUNTIME["device"] = device
if smoke == "True":
    for of in (experiments.TEACHER, experiments.PROBE, experiments.STUDENT):
        of["steps"] = 1
    experiments.SOURCE_SCENES["train"] = experiments.TARGET_SCENES["train"] = 4
    experiments.TARGET_SCENES["val"] = 1
from ensdistill.cli.__main__ import main
main(["demo", "-o", out])
"""


def measure(folder, sizes):
    out, begin = folder / "demo", time.perf_counter()
    command = [sys.executable, "-c", DEMO, sizes.device, str(sizes.smoke), str(out)]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begin
    found = json.loads((out / "results.json").read_text())
    yield figure("all of it", seconds, "s", note=json.dumps(found["nodes"]))
    for method in found["methods"]:
        miou = method["miou_present"]
        yield figure(f"mIoU of {method['name']} ({method['kind']})", miou, "%", better="more")
    if sizes.device == "cuda":
        yield from told(out / "experiment.yaml")


def told(experiment):
    """Yield how `doctor` and `check` end on a GPU, and what they say."""
    for command in ("doctor", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "ensdistill.cli", command, "-c", str(experiment)],
            capture_output=True,
            text=True,
            check=False,
        )
        said = f"{done.stdout}\n{done.stderr}"
        yield figure(f"`{command}` ends with", done.returncode, "", 0, note=said)
