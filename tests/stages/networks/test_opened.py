"""Teachers in files of other libraries: what is part of their key, and what must never run."""

import json
import os

import pytest
import torch
from worlds import network_world, segformer

from ensdistill.pipeline.errors import ConfigError
from ensdistill.stages.graph import load


class Runs:
    """What a pickle does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_teachers_untrusted_pickle_names_the_way_in(world):
    segformer(world.root / "segformer")
    torch.save({"w": Runs(world.root / "ran")}, world.root / "a.pth")
    network_world(world, network={"hf": "segformer", "state_dict": "a.pth"})
    text = world.refuse("infer-teacher")
    assert "posix.mkdir" in text and "`trust: code` on that entry" in text
    assert not (world.root / "ran").exists()


@pytest.mark.parametrize("kind", ["factory", "exported", "torchscript"])
def test_what_carries_code_is_refused_without_trust(world, kind):
    network = {kind: "a:b", "root": "."} if kind == "factory" else {kind: "a.pt"}
    network_world(world, network=network)
    with pytest.raises(ConfigError, match="`trust: code` on this teacher"):
        load(world.file)


def test_changed_weights_beside_an_onnx_model_are_another_teacher(world):
    for name in ("net.onnx", "net.onnx.data", "net.onnx_other", "other.data"):
        (world.root / name).write_bytes(name.encode())
    network_world(world, network={"onnx": "net.onnx"})

    def key():
        return {d["node"]: d["fingerprint"] for d in world.json("status")}["infer[seg]"]

    keys = [key()]
    for name in ("net.onnx", "net.onnx.data", "net.onnx_other"):
        (world.root / name).write_bytes(b"else")
        keys.append(key())
    assert len(set(keys)) == 4
    (world.root / "other.data").write_bytes(b"else")
    assert key() == keys[-1]


def test_a_folder_that_brings_code_is_refused_without_trust(world):
    folder = segformer(world.root / "segformer")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSemanticSegmentation": "evil.Net"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os; os.mkdir({str(world.root / 'ran')!r})")
    network_world(world, network={"hf": "segformer"})
    for command in ("check", "infer-teacher"):
        text = world.refuse(command)
        assert "evil.Net" in text and "`trust: code`" in text
    assert not (world.root / "ran").exists()


def test_trusted_code_of_a_folder_is_part_of_its_key(world):
    folder = segformer(world.root / "segformer")
    (folder / "net.py").write_text("# one")
    network_world(world, network={"hf": "segformer"}, trust="code")

    def key():
        return {d["node"]: d["fingerprint"] for d in world.json("status")}["infer[seg]"]

    before = key()
    (folder / "net.py").write_text("# two")
    assert key() != before


def test_a_hub_needs_a_pinned_revision(world):
    network_world(world, network={"hf": "some/net", "revision": "main"})
    with pytest.raises(ConfigError, match="revision"):
        load(world.file)
