"""Networks as teachers: transformers folders and students trained here."""

import json

import numpy as np
import pytest
import torch
from worlds import network_world, segformer

from ensdistill.data.decoding import read_image
from ensdistill.stages.demo.styles import CLASSES
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.networks.folders import hf_preprocessing
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import build_student

pytest.importorskip("transformers")


def test_segformer_folder_equals_transformers_itself(world):
    folder = segformer(world.root / "segformer")
    processor = {
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "size": {"height": 64, "width": 96},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    network_world(world, network={"hf": "segformer"})
    assert "seg: hf" in world.call("check")
    assert "infer[seg]: 5 of 5 written" in world.call("infer-teacher")
    maps = LabelMaps(world.artifact("infer[seg]"))

    from PIL import Image
    from transformers import SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    for path in sorted((world.root / "images/train").glob("*.png")):
        image = read_image(path)
        resized = Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR)
        x = torch.tensor(np.asarray(resized)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(processor[k])[:, None, None] for k in ("image_mean", "image_std"))
        with torch.no_grad():
            logits = model((x - mean) / std).logits
        full = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")
        expected = full[0].argmax(0).numpy()
        assert (maps.read(path.stem) == expected).mean() > 0.9999


def test_class_map_of_a_network(world):
    segformer(world.root / "segformer", classes=11)
    mapping = {"pavement": "sidewalk", "tree": "vegetation", "bicyclist": None}
    network_world(world, network={"hf": "segformer"}, classes="camvid11", map=mapping)
    world.call("infer-teacher")
    labels = LabelMaps(world.artifact("infer[seg]"))
    found = set(np.concatenate([np.unique(labels.read(i)) for i in labels]).tolist())
    reachable = {0, 1, 2, 4, 5, 8, 10, 13, 255}  # namesakes and the map, in cityscapes19
    assert found <= reachable


def test_wrong_number_of_classes_is_refused(world):
    segformer(world.root / "segformer", classes=11)
    network_world(world, network={"hf": "segformer"})
    text = world.refuse("run")
    assert "has 11 classes" in text and "has 19" in text and "`classes:`" in text


def test_classes_in_another_order_are_refused(world):
    folder = segformer(world.root / "segformer")
    config = json.loads((folder / "config.json").read_text())
    names = [c.replace(" ", "_").upper() for c in CLASSES]  # another spelling is no other class
    config["id2label"] = {str(i): n for i, n in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    network_world(world, network={"hf": "segformer"})
    world.call("check")
    names[0], names[1] = names[1], names[0]
    config["id2label"] = {str(i): n for i, n in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    text = world.refuse("infer-teacher")
    assert "class 0 is 'SIDEWALK'" in text and "'road'" in text


@pytest.mark.parametrize(
    ("processor", "word"),
    [
        ({"size": {"shortest_edge": 512}}, "preprocess: {size: [HEIGHT, WIDTH]}"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"height": 80, "width": 96}, "size_divisor": 32}, "size_divisor"),
        ({"size": {"height": 8, "width": 8}, "resample": 5}, "interpolation"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(world, processor, word):
    folder = segformer(world.root / "segformer")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    network_world(world, network={"hf": "segformer"})
    text = world.refuse("check")
    assert "preprocessor_config.json" in text and word in text


@pytest.mark.parametrize(
    ("processor", "declared", "shape"),
    [
        ({"size": {"height": 64, "width": 96}, "size_divisor": 32}, {}, (64, 96)),
        ({"size": {"shortest_edge": 800}, "size_divisor": 32}, {"size": [40, 50]}, (40, 50)),
        ({"do_center_crop": True, "size": {"shortest_edge": 9}}, {"factor": 2}, None),
        ({"size": {"height": 64, "width": 96}}, {"size": "image"}, None),
    ],
)
def test_a_declared_size_holds_whatever_a_folder_says_of_sizes(
    tmp_path, processor, declared, shape
):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = Preprocessing.from_settings(hf_preprocessing(tmp_path, declared), declared)
    assert found.size == shape
    assert found.factor == declared.get("factor", 1)


def test_changed_weights_are_noticed(world):
    folder = segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    world.call("infer-teacher")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = next(d for d in world.json("status") if d["node"] == "infer[seg]")
    assert found["state"] == "stale"
    assert [c["field"] for c in found["changes"]] == ["recipe.network.model.safetensors"]


def test_hf_student_is_trained_saved_and_runs_again_as_a_teacher(world):
    segformer(world.root / "segformer", classes=3)  # another head: made anew
    world.settings["student"] |= {"network": {"hf": "segformer"}}
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.write()
    world.call("run")
    first = LabelMaps(world.artifact("infer[student]@val"))
    student = world.artifact("student").path
    world.settings["teachers"].append({"name": "again", "network": {"student": str(student)}})
    world.write()
    world.call("evaluate", "--upstream")
    second = LabelMaps(world.artifact("infer[again]@val"))
    for image_id in first:
        assert np.array_equal(first.read(image_id), second.read(image_id))


def test_unknown_device_is_refused(world):
    segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    world.settings["runtime"]["device"] = "abacus"
    world.write()
    assert "runtime.device" in world.refuse("infer-teacher")


def test_a_backbone_without_a_trained_head_cannot_teach(world):
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(num_labels=19, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32])
    SegformerModel(config).save_pretrained(world.root / "backbone")
    network_world(world, network={"hf": "backbone"})
    text = world.refuse("infer-teacher")
    assert "never trained for segmentation" in text and "decode_head" in text


def test_half_precision_weights_run_in_float32(world):
    from transformers import SegformerForSemanticSegmentation

    folder = segformer(world.root / "segformer")
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    model.half().save_pretrained(world.root / "half")
    network_world(world, network={"hf": "half"})
    world.call("infer-teacher")


def test_a_network_that_answers_nan_is_refused(world):
    from transformers import SegformerForSemanticSegmentation

    folder = segformer(world.root / "segformer")
    model = SegformerForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        model.decode_head.classifier.bias[3] = float("nan")
    model.save_pretrained(folder)
    network_world(world, network={"hf": "segformer"})
    assert "train_000000_000019.png is not a number" in world.refuse("infer-teacher")


def test_batch_norm_of_a_converted_model_follows_torch(tmp_path):
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(num_labels=4)
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path)
    network = build_student({"config.json": "digest"}, 4, tmp_path, seed=0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and {m.momentum for m in norms} == {0.1}


def test_an_hf_student_takes_its_folders_normalisation(world):
    folder = segformer(world.root / "segformer")
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": 512}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    world.settings["student"] |= {"network": {"hf": "segformer"}}
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a"}}
    world.write()
    world.call("train-student", "--upstream")
    path = world.artifact("student").path / "network.json"
    preprocessing = json.loads(path.read_text())["preprocessing"]
    assert preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert preprocessing["std"] == [0.25, 0.25, 0.25]
    assert preprocessing["size"] is None
    assert world.artifact("student").manifest.runtime["device"] == "cpu"


@pytest.mark.parametrize(
    ("given", "of_other"),
    [
        ({}, []),
        ({"scale": 1, "mean": (104, 117, 123), "std": (1, 1, 1)}, []),
        ({"scale": 1, "mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, []),
        ({"scale": 127.5, "mean": (1, 1, 1), "std": (1, 1, 1)}, []),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, []),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, []),
        ({"scale": 1, "mean": (104, 117, 123)}, ["std"]),
        ({"scale": 1, "std": (1, 1, 1)}, ["mean"]),
        ({"scale": 1}, ["mean", "std"]),
        ({"mean": (104, 117, 123)}, ["mean"]),
        ({"std": (58.4, 57.1, 57.4)}, ["std"]),
    ],
)
def test_means_and_deviations_of_another_scale_are_doubted(given, of_other):
    text = Preprocessing.from_settings(given).doubt()
    found = [] if text is None else [key for key in ("mean", "std") if f"`{key}: " in text]
    assert found == of_other
