"""Samples, losses and the loop."""

import importlib.util
import json
import re
import warnings
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worlds import TINY

from ensdistill.data.decoded import Pixels
from ensdistill.data.splits import Picture
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import build_student, in_head
from ensdistill.stages.training import records
from ensdistill.stages.training.losses import PixelLoss
from ensdistill.stages.training.records import Pace, Settling
from ensdistill.stages.training.samples import Samples, _stream

CPU = torch.device("cpu")
RECIPE = {
    "steps": 50,
    "batch_size": 2,
    "crop": [20, 30],
    "input_size": None,
    "scale": [0.6, 1.7],
    "flip": True,
    "colour": 0.0,
    "blur": 0.0,
    "class_mix": 0.0,
    "rare_class_temperature": None,
    "seed": 3,
}


class Labels:
    """Stands for LabelMaps: each label map is the image's red channel."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.records = {
            k: {"labels": np.bincount(a.ravel(), minlength=19)} for k, a in arrays.items()
        }

    def read(self, image_id):
        return self.arrays[image_id]


@pytest.fixture
def samples(tmp_path):
    """Images whose red channel is their label map, in blocks of 8 pixels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures, arrays = [], {}
    for k in range(5):
        blocks = rng.integers(0, 19, (5, 7)).astype(np.uint8)
        label = np.kron(blocks, np.ones((8, 8), np.uint8))
        image = np.stack([label * 10, label, np.full_like(label, k)], -1)
        path = tmp_path / f"{k}.png"
        Image.fromarray(image).save(path)
        pictures.append(Picture(str(k), path))
        arrays[str(k)] = label

    def make(**more):
        digests = {str(p.image): sha256(p.image.read_bytes()).hexdigest() for p in pictures}
        local = SimpleNamespace(pictures=pictures, digests=digests)
        return Samples(local, Labels(arrays), RECIPE | more, (1, 2, 3), Pixels())

    return make


def test_a_sample_depends_on_its_number_alone(samples):
    one, other = samples(), samples()
    backwards = [other[k] for k in reversed(range(20))][::-1]
    for k in range(20):
        for x, y in zip(one[k], backwards[k], strict=True):
            assert torch.equal(x, y)
    assert not torch.equal(one[0][0], samples(seed=4)[0][0])


def test_every_sample_has_a_stream_of_its_own():
    numbers = [0, 1, 2, 3, 2**40, 2**53, 2**53 + 1, 2**62]
    drawn = {
        _stream(seed, purpose, k).random() for seed in (3, 4) for purpose in (0, 1) for k in numbers
    }
    assert len(drawn) == 2 * 2 * len(numbers)


def test_each_epoch_shows_each_image_once(samples):
    shown = samples(scale=[1, 1])
    orders = []
    for epoch in range(4):
        order = [int(shown[5 * epoch + k].image[..., 2].max()) for k in range(5)]
        assert sorted(order) == list(range(5))
        orders.append(tuple(order))
    assert len(set(orders)) > 1


@pytest.mark.parametrize("scale", [[1, 1], [0.6, 1.7]])
def test_image_and_label_are_cut_alike(samples, scale):
    wrong = total = 0
    for k in range(30):
        image, label, *_ = samples(scale=scale)[k]
        valid = label != 255
        wrong += int((torch.round(image[..., 0][valid] / 10) != label[valid]).sum())
        total += int(valid.sum())
        assert image.shape == (20, 30, 3) and label.shape == (20, 30)
        assert image.dtype == label.dtype == torch.uint8
    # interpolated colours differ from the nearest label along block borders only
    assert wrong == 0 if scale == [1, 1] else wrong / total < 0.35


def test_beyond_the_image_labels_are_255_and_pixels_the_mean(samples):
    image, label, *_ = samples(crop=[60, 70], scale=[1, 1], flip=False)[0]
    assert (label[40:] == 255).all() and (label[:, 56:] == 255).all()
    assert (label[:40, :56] != 255).all()
    assert image[50, 60].tolist() == [1, 2, 3]


def test_labels_are_never_invented(samples):
    for k in range(20):
        assert set(np.unique(samples()[k][1])) <= {*range(19), 255}


def test_flip_is_a_coin(samples):
    plain, flipped = samples(flip=False, scale=[1, 1]), samples(scale=[1, 1])
    same = [torch.equal(plain[k][0], flipped[k][0]) for k in range(40)]
    mirrored = [torch.equal(plain[k][0].flip(1), flipped[k][0]) for k in range(40)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 8 < sum(same) < 32


def test_rare_classes_are_shown_as_often_as_asked_and_lie_in_the_crop(samples):
    temperature = 0.02
    found = samples(rare_class_temperature=temperature, scale=[0.6, 1.7], crop=[9, 11])
    counts = np.array([r["labels"] for r in found.labels.records.values()])
    share = counts.sum(0) / counts.sum()
    expected = np.exp((1 - share) / temperature)
    expected /= expected.sum()
    chosen = np.zeros(19)
    for k in range(400):
        index, wanted = found._choose(k)
        assert counts[index, wanted] > 0
        chosen[wanted] += 1
        # all but where the nearest pixel of a shrunk image is a neighbour's
        if k < 60:
            assert (found[k].label == wanted).any()
    assert np.abs(chosen / 400 - expected).max() < 0.08
    assert chosen.argmax() == expected.argmax()


def test_mixed_samples_hold_classes_of_another_image(samples):
    plain, mixed = samples(class_mix=0.0, scale=[1, 1]), samples(class_mix=1.0, scale=[1, 1])
    changed = 0
    for k in range(20):
        image, label, *_ = mixed[k]
        # the red channel is ten times the label, whichever image a pixel is of
        valid = label != 255
        assert torch.equal(image[..., 0][valid], 10 * label[valid])
        taken = (image != plain[k].image).any(-1)
        changed += int(taken.any())
        assert len(label[taken].unique()) <= 10
    assert changed == 20


def logits_and_labels(ignored=0.2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 8), generator=generator)
    labels[torch.rand(2, 6, 8, generator=generator) < ignored] = 255
    return logits, labels


def step(loss_of, logits, labels, weights=None, parts=1):
    """Do a step and return its loss and the gradient of the logits."""
    logits.grad = None
    loss_of.begin(labels, weights, len(labels))
    for k in range(parts):
        cut = slice(k * len(labels) // parts, (k + 1) * len(labels) // parts)
        some = None if weights is None else weights[cut]
        loss_of.part(logits[cut], labels[cut], some).backward()
    loss, correction = loss_of.end()
    return loss.float(), logits.grad * (1 if correction is None else correction)


def test_loss_is_plain_cross_entropy_by_default():
    logits, labels = logits_and_labels()
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    expected.backward()
    gradient = logits.grad
    loss, found = step(PixelLoss(4, 1.0, 1.0, 1.0, CPU), logits, labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize(("rare", "hard"), [(1.0, 1.0), (7.0, 1.0), (7.0, 0.2)])
def test_a_batch_of_255_gives_zero_and_no_nan(rare, hard):
    logits, labels = logits_and_labels()
    loss, gradient = step(PixelLoss(4, rare, rare, hard, CPU), logits, torch.full_like(labels, 255))
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_hard_share_keeps_the_largest_losses_of_each_image():
    logits, labels = logits_and_labels()
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    kept = []
    for losses, label in zip(each.detach(), labels, strict=True):
        largest = losses[label != 255].sort(descending=True).values
        kept.append(largest[: round(0.2 * len(largest))])
    loss, gradient = step(PixelLoss(4, 1.0, 1.0, 0.2, CPU), logits, labels)
    torch.testing.assert_close(loss, torch.cat(kept).mean())
    limit = torch.stack([k.min() for k in kept])[:, None, None]
    chosen = each * (each.detach() >= limit)
    expected = torch.autograd.grad(chosen.sum() / len(torch.cat(kept)), logits)[0]
    torch.testing.assert_close(gradient, expected)


def test_small_and_absent_classes_weigh_more():
    labels = torch.zeros(1, 128, 128, dtype=torch.int64)
    labels[0, :8] = 1  # 1024 pixels: fewer than 64 x 64; class 2 is absent
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 128, 128, generator=generator, requires_grad=True)
    loss_of = PixelLoss(3, 7.0, 5.0, 1.0, CPU)
    for _ in range(2):
        found, _ = step(loss_of, logits, labels)
    # presence average of class 2: 0.9 (0.9 + 0.1 * 5) + 0.1 * 5
    torch.testing.assert_close(loss_of.absence, torch.tensor([1.0, 1.0, 0.9 * 1.4 + 0.5]))
    weight = torch.tensor([1.0, 7.0, 7 * (0.9 * 1.4 + 0.5)])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weight)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("hard", [1.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cutting_the_batch_changes_nothing(hard, weighted):
    logits, labels = logits_and_labels()
    labels[0, 2:] = 255  # parts of very different weight
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(0, 101, labels.shape, generator=generator, dtype=torch.uint8)
    weights = weights if weighted else None
    whole = step(PixelLoss(4, 7.0, 5.0, hard, CPU), logits, labels, weights)
    parts = step(PixelLoss(4, 7.0, 5.0, hard, CPU), logits, labels, weights, parts=2)
    torch.testing.assert_close(parts, whole)


def test_pixel_weights_are_those_of_the_mean():
    logits, labels = logits_and_labels()
    weights = torch.randint(0, 101, labels.shape, dtype=torch.uint8)
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    share = weights / 100 * (labels != 255)
    expected = (each * share).sum() / share.sum()
    found, _ = step(PixelLoss(4, 1.0, 1.0, 1.0, CPU), logits, labels, weights)
    torch.testing.assert_close(found, expected.detach())


def test_pixel_weights_are_summed_alike_where_torch_is_told_to_be_deterministic():
    logits, labels = logits_and_labels()
    weights = torch.randint(0, 101, labels.shape, dtype=torch.uint8)
    expected = step(PixelLoss(4, 7.0, 5.0, 0.5, CPU), logits, labels, weights)
    torch.use_deterministic_algorithms(True)
    try:
        found = step(PixelLoss(4, 7.0, 5.0, 0.5, CPU), logits, labels, weights)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_mobilenet_has_torch_momentum_and_a_head():
    network = build_student("mobilenetv2-deeplabv3plus", 5, None, seed=0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and {m.momentum for m in norms} == {0.1}
    config = network.config
    assert (config.output_stride, config.tf_padding) == (16, False)
    assert config.classifier_dropout_prob == 0.1
    assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 4, 6)
    head = {name for name in network.state_dict() if in_head(name)}
    assert head and all("segmentation_head" in name for name in head)


@pytest.mark.parametrize("name", ["tiny", "mobilenetv2-deeplabv3plus"])
def test_first_weights_depend_on_the_seed_alone(name):
    def weights(seed):
        return torch.cat([p.flatten() for p in build_student(name, 5, None, seed).parameters()])

    one = weights(1)
    torch.rand(100)
    assert torch.equal(one, weights(1))
    assert not torch.equal(one, weights(2))


@pytest.mark.parametrize(
    "settings", [{}, {"channels": "bgr", "mean": (1, 2, 3), "std": (1, 1, 2), "scale": 1}]
)
def test_normalisation_is_the_formula(settings):
    p = Preprocessing.from_settings(settings)
    image = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    x = image.double().numpy()[0]
    x = x if p.channels == "rgb" else x[::-1]
    expected = (x / p.scale - np.reshape(p.mean, (3, 1, 1))) / np.reshape(p.std, (3, 1, 1))
    np.testing.assert_allclose(p.normalise(image)[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_mean_pixel_is_rgb_whatever_the_order():
    caffe = Preprocessing.from_settings({"channels": "bgr", "mean": (104, 117, 123), "scale": 1})
    assert caffe.mean_pixel() == (123, 117, 104)
    assert Preprocessing().mean_pixel() == (124, 116, 104)


def metrics(world):
    lines = (world.artifact("student").path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_training_learns_and_follows_its_schedule(world):
    world.settings["student"] = TINY | {"steps": 60, "lr": 0.02}
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.write()
    world.call("train-student", "--upstream")
    found = metrics(world)
    assert [m["step"] for m in found] == [20, 40, 60]
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    assert found[0]["lr"] == pytest.approx(0.02 * (1 - 19 / 60) ** 0.9)


def test_loader_workers_change_no_byte(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.write()
    world.call("train-student", "--upstream")
    one = (world.artifact("student").path / "model.safetensors").read_bytes()
    world.settings["runtime"]["workers"] = 1
    world.settings["workspace"] = "other"
    world.write()
    world.call("train-student", "--upstream")
    assert (world.artifact("student").path / "model.safetensors").read_bytes() == one


def test_watching_a_split_is_recorded_and_keeps_the_best(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {
        "watch": "val",
        "watch_every": 2,
        "checkpoint": "best",
        "lr": 0.05,
    }
    world.write()
    world.call("run")
    manifest = world.artifact("student").manifest
    scores = [m["miou"] for m in metrics(world) if "miou" in m]
    assert len(scores) == 3
    watched = {"last": scores[-1], "best": max(scores), "kept": "best"}
    assert manifest.result["watched"] == watched
    assert manifest.recipe["watch"]["checkpoint"] == "best"
    # the kept weights are those that scored best: evaluation finds the same figure
    results = json.loads((world.root / "work" / "results.json").read_text())
    student = next(m for m in results["methods"] if m["name"] == "student")
    assert student["miou"] == pytest.approx(max(scores))
    assert results["student_selected_on"] == "val"
    assert "the best on the ground truth of val (`checkpoint: best`)" in world.call("evaluate")


def test_a_watching_student_stays_fresh_when_labels_are_evaluated(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {"watch": "val", "watch_every": 3}
    world.write()
    world.call("train-student", "--upstream")
    assert world.states()["student"] == "fresh"
    assert world.json("train-student")["ran"] == []
    world.call("evaluate", "--upstream")
    assert world.states()["student"] == "fresh"


def test_init_loads_the_body_and_makes_the_head_anew(world):
    network = build_student("tiny", 7, None, seed=9)
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state}, world.root / "source.pt")
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {"init": "source.pt"}
    world.write()
    world.call("train-student", "--upstream")
    report = world.artifact("student").manifest.result["init"]
    assert report == {
        "loaded": len(state) - 2,
        "head": ["head.weight", "head.bias"],
        "unexpected": [],
    }
    state.pop("module.stem.0.0.weight")
    torch.save(state, world.root / "source.pt")
    text = world.refuse("train-student")
    assert "lacks 1 of the" in text and "stem.0.0.weight" in text
    (world.root / "source.pt").write_bytes(b"no weights")
    assert "source.pt is no pickle of tensors" in world.refuse("train-student")
    (world.root / "source.pt").unlink()
    assert "student.init" in world.refuse("status")


def test_a_diverging_training_stops_with_the_step(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {"lr": 1e30, "steps": 30}
    world.write()
    assert "the loss is" in world.refuse("train-student", "--upstream")  # in a step on noise
    assert not world.artifacts()
    world.call("fuse", "--upstream")
    text = world.refuse("train-student")
    assert "the loss is" in text and "of 30; lower `lr` (it is 1e+30)" in text
    assert world.states()["student"] == "partial"


def test_a_training_is_not_lost_when_publishing_fails(world, monkeypatch, on_step):
    from ensdistill.pipeline import atomic

    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.write()
    world.call("fuse", "--upstream")
    write = atomic.write_bytes

    def full(path, content, **more):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        write(path, content, **more)

    monkeypatch.setattr(atomic, "write_bytes", full)
    assert "No space left" in world.refuse("train-student")
    monkeypatch.undo()
    steps = []
    on_step(steps.append)
    world.call("train-student")
    assert steps == []
    assert not list(world.artifact("student").path.glob("draft-*"))


def test_tensorboard_gets_the_curves(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {"watch": "val", "watch_every": 3}
    world.settings["runtime"]["tensorboard"] = "boards"
    world.write()
    if importlib.util.find_spec("tensorboard") is None:
        assert "pip install 'ensdistill[tensorboard]'" in world.refuse("train-student")
        return
    world.call("train-student", "--upstream")
    folder = world.root / "boards" / world.artifact("student").path.name
    (events,) = folder.iterdir()
    content = events.read_bytes()
    assert all(name in content for name in (b"loss", b"miou", b"lr"))
    assert not list(world.artifact("student").path.glob("*tfevents*"))


def test_the_paper_recipe_is_the_release_and_what_is_given_beside_it_holds():
    from ensdistill.stages.experiment.presets import PAPER
    from ensdistill.stages.experiment.schema import Probe, Student

    student = Student(preset="paper", steps=7)
    assert student.steps == 7
    values = {k: getattr(student, k) for k in PAPER if k not in ("steps", "preprocess")}
    assert values == {k: v.value for k, v in PAPER.items() if k in values}
    assert (student.lr, student.batch_size, student.crop) == (1e-4, 10, (256, 512))
    assert student.preprocess.channels == "bgr" and student.preprocess.std == (1, 1, 1)
    assert all(setting.source for setting in PAPER.values())
    assert Probe(preset="paper").steps == 100_001
    assert Student().lr != student.lr


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_as_full_precision_does(world, precision):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    losses = []
    for each in ("float32", precision):
        world.settings["student"] = TINY | {"steps": 40, "lr": 0.02, "precision": each}
        world.write()
        world.call("train-student", "--upstream")
        losses.append([m["loss"] for m in metrics(world)])
    # the first steps of float16 are left out while its scale is found
    assert losses[1] == pytest.approx(losses[0], rel=0.3)
    assert losses[0] != losses[1]


def test_the_average_is_of_the_last_steps_and_is_the_student(world):
    from safetensors.torch import load_file

    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    weights = {}
    for ema in (None, 1e-9, 0.9):  # nothing is kept of the average; some
        world.settings["student"] = TINY | {"steps": 8} | ({"ema": ema} if ema else {})
        world.write()
        world.call("train-student", "--upstream")
        weights[ema] = load_file(world.artifact("student").path / "model.safetensors")
    for name, plain in weights[None].items():
        torch.testing.assert_close(weights[1e-9][name], plain)
    assert any(not torch.equal(weights[0.9][k], v) for k, v in weights[None].items())


def test_the_moving_average_forgets_the_first_weights():
    from ensdistill.stages.training.optimizers import Average

    network = torch.nn.Linear(2, 1)
    average = Average(network, 0.9)
    seen = []
    for step in range(1, 40):
        with torch.no_grad():
            network.weight.fill_(step)
        average.update(network, step)
        seen.append(float(average.network.weight[0, 0]))
    assert seen[:4] == pytest.approx([1, 1.5, 2, 2.5])  # the mean, while there are few
    assert seen[-1] == pytest.approx(0.9 * seen[-2] + 0.1 * 39)


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_and_falls(warmup):
    from ensdistill.stages.training.optimizers import learning_rate

    recipe = {"lr": 2.0, "steps": 10, "power": 0.5, "warmup": warmup}
    rates = [learning_rate(recipe, step) for step in range(10)]
    poly = [2 * (1 - s / 10) ** 0.5 for s in range(10)]
    assert rates[warmup:] == pytest.approx(poly[warmup:])
    assert rates[:warmup] == pytest.approx(
        [p * (s + 1) / (warmup + 1) for s, p in enumerate(poly[:warmup])]
    )


def test_a_frozen_batch_norm_stays_as_it_was(world):
    from safetensors.torch import load_file

    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["student"] |= {"batch_norm": "frozen", "watch": "val", "watch_every": 2}
    world.write()
    world.call("train-student", "--upstream")
    first = build_student("tiny", 19, None, 0).state_dict()
    trained = load_file(world.artifact("student").path / "model.safetensors")
    norms = [k for k in first if ".1." in k and not k.endswith(".0.weight")]
    assert len(norms) == 30
    assert all(torch.equal(first[k], trained[k]) for k in norms)
    assert not torch.equal(first["stem.0.0.weight"], trained["stem.0.0.weight"])


def test_of_loader_workers_one_gives_each_warning_once(world, monkeypatch, lenient, capfd):
    world.settings["runtime"]["workers"] = 2
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    read = Samples.__getitem__

    def warn(self, k):
        warnings.warn(f"image {k} is odd", stacklevel=1)
        return read(self, k)

    monkeypatch.setattr(Samples, "__getitem__", warn)
    world.call("train-student")
    said = [line for line in capfd.readouterr().err.splitlines() if "odd" in line]
    assert len(said) == 1
    assert re.fullmatch(rf"warning: image \d+ is odd \({__file__}:\d+\)", said[0])


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


def steps(pace, clock, seconds):
    """Do steps of some seconds, a tenth of them waiting."""

    def batches():
        for spent in seconds:
            clock.now += 0.1 * spent
            yield spent

    for spent in pace.waited(batches()):
        clock.now += 0.9 * spent
        pace.step_done()
    return pace


def test_an_estimate_is_of_the_steps_here_but_the_first(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(records, "time", clock)
    pace = steps(Pace(4), clock, [300, 2, 3, 2, 3])
    assert pace.estimate(96) == "2.5 s a step, about 4 min 00 s left"
    assert pace.facts()["images_per_second"] == 1.6
    assert pace.waiting == pytest.approx(0.1)
    again = Pace(4)  # on a faster machine
    again.load(pace.state())
    steps(again, clock, [100, 0.05, 0.05])
    assert again.estimate(1000) == "20.0 steps/s, about 50 s left"


@pytest.mark.parametrize(("count", "said"), [(5, False), (6, True)])
def test_no_time_is_estimated_where_none_is_left(world, count, said):
    world.settings["student"]["steps"] = count
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("train-student", "--upstream")
    messages = world.artifact("student").manifest.provenance["messages"]
    assert any(" left" in text for text in messages) == said


def epoch_of(settling, loss, ends):
    """Take 16 steps of one loss, and return what was said after the last."""
    for _ in range(15):
        assert settling.step_done(torch.tensor(loss), ends_epoch=False) is None
    return settling.step_done(torch.tensor(loss), ends_epoch=ends)


def test_epochs_of_few_steps_are_taken_together():
    """Else what was drawn twice in one of them would be taken for the end."""
    settling = Settling(0.01)
    losses = [3 - 0.01 * k + 0.4 * (k % 2) for k in range(200)]  # falls, up and down
    said = [settling.step_done(torch.tensor(x), ends_epoch=True) for x in losses]
    assert said == [None] * 200
    assert len(settling.state()[2]) == 3


def test_a_training_settles_where_an_epoch_no_longer_lowers_the_loss():
    settling = Settling(0.1)
    ends = [(4.0, False), (2.0, True), (2.0, True), (1.81, True), (1.0, False)]
    said = [epoch_of(settling, x, end) for x, end in ends]
    assert said[:3] == [None, None, None]  # 3, and then 2: a third less
    assert said[3] == (
        "settled: the mean loss of its last epoch, 1.8100, is not 10 % below that of the one "
        "before, 2.0000"
    )
    assert settling.settled
    again = Settling(0.1)
    again.load(settling.state())
    assert again.state() == [True, [1.0] * 16, pytest.approx([3.0, 2.0, 1.81]), 0]


def test_a_training_without_it_never_settles():
    settling = Settling(None)
    for _ in range(5):
        assert settling.step_done(torch.tensor(1.0), ends_epoch=True) is None
    assert not settling.settled
