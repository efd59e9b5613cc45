"""Locks: one writer an artifact or several that share its items, each known by name."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from filelock import FileLock

from ensdistill.pipeline import locks as module
from ensdistill.pipeline.errors import DataError, LockedError
from ensdistill.pipeline.locks import Locks, Needs, Part, machine

NAME, OTHER = "fusion-aaaaaaaaaaaa", "fusion-bbbbbbbbbbbb"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "work" / ".locks"


@pytest.fixture
def locks(folder):
    return Locks(folder, beat=0.02, patience=0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "TURN", 0.1)


def holder_of(folder, name=NAME):
    return json.loads((folder / f"{name}.json").read_text())


def from_elsewhere(folder, name=NAME, **more):
    """Leave the file of a holder on another machine, whose lock cannot be seen from here."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"pid": 7, "host": "far", "since": "2024-01-01", "machine": "m", "token": "t", "beat": 3}
    (folder / f"{name}.json").write_text(json.dumps(said | more))


def refused(locks, *arguments, **more):
    """Return the text of the refusal to hold an artifact."""
    with pytest.raises(LockedError) as caught, locks.hold(*arguments, **more):
        pytest.fail("two hold one lock")
    return str(caught.value)


HOLD = """
import sys
from pathlib import Path
from ensdistill.pipeline.locks import Locks, Part
part = Part(*map(int, sys.argv[3:])) if sys.argv[3:] else None
with Locks(Path(sys.argv[1])).hold(sys.argv[2], "fusion@val", part):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(folder):
    """Start processes that hold an artifact, or a part of it, until they are killed."""
    with ExitStack() as stack:

        def start(*part, name=NAME):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, folder, name, *map(str, part)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            assert process.stdout.readline() == b"held\n"
            return process

        yield start


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


# other processes


def test_a_lock_names_its_holder_until_that_is_gone(locks, holder):
    process = holder()
    said = refused(locks, NAME, "fusion@val")
    for part in ("fusion@val", f"process {process.pid}", socket.gethostname(), "since 20"):
        assert part in said
    assert "wait for it or stop it" in said
    with locks.hold(OTHER, "other"), locks.hold("probe-aaaaaaaaaaaa", "other"):
        pass
    kill(process)
    with locks.hold(NAME, "fusion@val") as claim:
        assert f"process {process.pid} on " in claim.took_over
        assert "did not finish fusion@val; going on where it was" in claim.took_over
    with locks.hold(NAME, "fusion@val") as claim:
        assert claim.took_over is None


def test_a_lock_without_a_readable_holder_still_refuses(locks, holder, folder):
    holder()
    for path in folder.glob("*.json"):
        path.write_bytes(b"{")
    assert "by another process" in refused(locks, NAME, "fusion")


def test_a_part_of_another_process_refuses_the_whole_and_other_divisions(locks, holder):
    process = holder(1, 2)
    assert f"process {process.pid}" in refused(locks, NAME, "fusion")
    assert "a part of fusion" in refused(locks, NAME, "fusion", Part(1, 3))
    said = refused(locks, NAME, "fusion", Part(1, 2))
    assert f"part 1/2 of fusion is being made by process {process.pid}" in said
    with locks.hold(NAME, "fusion", Part(2, 2)):
        pass
    kill(process)
    with locks.hold(NAME, "fusion", Part(1, 2)) as claim:
        assert f"process {process.pid}" in claim.took_over
        assert "part 1/2 of fusion" in claim.took_over


# one process


def test_a_lock_is_free_after_a_failure(locks, folder):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locks.hold(NAME, "fusion"):
            raise error
    with locks.hold(NAME, "fusion") as claim:
        assert claim.took_over is None
        said = holder_of(folder)
        assert (said["pid"], said["what"]) == (os.getpid(), "fusion")
        assert (said["host"], said["machine"]) == (socket.gethostname(), machine())
        claim.require()
    assert list(folder.glob("*.json")) == []


def test_a_refusal_leaves_the_holder_as_it_is(locks, folder):
    with locks.hold(NAME, "fusion"):
        before = holder_of(folder)
        refused(Locks(folder), NAME, "other")
        assert holder_of(folder)["token"] == before["token"]
        refused(Locks(folder), NAME, "other")


def test_a_holder_beats(locks, folder):
    with locks.hold(NAME, "fusion"):
        seen, end = set(), time.monotonic() + 5
        while len(seen) < 3 and time.monotonic() < end:
            seen.add(holder_of(folder)["beat"])
            time.sleep(0.005)
    assert len(seen) == 3


def test_a_disk_that_is_full_between_beats_does_not_stop_the_work(locks, folder, monkeypatch):
    with locks.hold(NAME, "fusion") as claim:
        failed = threading.Event()

        def full(*_, **__):
            failed.set()
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module.atomic, "write_bytes", full)
            assert failed.wait(5)
        before, end = holder_of(folder)["beat"], time.monotonic() + 5
        while holder_of(folder)["beat"] == before and time.monotonic() < end:
            time.sleep(0.005)
        assert holder_of(folder)["beat"] > before
        claim.require()


def test_parts_are_held_side_by_side(locks, folder):
    with (
        locks.hold(NAME, "fusion", Part(1, 3)),
        locks.hold(NAME, "fusion", Part(2, 3)),
        locks.hold(NAME, "fusion", Part(3, 3)),
    ):
        assert len(list(folder.glob("*.json"))) == 3
        assert "part 2/3 of fusion is being made" in refused(locks, NAME, "fusion", Part(2, 3))
        refused(locks, NAME, "fusion")
        refused(locks, NAME, "fusion", Part(1, 2))
        with locks.hold(OTHER, "other"), locks.hold(OTHER + "c", "other", Part(1, 2)):
            pass
    assert list(folder.glob("*.json")) == []
    with locks.hold(NAME, "fusion"):
        pass


def test_a_part_is_refused_while_the_whole_is_held(locks):
    with locks.hold(NAME, "fusion"):
        assert "fusion is being made by process" in refused(locks, NAME, "fusion", Part(1, 2))
    with locks.hold(NAME, "fusion", Part(1, 2)):
        pass


def test_a_refused_part_leaves_nothing_held(locks, folder):
    with locks.hold(NAME, "fusion"):
        refused(locks, NAME, "fusion", Part(1, 2))
        assert [p.name for p in folder.glob("*.json")] == [f"{NAME}.json"]
    with locks.hold(NAME, "fusion"):
        pass


def test_parts_take_turns(locks):
    with locks.hold(NAME, "fusion", Part(1, 2)), locks.hold(NAME, "fusion", Part(2, 2)):
        for _ in range(2):
            with (
                locks.turn(NAME, "fusion"),
                pytest.raises(LockedError),
                locks.turn(NAME, "fusion"),
            ):
                pytest.fail("two have the turn")


def test_a_part_waits_for_its_turn(locks, monkeypatch):
    monkeypatch.setattr(module, "TURN", 10.0)
    order, had = [], threading.Event()

    def first():
        with locks.turn(NAME, "fusion"):
            had.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    had.wait()
    with locks.turn(NAME, "fusion"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_item_is_of_exactly_one_part(count):
    parts = [Part(k + 1, count) for k in range(count)]
    for position in range(20):
        assert sum(part.has(position) for part in parts) == 1
    assert [str(part) for part in parts] == [f"{k + 1}/{count}" for k in range(count)]


# other machines


def test_a_silent_holder_elsewhere_is_waited_for_and_taken_over(locks, folder):
    from_elsewhere(folder)
    said = []
    begin = time.monotonic()
    with locks.hold(NAME, "fusion", say=said.append) as claim:
        assert time.monotonic() - begin >= 0.1
        assert claim.took_over.startswith("process 7 on far since 2024-01-01 did not finish fusion")
        assert holder_of(folder)["pid"] == os.getpid()
    assert len(said) == 1
    assert "fusion was held by process 7 on far since 2024-01-01; waiting 0 s" in said[0]


@pytest.mark.parametrize("change", [{"beat": 4}, {"token": "u"}])
def test_a_holder_elsewhere_that_beats_is_not_disturbed(locks, folder, monkeypatch, change):
    from_elsewhere(folder)
    real = time.sleep

    def meanwhile(seconds):
        from_elsewhere(folder, **change)
        real(seconds)

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    assert "being made by process 7 on far" in refused(locks, NAME, "fusion")
    assert holder_of(folder)["host"] == "far"
    monkeypatch.undo()
    with FileLock(folder / f"{NAME}.lock", timeout=0):  # nothing is left held here
        pass


def test_a_holder_elsewhere_that_ends_well_is_not_taken_over(locks, folder, monkeypatch):
    from_elsewhere(folder)
    real = time.sleep

    def meanwhile(seconds):
        (folder / f"{NAME}.json").unlink(missing_ok=True)
        real(seconds)

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    with locks.hold(NAME, "fusion") as claim:
        assert claim.took_over is None


def test_a_part_held_elsewhere_refuses_the_whole(locks, folder, monkeypatch):
    from_elsewhere(folder, f"{NAME}.part-1-of-2")
    (folder / f"{NAME}.part-1-of-2.lock").touch()
    beats, real = iter(range(10, 1000)), time.sleep

    def meanwhile(seconds):
        from_elsewhere(folder, f"{NAME}.part-1-of-2", beat=next(beats))
        real(seconds)

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    assert "a part of fusion is being made by process 7" in refused(locks, NAME, "fusion")
    assert holder_of(folder, f"{NAME}.part-1-of-2")["host"] == "far"


def test_a_claim_that_another_machine_took_is_not_used(locks, folder):
    with locks.hold(NAME, "fusion") as claim:
        claim.require()
        from_elsewhere(folder)
        with pytest.raises(LockedError, match="taken over by process 7 on far"):
            claim.require(now=True)


def test_a_claim_whose_file_is_gone_is_not_used(locks, folder):
    with locks.hold(NAME, "fusion") as claim:
        for path in folder.glob("*.json"):
            path.unlink()
        with pytest.raises(LockedError, match="taken over by another process"):
            claim.require(now=True)


def test_what_holders_read_is_known(locks, folder):
    with locks.hold(NAME, "fusion", uses=["work/infer/a"]):
        assert list(locks.in_use()) == ["work/infer/a"]
        assert f"process {os.getpid()}" in locks.in_use()["work/infer/a"]
    assert locks.in_use() == {}


def test_a_taken_claim_leaves_the_file_to_who_took_it(locks, folder):
    with locks.hold(NAME, "fusion"):
        from_elsewhere(folder)
    assert holder_of(folder)["host"] == "far"  # and its file is left to it


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL"])
def test_where_the_file_system_has_no_locks_the_beat_decides(locks, folder, monkeypatch, error):
    number = getattr(errno, error)

    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with locks.hold(NAME, "fusion"):
        assert f"process {os.getpid()}" in refused(locks, NAME, "fusion")
    with locks.hold(NAME, "fusion") as claim:
        assert claim.took_over is None
    from_elsewhere(folder, machine=machine())
    with locks.hold(NAME, "fusion") as claim:
        assert "process 7" in claim.took_over


def under_way(locks):
    """Return what other commands need, as another process sees it."""
    return Locks(locks.folder, beat=0.02, patience=0.1).needed()


def test_what_a_command_needs_is_known_while_it_runs(locks):
    needs = Needs(frozenset(["infer-a"]), frozenset(["infer-b"]), frozenset(["fusion"]))
    with locks.needing() as say:
        assert [n.everything for n in under_way(locks).values()] == [True]
        say(needs)
        assert list(under_way(locks).values()) == [needs]
        assert f"process {os.getpid()} on" in next(iter(under_way(locks)))
        assert locks.needed() == {}  # its own
        time.sleep(0.1)  # some beats
        assert list(under_way(locks).values()) == [needs]
    assert under_way(locks) == {}
    assert list(locks.folder.glob("command-*")) == []


def test_a_command_that_was_killed_needs_nothing(locks, folder):
    code = (
        "import sys, os; from pathlib import Path; from ensdistill.pipeline.locks import Locks\n"
        "with Locks(Path(sys.argv[1])).needing(): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(folder.glob("command-*.json"))
    assert under_way(locks) == {}
    assert list(folder.glob("command-*")) == []


def test_a_command_of_another_machine_counts_while_it_beats(locks, folder):
    with locks.needing():
        (file,) = folder.glob("command-*.json")
        holder = json.loads(file.read_bytes())
    file.write_text(json.dumps(holder | {"machine": "far", "host": "far"}))
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.01):
            count += 1
            fresh = holder | {"machine": "far", "host": "far", "beat": count}
            file.with_suffix(".new").write_text(json.dumps(fresh))
            file.with_suffix(".new").replace(file)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        assert [n.everything for n in under_way(locks).values()] == [True]
    finally:
        stop.set()
        beating.join()
    assert under_way(locks) == {}  # after the patience
    assert not file.exists()


@pytest.mark.parametrize("needs", [None, 3, [], "x", {}, {"everything": 1}, {"everything": None}])
def test_what_is_not_clear_is_everything_or_nothing_and_no_error(locks, folder, needs):
    with locks.needing():
        (file,) = folder.glob("command-*.json")
        file.write_text(json.dumps({"needs": needs, "uses": needs, "pid": [], "host": {}}))
        (found,) = under_way(locks).values()
        assert found.everything == (needs != {"everything": None})
        assert locks.in_use() == {}
        assert locks.busy("x") is None


def test_a_lock_that_is_a_link_is_refused(locks, folder, tmp_path):
    folder.mkdir(parents=True)
    (folder / f"{NAME}.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link to"), locks.hold(NAME, "fusion"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.timeout(20)
def test_a_holder_that_is_a_pipe_is_none(locks, folder):
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"{NAME}.json")
    assert locks.busy(NAME) is None
    assert locks.in_use() == {}


def test_where_nothing_can_be_written_nothing_is_said(locks, folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(folder), "mkdir", refuse)
    with locks.needing() as say:
        say(Needs())
    assert not folder.exists()


def test_many_that_are_gone_are_waited_for_once(locks, folder):
    with locks.needing():
        (file,) = folder.glob("command-*.json")
        holder = json.loads(file.read_bytes())
    for k in range(20):
        (folder / f"command-{k}.json").write_text(json.dumps(holder | {"machine": "far"}))
    said = []
    begin = time.monotonic()
    found = Locks(folder, beat=0.02, patience=0.3).needed(said.append, wait=False)
    assert [needs.everything for needs in found.values()] == [True]  # all of one name
    assert said == []
    assert Locks(folder, beat=0.02, patience=0.3).needed(said.append) == {}
    assert time.monotonic() - begin < 3
    assert len(said) == 1 and "20 commands" in said[0]
    assert list(folder.glob("command-*")) == []


def test_what_cannot_be_looked_at_counts(locks, folder):
    (folder / "command-x.lock").mkdir(parents=True)
    assert [needs.everything for needs in locks.needed().values()] == [True]
    (folder / "x.json").write_text('{"uses": ["a\\u0000b", "c"]}')
    assert list(locks.in_use()) == ["c"]


def test_two_commands_of_one_process_both_count(locks):
    first, second = Needs(frozenset("a"), stages=frozenset("x")), Needs(reads=frozenset("b"))
    with locks.needing() as say, Locks(locks.folder).needing() as also:
        say(first)
        also(second)
        (found,) = under_way(locks).values()
        assert found == first | second
        assert found.has("x", "c") and found.has("y", "a") and found.takes("b")
        assert not found.has("y", "c") and not found.takes("a")
