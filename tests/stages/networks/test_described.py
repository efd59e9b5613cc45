"""Files of others with a value of every wrong type in every place: read, or refused by name."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mutants import mutants, outcome
from worlds import segformer

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.stages.graph import load
from ensdistill.stages.local import Running
from ensdistill.stages.networks.folders import (
    hf_preprocessing,
    network_classes,
    read_description,
    require_own_files,
    require_trusted_code,
    shards,
)
from ensdistill.stages.networks.frozen import describe, load_student, save_network
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import (
    Tiny,
    hf_segmentation,
    pad_to_multiple,
)
from ensdistill.stages.networks.universal import hf_teacher
from ensdistill.stages.reading.comparison import compare, summary
from ensdistill.stages.reading.report import _metrics

EXPERIMENT = {
    "version": 1,
    "workspace": "work",
    "classes": {"table": "classes.yaml"},
    "target": {
        "train": {"images": "i/*.png"},
        "val": {"images": "v/*.png", "labels": "g/*.png", "ids": "train_ids", "overlap": ["train"]},
        "test": {"cityscapes": "c", "split": "test"},
        "more": {"list": "list.txt"},
    },
    "teachers": [
        {
            "name": "a",
            "labels": {"train": "a"},
            "confidence": {"train": "c"},
            "map": {"road": "road"},
        },
        {
            "name": "b",
            "classes": "camvid11",
            "trust": "code",
            "keep": ["soft"],
            "network": {
                "factory": "m:f",
                "root": ".",
                "kwargs": {"n": [1, {"a": 2}]},
                "files": {"weights": "w.pth"},
                "void_channels": [0],
                "take": {"out": 1.0, "1": 0.5},
                "divisor": 8,
            },
            "preprocess": {"preset": "caffe", "mean": [1, 2, 3], "size": [8, 8], "flip": True},
        },
        {"name": "c", "network": {"hf": "o/n", "revision": "0" * 40, "state_dict": "w", "take": 1}},
        {"name": "d", "network": {"onnx": "f"}, "preprocess": {"tiles": {"size": [8, 8]}}},
    ],
    "probe": {"preset": "paper", "init": {"file": "w", "into": "a"}, "head": ["x.*"]},
    "policy": {"strategy": "manual", "assign": {"road": "a"}},
    "fusion": {"method": "channel", "window": 3},
    "student": {"init": "w", "network": {"arch": "tiny"}, "scale": [1, 2], "preprocess": {}},
    "runtime": {"device": "cpu", "workers": 0},
}
FEW = (None, True, -1, 10**30, float("inf"), "x", [[]], {"preset": []})
TABLE = {
    "classes": [{"name": "road", "colour": [1, 2, 3], "label_id": 1}],
    "ignored_label_ids": [0],
    "subsets": {"half": ["road"]},
}
METHOD = {"kind": "teacher", "name": "a", "miou": 50, "miou_present": 50.5, "iou": {"road": 50}}
METHOD = METHOD | {"miou_subsets": {"half": None}, "coverage": 1.0}
RESULTS = {
    "format": 1,
    "experiment": "experiment.yaml",
    "split": "val",
    "truth": "0" * 64,
    "classes": ["road"],
    "classes_present": ["road"],
    "subsets": {"half": ["road"]},
    "fusion": "majority",
    "methods": [METHOD, METHOD | {"kind": "fusion", "name": "majority"}],
    "not_scored": [{"kind": "student", "name": "student", "why": "not trained"}],
    "policy": {"road": "a"},
    "nodes": [
        {"stage": "infer", "of": "a", "split": None, "seconds": 1.5, "computed": 2, "reused": 0}
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", EXPERIMENT)
def test_an_experiment_file_of_wrong_types(tmp_path, part):
    (tmp_path / "classes.yaml").write_text(json.dumps(TABLE))
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps(EXPERIMENT))
    load(file)
    refused = 0
    for _, _, content in mutants(EXPERIMENT[part], FEW):
        file.write_text(json.dumps({**EXPERIMENT, part: content}))
        refused += bool(outcome(lambda: load(file), file))
    assert refused


def test_a_class_table_of_wrong_types(tmp_path):
    settings = {**EXPERIMENT, "teachers": [{"name": "a", "labels": {"train": "a"}}], "policy": {}}
    file, table = tmp_path / "experiment.yaml", tmp_path / "classes.yaml"
    file.write_text(json.dumps(settings))
    table.write_text(json.dumps(TABLE))
    load(file)
    refused = 0
    for _, _, content in mutants(TABLE):
        table.write_text(json.dumps(content))
        refused += bool(outcome(lambda: load(file), file, table))
    assert refused


def test_results_of_wrong_types(tmp_path):
    file, other = tmp_path / "results.json", tmp_path / "other.json"
    file.write_text(json.dumps(RESULTS))
    other.write_text(json.dumps(RESULTS))

    def call():
        compare([summary(file, None), summary(other, None)])

    assert not outcome(call)
    refused = 0
    for at, new, content in mutants(RESULTS):
        other.write_text(json.dumps(content))
        if said := outcome(call, other):
            assert "\n" not in said
            refused += 1
        else:  # then it can be shown too
            done = CliRunner().invoke(cli, ["compare", str(file), str(other)])
            assert done.exit_code == 0, (at, new, done.exception)
    assert refused > 500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "too deep in each other"),
        ('{"a": ' * 200 + "1" + "}" * 200, "lie too deep in each other"),
        ('{"classes": [], "classes": []}', "the key 'classes' appears twice"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("", "is empty"),
        ("<html>", "a web page"),
        ("nul", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ("[1]", r"expected keys and values, found \[1\]"),
        ("1" * 5000, "cannot be read as JSON"),
    ],
)
def test_results_that_are_no_such_file(tmp_path, content, said):
    file = tmp_path / "results.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        summary(file, None)


def test_metrics_of_wrong_types(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = {"step": 20, "loss": 0.5, "lr": 0.01, "miou": None}
    file.write_text(json.dumps(good) + "\n" + json.dumps({"step": 30, "miou": 50.5}) + "\n")
    assert len(_metrics(file)) == 2
    refused = 0
    for _, _, content in mutants(good):
        file.write_text(f"{json.dumps(good)}\n{json.dumps(content)}\n")
        refused += bool(outcome(lambda: _metrics(file), file))
    assert refused > 30
    for text in ("{", "[" * 10_000, "\0"):
        file.write_text(text)
        assert outcome(lambda: _metrics(file), file)


# --- folders of transformers, and of students ---------------------------------------------------

PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "size": {"height": 32, "width": 64},
    "size_divisor": 32,
    "ensure_multiple_of": None,
    "do_flip_channel_order": False,
    "resample": 2,
    "do_center_crop": None,
    "do_pad": False,
    "keep_aspect_ratio": False,
}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return segformer(tmp_path_factory.mktemp("net"), classes=3)


@pytest.fixture
def folder(net, tmp_path):
    return shutil.copytree(net, tmp_path / "net")


def test_preprocessing_of_wrong_types(tmp_path):
    file = tmp_path / "preprocessor_config.json"

    def call():
        found = Preprocessing.from_settings(hf_preprocessing(tmp_path, {}))
        assert all(np.isfinite(found.mean)) and min(found.std) > 0 and found.scale > 0
        assert found.size is None or 0 < min(found.size) <= max(found.size) <= 2**15
        pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        assert found.normalise(pixels).isfinite().all()
        assert len(found.mean_pixel()) == 3 and found.interpolation in ("nearest", "bilinear")

    file.write_text(json.dumps(PROCESSOR))
    assert not outcome(call)
    refused = 0
    for _, _, content in mutants(PROCESSOR):
        file.write_text(json.dumps(content))
        said = outcome(call, file)
        assert "\n" not in said
        refused += bool(said)
    assert refused > 150


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean: "),
        ({"image_std": [0.5, 0, 0.5]}, "image_std[1]: expected greater than"),
        ({"image_std": [0.5, "1", 0.5]}, "image_std[1]: expected a valid number, found '1'"),
        ({"image_std": [0.5, True, 0.5]}, "image_std[1]: expected a valid number, found True"),
        ({"image_mean": None}, "image_mean is missing or null"),
        ({"rescale_factor": -1}, "rescale_factor: expected greater than"),
        ({"rescale_factor": float("nan")}, "rescale_factor: expected a finite number"),
        ({"size": {"height": 0, "width": 8}}, "height is 0; expected 1 to 32768 pixels"),
        ({"size": {"height": 8, "width": 10**9}}, "width is 1000000000; expected 1 to"),
        ({"size": {"height": 8, "width": 8.0}}, "width is 8.0; expected 1 to"),
        ({"do_rescale": "false"}, "do_rescale: expected a valid boolean, found 'false'"),
        ({"resample": False}, "resample: expected a valid integer, found False"),
    ],
)
def test_preprocessing_that_cannot_be_names_its_field(tmp_path, changes, said):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(PROCESSOR | changes))
    with pytest.raises(DataError) as refused:
        hf_preprocessing(tmp_path, {})
    assert str(refused.value).startswith(f"{file}: ") and said in str(refused.value)


def test_what_normalises_nothing_may_say_so_by_null(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    for changes in ({"do_normalize": False}, {"do_normalize": None}):
        nothing = {"image_mean": None, "image_std": None, "size_divisor": None}
        nothing["size"] = {"height": 8, "width": 16, "shortest_edge": None}
        file.write_text(json.dumps(PROCESSOR | nothing | changes))
        found = hf_preprocessing(tmp_path, {})
        assert (found["mean"], found["std"]) == ([0, 0, 0], [1, 1, 1])
        assert found["size"] == (8, 16)


@pytest.mark.filterwarnings("ignore")
def test_a_config_of_wrong_types(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    more = {"auto_map": None, "transformers_weights": None, "backbone_config": None}
    refused = 0
    for at, _, content in mutants(config | more):
        if at and at[0] in ("label2id", "transformers_version", "initializer_range"):
            continue  # which decide nothing here
        file.write_text(json.dumps(content))
        for call in (
            lambda: require_own_files(folder),
            lambda: require_trusted_code(folder, trusted=False),
            lambda: network_classes(folder, "hf", "here"),
        ):
            refused += bool(outcome(call, folder))
    assert refused > 100


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["depths", "num_hidden_layers", "hidden_sizes", "num_channels"])
def test_numbers_without_end_are_refused(folder, key):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for number in (10**9, 10**30, [1, 1, 1, 10**9]):
        file.write_text(json.dumps(config | {key: number}))
        for call in (
            lambda: require_own_files(folder),
            lambda: hf_teacher(folder, trusted=False),
            lambda: hf_segmentation(folder, 5),
        ):
            assert f"{key} is 1000000000" in outcome(call, file)


NUMBERS = (None, True, 0, -1, 1.5, "x", [], {"x": 1}, float("nan"))


@pytest.mark.slow  # a network for each
@pytest.mark.filterwarnings("ignore")
def test_networks_of_configs_of_wrong_types(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    refused = 0
    for _, _, content in mutants(config, NUMBERS):
        file.write_text(json.dumps(content))
        for call in (
            lambda: hf_teacher(folder, trusted=False),
            lambda: hf_segmentation(folder, 5),
        ):
            refused += bool(outcome(call, folder))
    assert refused > 100


def test_an_index_of_wrong_types(tmp_path):
    file = tmp_path / "model.safetensors.index.json"
    for _, _, content in mutants({"metadata": {}, "weight_map": {"a": "a.safetensors"}}):
        file.write_text(json.dumps(content))
        outcome(lambda: shards(file), file)


def local_of(world):
    classes = load(world.file).classes
    return Running(pictures=(), classes=classes, digests={}, device="cpu", workers=0, threads=1)


@pytest.fixture
def student(tmp_path):
    network = pad_to_multiple(Tiny(2), 2)
    made = describe(network, "tiny", ["road", "car"], Preprocessing(size=(8, 8)))
    save_network(tmp_path, network, made)
    return tmp_path


def test_a_student_of_wrong_types(student, world):
    """What is read of `network.json`, and the network that is made of it."""
    local = local_of(world)
    file = student / "network.json"
    description = json.loads(file.read_text())

    def call():
        module, declared = load_student(student, {"source": "student"}, local)
        Preprocessing.from_settings(declared)
        module.eval()(torch.zeros(1, 3, 8, 8))

    file.write_text(json.dumps(description))
    assert not outcome(call)
    refused = 0
    for _, _, content in mutants(description):
        file.write_text(json.dumps(content))
        refused += bool(outcome(call, student))
    assert refused > 300


@pytest.mark.filterwarnings("ignore")
def test_a_student_of_transformers_of_wrong_types(net, tmp_path, world):
    local = local_of(world)
    network = hf_segmentation(net, 2)
    names = ["road", "car"]
    save_network(tmp_path, network, describe(network, {}, names, Preprocessing()))
    file = tmp_path / "network.json"
    description = json.loads(file.read_text())
    refused = 0
    for key in ("model_type", "depths", "hidden_sizes", "id2label", "patch_sizes", "backbone"):
        for new in NUMBERS:
            config = description["architecture"]["hf_config"] | {key: new}
            changed = description | {"architecture": {"hf_config": config}}
            file.write_text(json.dumps(changed))
            call = lambda: load_student(tmp_path, {"source": "student"}, local)  # noqa: E731
            refused += bool(outcome(call, tmp_path))
    assert refused > 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format: expected less than or equal to 1, found 2"),
        ({"architecture": "resnet"}, "architecture"),
        ({"architecture": {}}, "expected one of hf_config and factory"),
        ({"architecture": {"hf_config": {"backbone": "a/b"}}}, "hf_config.model_type"),
        (
            {"architecture": {"hf_config": {"model_type": "upernet", "backbone": "a/b"}}},
            "backbone is 'a/b'",
        ),
        ({"preprocessing": {}}, "preprocessing.mean' is missing"),
        ({"classes": []}, "classes"),
    ],
)
def test_a_student_that_cannot_be_names_its_field(student, changes, said):
    file = student / "network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DataError) as refused:
        read_description(student)
    assert str(refused.value).startswith(f"{file}: ") and said in str(refused.value)


def test_what_a_later_version_adds_to_a_student_is_not_looked_at(student):
    file = student / "network.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps(description | {"colour": 3}))
    assert read_description(student)["architecture"] == description["architecture"]


# --- nothing is asked of the network ------------------------------------------------------------

ELSEWHERE = (
    *("_name_or_path", "name_or_path", "backbone", "base_model_name_or_path", "auto_map"),
    *("adapter", "adapter_name_or_path", "processor_class", "tokenizer_class", "decoder"),
    *("image_processor_type", "feature_extractor_type", "_commit_hash", "quantization_config"),
    *("base_model", "peft_config", "custom_generate", "chat_template", "configuration_files"),
    *("transformers_weights", "backbone_config", "text_config", "vision_config", "encoder"),
    *("hub_model_id", "use_timm_backbone", "use_pretrained_backbone", "attn_implementation"),
    *("_attn_implementation", "_attn_implementation_internal", "dtype", "torch_dtype", "model_id"),
)
KINDS = (
    pytest.param(None, marks=pytest.mark.slow),
    "upernet",
    "detr",
    "maskformer",
    "mask2former",
    "oneformer",
    "dpt",
    "eomt",
    "beit",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_local_folder_asks_nothing_of_the_network(folder, monkeypatch, kind):
    """Whatever of transformers' keys names something that is elsewhere."""
    asked = []

    def connect(*arguments):
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    config = json.loads((folder / "config.json").read_text())
    keys = ELSEWHERE
    if kind is not None:
        config |= {"model_type": kind, "use_timm_backbone": False}
        keys = ("backbone",)
    for key in keys:
        for value in ("owner/other", {"AutoConfig": "owner/other--m.C"}):
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            outcome(lambda: hf_teacher(folder, trusted=False), folder)
            outcome(lambda: hf_segmentation(folder, 2), folder)
            assert not asked, (key, value, asked)
    for name in ("generation_config", "tokenizer_config", "processor_config", "adapter_config"):
        (folder / f"{name}.json").write_text(json.dumps(dict.fromkeys(ELSEWHERE, "owner/other")))
        outcome(lambda: hf_teacher(folder, trusted=False), folder)
        assert not asked, (name, asked)


@pytest.mark.timeout(20)
def test_what_is_compared_is_a_regular_file(tmp_path):
    for name in ("pipe.json", "pipe.yaml"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}: cannot be read .a named pipe"):
            summary(tmp_path / name, None)
