"""Photographs of a whole workspace: each is decoded once, whoever reads it."""

import errno
import shutil
from collections import Counter
from contextlib import closing

import pytest
from click.testing import CliRunner
from worlds import files_of, segformer

from ensdistill.cli.__main__ import cli
from ensdistill.data import decoded as cached
from ensdistill.data.decoded import PixelCache, Pixels
from ensdistill.data.decoding import read_image
from ensdistill.pipeline.fingerprint import file_digest
from ensdistill.pipeline.plan import plan
from ensdistill.stages.checks import files
from ensdistill.stages.graph import build, load
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.networks.stream import Clock, Request
from ensdistill.stages.nodes.infer.plan import infer_id


@pytest.fixture
def decoded(monkeypatch):
    """Paths in the order in which they are decoded in this process."""
    found = []
    monkeypatch.setattr(cached, "read_image", lambda *a: found.append(a[0]) or read_image(*a))
    return found


@pytest.fixture
def networks(world):
    """Three networks as teachers, all of whose answers are needed; a student that watches."""
    pytest.importorskip("transformers")
    folder = segformer(world.root / "segformer")
    hf = {"network": {"hf": str(folder)}, "classes": "cityscapes19"}
    names = dict.fromkeys("abc")
    world.settings["teachers"] = [{"name": name, **hf} for name in names]
    world.settings["teachers"][2]["keep"] = ["soft"]
    world.settings["student"] |= {"watch": "val", "watch_every": 3}
    world.write()
    return world


def photographs(world):
    return {str(p) for p in (world.root / "images").rglob("*.png")}


def label_maps(world):
    """Return the chunks of all teachers' label maps."""
    files = files_of(world.root / "work" / "infer")
    return {name: content for name, content in files.items() if "manifest" not in name}


def test_a_photograph_is_decoded_once_a_workspace(networks, decoded, monkeypatch):
    networks.call("run")
    networks.call("infer-teacher")
    networks.call("report")
    every = photographs(networks)
    assert Counter(map(str, decoded)) == dict.fromkeys(every, 1)
    kept = label_maps(networks)
    with monkeypatch.context() as patched:
        patched.setattr(files, "inspect_image", lambda *_: pytest.fail("decoded"))
        networks.call("check")
    networks.call("gc", "--delete")
    shutil.rmtree(networks.root / "work" / "infer")
    networks.call("run")
    assert len(decoded) == len(every) and label_maps(networks) == kept
    networks.settings["runtime"]["cache"] = False
    networks.write()
    shutil.rmtree(networks.root / "work" / "infer")
    networks.call("run")
    assert len(decoded) > len(every) and label_maps(networks) == kept


def test_a_check_keeps_no_photograph_that_perhaps_nobody_reads(world):
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("check")
    world.call("fuse", "--upstream")
    assert not (world.root / "work" / ".pixels").exists()


_BUILD = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 19, 8, 8)
"""


@pytest.fixture
def factory(networks):
    """The first of the three is built by code, in a process of its own."""
    (networks.root / "own").mkdir()
    (networks.root / "own" / "model.py").write_text(_BUILD)
    network = {"factory": "model:build", "root": "own"}
    networks.settings["teachers"][0] = {"name": "a", "trust": "code", "network": network}
    del networks.settings["student"]["watch"], networks.settings["student"]["watch_every"]
    networks.write()
    return networks


@pytest.mark.slow
def test_what_the_process_of_a_factory_decodes_is_decoded_once_too(factory, decoded):
    factory.call("run")
    folder = factory.root / "work" / ".pixels"
    assert len(list(folder.glob("*.rgb"))) == len(photographs(factory))
    assert decoded == []  # here


def test_a_disk_that_gets_full_in_the_process_of_a_factory_is_known_here(factory, tmp_path):
    experiment = load(factory.file)
    work = plan(build(experiment), experiment.workspace.scan())[infer_id("a")].work
    image = experiment.pictures("train")[0].image
    full = tmp_path / "full"
    full.write_bytes(b"no folder")
    pixels, said = Pixels(full, keeps=True), []
    with closing(open_network(None, work.recipe.to_json(), work.local)) as network:
        requests = [[Request(str(image), file_digest(image))]] * 2
        list(network.stream(requests, "labels", pixels, Clock(), said.append))
    assert len(pixels.remarks) == 1 and "cannot hold decoded images" in pixels.remarks[0]
    assert not any("decoded images" in text for text in said)


def test_a_disk_that_gets_full_under_a_network_is_said_once(networks, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PixelCache, "write", refuse)
    arguments = ["infer-teacher", "a", "-c", str(networks.file)]
    found = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert found.exit_code == 0 and found.stderr.count("No space left on device") == 1
    assert "No space left" not in networks.call("check")  # which tried the network meanwhile
