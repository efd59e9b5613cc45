"""Work that is spread over processes: everything once, nothing lost, nobody left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from tasks import Task, UnsendableError
from worlds import World, files_of

from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.stages.work import items
from ensdistill.stages.work.items import for_each
from ensdistill.stages.work.warned import issue, kept

IDS = [f"image-{k:03}" for k in range(40)]


class Counter:
    def __init__(self):
        self.count = 0

    def advance(self, count=1, note=""):
        self.count += count


def run(task, ids=IDS, workers=2):
    found, progress = [], Counter()
    try:
        for_each(ids, task, lambda i, r: found.append((i, r)), workers=workers, progress=progress)
    finally:
        assert progress.count == len(found)
    return found


def calls(folder):
    return {p.name: len(p.read_text().split()) for p in folder.iterdir() if p.name != "sent"}


@pytest.mark.parametrize("workers", [0, 1])
def test_without_workers_all_is_done_here_in_order(eager, tmp_path, workers):
    found = run(Task(tmp_path), workers=workers)
    assert [i for i, _ in found] == IDS
    assert {pid for _, (pid, _) in found} == {os.getpid()}
    assert not (tmp_path / "sent").exists()


def test_little_work_starts_no_process(tmp_path):
    assert {pid for _, (pid, _) in run(Task(tmp_path))} == {os.getpid()}


def test_much_work_does(monkeypatch, tmp_path):
    monkeypatch.setattr(items, "STARTING", 0.3)
    found = run(Task(tmp_path, seconds=0.03))
    here = [i for i, (pid, _) in found if pid == os.getpid()]
    assert here == IDS[: len(here)]
    assert 8 <= len(here) <= 12  # a trial of 0.25 s, and the first one beside it
    assert len({pid for _, (pid, _) in found}) == 3


def test_each_item_is_done_once_and_the_work_sent_once_to_each(eager, tmp_path):
    found = run(Task(tmp_path, seconds=0.01), workers=3)
    assert sorted(i for i, _ in found) == IDS
    assert calls(tmp_path) == dict.fromkeys(IDS, 1)
    elsewhere = {pid for _, (pid, _) in found} - {os.getpid()}
    assert 1 <= len(elsewhere) <= 3
    assert len(elsewhere) <= len((tmp_path / "sent").read_text().split()) <= 3


def test_what_workers_warn_of_is_given_here(eager, tmp_path, lenient, capfd):
    with kept() as warned:
        found = run(Task(tmp_path, seconds=0.005, warns="is odd"))
    elsewhere = [pid for _, (pid, _) in found if pid != os.getpid()]
    given = [w for w, times in warned.items() if w.category == "RuntimeWarning" and times == 1]
    assert sorted(w.text for w in given) == [f"{i} is odd" for i in IDS]
    [logged] = warned.keys() - given  # pytest takes what is logged here
    assert (logged.text, logged.category) == ("is odd", "WARNING")
    assert warned[logged] == len(elsewhere) > 0
    assert {Path(w.file).name for w in warned} == {"tasks.py"}
    assert "odd" not in capfd.readouterr().err
    warnings.simplefilter("error")
    with pytest.raises(RuntimeWarning, match="is odd"):
        issue([(given[0], 1)])


def test_workers_have_one_thread_each_and_this_process_as_before(eager, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    threads = {pid: number for _, (pid, number) in run(Task(tmp_path))}
    assert threads.pop(os.getpid()) == "5"
    assert set(threads.values()) == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_what_fails_there_fails_here_and_what_was_done_is_kept(eager, tmp_path):
    found = []
    with pytest.raises(DataError) as stop:
        for_each(
            IDS,
            Task(tmp_path, fails=IDS[32], seconds=0.01),
            lambda i, _: found.append(i),
            workers=2,
            progress=Counter(),
        )
    assert type(stop.value) is DataError
    assert str(stop.value) == "image-032: cannot be read"
    assert "in a worker process" in stop.value.__notes__[0]
    assert found[:2] == IDS[:2]
    assert set(found) >= {*IDS[:2], *IDS[30:32]}  # also what was done before it in its partition
    assert len(set(found)) == len(found)
    assert IDS[32] not in found
    assert_gone(tmp_path)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ((OSError, 28, "No space left", "a.png"), "[Errno 28] No space left: 'a.png'"),
        ((UnsendableError, "a", "b"), "UnsendableError: a and b"),
    ],
)
def test_an_error_comes_as_it_was_or_in_words(eager, tmp_path, raised, expected):
    with pytest.raises((OSError, RuntimeError)) as stop:
        run(Task(tmp_path, raises=(IDS[20], *raised)))
    assert str(stop.value) == expected
    assert getattr(stop.value, "errno", None) == (28 if raised[0] is OSError else None)


def test_a_task_is_a_quarter_of_a_second_of_work(eager, monkeypatch, tmp_path):
    sizes = []
    monkeypatch.setattr(items, "share_out", lambda *arguments: sizes.append(arguments[-1]))
    run(Task(tmp_path, seconds=0.1), IDS)
    run(Task(tmp_path), IDS)
    assert sizes == [2, 32]


def test_a_million_items_are_ten_thousand_tasks(eager, monkeypatch, tmp_path):
    def no_bag(items, partition_size):
        raise InterruptedError(len(items) / partition_size)

    monkeypatch.setattr("dask.bag.from_sequence", no_bag)
    with pytest.raises(InterruptedError) as stop:
        run(Task(tmp_path), [f"{k}" for k in range(1_000_002)])
    assert stop.value.args == (10_000,)


def test_what_fails_here_ends_the_workers(eager, tmp_path):
    def full(item_id, _):
        if item_id == IDS[20]:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        for_each(IDS, Task(tmp_path), full, workers=2, progress=Counter())
    assert_gone(tmp_path)


def test_a_worker_that_was_killed_is_said(eager, tmp_path):
    with pytest.raises(EnsdistillError, match=r"worker process was killed.*runtime\.workers"):
        run(Task(tmp_path, dies=IDS[20]))
    assert_gone(tmp_path)


def test_a_program_without_a_guard_is_told_so(tmp_path):
    (tmp_path / "out").mkdir()
    program = tmp_path / "alone.py"
    program.write_text(ALONE.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, program, tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert 'guard what starts the work by `if __name__ == "__main__":`' in done.stderr
    assert "a worker process could not start" in done.stderr
    assert len(calls(tmp_path / "out")) == 2  # nothing is done in the workers


def assert_gone(folder):
    """Nobody whose number is in a file is alive, after a moment."""
    pids = {int(p) for f in folder.iterdir() if f.name != "sent" for p in f.read_text().split()}
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids - {os.getpid()}):
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ALONE = """
import sys
from pathlib import Path
from tasks import Task, UnsendableError
from ensdistill.stages.work import items
class Silent:
    def advance(self, count=1, note=""): pass
items.TRIAL = items.STARTING = 0.0
if __name__ == "__main__":
    ids = [f"image-{k}" for k in range(400)]
    task = Task(Path(sys.argv[1]), seconds=0.02)
    items.for_each(ids, task, lambda *_: None, workers=2, progress=Silent())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_die_with_their_parent(tmp_path, number):
    (tmp_path / "out").mkdir()
    program = tmp_path / "alone.py"
    program.write_text(ALONE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, program, tmp_path / "out"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(calls(tmp_path / "out")) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert said.count("Traceback") == (number == signal.SIGINT)  # its own, and no worker's
    assert_gone(tmp_path / "out")
    assert len(calls(tmp_path / "out")) < 400


@pytest.mark.slow
def test_artifacts_are_the_same_from_one_process_and_from_several(eager, monkeypatch, tmp_path):
    world = World(tmp_path, train=14, val=4)
    world.settings["runtime"] |= {"workers": 0, "cache": False}
    world.write()
    world.call("check")
    world.call("run")
    expected = contents(world)
    shutil.rmtree(world.root / "work")
    world.settings["runtime"]["workers"] = 2
    world.write()
    spread, started = items.share_out, set()

    def once_each(ids, work, done, workers, progress, most):
        """Starting processes takes longer than the work."""
        made = getattr(work, "make", work)
        name = getattr(getattr(made, "func", made), "__name__", type(made).__name__)
        if name in started:
            return for_each(ids, work, done, workers=0, progress=progress)
        started.add(name)
        spread(ids, work, done, workers, progress)

    monkeypatch.setattr(items, "share_out", once_each)
    world.call("check")
    world.call("run")
    assert started == {"look", "_read", "_fuse", "_Counting"}
    assert contents(world) == expected


def contents(world):
    """All that is published but when, where and how fast."""
    return {
        name: content
        for name, content in files_of(world.root / "work").items()
        if name.endswith((".jsonl", ".0.0", "zarr.json", ".safetensors"))
    }
