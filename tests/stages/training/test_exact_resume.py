"""A training that is interrupted, anywhere and as often as you like, ends in the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from faults import Forks, Killed, killing_after
from worlds import EVERYTHING, TINY, World, files_of

from ensdistill.stages.training import records
from ensdistill.stages.training.checkpoints import checkpoints
from ensdistill.stages.training.loop import Training
from ensdistill.stages.training.samples import Samples


def segformer(folder):
    """Write the configuration of a small network with dropout everywhere."""
    from transformers import SegformerConfig

    SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
        classifier_dropout_prob=0.3,
        drop_path_rate=0.3,
    ).save_pretrained(folder)


def prepared(root, student, **runtime):
    world = World(root)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["runtime"] |= runtime
    world.settings["student"] = TINY | student
    world.write()
    world.call("train-student", "--upstream")
    expected = files_of(world.artifact("student").path)
    expected.pop("manifest.json")
    return world, expected


def assert_the_same(world, expected):
    found = files_of(world.artifact("student").path)
    found.pop("manifest.json")
    assert found == expected


@pytest.mark.parametrize("network", ["tiny", pytest.param("segformer", marks=pytest.mark.slow)])
def test_interrupted_at_random_steps_it_ends_in_the_same_bits(tmp_path, on_step, network):
    segformer(tmp_path / "segformer")
    chosen = {"arch": "tiny"} if network == "tiny" else {"hf": "segformer"}
    student = EVERYTHING | {"network": chosen, "steps": 40}
    world, expected = prepared(tmp_path, student, checkpoint_every=3)
    shutil.rmtree(world.root / "work" / "student")
    numbers, killed = random.Random(0), 0
    for _ in range(20):
        on_step(killing_after(numbers.randrange(1, 8)))
        world.settings["runtime"] |= {"checkpoint_every": numbers.choice([1, 2, 5])}
        world.write()
        try:
            world.call("train-student")
            break
        except Killed:
            killed += 1
    assert killed > 5
    on_step(lambda _: None)
    world.call("train-student")
    assert_the_same(world, expected)


def test_a_training_that_settles_does_so_however_often_it_is_interrupted(
    tmp_path, on_step, monkeypatch
):
    monkeypatch.setattr(records, "_SHORT", 1)  # steps of an epoch that is looked at alone
    student = {"steps": 60, "settle": 0.2, "power": 0, "ema": 0.9, "batch_size": 2}
    world, expected = prepared(tmp_path, student, checkpoint_every=3)
    steps = world.artifact("student").manifest.result["steps"]
    assert 5 <= steps < 60
    assert json.loads(expected["metrics.jsonl"].splitlines()[-1])["step"] == steps
    shutil.rmtree(world.root / "work" / "student")
    world.settings["runtime"] |= {"checkpoint_every": 1}
    world.write()
    for killed_before in range(1, steps):

        def kill(step, at=killed_before):
            if step == at:
                raise Killed

        on_step(kill)
        with pytest.raises(Killed):
            world.call("train-student")
    on_step(lambda _: None)
    world.call("train-student")
    assert world.artifact("student").manifest.result["steps"] == steps
    assert_the_same(world, expected)


def test_what_settled_is_published_without_another_step(tmp_path, on_step, monkeypatch):
    monkeypatch.setattr(records, "_SHORT", 1)
    student = {"steps": 60, "settle": 0.2, "power": 0, "batch_size": 2}
    world, expected = prepared(tmp_path, student, checkpoint_every=3)
    shutil.rmtree(world.root / "work" / "student")

    def kill(_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "_finish", kill)
        world.call("train-student")
    on_step(kill)
    world.call("train-student")
    assert_the_same(world, expected)


def killed_at(world, forks, reached):
    """Run the command in a process of its own until something is reached, and kill it then."""
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(forks.call, "faults:command", str(world.file), "train-student")
        while not reached():
            assert not ended.done(), ended.result()
            time.sleep(0.002)
        [holder] = (world.root / "work/.locks").glob("student-*.json")
        os.kill(json.loads(holder.read_text())["pid"], signal.SIGKILL)
        assert ended.result().killed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_and_other_loader_workers_end_in_the_same_bits(tmp_path):
    segformer(tmp_path / "segformer")
    student = EVERYTHING | {"network": {"hf": "segformer"}, "steps": 240, "watch": "val"}
    world, expected = prepared(tmp_path, student | {"watch_every": 50}, checkpoint_every=2)
    shutil.rmtree(world.root / "work" / "student")
    numbers = random.Random(1)
    drafts = world.root / "work" / "student"

    def done():
        return max((s for d in drafts.glob("*") for s in checkpoints(d)), default=0)

    def reached(goal, pause):
        if done() < goal:
            return False
        time.sleep(pause)  # anywhere in a step, or in writing a checkpoint
        return True

    with Forks("faults:warm_stages") as forks:
        for _ in range(20):
            world.settings["runtime"]["workers"] = numbers.randrange(3)
            world.write()
            goal, pause = done() + numbers.randrange(1, 9), numbers.random() * 0.05
            killed_at(world, forks, partial(reached, goal, pause))
    assert done() < 240
    world.call("train-student")
    assert_the_same(world, expected)


@pytest.mark.slow
def test_killed_loader_workers_end_in_the_same_bits(tmp_path, monkeypatch):
    """At the first sample, at an epoch's end, in the midst, and when others have gone far ahead."""
    world, expected = prepared(tmp_path, {"steps": 12}, checkpoint_every=2, workers=2)
    shutil.rmtree(world.root / "work" / "student")
    getitem, parent = Samples.__getitem__, os.getpid()
    # two samples a batch, four batches ahead at the most: the first checkpoint that must be there
    for number, last in ((0, 0), (5, 0), (13, 2), (23, 6)):

        def die(self, k, number=number):
            if k == number and os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return getitem(self, k)

        monkeypatch.setattr(Samples, "__getitem__", die)
        text = world.refuse("train-student")
        assert "student: a worker process that loads samples was killed (SIGKILL)" in text
        [draft] = (world.root / "work" / "student").glob("*")
        assert max(checkpoints(draft), default=0) >= last
    monkeypatch.setattr(Samples, "__getitem__", getitem)
    world.call("train-student")
    assert_the_same(world, expected)


# as in a terminal, even where the tests run in the background of a shell, or under nohup
HEARING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from ensdistill.cli.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_no_loader_worker_outlives_the_command(tmp_path, number):
    world, _ = prepared(tmp_path, {"steps": 2}, workers=2)
    world.settings["student"]["steps"] = 100_000
    world.write()
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING, "train-student", "-c", world.file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(number)
    said = process.stderr.read()  # which they hold open as long as they live
    process.wait(5)
    process.stderr.close()
    assert b"Traceback" not in said
    assert time.monotonic() - begin < 5
    time.sleep(0.5)
    stats = [Path(f"/proc/{pid}/stat") for pid in workers]
    # whoever takes over orphans may not have buried them yet
    assert {s.read_text().rpartition(")")[2].split()[0] for s in stats if s.exists()} <= {"Z"}


def test_the_last_checkpoints_are_kept_and_the_best_whole_one_is_used(tmp_path, on_step):
    world, expected = prepared(tmp_path, {"steps": 12}, checkpoint_every=2, keep_checkpoints=3)
    shutil.rmtree(world.root / "work" / "student")

    def stop(step):
        if step == 9:
            raise Killed

    on_step(stop)
    with pytest.raises(Killed):
        world.call("train-student")
    folder = next((world.root / "work" / "student").glob("*"))
    assert list(checkpoints(folder)) == [8, 6, 4]
    damaged = checkpoints(folder)[8]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    steps = []
    on_step(steps.append)
    world.call("train-student")
    assert steps == list(range(6, 12))
    assert_the_same(world, expected)
    assert not list(world.artifact("student").path.glob("draft-*"))


def test_a_checkpoint_is_plain_data(tmp_path, on_step):
    """No code runs when one is read: torch refuses anything but tensors and plain values."""
    import torch

    student = EVERYTHING | {"steps": 4, "watch": "val", "watch_every": 2}
    world, _ = prepared(tmp_path, student, checkpoint_every=2)
    shutil.rmtree(world.root / "work" / "student")

    def stop(step):
        if step == 3:
            raise Killed

    on_step(stop)
    with pytest.raises(Killed):
        world.call("train-student")
    path = next((world.root / "work" / "student").glob("*/draft-checkpoint-00000002.pt"))
    (tmp_path / "bare.pt").write_bytes(path.read_bytes()[64:])
    found = torch.load(tmp_path / "bare.pt", weights_only=True)
    assert found["step"] == 2
