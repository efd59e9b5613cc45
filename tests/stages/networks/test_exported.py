"""Exported programs and TorchScript as frozen networks."""

import logging
import zipfile

import pytest
import torch
from evil import evil_program, evil_script, program, script
from torch import nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.exported import exported_network, torchscript_network
from ensdistill.stages.networks.students import Tiny

CPU = torch.device("cpu")
ANY = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


class Named(nn.Module):
    """Answers as torchvision's networks do, and makes a tensor on a device."""

    def __init__(self, classes=3):
        super().__init__()
        self.network = Tiny(classes)
        self.drop = nn.Dropout2d(0.1)

    def forward(self, images):
        found = self.network(images) + torch.zeros(1, device=images.device)
        return {"aux": found * 2, "out": self.drop(found)}


def save_program(network, file, shape=(1, 3, 16, 24), dynamic=None, dtype=torch.float32):
    images = torch.zeros(shape, dtype=dtype)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=dynamic), file)


def test_a_program_answers_as_the_network_did(tmp_path):
    network = Named().eval()
    save_program(network, tmp_path / "n.pt2", (2, 3, 16, 24), ({**ANY},))
    found = exported_network(tmp_path / "n.pt2", CPU).to(CPU).eval()
    for size in ((1, 3, 16, 24), (3, 3, 65, 97)):
        images = torch.randn(size)
        with torch.inference_mode():
            answer, expected = found(images), network(images)
            assert list(answer) == list(expected)
            for name in expected:
                torch.testing.assert_close(answer[name], expected[name], atol=1e-6, rtol=0)


def test_a_script_answers_as_the_network_did(tmp_path):
    network = Tiny(3).eval()
    script(network, tmp_path / "n.pt")
    found = torchscript_network(tmp_path / "n.pt", CPU).to(CPU).eval()
    images = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        assert torch.equal(found(images), network(images))
        assert all(torch.equal(found(images), found(images)) for _ in range(3))


def test_a_script_in_training_mode_evaluates(tmp_path):
    network = Tiny(3).train()
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(network), tmp_path / "n.pt")
    found = torchscript_network(tmp_path / "n.pt", CPU)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(found(images), network.eval()(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_program_of_one_image_takes_several_one_by_one(tmp_path, dtype):
    network = Tiny(3).eval().to(dtype)
    save_program(network, tmp_path / "n.pt2", dtype=dtype)
    found = exported_network(tmp_path / "n.pt2", CPU)
    images = torch.randn(3, 3, 16, 24)
    with torch.inference_mode():
        expected = torch.cat([network(image[None].to(dtype)) for image in images])
        torch.testing.assert_close(found(images), expected)


def test_the_size_that_a_program_wants_is_said(tmp_path):
    save_program(Tiny(3).eval(), tmp_path / "n.pt2")
    found = exported_network(tmp_path / "n.pt2", CPU)
    with pytest.raises(DataError) as refused:
        found(torch.zeros(1, 3, 32, 48))
    for word in ("n.pt2", "16x24", "these are 32x48", "preprocess: {size: [16, 24]}"):
        assert word in str(refused.value)
    save_program(Tiny(3).eval(), tmp_path / "w.pt2", dynamic=({3: ANY[3]},))
    with pytest.raises(DataError, match=r"16xany .* these are 32x48.*size: \[16, 48\]"):
        exported_network(tmp_path / "w.pt2", CPU)(torch.zeros(1, 3, 32, 48))
    save_program(Tiny(3).eval(), tmp_path / "b.pt2", (4, 3, 16, 24))
    with pytest.raises(DataError, match="4 images at a time, and these are 3"):
        exported_network(tmp_path / "b.pt2", CPU)(torch.zeros(3, 3, 16, 24))


def test_a_network_that_fails_says_on_which_images(tmp_path):
    class Halves(nn.Module):
        def forward(self, images):
            return images + nn.functional.interpolate(images[:, :, ::2, ::2], scale_factor=2.0)

    dynamic = ({2: 8 * torch.export.Dim("h"), 3: 8 * torch.export.Dim("w")},)
    save_program(Halves(), tmp_path / "n.pt2", (1, 3, 16, 24), dynamic)
    found = exported_network(tmp_path / "n.pt2", CPU)
    found(torch.zeros(1, 3, 32, 32))
    with pytest.raises(DataError, match=r"n\.pt2 fails on images of 1x3x33x33 .*`divisor`"):
        found(torch.zeros(1, 3, 33, 33))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Dropout2d(0.5)])
def test_a_program_in_training_mode_is_refused(tmp_path, layer):
    save_program(nn.Sequential(layer).eval(), tmp_path / "n.pt2")
    exported_network(tmp_path / "n.pt2", CPU)
    save_program(nn.Sequential(layer).train(), tmp_path / "n.pt2")
    with pytest.raises(DataError, match=r"in training mode: its aten\..*model\.eval"):
        exported_network(tmp_path / "n.pt2", CPU)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 4, 16, 16), "4 channels; expected 3"), ((1, 3), r"takes \[\[1, 3\]\]; expected one")],
)
def test_a_program_of_something_else_than_images_is_refused(tmp_path, shape, words):
    save_program(nn.ReLU(), tmp_path / "n.pt2", shape)
    with pytest.raises(DataError, match=words):
        exported_network(tmp_path / "n.pt2", CPU)


def test_a_program_of_two_tensors_is_refused(tmp_path):
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    images = torch.zeros(1, 3, 4, 4)
    torch.export.save(torch.export.export(Sum(), (images, images)), tmp_path / "n.pt2")
    with pytest.raises(DataError, match="expected one tensor"):
        exported_network(tmp_path / "n.pt2", CPU)


@pytest.mark.parametrize("load", [exported_network, torchscript_network])
@pytest.mark.parametrize("kind", ["empty", "text", "zip", "torn", "other"])
def test_damaged_files_are_refused(tmp_path, load, kind):
    mine, other = (program, script) if load is exported_network else (script, program)
    file = tmp_path / "n.pt2"
    (other if kind == "other" else mine)(Tiny(3), file)
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("n/version", "7")
    elif kind != "other":
        file.write_bytes({"empty": b"", "text": b"x" * 99, "torn": file.read_bytes()[:-999]}[kind])
    with pytest.raises(DataError, match=r"n\.pt2( holds no|: is empty|: was copied in part)"):
        load(file, CPU)


def test_a_missing_file_is_refused(tmp_path):
    for load in (exported_network, torchscript_network):
        with pytest.raises(DataError, match=r"n\.pt2: cannot be read"):
            load(tmp_path / "n.pt2", CPU)


def test_a_program_runs_the_code_in_its_file(tmp_path, monkeypatch):
    """Why it has to be trusted; `read_tensors` refuses the same file (`test_state_dicts`)."""
    # torch's own message about it is malformed, which pytest's handlers take for an error
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    evil_program(tmp_path / "n.pt2", tmp_path / "touched")
    exported_network(tmp_path / "n.pt2", CPU)
    assert (tmp_path / "touched").exists()


def test_pickled_code_in_a_script_is_refused_by_torch(tmp_path):
    evil_script(tmp_path / "n.pt", tmp_path / "touched")
    with pytest.raises(DataError, match=r"n\.pt holds no TorchScript"):
        torchscript_network(tmp_path / "n.pt", CPU)
    assert not (tmp_path / "touched").exists()
