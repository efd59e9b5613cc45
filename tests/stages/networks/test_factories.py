"""The files and entries of FACTORIES.md, run with stand-ins for the libraries they use."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from worlds import World

from ensdistill.stages.experiment.schema import Teacher

TEXT = (Path(__file__).parents[3] / "stages" / "networks" / "FACTORIES.md").read_text()
FOUND = re.findall(r"^```yaml\n(.*?)^```\n\n```python\n# (\S+)\n(.*?)^```", TEXT, re.DOTALL | re.M)
ENTRIES = {yaml.safe_load(entry)["name"]: (entry, path, code) for entry, path, code in FOUND}

# Networks of one convolution `head`; a mistake of the caller's, which costs the real library a
# download or a crash, ends each of them.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels=3):
        super().__init__()
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, images):
        return self.head(images)
"""
MULTI = """
from torch import nn

class ResNetMulti(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer5 = nn.Conv2d(3, num_classes, 1)
        self.layer6 = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return self.layer5(x), self.layer6(x)

def DeeplabMulti(num_classes=21):
    return ResNetMulti(num_classes)
"""
STAND_INS = {
    "smp": {
        "segmentation_models_pytorch.py": NET
        + """
class Strict(Net):
    def forward(self, images):
        if any(size % 32 for size in images.shape[2:]):
            raise RuntimeError("Wrong input shape")
        return super().forward(images)

def create_model(
    arch, encoder_name="resnet34", encoder_weights="imagenet", in_channels=3, classes=1, **kwargs
):
    assert (arch, encoder_name, encoder_weights) == ("unet", "resnet34", None)
    return Strict(classes, in_channels, **kwargs)
"""
    },
    "timm": {
        "timm.py": """
from types import SimpleNamespace
from torch import nn

class Features(nn.Module):
    feature_info = SimpleNamespace(channels=lambda: [3, 3])

    def forward(self, images):
        return [images, images[:, :, ::4, ::4]]

def create_model(model_name, pretrained=False, features_only=False, **kwargs):
    assert (model_name, pretrained, features_only, kwargs) == ("resnet50", False, True, {})
    return Features()
"""
    },
    "mmseg": {
        "mmseg/__init__.py": "",
        "mmseg/apis.py": NET
        + """
class Model(Net):
    def forward(self, inputs, data_samples=None, mode="tensor"):
        raise AssertionError("the logits of the head alone")

    def inference(self, inputs, batch_img_metas):
        shape = batch_img_metas[0]["ori_shape"]
        assert all(meta["ori_shape"] == shape == inputs.shape[2:] for meta in batch_img_metas)
        assert isinstance(batch_img_metas[0]["img_shape"], torch.Size)
        assert batch_img_metas[0]["padding_size"] == [0, 0, 0, 0]
        batch_img_metas[0]["img_shape"] = inputs.shape[2:]  # as a sliding window does
        return self.head(inputs)

def init_model(config, checkpoint=None, device="cuda:0", cfg_options=None):
    assert (open(config).read(), checkpoint, device) == ("classes = 19", None, "cpu")
    return Model(19).to(device).eval()
""",
    },
    "torchvision": {
        "torchvision/__init__.py": "",
        "torchvision/models/__init__.py": "",
        "torchvision/models/segmentation.py": NET
        + """
class Two(Net):
    def __init__(self, classes):
        super().__init__(classes)
        self.aux_classifier = nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return {"out": self.head(images), "aux": self.aux_classifier(images)}

def deeplabv3_resnet50(
    *, weights=None, progress=True, num_classes=None, aux_loss=None, weights_backbone="IMAGENET1K"
):
    assert (weights, weights_backbone, aux_loss) == (None, None, True)
    return Two(num_classes)
""",
    },
    "adaptsegnet": {"model/__init__.py": "", "model/deeplab_multi.py": MULTI},
    "r-mrnet": {
        "model/__init__.py": "",
        "model/deeplab_multi.py": MULTI.replace(
            "(num_classes=21):",
            "(num_classes=21, use_se=False, train_bn=False, norm_style='bn', droprate=0.1):\n"
            "    assert (use_se, norm_style) == (True, 'bn')",
        ),
    },
}


def weights(label, prefix="head", second=None):
    """Return weights of a convolution that answers with one label, and almost a second."""
    bias = torch.zeros(19)
    bias[label] = 1
    if second is not None:
        bias[second] = 0.9
    return {f"{prefix}.weight": torch.zeros(19, 3, 1, 1), f"{prefix}.bias": bias}


STATES = {
    "smp": weights(2),
    "timm": weights(3),
    "mmseg": {"meta": {"epoch": 1}, "state_dict": weights(4)},
    "torchvision": weights(5) | weights(6, "aux_classifier"),
    "adaptsegnet": weights(6, "layer5") | weights(7, "layer6"),
    # the auxiliary output prefers 6 and the main one 8; half of the one and the other 9
    "r-mrnet": {
        f"module.{name}": value
        for name, value in (weights(6, "layer5", second=9) | weights(8, "layer6", second=9)).items()
    },
}
ANSWERS = {
    "smp": "building",
    "timm": "wall",
    "mmseg": "fence",
    "torchvision": "pole",
    "adaptsegnet": "traffic sign",
    "r-mrnet": "terrain",
}


@pytest.fixture
def follow(tmp_path):
    """Do what the text says for one library, in a fresh world."""

    def do(name, state):
        world = World(tmp_path, train=2, val=1)
        entry, path, code = ENTRIES[name]
        files = {path: code, **{f"{Path(path).parent}/{k}": v for k, v in STAND_INS[name].items()}}
        files[f"{Path(path).parent}/config.py"] = "classes = 19"
        for file, content in files.items():
            (world.root / file).parent.mkdir(parents=True, exist_ok=True)
            (world.root / file).write_text(content)
        world.settings["teachers"].append(yaml.safe_load(entry))
        world.write()
        torch.save(state, world.root / "networks" / name / "weights.pth")
        return world

    return do


def test_every_library_of_the_text_is_run_here():
    assert list(ENTRIES) == list(STAND_INS) == list(STATES)
    assert TEXT.count("```python") == len(ENTRIES) == len(ANSWERS)
    for entry, path, _ in ENTRIES.values():
        teacher = Teacher.model_validate(yaml.safe_load(entry))
        module = teacher.network.factory.split(":")[0]
        assert path == f"{teacher.network.root}/{module}.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n if n in ("mmseg", "r-mrnet") else pytest.param(n, marks=pytest.mark.slow) for n in ENTRIES],
)
def test_a_file_of_the_text_teaches(follow, name):
    world = follow(name, STATES[name])
    world.call("infer-teacher", name)
    counts = world.artifact(f"infer[{name}]").manifest.result["labels"]
    assert {label for label, pixels in counts.items() if pixels} == {ANSWERS[name]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_weights_that_fit_only_in_part_are_refused(follow, name):
    """One is missing and one is too much; torch tells of both at once."""
    state = {k: dict(v) if isinstance(v, dict) else v for k, v in STATES[name].items()}
    inner = state.get("state_dict", state)
    bias = next(key for key in inner if key.endswith("bias"))
    del inner[bias]
    inner["neck.bias"] = torch.zeros(1)
    text = follow(name, state).refuse("infer-teacher", name)
    assert text.startswith("DataError") and "Error(s) in loading state_dict" in text
    assert "Missing key(s)" in text and bias.removeprefix("module.") in text
    assert "Unexpected key(s)" in text and "neck.bias" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "adaptsegnet", "r-mrnet"])
def test_what_is_taken_has_to_be_said(follow, name):
    world = follow(name, STATES[name])
    del world.settings["teachers"][-1]["network"]["take"]
    world.write()
    assert "several outputs" in world.refuse("infer-teacher", name)


@pytest.mark.slow
def test_a_checkpoint_that_holds_code_is_refused(follow):
    text = follow("smp", {"x": Path("x")}).refuse("infer-teacher", "smp")
    assert text.startswith("DataError") and "weights_only" in text.lower()
