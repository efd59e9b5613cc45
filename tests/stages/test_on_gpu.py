"""What is to hold on a GPU as it does on the CPU; where the body is the same it runs on both."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from worlds import EVERYTHING, TINY, World, files_of, network_world, segformer

from ensdistill.data.decoded import Pixels
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.networks.frozen import FrozenNetwork
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.stream import Clock, Request
from ensdistill.stages.networks.students import build_student
from ensdistill.stages.training.losses import PixelLoss

on_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = pytest.param("cuda", marks=on_cuda)
DEFAULT = {"arch": "mobilenetv2-deeplabv3plus"}


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """The name of a device."""
    return request.param


@pytest.fixture(params=[CUDA])
def gpu(request):
    """The name of a device that is no CPU."""
    return request.param


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in whole float32, as on the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def fused(tmp_path):
    """A world whose labels are fused, so that a student is all that is missing."""
    world = World(tmp_path)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    return world


def student(world, device, **settings):
    """Describe a student that is trained on a device."""
    world.settings["student"] = TINY | settings
    world.settings["runtime"] |= {"device": device}
    world.write()


def requests_of(world):
    """Return the images of one size."""
    files = sorted((world.root / "images" / "train").glob("*.png"))[1:]
    return [Request(str(f), sha256(f.read_bytes()).hexdigest()) for f in files]


def seen(network, requests, want, size=2, say=print):
    """Return what is wanted of each image, which a network sees some at a time."""
    batches = [requests[k : k + size] for k in range(0, len(requests), size)]
    return [one for batch in network.stream(batches, want, Pixels(), Clock(), say) for one in batch]


# --- networks that are only run --------------------------------------------------------------


@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"flip": True, "scales": (0.75, 1.0)},
        {"tiles": {"size": (32, 40), "overlap": (8, 8)}},
        {"align_corners": True, "size": (40, 56)},
    ],
    ids=lambda ways: ",".join(ways) or "plain",
)
@pytest.mark.parametrize("want", ["labels", "both", "confidence"])
def test_a_network_says_what_it_does_on_the_cpu(world, device, exact, ways, want):
    module = build_student("tiny", 19, None, 0)
    requests = requests_of(world)
    here, there = (
        seen(FrozenNetwork(module, Preprocessing(**ways), torch.device(d)), requests, want)
        for d in ("cpu", device)
    )
    for arrays, others in zip(here, there, strict=True):
        for k, (array, other) in enumerate(zip(arrays, others, strict=True)):
            assert array.shape == other.shape and array.dtype == other.dtype
            if want != "confidence" and k == 0:
                assert (array != other).mean() <= 1e-3  # last bits order scores that are alike
            else:
                most = 1 if want == "confidence" else 1e-3
                assert np.abs(array.astype(float) - other).max() <= most


def test_whole_softmax_is_that_of_the_cpu(world, device, exact):
    module = build_student("tiny", 19, None, 0)
    requests = requests_of(world)
    here, there = (
        seen(FrozenNetwork(module, Preprocessing(), torch.device(d)), requests, "soft")
        for d in ("cpu", device)
    )
    for (array,), (other,) in zip(here, there, strict=True):
        assert np.abs(array.astype(int) - other).max() <= 1


def labels_on(world, device, **runtime):
    """Return the label maps that the only teacher makes on a device."""
    world.settings["runtime"] |= {"device": device, **runtime}
    world.write()
    shutil.rmtree(world.root / "work", ignore_errors=True)
    world.call("infer-teacher")
    artifact = world.artifact("infer[seg]")
    assert artifact.manifest.runtime["device"] == device
    assert artifact.manifest.runtime["hardware"]
    maps = LabelMaps(artifact)
    return [maps.read(image_id) for image_id in maps]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_teacher_labels_alike_in_batches_and_in_fewer_bits(world, device, exact, precision):
    network_world(world, network={"hf": str(segformer(world.root / "net"))})
    expected = labels_on(world, "cpu")
    network_world(world, network={"hf": str(world.root / "net"), "precision": precision})
    found = labels_on(world, device, batch_size=3, workers=2)
    different = np.mean([(a != b).mean() for a, b in zip(expected, found, strict=True)])
    assert different <= (1e-3 if precision == "float32" else 0.2)


class Hungry(torch.nn.Module):
    """Needs 64 MB an image for a moment, and calls bright pixels 1."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        if not images.is_cuda and len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        torch.empty(len(images) << 26, dtype=torch.uint8, device=images.device)
        self.seen.append(len(images))
        bright = images.mean(1, keepdim=True)
        return torch.cat([-bright, bright], 1)


@pytest.fixture
def little_memory(device):
    """200 MB more than there are in use, where the device is one that counts."""
    if device == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (200 << 20)) / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_half_as_many_images_are_seen_where_memory_ends(world, device, little_memory):
    requests, said, module = requests_of(world), [], Hungry()
    network, other = (
        FrozenNetwork(m, Preprocessing(), torch.device(device)) for m in (module, Hungry())
    )
    found = seen(network, requests, "labels", size=4, say=said.append)
    assert module.seen == [2, 2]
    assert network.facts["batch_size"] == 2
    assert any(text.startswith("no memory for 4 images at once: 2 from now on") for text in said)
    alone = seen(other, requests, "labels", size=1)
    assert all(np.array_equal(a, b) for (a,), (b,) in zip(found, alone, strict=True))


def test_a_gpu_may_be_named_by_its_number(fused, gpu):
    network_world(fused, network={"hf": str(segformer(fused.root / "net"))})
    student(fused, f"{gpu}:0")
    fused.call("infer-teacher")
    fused.call("train-student", "--upstream")
    for node in ("infer[seg]", "student"):
        assert fused.artifact(node).manifest.runtime["device"] == f"{gpu}:0"


# --- trainings -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("network", [{"arch": "tiny"}, DEFAULT], ids=["tiny", "default"])
def test_it_trains_in_every_precision(fused, device, network, precision):
    student(fused, device, network=network, precision=precision, batch_norm="sync")
    fused.call("train-student")
    artifact = fused.artifact("student")
    assert np.isfinite(artifact.manifest.result["loss"])
    assert artifact.manifest.runtime["device"] == device


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_the_cpu(fused, device, exact, workers):
    losses = []
    for where in ("cpu", device):
        student(fused, where, colour=0.3, blur=0.5, class_mix=0.5, hard_share=0.5, clip=1.0)
        fused.settings["runtime"]["workers"] = workers
        fused.write()
        shutil.rmtree(fused.root / "work" / "student", ignore_errors=True)
        fused.call("train-student")
        losses.append(fused.artifact("student").manifest.result["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


# `stop` is the step at which the process is gone, with nothing tidied up
DETERMINISTIC = """
import os, sys, torch
from ensdistill.stages.training import loop
torch.use_deterministic_algorithms(True)
begin, stop = loop.Training.begin_step, int(sys.argv[1])
def counted(training, step):
    if step == stop:
        os._exit(9)
    return begin(training, step)
loop.Training.begin_step = counted
from ensdistill.cli.__main__ import main
main(sys.argv[2:])
"""


def train_apart(world, stop=-1):
    """Train the student in a process of its own, and return how that ended."""
    return subprocess.run(
        [sys.executable, "-c", DETERMINISTIC, str(stop), "train-student", "-c", str(world.file)],
        env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
        check=False,
    )


def trained(world):
    """Return the files of the student, but for what tells how it was made."""
    found = files_of(world.artifact("student").path)
    found.pop("manifest.json")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [{"arch": "tiny"}, DEFAULT, {"hf": "net"}], ids=["tiny", "default", "segformer"]
)
def test_a_killed_training_ends_in_the_same_bits(fused, device, network):
    segformer(fused.root / "net")
    student(fused, device, **EVERYTHING, steps=12, network=network)
    fused.settings["runtime"]["checkpoint_every"] = 3
    fused.write()
    done = train_apart(fused)
    assert done.returncode == 0, done.stderr
    expected = trained(fused)
    shutil.rmtree(fused.root / "work" / "student")
    assert train_apart(fused, stop=7).returncode == 9
    done = train_apart(fused)
    assert done.returncode == 0, done.stderr
    assert trained(fused) == expected


@pytest.mark.parametrize("hard", [1.0, 0.5])
def test_weighted_pixels_are_summed_where_all_is_to_be_deterministic(device, hard):
    labels = torch.randint(0, 4, (2, 32, 48), device=device)
    weights = torch.randint(0, 101, labels.shape, dtype=torch.uint8, device=device)
    logits = torch.randn(2, 4, 8, 12, device=device, requires_grad=True)
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            loss_of = PixelLoss(4, 7.0, 5.0, hard, torch.device(device))
            loss_of.begin(labels, weights, len(labels))
            part = loss_of.part(logits, labels, weights)
            found.append((*torch.autograd.grad(part, logits), loss_of.end()[0]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# --- what a GPU reports ----------------------------------------------------------------------

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 19, 1)

    def forward(self, images):
        if images.is_cuda:
            {what}
        return self.head(images)
"""
BEYOND = "images = images + images.new_zeros(9).index_select(0, 99 + images.new_zeros(1).long())"
ENDLESS = "images = images + images.new_zeros(2**50)"


@pytest.fixture
def failing(fused, gpu):
    """Return what makes of some code the student, and the only teacher, and runs a command."""

    def run(what, command):
        (fused.root / "code").mkdir()
        (fused.root / "code" / "nets.py").write_text(CODE.format(what=what))
        network = {"factory": "nets:Net", "root": "code"}
        student(fused, gpu, trust="code", network=network)
        if command == "infer-teacher":
            network_world(fused, trust="code", network=network)
        done = subprocess.run(  # a process of its own, as it may lose its GPU
            [sys.executable, "-m", "ensdistill.cli", command, "-c", str(fused.file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0, done.stdout
        assert "nobody foresaw this" not in done.stderr
        return done.stderr

    return run


@pytest.mark.parametrize("command", ["infer-teacher", "train-student"])
def test_an_index_out_of_range_is_told_in_a_sentence(failing, command):
    said = failing(BEYOND, command)
    assert "the GPU reports an error (CUDA error: device-side assert triggered)" in said
    assert "CUDA_LAUNCH_BLOCKING=1" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "infer-teacher",
            "there is no memory for 1 images at once; set `runtime: {batch_size: 1}`",
        ),
        ("train-student", "there is no memory on cuda for step 1; lower `batch_size` or `crop`"),
    ],
)
def test_a_gpu_without_room_is_told_in_a_sentence(failing, command, words):
    assert words in failing(ENDLESS, command)
