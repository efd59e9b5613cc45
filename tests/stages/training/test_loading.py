"""Processes that load samples, and what is said when one of them fails or dies."""

import errno
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.stages.training import loading
from ensdistill.stages.training.loading import load_batches
from ensdistill.stages.training.samples import Batches, Sample

DIES = 9  # the number of the sample at which something happens


class Numbers(Dataset):
    """Sample k is k; at `DIES` something happens first, in whatever process loads it."""

    def __init__(self, happens=lambda: None):
        self.happens = happens

    def __getitem__(self, k):
        if k == DIES:
            self.happens()
        return Sample(*(torch.full((2,), k, dtype=torch.uint8) for _ in range(4)))


def load(happens=lambda: None, steps=8, workers=2):
    return load_batches(
        Numbers(happens),
        Batches(0, steps, 2),
        workers=workers,
        pin=False,
        name="student",
    )


def fail(error):
    def happens():
        raise error

    return happens


def end(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture
def children():
    """The processes that were started since: those of tests before end when they like."""
    before = set(active_children())
    return lambda: [process for process in active_children() if process not in before]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_come_in_their_order_whoever_loads_them(workers, children):
    found = [batch.image[:, 0].tolist() for batch in load(workers=workers)]
    assert found == [[2 * k, 2 * k + 1] for k in range(8)]
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        DataError("a.png: another one than was planned for"),
        OSError(errno.EIO, "Input/output error", "a.png"),
        KeyError("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_raised_as_it_was(workers, error):
    with pytest.raises(type(error)) as raised:
        list(load(fail(error), workers=workers))
    assert str(raised.value) == str(error)
    assert bool(getattr(raised.value, "__notes__", [])) == (workers > 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "student: there is no memory to load a sample; run again (checkpoints are"),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            "No space left on device (28)); give /dev/shm more room (it has ",
        ),
    ],
)
def test_a_worker_without_memory_says_so(error, words):
    with pytest.raises(EnsdistillError) as raised:
        list(load(fail(error)))
    assert words in str(raised.value)
    assert "fewer `runtime.workers`" in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (end(signal.SIGKILL), "was killed (SIGKILL), perhaps for want of memory; run again (check"),
        (end(signal.SIGTERM), "was killed (SIGTERM); run again (checkpoints are kept), with fewer"),
        (end(signal.SIGBUS), "was killed (SIGBUS), as where there is no shared memory left; give"),
        (lambda: os._exit(3), "ended with 3; run again (checkpoints are kept)"),
    ],
)
def test_a_worker_that_dies_is_told_in_a_sentence(capfd, happens, words, children):
    with pytest.raises(EnsdistillError) as raised:
        list(load(happens))
    assert str(raised.value).startswith(f"student: a worker process that loads samples {words}")
    assert not children()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_death_is_raised_nowhere_but_where_samples_are_waited_for(children):
    """torch would raise it anywhere in the main thread, and whoever is there would be blamed."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = load(steps=4)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    rest = []
    for process in children():
        process.join(0.5)  # all four batches are there by now
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with pytest.raises(EnsdistillError, match="SIGKILL"):
        rest.extend(batches)
    batches = load(steps=2)
    rest = [next(batches), next(batches)]
    for process in children():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert [*rest, *batches] == rest  # nobody needs it any more


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_while_goes_on(children):
    batches = load()
    found = [next(batches)]
    stopped = children()
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(6)  # longer than torch waits before it looks
    for process in stopped:
        os.kill(process.pid, signal.SIGCONT)
    assert len([*found, *batches]) == 8


LATE = """
import os, time
from test_loading import load

def fork(fork=os.fork):
    if number := fork():
        print(number, flush=True)
    else:
        time.sleep(0.5)
    return number

os.fork = fork
next(load())
"""


@pytest.mark.slow
def test_a_worker_ends_that_begins_when_its_parent_has_died():
    process = subprocess.Popen(
        [sys.executable, "-c", LATE], cwd=Path(__file__).parent, stdout=subprocess.PIPE
    )
    for _ in range(2):
        assert int(process.stdout.readline())
    process.kill()
    begin = time.monotonic()
    process.communicate()  # they hold it open as long as they live
    assert time.monotonic() - begin < 5


def test_what_cannot_be_started_is_told(monkeypatch, capfd):
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(EnsdistillError, match="student: the processes that load samples cannot be"):
        next(load())


def test_the_second_that_cannot_be_started_is_told(monkeypatch, capfd):
    fork, started = os.fork, []

    def once():
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(fork())
        return started[0]

    monkeypatch.setattr(os, "fork", once)
    with pytest.raises(EnsdistillError, match="Cannot allocate memory"):
        next(load())
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("said", "of_gpu"), [("CUDA error: lost", True), ("no room", False)])
def test_what_a_gpu_reports_is_heard_of_where_samples_are_laid_ready(said, of_gpu):
    def batches():
        raise RuntimeError(f"Caught an error in a thread that pins\n{said}")
        yield

    lost = loading._next(batches())
    assert (lost.of_gpu is not None) == of_gpu
