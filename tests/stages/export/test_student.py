"""The student in the forms of other programs says what it says here."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from worlds import World, files_of, segformer

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.export import student as exporting
from ensdistill.stages.export.onnx import pooled, write_onnx
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.networks.frozen import load_student
from ensdistill.stages.networks.onnx import onnx_network
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import hf_segmentation

PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "scale": 200.0}


def world_with(root, student, **more):
    """A finished world with a student of that network; evaluated, so that it labelled val."""
    world = World(root, train=2, val=2)
    world.settings["fusion"] = {"method": "majority"}
    world.settings["student"] |= {"network": student, "steps": 3, **more}
    world.write()
    return world


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A student of transformers that sees resized images of its own normalisation."""
    root = tmp_path_factory.mktemp("transformer")
    segformer(root / "segformer")
    world = world_with(
        root,
        {"hf": "segformer"},
        input_size=[40, 72],
        preprocess=PREPROCESS,
    )
    world.call("run")
    return world


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    world = world_with(tmp_path_factory.mktemp("tiny"), {"arch": "tiny"}, preprocess=PREPROCESS)
    world.call("run", "--no-evaluate")
    return world


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def own_network(world):
    made = world.artifact("student")
    network, declared = load_student(made.path, {}, Nothing())
    return network.eval(), Preprocessing.from_settings(declared)


class Nothing:
    factory = None


def labels_as_teacher(world, root, **entry):
    """Return the label maps of val by an exported student that teaches in another experiment."""
    settings = {
        **world.settings,
        "workspace": str(root / "other"),
        "target": {"train": {"images": "images/val/*.png"}},
        "teachers": [{"name": "before", **entry}],
    }
    other = World.__new__(World)
    other.root, other.settings = world.root, settings
    other.file = world.root / f"{root.name}.yaml"
    other.write()
    other.call("infer-teacher")
    maps = LabelMaps(other.artifact("infer[before]"))
    return {image_id: maps.read(image_id) for image_id in maps}


def assert_labels(world, found):
    maps = LabelMaps(world.artifact("infer[student]@val"))
    assert found.keys() == set(maps)
    for image_id, label in found.items():
        assert np.array_equal(label, maps.read(image_id))


def teacher_of(card):
    """Return the entry that the card has for an experiment file."""
    (entry,) = yaml.safe_load(re.findall(r"```yaml\n(- .*?)```", card, re.DOTALL)[0])
    return entry


def test_transformers_loads_the_folder_and_sees_what_the_student_sees(transformer, out):
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    transformer.call("export", "student", "-o", str(out), "--as", "hf")
    network, preprocessing = own_network(transformer)
    model = AutoModelForSemanticSegmentation.from_pretrained(out).eval()
    try:
        processor = AutoImageProcessor.from_pretrained(out)
    except ImportError as error:
        assert "Torchvision" in str(error)
        pytest.skip("this version of transformers reads no image without torchvision")
    path = transformer.root / "images/val/val_000000_000019.png"
    seen = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    own = preprocessing.resize(np.array(Image.open(path)))[0]
    images = preprocessing.normalise(torch.from_numpy(own.copy()).permute(2, 0, 1)[None])
    assert seen.shape == images.shape == (1, 3, 40, 72)
    assert torch.allclose(seen, images, atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(model(images).logits, network(images), atol=1e-5)
    table = transformer.artifact("student").manifest.recipe["classes"]
    assert model.config.id2label == dict(enumerate(table))
    assert model.config.label2id == {name: k for k, name in enumerate(table)}


def test_a_folder_names_no_machine_and_lets_others_read_it(transformer, out):
    transformer.call("export", "student", "-o", str(out), "--as", "hf")
    found = files_of(out)
    assert set(found) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert not any(str(transformer.root).encode() in content for content in found.values())
    assert len({(out / name).stat().st_mode for name in found}) == 1


def test_an_exported_folder_teaches_what_the_student_says(transformer, out, tmp_path):
    transformer.call("export", "student", "-o", str(out), "--as", "hf")
    entry = teacher_of((out / "README.md").read_text())
    assert entry["network"] == {"hf": "out"} and "preprocess" not in entry
    assert_labels(transformer, labels_as_teacher(transformer, tmp_path, network={"hf": str(out)}))


def test_the_card_tells_how_it_was_made(transformer, out):
    transformer.call("export", "student", "-o", str(out), "--as", "hf")
    card = (out / "README.md").read_text()
    made = transformer.artifact("student").manifest
    head, text = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    for part in (
        made.fingerprint,
        made.content,
        transformer.artifact("fusion").manifest.content,
        "a (labels in files); b (labels in files)",
        "majority of the teachers' labels",
        "| none was used |",
        f"torch {torch.__version__}",
        "| 8 | vegetation | `#6b8e23` |",
        "resized to 40x72 pixels (height x width, bilinear)",
        "`(pixel / 200 - mean) / std`",
    ):
        assert part in text
    settings = yaml.safe_load(re.findall(r"```yaml\n(steps.*?)```", text, re.DOTALL)[0])
    assert settings["steps"] == 3 and settings["input_size"] == [40, 72]


def test_the_card_has_scores_of_this_student_alone(transformer, out, tmp_path):
    transformer.call("export", "student", "-o", str(out), "--as", "hf")
    results = json.loads((transformer.root / "work/results.json").read_text())
    (student,) = [m for m in results["methods"] if m["kind"] == "student"]
    text = (out / "README.md").read_text()
    assert f"| **mean** | {student['miou']:.1f} |" in text and "split val" in text
    world = world_with(tmp_path / "world", {"arch": "tiny"})
    world.call("run")
    world.settings["student"]["seed"] = 1  # results.json is there, but of another student
    world.write()
    world.call("train-student")
    world.call("export", "student", "-o", str(tmp_path / "other"), "--as", "state-dict")
    assert "## Scores" not in (tmp_path / "other.safetensors.md").read_text()


def test_a_watched_split_is_said(tmp_path):
    world = world_with(tmp_path / "world", {"arch": "tiny"}, watch="val", checkpoint="best")
    world.call("run", "--no-evaluate")
    world.call("export", "student", "-o", str(tmp_path / "s"), "--as", "state-dict")
    assert "best on the labelled split val was kept" in (tmp_path / "s.safetensors.md").read_text()


@pytest.mark.parametrize("name", ["s", "s.safetensors"])
def test_tensors_have_the_names_of_the_networks_own_code(tiny, tmp_path, name):
    from ensdistill.stages.networks.students import Tiny

    tiny.call("export", "student", "-o", str(tmp_path / name), "--as", "state-dict")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "s.json",
        "s.safetensors",
        "s.safetensors.md",
    ]
    network = Tiny(19)
    network.load_state_dict(load_file(tmp_path / "s.safetensors"))
    about = json.loads((tmp_path / "s.json").read_text())
    assert about["fingerprint"] == tiny.artifact("student").manifest.fingerprint
    assert about["architecture"] == "tiny" and len(about["colours"]) == len(about["classes"]) == 19


def test_tensors_of_transformers_have_its_names(transformer, tmp_path):
    from transformers import SegformerForSemanticSegmentation

    transformer.call("export", "student", "-o", str(tmp_path / "s"), "--as", "state-dict")
    model = SegformerForSemanticSegmentation.from_pretrained(transformer.root / "segformer")
    model.load_state_dict(load_file(tmp_path / "s.safetensors"))


def test_what_transformers_cannot_say_is_refused(tiny, transformer, out, monkeypatch):
    text = tiny.refuse("export", "student", "-o", str(out), "--as", "hf")
    assert "tiny" in text and "--as onnx" in text and "--as state-dict" in text
    read = exporting.read_description

    def bgr(folder):
        found = read(folder)
        return found | {"preprocessing": found["preprocessing"] | {"channels": "bgr"}}

    monkeypatch.setattr(exporting, "read_description", bgr)
    assert "BGR" in transformer.refuse("export", "student", "-o", str(out), "--as", "hf")
    assert not out.exists()


class Wrong(nn.Module):
    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, images):
        return self.say(images)


@pytest.mark.parametrize(
    "wrong, text",
    [
        (lambda x: x[:, :2], "returns (2, 2, 64, 96)"),
        (lambda x: x + 1e-2, "differ by 0.01"),
        (lambda x: x * float("nan"), "differ by nan"),
        (lambda x: x / 0 if x.shape[-1] == 131 else x, "images of 97x131"),
        (lambda x: x.reshape(1), "fails"),
    ],
)
def test_what_says_something_else_is_refused(tmp_path, wrong, text):
    same = exporting.Student(Wrong(lambda x: x), 1, None)
    exporting.require_same(same, Wrong(lambda x: x + 1e-7), tmp_path / "x.onnx")
    with pytest.raises(DataError, match=r"x\.onnx.*--as state-dict") as error:
        exporting.require_same(same, Wrong(wrong), tmp_path / "x.onnx")
    assert text in str(error.value)


def test_nothing_stays_of_an_export_that_is_refused(transformer, out, monkeypatch):
    wrong = Wrong(lambda x: torch.zeros(2, 19, x.shape[-2] // 4, x.shape[-1] // 4))
    monkeypatch.setattr(exporting, "hf_segmentation", lambda folder: wrong)
    transformer.refuse("export", "student", "-o", str(out), "--as", "hf")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (7, 1)])
def test_pooling_by_products_is_adaptive_pooling(size):
    for side in ((7, 11), (3, 5), (12, 6)):
        x = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(pooled(x, size), nn.AdaptiveAvgPool2d(size)(x), atol=1e-6)


@pytest.mark.slow
def test_an_exported_onnx_teaches_what_the_student_says(transformer, tmp_path):
    transformer.call("export", "student", "-o", str(tmp_path / "s.onnx"), "--as", "onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.onnx", "s.onnx.md"]
    entry = teacher_of((tmp_path / "s.onnx.md").read_text())
    assert entry["network"] == {"onnx": "s.onnx"}
    found = labels_as_teacher(
        transformer,
        tmp_path,
        network={"onnx": str(tmp_path / "s.onnx")},
        preprocess=entry["preprocess"],
    )
    assert_labels(transformer, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {"arch": "tiny"},
        {"arch": "mobilenetv2-deeplabv3plus"},
        {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"},
    ],
)
def test_onnxruntime_returns_the_students_logits_at_any_size(tmp_path, network):
    import onnx
    import onnxruntime

    world = world_with(tmp_path / "world", network, preprocess=PREPROCESS)
    world.call("run", "--no-evaluate")
    file = tmp_path / "s.onnx"
    said = world.json("export", "student", "-o", str(file), "--as", "onnx")
    assert set(said["files"]) == {"s.onnx", "s.onnx.md"}
    own, _ = own_network(world)
    session = onnxruntime.InferenceSession(file)
    for batch, size in ((1, (64, 96)), (3, (97, 131)), (2, (128, 40))):
        images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = own(images).numpy()
        (found,) = session.run(["logits"], {"image": images.numpy()})
        assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    model = onnx.load(file)
    facts = {p.key: p.value for p in model.metadata_props}
    made = world.artifact("student").manifest
    assert facts["fingerprint"] == made.fingerprint and facts["digest"] == made.content
    assert json.loads(facts["mean"]) == PREPROCESS["mean"]
    of_transformers = network["arch"] == "mobilenetv2-deeplabv3plus"
    assert json.loads(facts["stride"]) == (16 if of_transformers else 4)
    assert str(tmp_path.parent).encode() not in file.read_bytes()
    assert b"site-packages" not in file.read_bytes()
    if of_transformers:
        world.call("export", "student", "-o", str(tmp_path / "s"), "--as", "hf")
        model = hf_segmentation(tmp_path / "s").eval()
        with torch.inference_mode():
            assert np.allclose(model(images).numpy(), expected, atol=1e-5)


@pytest.mark.slow
def test_a_network_of_own_code_that_pads_goes_through_onnx(tmp_path):
    """Padding is not in the file: the card says `divisor`, and as a teacher it means the same."""
    root = tmp_path / "code"
    root.mkdir()
    (root / "model.py").write_text(
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, classes, 1))\n"
    )
    network = {"factory": "model:build", "root": str(root), "kwargs": {"classes": 19}}
    world = world_with(tmp_path / "world", network | {"divisor": 32}, trust="code")
    world.call("run")
    to = ("export", "student", "-o", str(tmp_path / "s"), "--as")
    assert "model:build" in world.refuse(*to, "hf")
    world.call(*to, "onnx")
    entry = teacher_of((tmp_path / "s.onnx.md").read_text())
    assert entry["network"]["divisor"] == 32
    onnx = {"onnx": str(tmp_path / "s.onnx"), "divisor": 32}
    found = labels_as_teacher(world, tmp_path, network=onnx, preprocess=entry["preprocess"])
    assert_labels(world, found)


class Pyramid(nn.Module):
    """Pools as UperNet does, which keeps its layers also in a list of its own."""

    def __init__(self):
        super().__init__()
        self.pools = [nn.AdaptiveAvgPool2d(k) for k in (1, 2, 3, 6)]
        for k, pool in enumerate(self.pools):
            self.add_module(str(k), pool)

    def forward(self, images):
        resized = [nn.functional.interpolate(p(images), images.shape[-2:]) for p in self.pools]
        return sum(resized, images)


@pytest.mark.slow
def test_a_pyramid_of_pools_takes_images_of_any_size(tmp_path):
    file = tmp_path / "pyramid.onnx"
    network = Pyramid().eval()
    write_onnx(network, file, torch.zeros(2, 3, 96, 128), {"classes": "[]"})
    again = onnx_network(file, torch.device("cpu"), 1)
    exporting.require_same(exporting.Student(network, 1, None), again, file)
    assert "forward" not in vars(network.pools[1])  # the student's own is as it was
