"""The menu of kinds of networks, and CONTRIBUTING's "How to add a network kind", line by line."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from worlds import COMMANDS, network_world

from ensdistill.stages.experiment.schema import Network, StudentNetwork
from ensdistill.stages.networks.kinds import KINDS, SETTINGS

# Lines 1 to 3, and one more entry in the menu.
NPZ = '''
from ensdistill.stages.networks import kinds

class Npz(kinds.NetworkKind):
    """A convolution of single pixels: `weight` and `bias` in an archive of NumPy."""

    key = "npz"

    def load(self, path, recipe, local, device):
        import numpy as np
        import torch

        with np.load(path) as found:
            state = {name: torch.from_numpy(found[name]) for name in found}
        module = torch.nn.Conv2d(3, len(recipe["teacher_classes"]), 1)
        module.load_state_dict(state)
        return module, {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1}

kinds.KINDS += (Npz(),)
'''


@pytest.fixture
def added(world, python):
    """Return what runs commands where there is one kind more, and its file."""
    network_world(world, network={"npz": "net.npz"})
    world.settings["fusion"] = {"method": "majority"}
    world.write()

    def call(*commands):
        given = json.dumps([[*command, "-c", str(world.file)] for command in commands])
        return json.loads(python(NPZ + COMMANDS, given))

    return call


def save(world, seed):
    rng = np.random.default_rng(seed)
    state = {"weight": rng.integers(-9, 9, (19, 3, 1, 1)), "bias": rng.integers(-9, 9, 19)}
    np.savez(world.root / "net.npz", **{k: v.astype(np.float32) for k, v in state.items()})
    return state


@pytest.mark.slow
def test_a_kind_is_one_class_and_one_entry(world, added):
    state, out = save(world, 0), world.root / "exported"
    told = added(
        ["doctor", "--json"],
        ["check", "--json"],
        ["run"],
        ["evaluate", "--json"],
        ["export", "labels", "-o", str(out)],
        ["export", "student", "-o", str(out / "student.safetensors"), "--as", "state-dict"],
        ["status", "--check"],
    )
    assert [code for code, *_ in told] == [0] * 7, told
    about, checked, _, evaluated, *_ = (said for _, said, _ in told)
    (found,) = [f for f in json.loads(about)["findings"] if f["about"] == "teacher seg"]
    assert found["level"] == "ok"
    assert found["text"].startswith("npz with torch")
    assert json.loads(checked)["teachers"]["seg"]["kind"] == "npz"
    assert "seg" in evaluated
    assert "network, npz" in (out / "student.safetensors.md").read_text()
    image = np.array(Image.open(min((world.root / "images/train").glob("*.png"))))
    scores = np.einsum("cj,hwj->hwc", state["weight"][:, :, 0, 0], image.astype(np.float64))
    expected = (scores + state["bias"]).argmax(2)
    (exported,) = (out / "labels" / "train").glob("*000000_*.png")
    assert (np.array(Image.open(exported)) == expected).all()


@pytest.mark.slow
def test_what_a_kind_does_not_say_is_said_for_it(world, added):
    """Its file is part of the key and must be whole; settings and keys are refused as of others."""
    save(world, 0)
    added(["infer-teacher"])
    save(world, 1)
    [[_, out, _]] = added(["status", "--json"])
    (state,) = [d for d in json.loads(out) if d["node"] == "infer[seg]"]
    assert state["state"] == "stale"
    assert "recipe.network.npz" in json.dumps(state)
    file = world.root / "net.npz"
    file.write_bytes(file.read_bytes()[:-9])
    for command in ("check", "doctor"):
        [[code, out, error]] = added([command])
        assert code != 0
        assert "copied in part" in out + error
    for network, words in (
        ({"npz": "net.npz", "state_dict": "w.pth"}, "`state_dict` does not go with `npz`"),
        ({"npy": "net.npz"}, "unknown key 'teachers[seg].network.npy'; did you mean 'npz'?"),
        ({}, "torchscript, factory and npz, found none"),
    ):
        network_world(world, network=network)
        [[code, _, error]] = added(["check"])
        assert code != 0
        assert words in error


def test_the_schema_has_a_key_for_each_kind():
    assert Network.kinds == tuple(kind.key for kind in KINDS)
    assert set(Network.kinds) < set(Network.model_fields)
    assert set(SETTINGS) < set(Network.model_fields)
    trained = {kind.key for kind in KINDS if kind.trainable}
    assert trained | {"arch"} == set(StudentNetwork.kinds) <= set(StudentNetwork.model_fields)
    assert {key for kind in KINDS for key in kind.settings} == set(SETTINGS)


def rows(readme):
    """Return the kinds in README's table of teachers, each with what it says that they need."""
    table = readme.partition("\n| a teacher is |")[2].partition("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {
        key: needs
        for _, file, *needs in cells
        if "state_dict:" not in file  # the weights of another kind
        for key in re.findall(r"(?:network: |, `)\{(\w+): (?:F|\")", file)
    }


def test_readme_has_a_row_for_each_kind(repository):
    found = rows((repository / "README.md").read_text())
    assert found.keys() == {kind.key for kind in KINDS}
    for kind in KINDS:
        needs = " ".join(found[kind.key])
        assert ("`trust: code`" in needs) == kind.runs_code, kind.key
        assert (f"`ensdistill[{kind.extra}]`" in needs) == (kind.extra is not None), kind.key
