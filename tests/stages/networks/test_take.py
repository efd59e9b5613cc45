"""Networks of several outputs, of every kind, by the command line."""

import json
import warnings

import numpy as np
import pytest
import torch
from worlds import World, network_world

from ensdistill.data.classes import TABLES
from ensdistill.stages.experiment.schema import Network
from ensdistill.stages.labelmaps import LabelMaps

CAR = 13
SIZE = (48, 64)
MODEL = """
import torch

class Two(torch.nn.Module):
    \"\"\"Answers (auxiliary, main): road everywhere, and car.\"\"\"

    def __init__(self):
        super().__init__()
        self.aux, self.main = torch.nn.Conv2d(3, 19, 1), torch.nn.Conv2d(3, 19, 1)
        for head, label in ((self.aux, 0), (self.main, 13)):
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
            head.bias.data[label] = 9.0

    def forward(self, images):
        return self.aux(images[:, :, ::2, ::2]), self.main(images)

def build():
    return Two()
"""
HF = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

class OwnConfig(PretrainedConfig):
    model_type = "two"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.aux, self.main = nn.Conv2d(3, 19, 1), nn.Conv2d(3, 19, 1)
        self.post_init()

    def forward(self, pixel_values):
        aux, main = self.aux(pixel_values[:, :, ::2, ::2]), self.main(pixel_values)
        return RETURNED
"""
TAKES = {"onnx": "main", "exported": "main", "hf": "1"}
PARTS = {"onnx": ("aux", "main"), "exported": ("aux", "main")}


class Named(torch.nn.Module):
    def __init__(self, two):
        super().__init__()
        self.two = two

    def forward(self, images):
        aux, main = self.two(images)
        return {"aux": aux, "main": main}


def own_folder(folder, weights, returned="aux, main"):
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "modeling.py").write_text(HF.replace("RETURNED", returned))
    named = {"AutoConfig": "modeling.OwnConfig"}
    named["AutoModelForSemanticSegmentation"] = "modeling.OwnModel"
    config = {"model_type": "two", "auto_map": named, "num_labels": 19}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def two(world):
    """Write the code of a network of two outputs, and return the network."""
    (world.root / "code").mkdir()
    (world.root / "code/nets.py").write_text(MODEL)
    namespace = {}
    exec(MODEL, namespace)
    return namespace["build"]().eval()


@pytest.fixture
def kinds(request, world, two, monkeypatch):
    """Make that network a teacher of each of some kinds; return these."""
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(world.root / "modules")
    )
    images = torch.zeros(1, 3, *SIZE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters
        torch.jit.save(torch.jit.trace(two, images), world.root / "net.pt")
        torch.export.save(torch.export.export(Named(two), (images,)), world.root / "net.pt2")
        names = {"output_names": ["aux", "main"], "verbose": False, "external_data": False}
        torch.onnx.export(two, (images,), world.root / "net.onnx", dynamo=True, **names)
    torch.save({"state_dict": two.state_dict()}, world.root / "net.pth")
    own_folder(world.root / "hf", two.state_dict())
    code = {"factory": "nets:build", "root": "code"}
    networks = {
        "factory": code,
        "filled": {**code, "state_dict": "net.pth"},
        "torchscript": {"torchscript": "net.pt"},
        "exported": {"exported": "net.pt2"},
        "onnx": {"onnx": "net.onnx"},
        "hf": {"hf": "hf"},
    }
    world.settings["teachers"] = [
        {"name": n, "network": e, "preprocess": {"size": list(SIZE)}, "trust": "code"}
        for n, e in networks.items()
        if n in request.param
    ]
    world.write()
    return request.param


def take(world, of):
    for entry in world.settings["teachers"]:
        entry["network"]["take"] = of(entry["name"])
    world.write()


@pytest.mark.parametrize(
    "kinds",
    [
        ("torchscript", "exported", "onnx", "hf"),
        pytest.param(("factory", "filled"), marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_of_every_kind_none_is_taken_in_silence_and_each_that_is_named(world, kinds):
    text = world.refuse("check")
    for kind in kinds:
        aux, main = PARTS.get(kind, ("0", "1"))
        line = next(line for line in text.split("\n") if f"teachers[{kind}]" in line)
        assert "several outputs" in line and f"`take: {aux}` or `take: {main}`" in line
        assert "(1, 19, 24, 32)" in line and "(1, 19, 48, 64)" in line
        assert "on 100.0 % of the pixels" in line
        assert "several outputs" in world.refuse("infer-teacher", kind)
    assert not list(world.root.glob("work/infer/*/manifest.json"))

    take(world, lambda kind: TAKES.get(kind, 1))
    for kind, teacher in world.json("check")["teachers"].items():
        assert teacher["trial"]["labels"] == {"car": 1.0}
        assert teacher["trial"]["taken"].startswith(f"{TAKES.get(kind, 1)} of ")
    aux, main = PARTS.get(kinds[-1], ("0", "1"))
    text = f"  takes {main} of {aux} (1, 19, 24, 32), {main} (1, 19, 48, 64)\n"
    assert text in world.call("check")
    world.call("infer-teacher")
    for kind in kinds:
        artifact = world.artifact(f"infer[{kind}]")
        maps = LabelMaps(artifact)
        assert all((maps.read(i) == CAR).all() for i in maps)
        assert artifact.manifest.runtime["taken"].startswith(str(TAKES.get(kind, 1)))

    take(world, lambda kind: {PARTS.get(kind, ("0", "1"))[0]: 1, 1: 0.5})
    assert all(
        teacher["trial"]["labels"] == {"road": 1.0}
        for teacher in world.json("check")["teachers"].values()
    )
    take(world, lambda _: "nothing")
    text = world.refuse("check")
    assert all(f"teachers[{kind}]" in text for kind in kinds)  # two that answer alike, in a line
    assert "`take` names nothing, and the network returned " in text


@pytest.mark.slow
def test_of_code_in_its_own_process_none_is_taken_in_silence(world, two):
    network_world(world, network={"factory": "nets:build", "root": "code"}, trust="code")
    assert "`take: 0` or `take: 1`; or a weighted sum" in world.refuse("check")
    world.settings["teachers"][0]["network"]["take"] = 1
    world.write()
    world.call("infer-teacher")
    artifact = world.artifact("infer[seg]")
    assert artifact.manifest.runtime["taken"] == "1 of 0 (1, 19, 22, 31), 1 (1, 19, 44, 61)"
    maps = LabelMaps(artifact)
    assert all((maps.read(i) == CAR).all() for i in maps)


def test_logits_of_the_librarys_output_are_a_contract_and_no_others(world, two, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(world.root / "modules")
    )
    found = {}
    for name, returned in {
        "output": "SemanticSegmenterOutput(logits=main, hidden_states=(aux,))",
        "plain": "{'logits': main, 'aux_logits': aux}",
    }.items():
        own_folder(world.root / name, two.state_dict(), returned)
        network_world(world, network={"hf": name}, trust="code")
        for given in (None, "logits", "hidden_states" if name == "output" else "aux_logits"):
            entry = {"hf": name} | ({} if given is None else {"take": given})
            network_world(world, network=entry, trust="code")
            if (name, given) == ("plain", None):
                assert "`take: logits` or `take: aux_logits`" in world.refuse("check")
            else:
                trial = world.json("check")["teachers"]["seg"]["trial"]
                found[name, given] = list(trial["labels"])
    assert found == {
        ("output", None): ["car"],
        ("output", "logits"): ["car"],
        ("output", "hidden_states"): ["road"],
        ("plain", "logits"): ["car"],
        ("plain", "aux_logits"): ["road"],
    }


@pytest.mark.parametrize(
    "way",
    [
        {"flip": True, "scales": [0.5, 1]},
        {"tiles": {"size": [32, 32], "overlap": [8, 8]}, "align_corners": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{"divisor": 16}, {"precision": "bfloat16"}], ids=str)
def test_what_is_taken_is_seen_in_every_way(tmp_path, way, more):
    """As a network that answers the sum itself is."""
    import ensdistill.stages.networks.frozen as frozen
    from ensdistill.stages.networks.students import Tiny

    torch.manual_seed(0)
    nets = Tiny(19).eval(), Tiny(19).eval()

    class Both(torch.nn.Module):
        def __init__(self, summed):
            super().__init__()
            self.nets, self.summed = torch.nn.ModuleList(nets), summed

        def forward(self, images):
            one, two = (net(images) for net in self.nets)
            return 0.5 * one.float() + two.float() if self.summed else {"x": [one], "y": two}

    recipe = {"teacher_classes": ["c"] * 19, "preprocess": way, **more}
    photograph = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    found = []
    for summed in (False, True):
        taken = {} if summed else {"take": {"x/0": 0.5, "y": 1.0}}
        network = frozen.freeze(Both(summed), {}, recipe | taken, torch.device("cpu"))
        found.append(network.look(photograph))
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].labels.unique().numel() > 1
    torch.testing.assert_close(found[0].confidence, found[1].confidence)


def test_a_student_trained_here_answers_one_tensor(world):
    from ensdistill.stages.networks.frozen import save_network
    from ensdistill.stages.networks.preprocessing import Preprocessing
    from ensdistill.stages.networks.students import Tiny

    (world.root / "trained").mkdir()
    description = {
        "format": 1,
        "architecture": "tiny",
        "classes": list(TABLES["cityscapes19"].classes),
        "preprocessing": Preprocessing().to_json(),
    }
    save_network(world.root / "trained", Tiny(19), description)
    network_world(world, network={"student": "trained", "take": 0})
    assert "one tensor alone" in world.refuse("infer-teacher")


def test_what_is_taken_is_in_the_key_in_one_form_where_it_is_given(world, two):
    keys = []
    for given in (None, 1, "1", "out", {1: 1, "0": 0.5}, {"0": 0.5, 1: 1.0}, {0: 1, 1: 0.5}):
        network = {"factory": "nets:build", "root": "code"}
        network |= {} if given is None else {"take": given}
        network_world(world, network=network, trust="code")
        keys.append({d["node"]: d["fingerprint"] for d in world.json("status")}["infer[seg]"])
    assert keys[1] == keys[2] and keys[4] == keys[5]
    assert len({*keys}) == 5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (True, "found True"),
        (-1, "found -1"),
        (1.5, "found 1.5"),
        ("", "found ''"),
        ([0, 1], r"found \[0, 1\]"),
        ({}, "weight of each output once"),
        ({0: 1, "0": 2}, "weight of each output once"),
        ({0: 0}, "the weight of 0 is 0"),
        ({0: True}, "is True"),
        ({0: "1"}, "is '1'"),
        ({0: float("nan")}, "is nan"),
        ({0: float("inf")}, "is inf"),
        ({0: 10**400}, "a number other than 0"),
        ({True: 1}, "found True"),
        ({None: 1}, "found None"),
        ({"a": {"b": 1}}, "the weight of 'a'"),
    ],
    ids=str,
)
def test_nonsense_is_refused_in_the_file(given, words):
    with pytest.raises(ValueError, match=words):
        Network(onnx="n.onnx", take=given)


def test_a_sum_of_ids_is_refused():
    assert Network(onnx="n.onnx", output="ids", take=1).take == "1"
    with pytest.raises(ValueError, match="for scores; a network whose output is `ids` has none"):
        Network(onnx="n.onnx", output="ids", take={0: 1})


@pytest.mark.slow
def test_images_of_other_batches_are_read_alike(tmp_path):
    found = []
    for size in (1, 3):
        world = World(tmp_path / str(size))
        (world.root / "code").mkdir()
        (world.root / "code/nets.py").write_text(MODEL)
        world.settings["runtime"]["batch_size"] = size
        network = {"factory": "nets:build", "root": "code", "take": {0: 0.5, 1: 1}}
        network_world(world, network=network, trust="code")
        world.call("infer-teacher")
        maps = LabelMaps(world.artifact("infer[seg]"))
        found.append([maps.read(i) for i in maps])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
