"""Two machines on one file system that do not see each other's locks: simulated by two processes
whose locks lie in different files and whose kernels have different names.
"""

import signal
import subprocess
import sys
import time

import pytest

HOST = """
import sys, time
from pathlib import Path
import filelock
from ensdistill.pipeline import locks
from ensdistill.pipeline.errors import LockedError

host, folder, patience = sys.argv[1:4]
real = filelock.FileLock
filelock.FileLock = lambda path, **more: real(f"{path}.{host}", **more)
locks.machine = lambda: host
try:
    with locks.Locks(Path(folder), 0.05, float(patience)).hold("x", "fusion") as claim:
        print("held;", claim.took_over, flush=True)
        sys.stdin.readline()
        claim.require()
        print("done", flush=True)
except LockedError as error:
    print("refused:", error, flush=True)
"""


@pytest.fixture
def host(tmp_path):
    """Start a process on a machine of that name; it holds the lock until it gets a line."""
    started = []

    def start(name, patience=0.5):
        process = subprocess.Popen(
            [sys.executable, "-c", HOST, name, tmp_path, str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def goes_on(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_a_living_holder_on_another_machine_is_seen_by_its_beat(host):
    one = host("one")
    assert one.stdout.readline() == "held; None\n"
    said = host("two", patience=5).stdout.readline()
    assert said.startswith(f"refused: fusion is being made by process {one.pid} on ")
    assert "wait for it or stop it" in said
    assert goes_on(one) == "done\n"
    assert host("two").stdout.readline() == "held; None\n"


def test_a_dead_holder_on_another_machine_is_taken_over_when_it_does_not_beat(host):
    one = host("one")
    one.stdout.readline()
    one.send_signal(signal.SIGKILL)
    one.wait()
    begin = time.monotonic()
    said = host("two").stdout.readline()
    assert said.startswith(f"held; process {one.pid} on ")
    assert "did not finish fusion" in said
    assert time.monotonic() - begin >= 0.5


def test_who_slept_until_another_took_over_does_not_publish(host):
    one = host("one")
    one.stdout.readline()
    one.send_signal(signal.SIGSTOP)
    two = host("two")
    assert two.stdout.readline().startswith("held; process")
    one.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    said = goes_on(one)
    assert said.startswith(f"refused: fusion was taken over by process {two.pid} on ")
    assert "its finished items are kept" in said
    assert goes_on(two) == "done\n"


def test_machines_that_see_each_others_locks_need_no_patience(host):
    one = host("one", patience=60)
    one.stdout.readline()
    begin = time.monotonic()
    assert host("one", patience=60).stdout.readline().startswith("refused: ")
    one.kill()
    one.wait()
    assert host("one", patience=60).stdout.readline().startswith("held; process")
    assert time.monotonic() - begin < 30
