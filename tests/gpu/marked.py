"""The tests marked `gpu`, as figures: how many hold, and each that does not."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks.measure import figure

TESTS = Path(__file__).parents[1]
ENDS = re.compile("PASSED|FAILED|ERROR|SKIPPED")
WRONG = ("FAILED", "ERROR")
AT_ONCE = 8  # processes; most of a test is starting others


def files():
    """Return the files in which a test is marked."""
    return [f for f in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in f.read_text()]


def measure(folder, sizes):
    report = folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}"]
    command += ["-W", "default", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") and not sizes.smoke:
        command += ["-n", str(AT_ONCE)]
    command += ["-v", "--timeout", "100"]
    some = [TESTS / "stages" / "test_on_gpu.py"] if sizes.smoke else files()
    ended = {}
    process = subprocess.Popen(
        [*command, *map(str, some)], cwd=TESTS.parent, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:  # time may end before the report is written
        sys.stderr.write(line)
        test, how = re.search(r"\S+::\S+", line), ENDS.search(line)
        if test is None or how is None or test[0] in ended:
            continue
        ended[test[0]] = how[0]
        if how[0] in WRONG:
            yield figure(f"fails: {test[0].rpartition('/')[2]}", None)
    process.wait()
    counts = Counter(ended.values())
    failed = sum(counts[how] for how in WRONG)
    yield figure("tests that fail", failed, "", 0, note=str(dict(counts)))
    for case in ElementTree.parse(report).iter("testcase"):
        for child in (c for c in case if c.tag in ("failure", "error")):
            said = f"{child.get('message')}\n{(child.text or '')[-4000:]}"
            yield figure(f"why {case.get('name')} fails", None, note=said)
