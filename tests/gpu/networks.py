"""Networks of the sizes that are in use, with random weights."""

from pathlib import Path

import torch
import yaml

from tests.benchmarks.networks import upernet_resnet101

B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
B5 = B2 | {"depths": [3, 6, 40, 3]}
SMALL = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
}
DEEPLAB = Path(__file__).with_name("deeplab.py")


def segformer(**settings):
    """Return the settings of a SegFormer; B0's where none are given."""
    from transformers import SegformerConfig

    return SegformerConfig(num_labels=19, **settings)


def segformer_network(**settings):
    """Return a SegFormer."""
    from transformers import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(segformer(**settings))


def small_upernet():
    """Return an UPerNet on a ResNet, of few layers."""
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, out_features=stages
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, num_labels=19
    )
    return UperNetForSemanticSegmentation(config)


class Logits(torch.nn.Module):
    """A model of transformers, of which the logits are wanted."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(pixel_values=images).logits


def of_transformers(make, folder):
    """Save a model, and return it and how a teacher names it."""
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder)
    return Logits(model), {"network": {"hf": str(folder)}}


def deeplab(folder, layers):
    """Copy a function that makes a network, and return that and how a teacher names it."""
    from . import deeplab as code

    folder.mkdir()
    (folder / "deeplab.py").write_text(DEEPLAB.read_text())
    network = {"factory": "deeplab:build", "root": str(folder), "kwargs": {"layers": layers}}
    return code.build(layers), {"trust": "code", "network": network}


def networks(folder, *, smoke):
    """Yield name, network and how a teacher names it, of all networks that are measured."""
    folder.mkdir()
    made = {
        "SegFormer-B0": lambda: segformer_network(**(SMALL if smoke else {})),
        "SegFormer-B5": lambda: segformer_network(**(SMALL if smoke else B5)),
        "UPerNet-R101": small_upernet if smoke else upernet_resnet101,
    }
    for name, make in made.items():
        yield name, *of_transformers(make, folder / name)
    layers = [1, 1, 1, 1] if smoke else [3, 4, 23, 3]
    yield "DeepLabV2-R101", *deeplab(folder / "deeplab", layers)


def write(file, settings):
    """Write an experiment about settings of its own, and return its file."""
    common = {"version": 1, "classes": {"table": "cityscapes19"}}
    file.write_text(yaml.safe_dump(common | settings))
    return file
