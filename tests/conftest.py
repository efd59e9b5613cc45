"""Fixtures for all tests; see `worlds.py` for the experiments they build."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import settings
from worlds import World

# the same examples everywhere: what one machine finds another one finds again
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def repository():
    return REPOSITORY


@pytest.fixture
def world(tmp_path):
    """A fresh little world: images, ground truth and two teachers given by their predictions."""
    return World(tmp_path)


@pytest.fixture
def eager(monkeypatch):
    """Start processes as soon as two items are done."""
    from ensdistill.stages.work import items

    monkeypatch.setattr(items, "TRIAL", 0.0)
    monkeypatch.setattr(items, "STARTING", 0.0)


@pytest.fixture
def on_step(monkeypatch):
    """Have one function called with the number of each step of a training that begins."""
    from ensdistill.stages.training.loop import Training

    begin = Training.begin_step

    def hear(call):
        def heard(training, step):
            call(step)
            return begin(training, step)

        monkeypatch.setattr(Training, "begin_step", heard)

    return hear


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small wait for threads longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lenient():
    """Warnings are no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.fixture
def camvid():
    """The folder of real images and predictions; skipped where it is not declared."""
    folder = os.environ.get("ENSDISTILL_CAMVID")
    if not folder:
        pytest.skip("ENSDISTILL_CAMVID is not set")
    return Path(folder)


@pytest.fixture
def python():
    """Run Python code in a fresh process and return what it printed."""

    def run(code, *arguments, **more):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            **more,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
