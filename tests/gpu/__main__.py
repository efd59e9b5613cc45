"""All figures of a GPU: `python -m tests.gpu [--json FILE] [--only NAME] [--budget SECONDS]`.

A GPU may be had for minutes only: the parts come in order of worth, each in a process of its own
with a time that it may take, and every figure is written as soon as it is known. With a FILE that
holds results already, only parts that are not done are run. `--smoke` runs all of it in small on
the CPU, so that nothing fails for the first time where time is dear.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ensdistill.pipeline import atomic

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # several parts share what may be few cores
LEAST = 8  # seconds without which no part is begun
LAST_WORDS = 3000  # characters that are kept of what a part said before it failed


class Part(NamedTuple):
    """A part of the run: its name, the seconds that it may take, and what it is."""

    name: str
    limit: float
    about: str


# Parts of one row run at the same time: none of those measures speed.
ROWS = (
    (
        Part("tests", 140, "the tests marked gpu"),
        Part("demo", 140, "the demo on the device"),
        Part("demo-cpu", 140, "the same on the CPU of this machine"),
        Part("scenes", 90, "photographs and labels for the parts below"),
    ),
    (Part("teachers", 130, "networks over photographs of 1024 x 2048"),),
    (Part("training", 100, "students at crops of 512 x 1024"),),
    (Part("probes", 90, "four probes at once and one after another"),),
)
NAMES = [part.name for row in ROWS for part in row]
DEMOS = ("demo", "demo-cpu")
ON_SCENES = {"teachers", "training", "probes"}


class Results:
    """What is known, written to a file whenever more is."""

    def __init__(self, file):
        self._file = file
        self._lock = threading.Lock()
        self.found = {"machine": {}, "parts": {}}
        if file is not None and file.exists():
            self.found = json.loads(file.read_text())

    def is_done(self, name):
        return self.found["parts"].get(name, {}).get("state") == "done"

    def begin(self, name):
        with self._lock:
            self.found["parts"][name] = {"state": "begun", "figures": []}
            self._write()

    def add(self, name, figure):
        with self._lock:
            if "machine" in figure:
                self.found["machine"] |= figure["machine"]
            else:
                self.found["parts"][name]["figures"].append(figure)
                say(row(name, figure))
            self._write()

    def end(self, name, **more):
        with self._lock:
            self.found["parts"].setdefault(name, {"figures": []}).update(more)
            self._write()

    def _write(self):
        if self._file is not None:
            atomic.write_json(self._file, self.found, indent=1)


def say(text):
    """Print a line whole: parts run at the same time."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def row(name, figure):
    """Return a figure as a line."""
    sign = "<=" if figure["better"] == "less" else ">="
    goal = "" if figure["at_least"] is None else f"{sign} {figure['at_least']:g}"
    holds = {True: "yes", False: "NO", None: ""}[figure["holds"]]
    value = "-" if figure["value"] is None else f"{figure['value']:.4g} {figure['unit']}"
    note = (figure.get("note") or "").strip().splitlines()
    text = f"{name:9} {figure['name']:66} {value:>16} {goal:>8} {holds:4}"
    return f"{text}{note[0][:110] if note else ''}".rstrip()


def run(part, results, arguments, scratch, until):
    """Run a part, and note how it ended."""
    limit = min(part.limit, until - time.monotonic())
    if limit < LEAST:
        results.end(part.name, state="no time left")
        return
    say(f"--- {part.name}: {part.about}")
    results.begin(part.name)
    begin = time.monotonic()
    command = [sys.executable, "-m", "tests.gpu.part", part.name, str(scratch)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            [*command, *["--smoke"] * arguments.smoke],
            cwd=ROOT,
            env={**os.environ, **(ONE_THREAD if arguments.smoke else {})},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # it is ended with all that it started
        )
        late = threading.Event()
        timer = threading.Timer(limit, _end, (process, late))
        timer.start()
        with process.stdout as lines:
            for line in lines:
                results.add(part.name, json.loads(line))
        code = process.wait()
        timer.cancel()
        said.seek(0)
        words = said.read()[-LAST_WORDS:]
    state = f"took more than {limit:.0f} s" if late.is_set() else f"ended with {code}"
    if code == 0:
        state, words = "done", None
    seconds = round(time.monotonic() - begin, 1)
    results.end(part.name, state=state, seconds=seconds, error=words)
    say(f"--- {part.name}: {state} ({seconds} s)")
    if words:
        say(words)


def _end(process, late):
    late.set()
    os.killpg(process.pid, signal.SIGKILL)


def wanted(results, only, *, smoke):
    """Return the rows of parts that are still to be run, with the scenes that they need."""
    left = {name for name in only or NAMES if not results.is_done(name)}
    if smoke:
        left.discard("demo-cpu")  # the other one is just that
    if left & ON_SCENES:  # of an earlier run they are gone
        left.add("scenes")
    planned = (ROWS[0], sum(ROWS[1:], ())) if smoke else ROWS
    rows = ([part for part in parts if part.name in left] for parts in planned)
    return [parts for parts in rows if parts]


def table(found):
    """Print all figures once more."""
    print("\n" + ", ".join(f"{k} {v}" for k, v in found["machine"].items() if k != "packages"))
    for name in NAMES:
        part = found["parts"].get(name)
        if part is None:
            continue
        print(f"{name}: {part.get('state')}, {part.get('seconds', '-')} s")
        for figure in part.get("figures", ()):
            print(row(name, figure))
    here, there = ({f["name"]: f["value"] for f in figures_of(found, n)} for n in DEMOS)
    for name in here.keys() & there.keys():
        print(f"{DEMOS[0]} - {DEMOS[1]}: {name}: {here[name] - there[name]:+.2f}")


def figures_of(found, name):
    """Return the figures of a part."""
    return found["parts"].get(name, {}).get("figures", ())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, help="a part; may be repeated")
    parser.add_argument("--json", type=Path, help="where results are kept, and taken up again")
    parser.add_argument("--budget", type=float, default=420, help="seconds for all of it")
    parser.add_argument("--smoke", action="store_true", help="in small, on the CPU")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.budget
    results = Results(arguments.json)
    with tempfile.TemporaryDirectory() as scratch:
        for parts in wanted(results, arguments.only, smoke=arguments.smoke):
            threads = [
                threading.Thread(target=run, args=(p, results, arguments, scratch, until))
                for p in parts
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    table(results.found)
    states = [part["state"] for part in results.found["parts"].values()]
    return 0 if all(state == "done" for state in states) else 1


if __name__ == "__main__":
    sys.exit(main())
