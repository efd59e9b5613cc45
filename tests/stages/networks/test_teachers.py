"""Teachers' networks, however they are given and however they see an image."""

import json
import shutil
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from worlds import World, network_world, segformer

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import read_confidence, read_image
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import file_digest
from ensdistill.stages.labelmaps import LabelMaps, LabelWriter
from ensdistill.stages.networks import frozen, stream
from ensdistill.stages.networks.frozen import FrozenNetwork, Reading
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.stream import Clock, Request

pytest.importorskip("transformers")

SIZE = (64, 96)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CODE = """
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(pixel_values=images)

def build(folder=None, config=None):
    if folder is not None:
        return Logits(SegformerForSemanticSegmentation.from_pretrained(folder))
    return Logits(SegformerForSemanticSegmentation(SegformerConfig.from_pretrained(config)))
"""


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(pixel_values=images).logits


def model_of(folder):
    from transformers import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation.from_pretrained(folder).eval()


def sharp_segformer(folder):
    """A SegFormer whose logits differ by more than the last bits."""
    model = model_of(segformer(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def logits_by_hand(folder, image, size=SIZE, scale=255.0):
    """The (C, h, w) logits of a photograph that was resized before."""
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    x = torch.tensor(np.asarray(resized)).permute(2, 0, 1)[None].float() / scale
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        return Logits(model_of(folder))((x - mean) / std)[0]


def upsampled(scores, shape):
    return functional.interpolate(scores[None], shape, mode="bilinear")[0]


def require_labels(maps, image_id, scores):
    """The labels are the argmax of (C, H, W) scores; where the two best are equal, one of them."""
    best = scores.topk(2, dim=0).values
    sure = (best[0] - best[1] > 1e-4).numpy()
    found = maps.read(image_id)
    assert sure.mean() > 0.9
    assert (found == scores.argmax(0).numpy())[sure].mean() == 1, maps.reader.folder.name


def images_of(world):
    return sorted((world.root / "images/train").glob("*.png"))


# --- kinds -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_network_through_every_kind_gives_the_same_labels(world):
    folder = sharp_segformer(world.root / "segformer")
    wrapped, example = Logits(model_of(folder)), torch.zeros(1, 3, *SIZE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters
        torch.jit.save(torch.jit.trace(wrapped, example), world.root / "net.pt")
        torch.export.save(torch.export.export(wrapped, (example,)), world.root / "net.pt2")
        torch.onnx.export(
            wrapped, (example,), world.root / "net.onnx", dynamo=True, external_data=True
        )
    torch.save({"state_dict": model_of(folder).state_dict()}, world.root / "net.pth")
    (world.root / "config").mkdir()
    (world.root / "config/config.json").write_bytes((folder / "config.json").read_bytes())
    (world.root / "code").mkdir()
    (world.root / "code/nets.py").write_text(CODE)
    build = {"factory": "nets:build", "root": "code"}
    config = str(world.root / "config")
    networks = {
        "hf": {"hf": "segformer"},
        "onnx": {"onnx": "net.onnx"},
        "exported": {"exported": "net.pt2"},
        "torchscript": {"torchscript": "net.pt"},
        "weights": {"hf": "config", "state_dict": "net.pth"},
        "factory": {**build, "kwargs": {"folder": str(folder)}},
        "filled": {**build, "kwargs": {"config": config}, "state_dict": "net.pth"},
    }
    world.settings["teachers"] = [
        {"name": name, "network": n, "preprocess": {"size": list(SIZE)}, "trust": "code"}
        for name, n in networks.items()
    ]
    world.write()
    found = world.json("check")["teachers"]
    warned = {name: t["trial"]["warnings"] for name, t in found.items() if t["trial"]["warnings"]}
    assert list(warned) == ["factory", "filled"]  # they were given folders: nobody hashes these
    assert f"unnoticed: {folder}/config.json, {folder}/model.safetensors." in warned["factory"][0]
    assert f"unnoticed: {config}/config.json." in warned["filled"][0]
    assert len({json.dumps(t["trial"]["labels"]) for t in found.values()}) <= 3
    world.call("infer-teacher")
    for path in images_of(world):
        image = read_image(path)
        scores = upsampled(logits_by_hand(folder, image), image.shape[:2])
        for name in networks:
            require_labels(LabelMaps(world.artifact(f"infer[{name}]")), path.stem, scores)


# --- how a network sees an image -------------------------------------------------------------


WAYS = {
    "caffe": {"preset": "caffe"},
    "factor": {"factor": 1.5},
    "flip": {"flip": True, "size": list(SIZE)},
    "scales": {"scales": [0.5, 1.5], "flip": True, "size": list(SIZE)},
    "tiles": {"tiles": {"size": [32, 32], "overlap": [8, 16]}, "size": "image"},
}


def probabilities_by_hand(folder, image, way):
    """The mean softmax (C, H, W) over all that a way of seeing an image asks for."""
    shape = image.shape[:2]
    model = Logits(model_of(folder))
    size = way.get("size", "image")
    size = shape if size == "image" else size
    mean, std, scale, flip = MEAN, STD, 255.0, False
    if way.get("preset") == "caffe":
        mean, std, scale = (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), 1.0
    found = []
    for factor in way.get("scales", [way.get("factor", 1)]):
        height, width = (round(factor * side) for side in size)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        x = torch.tensor(np.asarray(resized)).permute(2, 0, 1)[None].float()
        if way.get("preset") == "caffe":
            x = x.flip(1)
        x = (x / scale - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for flip in (False, True) if way.get("flip") else (False,):
            with torch.no_grad():
                if "tiles" in way:
                    scores = torch.zeros(19, *shape)
                    count = torch.zeros(shape)
                    tops = sorted({min(y, shape[0] - 32) for y in range(0, shape[0] - 8, 24)})
                    lefts = sorted({min(x0, shape[1] - 32) for x0 in range(0, shape[1] - 16, 16)})
                    for top in tops:
                        for left in lefts:
                            part = model(x[:, :, top : top + 32, left : left + 32])[0]
                            at = slice(top, top + 32), slice(left, left + 32)
                            scores[:, *at] += upsampled(part, (32, 32))
                            count[at] += 1
                    scores /= count
                else:
                    scores = model(x.flip(3) if flip else x)[0]
                    scores = upsampled(scores.flip(2) if flip else scores, shape)
            found.append(scores.softmax(0))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_seeing_an_image_is_what_it_says(world, name):
    folder = sharp_segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"}, preprocess=WAYS[name])
    world.call("infer-teacher")
    maps = LabelMaps(world.artifact("infer[seg]"))
    for path in images_of(world)[:3]:
        image = read_image(path)
        require_labels(maps, path.stem, probabilities_by_hand(folder, image, WAYS[name]))


def test_a_preset_is_what_it_stands_for(world):
    folder = segformer(world.root / "segformer")
    assert folder.is_dir()
    keys = []
    for way in (
        {"preset": "caffe", "std": [2, 2, 2]},
        {
            "channels": "bgr",
            "scale": 1,
            "mean": [104.00698793, 116.66876762, 122.67891434],
            "std": [2, 2, 2],
        },
    ):
        network_world(world, network={"hf": "segformer"}, preprocess=way)
        keys.append({d["node"]: d["fingerprint"] for d in world.json("status")}["infer[seg]"])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_changes_the_key_and_few_labels(world, precision):
    sharp_segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    world.call("infer-teacher")
    full = world.artifact("infer[seg]")
    network_world(world, network={"hf": "segformer", "precision": precision})
    world.call("infer-teacher")
    half = world.artifact("infer[seg]")
    assert half.path != full.path
    one, two = LabelMaps(full), LabelMaps(half)
    same = [(one.read(i) == two.read(i)).mean() for i in one]
    assert 0.9 < np.mean(same) < 1


# --- what a network returns ------------------------------------------------------------------


RETURNS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, images):
        n, _, h, w = images.shape
        bright = (images.mean(1) > 0).long()  # (N, H, W) of 0 and 1
        if self.what == "ids":
            return 7 * bright
        if self.what == "wrong ids":
            return 30 * bright
        if self.what == "dict":
            scores = torch.zeros(n, 19, h, w)
            scores[:, 0] = 1
            scores[:, 7] = 2.0 * bright
            return {"aux": None, "out": scores}
        if self.what == "nan":
            return torch.full((n, 19, h, w), float("nan"))
        if self.what == "two":
            return torch.zeros(n, 2, h, w)
        if self.what == "flat":
            return torch.zeros(n, 19)
        scores = torch.full((n, 20, h, w), 0.01)
        scores[:, 0] = 9  # background, more likely than all else
        scores[:, 1] = 0.5
        scores[:, 8] = 0.9 * bright
        return scores

def build(what):
    return Net(what)
"""


def returning(world, what, **network):
    (world.root / "code").mkdir(exist_ok=True)
    (world.root / "code/nets.py").write_text(RETURNS)
    built = {"factory": "nets:build", "root": "code", "kwargs": {"what": what}}
    return network_world(world, network=built | network, trust="code")


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("ids", {"output": "ids"}),
        pytest.param("dict", {}, marks=pytest.mark.slow),
        pytest.param(
            "void", {"void_channels": [0], "output": "probabilities"}, marks=pytest.mark.slow
        ),
    ],
)
def test_what_a_network_returns_is_read_as_declared(world, what, more):
    returning(world, what, **more)
    world.call("infer-teacher")
    maps = LabelMaps(world.artifact("infer[seg]"))
    for path in images_of(world):
        x = torch.tensor(read_image(path)).permute(2, 0, 1).float() / 255
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        bright = (x.mean(0) > 0).numpy()
        assert ((maps.read(path.stem) == 7) == bright).mean() > 0.999
        assert set(np.unique(maps.read(path.stem))) <= {0, 7}


@pytest.mark.parametrize(
    ("what", "more", "words"),
    [
        ("nan", {}, ["is not a number", "train_000000"]),
        ("two", {}, ["2 channels", "19"]),
        ("flat", {}, ["(1, 19)", "(N, C, h, w)"]),
        ("ids", {}, ["int64", "expected (N, C, h, w) logits"]),
        ("dict", {"output": "ids"}, ["output: ids", "whole numbers"]),
        pytest.param(
            "wrong ids",
            {"output": "ids"},
            ["an id that is neither one of its 19"],
            marks=pytest.mark.slow,
        ),
        ("void", {"void_channels": [20]}, ["void_channels [20]"]),
    ],
    ids=str,
)
def test_what_is_not_as_declared_is_refused(world, what, more, words):
    """In this process: what comes from another is told in the same words."""
    namespace = {}
    exec(RETURNS, namespace)
    reading = Reading.from_recipe({"teacher_classes": ["c"] * 19, **more})
    module = namespace["build"](what)
    network = FrozenNetwork(module, Preprocessing(), torch.device("cpu"), reading)
    path = images_of(world)[0]
    sha256 = file_digest(path)
    if what == "wrong ids":
        returning(world, what, **more)
        text = world.refuse("infer-teacher")
    else:
        with pytest.raises(Exception) as caught:
            list(network.stream([[Request(str(path), sha256)]], "labels", Pixels(), Clock(), print))
        text = f"{type(caught.value).__name__}: {caught.value}"
    assert text.startswith("DataError")
    for word in words:
        assert word in text


# --- batches, memory and threads -------------------------------------------------------------


class Counting(torch.nn.Module):
    """Says how many images it saw at once; has no memory for more than some."""

    def __init__(self, most=99):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory")
        self.seen.append(len(images))
        bright = (images.mean((1, 2, 3), keepdim=True) > 0).float()
        return torch.cat([1 - bright, bright], 1).expand(-1, 2, *images.shape[2:])


def through(module, paths, size, *, workers=2, said=None, want="labels"):
    network = FrozenNetwork(module, Preprocessing(), torch.device("cpu"), workers=workers)
    requests = [Request(str(p), file_digest(p)) for p in paths]
    batches = [requests[k : k + size] for k in range(0, len(requests), size)]
    say = print if said is None else said.append
    return [one for batch in network.stream(batches, want, Pixels(), Clock(), say) for one in batch]


def test_images_of_one_size_run_at_once_and_come_in_order(world):
    paths = images_of(world)  # the first is smaller than the other four
    module = Counting()
    found = through(module, paths, 3)
    assert module.seen == [1, 2, 2]
    alone = [one for p in paths for one in through(Counting(), [p], 1)]
    assert [labels.shape for (labels,) in found] == [labels.shape for (labels,) in alone]
    assert all(np.array_equal(a, b) for (a,), (b,) in zip(found, alone, strict=True))


def test_a_batch_is_done_when_its_own_device_says_so(monkeypatch):
    """And not when the first one does, where the second one is asked for."""
    recorded = []

    class Event:
        def __init__(self, **_):
            pass

        def record(self, queue):
            recorded.append(queue)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"queue of {device}")
    monkeypatch.setattr(stream, "_find", lambda *_: [])
    stream._run(SimpleNamespace(device=torch.device("cuda:1")), [], "labels", Clock())
    assert recorded == ["queue of cuda:1"] * 2


def test_without_memory_half_as_many_run_at_once_from_then_on(world):
    paths = images_of(world)[1:]
    module, said = Counting(most=2), []
    assert len(through(module, paths, 4, said=said)) == 4
    assert module.seen == [2, 2]
    text, remark = said
    assert "look like probabilities" in remark
    assert text.startswith("no memory for 4 images at once: 2 from now on")
    with pytest.raises(DataError, match=r"no memory for 2 images at once; set `runtime: \{batch"):
        through(Counting(most=1), paths, 4, said=[])
    with pytest.raises(DataError, match="no memory for 1 images"):
        through(Counting(most=0), paths, 1)


def test_what_was_asked_for_before_a_bad_image_comes_and_threads_end(world):
    paths = images_of(world)
    paths[3].write_bytes(b"no image")
    seen = []
    network = FrozenNetwork(Counting(), Preprocessing(), torch.device("cpu"), workers=3)
    batches = [[Request(str(p), file_digest(p))] for p in paths]
    with pytest.raises(DataError, match="cannot be read as an image"):
        for batch in network.stream(batches, "labels", Pixels(), Clock(), print):
            seen += batch
    assert len(seen) == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_full_disk_while_a_network_runs_loses_nothing(world, monkeypatch):
    segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    write, calls = LabelWriter.__call__, []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(LabelWriter, "__call__", full)
    assert "No space left on device" in world.refuse("infer-teacher")
    monkeypatch.undo()
    assert not [t for t in threading.enumerate() if t.name.startswith(("decode", "queue"))]
    [report] = world.json("infer-teacher")["ran"]
    assert report["written"] == 5 - (len(calls) - 1)  # what came after it was written all the same


def test_batches_are_cut_from_the_whole_list(world):
    """A batch with a missing image is computed whole, and only what is missing is written."""
    sharp_segformer(world.root / "segformer")
    world.settings["runtime"]["batch_size"] = 2
    network_world(world, network={"hf": "segformer"})
    world.call("infer-teacher", "--part", "1/3")  # images 0 and 3
    world.call("infer-teacher", "--part", "2/3")
    report = world.json("infer-teacher")
    assert [r["written"] for r in report["ran"]] == [1]
    parts = LabelMaps(world.artifact("infer[seg]"))
    whole = World(world.root / "other")
    segformer_of = whole.root / "segformer"
    shutil.copytree(world.root / "segformer", segformer_of)
    whole.settings["runtime"]["batch_size"] = 2
    network_world(whole, network={"hf": "segformer"})
    whole.call("infer-teacher")
    maps = LabelMaps(whole.artifact("infer[seg]"))
    assert all(np.array_equal(parts.read(i), maps.read(i)) for i in maps)
    runtime = whole.artifact("infer[seg]").manifest.runtime
    assert runtime["batch_size"] == 2
    assert runtime["time"].keys() == {"network", "decode", "write", "wait"}
    assert sum(runtime["time"].values()) == pytest.approx(1, abs=0.002)


class Viewing(torch.nn.Module):
    def forward(self, images):
        return images.view(len(images), -1)[:, None, None].expand(-1, 2, 4, -1)


def test_a_network_that_needs_tensors_to_lie_otherwise_says_so(world):
    with pytest.raises(DataError, match=r"channels_last: false"):
        through(Viewing(), images_of(world)[:1], 1)


def test_the_time_adds_up():
    clock = Clock(network=6.0, decode=2.0, write=1.0)
    assert clock.shares(10) == {"network": 0.6, "decode": 0.2, "write": 0.1, "wait": 0.1}
    busy = Clock(network=9.0, decode=3.0, write=1.0)  # a GPU worked while it was waited for images
    assert busy.shares(10) == {"network": 0.9, "decode": 0.075, "write": 0.025, "wait": 0}


# --- one image before all --------------------------------------------------------------------


def test_check_lets_each_network_see_an_image_and_remembers_it(world, monkeypatch):
    folder = sharp_segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    found = world.json("check")["teachers"]["seg"]["trial"]
    assert found["warnings"] == []
    assert sum(found["labels"].values()) == pytest.approx(1)
    assert list(found["labels"].values()) == sorted(found["labels"].values(), reverse=True)
    image = read_image(images_of(world)[0])
    scores = upsampled(logits_by_hand(folder, image, image.shape[:2]), image.shape[:2])
    name = world_classes()[int(scores.argmax(0).flatten().mode().values)]
    assert next(iter(found["labels"])) == name
    assert f"  {images_of(world)[0].name}: {name} " in world.call("check")
    monkeypatch.setattr(frozen, "open_here", None)  # a second time it is not even loaded
    assert world.json("check")["teachers"]["seg"]["trial"] == found


def world_classes():
    from ensdistill.data.classes import TABLES

    return TABLES["cityscapes19"].classes


def test_check_warns_of_one_class_and_refuses_nan_and_other_channels(world):
    model = model_of(segformer(world.root / "segformer"))
    network_world(world, network={"hf": "segformer"})
    with torch.no_grad():
        model.decode_head.classifier.bias[13] = 1e4
    model.save_pretrained(world.root / "segformer")
    assert "warning: teachers[seg]: it calls the whole of" in world.call("check")
    assert world.json("check")["teachers"]["seg"]["trial"]["labels"] == {"car": 1.0}
    with torch.no_grad():
        model.decode_head.classifier.bias[13] = float("nan")
    model.save_pretrained(world.root / "segformer")
    text = world.refuse("check")
    assert "teachers[seg]" in text and "is not a number" in text


# --- what is kept beside labels --------------------------------------------------------------


def test_scores_are_kept_and_labels_stay_fresh(world):
    folder = sharp_segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"})
    world.call("infer-teacher")
    world.settings["teachers"][0]["keep"] = ["soft", "confidence"]
    world.write()
    report = world.json("infer-teacher")
    made = ["confidence[seg]", "soft[seg]"]
    assert [r["node"] for r in report["ran"]] == made
    assert [r["written"] for r in report["ran"]] == [5, 5]
    sure, soft = (LabelMaps(world.artifact(node)) for node in made)
    for path in images_of(world):
        image = read_image(path)
        logits = logits_by_hand(folder, image, image.shape[:2])
        expected = upsampled(logits, image.shape[:2]).softmax(0).amax(0)
        assert abs(sure.read(path.stem) / 250.0 - expected.numpy()).max() <= 0.5 / 250 + 1e-4
        stored = soft.read(path.stem).reshape(19, *logits.shape[1:])
        assert abs(stored / 250.0 - logits.softmax(0).numpy()).max() <= 0.5 / 250 + 1e-4
    assert world.json("infer-teacher")["ran"] == []
    assert "no damage" in world.call("verify")


@pytest.mark.parametrize("kind", ["confidence", "soft"])
def test_scores_of_a_killed_run_are_gone_on_with(world, monkeypatch, kind):
    sharp_segformer(world.root / "segformer")
    network_world(world, network={"hf": "segformer"}, keep=[kind])
    world.call("infer-teacher", "--part", "1/2")
    report = world.json("infer-teacher")
    assert [r["written"] for r in report["ran"]] == [2, 2]


def test_how_sure_predictions_are_is_read_from_pngs(world):
    for k, path in enumerate(sorted((world.root / "images/train").glob("*.png"))):
        height, width, _ = read_image(path).shape
        steps = np.linspace(0, 1, height * width).reshape(height, width)
        grey = np.round(steps * 65535).astype(np.uint16) if k % 2 else steps * 255
        file = world.root / "sure" / path.name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(grey if k % 2 else grey.astype(np.uint8)).save(file)
    world.settings["teachers"][0]["confidence"] = {"train": "sure"}
    world.write()
    world.call("infer-teacher")
    maps = LabelMaps(world.artifact("confidence[a]"))
    for image_id in maps:
        found = maps.read(image_id).astype(float).flatten()
        assert abs(found / 250 - np.linspace(0, 1, found.size)).max() < 0.006
    for bad, words in (
        (np.zeros((48, 64, 3)), "expected a grey PNG of 8 or 16 bits"),
        (np.zeros((24, 33)), "24x33 pixels (height x width), its image has 48x64"),
        (np.zeros((96, 128)), "96x128 pixels"),
    ):
        Image.fromarray(bad.astype(np.uint8)).save(file)
        assert words in world.refuse("check")


@pytest.mark.parametrize("size", [(48, 64), (24, 32), (3, 4)])
def test_a_smaller_map_of_certainty_is_of_squares(tmp_path, size):
    grey = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = read_confidence(tmp_path / "a.png", (48, 64))
    k = 48 // size[0]
    for y, x in ((0, 0), (47, 63), (20, 30)):
        assert found[y, x] == round(int(grey[y // k, x // k]) * 250 / 255)


def test_confidences_of_real_networks_are_read(world, camvid):
    folder = camvid / "certainty"
    teachers = sorted(p.name for p in folder.iterdir())
    names = [p.stem for p in sorted((camvid / "images/train").glob("*.jpg"))[:4]]
    (world.root / "list.txt").write_text(
        "".join(f"{camvid / 'images/train' / name}.jpg\n" for name in names)
    )
    world.settings |= {
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"list": "list.txt"}},
        "teachers": [
            {
                "name": t,
                "labels": {"train": str(camvid / "teachers" / t / "train")},
                "confidence": {"train": str(folder / t / "train")},
            }
            for t in teachers[:2]
        ],
    }
    world.write()
    world.call("infer-teacher")
    for teacher in teachers[:2]:
        maps = LabelMaps(world.artifact(f"confidence[{teacher}]"))
        for name in names:
            expected = np.asarray(Image.open(folder / teacher / "train" / f"{name}.png"))
            found = maps.read(name)
            assert abs(found[::2, ::2] / 250 - expected / 255).max() <= 0.5 / 250


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"keep": ["soft"], "preprocess": {"scales": [1, 2]}}, "whole images at one scale"),
        ({"preprocess": {"size": [8, 8], "factor": 2}}, "one of size and factor"),
        ({"preprocess": {"tiles": {"size": [8, 8], "overlap": [8, 0]}}}, "less than size"),
        ({"network": {"onnx": "a.onnx", "revision": "a" * 40}}, "`revision` does not go with"),
        ({"network": {"hf": "a", "ignore_keys": ["x"]}}, "`ignore_keys` goes with `state_dict`"),
        ({"network": {"hf": "a", "output": "ids", "void_channels": [1]}}, "`void_channels` is for"),
        ({"network": {"hf": "a", "output": "ids"}, "preprocess": {"flip": True}}, "no scores"),
        ({"network": {"onnx": "a", "precision": "bfloat16"}}, "`precision` does not go with"),
        ({"confidence": {"train": "a"}}, "keep: [confidence]"),
    ],
)
def test_what_does_not_go_together_is_refused(world, entry, word):
    network_world(world, **({"network": {"hf": "a"}} | entry))
    assert word in world.refuse("status")


def test_what_is_for_networks_is_refused_for_predictions(world):
    world.settings["teachers"][0]["keep"] = ["confidence"]
    world.write()
    assert "`keep` is for networks" in world.refuse("status")
