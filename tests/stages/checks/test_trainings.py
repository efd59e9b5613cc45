"""What `check` finds out about probe and student before there is a label for them."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import opened
from safetensors.torch import load_file
from worlds import TINY, World, files_of, segformer

from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.checks import trainings
from ensdistill.stages.checks.trainings import try_trainings
from ensdistill.stages.graph import load
from ensdistill.stages.networks import frozen
from ensdistill.stages.networks.frozen import pick_device
from ensdistill.stages.networks.students import Tiny
from ensdistill.stages.training import loop
from ensdistill.stages.training.samples import Samples
from ensdistill.stages.work.items import Silence

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, kind):
        super().__init__()
        self.kind = kind
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.decoder = nn.Conv2d(4, classes, 1)
        self.spare = nn.Conv2d(4, classes, 1)
        self.beside = torch.rand(1) if kind == "beside" else 1.0
        self.again = self.encoder if kind == "twice" else None

    def forward(self, x):
        print("its own words")
        kind = self.kind
        y = self.encoder(x) * self.beside
        if kind == "restless":
            y = nn.functional.dropout(y)
        if kind == "flat":
            y = y.view(len(y), -1).reshape(y.shape)
        if kind == "pooled":  # one value a channel
            y = y + nn.functional.instance_norm(y.mean((2, 3), keepdim=True))
        if kind == "large" and x.shape[-1] > 100:
            raise RuntimeError("no room for so much")
        if kind == "memory" and x.shape[-1] > 100:
            raise torch.OutOfMemoryError("all of it")
        y = self.decoder(y)
        if kind == "steep":
            y = y**8
        if kind == "softmax":
            y = y.softmax(1)
        return y * float("nan") if kind == "nan" else y


class Stateful(Net):
    def get_extra_state(self):
        return {"a": "text"}

    def set_extra_state(self, state):
        pass


def build(classes=19, kind=None):
    return (Stateful if kind == "state" else Net)(classes, kind)


def ending():
    import os

    os.environ["LEFT_BEHIND"] = "1"
    os._exit(3)


def leaving():
    import os

    os.environ["LEFT_BEHIND"] = "1"
    return Net(19, None)


def once():
    import sys

    if sys.registered:
        raise KeyError("is registered already")
    sys.registered = True
    return Net(19, None)


def raising():
    raise OSError("weights/resnet101.pth: no such file")


def importing():
    import segmentation_models_pytroch
"""


@pytest.fixture
def code_world(tmp_path):
    """A world whose student is a function; nothing is trained but it."""
    world = World(tmp_path, train=3, val=1)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "nets.py").write_text(CODE)
    world.settings["student"] = code()
    world.settings["fusion"] = {"method": "majority"}
    del world.settings["probe"]
    world.write()
    return world


def code(function="build", kwargs=None, **more):
    network = {"factory": f"nets:{function}", "root": "repo", "kwargs": kwargs or {}}
    return TINY | {"trust": "code", "network": network} | more


def found(world):
    return world.json("check")["trainings"]


@pytest.fixture
def tried(monkeypatch):
    """Return the list of the sections that were tried, not recalled."""
    sections = []
    real = trainings.tried

    def counted(section, *arguments):
        sections.append(section)
        return real(section, *arguments)

    monkeypatch.setattr(trainings, "tried", counted)
    return sections


# --- what is found ---------------------------------------------------------------------------


def test_what_is_trained_is_known_before_any_work(code_world):
    code_world.settings["student"] |= {
        "head": ["decoder.*"],
        "head_lr_factor": 4.0,
        "batch_size": 6,
    }
    code_world.write()
    assert found(code_world).keys() == {"student"}
    student = found(code_world)["student"]
    seconds = student.pop("seconds_per_step")
    assert seconds > 0
    assert student == {
        "network": "nets:build",
        "weights": 4 * 3 * 9 + 4 + 2 * 4 + 4 * 19 + 19,
        "tensors": 6,
        "body": {"lr": 0.01, "tensors": 4, "names": ["encoder.*"]},
        "head": {"lr": 0.04, "tensors": 2, "names": ["decoder.*"]},
        "frozen": ["spare.weight", "spare.bias"],
        "init": None,
        "device": "cpu",
        "steps": 6,
        "settles": False,
        "folds": 1,
        "features": None,
        "warnings": [],
    }
    text = code_world.call("check")
    assert (
        "student: nets:build, 215 weights in 6 tensors; body at 0.01, head (decoder.*, 2 tensors) "
        "at 0.04\n" in text
    )
    assert f"a step takes {seconds:.2g} s here, on cpu, 6 steps about" in text
    assert "its own words" not in text
    assert not (code_world.root / "work").exists() or not code_world.artifacts()


def test_a_network_without_a_head_is_said_to_have_none(code_world):
    student = found(code_world)["student"]
    assert student["head"] == {"lr": 0.01, "tensors": 0, "names": []}
    assert student["body"]["names"] == ["encoder.*", "decoder.*"]
    assert "all at 0.01, as none of them is in the head (`head:` says which" in code_world.call(
        "check"
    )


def test_first_weights_are_loaded_and_said(world):
    torch.save(Tiny(7).state_dict(), world.root / "source.pt")
    world.settings["student"]["init"] = "source.pt"
    world.write()
    student = found(world)["student"]
    assert student["init"] == (
        f"36 tensors of {world.root}/source.pt; made anew in the head: head.weight, head.bias"
    )
    # remembered by what the file holds, and told of where it is now
    (world.root / "source.pt").rename(world.root / "start.pt")
    world.settings["student"]["init"] = {"file": "start.pt"}
    world.write()
    assert found(world)["student"]["init"].startswith(f"36 tensors of {world.root}/start.pt;")


def test_frozen_batch_norm_is_not_trained(world):
    world.settings["student"]["batch_norm"] = "frozen"
    world.write()
    all_of_it, frozen = (found(world)[section] for section in ("probe", "student"))
    assert (all_of_it["tensors"], all_of_it["frozen"]) == (20, [])
    assert frozen["tensors"] == 20 - 2 * 6
    assert frozen["frozen"][-1] == f"and {2 * 6 - 4} more"
    assert all_of_it["weights"] == sum(p.numel() for p in Tiny(19).parameters())


def test_a_folder_is_called_by_its_name(world):
    segformer(world.root / "networks/small")
    world.settings["student"]["network"] = {"hf": "networks/small"}
    world.write()
    student = found(world)["student"]
    assert student["network"] == "networks/small"
    assert student["head"]["names"] == ["decode_head.*"]
    assert student["init"].startswith("124 tensors of")


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2, "batch_size": 4},
        {"precision": "bfloat16"},
        {"ema": 0.9, "clip": 1.0},
        {"colour": 0.5, "blur": 0.5, "hard_share": 0.3, "class_balance": 2.0},
        {"steps": 1, "power": 0, "warmup": 3},
        {"optimizer": "sgd", "nesterov": True},
        {"watch": "val", "checkpoint": "best"},
        {"pixel_weights": "posterior"},
        {"input_size": [96, 128], "crop": [31, 45]},
    ],
    ids=lambda s: next(iter(s)),
)
def test_settings_of_a_training_are_tried_as_they_are(world, settings):
    world.settings["student"] |= settings
    world.write()
    assert found(world)["student"]["tensors"] == 20


def test_no_label_is_opened(world):
    world.settings["student"] |= {"watch": "val", "checkpoint": "best"}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    with opened() as paths:
        try_trainings(load(world.file), ["student"], Silence())
    assert not [p for p in paths if "/labels/" in p or "/teachers/" in p]


# --- which are tried -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "method", "sections"),
    [
        (None, "majority", ["student"]),
        (None, "channel", ["probe", "student"]),
        ({"steps": 3, "lr": 0.1}, "majority", ["student"]),
        ({"network": {"arch": "tiny"}}, "majority", ["probe", "student"]),
        ({"init": "source.pt", "network": {"arch": "tiny"}}, "label-model", ["probe", "student"]),
    ],
)
def test_a_probe_is_tried_where_it_is_trained_or_has_a_network(
    world, tried, probe, method, sections
):
    torch.save(Tiny(7).state_dict(), world.root / "source.pt")
    del world.settings["probe"]
    if probe is not None:
        world.settings["probe"] = probe
    elif method == "channel":  # a default network is a large one for a test
        world.settings["probe"] = TINY | {"lr": 0.02}
    world.settings["fusion"] = {"method": method}
    world.write()
    assert list(found(world)) == tried == sections


def test_what_was_tried_once_is_not_tried_again(code_world, tried, monkeypatch):
    first = found(code_world)
    assert tried == ["student"]
    assert found(code_world) == first
    assert tried == ["student"]
    # neither by what decides nothing of it
    code_world.settings["runtime"] |= {"workers": 1, "checkpoint_every": 7}
    code_world.settings["workspace"] = "work/../work"
    code_world.write()
    assert found(code_world) == first
    assert tried == ["student"]


def test_what_decides_it_makes_it_be_tried_again(code_world, tried, monkeypatch):
    def again():
        before = len(tried)
        found(code_world)
        return len(tried) - before

    assert again() == 1 and again() == 0
    code_world.settings["student"]["lr"] = 0.02
    code_world.write()
    assert again() == 1
    module = code_world.root / "repo" / "nets.py"
    module.write_text(CODE + "\n# changed\n")
    assert again() == 1
    code_world.settings["runtime"]["threads"] = 2
    code_world.write()
    assert again() == 1 and again() == 0
    monkeypatch.setattr(frozen, "_installed", list)  # a package is gone
    assert again() == 1


def test_a_failure_is_not_remembered(code_world, tried):
    code_world.settings["student"] = code(kwargs={"classes": 3})
    code_world.write()
    for _ in range(2):
        assert "3 channels" in code_world.refuse("check")
    assert tried == ["student", "student"]


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (code(kwargs={"classes": 20}), ["student.network: its logits have 20 channels"]),
        (code("raising"), ["student.network: ", "nets:raising failed (OSError: weights/resnet101"]),
        (code("importing"), ["student.network: ", "No module named 'segmentation_models_pytroch'"]),
        (code("missing"), ["student.network: ", "has no attribute 'missing'"]),
        (
            code(kwargs={"clases": 19}),
            ["student.network: ", "unexpected keyword argument 'clases'"],
        ),
        (code(kwargs={"kind": "nan"}), ["student: the loss is nan at step 1 of 6"]),
        (code(kwargs={"kind": "pooled"}), ["student.network: it fails on images of 2x3x32x48"]),
        (
            code(kwargs={"kind": "large"}, crop=[128, 192]),
            ["student.network: it fails in a step on 2 crops of 128x192 on cpu (Runt"],
        ),
        (
            code(kwargs={"kind": "memory"}, crop=[128, 192]),
            ["student.crop: 2 crops of 128x192", "memory of cpu"],
        ),
        (
            code(kwargs={"kind": "state"}),
            ["student.network: it cannot be written", "state_dict holds '_extra_state', which is"],
        ),
        (
            code(kwargs={"kind": "beside"}, seed=1),
            ["student.network: what was trained answers otherwise", "`register_buffer`"],
        ),
        (code(kwargs={"kind": "restless"}), ["student.network: what was trained answers otherw"]),
        (
            code(kwargs={"kind": "flat"}),
            ["student.network: it fails in a step", "say `runtime: {channels_last: false}`"],
        ),
        (
            code("once"),
            ["student.network: it cannot be written and read back", "'is registered already'"],
        ),
        (
            code(lr=1e30, kwargs={"kind": "steep"}),
            ["student: the loss is nan at step 2 of 6; lower `lr`"],
        ),
        (code(head=["decodr.*"]), ["student.head: 'decodr.*' fits no name", "decoder.*"]),
        (code(head_lr_factor=10.0), ["student.head_lr_factor: 10 reaches no tensor", "`head: ["]),
        (code(init="wrong.pth"), ["student.init: ", "wrong.pth lacks 10 of the", "it holds conv1"]),
        (code(init="no.pth"), ["student.init: ", "no.pth is no file"]),
        (code(init={"file": "wrong.pth", "into": "enc"}), ["student.init.into: no tensor of the"]),
        (TINY | {"network": {"hf": "nowhere"}}, ["student.network.hf: ", "nowhere is no folder"]),
        (TINY | {"network": {"hf": "repo"}}, ["student.network.hf: ", "holds no .json"]),
    ],
)
def test_a_training_that_cannot_begin_is_refused_by_its_key(
    code_world, student, words, monkeypatch
):
    monkeypatch.setattr(sys, "registered", False, raising=False)
    torch.save({"conv1.weight": torch.zeros(3, 3)}, code_world.root / "wrong.pth")
    code_world.settings["student"] = student
    code_world.write()
    text = code_world.refuse("check")
    assert text.startswith("DataError: ") and "Traceback" not in text
    for word in words:
        assert word in text
    assert not code_world.artifacts()


def test_problems_of_probe_and_student_are_told_at_once(code_world):
    code_world.settings["student"] = code(kwargs={"classes": 20})
    code_world.settings["probe"] = code(head_lr_factor=10.0)
    code_world.write()
    text = code_world.refuse("check")
    assert "2 problems" in text
    assert "probe.head_lr_factor: 10 reaches" in text and "student.network: its logits" in text


def test_the_paper_s_recipe_asks_for_the_head_of_an_own_network(code_world):
    small = {"crop": [32, 48], "input_size": [48, 64], "batch_size": 2}
    code_world.settings["student"] = {"preset": "paper", **code(), **small}
    code_world.write()
    assert '`head: ["decoder.*"]`' in code_world.refuse("check")
    code_world.settings["student"]["head"] = ["decoder.*"]
    code_world.write()
    assert found(code_world)["student"]["head"]["lr"] == pytest.approx(0.1)


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_here_is_refused_once(world, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    for teacher in ("one", "two"):
        segformer(world.root / teacher)
        world.settings["teachers"].append({"name": teacher, "network": {"hf": teacher}})
    world.settings["runtime"]["device"] = name
    world.write()
    assert world.refuse("check") == (
        f"DataError: runtime.device: {name} was asked for, but torch sees no such device; it sees "
        "cpu"
    )


def test_devices_are_known_by_name_and_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "xpu"):
        assert pick_device(name) == torch.device(name)
    assert pick_device("auto") == torch.device("cuda")
    for name in ("cuda:2", "cuda:01", "mps"):
        with pytest.raises(DataError, match=f"{name} was asked for.* sees cpu, cuda, cuda:0"):
            pick_device(name)
    for name in ("gpu", "CUDA", "cuda:", "cuda:x", "cpu:0", "meta", "", "cuda:0 "):
        with pytest.raises(DataError, match="is no device; expected auto, cpu, cuda"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


# --- crops -----------------------------------------------------------------------------------


def crop_warnings(world, **settings):
    world.settings["student"] |= settings
    world.write()
    return found(world)["student"]["warnings"]


def test_a_crop_larger_than_every_image_is_told_with_the_sizes(world):
    [text] = crop_warnings(world, crop=[64, 96], scale=[0.5, 1.25])
    assert text == (
        "student.crop: 64x96 pixels (height x width) are more than any image has: 48x64 at most, "
        "1.25 times that at the largest `scale`. At least 22 % of each crop is padding without a "
        "label; set `crop: [48, 64]`, or a larger `input_size`"
    )
    assert f"warning: {text}\n" in world.call("check")
    assert crop_warnings(world, scale=[0.5, 1.5]) == []
    [text] = crop_warnings(world, scale=[1, 1])
    assert "48x64 at most. At least 50 %" in text
    assert crop_warnings(world, input_size=[64, 96]) == []
    assert "40x96 at most" in crop_warnings(world, input_size=[40, 96])[0]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    crop=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([0.5, 1.0, 1.25, 2.0]),
)
def test_crops_are_judged_by_what_samples_hold(sizes, crop, scale):
    """By what the loader's own cutting gives at that scale."""
    pictures = [Picture(str(k), f"{k}.png", None) for k in range(len(sizes))]
    images = {p.id: np.zeros((*size, 3), np.uint8) for p, size in zip(pictures, sizes, strict=True)}
    recipe = {"crop": crop, "scale": (scale, scale), "input_size": None, "flip": False, "seed": 0}
    recipe |= {"class_mix": 0.0, "rare_class_temperature": None, "colour": 0.0, "blur": 0.0}
    samples = Samples(
        SimpleNamespace(pictures=pictures, digests={p.image: p.id for p in pictures}),
        SimpleNamespace(read=lambda i: images[i][..., 0], records=None),
        recipe | {"steps": 1, "batch_size": len(sizes)},
        (0, 0, 0),
        SimpleNamespace(read=lambda _, sha256: images[sha256]),
    )
    padded = [np.mean(samples[k].label.numpy() == 255) for k in range(len(sizes))]
    facts = {p.image: {"height": h, "width": w} for p, (h, w) in zip(pictures, sizes, strict=True)}
    experiment = SimpleNamespace(
        files=SimpleNamespace(recall=lambda image, _: facts[image]), pictures=lambda _: pictures
    )
    training = SimpleNamespace(crop=crop, scale=(0.1, scale), input_size=None, train="all")
    said = trainings._too_large(experiment, "student", training)
    assert bool(said) == (min(padded) > 0)
    if said:
        assert f"At least {100 * min(padded):.0f} % of each" in said[0]


def test_crops_of_features_are_judged_by_whole_cells():
    picture = Picture("a", "a.png", None)
    experiment = SimpleNamespace(
        files=SimpleNamespace(recall=lambda *_: {"height": 40, "width": 61}),
        pictures=lambda _: [picture],
    )

    def said(*crop):
        settings = SimpleNamespace(crop=crop, scale=(1, 1), input_size=None, train="decoder")
        return trainings._too_large(experiment, "student", settings)

    assert said(48, 64) == []
    assert "`crop: [48, 64]`" in said(64, 64)[0]


# --- what it leaves behind -------------------------------------------------------------------


def test_a_check_before_changes_no_byte_of_a_training(code_world):
    code_world.settings["student"] |= {"head": ["decoder.*"], "precision": "bfloat16"}
    code_world.write()
    code_world.call("train-student", "--upstream")
    expected = files_of(code_world.artifact("student").path)
    code_world.settings["workspace"] = "other"
    code_world.write()
    benchmark = torch.backends.cudnn.benchmark = False
    code_world.call("check")
    assert torch.backends.cudnn.benchmark is benchmark
    code_world.call("train-student", "--upstream")
    again = files_of(code_world.artifact("student").path)
    for files in (expected, again):
        files.pop("manifest.json")
    assert again == expected


@pytest.mark.parametrize(("kind", "channels_last"), [("twice", True), ("flat", False)])
def test_what_was_tried_is_what_comes_out_of_the_training(code_world, kind, channels_last):
    """A module that is held twice is written twice; tensors lie as the file says."""
    code_world.settings["student"] = code(kwargs={"kind": kind})
    code_world.settings["runtime"]["channels_last"] = channels_last
    code_world.write()
    found(code_world)
    code_world.call("run")
    tensors = load_file(code_world.artifact("student").path / "model.safetensors")
    assert ("again.0.weight" in tensors) == (kind == "twice")
    if kind == "twice":
        assert torch.equal(tensors["again.0.weight"], tensors["encoder.0.weight"])


def test_a_softmax_before_the_loss_is_told(code_world):
    code_world.settings["student"] = code(kwargs={"kind": "softmax"})
    code_world.write()
    [text] = found(code_world)["student"]["warnings"]
    assert text.startswith("student: all its scores are between 0 and 1 and sum to 1")
    assert text.endswith("return logits")


def test_how_tensors_lie_is_part_of_what_was_tried(code_world):
    code_world.settings["student"] = code(kwargs={"kind": "flat"})
    code_world.settings["runtime"]["channels_last"] = False
    code_world.write()
    found(code_world)
    code_world.settings["runtime"]["channels_last"] = True
    code_world.write()
    assert "channels_last: false" in code_world.refuse("check")


@pytest.mark.slow
def test_before_a_run_code_is_tried_in_a_process_of_its_own(code_world, monkeypatch):
    monkeypatch.delenv("LEFT_BEHIND", raising=False)
    code_world.settings["student"] = code("leaving")
    code_world.write()
    apart = try_trainings(load(code_world.file), ["student"], Silence(), apart=True)
    assert "LEFT_BEHIND" not in os.environ
    again = try_trainings(load(code_world.file), ["student"], Silence())
    assert again == apart and again[0]["student"]["tensors"] == 6
    code_world.settings["student"] = code("ending")
    code_world.write()
    assert "student.network: the process that tried it was ended" in code_world.refuse("run")
    assert not code_world.artifacts()


def test_a_batch_that_processes_cannot_share_is_found_before(code_world, monkeypatch):
    monkeypatch.setattr(trainings, "together", lambda: 4)
    for command in ("check", "run"):
        assert "student: batch_size is 2; expected a multiple of 4" in code_world.refuse(command)
    assert not code_world.artifacts()


def test_it_is_the_loop_s_own_step_that_is_tried(code_world, on_step):
    """Another loop would one day do another thing."""
    steps = []
    on_step(steps.append)
    found(code_world)
    assert steps == [0, 1]


def test_a_step_s_time_is_that_of_a_whole_batch(code_world, monkeypatch):
    monkeypatch.setattr(loop.Training, "rehearse", lambda *_: 3.0)
    code_world.settings["student"]["batch_size"] = 10
    code_world.write()
    assert found(code_world)["student"]["seconds_per_step"] == 15
    code_world.settings["student"]["steps"] = 480
    code_world.write()
    assert "a step takes 15 s here, on cpu, 480 steps about 2 h 00 min" in code_world.call("check")
    code_world.settings["student"]["batch_size"] = 100
    code_world.write()
    assert "a step takes 150 s here" in code_world.call("check")


def test_noise_bears_all_classes():
    recipe = {"crop": [8, 8], "seed": 3, "colour": 0.5, "blur": 0.5}
    batch = trainings._noise(recipe, 19)
    assert set(batch.label.flatten().tolist()) == set(range(19))
    assert batch.image.shape == (2, 8, 8, 3) and batch.image.float().std() > 50
    assert batch.weight.shape == (2, 0, 0) and batch.look.shape == (2, 5)
