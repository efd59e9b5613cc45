"""SIGKILL in the middle of real work, then a plain rerun: the same bytes, only the missing made."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from worlds import TINY, World, files_of

from ensdistill.pipeline.journal import read_journal
from ensdistill.stages.training.checkpoints import checkpoints


def start(world, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ensdistill.cli", *arguments, "-c", world.file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_when(process, reached, seconds=120):
    """Kill the process as soon as `reached()` holds; it must not have ended by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if reached():
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
            process.stderr.close()
            return
        assert process.poll() is None, process.stderr.read().decode()
    pytest.fail("never reached the point to kill at")


def draft(world, stage):
    """Return the one unpublished folder of a stage, or None."""
    for folder in (world.root / "work" / stage).glob("*"):
        if not (folder / "manifest.json").exists():
            return folder
    return None


def journalled(world, stage):
    folder = draft(world, stage)
    records = []
    if folder is not None:
        for journal in folder.glob("journal-*.jsonl"):
            with contextlib.suppress(OSError):
                records += read_journal(journal)
    return len(records)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough images that a kill falls between two of them."""
    world = World(tmp_path_factory.mktemp("large"), train=160, val=1, size=(40, 56))
    world.settings["policy"] = {
        "strategy": "manual",
        "assign": {"road": "a", "building": "a", "car": "b", "sidewalk": "b"},
    }
    world.settings["fusion"] = {"window": 35}
    world.settings["runtime"] |= {"checkpoint_every": 3}
    world.settings["student"] = TINY | {"steps": 60}
    world.write()
    world.call("train-student", "--upstream")
    return world


def fresh_start(large, stage):
    """Forget everything from `stage` on; return the bytes of what an uninterrupted run made."""
    large.call("train-student", "--upstream")
    nodes = {"infer": "infer[a]", "fusion": "fusion", "student": "student"}
    expected = files_of(large.artifact(nodes[stage]).path)
    downstream = {"infer": ("infer", "fusion", "student"), "fusion": ("fusion", "student")}
    for name in downstream.get(stage, ("student",)):
        for folder in (large.root / "work" / name).glob("*"):
            shutil.rmtree(folder)
    expected.pop("manifest.json")
    return expected


@pytest.mark.parametrize(
    ("stage", "command", "node"),
    [
        ("infer", ["infer-teacher", "a"], "infer[a]"),
        ("fusion", ["fuse", "--upstream"], "fusion"),
    ],
)
def test_killed_label_maps_are_completed_to_the_same_bytes(large, stage, command, node):
    expected = fresh_start(large, stage)
    process = start(large, *command)
    kill_when(process, lambda: journalled(large, stage) >= 20)
    done = journalled(large, stage)
    assert 20 <= done < 160
    assert large.states()[node] == "partial"
    assert f"{done}/160" in large.call("status")
    report = large.json(*command)
    assert [r["written"] for r in report["ran"] if r["node"] == node] == [160 - done]
    found = files_of(large.artifact(node).path)
    found.pop("manifest.json")
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "node"), [("infer", "infer[net]"), ("certainty", "certainty[a]")]
)
def test_killed_networks_end_in_the_same_bytes(tmp_path, stage, node):
    world = World(tmp_path, train=120, val=1, size=(40, 56))
    world.settings["runtime"]["workers"] = 1
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.write()
    world.call("train-student", "--upstream")
    student = str(world.artifact("student").path)
    world.settings["teachers"].append({"name": "net", "network": {"student": student}})
    world.settings["policy"] = {"strategy": "certainty"}
    world.write()
    command = ["infer-teacher", "net"] if stage == "infer" else ["select-policy", "--upstream"]
    world.call(*command)
    expected = world.artifact(node)
    before, result = files_of(expected.path), expected.manifest.result
    shutil.rmtree(expected.path)
    process = start(world, *command)
    kill_when(process, lambda: journalled(world, stage) >= 15)
    done = journalled(world, stage)
    report = world.json(*command)
    assert [r["written"] for r in report["ran"] if r["node"] == node] == [120 - done]
    after = files_of(world.artifact(node).path)
    for files in (before, after):
        files.pop("manifest.json")
    assert after == before
    assert world.artifact(node).manifest.result == result


@pytest.mark.slow
def test_killed_training_ends_in_the_same_student(large):
    expected = fresh_start(large, "student")
    for steps in (3, 12):
        process = start(large, "train-student", "--upstream")

        def reached(steps=steps):
            folder = draft(large, "student")
            return folder and max(checkpoints(folder), default=0) >= steps

        kill_when(process, reached)
    assert large.states()["student"] == "partial"
    large.call("train-student")
    found = files_of(large.artifact("student").path)
    found.pop("manifest.json")
    assert found == expected


def test_a_second_process_is_refused_by_name(large):
    fresh_start(large, "student")
    process = start(large, "train-student", "--upstream")
    try:
        while draft(large, "student") is None:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        text = large.refuse("train-student", "--upstream")
        assert "LockedError" in text
        assert "student is being made by process" in text
        assert str(process.pid) in text
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_interrupt_ends_with_130_and_keeps_what_is_done(large):
    fresh_start(large, "student")
    process = start(large, "train-student", "--upstream")
    while not (draft(large, "student") and checkpoints(draft(large, "student"))):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert b"finished work is kept" in process.stderr.read()
    process.stderr.close()
    assert large.states()["student"] == "partial"


@pytest.mark.parametrize(
    "spoil",
    [
        "flip",
        pytest.param("cut", marks=pytest.mark.slow),
        pytest.param("empty", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_costs_time_alone(large, spoil):
    expected = fresh_start(large, "student")
    process = start(large, "train-student", "--upstream")
    kill_when(
        process,
        lambda: (folder := draft(large, "student")) and checkpoints(folder),
    )
    for path in checkpoints(draft(large, "student")).values():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-9], "empty": b""}[spoil])
    large.call("train-student")
    found = files_of(large.artifact("student").path)
    found.pop("manifest.json")
    assert found == expected
