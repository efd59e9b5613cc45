"""One network, given in every kind of file: the same scores and labels."""

import warnings

import pytest
import torch

from ensdistill.stages.networks.answers import Reading
from ensdistill.stages.networks.exported import exported_network, torchscript_network
from ensdistill.stages.networks.state_dicts import load_weights
from ensdistill.stages.networks.students import hf_segmentation
from ensdistill.stages.networks.universal import hf_teacher

CPU = torch.device("cpu")
KINDS = [
    "state_dict",
    "safetensors",
    "torchscript",
    pytest.param("exported", marks=pytest.mark.slow),
    pytest.param("onnx", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small SegFormer whose labels are of several classes."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=6,
        depths=[1] * 4,
        hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
        num_attention_heads=[1] * 4,
        initializer_range=0.3,
    )
    network = SegformerForSemanticSegmentation(config).eval()
    head = network.decode_head.classifier
    with torch.no_grad():  # no class ahead of the others, and scores of an ordinary size
        head.weight *= 0.3
        mean = network(torch.randn(4, 3, 96, 160)).logits.mean((0, 2, 3))
        head.bias -= mean
    folder = tmp_path_factory.mktemp("segformer")
    network.save_pretrained(folder)
    config.save_pretrained(folder / "config")
    return folder


def load(kind, folder, there):
    """Write the network of a folder as another kind of file, and load that."""
    network = hf_teacher(folder, trusted=False).eval()
    images = torch.zeros(2, 3, 64, 96)
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    if kind in ("state_dict", "safetensors"):
        file = folder / "model.safetensors"
        if kind == "state_dict":
            file = there / "n.pth"
            torch.save({"state_dict": network.state_dict(), "epoch": 3}, file)
        empty = hf_segmentation(folder / "config", 6)
        load_weights(empty, file, trusted=False)
        return empty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of writing, which is not ours
        if kind == "exported":
            program = torch.export.export(network, (images,), dynamic_shapes=sizes)
            torch.export.save(program, there / "n.pt2")
        elif kind == "torchscript":
            torch.jit.save(torch.jit.trace(network, images), there / "n.pt")
        else:
            pytest.importorskip("onnxscript")
            torch.onnx.export(
                network, (images,), there / "n.onnx", dynamic_shapes=sizes, verbose=False
            )
    if kind == "exported":
        return exported_network(there / "n.pt2", CPU)
    if kind == "torchscript":
        return torchscript_network(there / "n.pt", CPU)
    pytest.importorskip("onnxruntime")
    from ensdistill.stages.networks.onnx import onnx_network

    return onnx_network(there / "n.onnx", CPU, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_labels(folder, tmp_path, kind):
    expected = hf_teacher(folder, trusted=False).to(CPU).eval()
    found = load(kind, folder, tmp_path).to(CPU).eval()
    generator = torch.Generator().manual_seed(1)
    for size in ((1, 3, 64, 96), (2, 3, 96, 160), (1, 3, 65, 97)):
        images = torch.randn(size, generator=generator)
        with torch.inference_mode():
            scores = Reading().read(found(images), len(images))
            right = expected(images)
        torch.testing.assert_close(scores, right, atol=1e-5, rtol=0)
        best = right.topk(2, 1).values
        close = best[:, 0] - best[:, 1] <= 1e-5
        assert ((scores.argmax(1) == right.argmax(1)) | close).all()
        assert right.argmax(1).unique().numel() > 2 and close.float().mean() < 0.01
