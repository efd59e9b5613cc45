"""What is seen of progress, at a terminal and in a log, whatever else is written meanwhile."""

import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from screens import COLUMNS, at_terminal

from ensdistill.cli import noise, progress
from ensdistill.cli.progress import Bar, Display, display
from ensdistill.stages.work.warned import Warned

NOISY = """
import logging, os, subprocess, sys, threading, time, warnings
from ensdistill.cli.progress import display

with display() as shown:
    bar = shown.bar("one")
    bar.start(4, 0, "images")
    for k in range(4):
        print(f"printed {k}")
        os.write(1, b"by a C library on stdout\\n")
        os.write(2, b"by a C library on stderr\\n")
        subprocess.run(["sh", "-c", "echo by a child; echo by it on stderr >&2"])
        logging.getLogger("some.library").warning("logged of image %d", k)
        logging.getLogger("some.library").info("of no interest")
        thread = threading.Thread(target=lambda: warnings.warn("a warning of a thread"))
        thread.start()
        thread.join()
        warnings.warn_explicit("old", FutureWarning, logging.__file__, 1)
        warnings.warn("of the user's own", FutureWarning)
        warnings.warn_explicit("older", DeprecationWarning, logging.__file__, 1)
        if os.fork() == 0:
            warnings.warn("of a forked one")
            os._exit(0)
        os.wait()
        sys.stderr.write("\\r10 %\\r20 %\\r\\x1b[2J30 %\\n")
        bar.advance(note="a note")
        time.sleep(0.12)
    os.write(2, b"the same\\n" * 5)
    for k in range(3):
        sys.stderr.write(f"part {k} ")
    sys.stderr.write("of a line\\n")
print("the result")
"""


@pytest.fixture
def noisy(tmp_path):
    """A command that shows progress while much else is written."""
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    return [sys.executable, str(file)]


def others(rows):
    """Check what is said of warnings, and return the other rows that are not empty."""
    found = [row for row in rows if row.startswith("warning: ")]
    for text in ("logged of image 0", "a warning of a thread", "of the user's own"):
        first, again = (row for row in found if text in row)
        assert re.fullmatch(rf"warning: {text} \(/.*noisy.py:\d+\)", first)
        assert again == f"{first} ... 3 more times"
    forked = [row for row in found if "of a forked one" in row]
    assert (len(forked), len(found)) == (4, 10)  # forks do not know of each other
    return [row for row in rows if row and row not in found]


def test_nothing_gets_between_the_bars(noisy):
    status, rows = at_terminal(noisy)
    assert status == 0
    *rest, bar, result = others(rows)
    assert bar.startswith("one ━━━━") and bar.endswith(" 4/4 images a note")
    assert result == "the result"
    of_image = ["by a C library on stdout", "by a C library on stderr"]
    of_image += ["by a child", "by it on stderr", "30 %"]
    expected = [line for k in range(4) for line in (f"printed {k}", *of_image)]
    assert rest == [*expected, "the same", "... 4 more times", "part 0 part 1 part 2 of a line"]


@pytest.mark.parametrize("terminal", [True, False])
def test_only_results_are_on_stdout(noisy, tmp_path, terminal):
    with (tmp_path / "out").open("w+") as out:
        if terminal:
            status, rows = at_terminal(noisy, stdout=out)
        else:
            ended = subprocess.run(noisy, stdout=out, stderr=subprocess.PIPE, text=True, check=True)
            status, rows = ended.returncode, ended.stderr.splitlines()
            assert "━" not in ended.stderr
    assert status == 0
    assert (tmp_path / "out").read_text() == "the result\n"
    assert "printed 3" in others(rows)


def test_with_v_nothing_is_hidden(noisy):
    noisy[1:1] = ["-W", "always"]
    Path(noisy[-1]).write_text(VERBOSE)
    status, rows = at_terminal(noisy)
    assert status == 0
    text = "\n".join(rows)
    for kind in ("FutureWarning: old", "DeprecationWarning: older", "UserWarning: a warning of"):
        assert text.count(kind) == 4
    assert "warning: " not in text
    assert sum("━" in row for row in rows) == 1


VERBOSE = NOISY.replace(
    "with display() as shown:",
    """import click
from ensdistill.cli.__main__ import cli

context = click.Context(cli)
context.params["verbose"] = True
with context, display() as shown:""",
)


def test_a_fork_waits_for_no_thread_that_it_lacks(monkeypatch, capfd):
    said = []
    told = noise._Told(said.append)
    monkeypatch.setattr(os, "getpid", lambda: -1)

    def warn():
        for k in range(3):
            told.hear(Warned(f"image {k} is odd", "UserWarning", "m.py", 3))

    with told._lock:
        thread = threading.Thread(target=warn, daemon=True)
        thread.start()
        thread.join(10)
    assert not said
    assert capfd.readouterr().err == "warning: image 0 is odd (m.py:3)\n"


def script(*lines):
    head = ["import ctypes, os, sys, time", "from ensdistill.cli.progress import display"]
    return [sys.executable, "-c", "\n".join([*head, *lines])]


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), 9)", "ctypes.string_at(0)"])
def test_the_last_words_of_a_process_that_dies_are_shown(end):
    status, rows = at_terminal(
        script(
            "with display() as shown:",
            "    shown.bar('one').start(4, 0, 'images')",
            "    os.write(2, b'the reason\\nof it')",
            f"    {end}",
        )
    )
    assert status < 0
    text = "\n".join(rows)
    assert "the reason\nof it" in text


def test_a_terminal_obeys_nothing_in_a_name():
    status, rows = at_terminal(
        script(
            "with display() as shown:",
            "    bar = shown.bar('\\x1b[2Jone')",
            "    bar.start(4, 0, 'images')",
            "    bar.advance(note='\\x1b[2J noted')",
            "    shown.say('warning: \\x1b]0;owned\\x07 [red]a[/] \\u202e \\nforged')",
            "    time.sleep(0.2)",
        )
    )
    assert status == 0
    assert r"warning: \x1b]0;owned\x07 [red]a[/] \u202e \nforged" in rows
    (bar,) = [row for row in rows if row.startswith(r"\x1b[2Jone ")]
    assert r"\x1b[2J noted" in bar


def test_an_error_comes_after_the_bars():
    status, rows = at_terminal(
        script(
            "with display() as shown:",
            "    shown.bar('one').start(4, 0, 'images')",
            "    sys.stderr.write('before it')",
            "    raise ValueError('the error')",
        )
    )
    assert status == 1
    rows = [row for row in rows if row]
    assert rows[-1] == "ValueError: the error"
    assert sum(row.startswith("one ") for row in rows) == 1
    assert rows.index("before it") < rows.index("Traceback (most recent call last):")


def test_much_noise_by_code_that_holds_the_interpreter_blocks_nothing():
    status, rows = at_terminal(
        script(
            "library = ctypes.PyDLL(None)",
            "with display() as shown:",
            "    for k in range(5000):",
            "        library.write(2, b'x' * 79 + b'\\n', 80)",
            "    library.write(2, b'y' * 200000 + b'\\n', 200001)",
            "print('done')",
        )
    )
    assert (status, rows[-2:]) == (0, ["done", ""])
    assert sum(row.count("y") for row in rows) == 200000
    assert "x" * 79 in rows


def test_who_writes_on_and_on_keeps_nobody():
    status, rows = at_terminal(
        script(
            "import subprocess",
            "with display() as shown:",
            "    shown.bar('one').start(4, 0, 'images')",
            "    loop = 'while :; do echo going; echo on; sleep 0.001; done >&2'",
            "    child = subprocess.Popen(['sh', '-c', loop])",
            "    time.sleep(0.1)",
            "time.sleep(0.3)",
            "lives = child.poll() is None",
            "child.kill()",
            "child.wait()",
            "sys.exit(0 if lives else 'it was stopped')",
        )
    )
    assert (status, rows[-2:]) in ((0, ["going", ""]), (0, ["on", ""]))
    assert sum(row.startswith("one ") for row in rows) == 1


def test_thousands_of_lines_cost_little():
    _, rows = at_terminal(
        script(
            "with display() as shown:",
            "    shown.bar('one').start(4, 0, 'images')",
            "    begin = time.process_time()",
            "    for k in range(5000):",
            "        os.write(2, b'%d\\n' % k)",
            "print('seconds', time.process_time() - begin)",
        )
    )
    assert rows[:5000] == [str(k) for k in range(5000)]
    assert float(rows[-2].split()[1]) < 1  # line by line it takes eight


def test_a_file_that_took_the_place_of_stdout_is_left_alone(tmp_path):
    code = script(
        f"file = open({str(tmp_path / 'file')!r}, 'w')",
        "assert file.fileno() == 1",
        "with display() as shown:",
        "    print('lost')",
        "    file.write('kept')",
        "    file.flush()",
    )
    subprocess.run(["sh", "-c", '"$@" >&-', "sh", *code], check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "file").read_text() == "kept"


def test_the_size_is_that_of_the_terminal_where_stdin_is_none():
    lines = ["with display() as shown:", "    shown.bar('b').start(1, 0, 'images')"]
    lines += ["    print(shown.bars.console.size.width)"]
    _, rows = at_terminal(script(*lines), stdin=subprocess.DEVNULL)
    assert str(COLUMNS) in rows


def test_what_is_at_work_is_in_view_below_many_that_are_done():
    _, rows = at_terminal(
        script(
            "with display() as shown:",
            "    for k in range(40):",
            "        bar = shown.bar(f'node-{k}')",
            "        bar.start(3, 0, 'images')",
            "        bar.advance(3 if k < 39 else 1)",
            "        time.sleep(0.01)",
            "    time.sleep(0.2)",
            "    os._exit(0)",  # as the screen is while it works
        ),
        rows=24,
    )
    shown = [row.split(" ")[0] for row in rows if row.startswith("node-")]
    assert shown[-1] == "node-39"
    assert 8 <= len(shown) <= 24


def test_a_bar_that_begins_anew_leaves_none_behind():
    _, rows = at_terminal(
        script(
            "with display() as shown:",
            "    bars = [shown.bar(f'node-{k}') for k in range(9)]",
            "    for bar in bars:",
            "        bar.start(2, 0, 'cached images')",
            "        bar.advance(2)",
            "    bars[0].start(7, 1, 'steps')",  # it had made room for the others
            "    bars[0].advance(2)",
            "    bars[8].start(0, 0, 'images')",
        ),
        rows=12,
    )
    rows = [row.split(maxsplit=2) for row in rows if row.startswith("node-")]
    shown = {name: text for name, _, text in rows}
    assert (shown["node-0"], shown["node-8"]) == ("3/7 steps", "0/0 images")
    assert len(shown) == len(rows) <= 12


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def done(clock, bar, seconds, count=1, **more):
    clock.now += seconds
    bar.advance(count, **more)
    return bar.course()


def test_a_course_begins_with_the_second_unit(clock):
    bar = Bar(Display(), "infer[a]")
    assert bar.course() == ""
    bar.start(500, 120, "images")
    assert (bar.counted(), bar.course()) == ("120/500 images", "")
    clock.now += 12
    assert bar.course() == "nothing for 12 s"
    assert done(clock, bar, 30) == ""
    assert done(clock, bar, 4.2) == "4.2 s an image, 26 min 28 s left"
    clock.now += 12.5
    assert bar.course() == "4.2 s an image, 26 min 23 s left"
    clock.now += 0.2
    assert bar.course() == "4.2 s an image, nothing for 13 s"
    assert bar.counted() == "122/500 images"
    assert done(clock, bar, 0, 378, note="loss 1.2").endswith("/s, loss 1.2")


def test_a_second_beginning_forgets_the_first(clock):
    bar = Bar(Display(), "student")
    bar.start(10, 0, "cached images")
    for _ in range(10):
        done(clock, bar, 1)
    bar.start(800, 0, "steps")
    assert (bar.counted(), bar.course()) == ("0/800 steps", "")
    done(clock, bar, 20)
    assert done(clock, bar, 2) == "2.0 s a step, 26 min 36 s left"


@pytest.mark.parametrize(("total", "done_before"), [(0, 0), (7, 7)])
def test_there_may_be_nothing_to_do(clock, total, done_before):
    bar = Bar(Display(), "x")
    bar.start(total, done_before, "images")
    clock.now += 1e6
    assert (bar.course(), bar.news()) == ("", None)


def test_bytes_are_said_as_such(clock):
    bar = Bar(Display(), "verify")
    bar.start(4_000_000_000, 0, "bytes")
    for _ in range(5):
        text = done(clock, bar, 1, 118_000_000)
    assert bar.counted() == "590 MB of 4.0 GB"
    assert text == "118 MB/s, 29 s left"


def test_a_log_hears_of_what_was_done_and_of_long_silence(clock):
    bar = Bar(Display(), "infer[a]")
    assert bar.news() is None
    bar.start(500, 0, "images")
    said = []
    for second in range(0, 1000, 15):
        if second in (600, 615, 630):
            bar.advance()
        if (line := bar.news()) is not None:
            said.append((second, line))
        clock.now += 15
    assert said == [
        (60, "infer[a]: 0/500 images, nothing for 60 s"),
        (120, "infer[a]: 0/500 images, nothing for 2 min 00 s"),
        (240, "infer[a]: 0/500 images, nothing for 4 min 00 s"),
        (480, "infer[a]: 0/500 images, nothing for 8 min 00 s"),
        (600, "infer[a]: 1/500 images"),
        (615, "infer[a]: 2/500 images, 15 s an image, 2 h 04 min left"),
        (630, "infer[a]: 3/500 images, 15 s an image, 2 h 04 min left"),
        (690, "infer[a]: 3/500 images, 15 s an image, nothing for 60 s"),
        (750, "infer[a]: 3/500 images, 15 s an image, nothing for 2 min 00 s"),
        (870, "infer[a]: 3/500 images, 15 s an image, nothing for 4 min 00 s"),
    ]


def test_a_log_is_written_while_the_block_works(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.02)
    with display() as shown:
        one, other = shown.bar("one"), shown.bar("other")
        one.start(3, 0, "images")
        other.start(9, 4, "files")
        for _ in range(2):
            one.advance()
            time.sleep(0.1)
    assert capsys.readouterr() == ("", "one: 1/3 images\none: 2/3 images\n")


def test_a_display_leaves_all_as_it_was():
    def state():
        hooks = warnings.showwarning, logging.lastResort, list(warnings.filters)
        return sys.stdout, sys.stderr, os.fstat(1), os.fstat(2), hooks, threading.enumerate()

    before = state()
    with pytest.raises(KeyboardInterrupt), display():
        assert state() != before
        raise KeyboardInterrupt
    assert state() == before


def test_every_bar_of_a_run_ends_full(world, monkeypatch):
    bars, bar_of = [], Display.bar

    def bar(display, name):
        bars.append(bar_of(display, name))
        return bars[-1]

    monkeypatch.setattr(Display, "bar", bar)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("run")
    found = {bar.name: bar.counted() for bar in bars}
    assert found["infer[a]@val"] == "3/3 images"
    assert found["student"] == "6/6 steps"
    assert found["evaluation@val"] == "3/3 images"
    for counted in found.values():
        done, total = counted.split()[0].split("/")
        assert done == total
