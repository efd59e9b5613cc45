"""Settings that nothing reads are named once, and nothing is refused for them."""

import pytest
from worlds import TINY

from ensdistill.stages.checks.settings import ALL_FUSIONS, NOTHING, NOTHING_YET, unread
from ensdistill.stages.graph import load


def found(world, **sections):
    world.settings = {k: v for k, v in world.settings.items() if k not in ("probe", "fusion")}
    for name, values in sections.items():
        world.settings[name] = values
    world.write()
    return unread(load(world.file))


@pytest.mark.parametrize("method", ["label-model", "majority"])
def test_what_is_for_the_papers_fusion(world, method):
    assert found(
        world,
        fusion={"method": method, "window": 5, "conflict": "ignore"},
        policy={"strategy": "certainty", "min_support": 0.1},
        probe=TINY,
        runtime={"jobs": 2},
    ) == {
        ALL_FUSIONS: [
            "fusion.window",
            "fusion.conflict",
            "policy.min_support",
            "policy.strategy",
            "probe",
            "runtime.jobs",
        ]
    }


def test_all_of_it_is_read_by_that_fusion(world):
    sections = {"policy": {"strategy": "certainty", "min_support": 0}, "probe": TINY}
    sections["runtime"] = {"jobs": 2}
    assert found(world, fusion={"method": "channel", "window": 5}, **sections) == {}


def test_defaults_are_no_settings(world):
    assert found(world) == {}


@pytest.mark.parametrize("strategy", ["manual", "reliability"])
def test_probes_that_no_policy_asks(world, strategy):
    policy = {"strategy": strategy, "min_support": 0.1}
    if strategy == "manual":
        policy["assign"] = {"road": "a"}
    sections = {"policy": policy, "probe": TINY, "runtime": {"jobs": 2}}
    assert found(world, fusion={"method": "channel"}, **sections) == {
        NOTHING: ["policy.min_support", "probe", "runtime.jobs"]
    }


def test_a_window_without_a_rule_that_asks_for_it(world):
    rules = {"conflict": "ignore", "holes": "ignore"}
    assert found(world, fusion={"method": "channel", "window": 5, **rules}) == {
        NOTHING: ["fusion.window"]
    }
    rules["holes"] = "window"
    assert found(world, fusion={"method": "channel", "window": 5, **rules}) == {}


def test_confidences_and_what_is_kept(world):
    world.settings["teachers"][0]["confidence"] = {"train": "sure"}
    assert found(world) == {NOTHING_YET: ["teachers[a].confidence"]}


def test_splits_that_no_stage_opens(world):
    world.settings["target"]["test"] = {"images": "images/val/*.png"}
    world.settings["target"]["train"]["labels"] = "labels/train/*.png"
    world.settings["teachers"][0]["labels"]["test"] = "teachers/a/val"
    assert found(world) == {
        NOTHING: ["target.train.labels", "target.test", "teachers[a].labels.test"]
    }


def test_settings_of_a_training(world):
    student = TINY | {"momentum": 0.5, "watch_every": 10}
    assert found(world, student=student) == {NOTHING: ["student.momentum", "student.watch_every"]}
    assert found(world, student=student | {"optimizer": "sgd", "watch": "val"}) == {}
    # of the preset, and not of the file
    assert found(world, student={"preset": "paper", "optimizer": "adamw", "nesterov": False}) == {}


def test_check_and_status_name_them_once(world):
    world.settings["fusion"] = {"method": "label-model", "window": 5}
    world.write()
    line = "read only by `evaluate --fusions all`: fusion.window, probe"
    for command in ("check", "status"):
        assert world.call(command).count(line) == 1
    assert world.json("check")["unread"] == {ALL_FUSIONS: ["fusion.window", "probe"]}
    assert isinstance(world.json("status"), list)


def test_status_says_nothing_where_all_is_read(world):
    assert "read " not in world.call("status")
