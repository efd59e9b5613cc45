"""Files that a network's own code reads and that are part of no key."""

import importlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from worlds import network_world

from ensdistill.stages.networks import kinds
from ensdistill.stages.networks.files import Source
from ensdistill.stages.networks.reads import Reads

WAYS = {
    "open": lambda p: p.read_bytes(),
    "os": lambda p: os.close(os.open(p, os.O_RDONLY)),
    "bytes": lambda p: open(os.fsencode(p), "rb").close(),  # noqa: PTH123
    "update": lambda p: p.open("r+").close(),
    "numpy": np.load,
    "mapped": lambda p: np.load(p, mmap_mode="r"),
    "torch": lambda p: torch.load(p, weights_only=True),
    "safetensors": load_file,
    "script": lambda p: torch.jit.load(p),  # noqa: PLW0108 - looked up when it is called
    "program": lambda p: torch.export.load(p),  # noqa: PLW0108
}


def written(folder, way):
    """Write a file that can be read that way."""
    path = folder / f"file.{'pt2' if way == 'program' else 'bin'}"
    if way in ("numpy", "mapped"):
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif way == "torch":
        torch.save({"a": torch.zeros(1)}, path)
    elif way == "safetensors":
        save_file({"a": torch.zeros(1)}, path)
    elif way == "script":
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), path)
    elif way == "program":
        torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), path)
    else:
        path.write_bytes(b"x")
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_is_noted_unless_it_is_hashed(tmp_path, way):
    path = written(tmp_path, way)
    reads, knowing = Reads([], tmp_path), Reads([str(path)], tmp_path)
    with reads, knowing:
        WAYS[way](path)
    assert reads.unhashed() == [str(path)]
    assert knowing.unhashed() == [] and knowing.remark() is None
    text = f"not part of its key, so that a change of them goes unnoticed: {path}. A `factory` gets"
    assert text in reads.remark()
    with Reads([], tmp_path) as before:
        pass
    WAYS[way](path)
    assert before.unhashed() == []


def opened_in_vain(path):
    with pytest.raises(OSError, match="No such file"):
        path.open()


@pytest.mark.parametrize(
    "do",
    [
        lambda p: p.write_bytes(b"y"),
        lambda p: p.open("ab+").close(),
        lambda p: p.with_name("new").open("x+").close(),
        lambda p: p.exists() and p.stat(),
        lambda p: list(p.parent.iterdir()),
        lambda p: opened_in_vain(p.with_name("gone")),
        lambda p: os.close(os.open(p.parent, os.O_RDONLY)),
        lambda p: Path("/proc/self/status").read_bytes(),
        lambda p: Path("/dev/null").read_bytes(),
        lambda p: Path("/etc/hostname").read_bytes(),
        lambda p: Path(os.__file__).read_bytes(),
        lambda p: Path(np.__file__).read_bytes(),
        lambda p: importlib.reload(sys.modules["ensdistill.stages.networks.hub"]),
        lambda p: traceback.format_stack(),  # of which it reads the sources
    ],
)
def test_what_is_not_read_or_is_of_the_system_is_not_noted(tmp_path, do):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with Reads([], tmp_path) as reads:
        do(path)
    assert reads.unhashed() == []


def test_a_file_is_known_through_links_and_relative_to_where_it_was_opened(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "file"
    path.write_bytes(b"x")
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path / "there")
    with Reads([], tmp_path) as reads, Reads([str(tmp_path / "link")], tmp_path) as knowing:
        Path("file").read_bytes()
        monkeypatch.chdir("/")
    assert reads.unhashed() == [str(path)] and knowing.unhashed() == []


def test_only_what_was_in_the_temporary_folder_before_counts_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    old, new = tmp_path / "t" / "old", tmp_path / "t" / "new"
    old.write_bytes(b"x")
    time.sleep(0.1)
    with Reads([], tmp_path / "code") as reads:
        new.write_bytes(b"x")
        old.read_bytes()
        new.read_bytes()
    assert reads.unhashed() == [str(old)]
    with Reads([], tmp_path) as reads:  # the code itself lies there
        new.write_bytes(b"x")
        new.read_bytes()
    assert reads.unhashed() == [str(new)]


def test_our_own_code_is_nobodys_file_in_a_temporary_clone_either(tmp_path, monkeypatch):
    ours = Path(kinds.__file__)
    monkeypatch.setattr("tempfile.tempdir", str(ours.parents[2]))
    reads = Reads([], tmp_path)
    reads._loaded = set()  # where it is imported while the network is made
    with reads:
        ours.read_bytes()
    assert reads.unhashed() == []


def test_what_other_threads_of_this_process_read_is_theirs(tmp_path):
    path, own = tmp_path / "a", tmp_path / "b"
    for p in (path, own):
        p.write_bytes(b"x")
    go, done = threading.Event(), threading.Event()

    def other():
        go.wait()
        path.read_bytes()
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with Reads([], tmp_path) as reads:
        go.set()
        done.wait()
        inner = threading.Thread(target=own.read_bytes)  # as the code that is heard may
        inner.start()
        inner.join()
    thread.join()
    assert reads.unhashed() == [str(own)]


def test_modules_from_elsewhere_are_noted_by_their_sources(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "module_of_reads.py").write_text("x = 1\n")
    time.sleep(0.1)  # else it may have been made meanwhile
    for _ in range(2):  # the second time Python opens the compiled file alone
        with Reads([], tmp_path / "code") as reads:
            importlib.import_module("module_of_reads")
        del sys.modules["module_of_reads"]
        assert reads.unhashed() == [str(tmp_path / "module_of_reads.py")]


def test_weights_are_named_before_code_and_many_in_part(tmp_path):
    names = [f"{k}.py" for k in range(5)] + ["w.pth", "v.json"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with Reads([], tmp_path) as reads:
        for name in names:
            (tmp_path / name).read_bytes()
    shown = [str(tmp_path / name) for name in ("v.json", "w.pth", "0.py", "1.py")]
    assert f"{', '.join(shown)}, and 3 more. A" in reads.remark()


def test_an_error_ends_it_and_leaves_nothing_changed(tmp_path):
    import safetensors.torch

    before = safetensors.torch.safe_open
    reads = Reads([], tmp_path)
    with pytest.raises(ZeroDivisionError), reads:
        assert safetensors.torch.safe_open is not before
        1 / 0  # noqa: B018
    assert safetensors.torch.safe_open is before
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").read_bytes()
    assert reads.unhashed() == []


# --- by the command line ----------------------------------------------------------------------


CODE = """
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent

class Net(torch.nn.Module):
    def __init__(self, listed):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 19, 1)
        self.head.load_state_dict(load_file(HERE / "own.safetensors"))
        assert Path(listed).read_text() == "listed"

    def forward(self, images):
        (HERE / "late.txt").read_text()
        return self.head(images)

def build(listed, **more):
    return Net(listed)
"""
FOLDER_CODE = """
from pathlib import Path
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, 19, 1)
        self.post_init()

    def forward(self, pixel_values):
        Path("FILE").read_bytes()
        return self.conv(pixel_values)
"""


@pytest.fixture
def code(world):
    """Write a repository that reads three files, of which one is listed."""
    root = world.root / "code"
    root.mkdir()
    (root / "nets.py").write_text(CODE)
    (root / "late.txt").write_text("late")
    (root / "listed.txt").write_text("listed")
    torch.manual_seed(0)
    save_file(torch.nn.Conv2d(3, 19, 1).state_dict(), root / "own.safetensors")
    return {"factory": "nets:build", "root": "code", "files": {"listed": "code/listed.txt"}}


def unnoticed(artifact):
    """Return the one message of an artifact about files that were read."""
    messages = artifact.manifest.provenance["messages"]
    [found] = [text for text in messages if "unnoticed" in text]
    return found


@pytest.mark.slow
def test_a_teachers_code_is_told_what_it_reads(world, code):
    network_world(world, network=code, trust="code")
    [warning] = world.json("check")["teachers"]["seg"]["trial"]["warnings"]
    late, own = (world.root / "code" / name for name in ("late.txt", "own.safetensors"))
    assert f"goes unnoticed: {late}, {own}. A `factory` gets such files" in warning
    assert warning in world.json("check")["teachers"]["seg"]["trial"]["warnings"]  # remembered
    world.call("infer-teacher")
    assert unnoticed(world.artifact("infer[seg]")) == f"infer[seg]: {warning}"


def test_a_students_code_is_told_what_it_reads_and_so_is_what_was_trained(world, code):
    world.settings["student"] |= {"network": code, "trust": "code", "steps": 2}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("train-student", "--upstream")
    world.call("evaluate", "--upstream")
    late, own = (world.root / "code" / name for name in ("late.txt", "own.safetensors"))
    for node in ("student", "infer[student]@val"):
        message = unnoticed(world.artifact(node))
        assert message.startswith(f"{node}: its code reads files")
        assert f"unnoticed: {late}, {own}." in message


def test_code_that_came_with_a_folder_of_transformers_is_told_what_it_reads(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = world.root / "own"
    folder.mkdir()
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForSemanticSegmentation": "own.OwnModel"}
    config = {"model_type": "own", "auto_map": named, "num_labels": 19}
    (folder / "config.json").write_text(json.dumps(config))
    weights = torch.nn.Conv2d(3, 19, 1).state_dict()
    save_file({f"conv.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
    network_world(world, network={"hf": "own"}, trust="code")
    for name, noted in (("n.txt", False), ("n.bin", True)):  # the former is hashed
        (folder / "own.py").write_text(FOLDER_CODE.replace("FILE", str(folder / name)))
        (folder / name).write_bytes(b"more")
        warnings = world.json("check")["teachers"]["seg"]["trial"]["warnings"]
        assert any(f"unnoticed: {folder / name}." in text for text in warnings) == noted


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"path": "late.txt"}, "path"),
        ({"path": "../code/late.txt"}, "path"),
        ({"options": {"weights": ["none", "own.safetensors"]}}, "options.weights.1"),
        ({"path": "ABSOLUTE"}, "path"),
        ({"path": "~/late.txt"}, "path"),
    ],
)
@pytest.mark.parametrize("section", ["teacher", "student"])
def test_arguments_that_name_a_file_are_refused(world, code, monkeypatch, kwargs, key, section):
    monkeypatch.setenv("HOME", str(world.root / "code"))
    if kwargs.get("path") == "ABSOLUTE":
        kwargs = {"path": str(world.root / "code" / "late.txt")}
    network = code | {"kwargs": kwargs}
    if section == "teacher":
        network_world(world, network=network, trust="code")
    else:
        world.settings["student"] |= {"network": network, "trust": "code"}
        world.write()
    text = world.refuse("status")
    assert f"network.kwargs.{key}: " in text and "give it in `files`" in text


@pytest.mark.parametrize(
    "value", ["resnet50", "", "code", "../code", "x" * 5000, "nets.py", "//", 7, None, "*"]
)
def test_arguments_that_name_no_file_or_one_of_the_code_are_taken(world, code, value):
    network_world(world, network=code | {"kwargs": {"arch": value}}, trust="code")
    assert "infer[seg]" in world.states()


def test_where_code_really_lies_is_asked_only_for_arguments_that_name_files(tmp_path, monkeypatch):
    for name in ("nets.py", "more.py"):
        (tmp_path / name).write_text("")
    asked, real = [], os.path.realpath
    monkeypatch.setattr("os.path.realpath", lambda path: asked.append(path) or real(path))
    for arch, most in (("resnet50", 0), ("nets.py", 2)):  # each module costs as much as its digest
        kwargs = {"arch": arch}
        kinds.hashed(Source("t", "factory", tmp_path, "nets:build", kwargs), str)
        assert sum(isinstance(path, Path) for path in asked) <= most
