"""Teachers whose networks a user's own code builds."""

import json
import os
import py_compile
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from worlds import World

from ensdistill.cli.__main__ import cli

# two repositories whose modules have the same names
MODEL = """
import torch
from torch import nn
from utils import answer

class Constant(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.one = answer() + more

    def forward(self, images):
        print("a message of the user's code")
        logits = torch.zeros(len(images), 19, 3, 4)
        logits[:, self.one] = 1
        return logits

def build(more=0, weights=None):
    return Constant(more)
"""
NAMES = ("road", "sidewalk", "building", "wall", "fence", "pole")


@pytest.fixture
def code(tmp_path):
    """Write a repository whose network answers with one class."""

    def write(name, label):
        root = tmp_path / name
        root.mkdir()
        (root / "model.py").write_text(MODEL)
        (root / "utils.py").write_text(f"def answer():\n    return {label}\n")
        return root

    return write


@pytest.fixture
def world(tmp_path, code):
    world = World(tmp_path)
    world.settings["teachers"] = [entry("p", code("one", 2)), entry("q", code("two", 5))]
    world.settings["policy"] = {"strategy": "manual", "assign": {"building": "p", "pole": "q"}}
    world.write()
    return world


def entry(name, root, **more):
    network = {"factory": "model:build", "root": root.name, **more}
    return {"name": name, "trust": "code", "network": network}


def answered(world, teacher):
    counts = world.artifact(f"infer[{teacher}]").manifest.result["labels"]
    return {name for name, pixels in counts.items() if pixels}


def fingerprints(world):
    return {d["node"]: d["fingerprint"] for d in world.json("status")}


@pytest.mark.slow
def test_two_repositories_with_clashing_modules_teach_together(world):
    world.call("run", "--no-evaluate")
    assert (answered(world, "p"), answered(world, "q")) == ({"building"}, {"pole"})
    runtime = world.artifact("infer[p]").manifest.runtime
    assert runtime["device"] == "cpu"
    assert runtime["torch"] and runtime["hardware"]


@pytest.mark.slow
def test_its_code_its_arguments_and_its_files_are_its_key_and_nothing_else(world):
    weights = world.root / "weights.bin"
    weights.write_bytes(b"1")
    network = world.settings["teachers"][0]["network"]
    network |= {"kwargs": {"more": 0}, "files": {"weights": "weights.bin"}}
    world.write()
    world.call("infer-teacher")
    before = fingerprints(world)

    def changed():
        world.write()
        after = fingerprints(world)
        found = {n for n in before if before[n] != after[n]}
        assert found <= {n for n in before if n.startswith(("infer[p]", "fusion", "student"))}
        return "infer[p]" in found

    utils = world.root / "one" / "utils.py"
    text = utils.read_text()
    utils.write_text(text + "# other words\n")
    assert changed()
    reason = {d["node"]: d["reason"] for d in world.json("status")}["infer[p]"]
    assert reason.startswith("recipe.network.code.utils.py changed from ")
    utils.write_text(text)
    assert not changed()
    (world.root / "one" / "deep").mkdir()
    (world.root / "one" / "deep" / "more.py").write_text("")
    assert changed()
    (world.root / "one" / "deep" / "more.py").unlink()
    (world.root / "one" / "notes.txt").write_text("no code")
    assert not changed()
    weights.write_bytes(b"2")
    assert changed()
    weights.write_bytes(b"1")
    weights.rename(world.root / "renamed.bin")
    network["files"] = {"weights": "renamed.bin"}
    (world.root / "one").rename(world.root / "moved")
    network["root"] = "moved"
    assert not changed()
    network["kwargs"] = {"more": 1}
    assert changed()


@pytest.mark.slow
def test_arguments_and_paths_reach_the_function(world):
    (world.root / "one" / "model.py").write_text(
        MODEL.replace("return Constant(more)", "return Constant(int(open(weights).read()) + more)")
    )
    (world.root / "w.txt").write_text("1")
    network = world.settings["teachers"][0]["network"]
    network |= {"kwargs": {"more": 1}, "files": {"weights": "w.txt"}}
    world.write()
    world.call("infer-teacher", "p")
    assert answered(world, "p") == {NAMES[2 + 1 + 1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("trust"), ["trust: code", "your rights"]),
        (lambda t: t["network"].pop("root"), ["`factory` and `root`"]),
        (lambda t: t["network"].update(factory="model.build"), ["package.module:function"]),
        (lambda t: t["network"].update(hf="x"), ["found ['hf', 'factory']"]),
        (lambda t: t["network"].update(root="nowhere"), ["nowhere", "no module"]),
        (lambda t: t["network"].update(factory="modle:build"), ["modle:build", "no module below"]),
        (lambda t: t["network"].update(files={"weights": "w.pt"}), ["w.pt", "no file"]),
        (lambda t: t["network"].update(factory="model:bulid"), ["bulid"]),
        pytest.param(
            lambda t: t["network"].update(kwargs={"less": 1}), ["less"], marks=pytest.mark.slow
        ),
        pytest.param(
            lambda t: t["network"].update(kwargs={"more": 99}),
            ["IndexError"],
            marks=pytest.mark.slow,
        ),
        (lambda t: t.update(classes="camvid11"), ["19 channels", "table 11"]),
    ],
    ids=lambda value: value if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_by_name(world, change, words):
    change(world.settings["teachers"][0])
    world.write()
    text = world.refuse("infer-teacher", "p")
    for word in words:
        assert word in text
    assert "Error" in text.split(":")[0]
    assert not list(world.root.glob("work/infer/*/manifest.json"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {'out': 1}", ["returned dict", "torch.nn.Module"]),
        ("raise ValueError('no such backbone')", ["ValueError: no such backbone"]),
        pytest.param("import os; os._exit(7)", ["ended with 7"], marks=pytest.mark.slow),
        pytest.param("import missing_package", ["missing_package"], marks=pytest.mark.slow),
    ],
)
def test_a_function_that_fails_is_told_with_its_reason(world, body, words):
    (world.root / "one" / "model.py").write_text(f"def build():\n    {body}\n")
    text = world.refuse("infer-teacher", "p")
    assert text.startswith("DataError")
    for word in words:
        assert word in text


BROKEN = """
def build():
    return inner()

def inner():
    raise RuntimeError("no such\\nbackbone")
"""


@pytest.mark.slow
def test_where_it_fails_is_told_in_the_sentence_and_all_of_it_with_v(world, capfd):
    (world.root / "one" / "model.py").write_text(BROKEN)
    command = [sys.executable, "-m", "ensdistill.cli", "infer-teacher", "p", "-c", world.file]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert said.splitlines()[-1] == (
        f"error: {world.root / 'one'}: RuntimeError: no such backbone (model.py, line 6; "
        "`ensdistill -v` shows all of it)"
    )
    assert "Traceback" not in said
    command.insert(3, "-v")
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "in the process of model:build:\nTraceback (most recent call last):" in said
    assert said.count("in inner") == 1


@pytest.mark.slow
def test_one_mistake_of_several_teachers_is_told_once(world):
    (world.root / "one" / "model.py").write_text(BROKEN)
    teachers = [entry(name, world.root / "one") for name in "pqr"]
    world.settings["teachers"] = teachers
    world.settings["policy"]["assign"] = {"building": "p", "pole": "q"}
    world.write()
    text = world.refuse("check")
    assert "teachers[p], teachers[q], teachers[r]: " in text
    assert text.count("no such backbone") == 1


NOISY = """
import logging, os, sys, warnings
import torch

def noise(where):
    print(f"printed by {where}")
    os.write(1, f"by a library in {where}\\n".encode())
    sys.stderr.write("1 %\\r99 %\\n")
    warnings.warn(f"{where} is odd")
    warnings.warn_explicit(f"{where} is old", FutureWarning, torch.__file__, 1)
    logging.getLogger("library").warning("%s is logged", where)
"""


def noisy(world, at_the_end=""):
    """Let the code of a teacher make noise when it is built and at each image."""
    model = MODEL.replace("import torch\n", f"{NOISY}    {at_the_end}\n", 1)
    model = model.replace('print("a message of the user\'s code")', 'noise("forward")')
    model = model.replace("    return Constant", '    noise("build")\n    return Constant')
    (world.root / "one" / "model.py").write_text(model)


@pytest.mark.slow
def test_what_its_code_says_is_passed_on_and_each_warning_said_once(world, lenient):
    noisy(world)
    command = ["infer-teacher", "p", "--json", "-c", str(world.file)]
    found = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert json.loads(found.stdout)["ran"]
    said = found.stderr.splitlines()
    words = ["printed by {}", "by a library in {}", "99 %"]
    at = said.index("printed by build")
    assert said[at : at + 3] == [w.format("build") for w in words]
    for word in words:
        assert said.count(word.format("forward")) == 5 + (word == "99 %")
    given = sorted(line for line in said if line.startswith("warning: "))
    model = world.root / "one" / "model.py"
    assert [re.sub(r":\d+\)", ":N)", line) for line in given] == [
        f"warning: build is logged ({model}:N)",
        f"warning: build is odd ({model}:N)",
        f"warning: forward is logged ({model}:N)",
        f"warning: forward is logged ({model}:N) ... 4 more times",
        f"warning: forward is odd ({model}:N)",
        f"warning: forward is odd ({model}:N) ... 4 more times",
    ]
    assert "is old" not in found.stderr


@pytest.mark.slow
def test_a_process_that_dies_is_told_with_its_last_words(world, lenient):
    noisy(world, "os.kill(os.getpid(), 9)")
    text = world.refuse("infer-teacher", "p")
    words = "printed by build / by a library in build / 99 %"
    assert f"the process of model:build was ended by SIGKILL; its last words: {words}" in text


@pytest.mark.slow
def test_its_code_runs_in_its_own_folder(world):
    model = world.root / "one" / "model.py"
    model.write_text(MODEL.replace("print(", "open('n', 'a').write('x'); print("))
    world.call("infer-teacher", "p")
    assert (world.root / "one" / "n").read_text() == "x" * 5


@pytest.mark.slow
def test_compiled_files_of_other_code_do_not_run(world):
    """Python takes compiled files by whole seconds and size, and so would run the older code."""
    utils = world.root / "one" / "utils.py"
    stat = utils.stat()
    world.call("infer-teacher", "p")
    py_compile.compile(str(utils))
    utils.write_text(utils.read_text().replace("return 2", "return 4"))
    os.utime(utils, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    world.call("infer-teacher", "p")
    assert answered(world, "p") == {"fence"}
    assert not list((world.root / "two").rglob("__pycache__"))


def test_code_behind_a_link_is_part_of_the_key(world):
    (world.root / "shared").mkdir()
    (world.root / "shared" / "more.py").write_text("x = 1\n")
    (world.root / "one" / "lib").symlink_to(world.root / "shared")
    (world.root / "shared" / "back").symlink_to(world.root / "one")
    before = fingerprints(world)["infer[p]"]
    (world.root / "shared" / "more.py").write_text("x = 2\n")
    assert fingerprints(world)["infer[p]"] != before
