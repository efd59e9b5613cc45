"""Files of networks: what they must hold, and what in them must never run."""

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from worlds import network_world, segformer

from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.stages.experiment import load
from ensdistill.stages.networks.folders import hub_folder, onnx_data_files
from ensdistill.stages.networks.opened import (
    OnnxNetwork,
    exported_network,
    scores_of,
    torchscript_network,
)
from ensdistill.stages.networks.state_dicts import fit_weights, read_tensors
from ensdistill.stages.networks.students import hf_segmentation

CPU = torch.device("cpu")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 600, 3, 2, 1), nn.BatchNorm2d(600), nn.Conv2d(600, 4, 1)
    ).eval()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """A model whose weights lie beside it, for any size."""
    pytest.importorskip("onnxscript")
    file = tmp_path_factory.mktemp("onnx") / "net.onnx"
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        torch.onnx.export(
            net(),
            (torch.zeros(2, 3, 16, 16),),
            file,
            dynamo=True,
            external_data=True,
            dynamic_shapes=(free,),
        )
    return file


def beside(file):
    return {p.name: p for p in onnx_data_files(file)}


class Runs:
    """What a pickle does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --- state dicts -----------------------------------------------------------------------------


def test_a_checkpoint_fits_key_by_key(tmp_path):
    source, goal = net(0), net(1)
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pth")
    fit_weights(goal, read_tensors(tmp_path / "a.pth"), tmp_path / "a.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), goal.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "ignore", "words"),
    [
        (lambda s: s.pop("0.weight"), [], ["1 missing (0.weight)", "ignore_keys"]),
        (lambda s: s.update({"aux.w": torch.zeros(1)}), [], ["1 unexpected (aux.w)"]),
        (
            lambda s: s.update({"2.bias": torch.zeros(5)}),
            [],
            ["1 of another shape (2.bias [5] there and [4] here)"],
        ),
        (lambda s: s.update({"2.bias": torch.zeros(5)}), ["2.*"], ["'2.*'", "fits no key"]),
        (lambda s: s.update({"aux.w": torch.zeros(1)}), ["aux.*", "axu.*"], ["'axu.*'"]),
        (lambda s: s.update({"aux.w": torch.zeros(1)}), ["aux.*"], []),
        (lambda s: s.pop("1.num_batches_tracked"), [], []),
        (lambda s: s.pop("2.bias"), ["2.bias"], []),
    ],
)
def test_what_does_not_fit_is_listed_and_refused(tmp_path, change, ignore, words):
    state = dict(net().state_dict())
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    found = read_tensors(tmp_path / "a.safetensors")
    if not words:
        fit_weights(net(1), found, tmp_path / "a.safetensors", ignore)
        return
    with pytest.raises(DataError) as caught:
        fit_weights(net(1), found, tmp_path / "a.safetensors", ignore)
    for word in ("a.safetensors", *words):
        assert word in str(caught.value)


def test_a_pickle_that_holds_code_runs_only_where_it_is_trusted(tmp_path):
    state = dict(net().state_dict()) | {"args": Runs(tmp_path / "ran")}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(
        DataError, match=r"a\.pth: holds more than weights: .*posix\.mkdir"
    ) as caught:
        read_tensors(tmp_path / "a.pth", or_else="; or trust")
    assert str(caught.value).endswith("; or trust")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    with pytest.raises(DataError, match="is no checkpoint, or holds more than weights"):
        read_tensors(tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()
    assert "0.weight" in read_tensors(tmp_path / "a.pth", trusted=True)
    assert (tmp_path / "ran").exists()


def test_a_teachers_untrusted_pickle_names_the_way_in(world):
    segformer(world.root / "segformer")
    torch.save({"w": Runs(world.root / "ran")}, world.root / "a.pth")
    network_world(world, network={"hf": "segformer", "state_dict": "a.pth"})
    text = world.refuse("infer-teacher")
    assert "posix.mkdir" in text and "`trust: code` on this teacher" in text
    assert not (world.root / "ran").exists()


# --- what brings its architecture ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["factory", "exported", "torchscript"])
def test_what_carries_code_is_refused_without_trust(world, kind):
    network = {kind: "a:b", "root": "."} if kind == "factory" else {kind: "a.pt"}
    network_world(world, network=network)
    with pytest.raises(ConfigError, match="`trust: code` on this teacher"):
        load(world.file)


def test_recorded_networks_are_what_they_were(tmp_path):
    source, images = net(), torch.randn(2, 3, 20, 24)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters
        torch.jit.save(torch.jit.script(source), tmp_path / "net.pt")
        torch.export.save(torch.export.export(source, (images,)), tmp_path / "net.pt2")
        expected = source(images)
    for module in (
        torchscript_network(tmp_path / "net.pt"),
        exported_network(tmp_path / "net.pt2"),
    ):
        with torch.no_grad():
            torch.testing.assert_close(scores_of(module.eval()(images)), expected)


@pytest.mark.parametrize("load_file", [torchscript_network, exported_network])
@pytest.mark.parametrize("content", [b"", b"nothing", "zip", "pickle"])
def test_what_is_no_recorded_network_is_refused_and_runs_nothing(tmp_path, load_file, content):
    file = tmp_path / "net.pt2"
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Runs(tmp_path / "ran")))
    else:
        file.write_bytes(pickle.dumps(Runs(tmp_path / "ran")) if content == "pickle" else content)
    with pytest.raises(DataError, match=r"net\.pt2: torch\.\w+ cannot load it"):
        load_file(file)
    assert not (tmp_path / "ran").exists()


def test_scores_are_found_in_whatever_a_network_returns():
    scores, other = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    for found in (
        scores,
        {"aux": other, "out": scores},
        {"aux": other, "logits": scores},
        (torch.zeros(()), scores, other),
        [scores],
    ):
        assert scores_of(found) is scores
    for found in ({"a": 3}, [], None, {"out": None, "x": torch.zeros(3)}):
        with pytest.raises(DataError, match=r"expected \(N, C, h, w\)"):
            scores_of(found)


def test_an_onnx_model_with_weights_beside_it_is_the_network(onnx_file):
    module = OnnxNetwork(onnx_file, beside(onnx_file), CPU, 1)
    for size in ((2, 3, 16, 16), (1, 3, 33, 47)):
        images = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(module(images), net()(images), rtol=1e-4, atol=1e-5)


def test_an_onnx_model_reads_no_other_file(onnx_file, tmp_path, monkeypatch):
    import onnx

    for name in ("net.onnx", "net.onnx.data"):
        (tmp_path / name).write_bytes((onnx_file.parent / name).read_bytes())
    monkeypatch.chdir(tmp_path)  # where it would be found by its bare name
    with pytest.raises(DataError, match=r"names begin with net\.onnx"):
        OnnxNetwork(tmp_path / "net.onnx", {}, CPU, 1)
    (tmp_path / "secret").write_bytes((tmp_path / "net.onnx.data").read_bytes())
    inner = tmp_path / "inner"
    inner.mkdir()
    for location in ("../secret", str(tmp_path / "secret"), "secret"):
        model = onnx.load(onnx_file, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (inner / "net.onnx").write_bytes(model.SerializeToString())
        monkeypatch.chdir(inner)
        with pytest.raises(DataError, match="cannot load it"):
            OnnxNetwork(inner / "net.onnx", beside(inner / "net.onnx"), CPU, 1)


def test_changed_weights_beside_an_onnx_model_are_another_teacher(world, onnx_file):
    for name in ("net.onnx", "net.onnx.data"):
        (world.root / name).write_bytes((onnx_file.parent / name).read_bytes())
    network_world(world, network={"onnx": "net.onnx"}, classes="cityscapes19")

    def key():
        return {d["node"]: d["fingerprint"] for d in world.json("status")}["infer[seg]"]

    before = key()
    content = bytearray((world.root / "net.onnx.data").read_bytes())
    content[100] ^= 1
    (world.root / "net.onnx.data").write_bytes(content)
    assert key() != before


def test_what_an_onnx_model_cannot_take_is_said(onnx_file, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    def model(name, shape, kind=TensorProto.FLOAT):
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 8
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    fixed = OnnxNetwork(model("fixed.onnx", [1, 3, 8, 9]), {}, CPU, 1)
    images = torch.randn(2, 3, 8, 9)
    assert torch.equal(fixed(images), images)  # one after another
    with pytest.raises(DataError, match=r"takes images of 1x3x8x9, not of 1x3x9x9; say so"):
        fixed(torch.zeros(1, 3, 9, 9))
    half = OnnxNetwork(model("half.onnx", [1, 3, 8, 9], TensorProto.FLOAT16), {}, CPU, 1)
    torch.testing.assert_close(half(images), images.half())
    with pytest.raises(DataError, match=r"the model takes x tensor\(float\)\[3, 8\]; returns y"):
        OnnxNetwork(model("flat.onnx", [3, 8]), {}, CPU, 1)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"bad\.onnx: onnxruntime cannot load it"):
        OnnxNetwork(tmp_path / "bad.onnx", {}, CPU, 1)


def test_without_onnxruntime_it_is_said_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match=r"pip install 'ensdistill\[onnx\]'"):
        OnnxNetwork(tmp_path / "a.onnx", {}, CPU, 1)


# --- transformers ----------------------------------------------------------------------------


def universal(folder, name):
    import transformers

    torch.manual_seed(0)
    swin = {"depths": [1] * 4, "num_heads": [1] * 4, "embed_dim": 8, "window_size": 4}
    swin |= {"out_features": ["stage1", "stage2", "stage3", "stage4"], "image_size": 64}
    backbone = transformers.SwinConfig(**swin)
    if name == "mask2former":
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=7,
            num_labels=5,
        )
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        detr = transformers.DetrConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=7,
        )
        config = transformers.MaskFormerConfig(
            backbone_config=backbone,
            decoder_config=detr,
            fpn_feature_size=32,
            mask_feature_size=32,
            num_labels=5,
        )
        model = transformers.MaskFormerForInstanceSegmentation(config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
def test_masks_and_their_classes_become_scores_as_in_transformers(tmp_path, name):
    import transformers

    model = universal(tmp_path, name)
    network = hf_segmentation(tmp_path, universal=True).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = network(images)
        found = model(pixel_values=images)
    assert scores.shape[:2] == (2, 5)
    processor = transformers.MaskFormerImageProcessor()
    expected = processor.post_process_semantic_segmentation(found, [scores.shape[2:]] * 2)
    assert torch.equal(scores.argmax(1), torch.stack(expected))


CODE = """
import os
from transformers import PretrainedConfig
os.mkdir({path!r})

class Config(PretrainedConfig):
    model_type = "evil"
"""


def test_code_that_comes_with_a_folder_is_not_run_without_trust(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}'
    )
    (folder / "evil.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="`trust: code`"):
        hf_segmentation(folder, universal=True)
    assert not (tmp_path / "ran").exists()


def test_a_model_of_a_hub_is_found_at_its_revision(tmp_path, monkeypatch):
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--net" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_folder("some/net", revision, download=False) == snapshot
    with pytest.raises(DataError, match="was not downloaded; `ensdistill check` does it"):
        hub_folder("some/other", revision, download=False)
    with pytest.raises(DataError, match="cannot be downloaded"):
        hub_folder("some/other", revision, download=True)


def test_a_hub_needs_a_pinned_revision(world):
    network_world(world, network={"hf": "some/net", "revision": "main"})
    with pytest.raises(ConfigError, match="revision"):
        load(world.file)


def test_bits_of_a_spoilt_onnx_file_never_pass(onnx_file, tmp_path):
    content = bytearray(onnx_file.read_bytes())
    random = np.random.default_rng(0)
    for _ in range(20):
        spoilt = bytearray(content)
        del spoilt[random.integers(len(spoilt)) :]
        (tmp_path / "net.onnx").write_bytes(spoilt)
        with pytest.raises(DataError):
            OnnxNetwork(tmp_path / "net.onnx", beside(onnx_file), CPU, 1)
