"""Weights in files of others: what is loaded, what is refused, and that nothing is run."""

import os
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from evil import EVIL, evil_checkpoint, evil_old_checkpoint, evil_pickle, evil_program
from safetensors.torch import save_file
from torch import nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.state_dicts import load_weights, read_tensors
from ensdistill.stages.networks.students import Tiny, hf_segmentation


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".safetensors"])
@pytest.mark.parametrize("make", EVIL)
def test_no_code_of_a_file_runs_without_trust(tmp_path, make, suffix):
    file, touched = tmp_path / f"evil{suffix}", tmp_path / "touched"
    make(tmp_path / "evil.pt2" if make is evil_program else file, touched)
    (tmp_path / "evil.pt2").exists() and (tmp_path / "evil.pt2").rename(file)
    for call in (read_tensors, lambda f, trusted: load_weights(Tiny(3), f, trusted=trusted)):
        with pytest.raises(DataError, match=str(file)):
            call(file, trusted=False)
    assert not touched.exists()


@pytest.mark.parametrize("make", [evil_checkpoint, evil_old_checkpoint, evil_pickle])
def test_the_code_that_a_file_names_is_named_with_the_way_to_trust_it(tmp_path, make):
    make(tmp_path / "evil.pth", tmp_path / "touched")
    with pytest.raises(DataError) as refused:
        read_tensors(tmp_path / "evil.pth", trusted=False)
    for word in (f"{os.name}.mkdir", "trust: code", "your rights", "Nothing of it was run"):
        assert word in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("make", [evil_checkpoint, evil_old_checkpoint])
def test_with_trust_the_code_runs_and_the_weights_are_read(tmp_path, make):
    make(tmp_path / "evil.pth", tmp_path / "touched")
    found = read_tensors(tmp_path / "evil.pth", trusted=True)
    assert found.keys() == Tiny(3).state_dict().keys()
    assert (tmp_path / "touched").exists()


def test_a_whole_network_gives_its_weights_where_its_code_is_trusted(tmp_path):
    source = Tiny(3)
    torch.save({"model": source, "args": SimpleNamespace(lr=1)}, tmp_path / "whole.pt")
    with pytest.raises(DataError, match=r"students\.Tiny"):
        read_tensors(tmp_path / "whole.pt", trusted=False)
    network = Tiny(3)
    load_weights(network, tmp_path / "whole.pt", trusted=True)
    assert torch.equal(network.head.weight, source.head.weight)


def test_code_that_fails_is_told_with_its_reason(tmp_path, monkeypatch):
    module = type(sys)("passing")
    module.Options = type("Options", (), {"__module__": "passing"})
    monkeypatch.setitem(sys.modules, "passing", module)
    torch.save({"state_dict": Tiny(3).state_dict(), "args": module.Options()}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "passing")
    with pytest.raises(DataError, match=r"passing\.Options"):
        read_tensors(tmp_path / "a.pt", trusted=False)
    with pytest.raises(DataError, match="No module named 'passing'"):
        read_tensors(tmp_path / "a.pt", trusted=True)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world" * 99, b"\x80\x02.", None])
def test_damaged_files_are_refused(tmp_path, name, content, trusted):
    if content is None:  # torn
        torch.save(Tiny(3).state_dict(), tmp_path / "whole.pt")
        save_file(Tiny(3).state_dict(), tmp_path / "whole.safetensors")
        content = (tmp_path / name.replace("w", "whole", 1)).read_bytes()[:5000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_tensors(tmp_path / name, trusted=trusted)


# --- every tensor has to fit -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_come_back_as_they_were(tmp_path, suffix, prefix):
    source, network = Tiny(3), Tiny(3)
    source(torch.randn(2, 3, 16, 16))  # statistics other than the first ones
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    file = tmp_path / f"w.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save({"model": state}, file)
    load_weights(network, file, trusted=False)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def altered(**changes):
    state = OrderedDict(Tiny(3).state_dict())
    for name in [n for n in state if n in changes.get("without", ())]:
        del state[name]
    return state | changes.get("more", {})


AUXILIARY = {f"auxiliary_head.{k}.weight": torch.zeros(1) for k in range(9)}
HEAD = {"head.weight": torch.zeros(2, 32, 1, 1)}


@pytest.mark.parametrize(
    ("content", "ignore", "words"),
    [
        (altered(without=["head.bias"]), [], ["1 missing in the file: head.bias"]),
        (
            altered(more=AUXILIARY),
            [],
            ["9 unknown to the network: auxiliary_head.0.weight, ", "and 5 more", "`ignore_keys`"],
        ),
        (
            altered(more=HEAD),
            ["head.*"],
            ["1 of another shape: head.weight ([2, 32, 1, 1] there and [3, 32, 1, 1] here)"],
        ),
        (
            altered(without=["head.bias"], more=AUXILIARY | HEAD),
            [],
            ["1 missing", "9 unknown", "1 of another shape"],
        ),
        (altered(more=AUXILIARY), ["auxilliary_head.*"], ["'auxilliary_head.*'", "fits no name"]),
        (altered(more=AUXILIARY), ["auxiliary_head"], ["fits no name"]),
        (altered(without=["head.bias"]), ["stem.*"], ["1 missing in the file: head.bias"]),
    ],
    ids=["missing", "unexpected", "shape", "all", "typo", "part", "other"],
)
def test_what_does_not_fit_is_listed(tmp_path, content, ignore, words):
    torch.save(content, tmp_path / "w.pth")
    network = Tiny(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(DataError) as refused:
        load_weights(network, tmp_path / "w.pth", trusted=False, ignore=ignore)
    for word in [*words, "w.pth"]:
        assert word in str(refused.value)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "ignore"),
    [
        (altered(more=AUXILIARY), ["auxiliary_head.*"]),
        (altered(without=["head.bias"], more=AUXILIARY), ["aux*", "head.bias"]),
        (altered(without=[n for n in Tiny(3).state_dict() if n.endswith("tracked")]), []),
    ],
)
def test_names_that_are_ignored_may_be_anywhere_or_nowhere(tmp_path, content, ignore):
    torch.save(content, tmp_path / "w.pth")
    network = Tiny(3)
    load_weights(network, tmp_path / "w.pth", trusted=False, ignore=ignore)
    for name, tensor in content.items():
        if name in network.state_dict():
            assert torch.equal(network.state_dict()[name], tensor)


def test_names_that_only_a_prefix_tells_apart_are_refused(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.model = nn.ModuleDict({"conv": nn.Conv2d(3, 2, 1)})

    torch.save({"conv.weight": torch.zeros(2, 3, 1, 1)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="differ by"):
        load_weights(Both(), tmp_path / "w.pt", trusted=False)


def test_a_network_of_transformers_takes_what_the_library_saved(tmp_path):
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(num_labels=4, depth_multiplier=0.25)
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path / "a")
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(tmp_path / "b")
    network, other = (hf_segmentation(tmp_path / name).eval() for name in "ab")
    load_weights(network, tmp_path / "b" / "model.safetensors", trusted=False)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(images), other(images))
    with pytest.raises(DataError, match="missing in the file"):
        save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
        load_weights(network, tmp_path / "w.safetensors", trusted=False)
