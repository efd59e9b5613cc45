"""Experiments side by side."""

import json
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from opened import opened
from worlds import World

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import ConfigError, NotReadyError
from ensdistill.stages.demo.styles import CLASSES


def call(*arguments):
    done = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def found(*arguments):
    return json.loads(call(*arguments, "--json"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A world and, in the same workspace, one more teacher; both evaluated."""
    world = World(tmp_path_factory.mktemp("compared"))
    world.settings["fusion"] = {"method": "majority"}
    world.settings["student"]["steps"] = 1
    world.write()
    world.call("run")
    one = world.root / "two.yaml"
    shutil.copy(world.file, one)
    world.add_teacher("c", lambda label: label)
    other = world.root / "three.yaml"
    shutil.copy(world.file, other)
    done = CliRunner().invoke(cli, ["run", "-c", str(other)], catch_exceptions=False)
    assert done.exit_code == 0
    return world, one, other


def test_differences_are_to_the_first(evaluated):
    _, one, other = evaluated
    compared = found(one, other, one)
    assert [e["label"] for e in compared["experiments"]] == [
        "1: " + str(one),
        "2: " + str(other),
        "3: " + str(one),
    ]
    assert compared["teachers"] == {
        "a": [True] * 3,
        "b": [True] * 3,
        "c": [False, True, False],
    }
    scores = {}
    for name, file in (("one", one), ("other", other)):
        arguments = ["evaluate", "-c", str(file), "--json"]
        text = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
        scores[name] = {m["name"]: m for m in json.loads(text)["methods"]}
    by_name = {m["method"]: m for m in compared["methods"]}
    assert set(by_name) == {
        "fusion",
        "student",
        "fusion majority",
        "fusion channel-oracle",
        "teacher a",
        "teacher b",
    }
    for key, name in (("fusion", "majority"), ("student", "student"), ("teacher a", "a")):
        first, second = (scores[k][name] for k in ("one", "other"))
        assert by_name[key]["miou"] == [first["miou"], second["miou"], first["miou"]]
        for c in first["iou"]:
            known = first["iou"][c] is not None and second["iou"][c] is not None
            expected = second["iou"][c] - first["iou"][c] if known else None
            assert by_name[key]["delta"]["iou"][c][1] == expected
        assert by_name[key]["delta"]["miou"][::2] == [0, 0]
        assert set(by_name[key]["delta"]) == {"miou", "miou_present", "miou16", "miou13", "iou"}
    assert compared["notes"] == []


def test_the_table(evaluated):
    _, one, other = evaluated
    text = call(one, other)
    assert "two.yaml" in text and "three.yaml" in text
    assert "fusion (majority), IoU in percent" in text
    assert "teacher a, IoU" not in text  # the same label maps: nothing to see
    assert "mIoU13" in text


def test_what_it_cost(evaluated):
    _, one, other = evaluated
    first, second = (e["cost"] for e in found(one, other)["experiments"])
    assert (first["infer"]["computed"], second["infer"]["computed"]) == (2 * 8 + 3, 3 * 8 + 3)
    assert first["truth"] == second["truth"]
    assert set(first) == {"infer", "fusion", "student", "policy", "truth", "evaluation"}


def test_workspaces_and_results_are_compared_by_what_they_tell(evaluated, tmp_path):
    world, _, other = evaluated
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.copy(world.root / "work" / "results.json", kept)
    compared = found(other, kept, kept / "results.json")
    labels = [e["label"] for e in compared["experiments"]]
    assert len(set(labels)) == 3
    assert labels[0].endswith("three.yaml")
    assert all(d in (0, None) for m in compared["methods"] for d in m["delta"]["miou"])
    assert len(compared["notes"]) == 2  # about what was written last
    costs = [e["cost"] for e in compared["experiments"]]
    assert costs[0] == costs[1] == costs[2]


def test_policies_side_by_side(tmp_path):
    files = []
    world = World(tmp_path)
    world.settings["fusion"] = {"method": "channel", "window": 5}
    for name, owner in (("one", "a"), ("other", "b")):
        world.settings["policy"] = {"strategy": "manual", "assign": {"road": owner, "car": "b"}}
        world.write()
        world.call("fuse", "--upstream")
        files.append(tmp_path / f"{name}.yaml")
        shutil.copy(world.file, files[-1])
    compared = found(*files)
    assert compared["policy"]["road"] == ["a", "b"]
    assert compared["policy"]["car"] == ["b", "b"]
    assert compared["methods"] == []
    assert "not evaluated" in compared["notes"][0]
    text = call(*files)
    assert "road *" in text
    assert "car *" not in text


def test_what_cannot_be_compared_is_refused(evaluated, tmp_path):
    world, one, other = evaluated
    with pytest.raises(NotReadyError, match=r"holds no results\.json; run `ensdistill evaluate`"):
        call(one, tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        call(one, tmp_path / "none")
    (tmp_path / "else.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match=r"is no results\.json of ensdistill: it has no 'format'"):
        call(one, tmp_path / "else.json")
    (tmp_path / "else.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        call(one, tmp_path / "else.json")
    with pytest.raises(ConfigError, match="labelled splits are val; 'test' is none"):
        call(one, other, "--split", "test")
    with pytest.raises(SystemExit):
        call(one)
    fewer = json.loads((world.root / "work" / "results.json").read_text())
    fewer["classes"].remove("car")
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    with pytest.raises(ConfigError, match="car is among the classes of one alone"):
        call(one, tmp_path / "fewer.json")


def test_means_over_different_classes_are_told_and_present_ones_are_not(world):
    labels = [label for (split, _), label in world.truth.items() if split == "val"]
    (train_id,) = set(range(19)) - {int(v) for label in labels for v in np.unique(label)}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("evaluate")
    world.teacher("a", lambda label: np.where(label == 0, train_id, label))
    world.settings["workspace"] = "other"
    world.write()
    world.call("evaluate")
    sources = (world.root / "work", world.root / "other")
    compared = found(*sources)
    a = next(m for m in compared["methods"] if m["method"] == "teacher a")
    assert a["classes"]["miou"] == [18, 19]
    assert a["classes"]["miou_present"] == [18, 18]
    assert a["delta"]["miou_present"][1] == a["miou_present"][1] - a["miou_present"][0]
    assert a["delta"]["miou"][1] != a["delta"]["miou_present"][1]
    (note,) = (n for n in compared["notes"] if n.startswith("teacher a: mIoU is over different"))
    said = "(18 in work/results.json, 19 in other/results.json; not in all: "
    assert f"{said}{CLASSES[train_id]})" in note
    assert not [n for n in compared["notes"] if "mIoU present" in n or n.startswith("teacher b")]
    lines = call(*sources).splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip().startswith("teacher a, IoU"))
    rows = [line.split() for line in lines[at : at + 30]]
    (miou,) = (k for k, row in enumerate(rows) if row[:1] == ["mIoU"] and row[1] != "present")
    assert rows[miou + 1] == ["over", "classes", "18", "19"]
    assert rows[miou + 2][:2] == ["mIoU", "present"] and rows[miou + 3][:2] != ["over", "classes"]


TABLE = """
classes: [{name: one, colour: [1, 0, 0]}, {name: other, colour: [2, 0, 0]}]
subsets: {some: [MEMBERS]}
"""


def test_subsets_of_one_name_and_other_members_are_told(world):
    world.teacher("a", lambda label: label % 2)
    world.teacher("b", lambda label: label % 2)
    for (split, name), label in world.truth.items():
        if split == "val":
            world.save("labels", split, name, np.where(label == 255, 255, label % 2))
    world.settings |= {"classes": {"table": "table.yaml"}, "fusion": {"method": "majority"}}
    files = []
    for members in ("one", "one, other"):
        (world.root / "table.yaml").write_text(TABLE.replace("MEMBERS", members))
        world.settings["workspace"] = f"work{len(files)}"
        world.write()
        world.call("evaluate")
        files.append(world.root / world.settings["workspace"])
    notes = found(*files)["notes"]
    said = "(1 in work0/results.json, 2 in work1/results.json; not in all: other)"
    assert any(f"some is over different classes {said}" in n for n in notes)
    assert not [n for n in notes if "mIoU is over" in n]


def test_results_say_whose_they_are(evaluated):
    world, one, two = evaluated
    file = world.root / "work" / "results.json"
    written = json.loads(file.read_text())["experiment"]
    assert written in (one.name, two.name)
    [note] = [n for n in found(one, file)["notes"] if "evaluated last" in n]
    assert note.startswith("results.json holds") and note.endswith(f", which was {written}")
    assert not [n for n in found(one, two)["notes"] if "evaluated last" in n]


def test_results_of_an_earlier_version_are_refused_with_the_way_out(evaluated, tmp_path):
    world, one, _ = evaluated
    scores = json.loads((world.root / "work" / "results.json").read_text())
    scores.pop("classes_present")
    (tmp_path / "old.json").write_text(json.dumps(scores))
    with pytest.raises(ConfigError, match="`ensdistill evaluate` writes one of an earlier version"):
        call(one, tmp_path / "old.json")


def test_results_know_their_ground_truth(evaluated, tmp_path):
    world, _, two = evaluated
    scores = json.loads((world.root / "work" / "results.json").read_text())
    file = tmp_path / "other.json"
    file.write_text(json.dumps(scores | {"truth": "0" * 64}))
    with pytest.raises(ConfigError, match="by other ground truth"):
        call(two, file)
    file.write_text(json.dumps(scores | {"truth": None}))
    assert "by the same ground truth is not known" in found(two, file)["notes"][0]


def test_results_of_a_later_version_are_read_or_refused_by_their_format(evaluated, tmp_path):
    world, _, two = evaluated
    scores = json.loads((world.root / "work" / "results.json").read_text())
    file = tmp_path / "later.json"
    file.write_text(json.dumps(scores | {"colour": 3}))
    assert found(two, file)["methods"]
    file.write_text(json.dumps(scores | {"format": 2}))
    with pytest.raises(ConfigError, match="format"):
        call(two, file)


def test_other_ground_truth_is_refused(evaluated, tmp_path):
    _, one, _ = evaluated
    another = World(tmp_path / "other")
    another.settings["fusion"] = {"method": "majority"}
    another.settings["student"]["steps"] = 1
    another.write()
    for (split, name), label in another.truth.items():
        another.save("labels", split, name, np.roll(label, 1, axis=1))
    another.call("run")
    with pytest.raises(ConfigError, match="by other ground truth, though both call it val"):
        call(one, another.file)


def test_no_ground_truth_is_opened(evaluated):
    """What is not remembered stays unknown: nothing is evaluated then."""
    _, one, other = evaluated
    settings = yaml.safe_load(one.read_text())
    with opened() as paths:
        assert found(one, other)["notes"] == []
    for memory in (one.parent / settings["workspace"]).glob("files*.json"):
        memory.unlink()
    with opened() as more:
        assert "not evaluated" in found(one, other)["notes"][0]
    assert any(p.endswith("three.yaml") for p in paths)
    assert not [p for p in paths + more if "/labels/" in p]
