"""What reaches a terminal: names are shown, never obeyed; and every end of a command is a line."""

import ast
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.text import Text

from ensdistill.cli import failures, grid, screen
from ensdistill.cli.__main__ import main
from ensdistill.cli.progress import Display
from ensdistill.pipeline.errors import DataError, raise_all

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shell(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ensdistill.cli", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        env=os.environ | environment,
    )


def test_one_module_prints():
    for path in (ROOT / "cli").rglob("*.py"):
        if path.name in ("screen.py", "progress.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "click.echo", "click.secho", "sys.stdout.write"), path


@pytest.mark.parametrize("name", [ESCAPE, "a\nall is well", "\u202egnp", "\udcdf", "\r50 %", "[/]"])
def test_names_are_shown(name, capsys):
    screen.echo(f"{name}: 3 images")
    Display().say(f"warning: {name}")
    table = grid.Table(title=name)
    table.add_column(f"a column that is wider: {name}")
    table.add_row(name)
    table.add_row(Text(name, style="bold"))
    grid.print_table(table)
    screen.echo_json({name: [name]})
    out, err = capsys.readouterr()
    assert not RAW.search(out + err)
    lines = out[: out.index("{")].splitlines()
    assert len(lines) == 5 and len(err.splitlines()) == 1
    assert json.loads(out[out.index("{") :]) == {name: [name]}


@pytest.mark.parametrize("name", ["[red]a[/red]", "[/]", "[link=file:///x]y[/link]", ":car:", "[a"])
def test_markup_of_a_table_is_text(name, capsys):
    table = grid.Table(title=name)
    table.add_column(f"of {name}")
    table.add_row(name)
    grid.print_table(table)
    assert [row.strip() for row in capsys.readouterr().out.splitlines()] == [
        name,
        f"of {name}",
        name,
    ]


def test_json_is_ascii_that_is_shown(capsys):
    value = ["\x7f", "\x9b2J", "\u202e", "ü", "\udcdf"]
    screen.echo_json(value)
    out = capsys.readouterr().out
    assert out.isascii() and "\x7f" not in out and json.loads(out) == value


def test_our_own_colours_reach_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = grid.Table()
    table.add_column("")
    table.add_row(Text(f"fresh{ESCAPE}", style="green"))
    grid.print_table(table)
    out = capsys.readouterr().out
    assert "\x1b[32mfresh\\x1b[2J" in out and "\x1b[2J" not in out


def test_the_lines_of_an_error_are_told_from_those_of_a_name():
    with pytest.raises(DataError) as found:
        raise_all(["a\nall is well: wrong", "b: wrong"], DataError)
    lines = failures.told(found.value)
    assert [screen.line(line) for line in lines] == [
        "error: 2 problems:",
        r"  a\nall is well: wrong",
        "  b: wrong",
    ]
    assert str(found.value) == "2 problems:\n  a\nall is well: wrong\n  b: wrong"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("run `ensdistill fuse` first", "run `ensdistill fuse -c 'my file.yaml'` first"),
        ("`ensdistill verify --repair`", "`ensdistill verify --repair -c 'my file.yaml'`"),
        ("`ensdistill fuse -c x.yaml`", "`ensdistill fuse -c x.yaml`"),
        ("`ensdistill fuse --config x.yaml`", "`ensdistill fuse --config x.yaml`"),
        ("begun with `ensdistill init`", "begun with `ensdistill init`"),
        ("written by ensdistill", "written by ensdistill"),
    ],
)
def test_advice_names_the_experiment_file(text, expected):
    assert screen.advised(text, {"config": Path("my file.yaml")}) == expected
    assert screen.advised(text, {"config": Path("experiment.yaml")}) == text
    assert screen.advised(text, None) == text


def test_advice_of_an_error_names_the_experiment_file(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", "labels", "-o", str(tmp_path / "out"), "-c", str(world.file)])
    assert f"`ensdistill fuse -c {world.file}` first" in capsys.readouterr().err


def test_advice_in_a_table_names_the_experiment_file(world, capsys):
    world.call("infer-teacher")
    for index in (world.root / "work/infer").glob("*/manifest.json"):
        index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(SystemExit):
        main(["status", "-c", str(world.file)])
    out = capsys.readouterr().out
    assert f"`ensdistill verify --repair -c {world.file}`" in out


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["evalute"], "did you mean 'evaluate'?"),
        (["infer"], "did you mean 'infer-teacher'?"),
        (["export", "label"], "did you mean 'labels'?"),
        (["xyz"], "there are init, "),
    ],
)
def test_a_command_that_is_none_is_compared_with_those_that_are(arguments, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and meant in capsys.readouterr().err


def failing(error, monkeypatch, capsys, *options):
    """Return what is said where `status` fails with an error, and the exit status."""

    def load(*_, **__):
        raise error

    monkeypatch.setattr("ensdistill.stages.graph.load", load)
    with pytest.raises(SystemExit) as ended:
        main([*options, "status"])
    return ended.value.code, capsys.readouterr().err


def odd(kind, *arguments):
    """Return an error of a class of that name that derives from no Exception."""
    return type(kind, (BaseException,), {})(*arguments)


@pytest.mark.parametrize(
    "error, texts",
    [
        (OSError(errno.ENOSPC, "No space left", "/w/a"), ["/w/a: No space left", "make room"]),
        (PermissionError(errno.EACCES, "Permission denied", b"/w/a"), ["/w/a: Perm", "access"]),
        (OSError(errno.EROFS, "Read-only", "/w/a", None, "/w/b"), ["/w/a -> /w/b: Read-only"]),
        (OSError(errno.EMFILE, "Too many open files", "/w/a"), ["/w/a", "ulimit -n"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 9), ["shorter name"]),
        (OSError("no number"), ["error: no number"]),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ["a process", "has ended", "Broken pipe"]),
        (MemoryError(), ["memory ran out", "batch_size"]),
        (odd("OutOfMemoryError", "CUDA out of memory"), ["memory ran out: CUDA out of memory"]),
        (RecursionError("maximum recursion depth"), ["too deep in itself"]),
        (
            ValueError(f"of {ESCAPE}\nforged"),
            ["ValueError: of \\x1b[2J", "report", "ensdistill -v"],
        ),
        (UnicodeEncodeError("utf-8", "\udcdf", 0, 1, "why"), ["UnicodeEncodeError", "report"]),
        (odd("PanicException", "x" * 9999), ["PanicException: xxx", "report"]),
        (DataError(f"{ESCAPE}\nforged: wrong"), ["error: \\x1b[2J\\x1b]0;owned\\x07\\nforged"]),
    ],
)
def test_whatever_ends_a_command_is_one_sentence(error, texts, monkeypatch, capsys):
    code, said = failing(error, monkeypatch, capsys)
    assert code == 1 and said.count("\n") == 1 and said.startswith("error: ")
    assert all(text in said for text in texts), said
    assert not RAW.search(said) and len(said) < 900 and "Traceback" not in said


def test_a_traceback_that_is_asked_for_is_shown_too(monkeypatch, capsys):
    _, said = failing(ValueError(ESCAPE), monkeypatch, capsys, "-v")
    assert said.startswith("Traceback") and not RAW.search(said)


def test_wrong_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["status", f"--{ESCAPE}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "\\x1b[2J" in said and not RAW.search(said)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_no_encoding_of_a_terminal_is_too_narrow(world, encoding):
    image = world.root / "images/train/train_000000_000019.png"
    for name in ("東.png".encode(), b"stra\xdfe.png"):
        image.with_name(os.fsdecode(name)).write_bytes(image.read_bytes())
    done = shell("check", "-c", world.file, PYTHONIOENCODING=encoding)
    assert done.returncode == 1 and done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 3 and b"stra\\xdfe" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stdout_is_named():
    with Path("/dev/full").open("wb") as full:
        done = shell("doctor", stdout=full)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: standard output: No space left on device")


def test_who_has_read_enough_ends_a_command_without_a_word():
    out, into = os.pipe()
    os.close(out)
    done = shell("--help", stdout=into)
    assert done.returncode == 1 and done.stderr == b""
    done = shell("doctor", "--json", stdout=into)
    assert done.returncode == 1 and done.stderr == b""
    os.close(into)


def test_a_closed_stdout_is_no_fault():
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", sys.executable, "-m", "ensdistill.cli", "status"],
        check=False,
        cwd="/",
    )
    assert done.returncode == 2


CLASSES = ["[red]road\x1b[31m|\n| x | y |", "$car<b>:car:\u202e"]


def test_classes_are_shown_wherever_they_are_named(world, tmp_path, capsys):
    rows = [{"name": n, "colour": [9 * k, 0, 0]} for k, n in enumerate(CLASSES)]
    (world.root / "classes.yaml").write_text(yaml.safe_dump({"classes": rows}))
    world.settings["classes"] = {"table": "classes.yaml"}
    world.settings["fusion"] = {"method": "majority"}
    world.settings["target"]["val"]["ids"] = "train_ids"
    world.write()
    for file in world.root.glob("[tl]*/**/*.png"):
        with Image.open(file) as image:
            ids = np.asarray(image) % 2
        Image.fromarray(ids).save(file)
    table, out = tmp_path / "t.md", tmp_path / "out"
    for command in (
        ["check"],
        ["evaluate", "--upstream", "-o", str(table)],
        ["evaluate", "-o", str(table)],  # and is known again
        ["report"],
        ["export", "labels", "-o", str(out)],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "-c", str(world.file)])
        said = "".join(capsys.readouterr())
        assert not ended.value.code and not RAW.search(said), said
    for file in (table, out / "README.md", world.root / "work/report.html"):
        assert not RAW.search(file.read_text())
        assert file.suffix == ".html" or "\n| x | y |" not in file.read_text()
    head = table.read_text().splitlines()[2]
    assert head.startswith(r"| method | [red]road\x1b[31m\|\n\| x \| y \| | $car<b>:car:\u202e |")


def test_advice_can_be_pasted(world, tmp_path, capsys):
    file = world.file.rename(world.file.with_name("my file.yaml"))
    for command in (["explain", "fusion", "-c", file], ["init", "-o", tmp_path / "an other.yaml"]):
        with pytest.raises(SystemExit):
            main(list(map(str, command)))
    out = capsys.readouterr().out
    assert f" -c '{file}'\n" in out and f"check -c '{tmp_path / 'an other.yaml'}'`" in out
