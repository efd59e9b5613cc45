"""Measuring in turns, on one thread, so that a busy machine slows down both sides alike.

Importing it changes nothing in the process; `one_thread` is for the program alone.
"""

import gc
import math
import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROUNDS = 7
LEAST = 0.02  # seconds that a work is repeated for in each round: clocks are not finer


def one_thread():
    """Keep this process and those it starts on one thread.

    To be called before numpy and torch are loaded: they read these variables then.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def figure(name, value, unit="x", at_least=None, stretch=None, *, better="less", note=None):
    """Return a figure; `holds` is None where there is no goal or nothing was measured."""
    holds = None
    if value is not None and at_least is not None:
        holds = bool(value <= at_least if better == "less" else value >= at_least)
    found = {"name": name, "value": None if value is None else float(f"{value:.4g}"), "unit": unit}
    found |= {"at_least": at_least, "stretch": stretch, "better": better, "holds": holds}
    return found | ({"note": note} if note else {})


class Turns(dict):
    """Seconds per call of each work, round by round."""

    def ratio(self, a, b):
        """Return the median over the rounds of a / b."""
        return statistics.median(x / y for x, y in zip(self[a], self[b], strict=True))

    def median(self, name):
        """Return the median seconds per call."""
        return statistics.median(self[name])


def cpu():
    """Return the CPU seconds of this process and of those that it started and that are done."""
    mine, theirs = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def turns(works, *, rounds=ROUNDS, clock=time.process_time, least=LEAST):
    """Run each of the works, name to function, once or more in every round.

    Parameters
    ----------
    rounds : int
        Every other one goes through the works backwards.
    clock : callable
        Returns seconds: of this process's CPU time, unless it is `time.perf_counter` or `cpu`.
    least : float
        Seconds that a work is repeated for in a round.
    """

    def timed(work, count=1):
        begin = clock()
        for _ in range(count):
            work()
        return (clock() - begin) / count

    counts = {}
    for name, work in works.items():
        work()  # compiles, fills caches
        counts[name] = math.ceil(least / max(timed(work), 1e-7))
    times = Turns((name, []) for name in works)
    for k in range(rounds):
        gc.collect()
        for name in list(works)[:: -1 if k % 2 else 1]:
            times[name].append(timed(works[name], counts[name]))
    return times


def peers(prepares):
    """Return the works, by name, that could be prepared, and the names of those not installed."""
    found, missing = {}, []
    for name, prepare in prepares.items():
        try:
            found[name] = prepare()
        except ImportError:
            missing.append(name)
    return found, missing


def extra_memory(prepare, *arguments):
    """Return MB that a work needs at its peak over what is held before it, in a process of its own.

    `prepare(*arguments)` returns the work, after it has loaded and compiled what that uses.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_extra_memory, prepare, *arguments).result()


def _extra_memory(prepare, *arguments):
    work = prepare(*arguments)
    gc.collect()
    before = _resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    except OSError:
        before = _highest()  # then only what goes beyond it is seen
    work()
    return (_highest() - before) / 1e6


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _highest():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
