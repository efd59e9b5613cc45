"""Several processes that train one network, as `torchrun` starts them (gloo on CPU)."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from worlds import TINY, World

from ensdistill.stages.training.checkpoints import checkpoints
from ensdistill.stages.training.samples import Batches

# All that may differ between ranks: balancing, hard pixels, clipping, an average, a watched split.
STUDENT = TINY | {
    "steps": 30,
    "batch_size": 4,
    "batch_norm": "frozen",
    "class_mix": 0.5,
    "colour": 0.3,
    "blur": 0.5,
    "class_balance": 3,
    "often_balance": 3,
    "hard_share": 0.5,
    "clip": 1.0,
    "ema": 0.99,
    "warmup": 5,
    "watch": "val",
    "watch_every": 10,
}


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A world with fused labels, whose student is trained by the tests."""
    world = World(tmp_path_factory.mktemp("ranks"), train=7, val=3)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["runtime"]["checkpoint_every"] = 4
    world.settings["student"] = dict(STUDENT)
    world.write()
    world.call("fuse", "--upstream")
    return world


def start(world, count, *arguments):
    """Start a command in `count` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [
            sys.executable,
            *(launcher if count > 1 else []),
            *("-m", "ensdistill.cli", *(arguments or ["train-student"]), "-c", str(world.file)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(world, count):
    """Train the student in `count` processes; return its metrics and its weights."""
    if count == 1:
        world.call("train-student")
    else:
        process = start(world, count)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    artifact = world.artifact("student")
    assert artifact.manifest.runtime["ranks"] == count
    lines = (artifact.path / "metrics.jsonl").read_text().splitlines()
    from safetensors.torch import load_file

    return [json.loads(line) for line in lines], load_file(artifact.path / "model.safetensors")


def kill(process):
    """Kill `torchrun` and what it started, which is in sessions of its own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def alone(fused):
    """What a training in one process comes to, for how many steps are asked for."""

    @cache
    def train_alone(steps):
        again(fused, steps=steps)
        return train(fused, 1)

    return train_alone


def again(world, **student):
    """Forget the student."""
    world.settings["student"] = STUDENT | student
    world.write()
    shutil.rmtree(world.root / "work" / "student", ignore_errors=True)


def assert_alike(one, two):
    for a, b in zip(one[0], two[0], strict=True):
        assert a.keys() == b.keys()
        assert list(a.values()) == pytest.approx(list(b.values()), rel=5e-3)
    for name, weight in one[1].items():
        torch.testing.assert_close(two[1][name], weight, rtol=1e-2, atol=2e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(fused, alone):
    one = alone(30)
    losses = [m["loss"] for m in one[0] if "loss" in m]
    assert losses[-1] < 0.7 * losses[0]
    again(fused)
    assert_alike(one, train(fused, 2))
    # all of them end at once where there is nothing to do
    process = start(fused, 2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_parts_of_a_batch_train_as_the_whole(fused, alone):
    one = alone(30)
    again(fused, accumulate=2)
    assert_alike(one, train(fused, 1))
    again(fused, accumulate=2)
    assert_alike(one, train(fused, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_another_number_of_processes_goes_on(fused, alone, before, after):
    one = alone(50)
    again(fused, steps=50)
    process = start(fused, before)
    drafts = fused.root / "work" / "student"
    end = time.monotonic() + 60
    while not any(max(checkpoints(d), default=0) >= 12 for d in drafts.glob("*")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    kill(process)
    assert fused.states()["student"] == "partial"
    assert_alike(one, train(fused, after))


@pytest.mark.slow
def test_a_training_that_diverges_stops_all_processes(fused):
    again(fused, lr=1e30, clip=None, warmup=0)
    process = start(fused, 2)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("the loss is") == 1, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "text"),
    [
        ({"batch_size": 5}, "batch_size is 5; expected a multiple of 2"),
        ({"batch_norm": "sync"}, "`batch_norm: sync` needs GPUs"),
    ],
)
def test_what_ranks_cannot_share_is_refused(fused, student, text):
    again(fused, **student)
    process = start(fused, 2)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert text in err


def test_a_process_that_a_rank_starts_is_alone(fused, monkeypatch):
    """A job of `runtime: {jobs: N}` inherits the variables of torchrun, and none of its groups."""
    again(fused, steps=4)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    fused.call("train-student")
    assert fused.artifact("student").manifest.runtime["ranks"] == 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_share_every_step(ranks):
    alone = list(Batches(3, 9, 8))
    shares = [list(Batches(3, 9, 8, rank, ranks)) for rank in range(ranks)]
    assert all(len(s) == len(Batches(3, 9, 8, 0, ranks)) == 6 for s in shares)
    together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == alone
    assert list(chain(*alone)) == list(range(24, 72))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_synchronised_batch_norm_sees_the_whole_batch(fused):
    fused.settings["runtime"]["device"] = "cuda"
    try:
        again(fused, batch_norm="sync", watch=None)
        one = train(fused, 1)
        again(fused, batch_norm="sync", watch=None)
        assert_alike(one, train(fused, 2))
    finally:
        fused.settings["runtime"]["device"] = "cpu"


@pytest.mark.slow
def test_a_decoder_alone_is_trained_on_features_that_one_of_them_computes(tmp_path):
    world = World(tmp_path)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    lite = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
    some = {"batch_norm": "frozen", "batch_size": 4, "watch": "val", "lr": 1e-3}
    world.settings["student"] = TINY | lite | some | {"train": "decoder"}
    world.write()
    world.call("fuse", "--upstream")
    _, expected = train(world, 1)
    shutil.rmtree(tmp_path / "work" / "student")
    shutil.rmtree(tmp_path / "work" / ".features")
    _, found = train(world, 2)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
