"""Fusion by the label model, through the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from worlds import UNCHECKED

from ensdistill.cli.__main__ import cli
from ensdistill.stages.checks import files
from ensdistill.stages.functional import labelmodel as functional
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.nodes.label_model.plan import doubt_of
from ensdistill.stages.nodes.label_model.run import read_model, spread

OTHERS = {"label-model", "channel", "channel-reliability", "channel-oracle", "majority"}


@pytest.fixture
def world(world):
    """Three teachers, of which c confuses cars and trucks, fused by the label model."""
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    world.settings["fusion"] = {"method": "label-model"}
    world.write()
    return world


def ran(world, *command):
    before = {a.path for a in world.artifacts()}
    world.call(*command)
    return {a.manifest.node for a in world.artifacts() if a.path not in before}


def test_no_probe_is_trained_and_a_new_teacher_costs_itself_and_the_fit(world):
    made = ran(world, "run", "--no-evaluate")
    assert made == {"infer[a]", "infer[b]", "infer[c]", "label-model", "fusion", "student"}
    assert "nothing to do" in world.call("run", "--no-evaluate")
    world.add_teacher("d", lambda label: label)
    assert ran(world, "fuse", "--upstream") == {"infer[d]", "label-model", "fusion"}
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    assert ran(world, "fuse") == {"fusion"}


def test_the_stages_do_what_the_functions_say(world):
    world.call("fuse", "--upstream")
    maps = [LabelMaps(world.artifact(f"infer[{t}]")) for t in "abc"]
    images = {i: np.stack([m.read(i) for m in maps]) for i in maps[0]}
    model = functional.fit(
        functional.join([functional.count(images[i], 19) for i in sorted(images)]), 19
    )
    artifact = world.artifact("label-model")
    assert artifact.manifest.result["images"] == 5
    published = read_model(artifact)
    for name in ("weights", "confusions", "prior", "reliability"):
        np.testing.assert_allclose(getattr(published, name), getattr(model, name), atol=1e-6)
    fused = LabelMaps(world.artifact("fusion"))
    for image_id, label_maps in images.items():
        expected, _ = functional.fuse(label_maps, published)
        np.testing.assert_array_equal(fused.read(image_id), expected)
    result = world.artifact("fusion").manifest.result
    assert result["coverage"] == 1.0 and result["hole"] == 0.0
    assert 0 < result["conflict"] < 1


@pytest.mark.slow
def test_the_same_artifacts_with_worker_processes_and_in_any_order(world, eager):
    world.call("fuse", "--upstream")
    paths = {n: world.artifact(n).path for n in ("label-model", "fusion")}
    found = {n: p / "manifest.json" for n, p in paths.items()}
    results = {n: json.loads(p.read_text())["result"] for n, p in found.items()}
    world.settings["workspace"] = "again"
    world.settings["teachers"].reverse()
    world.settings["runtime"]["workers"] = 2
    world.write()
    world.call("fuse", "--upstream")
    assert {n: world.artifact(n).manifest.result for n in results} == results


def test_policy_by_reliability_needs_no_probe(world):
    world.settings["fusion"] = {"method": "channel", "window": 3, "conflict": "certainty"}
    world.settings["policy"] = {"strategy": "reliability"}
    world.write()
    made = ran(world, "select-policy", "--upstream")
    assert made == {"infer[a]", "infer[b]", "infer[c]", "label-model", "policy"}
    found = world.json("select-policy")
    reliability, policy = found["reliability"], found["policy"]
    for name, teacher in policy["teacher"].items():
        values = {t: reliability[t][name] for t in "abc" if reliability[t][name] is not None}
        assert teacher == (max(sorted(values), key=values.get) if values else None)
        assert policy["certainty"][name] == (values[teacher] if values else None)
    world.call("fuse")


def test_all_fusions_are_scored_side_by_side(world):
    world.call("run")
    assert {m["name"] for m in world.json("evaluate")["methods"]} == {
        *"abc",
        "label-model",
        "majority",
        "channel-oracle",
        "student",
    }
    planned = {d["node"] for d in world.json("evaluate", "--fusions", "all", "--dry-run")}
    assert {"probe[a]", "policy", "policy[reliability]", "fusion[channel]@val"} <= planned
    assert {f"infer[probe:{t}]@val" for t in "abc"} <= planned
    text = world.call("evaluate", "--fusions", "all")
    for row in ("conflict", "ms an image", "regret", "coverage", "mIoU where covered"):
        assert row in text
    found = world.json("evaluate", "--fusions", "all")
    assert found == json.loads((world.root / "work" / "results-all.json").read_text())
    assert [(m["kind"], m["name"]) for m in found["methods"]] == [
        *(("teacher", t) for t in "abc"),
        *(("fusion", m) for m in sorted(OTHERS)),
        *(("probe", t) for t in "abc"),
        ("student", "student"),
    ]
    assert all(f"probe of {t}" in text for t in "abc")
    assert found["conflict"].keys() == found["seconds_per_image"].keys() == OTHERS
    assert found["conflict"]["majority"] is None and found["conflict"]["label-model"] > 0
    assert all(seconds > 0 for seconds in found["seconds_per_image"].values())
    # nothing of it is in the way of the experiment, or garbage
    assert set(world.states().values()) == {"fresh"}
    assert not [r for r in world.json("gc") if r["reason"] is None]


def test_no_ground_truth_is_opened(world):
    for file in (world.root / "labels/val").glob("*.png"):
        file.write_bytes(b"nobody reads this")
    world.call("fuse", "--upstream")
    assert world.artifact("fusion") is not None


def test_images_to_fit_are_spread_evenly():
    ids = [f"{k:04}" for k in range(1000)]
    assert spread(ids, 1000) == ids
    assert spread(ids, 4) == ["0000", "0250", "0500", "0750"]
    assert len(set(spread(ids, 512))) == 512


def lines(world, *command):
    """Run a command and return its stdout and its stderr."""
    result = CliRunner().invoke(cli, [*command, "-c", str(world.file)])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_two_teachers_cannot_tell_who_errs(world):
    world.settings["teachers"].pop()
    world.write()
    text = "two teachers cannot tell which of them errs"
    assert f"warning: label model: {text}" in world.call("check")
    assert f"label-model: {text}" in lines(world, "fuse", "--upstream")[1]
    said = world.call("select-policy")
    assert f"label model: {text}" in said and "expects" not in said
    found = world.json("select-policy")
    assert found["reliability"] == {} and text in found["doubt"]
    world.call("run")
    results = json.loads((world.root / "work/results.json").read_text())
    assert text in results["doubt"] and results["reliability"] == {}
    assert not any("reliability" in of for of in results["estimates"].values())
    page = world.root / "page.html"
    world.call("report", "-o", str(page))
    assert text in page.read_text() and "IoU that the label model expects" not in page.read_text()


def test_a_copy_is_no_third_teacher(world):
    world.settings["teachers"][2]["labels"] = world.settings["teachers"][0]["labels"]
    world.write()
    assert "cannot tell" not in world.call("check")  # it does not read them together
    text = "the 3 teachers hold no more than two opinions"
    assert text in lines(world, "fuse", "--upstream")[1]
    assert text in world.call("select-policy")
    assert world.artifact("label-model").manifest.result["opinions"] == 2


def test_three_that_contradict_each_other_can(world):
    world.call("fuse", "--upstream")
    found = world.json("select-policy")
    assert found["doubt"] is None and set(found["reliability"]) == set("abc")
    assert "what the label model expects" in world.call("select-policy")


def test_a_model_of_before_is_judged_by_its_teachers_alone():
    assert doubt_of(2, None) is not None
    assert doubt_of(3, None) is None


def test_an_image_list_without_a_label_is_refused_in_words(world, monkeypatch):
    """`check` refuses it too: the stages must not rely on that."""
    for (split, name), label in world.truth.items():
        for teacher in "abc":
            world.save(f"teachers/{teacher}", split, name, np.full_like(label, 255))
    monkeypatch.setattr(files, "check", lambda *_, **__: UNCHECKED)
    assert "label-model: no teacher labels any pixel of 5 images" in world.refuse(
        "fuse", "--upstream"
    )
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    text = world.refuse("train-student", "--upstream")
    assert "student: none of the pixels of its 5 label maps has a label" in text
    assert world.artifact("student") is None


@pytest.mark.parametrize("fit", ["fused", "train"])
def test_what_a_split_is_fused_by(world, fit):
    """By default a model of its own, as the labels of a split tell most of that split."""
    world.settings["label_model"] = {"fit": fit}
    world.write()
    world.call("evaluate", "--upstream")
    split = "val" if fit == "fused" else "train"
    at = {"train": "", "val": "@val"}
    maps = {s: [LabelMaps(world.artifact(f"infer[{t}]{at[s]}")) for t in "abc"] for s in at}
    images = {
        s: [np.stack([m.read(i) for m in of]) for i in sorted(of[0])] for s, of in maps.items()
    }
    votes = functional.join([functional.count(label_maps, 19) for label_maps in images[split]])
    model = functional.fit(votes, 19)
    published = read_model(world.artifact(f"label-model{at[split]}"))
    np.testing.assert_allclose(published.confusions, model.confusions, atol=1e-6)
    fused = LabelMaps(world.artifact("fusion[label-model]@val"))
    for image_id, label_maps in zip(sorted(fused), images["val"], strict=True):
        np.testing.assert_array_equal(
            fused.read(image_id), functional.fuse(label_maps, published)[0]
        )
    results = json.loads((world.root / "work/results.json").read_text())
    assert results["label_model"] == {"fit": fit, "rule": "label-model", "because": None}


def test_another_fit_asks_for_nothing_of_training(world):
    world.settings["label_model"] = {"fit": "train"}
    world.write()
    world.call("run")
    world.settings["label_model"] = {"fit": "fused"}
    world.write()
    assert ran(world, "run") == {"label-model@val", "fusion[label-model]@val", "evaluation@val"}


def test_where_nobody_contradicts_the_majority_counts_and_it_is_said(world):
    for teacher in world.settings["teachers"][1:]:
        teacher["labels"] = world.settings["teachers"][0]["labels"]
    world.write()
    text = "no teacher contradicts another"
    assert f"label-model: {text}: the majority" in lines(world, "fuse", "--upstream")[1]
    table, page = world.root / "table.md", world.root / "page.html"
    printed = world.call("evaluate", "--upstream", "-o", str(table))
    world.call("report", "-o", str(page))
    for told in (printed, table.read_text(), page.read_text()):
        assert told.count(f"label model: {text}: the majority of the votes counts instead") == 1
    found = json.loads((world.root / "work/results.json").read_text())
    assert found["label_model"] == {"fit": "fused", "rule": "majority", "because": text}


def test_another_word_than_train_or_fused_is_refused(world):
    world.settings["label_model"] = {"fit": "val"}
    world.write()
    assert "label_model.fit" in world.refuse("check")
