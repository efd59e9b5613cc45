"""ONNX models as frozen networks, and that they read nothing but their own files."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from opened import opened

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.folders import onnx_data_files
from ensdistill.stages.networks.onnx import onnx_network
from ensdistill.stages.networks.students import Tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

CPU = torch.device("cpu")
IMAGES = ("N", 3, "H", "W")


def load(file, threads=1):
    return onnx_network(file, CPU, threads)


def scores(network, images):
    """Return the only output of a model."""
    [found] = network(images).values()
    return found


def external(location, name="weight"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 3, 1, 1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def internal(name="weight"):
    return onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), name)


def save(file, nodes=None, weights=(), taken=(("images", 1, IMAGES),), outputs=("scores",)):
    """Write a model: by default a convolution."""
    nodes = nodes or [helper.make_node("Conv", ["images", "weight"], ["scores"])]
    inputs = [helper.make_tensor_value_info(*info) for info in taken]
    given = [o if isinstance(o, tuple) else (o, 1, ("N", 2, "H", "W")) for o in outputs]
    found = [helper.make_tensor_value_info(*o) for o in given]
    graph = helper.make_graph(nodes, "graph", inputs, found, list(weights))
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("external_data", [False, True])
def test_a_model_answers_as_the_network_did(tmp_path, external_data):
    torch.manual_seed(0)
    network = Tiny(5).eval()
    file = tmp_path / "n.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 32, 48),),
            file,
            dynamo=True,
            verbose=False,
            external_data=external_data,
            dynamic_shapes=(dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),),
        )
    names = [p.name for p in onnx_data_files(file)]
    assert names == (["n.onnx.data"] if external_data else [])
    found = load(file).to(CPU).eval()
    for size in ((1, 3, 32, 48), (3, 3, 65, 97)):
        images = torch.randn(size)
        with torch.inference_mode():
            answer = scores(found, images)
            torch.testing.assert_close(answer, network(images), atol=1e-5, rtol=0)
            assert torch.equal(answer, scores(found, images))
    assert found.facts.keys() == {"onnxruntime"}


def test_an_answer_is_not_overwritten_by_the_next(tmp_path):
    found = load(save(tmp_path / "n.onnx", weights=[internal()]))
    first = scores(found, torch.ones(1, 3, 4, 4))
    found(torch.zeros(1, 3, 4, 4))
    assert (first == 3).all()


# --- other files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "secret.bin",
        "./n.onnx.data",
        "../models/n.onnx.data",
        "ABSOLUTE",
        "../../../../../../../../etc/passwd",
        "/etc/passwd",
        "*/_ORT_MEM_ADDR_/*",
        "",
    ],
)
@pytest.mark.parametrize("where", ["weight", "constant", "inner", "function", "sparse"])
def test_a_model_reads_no_other_file(tmp_path, monkeypatch, location, where):
    """Not beside it, not where the process is, nor anywhere else."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("secret.bin", "n.onnx.data"):
        np.arange(6, dtype=np.float32).tofile(folder / name)
    file = folder / "n.onnx"
    bad = external(str(folder / "secret.bin") if location == "ABSOLUTE" else location)
    conv = helper.make_node("Conv", ["images", "weight"], ["scores"])
    constant = helper.make_node("Constant", [], ["weight"], value=bad)
    if where == "weight":
        save(file, [conv], [bad])
    elif where == "constant":
        save(file, [constant, conv])
    elif where == "inner":
        info = helper.make_tensor_value_info("scores", 1, ("N", 2, "H", "W"))
        branch = helper.make_graph([conv], "branch", [], [info], [bad])
        yes = onnx.numpy_helper.from_array(np.array(True), "yes")
        node = helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)
        save(file, [node], [yes])
    else:
        save(file, [conv], [internal()])
        model = onnx.load(file, load_external_data=False)
        if where == "function":
            opset = [helper.make_opsetid("", 17)]
            model.functions.append(
                helper.make_function("own", "F", [], ["weight"], [constant], opset)
            )
        else:
            indices = onnx.numpy_helper.from_array(np.arange(6), "indices")
            model.graph.sparse_initializer.append(
                helper.make_sparse_tensor(bad, indices, [2, 3, 1, 1])
            )
        file.write_bytes(model.SerializeToString())
    monkeypatch.setattr("onnxruntime.InferenceSession", None)  # it never comes to that
    refusal = pytest.raises(DataError, match="not read; expected files beside it")
    with opened() as read, refusal as refused:
        load(file)
    assert repr(bad.external_data[0].value) in str(refused.value)
    names = ("secret.bin", "n.onnx.data", "passwd", "n.onnx")
    assert {path for path in read if path.endswith(names)} == {str(file)}


def test_a_place_is_refused_also_where_the_tensor_denies_it(tmp_path):
    weight = internal()
    weight.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(DataError, match=r"'/etc/passwd', which is not read"):
        load(save(tmp_path / "n.onnx", weights=[weight]))


def test_weights_come_from_the_file_beside_it_alone(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for place, value in ((folder, 1), (elsewhere, 7)):
        place.mkdir()
        np.full(6, value, np.float32).tofile(place / "n.onnx.data")
    monkeypatch.chdir(elsewhere)
    save(folder / "n.onnx", weights=[external("n.onnx.data")])
    assert (scores(load(folder / "n.onnx"), torch.ones(1, 3, 4, 4)) == 3).all()
    (folder / "n.onnx.data").write_bytes(b"short")
    with pytest.raises(DataError, match=r"n\.onnx\.data: its model reads 24 bytes of it, and 5"):
        load(folder / "n.onnx")
    (folder / "n.onnx.data").unlink()
    with pytest.raises(DataError, match=r"in 'n\.onnx\.data', which is not read.*none found"):
        load(folder / "n.onnx")


def test_files_of_a_model_are_those_named_like_it(tmp_path):
    for name in ("n.onnx", "n.onnx.data", "n.onnx_data", "m.onnx.data", "n.data", "a.n.onnx"):
        (tmp_path / name).touch()
    (tmp_path / "n.onnx.folder").mkdir()
    found = [p.name for p in onnx_data_files(tmp_path / "n.onnx")]
    assert found == ["n.onnx.data", "n.onnx_data"]
    assert onnx_data_files(tmp_path / "nowhere" / "n.onnx") == []


# --- inputs and outputs ----------------------------------------------------------------------


def test_a_model_for_one_image_of_one_size(tmp_path):
    taken = [("images", 1, (1, 3, 4, 6))]
    outputs = [("scores", 1, (1, 2, 4, 6))]
    found = load(save(tmp_path / "n.onnx", None, [internal()], taken, outputs))
    images = torch.randn(3, 3, 4, 6)
    expected = images.sum(1, keepdim=True).expand(3, 2, 4, 6)
    torch.testing.assert_close(scores(found, images), expected)
    with pytest.raises(DataError, match=r"4x6.*these are 8x12.*size: \[4, 6\]"):
        found(torch.zeros(1, 3, 8, 12))


def test_half_precision_is_served(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float16), "weight")
    outputs = [("scores", TensorProto.FLOAT16, None)]
    found = load(save(tmp_path / "n.onnx", None, [weight], [("images", 10, IMAGES)], outputs))
    answer = scores(found, torch.ones(1, 3, 4, 4))
    assert answer.dtype == torch.float16 and (answer == 3).all()


@pytest.mark.parametrize("keepdims", [0, 1])
def test_ids_are_passed_on_as_they_are(tmp_path, keepdims):
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=keepdims),
    ]
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 1
    weights = [onnx.numpy_helper.from_array(weight, "weight")]
    file = save(tmp_path / "n.onnx", nodes, weights, outputs=[("ids", TensorProto.INT64, None)])
    answer = scores(load(file), torch.ones(2, 3, 4, 6))
    assert answer.dtype == torch.int64 and (answer == 1).all()
    assert answer.shape == ((2, 1, 4, 6) if keepdims else (2, 4, 6))


def several(file, types=("scores", "less", ("mean", 1, ("N", 2)))):
    """Write a model of several outputs."""
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["scores"]),
        helper.make_node("Neg", ["scores"], ["less"]),
        helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("SequenceConstruct", ["scores", "less"], ["both"]),
    ]
    return save(file, nodes, [internal()], outputs=types)


def test_all_outputs_are_answered_by_name_and_in_their_order(tmp_path):
    answer = load(several(tmp_path / "n.onnx"))(torch.ones(1, 3, 4, 4))
    assert list(answer) == ["scores", "less", "mean"]
    assert [float(tensor.flatten()[0]) for tensor in answer.values()] == [3, -3, 3]
    assert answer["mean"].shape == (1, 2)


def test_outputs_of_one_image_at_a_time_are_put_together_by_name(tmp_path):
    shapes = [("scores", 1, (1, 2, 4, 4)), ("mean", 1, (1, 2))]
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["scores"]),
        helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[2, 3], keepdims=0),
    ]
    taken = [("images", 1, (1, 3, 4, 4))]
    found = load(save(tmp_path / "n.onnx", nodes, [internal()], taken, shapes))
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4).contiguous()
    answer = found(images)
    assert list(answer) == ["scores", "mean"]
    assert answer["scores"].shape == (3, 2, 4, 4)
    assert answer["mean"].tolist() == [[0, 0], [3, 3], [6, 6]]


def test_outputs_that_hold_no_numbers_are_left_out(tmp_path):
    several(tmp_path / "n.onnx", ("scores",))
    model = onnx.load(tmp_path / "n.onnx")
    model.graph.output.append(helper.make_tensor_sequence_value_info("both", 1, ("N", 2, "H", "W")))
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    assert list(load(tmp_path / "n.onnx")(torch.ones(1, 3, 4, 4))) == ["scores"]


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ([("images", 1, IMAGES), ("other", 1, IMAGES)], "has 2 inputs .*other"),
        ([("images", 1, ("N", "H", "W", 3))], "expected one of"),
        ([("images", 1, ("N", 4, "H", "W"))], r"takes images .*4.*expected one of"),
        ([("images", TensorProto.UINT8, IMAGES)], r"tensor\(uint8\).*expected one of"),
        ([("images", 1, ("N", 3))], "expected one of"),
    ],
)
def test_a_model_of_something_else_than_images_is_refused(tmp_path, taken, words):
    nodes = [helper.make_node("Shape", ["images"], ["scores"])]
    file = save(tmp_path / "n.onnx", nodes, (), taken, [("scores", TensorProto.INT64, None)])
    if "W" in taken[0][2] and taken[0][2][-1] == 3:
        # channels last: nothing in its type tells but where the 3 is
        with pytest.raises(DataError, match=r"n\.onnx"):
            load(file)(torch.zeros(1, 3, 8, 8))
        return
    with pytest.raises(DataError, match=words):
        load(file)


@pytest.mark.parametrize("content", [b"", b"hello world" * 99, b"\x08\x00\x00\x00ORTM" * 9, None])
def test_damaged_models_are_refused(tmp_path, content):
    file = save(tmp_path / "n.onnx", weights=[internal()])
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    with pytest.raises(DataError, match=r"n\.onnx(: is empty| is no model)"):
        load(file)


def test_a_missing_model_or_package_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"n\.onnx: cannot be read \(No such file"):
        load(tmp_path / "n.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match=r"pip install 'ensdistill\[onnx\]'"):
        load(tmp_path / "n.onnx")


def test_cuda_is_never_replaced_by_the_cpu_in_silence(tmp_path, monkeypatch):
    import onnxruntime

    file = save(tmp_path / "n.onnx", weights=[internal()])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DataError, match=r"cannot run on cuda:0.*onnxruntime-gpu"):
            onnx_network(file, torch.device("cuda:0"), None)
    # built for CUDA, but without its libraries: the session comes up without it
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    plain = onnxruntime.InferenceSession

    def session(content, options, providers, **more):
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": "1"})
        return plain(content, options, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DataError, match=r"cannot run on cuda:1 .*only with CPUExecutionProvider"):
        onnx_network(file, torch.device("cuda:1"), None)


def test_a_network_that_fails_says_on_which_images(tmp_path):
    nodes = [
        helper.make_node("AveragePool", ["images"], ["low"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["low", "up"], ["high"], strides=[2, 2]),
        helper.make_node("Add", ["high", "images"], ["scores"]),
    ]
    up = onnx.numpy_helper.from_array(np.ones((3, 3, 2, 2), np.float32), "up")
    found = load(save(tmp_path / "n.onnx", nodes, [up], outputs=[("scores", 1, None)]))
    found(torch.zeros(1, 3, 4, 4))
    with pytest.raises(DataError, match=r"n\.onnx fails on images of 1x3x5x5 .*`divisor`"):
        found(torch.zeros(1, 3, 5, 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_answers_as_the_cpu_does(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    file = save(tmp_path / "n.onnx", weights=[internal()])
    images = torch.randn(2, 3, 32, 48)
    answer = scores(onnx_network(file, torch.device("cuda:0"), None), images.cuda())
    assert answer.is_cuda
    torch.testing.assert_close(answer.cpu(), scores(load(file), images), atol=1e-2, rtol=0)


def test_threads_are_those_asked_for(tmp_path):
    file = save(tmp_path / "n.onnx", weights=[internal()])
    options = load(file, threads=1)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir())) if tasks.is_dir() else 0
    kept = load(file, threads=3)
    if before:
        assert len(list(tasks.iterdir())) == before + 2
    del kept
