"""Folds: each training image is asked of a probe that was trained without it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, files_of

from ensdistill.data.decoding import read_image
from ensdistill.stages.functional.certainty import certainty_sums, mean_certainty
from ensdistill.stages.graph import build, load, probe_chains
from ensdistill.stages.local import Running
from ensdistill.stages.networks import backbones
from ensdistill.stages.networks.kinds import open_network
from ensdistill.stages.nodes.probe.plan import folds_of


@given(st.integers(1, 40), st.data())
def test_folds_are_runs_of_one_size_that_leave_nobody_out(count, data):
    folds = folds_of(range(count), data.draw(st.integers(1, count)))
    assert [i for fold in folds for i in fold] == list(range(count))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


@pytest.fixture
def world(tmp_path):
    found = World(tmp_path, train=5, size=(28, 40))
    found.settings["probe"] |= {"folds": 2, "crop": [16, 24]}
    found.write()
    return found


def test_each_image_is_asked_of_the_probe_that_did_not_learn_from_it(world):
    world.call("select-policy", "--upstream")
    assert world.states().keys() >= {"probe[a.1]", "probe[a.2]", "probe[b.1]", "certainty[a]"}
    classes = load(world.file).classes
    about = {"device": "cpu", "workers": 0, "threads": 1}
    local = Running(pictures=(), classes=classes, digests={}, **about)
    sums = []
    for k, path in enumerate(sorted((world.root / "images" / "train").iterdir())):
        probe = world.artifact("probe[a.1]" if k < 2 else "probe[a.2]").path
        seen = open_network(probe, {"source": "student"}, local).look(read_image(path))
        sums.append(certainty_sums(seen.labels.numpy(), seen.confidence.numpy(), 19))
    expected = mean_certainty(sum(sums[1:], sums[0]))
    told = world.artifact("certainty[a]").manifest.result["certainty"].values()
    found = [np.nan if value is None else value for value in told]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_probe_does_not_see_the_labels_of_its_fold(world):
    """What the teacher says of the fold that is left out does not reach the network."""
    world.call("select-policy", "--upstream", "a")
    before = [files_of(world.artifact(f"probe[a.{k}]").path) for k in (1, 2)]
    first = min((world.root / "teachers" / "a" / "train").iterdir())
    world.save("teachers/a", "train", first.stem, np.full((24, 37), 8))
    world.call("select-policy", "--upstream", "a")
    after = [files_of(world.artifact(f"probe[a.{k}]").path) for k in (1, 2)]
    pairs = zip(before, after, strict=True)
    same = [b["model.safetensors"] == a["model.safetensors"] for b, a in pairs]
    assert same == [True, False]


def test_a_chain_is_all_probes_of_a_teacher_and_its_certainty(world):
    chains = probe_chains(build(load(world.file)))
    assert chains["b"] == ["probe[b.1]", "probe[b.2]", "certainty[b]"]


@pytest.mark.slow
def test_jobs_make_the_same_probes(world):
    world.call("select-policy", "--upstream")
    alone = world.artifact("certainty[b]").manifest.result
    world.settings |= {"workspace": "other"}
    world.settings["runtime"]["jobs"] = 2
    world.write()
    world.call("select-policy", "--upstream")
    assert world.artifact("certainty[b]").manifest.result == alone


def test_all_probes_are_scored(world):
    world.call("select-policy", "--upstream")
    results = world.json("evaluate", "--upstream", "--fusions", "all")
    found = [m["name"] for m in results["methods"] if m["kind"] == "probe"]
    assert sorted(found) == ["a.1", "a.2", "b.1", "b.2"]


def test_too_few_images_for_the_folds_are_refused(world):
    world.settings["probe"]["folds"] = 6
    world.write()
    assert "fewer (5) than folds (6); with `probe: {folds: 1}`" in world.refuse(
        "select-policy", "--upstream"
    )
    status = {d["node"]: d for d in world.json("status")}
    assert status["probe[a.1]"]["state"] == "waiting"


def test_a_fold_without_which_nothing_is_labelled_is_refused(world):
    for path in sorted((world.root / "teachers" / "a" / "train").iterdir())[2:]:
        world.save("teachers/a", "train", path.stem, np.full((28, 40), 255))
    refusal = world.refuse("select-policy", "--upstream")
    assert "probe[a.1]: none of the pixels of its 3 label maps" in refusal
    assert "`probe: {folds: 1}`" in refusal


def test_without_weights_only_what_needs_a_probe_is_refused(world, monkeypatch):
    """Where the experiment's own fusion needs none, all is as if there were no such probes."""
    del world.settings["probe"]
    world.settings["fusion"] = {"method": "label-model"}
    world.settings["student"] |= {"crop": [16, 24]}
    world.write()
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    world.call("run")
    (world.root / "work" / ".features").mkdir()
    for command in ("status", "check", "report", "gc", "verify"):
        world.call(command)
    world.settings["fusion"] = {"method": "channel"}
    world.write()
    status = {d["node"]: d for d in world.json("status")}
    assert "pip install 'ensdistill[weights]'" in status["probe[a.1]"]["reason"]
    assert "pip install 'ensdistill[weights]'" in world.refuse("select-policy")


@pytest.mark.slow
def test_few_images_are_no_reason_to_settle(tmp_path):
    """Of 4 images in two folds every step is an epoch."""
    world = World(tmp_path, train=4, size=(48, 64))
    del world.settings["probe"]
    world.write()
    world.call("select-policy", "--upstream")
    for k in (1, 2):
        found = world.artifact(f"probe[a.{k}]")
        metrics = (found.path / "metrics.jsonl").read_text().splitlines()
        assert found.manifest.result["steps"] >= 128
        assert json.loads(metrics[-1])["loss"] < 1  # not ln 19
