"""What a run is going to meet is tried before it begins; teachers stand beside each other."""

import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from worlds import segformer

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.node import NodeId
from ensdistill.pipeline.plan import plan
from ensdistill.stages.checks import ahead, networks, trainings
from ensdistill.stages.checks.teachers import compared, packed, sampled, unpacked
from ensdistill.stages.graph import build, load

CHANCE = "agrees with the others no better than chance"


@pytest.fixture
def three(world):
    """Three teachers that agree on most."""
    world.teacher("a", lambda label: label)
    world.teacher("b", lambda label: np.where(label == 13, 14, label))
    world.add_teacher("c", lambda label: np.where(label == 2, 8, label))
    return world


def said(world, *command, expect=0):
    """Run a command and return what stood on stderr."""
    result = CliRunner().invoke(cli, [*command, "-c", str(world.file)])
    assert result.exit_code == expect, result.output
    return result.stderr


# --- teachers beside each other --------------------------------------------------------------


def test_agreement_is_counted_where_both_label():
    one = np.array([[0, 0, 1, 255], [1, 1, 255, 255]], np.uint8)
    other = np.array([[0, 1, 1, 0], [1, 255, 255, 0]], np.uint8)
    found = compared({"one": {"i": one}, "other": {"i": other}}, "xy")
    assert found["one"]["agrees"] == {"other": 3 / 4}
    assert found["other"]["agrees"] == {"one": 3 / 4}
    assert found["one"]["coverage"] == 5 / 8
    assert found["other"]["coverage"] == 6 / 8


def test_images_of_several_sizes_are_counted_together_and_only_common_ones():
    maps = {"i": np.zeros((2, 3), np.uint8), "j": np.ones((4, 1), np.uint8)}
    changed = {"j": np.zeros((4, 1), np.uint8), "i": maps["i"], "k": maps["i"]}
    found = compared({"one": maps, "other": changed}, "xy")
    assert found["one"]["agrees"] == {"other": 6 / 10}
    assert found["other"]["images"] == 2
    assert compared({"one": maps, "other": {"k": maps["i"]}}, "xy") == {}


def test_nothing_in_common():
    left = np.array([[0, 255]], np.uint8)
    found = compared({"left": {"i": left}, "right": {"i": left[:, ::-1]}}, "xy")
    assert found["left"]["agrees"] == {"right": None}
    assert "labels no pixel that" in " ".join(
        found["left"]["warnings"] + found["right"]["warnings"]
    )


def test_one_teacher_has_nobody_to_agree_with():
    assert compared({"one": {"i": np.zeros((2, 2), np.uint8)}}, "xy")["one"]["agrees"] == {}
    assert compared({}, "xy") == {}


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(0, 2**32 - 1),
)
def test_a_sample_is_some_of_the_pixels(size, seed):
    label_map = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    found = sampled(label_map)
    assert max(found.shape) <= 256
    assert max(found.shape) > 128 or found.shape == size
    assert found[0, 0] == label_map[0, 0] and set(np.unique(found)) <= set(np.unique(label_map))
    assert np.array_equal(unpacked(packed(found)), found)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_small_map_is_its_own_sample(label_map):
    assert np.array_equal(sampled(label_map), label_map)


@pytest.mark.parametrize("kind", ["labels", pytest.param("network", marks=pytest.mark.slow)])
def test_classes_in_another_order_give_themselves_away(three, kind):
    """In `check`, after `infer-teacher`, and before a `run`."""
    turned = np.roll(np.arange(19), 7)
    three.add_teacher("d", lambda label: turned[label])
    if kind == "network":
        three.settings["teachers"][-1] = {
            "name": "d",
            "trust": "code",
            "network": {"factory": "net:build", "root": "repo"},
        }
        (three.root / "repo").mkdir()
        (three.root / "repo/net.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def forward(self, x):\n"  # by columns, whatever the picture
            "        at = torch.arange(x.shape[3]) // 4 % 19\n"
            "        scores = torch.nn.functional.one_hot(at, 19).T[None, :, None].float()\n"
            "        return scores.expand(len(x), 19, *x.shape[2:])\n"
            "def build():\n"
            "    return Net()\n"
        )
        three.write()
    assert f"warning: teachers[d]: {CHANCE}" in three.call("check")
    found = three.json("check")["teachers"]
    assert any(CHANCE in text for text in found["d"]["together"]["warnings"])
    assert not any(found[t]["together"]["warnings"] for t in "abc")
    assert found["a"]["together"]["agrees"]["b"] > 0.9 > found["a"]["together"]["agrees"]["d"]
    assert CHANCE in three.call("infer-teacher")
    found = three.json("infer-teacher")["teachers"]
    assert CHANCE in " ".join(found["d"]["warnings"])
    assert f"warning: teachers[d]: {CHANCE}" in said(three, "run", "--no-evaluate")


def test_one_picture_on_which_teachers_differ_accuses_nobody(three):
    first = min(name for split, name in three.truth if split == "train")
    size = three.truth["train", first].shape
    noise = np.random.default_rng(0).integers(0, 19, size)
    three.save("teachers/a", "train", first, noise)
    three.save("teachers/b", "train", first, np.full(size, 255))
    assert "warning" not in three.call("check")


def test_who_knows_one_class_alone_is_not_said_to_agree_by_chance(three):
    for name, known in (("d", 2), ("e", 8)):
        noise = np.random.default_rng(known)
        three.add_teacher(
            name,
            lambda label, known=known, noise=noise: np.where(
                (label == known) | (noise.random(label.shape) < 0.05), known, 255
            ),
        )
    for command in ("check", "infer-teacher"):
        assert "chance" not in three.call(command)


def test_one_class_everywhere_is_told_of(three):
    three.add_teacher("d", np.zeros_like)
    for command in ("check", "infer-teacher"):
        assert "teachers[d]: calls every pixel road: are its " in three.call(command)


def test_good_teachers_are_suspected_of_nothing(three):
    assert "warning" not in three.call("check")
    text = three.call("infer-teacher")
    assert "warning" not in text
    assert "of the pixels that both label it agrees on: b " in text
    found = three.json("infer-teacher")
    assert set(found["teachers"]) == set("abc") and "fresh" in found
    of = found["teachers"]["b"]
    assert of["coverage"] == 1.0 == pytest.approx(sum(of["shares"].values()))
    assert "car" in of["absent"] and "car" in found["teachers"]["a"]["shares"]


def test_two_classes_by_each_other_s_names_are_told(three):
    """What is left of the agreement is far beyond chance."""
    swapped = np.arange(256)
    swapped[[0, 2]] = 2, 0
    three.add_teacher("d", lambda label: swapped[label])
    text = "teachers[d]: calls road what the others call building, building what the others call"
    for command in ("check", "infer-teacher"):
        said = three.call(command)
        assert f"warning: {text} road: is the order" in said and said.count("warning: ") == 1
    three.call("fuse", "--upstream")
    three.call("report")
    page = (three.root / "work/report.html").read_text()
    assert "d calls road what the others call building" in page


def test_of_two_that_call_classes_otherwise_the_pair_is_named_once(world):
    """From two alone it cannot be told whose names are wrong."""
    swapped = np.arange(256)
    swapped[[0, 2]] = 2, 0
    world.teacher("a", lambda label: swapped[label])
    world.teacher("b", lambda label: label)
    text = (
        "warning: teachers[a]: calls road what b calls building, building what b calls road: is "
        "the order of both teachers' classes as declared?"
    )
    for command in ("check", "infer-teacher"):
        said = world.call(command)
        assert said.count(text) == 1 and said.count("is the order of") == 1


def test_two_votes_of_one_opinion_are_told_before_any_work(three):
    three.teacher("c", lambda label: label)
    text = "warning: teachers[a]: says the same as c on 100.00% of the pixels that either labels"
    for command in ("check", "infer-teacher"):
        assert three.call(command).count("two votes of one opinion") == 1
        assert text in three.call(command)


def test_classes_that_no_teacher_can_label_are_told(three):
    assert "no teacher can label" not in three.call("check")
    for teacher in three.settings["teachers"]:
        teacher["map"] = {"car": None, "sky": None, "bus": "train"}
    three.settings["teachers"][0]["map"] = {"car": None, "sky": "road"}
    three.write()
    text = "classes: no teacher can label sky, car: no fused label is going to be one of these"
    assert text in three.call("check")
    assert text in said(three, "infer-teacher")


def test_what_labels_next_to_nothing_is_told(three):
    three.add_teacher("d", lambda label: np.where(np.arange(label.shape[1]) < 2, label, 255))
    for command in ("check", "infer-teacher"):
        assert "teachers[d]: labels 3." in three.call(command)


def test_a_part_of_the_images_is_compared_with_nothing(three):
    assert "agrees" not in three.call("infer-teacher", "--part", "1/2")


# --- what a network is shown -----------------------------------------------------------------


class Shown:
    """A network that says of an image what a rule has for the number of times it was asked."""

    facts: ClassVar[dict[str, str]] = {}

    def __init__(self, rule):
        self.rule, self.batches = rule, []

    def stream(self, batches, *_):
        for requests in batches:
            self.batches.append([Path(request.image) for request in requests])
            with Image.open(requests[0].image) as image:
                label = np.zeros((image.height, image.width), np.uint8)
            yield [(self.rule(label, len(self.batches)),) for _ in requests]

    def close(self):
        pass


@pytest.fixture
def shown(three, monkeypatch):
    """Give a world a network `n` that follows a rule, and return it."""

    def make(rule):
        network = Shown(rule)
        code.write_text(f"{code.read_text()}# another one\n")
        monkeypatch.setattr(networks, "open_network", lambda *_: network)
        return network

    declared = {"factory": "net:build", "root": "repo", "output": "ids"}
    three.settings["teachers"].append({"name": "n", "trust": "code", "network": declared})
    code = three.root / "repo/net.py"
    code.parent.mkdir()
    code.write_text("def build():\n    raise AssertionError\n")
    three.write()
    return make


def sizes(world):
    found = {}
    for file in sorted((world.root / "images").rglob("*.png")):
        with Image.open(file) as image:
            found.setdefault((image.height, image.width), []).append(file)
    return found


def test_a_network_is_shown_some_images_and_all_kinds_of_sizes(three, shown):
    train = sorted((three.root / "images/train").iterdir())
    network = shown(lambda label, _: label)
    three.call("check")
    first, again, *alone = network.batches
    assert first == again == [train[0]]
    assert {train[k * len(train) // 4] for k in range(4)} <= {train[0], *(f for [f] in alone)}
    ordered = sorted(sizes(three), key=math.prod)
    seen = {size for size, files in sizes(three).items() if [files[0]] in [*alone, first]}
    assert {ordered[0], ordered[-1]} <= seen
    assert len(alone) == len({f for [f] in alone}) <= 6 and [train[0]] not in alone


def test_a_network_that_takes_long_is_shown_less(three, shown, monkeypatch):
    monkeypatch.setattr(networks, "_LONG", 0.0)
    network = shown(lambda label, _: label)
    three.call("check")
    assert len(network.batches) == 1


def test_a_batch_is_seen_at_once_and_of_one_size(three, shown):
    three.settings["runtime"]["batch_size"] = 3
    three.write()
    network = shown(lambda label, _: label)
    three.call("check")
    [first], batch, *alone = network.batches
    assert len(batch) == 3 and batch[0] == first
    assert len({size for size, files in sizes(three).items() if {*batch} & {*files}}) == 1
    assert all(len(requests) == 1 for requests in alone)


def test_an_id_that_comes_with_a_later_image_is_found(three, shown):
    shown(lambda label, count: label + np.uint8(19 if count == 4 else 0))
    assert re.search(
        r"holds the id 19 on \d+ pixels of .*\.png; expected 0\.\.18", three.refuse("check")
    )
    shown(lambda label, count: np.full_like(label, 254))
    assert "holds ids outside 0..253 on" in three.refuse("check")


def test_labels_that_change_from_look_to_look_are_told(three, shown):
    shown(lambda label, count: label + np.uint8(count == 2))
    assert "another label when it sees it again: is part of it as in training" in three.call(
        "check"
    )
    three.settings["runtime"]["batch_size"] = 2
    three.write()
    shown(lambda label, count: label + np.uint8(count == 2))
    assert "100 % of the pixels" in (text := three.call("check")) and "sees it among others" in text


def test_a_map_under_which_little_of_a_network_is_left_is_told(three, shown):
    three.settings["teachers"][-1]["map"] = {"road": None}
    three.write()
    shown(
        lambda label, count: (
            label + (np.arange(label.shape[1]) >= label.shape[1] // 2).astype(np.uint8)
        )
    )
    found = three.json("check")["teachers"]["n"]["trial"]
    assert 0.5 <= found["coverage"] < 0.52
    assert not [text for text in found["warnings"] if "get a label" in text]
    shown(
        lambda label, count: (
            label + (np.arange(label.shape[1]) < label.shape[1] // 4).astype(np.uint8)
        )
    )
    text = three.call("check")
    assert "only 2" in text and "% of the pixels that it was shown get a label: are `clas" in text


@pytest.mark.parametrize(
    ("size", "told"),
    [([64, 48], True), ([128, 96], True), ([48, 64], False), ([64, 64], False), (None, False)],
)
def test_height_and_width_exchanged_are_told(three, shown, size, told):
    three.settings["teachers"][-1]["preprocess"] = {} if size is None else {"size": size}
    three.write()
    shown(lambda label, _: label)
    assert (f"is [{size and size[1]}, {size and size[0]}] meant?" in three.call("check")) == told


def test_one_class_on_every_image_is_told(three, shown):
    shown(lambda label, count: label)
    assert re.search(
        r"it calls the whole of .* and of \d more, road: are its weights", three.call("check")
    )
    shown(lambda label, count: label + np.uint8(count > 3))
    assert "it calls the whole of" not in three.call("check")


def test_a_second_check_asks_no_network(world, monkeypatch):
    world.settings["teachers"].append({"name": "n", "network": {"hf": "net"}})
    segformer(world.root / "net")
    world.write()
    torch.set_num_threads(2)  # as it may be at the start of a process
    first = world.json("check")
    torch.set_num_threads(3)
    monkeypatch.setattr(networks, "look", None)
    monkeypatch.setattr(trainings, "tried", None)
    assert world.json("check") == first


# --- before a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["run"], ["train-student", "--upstream"]])
def test_a_student_that_cannot_be_built_is_found_before_any_inference(three, command):
    three.settings["student"]["init"] = "wrong.pth"
    torch.save({"conv1.weight": torch.zeros(3, 3)}, three.root / "wrong.pth")
    three.write()
    assert "student.init: " in three.refuse(*command)
    assert not list((three.root / "work").glob("infer/*"))


def test_the_last_network_is_tried_before_the_first_one_works(three):
    for name in "mn":
        three.settings["teachers"].append({"name": name, "network": {"onnx": f"{name}.pt"}})
        (three.root / f"{name}.pt").write_bytes(b"nothing")
    three.write()
    text = three.refuse("infer-teacher")
    assert "2 problems" in text and "teachers[m]" in text and "teachers[n]" in text
    assert not list((three.root / "work").glob("infer/*"))


def test_problems_of_trainings_and_networks_come_together(three):
    three.settings["student"] |= {"network": {"arch": "tiny"}, "head": ["nothing.*"]}
    three.settings["teachers"].append({"name": "n", "network": {"onnx": "n.onnx"}})
    (three.root / "n.onnx").write_bytes(b"nothing")
    three.write()
    for command in ("check", "run"):
        text = three.refuse(command)
        assert "2 problems" in text and "student.head" in text and "teachers[n]: " in text


def test_what_is_fresh_is_not_tried_again(three, monkeypatch):
    three.call("run", "--no-evaluate")
    monkeypatch.setattr(ahead, "look_ahead", None)
    three.call("run", "--no-evaluate")
    three.call("train-student")
    three.settings["student"]["seed"] = 1
    three.write()
    three.call("train-student")  # a single node finds out at once
    three.call("evaluate")


def test_labels_alone_need_no_torch(three, python):
    three.settings["fusion"] = {"method": "majority"}
    three.write()
    code = """
import sys
from click.testing import CliRunner
from ensdistill.cli.__main__ import cli
result = CliRunner().invoke(cli, ["fuse", "--upstream", "-c", sys.argv[1]])
assert result.exit_code == 0, result.output
print("torch" in sys.modules)
"""
    assert python(code, three.file).strip() == "False"


# --- how long it takes -----------------------------------------------------------------------


def looked(world, wanted=None):
    experiment = load(world.file)
    decisions = plan(build(experiment), experiment.workspace.scan())

    class Silent:
        def start(self, *_):
            pass

        def advance(self, *_):
            pass

    every = decisions.keys() if wanted is None else wanted
    return ahead.look_ahead(experiment, decisions, every, lambda _: Silent())


def test_the_time_of_a_run_is_that_of_its_images_and_steps(three, monkeypatch):
    segformer(three.root / "net")
    three.settings["teachers"].append(
        {"name": "n", "network": {"hf": "net"}, "keep": ["confidence"]}
    )
    three.settings["probe"] |= {"steps": 30, "crop": [24, 32], "batch_size": 2}
    three.settings["student"] |= {"steps": 100, "input_size": [48, 64], "crop": [24, 32]}
    three.write()
    look, tried = networks.look, trainings.tried
    monkeypatch.setattr(networks, "look", lambda *a: look(*a) | {"seconds": 5.0, "starting": 2.0})
    monkeypatch.setattr(trainings, "tried", lambda *a: tried(*a) | {"seconds_per_step": 3.0})
    whole = looked(three)
    found = whole["seconds"]
    assert found["infer[n]"] == found["confidence[n]"] == 2 + 5 * 5
    assert found["infer[n]@val"] == 2 + 3 * 5
    assert "infer[a]" not in found
    assert [found[f"probe[{t}]"] for t in "abcn"] == [90] * 4
    assert found["student"] == 300
    # of a whole image, forward alone: the first one, of 44 x 61, and one of 48 x 64
    assert found["certainty[a]"] == pytest.approx(5 * 3.0 * (44 * 61) / (2 * 24 * 32) / 3)
    assert found["infer[student]@val"] == pytest.approx(3 * 3.0 * 4 / 2 / 3)
    assert list(found) == [n.id for n in build(load(three.file)) if n.id in found]
    assert looked(three, ["infer[n]"])["seconds"] == {"infer[n]": 27.0}
    text = ahead.told(whole, 1)
    assert text.startswith("networks and trainings are going to take about 12 min")
    assert "probes 6 min" in text and "student 5 min 00 s" in text
    assert "probes 3 min" in ahead.told(whole, 2)
    whole["trainings"]["probe"]["settles"] = True
    assert "going to take at most about 12 min" in ahead.told(whole, 1)


def test_seconds_are_not_worth_a_word():
    assert ahead.told({"seconds": {}, "trainings": {}}, 1) is None
    assert ahead.told({"seconds": {NodeId("student"): 3.0}, "trainings": {}}, 1) is None


def test_a_run_says_its_time_before_it_starts(three, monkeypatch):
    monkeypatch.setattr(ahead, "_WORTH_SAYING", 0.0)
    lines = said(three, "run", "--no-evaluate").splitlines()
    told = [k for k, line in enumerate(lines) if "are going to take about" in line]
    begun = lines.index("infer[a]")
    assert len(told) == 1 and told[0] < begun
    assert "student" in lines[told[0]]
    assert "are going to take about" not in said(three, "run", "--no-evaluate")
