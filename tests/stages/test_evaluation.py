"""Scores: against a naive count from the files themselves."""

import json

import numpy as np
import pytest
from worlds import World

from ensdistill.data.pictures import read_values
from ensdistill.data.toy import CLASSES
from ensdistill.pipeline.plan import plan
from ensdistill.stages.experiment import load
from ensdistill.stages.graph import build
from ensdistill.stages.labelmaps import LabelMaps


def naive_iou(pairs, c, covered=False):
    """Intersection over union of class c, in percent, straight from its definition."""
    inside = union = 0
    for target, prediction in pairs:
        keep = target != 255
        if covered:
            keep &= prediction != 255
        t, p = target[keep] == c, prediction[keep] == c
        inside += (t & p).sum()
        union += (t | p).sum()
    return 100 * inside / union if union else None


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("evaluated"))
    world.add_teacher("holes", lambda label: np.where(label == 0, 255, label))
    world.call("run")
    return world, json.loads((world.root / "work" / "results.json").read_text())


def test_structure(evaluated):
    world, found = evaluated
    assert found["split"] == "val"
    assert found["classes"] == list(CLASSES)
    kinds = [(m["kind"], m["name"]) for m in found["methods"]]
    assert kinds == [
        ("teacher", "a"),
        ("teacher", "b"),
        ("teacher", "holes"),
        ("fusion", "channel"),
        ("fusion", "channel-oracle"),
        ("fusion", "majority"),
        ("student", "student"),
    ]
    for m in found["methods"]:
        assert set(m["iou"]) == set(m["iou_covered"]) == set(CLASSES)
        assert set(m["miou_subsets"]) == {"miou16", "miou13"}
        assert 0 <= m["coverage"] <= 1
    assert set(found["policy"]) == set(CLASSES)
    assert set(found["policy"].values()) <= {"a", "b", "holes", None}
    assert set(found["certainty"]) == {"a", "b", "holes"}
    assert found["seconds"]["infer[a]"] > 0
    assert world.json("evaluate") == found


@pytest.mark.parametrize("teacher", ["a", "b", "holes"])
def test_teachers_equal_a_naive_count(evaluated, teacher):
    world, found = evaluated
    pairs = [
        (
            read_values(path, palette=False),
            read_values(world.root / "teachers" / teacher / "val" / path.name, palette=False),
        )
        for path in sorted((world.root / "labels/val").glob("*.png"))
    ]
    method = next(m for m in found["methods"] if m["name"] == teacher)
    for c, name in enumerate(CLASSES):
        assert method["iou"][name] == pytest.approx(naive_iou(pairs, c))
        assert method["iou_covered"][name] == pytest.approx(naive_iou(pairs, c, covered=True))
    known = [v for v in method["iou"].values() if v is not None]
    assert method["miou"] == pytest.approx(np.mean(known))
    if teacher == "holes":
        assert method["coverage"] < 1
        assert method["iou"]["road"] == 0


def test_oracle_is_at_least_as_good_as_its_parts_per_class_choice(evaluated):
    world, found = evaluated
    oracle = world.artifact("policy[oracle]@val").manifest.result["teacher"]
    by_name = {m["name"]: m["iou"] for m in found["methods"] if m["kind"] == "teacher"}
    for c in CLASSES:
        scores = {t: iou[c] for t, iou in by_name.items() if iou[c] is not None}
        if scores:
            assert scores[oracle[c]] == max(scores.values())
        else:
            assert oracle[c] is None


def test_a_teacher_without_the_split_is_left_out(world):
    world.settings["teachers"][1]["labels"].pop("val")
    world.write()
    world.call("run")
    found = json.loads((world.root / "work" / "results.json").read_text())
    names = [m["name"] for m in found["methods"]]
    assert names == ["a", "channel-oracle", "majority", "student"]


def test_several_labelled_splits_must_be_named(world):
    world.settings["target"]["test"] = world.settings["target"]["val"]
    for teacher in world.settings["teachers"]:
        teacher["labels"]["test"] = teacher["labels"]["val"]
    world.write()
    text = world.refuse("evaluate", "--upstream")
    assert "val, test" in text and "no --split was given" in text
    world.call("evaluate", "--upstream", "--split", "test")


def test_no_labelled_split_is_no_error_for_run(world):
    world.settings["target"]["val"].pop("labels")
    world.write()
    assert "student: " in world.call("run")
    assert "(none)" in world.refuse("evaluate")


def test_probes_are_scored_by_what_they_say(world):
    """Of a teacher that has no maps of the split too: a probe is a network."""
    world.settings["teachers"][1]["labels"].pop("val")
    world.write()
    found = world.json("evaluate", "--upstream", "--fusions", "all")
    scored = {m["name"]: m["iou"] for m in found["methods"] if m["kind"] == "probe"}
    assert scored.keys() == {"a", "b"}
    experiment = load(world.file)
    nodes = build(experiment, opens=("evaluation",), all_fusions=True)
    decisions = plan(nodes, experiment.workspace.scan())
    truth = LabelMaps(decisions["truth@val"].artifact)
    for teacher, iou in scored.items():
        made = decisions[f"infer[probe:{teacher}]@val"]
        network = made.artifact.manifest.made_from["network"]
        assert network == decisions[f"probe[{teacher}]"].artifact.manifest.content
        maps = LabelMaps(made.artifact)
        pairs = [(truth.read(i), maps.read(i)) for i in maps]
        for c, name in enumerate(CLASSES):
            assert iou[name] == pytest.approx(naive_iou(pairs, c))
    # the same maps, whoever else is scored
    world.settings["teachers"].pop(0)
    world.write()
    assert "nothing to do" not in world.call("evaluate", "--upstream", "--fusions", "all")
    assert not [a for a in world.artifacts() if a.manifest.node == "infer[probe:b]@val"][1:]


def test_no_probe_is_scored_where_none_is_needed(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a"}}
    world.write()
    planned = {d["node"] for d in world.json("evaluate", "--fusions", "all", "--dry-run")}
    assert not any("probe" in node for node in planned)
