"""Networks of probes and students: transformers, a user's code, padding and first weights."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from worlds import TINY, World, files_of

from ensdistill.data.classes import TABLES
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import Factory, Learning
from ensdistill.stages.networks.code import build_from_code
from ensdistill.stages.networks.frozen import describe, save_network
from ensdistill.stages.networks.initial import describe_initial, initial_network
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import (
    Padded,
    Tiny,
    build_student,
    hf_segmentation,
    in_head,
    pad_to_multiple,
)

pytest.importorskip("transformers")

CLASSES = TABLES["camvid11"]
RECIPE = {"network": {"config.json": "digest"}, "seed": 3, "crop": [64, 96]}
NETWORKS = ["segformer", "mobilenet_v2", "resnet", "convnext", "swin"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config_of(name, classes):
    """Return a small configuration of a network, or of UperNet on a backbone."""
    import transformers as hf

    if name == "segformer":
        return hf.SegformerConfig(
            num_labels=classes,
            depths=[1] * 4,
            hidden_sizes=[8, 16, 24, 32],
            decoder_hidden_size=16,
            num_attention_heads=[1] * 4,
        )
    if name == "mobilenet_v2":
        return hf.MobileNetV2Config(num_labels=classes, depth_multiplier=0.25, output_stride=16)
    wide = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "out_features": STAGES}
    backbone = {
        "resnet": lambda: hf.ResNetConfig(embedding_size=8, layer_type="basic", **wide),
        "convnext": lambda: hf.ConvNextConfig(**wide),
        "swin": lambda: hf.SwinConfig(
            embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=STAGES
        ),
    }[name]()
    return hf.UperNetConfig(
        num_labels=classes, backbone_config=backbone, hidden_size=16, auxiliary_channels=8
    )


def pretrained(name, folder, classes=7):
    """Write a folder with weights for a number of classes."""
    from transformers import AutoModelForSemanticSegmentation

    torch.manual_seed(1)
    model = AutoModelForSemanticSegmentation.from_config(config_of(name, classes))
    model.save_pretrained(folder)
    return folder


def local_of(**more):
    runtime = {"device": "cpu", "workers": 0, "threads": 1, "checkpoint_every": 1}
    runtime["keep_checkpoints"] = 1
    return Learning(pictures=(), classes=CLASSES, digests={}, **runtime, **more)


def train(network, steps=2, size=(64, 96)):
    """Take some steps, and return the names of parameters that wait for a gradient in vain."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        images = torch.randn(2, 3, *size, generator=generator)
        network(images).square().mean().backward()
        optimizer.step()
    named = network.named_parameters()
    return [n for n, p in named if p.requires_grad and p.grad is None]


# --- networks of transformers ----------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_from_a_config_is_trained_saved_and_runs_at_any_size(tmp_path, name):
    config_of(name, 7).save_pretrained(tmp_path / "config")
    local = local_of(network=tmp_path / "config")
    network, report = initial_network(RECIPE, local)
    assert {"loaded", "head"}.isdisjoint(report or {})
    assert train(network) == []
    assert any(in_head(n) for n in network.state_dict())
    assert not any("auxiliary" in n for n in network.state_dict())
    preprocessing = Preprocessing()
    description = describe(network, RECIPE["network"], list(CLASSES.classes), preprocessing)
    save_network(tmp_path, network, description)
    loaded = open_network(tmp_path, {"source": "student"}, local_of())
    network.eval()
    for size in ((65, 97), (33, 64)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        batch = torch.tensor(image).permute(2, 0, 1)[None]
        with torch.inference_mode():
            expected = network(preprocessing.normalise(batch))[0]
        [view] = loaded._views([batch])[0]
        torch.testing.assert_close(view.pieces[0].scores, expected)


@pytest.mark.slow
@pytest.mark.parametrize("divisor", [1, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_of_the_whole_pipeline_runs_again_as_a_teacher(world, name, divisor):
    pretrained(name, world.root / "network")
    world.settings["student"] |= {"network": {"hf": "network", "divisor": divisor}}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("run")
    report = world.artifact("student").manifest.result["init"]
    assert len(report["head"]) == 2
    first = LabelMaps(world.artifact("infer[student]@val"))
    student = str(world.artifact("student").path)
    world.settings["teachers"] = [{"name": "again", "network": {"student": student}}]
    world.settings["student"] = dict(TINY)
    world.write()
    world.call("evaluate", "--upstream")
    second = LabelMaps(world.artifact("infer[again]@val"))
    for image_id in first:
        assert np.array_equal(first.read(image_id), second.read(image_id))


@pytest.mark.parametrize("name", NETWORKS)
def test_pretrained_weights_of_other_classes_keep_all_but_the_last_layer(tmp_path, name):
    from transformers import AutoModelForSemanticSegmentation

    pretrained(name, tmp_path)
    local = local_of(network=tmp_path)
    network, report = initial_network(RECIPE, local)
    own = network.state_dict()
    anew = report["head"]
    assert len(anew) == 2 and all("classifier" in n and in_head(n) for n in anew)
    assert report["loaded"] == len(own) - 2
    text = describe_initial(report, local)
    assert f"{len(own) - 2} tensors of {tmp_path}; made anew in the head: {anew[0]}" in text
    whole = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    kept = [n for n in own if n.removeprefix("model.") not in anew]
    assert all(torch.equal(own[n], whole[n.removeprefix("model.")]) for n in kept)
    unused = any("auxiliary_head" in n for n in whole)
    assert unused is (name in ("resnet", "convnext", "swin"))
    assert ("not used of that file: auxiliary_head" in text) is unused
    assert train(network) == []
    # what is made anew depends on the seed alone
    again, other = (initial_network(RECIPE | {"seed": seed}, local)[0] for seed in (3, 4))
    weight = "model." + next(n for n in anew if n.endswith("weight"))
    first, _ = initial_network(RECIPE, local)
    assert torch.equal(again.state_dict()[weight], first.state_dict()[weight])
    assert not torch.equal(again.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_body_is_loaded_from_what_transformers_saved(tmp_path, name):
    """By whatever names: the library saves some models by older ones than it builds them with."""
    config_of(name, 7).save_pretrained(tmp_path / "config")
    pretrained(name, tmp_path)
    local = local_of(network=tmp_path / "config", init=tmp_path / "model.safetensors")
    network, report = initial_network(RECIPE, local)
    whole = hf_segmentation(tmp_path, 7).state_dict()
    own = network.state_dict()
    body = [n for n in own if not in_head(n)]
    assert report["loaded"] == len(body)
    assert all(torch.equal(own[n], whole[n]) for n in body)
    assert all("auxiliary_head" in n or n.startswith("and ") for n in report["unexpected"])
    # no head of the folder's own weights is put on the body of another
    both, _ = initial_network(RECIPE, local_of(network=tmp_path, init=local.init))
    assert all(torch.equal(w, own[n]) for n, w in both.state_dict().items())
    # and from a checkpoint of the network as it is in memory
    torch.save({"model": network.state_dict()}, tmp_path / "init.pth")
    network, again = initial_network(
        RECIPE, local_of(network=tmp_path / "config", init=tmp_path / "init.pth")
    )
    assert (again["loaded"], again["unexpected"]) == (len(body), [])
    assert all(torch.equal(network.state_dict()[n], whole[n]) for n in body)


def test_a_body_of_another_width_is_refused_with_both_shapes(tmp_path):
    pretrained("segformer", tmp_path)
    config = config_of("segformer", 7)
    config.hidden_sizes = [8, 16, 24, 40]
    config.save_pretrained(tmp_path / "config")
    local = local_of(network=tmp_path / "config", init=tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"is \[32.*\] there and \[40.*\] here"):
        initial_network(RECIPE, local)
    pretrained("segformer", tmp_path / "config")
    config.save_pretrained(tmp_path / "config")
    with pytest.raises(DataError, match=r"body are .* \(\[32.*\] there and \[40.*\] here\)"):
        initial_network(RECIPE, local_of(network=tmp_path / "config"))


def test_a_folder_without_a_tensor_of_the_body_is_refused(tmp_path):
    pretrained("segformer", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(n for n in weights if n.startswith("segformer") and n.endswith("weight")))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    words = r"1 weights of the network's body are missing .*segformer\."
    with pytest.raises(DataError, match=words):
        initial_network(RECIPE, local_of(network=tmp_path))


def test_a_teacher_is_loaded_without_its_auxiliary_head_and_answers_the_same(tmp_path):
    from transformers import AutoModelForSemanticSegmentation

    pretrained("convnext", tmp_path)
    plain = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        found = hf_segmentation(tmp_path).eval()(images)
        assert torch.equal(found, plain(pixel_values=images).logits)


# --- padding ---------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Logits at stride 4 that are the images' own values, averaged."""

    def forward(self, images):
        assert images.shape[2] % 8 == images.shape[3] % 8 == 0
        return nn.functional.avg_pool2d(images, 4)


def test_a_multiple_is_left_as_it_is():
    assert isinstance(pad_to_multiple(Pooled(), 1), Pooled)
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(Padded(Pooled(), 8)(images), Pooled()(images))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(9, 16), (16, 23), (13, 17)])
def test_padded_logits_cover_the_image_alone(size, align_corners):
    images = torch.randn(2, 3, *size)
    height, width = (-(-s // 8) * 8 for s in size)
    whole = torch.zeros(2, 3, height, width)
    whole[:, :, : size[0], : size[1]] = images
    logits = Pooled()(whole)
    full = nn.functional.interpolate(
        logits, (height, width), mode="bilinear", align_corners=align_corners
    )
    found = Padded(Pooled(), 8, align_corners=align_corners)(images)
    assert torch.equal(found, full[:, :, : size[0], : size[1]])


def test_padding_moves_nothing():
    """A ramp comes back as it was, away from the border that touches the padding."""
    ramp = torch.arange(35.0).expand(1, 3, 29, 35)
    found = Padded(Pooled(), 8)(ramp)
    torch.testing.assert_close(found[..., :26, 2:30], ramp[..., :26, 2:30])


def test_a_padded_network_has_a_head_and_the_body_of_any_other(tmp_path):
    save_file(Tiny(4).state_dict(), tmp_path / "init.safetensors")
    recipe = {"network": "tiny", "seed": 0, "crop": [30, 50], "divisor": 16}
    network, report = initial_network(recipe, local_of(init=tmp_path / "init.safetensors"))
    names = [n for n in network.state_dict() if in_head(n)]
    assert names == ["model.head.weight", "model.head.bias"]
    assert report["head"] == ["head.weight", "head.bias"]
    description = describe(network, "tiny", list(CLASSES.classes), Preprocessing())
    save_network(tmp_path, network, description)
    image = np.zeros((33, 47, 3), np.uint8)
    loaded = open_network(tmp_path, {"source": "student"}, local_of())
    [view] = loaded._views([torch.tensor(image).permute(2, 0, 1)[None]])[0]
    assert view.pieces[0].scores.shape == (len(CLASSES), 33, 47)
    # what was padded may be where another training begins
    plain, _ = initial_network(
        {"network": "tiny", "seed": 0, "crop": [30, 50]},
        local_of(init=tmp_path / "model.safetensors"),
    )
    assert torch.equal(plain.state_dict()["stem.0.0.weight"], network.model.stem[0][0].weight)


# --- first weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("within", [(), ("state_dict",), ("model",), ("model", "model_state")])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_weights_are_found_however_they_were_saved(tmp_path, within, prefix):
    source = Tiny(3).state_dict()
    content = {prefix + k: v for k, v in source.items()} | {prefix + "more.bias": torch.zeros(1)}
    for key in reversed(within):
        content = {key: content, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "init.pth")
    local = local_of(init=tmp_path / "init.pth")
    network, report = initial_network({"network": "tiny", "seed": 0, "crop": [32, 32]}, local)
    assert report == {
        "loaded": len(source) - 2,
        "head": ["head.weight", "head.bias"],
        "unexpected": ["more.bias"],
    }
    fresh = build_student("tiny", len(CLASSES), None, 0).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if in_head(name) else source[name])


def test_a_head_of_as_many_classes_is_made_anew_too(tmp_path):
    torch.save(build_student("tiny", len(CLASSES), None, 8).state_dict(), tmp_path / "init.pth")
    local = local_of(init=tmp_path / "init.pth")
    network, _ = initial_network({"network": "tiny", "seed": 0, "crop": [32, 32]}, local)
    fresh = build_student("tiny", len(CLASSES), None, 0)
    assert torch.equal(network.head.weight, fresh.head.weight)


def test_long_lists_of_names_are_cut(tmp_path):
    more = {f"more.{k}": torch.zeros(1) for k in range(20)}
    torch.save(Tiny(3).state_dict() | more, tmp_path / "init.pth")
    local = local_of(init=tmp_path / "init.pth")
    _, report = initial_network({"network": "tiny", "seed": 0, "crop": [32, 32]}, local)
    assert report["unexpected"] == ["more.0", "more.1", "more.2", "more.3", "and 16 more"]
    assert describe_initial(report, local) == (
        f"36 tensors of {tmp_path}/init.pth; made anew in the head: head.weight, head.bias; "
        "not used of that file: more.0, more.1, more.2, more.3, and 16 more"
    )


def spoilt(**changes):
    state = Tiny(3).state_dict()
    for name, tensor in changes.items():
        state[name.replace("_", ".", 3)] = tensor
    return state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            spoilt(stem_0_0_weight=torch.zeros(24, 1, 3, 3)),
            ["1 of the 36", "stem.0.0.weight is [24, 1, 3, 3] there and [24, 3, 3, 3] here"],
        ),
        ({"a": torch.zeros(1)}, ["stem.0.0.weight [24, 3, 3, 3] is not there", "it holds a"]),
        ({"epoch": 3, "model": {"lr": 0.1}}, ["no weights, but lr", "state_dict"]),
        ([torch.zeros(1)], ["no weights, but list"]),
        ({"head.bias": torch.zeros(1), "module.head.bias": torch.ones(1)}, ["head.bias twice"]),
        ({"state_dict": SimpleNamespace()}, ["names code: types.SimpleNamespace", "alone"]),
    ],
    ids=["shape", "lacks", "keys", "list", "twice", "pickle"],
)
def test_what_is_no_checkpoint_of_the_network_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "init.pth")
    with pytest.raises(DataError) as refused:
        initial_network(
            {"network": "tiny", "seed": 0, "crop": [32, 32]}, local_of(init=tmp_path / "init.pth")
        )
    for word in [*words, "init.pth"]:
        assert word in str(refused.value)


# --- a user's code ---------------------------------------------------------------------------

# two repositories whose modules have the same names
MODEL = """
from torch import nn
import utils

class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        print("a message of the user's code")
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.1)
        )
        self.classifier = nn.Conv2d(width, classes, 1)
        self.aux = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        from late import scale
        x = self.features(images)
        return RETURNED

def build(width=4, classes=19, weights=None):
    return Net(width + utils.more(), classes)
"""


def repository(folder, more, returned="self.classifier(x) * scale", **replaced):
    folder.mkdir(exist_ok=True)
    text = MODEL.replace("RETURNED", returned)
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "model.py").write_text(text)
    (folder / "utils.py").write_text(f"def more():\n    return {more}\n")
    (folder / "late.py").write_text("scale = 1\n")
    return folder


def entry(root, **more):
    network = {"factory": "model:build", "root": root, **more}
    return dict(TINY) | {"trust": "code", "network": network}


@pytest.fixture
def code_world(tmp_path):
    world = World(tmp_path, train=3, val=1)
    repository(tmp_path / "one", 1)
    repository(tmp_path / "two", 2)
    world.settings["student"] = entry("two")
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    return world


def channels(world, node):
    return load_file(world.artifact(node).path / "model.safetensors")["features.0.weight"].shape[0]


@pytest.mark.slow
def test_probes_and_student_of_two_repositories_with_clashing_modules(code_world):
    world = code_world
    world.settings["probe"] = entry("one")
    world.settings["fusion"] = {"method": "channel", "window": 5}
    world.write()
    before = list(sys.path)
    assert "a message" not in world.call("run")
    assert channels(world, "probe[a]") == channels(world, "probe[b]") == 4 + 1
    assert channels(world, "student") == 4 + 2
    assert set(world.states().values()) == {"fresh"}
    assert sys.path == before
    description = json.loads((world.artifact("student").path / "network.json").read_text())
    architecture = description["architecture"]
    assert (architecture["factory"], architecture["kwargs"]) == ("model:build", {})
    assert set(architecture["code"]) == {"model.py", "utils.py", "late.py"}
    assert str(world.root) not in json.dumps(description)
    assert world.artifact("student").manifest.result["init"] == {
        "frozen": ["aux.weight", "aux.bias"]
    }
    assert LabelMaps(world.artifact("infer[student]@val"))


@pytest.mark.slow
def test_code_that_changed_behind_the_plan_is_not_run(code_world):
    code_world.call("train-student", "--upstream")
    late = code_world.root / "two" / "late.py"
    stat = late.stat()
    late.write_text("scale = 2\n")
    os.utime(late, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "late.py: changed since" in code_world.refuse("evaluate", "--upstream")
    os.utime(late)
    # the same weights, but other logits: nothing of the old network passes for the new one's
    assert code_world.states()["infer[student]@val"] in ("missing", "waiting")
    reason = {d["node"]: d["reason"] for d in code_world.json("status")}["student"]
    assert "recipe.network.code.late.py" in reason


@pytest.mark.slow
def test_the_same_weights_under_other_code_are_another_network(code_world):
    world = code_world
    two = repository(world.root / "two", 2, "self.classifier(x) * (1 if self.training else scale)")
    found = []
    for scale in (1, -1):
        (two / "late.py").write_text(f"scale = {scale}\n")
        world.call("evaluate", "--upstream")
        labels = LabelMaps(world.artifact("infer[student]@val"))
        weights = (world.artifact("student").path / "model.safetensors").read_bytes()
        found.append((weights, [labels.read(i) for i in labels]))
    (one, before), (other, after) = found
    assert one == other
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_bytes(code_world, on_step):
    world = code_world
    world.settings["runtime"]["checkpoint_every"] = 2
    world.write()
    world.call("train-student", "--upstream")
    expected = files_of(world.artifact("student").path)
    world.settings["workspace"] = "other"
    world.write()
    world.call("fuse", "--upstream")
    steps = []

    def killed(step):
        steps.append(step)
        if step == 4 and len(steps) == 5:
            raise KeyboardInterrupt

    on_step(killed)
    world.call("train-student", expect=1)  # 130 where it is a program of its own
    assert steps == [0, 1, 2, 3, 4]
    assert world.states()["student"] == "partial"
    torch.rand(5)
    world.call("train-student")
    assert steps[5:7] == [4, 5]
    found = files_of(world.artifact("student").path)
    for files in (expected, found):
        files.pop("manifest.json")
    assert found == expected


@pytest.mark.slow
def test_as_a_teacher_elsewhere_it_is_refused_with_what_to_do(code_world):
    world = code_world
    world.call("train-student", "--upstream")
    student = world.artifact("student").path
    world.settings["teachers"] = [{"name": "t", "network": {"student": str(student)}}]
    world.write()
    for command in ("check", "infer-teacher"):
        text = world.refuse(command)
        assert "made by model:build" in text and "factory: ..." in text
        assert "model.safetensors" in text and "`files`" in text


@pytest.mark.slow
def test_as_a_teacher_by_its_function_it_answers_the_same(code_world):
    world = code_world
    world.call("run")
    student = world.artifact("student").path
    expected = LabelMaps(world.artifact("infer[student]@val"))
    model = world.root / "two" / "model.py"
    model.write_text(
        model.read_text().replace(
            "    return Net(width + utils.more(), classes)",
            "    from safetensors.torch import load_file\n"
            "    net = Net(width + utils.more(), classes)\n"
            "    net.load_state_dict(load_file(weights))\n"
            "    return net",
        )
    )
    network = {"factory": "model:build", "root": "two"}
    network["files"] = {"weights": str(student / "model.safetensors")}
    padded = network | {"divisor": 16}
    world.settings["teachers"] = [
        {"name": name, "trust": "code", "network": entry}
        for name, entry in (("plain", network), ("padded", padded))
    ]
    world.settings["student"] = dict(TINY)
    world.write()
    world.call("evaluate", "--upstream")
    plain, padded = (LabelMaps(world.artifact(f"infer[{n}]@val")) for n in ("plain", "padded"))
    for image_id in expected:
        assert np.array_equal(plain.read(image_id), expected.read(image_id))
        assert np.mean(padded.read(image_id) == expected.read(image_id)) > 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("trust"), ["student", "trust: code", "your rights"]),
        (lambda s: s["network"].update(arch="tiny"), ["one of arch, hf and factory", "arch"]),
        (lambda s: s["network"].pop("root"), ["`factory` and `root`"]),
        (lambda s: s["network"].update(root="nowhere"), ["student.network.root", "nowhere"]),
        (lambda s: s["network"].update(files={"weights": "w"}), ["student.network.files.weights"]),
    ],
    ids=["trust", "two", "root", "nowhere", "files"],
)
def test_what_cannot_be_meant_is_refused_by_name(code_world, change, words):
    change(code_world.settings["student"])
    code_world.write()
    text = code_world.refuse("status")
    for word in words:
        assert word in text


def test_check_finds_a_function_that_is_nowhere(code_world):
    code_world.settings["student"]["network"]["factory"] = "modle:build"
    code_world.write()
    assert "student.network.factory: modle:build is in no module" in code_world.refuse("check")


def initial_of(root, seed=0, crop=(32, 48), divisor=1, **kwargs):
    factory = Factory(root, "model:build", {"classes": len(CLASSES)} | kwargs)
    recipe = {"network": {"factory": "model:build"}, "seed": seed, "crop": crop}
    return initial_network(recipe | {"divisor": divisor}, local_of(factory=factory))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("{'out': self.classifier(x)}", ["returned dict for 2 images", "(N, C, h, w)"]),
        ("(self.classifier(x), self.aux(x))", ["returned tuple"]),
        ("self.classifier(x) if not self.training else (x, x)", ["tuple", "in training as in"]),
        ("self.classifier(x).mean((2, 3))", [f"returned [2, {len(CLASSES)}]"]),
        ("x", [f"5 channels, the experiment has {len(CLASSES)} classes", "`kwargs`"]),
        ("self.classifier(x).detach()", ["no gradient"]),
        ("self.classifier(x[:, :1])", ["fails on images of 2x3x32x48", "`divisor`"]),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_the_first_step(tmp_path, returned, words):
    with pytest.raises(DataError) as refused:
        initial_of(repository(tmp_path / "r", 1, returned))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("return 1", ["returned int", "torch.nn.Module"]),
        ("raise ValueError('no such backbone')", ["model:build failed (ValueError: no such"]),
        ("import missing_package", ["missing_package"]),
        ("import argparse; argparse.ArgumentParser().parse_args(['x'])", ["(SystemExit: 2)"]),
    ],
)
def test_a_function_that_fails_is_told_with_its_reason(tmp_path, build, words):
    root = repository(tmp_path / "r", 1)
    (root / "model.py").write_text(f"def build(**kwargs):\n    {build}\n")
    with pytest.raises(DataError) as refused:
        initial_of(root)
    for word in words:
        assert word in str(refused.value)


def test_first_weights_depend_on_the_seed_alone(tmp_path):
    drawn = "nn.init.constant_(self.aux.bias, random.random() + float(np.random.rand()))"
    root = repository(tmp_path / "r", 1, "self.classifier(x) + self.aux(x)")
    text = "import random\nimport numpy as np\n" + (root / "model.py").read_text()
    (root / "model.py").write_text(
        text.replace("        self.aux = nn", "        self.aux = nn", 1).replace(
            "    def forward", f"        {drawn}\n\n    def forward"
        )
    )

    def weights(seed):
        network, report = initial_of(root, seed)
        assert report is None
        return torch.cat([p.flatten() for p in network.parameters()])

    one = weights(1)
    torch.rand(9), np.random.rand(9)
    assert torch.equal(one, weights(1))
    assert not torch.equal(one, weights(2))


def test_a_u_net_takes_any_size_by_its_divisor(tmp_path):
    halved = (
        "self.classifier(nn.functional.interpolate(nn.functional.avg_pool2d(x, 16), None, 16) + x)"
    )
    root = repository(tmp_path / "r", 1, halved)
    with pytest.raises(DataError, match="say `divisor`"):
        initial_of(root, crop=(65, 97))
    network, _ = initial_of(root, crop=(65, 97), divisor=32)
    assert train(network, size=(65, 97)) == []
    assert network(torch.zeros(2, 3, 33, 60)).shape == (2, len(CLASSES), 33, 60)


def test_nothing_of_an_earlier_root_is_left(tmp_path):
    one, two = repository(tmp_path / "one", 1), repository(tmp_path / "two", 2)
    before = list(sys.path)
    (one / "only.py").write_text("")
    (one / "lib").mkdir()
    (one / "lib" / "deep.py").write_text("")
    text = (
        "import only, os, sys\nsys.path.append(os.path.dirname(__file__) + '/lib')\nimport deep\n"
    )
    (one / "utils.py").write_text(text + (one / "utils.py").read_text())
    kwargs = {"classes": 3}
    first = build_from_code(Factory(one, "model:build", kwargs))
    assert {"model", "utils", "only", "deep"} <= sys.modules.keys()
    first(torch.zeros(1, 3, 8, 8))
    assert {"late"} <= sys.modules.keys()
    second = build_from_code(Factory(two, "model:build", kwargs))
    assert (first.aux.in_channels, second.aux.in_channels) == (5, 6)
    assert {"only", "deep", "late"}.isdisjoint(sys.modules)
    assert sys.path == before
    assert sys.modules["model"].__file__ == str(two / "model.py")


def test_changed_code_runs_even_if_neither_date_nor_size_tell(tmp_path):
    root = repository(tmp_path / "r", 1)
    utils = root / "utils.py"
    stat = utils.stat()
    factory = Factory(root, "model:build", {"classes": 3})
    assert build_from_code(factory).aux.in_channels == 5
    utils.write_text(utils.read_text().replace("return 1", "return 3"))
    os.utime(utils, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert build_from_code(factory).aux.in_channels == 7
    assert not list(root.rglob("__pycache__"))


def test_a_module_that_another_hides_is_refused(tmp_path):
    root = repository(tmp_path / "r", 1)
    (root / "worlds.py").write_text("")
    with pytest.raises(DataError, match=r"its module 'worlds' is hidden by .*worlds\.py"):
        initial_of(root)


def test_a_probe_begins_from_a_checkpoint_too(world):
    torch.save(Tiny(7).state_dict(), world.root / "source.pt")
    world.settings["probe"]["init"] = "source.pt"
    world.write()
    world.call("select-policy", "--upstream")
    assert world.artifact("probe[a]").manifest.result["init"]["loaded"] == 36
    assert world.artifact("probe[a]").manifest.recipe["init"]
    (world.root / "source.pt").unlink()
    assert "probe.init" in world.refuse("status")
