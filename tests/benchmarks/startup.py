"""How long each command that needs no network takes to its first word, all of it being fresh."""

import os
import pty
import re
import statistics
import sys
import time

from .engine import experiment, shell
from .measure import ROUNDS, figure

IMAGES, TEACHERS = 40, 3
LOOKING = (
    "--help",
    "status",
    "explain fusion",
    "run --dry-run",
    "run",
    "infer-teacher",
    "select-policy",
    "fuse",
    "evaluate",
    "check",
    "report",
    "compare experiment.yaml experiment.yaml",
    "verify",
    "gc",
)
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


def words(folder, command):
    """Run a command on a terminal: seconds to its first word, to its end, and of CPU in all."""
    begin = time.perf_counter()
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users' modules are compiled once
        os.execv(sys.executable, [sys.executable, "-m", "ensdistill.cli", *command.split()])
    first, said = None, b""
    while part := _more(terminal):
        said += part
        if first is None and ESCAPES.sub(b"", said).strip():
            first = time.perf_counter() - begin
    _, status, used = os.wait4(process, 0)
    os.close(terminal)
    assert status == 0, said.decode()
    return first, time.perf_counter() - begin, used.ru_utime + used.ru_stime


def _more(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def first_words(root):
    experiment(root, IMAGES, TEACHERS, labelled=True)
    shell(root, "run")
    shell(root, "report")
    for command in LOOKING:
        words(root, command)  # compiles
        times = [words(root, command) for _ in range(ROUNDS)]
        first, whole, used = (statistics.median(found) for found in zip(*times, strict=True))
        note = f"{whole:.2f} s in all, {used:.2f} of CPU"
        yield figure(f"first word of {command}", first, "s", 0.6, 0.35, note=note)
        if command == "evaluate":
            yield figure("evaluate, all of it cached", whole, "s", 1, 0.7)


MEASURES = (first_words,)
