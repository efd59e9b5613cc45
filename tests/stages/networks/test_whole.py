"""Files of weights that are something else, damaged or copied in part; and what is no file."""

import os
import shutil
import socket
import warnings
from contextlib import chdir

import pytest
import torch
from evil import program, script
from mutants import outcome
from safetensors.torch import save_file
from worlds import network_world, segformer

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.checks import doctor
from ensdistill.stages.checks.importing import confidence_grey
from ensdistill.stages.graph import load
from ensdistill.stages.networks.exported import exported_network, torchscript_network
from ensdistill.stages.networks.folders import network_classes
from ensdistill.stages.networks.onnx import onnx_network
from ensdistill.stages.networks.state_dicts import load_weights, read_tensors
from ensdistill.stages.networks.students import Tiny
from ensdistill.stages.networks.universal import hf_teacher
from ensdistill.stages.networks.whole import require_whole, tensor_shapes

CPU = torch.device("cpu")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 15024768\n"
INSTEAD = {
    "pointer": (POINTER, "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s1--0.pth\n", "git annex get"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "empty": (b"", "is empty"),
    "zeros": (b"\0" * 4096, "zeros only"),
}


def load_tiny(file):
    load_weights(Tiny(3), file, trusted=False)


def load_onnx(file):
    onnx_network(file, CPU, 1)


def save_onnx(file, *, beside=False):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import numpy as np

    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ("N", 3, "H", "W")) for name in ("x", "y")]
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([conv], "g", ends[:1], ends[1:], [weight])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    more = {"save_as_external_data": True, "location": f"{file.name}.data", "size_threshold": 0}
    onnx.save_model(model, str(file), **more if beside else {})


def save_old(file):
    torch.save(Tiny(3).state_dict(), file, _use_new_zipfile_serialization=False)


KINDS = {
    "n.safetensors": (lambda file: save_file(Tiny(3).state_dict(), file), load_tiny),
    "n.pth": (lambda file: torch.save({"model": Tiny(3).state_dict()}, file), load_tiny),
    "old.pth": (save_old, load_tiny),
    "n.pt": (lambda file: script(Tiny(3), file), lambda file: torchscript_network(file, CPU)),
    "n.pt2": (lambda file: program(Tiny(3), file), lambda file: exported_network(file, CPU)),
    "n.onnx": (save_onnx, load_onnx),
}
SLOW = [pytest.param(k, marks=pytest.mark.slow) if k == "n.pt2" else k for k in KINDS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of each kind, each written once."""
    folder = tmp_path_factory.mktemp("saved")

    def get(kind):
        if not (folder / kind).exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of writing, which is not ours
                KINDS[kind][0](folder / kind)
        return folder / kind

    return get


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return segformer(tmp_path_factory.mktemp("net"), classes=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instead", INSTEAD)
def test_what_a_file_is_instead_is_said_before_it_is_loaded(tmp_path, kind, instead):
    content, said = INSTEAD[instead]
    file = tmp_path / kind
    file.write_bytes(content)
    for call in (require_whole, KINDS[kind][1]):
        assert said in outcome(lambda call=call: call(file), file)


@pytest.mark.parametrize("kind", SLOW)
def test_a_file_is_whole_as_it_was_saved(saved, kind):
    file = saved(kind)
    require_whole(file)
    KINDS[kind][1](file)


def spoilt(content):
    """Yield a file's content cut off at some places, and written over at others."""
    size = len(content)
    for end in (1, 7, 8, 9, 100, size // 4, size // 2, size - 100, size - 1):
        yield content[:end]
    for at in (0, 1, 4, 8, 12, 30, 60, 100, 300, size // 3, size // 2, size - 200, size - 22):
        for new in (b"\xff" * 8, b"\0" * 8, b"\x80\x02}q\1\x8a\n."):
            yield content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_by_name_or_read(saved, tmp_path, kind):
    file, refused = tmp_path / kind, 0
    for content in spoilt(saved(kind).read_bytes()):
        file.write_bytes(content)
        refused += bool(outcome(lambda: KINDS[kind][1](file), file))
    assert refused >= 9


@pytest.mark.parametrize("kind", ["n.safetensors", "n.pth", "n.pt"])
def test_a_file_that_was_copied_in_part_is_called_so(saved, tmp_path, kind):
    content = saved(kind).read_bytes()
    for end in (len(content) // 2, len(content) - 1):
        (tmp_path / kind).write_bytes(content[:end])
        with pytest.raises(DataError, match=f"{kind}: .*copied in part.*copy it again"):
            require_whole(tmp_path / kind)


def test_a_header_says_more_than_is_there(saved, tmp_path):
    content = saved("n.safetensors").read_bytes()
    file = tmp_path / "n.safetensors"
    for bad, said in (
        (content + b"\0", "by its header it has"),
        (content[:4], "its header would have"),
        (b"\xff" * 7 + content[7:], "its header would have"),
        (content.replace(b'"shape":[', b'"shape":"'), "no JSON"),
        (content.replace(b'"shape":[', b'"shape":{', 1), "no JSON"),
        (content.replace(b'"F32"', b'"F99"'), "no whole safetensors file"),
        (content.replace(b'"shape":[24]', b'"shape":[25]'), "no whole safetensors file"),
        (content.replace(b'"shape":[24]', b'"shape":"24"'), "expected a valid list"),
        (b"\2\0\0\0\0\0\0\0[]", "expected a valid dictionary"),
        (b"\x10\x27\0\0\0\0\0\0" + b"[" * 10_000, "too deep"),
    ):
        file.write_bytes(bad)
        with pytest.raises(DataError, match=f"n.safetensors: .*{said}"):
            tensor_shapes(file)


def test_the_files_of_an_onnx_model_are_whole(tmp_path):
    file, data = tmp_path / "n.onnx", tmp_path / "n.onnx.data"
    save_onnx(file, beside=True)
    load_onnx(file)
    whole = data.read_bytes()
    for content, said in ((POINTER, "git lfs pull"), (b"", "is empty"), (whole[:20], "in part")):
        data.write_bytes(content)
        with pytest.raises(DataError, match=f"n.onnx.data: .*{said}"):
            load_onnx(file)


@pytest.mark.parametrize("instead", INSTEAD)
def test_check_and_doctor_say_so_of_each_file(world, net, tmp_path, saved, instead):
    content, said = INSTEAD[instead]
    folder = shutil.copytree(net, tmp_path / "copy")
    files = [folder / "model.safetensors", tmp_path / "w.pth", tmp_path / "n.onnx"]
    for file in files:
        file.write_bytes(content)
    whole = {"hf": str(net), "state_dict": str(files[1])}
    networks = [{"hf": str(folder)}, whole, {"onnx": str(files[2])}]
    root = tmp_path / "root"
    root.mkdir()
    (root / "m.py").write_text("def f(w): pass\n")
    made = {"factory": "m:f", "root": str(root), "files": {"w": str(files[1])}}
    networks.append(made)
    for network, file in zip(networks, [*files, files[1]], strict=True):
        world = network_world(world, network=network, trust="code", classes="two.yaml")
        rows = "".join(f"  - {{name: LABEL_{k}, colour: [{k}, 0, 0]}}\n" for k in range(2))
        (world.root / "two.yaml").write_text(f"classes:\n{rows}")
        world.settings["teachers"][0]["map"] = {"LABEL_0": "road"}
        world.write()
        refused = world.refuse("check")
        assert said in refused and file.name in refused, refused
        experiment = load(world.file)
        needs = doctor._teacher(experiment, experiment.teachers[0]).needs
        [problem] = [need.problem for need in needs if need.problem is not None]
        assert said in problem and file.name in problem


@pytest.mark.parametrize("instead", INSTEAD)
def test_check_and_doctor_say_so_of_images_and_labels(world, instead):
    content, said = INSTEAD[instead]
    label = next((world.root / "teachers/a/train").iterdir())
    image = next((world.root / "images/train").iterdir())
    for file in (label, image):
        file.write_bytes(content)
    refused = world.refuse("check")
    assert refused.count(said) == 2 and label.name in refused
    experiment = load(world.file)
    needs = doctor._teacher(experiment, experiment.teachers[0]).needs
    [problem] = [need.problem for need in needs if need.problem is not None]
    assert said in problem and str(label) in problem
    assert [
        f.text
        for f in doctor._judge_teacher(doctor._teacher(experiment, experiment.teachers[0]), None)
    ] == [problem]


def test_arrays_to_be_imported_are_whole(tmp_path):
    import numpy as np

    labels = np.zeros((4, 6), np.uint8)
    for name in ("x.npy", "x.npz"):
        file = tmp_path / name
        for content, said in INSTEAD.values():
            file.write_bytes(content)
            with pytest.raises(DataError, match=f"{name}: .*{said}"):
                confidence_grey(file, labels, (4, 6), 2)
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(DataError, match="a named pipe"):
            confidence_grey(file, labels, (4, 6), 2)
    np.savez(tmp_path / "y.npz", np.full((4, 6), 50.0))
    content = (tmp_path / "y.npz").read_bytes()
    (tmp_path / "y.npz").write_bytes(content[:-1])
    with pytest.raises(DataError, match="copied in part"):
        confidence_grey(tmp_path / "y.npz", labels, (4, 6), 2)


def test_checkpoints_that_hold_themselves_or_other_tensors(tmp_path):
    """What a checkpoint of tensors alone can hold, and no network can take."""
    state = Tiny(3).state_dict()
    around: dict = {"epoch": 3}
    around["model"] = around
    odd = dict(state)
    first = next(iter(odd))
    sparse = odd | {first: odd[first].to_sparse()}
    for content in (
        around,
        {"a": around},
        {1: torch.zeros(3)},
        {"state_dict": {2: state}},
        odd | {first: odd[first].to("meta")},
        sparse,
        odd | {first: torch.zeros(0)},
        [state],
        state[first],
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, tmp_path / "n.pth")
            outcome(lambda: load_tiny(tmp_path / "n.pth"), "n.pth")
    torch.save({"model": state, 3: 4}, tmp_path / "n.pth")
    assert len(read_tensors(tmp_path / "n.pth", trusted=False)) == len(state)


# --- what is no regular file --------------------------------------------------------------------


@pytest.fixture(params=["pipe", "device", "socket", "folder"])
def put(request, tmp_path):
    """Return a function that puts something in a file's place."""
    servers = []

    def run(path):
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        elif request.param == "folder":
            path.mkdir()
        else:
            servers.append(socket.socket(socket.AF_UNIX))
            with chdir(path.parent):  # as its path has to be short
                servers[-1].bind(path.name)

    yield run
    for server in servers:
        server.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "preprocessor_config.json", "model.safetensors", "tokenizer_config.json"),
        *("model.safetensors.index.json", "generation_config.json", "adapter_config.json"),
    ],
)
def test_a_folder_of_transformers_holds_regular_files(net, tmp_path, put, name):
    folder = shutil.copytree(net, tmp_path / "copy")
    put(folder / name)
    text = outcome(lambda: network_classes(folder, "hf", "here"), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more = outcome(lambda: hf_teacher(folder, trusted=False), folder)
    assert (text and more) or (folder / name).is_dir()


@pytest.mark.timeout(60)
def test_weights_are_regular_files(tmp_path, put):
    for kind, (_, call) in KINDS.items():
        put(tmp_path / kind)
        for each in (require_whole, call):
            assert outcome(lambda each=each, kind=kind: each(tmp_path / kind), kind)


@pytest.mark.timeout(120)
def test_whatever_an_experiment_names_is_a_regular_file(world, tmp_path, put):
    image = next((world.root / "images/train").iterdir())
    label = next((world.root / "teachers/a/train").iterdir())
    for file in (image, label):
        content = file.read_bytes()
        put(file)
        text = world.refuse("check")
        assert file.name in text or file.parent.name in text, text
        world.refuse("fuse", "--upstream")
        file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(content)
    world.call("check")
    put(world.root / "classes2.yaml")
    world.settings["classes"] = {"table": "classes2.yaml"}
    world.write()
    assert "classes2.yaml" in world.refuse("status")
