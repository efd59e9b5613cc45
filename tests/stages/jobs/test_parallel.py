"""Several processes on one workspace."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from worlds import World, files_of


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough images that several processes meet."""
    return World(tmp_path_factory.mktemp("large"), train=60, val=1, size=(40, 56))


@pytest.fixture(scope="module")
def expected(large):
    """What one process makes of teacher a."""
    large.call("infer-teacher")
    return content(large, "infer[a]")


@pytest.fixture
def empty(large, expected):
    """The same without any artifact."""
    shutil.rmtree(large.root / "work" / "infer", ignore_errors=True)
    return large


def content(world, node):
    files = files_of(world.artifact(node).path)
    files.pop("manifest.json")
    return files


def start(world, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ensdistill.cli", *arguments, "-c", world.file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_well(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_different_nodes_are_made_at_the_same_time(empty, expected):
    both = [start(empty, "infer-teacher", name) for name in "ab"]
    for process in both:
        assert "60 of 60 written" in ends_well(process)
    assert content(empty, "infer[a]") == expected
    assert empty.states()["infer[b]"] == "fresh"


def test_parts_share_the_images_and_one_of_them_publishes(empty, expected):
    parts = [start(empty, "infer-teacher", "a", "--part", f"{k}/3") for k in (1, 2, 3)]
    said = "".join(ends_well(process) for process in parts)
    assert said.count("20 of 60 written") == 3
    assert content(empty, "infer[a]") == expected
    assert not list(empty.artifact("infer[a]").path.glob("journal-*"))
    assert "nothing to do" in empty.call("infer-teacher", "a", "--part", "2/3")


def test_a_part_alone_says_what_is_left_and_a_plain_run_takes_the_rest(empty, expected):
    assert "20 of 60 written" in empty.call("infer-teacher", "a", "--part", "2/3")
    assert empty.states()["infer[a]"] == "partial"
    assert "40 are left to other parts" in empty.call("infer-teacher", "a", "--part", "2/3")
    report = empty.json("infer-teacher", "a")
    assert [(r["written"], r["open"]) for r in report["ran"]] == [(40, 0)]
    assert content(empty, "infer[a]") == expected


def test_a_killed_part_is_made_by_its_next_run(empty, expected):
    process = start(empty, "infer-teacher", "a", "--part", "1/2")
    while not list(empty.root.glob("work/infer/a-*/journal-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    empty.call("infer-teacher", "a", "--part", "2/2")
    empty.call("infer-teacher", "a", "--part", "1/2")
    assert content(empty, "infer[a]") == expected


SLOW = """
import sys, time
from ensdistill.cli.__main__ import main
from ensdistill.stages import labelmaps
journal = labelmaps.LabelMapsDraft.journal
def slow(self, *arguments):
    time.sleep(0.2)
    journal(self, *arguments)
labelmaps.LabelMapsDraft.journal = slow
main(sys.argv[1:])
"""


@pytest.fixture
def busy(empty):
    """Start a process that takes long; it is gone at the end."""
    started = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments, "-c", empty.file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        while not list(empty.root.glob("work/infer/a-*/journal-*")):
            assert process.poll() is None
            time.sleep(0.01)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((), (), "infer[a] is being made by process"),
        (("--part", "1/2"), (), "a part of infer[a] is being made by process"),
        ((), ("--part", "1/2"), "infer[a] is being made by process"),
        (("--part", "1/2"), ("--part", "1/2"), "part 1/2 of infer[a] is being made by process"),
        (("--part", "1/2"), ("--part", "2/3"), "a part of infer[a] is being made by process"),
    ],
)
def test_who_would_do_the_same_work_is_refused(empty, busy, monkeypatch, first, second, said):
    monkeypatch.setattr("ensdistill.pipeline.locks.TURN", 0.2)
    process = busy("infer-teacher", "a", *first)
    text = empty.refuse("infer-teacher", "a", *second)
    assert f"LockedError: {said} {process.pid} on " in text


def test_status_says_who_is_at_it(empty, busy):
    process = busy("infer-teacher", "a")
    reason = {d["node"]: d["reason"] for d in empty.json("status")}["infer[a]"]
    assert f"of 60 items done; process {process.pid} on " in reason
    process.kill()
    process.wait()
    assert "is at it" not in empty.call("status")


def test_gc_leaves_what_a_process_works_on(empty, busy):
    process = busy("infer-teacher", "a")
    empty.settings["teachers"][0]["map"] = {"road": "car"}
    empty.write()
    try:
        found = {row["kind"]: row for row in empty.json("gc", "--delete")}
        assert not found["draft"]["deleted"]
        assert f"a command under way (process {process.pid} " in found["draft"]["reason"]
        process.kill()
        process.wait()
        assert empty.json("gc", "--delete")[0]["deleted"]
        assert not list(empty.root.glob("work/infer/a-*"))
    finally:
        del empty.settings["teachers"][0]["map"]
        empty.write()


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_what_is_no_part_is_wrong_usage(empty, part):
    empty.call("infer-teacher", "--part", part, expect=2)


def test_more_parts_than_images(tmp_path):
    world = World(tmp_path, train=2, val=1)
    for k in range(1, 5):
        world.call("infer-teacher", "a", "--part", f"{k}/4")
    assert world.states()["infer[a]"] == "fresh"
    assert np.array_equal(
        sorted(content(world, "infer[a]"))[-2:], ["maps.zarr/c.1.0.0", "maps.zarr/zarr.json"]
    )
