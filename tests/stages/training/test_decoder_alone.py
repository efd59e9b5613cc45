"""`train: decoder`: what is trained, on which windows of stored features, to the same bits."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from faults import Killed, killing_after
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from worlds import EVERYTHING, TINY, World, files_of

from ensdistill.cli.__main__ import cli
from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import read_image
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.plan import plan
from ensdistill.stages.checks import trainings
from ensdistill.stages.checks.ahead import look_ahead
from ensdistill.stages.experiment.presets import LINEAR
from ensdistill.stages.experiment.schema import Probe, Student
from ensdistill.stages.graph import build, load
from ensdistill.stages.local import Running
from ensdistill.stages.networks import features
from ensdistill.stages.networks.backbones import imagenet_weights
from ensdistill.stages.networks.features import Encoder, FeatureCache, Seen, Stored
from ensdistill.stages.networks.frozen import FrozenNetwork, load_student
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.learning import training_recipe
from ensdistill.stages.training.checkpoints import checkpoints
from ensdistill.stages.training.samples import FeatureSamples
from ensdistill.stages.work.items import Silence

LITE = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
DECODER = TINY | LITE | {"train": "decoder", "steps": 8, "lr": 0.005}
# all of a training that goes with it
MUCH = {k: v for k, v in EVERYTHING.items() if k not in ("class_mix", "colour", "blur")}
MUCH |= {"watch": "val", "watch_every": 3, "checkpoint": "best"}


def decoder_world(root, **student):
    world = World(root)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] = DECODER | student
    world.settings["runtime"]["checkpoint_every"] = 2
    world.write()
    return world


def result(world, node="student"):
    """Return the bytes of all that a training published."""
    found = files_of(world.artifact(node).path)
    found.pop("manifest.json")
    return found


def stores(world):
    """Return the folders of features."""
    folder = world.root / "work" / ".features"
    return sorted(folder.iterdir()) if folder.exists() else []


# --- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, MUCH, {"batch_norm": "frozen"}], ids=["few", "much", "norms"])
def test_the_backbone_stays_to_the_bit_and_the_whole_network_is_published(tmp_path, more):
    world = decoder_world(tmp_path, **more)
    world.call("train-student", "--upstream")
    folder = world.artifact("student").path
    found = load_file(folder / "model.safetensors")
    given = torch.load(imagenet_weights("efficientnet-lite0"), weights_only=True)
    backbone = {k: v for k, v in found.items() if k.startswith("backbone.")}
    assert len(backbone) == 288
    for name, tensor in backbone.items():
        assert torch.equal(tensor, given[name.removeprefix("backbone.")]), name
    trained = load_file(folder / "model.safetensors").keys() - backbone.keys()
    assert all(name.startswith("decoder.") for name in trained)
    still = "norms" if more == {"batch_norm": "frozen"} else None
    counted = [int(v) for k, v in found.items() if k.startswith("decoder") and "num_batches" in k]
    assert (max(counted) == 0) == (still is not None)
    about = json.loads((folder / "network.json").read_text())
    assert about["architecture"] == "deeplabv3plus-efficientnet-lite0"
    world.call("evaluate")


def test_a_checkpoint_holds_the_decoder_alone(tmp_path, on_step):
    world = decoder_world(tmp_path, **MUCH)

    def stop(step):
        if step == 5:
            raise Killed

    on_step(stop)
    with pytest.raises(Killed):
        world.call("train-student", "--upstream")
    [draft] = [f for f in (tmp_path / "work" / "student").iterdir() if checkpoints(f)]
    for file in checkpoints(draft).values():
        assert b"_conv_stem" not in file.read_bytes()


# --- to the same bits ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, MUCH], ids=["few", "much"])
def test_killed_at_every_step_and_whatever_becomes_of_the_store(tmp_path, on_step, more):
    world = decoder_world(tmp_path, **more)
    world.call("train-student", "--upstream")
    expected = result(world)
    shutil.rmtree(tmp_path / "work" / "student")
    for round_, workers in zip(range(7), [0, 2, 0, 1, 0, 0, 0], strict=True):
        on_step(killing_after(3))
        world.settings["runtime"] |= {"workers": workers}
        world.write()
        files = sorted(stores(world)[0].glob("*.f16"))
        if round_ == 1:
            shutil.rmtree(tmp_path / "work" / ".features")
        elif round_ == 2:
            files[0].write_bytes(files[0].read_bytes()[:-1] + b"x")
            files[1].unlink()
        try:
            world.call("train-student")
            break
        except Killed:
            pass
    else:
        pytest.fail("it never ends")
    assert result(world) == expected


@pytest.mark.slow
def test_probes_of_processes_of_their_own_share_a_store_with_the_student(tmp_path):
    world = World(tmp_path)
    world.settings["probe"] = world.settings["student"] = dict(DECODER)
    world.write()
    world.call("train-student", "--upstream")
    expected = {node: result(world, node) for node in ("probe[a]", "probe[b]", "student")}
    [folder] = stores(world)
    kept = files_of(folder)
    shutil.rmtree(tmp_path / "work")
    world.settings["runtime"]["jobs"] = 2
    world.write()
    world.call("train-student", "--upstream")
    assert {node: result(world, node) for node in expected} == expected
    assert stores(world) == [folder]
    assert files_of(folder) == kept


@pytest.mark.parametrize("batch", [1, 2])
def test_certainty_is_the_same_with_and_without_the_store(tmp_path, monkeypatch, batch):
    world = World(tmp_path)
    world.settings["probe"] = DECODER | {"input_size": [40, 56]}
    world.settings["runtime"]["batch_size"] = batch
    world.write()
    world.call("select-policy", "--upstream")
    path = world.artifact("certainty[a]").path
    expected = (path / "items.jsonl").read_bytes()
    for spoil in ("gone", "part", "there"):
        shutil.rmtree(tmp_path / "work" / "certainty")
        [folder] = stores(world)
        if spoil == "gone":
            shutil.rmtree(folder)
        elif spoil == "part":
            min(folder.glob("*.f16")).unlink()
        else:
            monkeypatch.setattr(Encoder, "encode", None)  # nobody runs the backbone
        world.call("select-policy", "--upstream")
        assert (world.artifact("certainty[a]").path / "items.jsonl").read_bytes() == expected
        assert stores(world) == [folder]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_linear_probes_of_folds_share_the_store_and_settle(tmp_path, batch):
    """Probes and their certainties, with a batch that is of two folds, and a deeper student."""
    world = World(tmp_path)
    linear = {"network": LITE["network"] | {"arch": "linear"}, "folds": 2, "settle": 0.5}
    world.settings["probe"] = DECODER | linear | {"steps": 200}
    world.settings["student"] = dict(DECODER)
    world.settings["runtime"]["batch_size"] = batch
    world.write()
    world.call("train-student", "--upstream")
    assert len(stores(world)) == 1
    probe = world.artifact("probe[a.1]")
    assert 0 < probe.manifest.result["steps"] < 200
    path = world.artifact("certainty[a]").path
    expected = (path / "items.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "work" / "certainty")
    shutil.rmtree(tmp_path / "work" / ".features")
    world.call("select-policy", "--upstream")
    assert (world.artifact("certainty[a]").path / "items.jsonl").read_bytes() == expected


def test_certainty_is_that_of_the_whole_network(tmp_path):
    """But for rounding features to float16."""
    world = World(tmp_path)
    world.settings["probe"] = dict(DECODER)
    world.write()
    world.call("select-policy", "--upstream")
    network, declared = load_student(world.artifact("probe[a]").path, {}, Running)
    cpu = torch.device("cpu")
    frozen = FrozenNetwork(network, Preprocessing.from_settings(declared), cpu)
    path = world.artifact("certainty[a]").path
    records = [json.loads(line) for line in (path / "items.jsonl").read_text().splitlines()]
    records = [r for r in records if "support" in r]
    assert len(records) == 5
    for record in records:
        found = frozen.look(read_image(tmp_path / "images" / "train" / f"{record['id']}.png"))
        labels, sure = found.labels.numpy().ravel(), found.confidence.numpy().ravel()
        support = np.bincount(labels, minlength=19)
        assert support.sum() == sum(record["support"])
        assert np.abs(support - record["support"]).sum() <= 0.02 * support.sum()
        np.testing.assert_allclose(sure.sum(), sum(record["sums"]), rtol=1e-3)


# --- windows ---------------------------------------------------------------------------------


class Rows:
    """Stands for LabelMaps and for a FeatureStore: each cell and pixel says where it is."""

    def __init__(self, sizes, seen=None):
        self.seen = seen
        self.records = {}
        self.maps = {}
        for k, (height, width) in enumerate(sizes):
            y, x = np.mgrid[:height, :width]
            self.maps[str(k)] = ((y // 16) * 13 + x // 16).astype(np.uint8)
            counts = np.bincount(self.maps[str(k)].ravel(), minlength=250)
            self.records[str(k)] = {"labels": counts}

    def size(self, name):
        return self.maps[name].shape

    def read(self, name):
        if self.seen is None:
            return self.maps[name]
        height, width = self.seen or self.maps[name].shape
        found = []
        for mirrored in (False, True):
            planes = []
            for stride in (4, 16):
                y, x = np.mgrid[: -(-height // stride), : -(-width // stride)]
                parts = [y, x, np.full_like(y, 1 + mirrored), np.full_like(y, int(name))]
                planes.append(np.stack(parts, -1).astype(np.float16))
            found.append(Seen(*planes))
        return Stored((height, width), *found)


def samples_of(sizes, crop, **more):
    pictures = [Picture(str(k), str(k), None) for k in range(len(sizes))]
    recipe = {"crop": crop, "input_size": None, "flip": True, "seed": 0, "class_mix": 0.0}
    recipe |= {"rare_class_temperature": None, "steps": 9, "batch_size": 2} | more
    return FeatureSamples(
        SimpleNamespace(pictures=pictures, digests={p.image: p.id for p in pictures}),
        Rows(sizes),
        recipe,
        (0, 0, 0),
        Pixels(),
        Rows(sizes) if "weights" in more else None,
        features=Rows(sizes, recipe["input_size"] or ()),
    )


SIDES = st.integers(1, 100)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3),
    st.tuples(st.sampled_from([16, 32, 64]), st.sampled_from([16, 48, 64])),
    st.sampled_from([None, 0.1]),
)
def test_windows_of_features_are_slices_and_labels_are_of_the_same_place(sizes, crop, rare):
    samples = samples_of(sizes, crop, rare_class_temperature=rare, weights=True)
    for k in range(6):
        low, high, label, weight = (x.numpy() for x in samples[k])
        assert low.shape == (crop[0] // 4, crop[1] // 4, 4) and low.dtype == np.float16
        assert high.shape == (crop[0] // 16, crop[1] // 16, 4) and high.dtype == np.float16
        assert label.shape == weight.shape == (crop[0] // 4, crop[1] // 4)
        name, flipped = str(int(high[0, 0, 3])), high[0, 0, 2] == 2
        top, left = (int(16 * at) for at in high[0, 0, :2])
        whole = Rows(sizes, ()).read(name)
        for found, plane, stride in zip((low, high), whole[1 + flipped], (4, 16), strict=True):
            y, x = top // stride, left // stride
            part = plane[y : y + len(found), x : x + found.shape[1]]
            np.testing.assert_array_equal(found[: len(part), : part.shape[1]], part)
            assert not found[len(part) :].any() and not found[:, part.shape[1] :].any()
        labels = Rows(sizes).read(name)
        labels = labels[:, ::-1] if flipped else labels
        window = labels[top : top + crop[0], left : left + crop[1]]
        part = window[2::4, 2::4]  # in the middle of each feature
        assert window.size
        for found, pad in ((label, 255), (weight, 0)):
            np.testing.assert_array_equal(found[: len(part), : part.shape[1]], part)
            assert (found[len(part) :] == pad).all() and (found[:, part.shape[1] :] == pad).all()
        if rare is not None:
            wanted = samples._choose(k)[1]
            assert (window == wanted).any()


def test_every_pixel_is_seen_and_windows_begin_on_the_grid():
    seen = np.zeros((57, 75), bool)
    samples = samples_of([seen.shape], (32, 48), flip=False)
    begun = set()
    for k in range(60):
        top, left = (int(16 * at) for at in samples[k].high[0, 0, :2])
        begun.add((top, left))
        seen[top : top + 32, left : left + 48] = True
    assert seen.all()
    assert begun == {(top, left) for top in (0, 16, 32) for left in (0, 16, 32)}


def test_labels_of_another_size_are_those_of_the_image_that_was_seen():
    """Of twice the size, each label is one of two by two."""
    samples = samples_of([(64, 96)], (32, 48), input_size=(32, 48))
    for k in range(8):
        *_, high, label, _ = samples[k]
        expected = Rows([(64, 96)]).read("0")
        expected = expected[:, ::-1] if high[0, 0, 2] == 2 else expected
        assert label.shape == (8, 12)
        near = [expected[4 + dy :: 8, 4 + dx :: 8] for dy in (0, 1) for dx in (0, 1)]
        assert np.any([label.numpy() == of for of in near], axis=0).all()


@pytest.mark.parametrize(
    ("sizes", "input_size", "crop"),
    [
        ([(60, 70), (33, 90), (100, 65)], None, (32, 64)),
        ([(10, 200)], None, (16, 192)),
        ([(60, 70), (33, 90)], (48, 64), (48, 64)),
    ],
)
def test_whole_images_are_windows_that_all_images_fill(sizes, input_size, crop):
    samples = samples_of(sizes, None, input_size=input_size)
    for k in range(6):
        low, high, label, _ = samples[k]
        assert label.shape == low.shape[:2] == (crop[0] // 4, crop[1] // 4)
        assert high.shape[:2] == (crop[0] // 16, crop[1] // 16)


def test_a_sample_is_a_function_of_seed_and_number():
    sizes = [(60, 70), (33, 90), (100, 20)]
    one, other = samples_of(sizes, (32, 48)), samples_of(sizes, (32, 48))
    backwards = [other[k] for k in reversed(range(12))][::-1]
    for k in range(12):
        assert all(torch.equal(x, y) for x, y in zip(one[k], backwards[k], strict=True))
    flips = [int(one[k].high[0, 0, 2]) for k in range(40)]
    assert 8 < flips.count(2) < 32


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [Probe, Student])
def test_what_needs_images_is_off_where_nothing_is_said(section):
    found = section.model_validate(LITE | {"train": "decoder"})
    assert found.scale == (1, 1)
    assert found.colour == found.blur == found.class_mix == 0
    assert section.model_validate(LITE).scale == (0.5, 1.5)
    paper = section.model_validate(LITE | {"train": "decoder", "preset": "paper"})
    assert paper.scale == (1, 1) and paper.lr == 1e-4


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"scale": [0.5, 1.5]}, r"scale is \(0\.5, 1\.5\); with `train: decoder` it is \(1"),
        ({"colour": 0.3}, "colour is 0.3; .* computed once"),
        ({"blur": 0.3}, "blur is 0.3"),
        ({"class_mix": 0.5}, "class_mix is 0.5"),
        ({"crop": [40, 48]}, r"crop is \(40, 48\); .* multiples of 16"),
        ({"network": {"arch": "tiny"}}, "goes with a `backbone`"),
        ({"network": LITE["network"] | {"divisor": 32}}, "without `divisor`"),
        ({"train": "head"}, "train"),
    ],
)
def test_what_does_not_go_with_it_is_refused(world, more, told):
    world.settings["student"] = DECODER | more
    world.write()
    with pytest.raises(ConfigError, match=told):
        load(world.file)


def test_it_enters_a_recipe_only_where_it_is_said(world):
    world.settings["student"] = TINY | LITE
    world.settings["probe"] = TINY | LITE | {"train": "all"}
    world.write()
    experiment = load(world.file)
    for section in ("student", "probe"):
        recipe = training_recipe(Given(experiment), getattr(experiment.config, section))
        assert "train" not in recipe
    world.settings["student"] = dict(DECODER)
    world.write()
    experiment = load(world.file)
    assert training_recipe(Given(experiment), experiment.config.student)["train"] == "decoder"


def test_random_features_are_said(tmp_path):
    world = decoder_world(tmp_path, init="none", steps=2)
    result = CliRunner().invoke(cli, ["train-student", "--upstream", "-c", str(world.file)])
    assert result.exit_code == 0, result.output
    assert "the backbone is random, and `train: decoder` leaves it so" in result.stderr


def test_check_tries_its_step_and_keeps_nothing(tmp_path):
    world = decoder_world(tmp_path, precision="bfloat16", ema=0.9)
    found = world.json("check")
    training = found["trainings"]["student"]
    assert training["weights"] < 500_000 and training["body"]["tensors"] == 0
    assert training["frozen"][0].startswith("backbone.")
    assert stores(world) == []


def test_check_tells_what_the_features_take_that_are_missing(tmp_path):
    world = decoder_world(tmp_path, input_size=[40, 56])
    told = world.json("check")["trainings"]["student"]["features"]
    assert told["images"] == 5 and told["seconds"] > 0
    # a header, and of 10 x 14 and 3 x 4 pixels, as they are and mirrored, in two bytes
    assert told["bytes"] == 5 * (FeatureCache.start() + 4 * (10 * 14 * 24 + 3 * 4 * 320))
    assert "the features of 5 images take" in world.call("check")
    world.call("train-student", "--upstream")
    [folder] = stores(world)
    assert Path(told["folder"]) == folder
    assert sum(file.stat().st_size for file in folder.glob("*.f16")) == told["bytes"]
    there = world.json("check")["trainings"]["student"]["features"]
    assert (there["images"], there["bytes"], there["seconds"]) == (0, 0, 0)
    assert "the features of" not in world.call("check")
    next(folder.glob("*.f16")).unlink()
    assert world.json("check")["trainings"]["student"]["features"]["images"] == 1


def test_features_that_have_no_room_are_refused_before_any_work(tmp_path, monkeypatch):
    world = decoder_world(tmp_path)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    for command in (["check"], ["run", "--no-evaluate"], ["train-student", "--upstream"]):
        text = world.refuse(*command)
        assert "student: the features of 5 images take 0.000" in text and "too much" in text
        assert "`train: all` keeps no features" in text
    assert not any((tmp_path / "work").glob("*/*/manifest.json"))


def test_features_that_are_shared_are_counted_once(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.settings["probe"] = world.settings["student"] = dict(DECODER)
    world.write()
    tried = trainings.tried

    def known(*arguments):
        found = tried(*arguments)
        return found | {"seconds_per_step": 1.0, "features": found["features"] | {"seconds": 7.0}}

    monkeypatch.setattr(trainings, "tried", known)
    experiment = load(world.file)
    decisions = plan(build(experiment), experiment.workspace.scan())
    found = look_ahead(experiment, decisions, decisions.keys(), lambda _: Silence())["seconds"]
    steps = world.settings["probe"]["steps"]
    assert found["probe[a]"] == steps + 5 * 7
    assert found["probe[b]"] == found["student"] == steps


def test_a_probe_is_linear_unless_another_network_is_said():
    found = Probe.model_validate({"seed": 3, "settle": 0.1})
    assert found == Probe.model_validate({"network": LINEAR["network"], "seed": 3, "settle": 0.1})
    assert (found.train, found.folds, found.crop) == ("decoder", 2, None)
    assert (found.seed, found.settle) == (3, 0.1)
    other = Probe.model_validate(
        {"network": {"arch": "linear", "backbone": "resnet50"}, "init": "a.pth"}
    )
    assert (other.network.backbone, other.train, other.folds) == ("resnet50", "decoder", 2)
    for said in ({"network": {"arch": "tiny"}}, {"preset": "paper"}):
        earlier = Probe.model_validate(said)
        assert (earlier.train, earlier.folds, earlier.settle) == ("all", 1, None)
    assert Student().train == "all"


@pytest.mark.parametrize("said", [{"scale": [0.5, 1.5]}, {"crop": [360, 480]}, {"colour": 0.3}])
def test_what_a_linear_probe_refuses_names_a_probe_of_pixels(said):
    with pytest.raises(ValidationError, match=r"say `network: \{arch: tiny\}`"):
        Probe.model_validate(said)
    assert Probe.model_validate(said | {"network": {"arch": "tiny"}}).train == "all"


def test_a_probe_that_is_trained_whole_is_what_it_was():
    assert Probe.model_validate({"train": "all"}) == Probe.model_validate({"network": {}})


def test_whole_images_are_for_stored_features():
    with pytest.raises(ValidationError, match="whole images, goes with `train: decoder`"):
        Student.model_validate({"crop": None})
