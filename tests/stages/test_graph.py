"""The product's promise: a rerun does exactly what a change demands."""

import json

import numpy as np
import pytest
from worlds import files_of

EVALUATED = {
    "infer[a]@val",
    "infer[b]@val",
    "truth@val",
    "policy[oracle]@val",
    "fusion[channel]@val",
    "fusion[majority]@val",
    "fusion[channel-oracle]@val",
    "infer[student]@val",
    "evaluation@val",
}
PIPELINE = {
    *(f"{stage}[{t}]" for stage in ("infer", "probe", "certainty") for t in "ab"),
    "policy",
    "fusion",
    "student",
}


def ran(world, *more):
    """Run and return node to images written, by what really was published."""
    before = {a.path for a in world.artifacts()}
    world.call("run", *more)
    return {a.manifest.node: a.manifest.written for a in world.artifacts() if a.path not in before}


def test_everything_then_nothing(world):
    made = ran(world)
    assert set(made) == PIPELINE | EVALUATED
    assert made["infer[a]"] == made["fusion"] == made["certainty[b]"] == 5
    assert made["infer[student]@val"] == 3
    assert ran(world) == {}
    assert set(world.states().values()) == {"fresh"}
    assert "nothing to do" in world.call("run")
    assert "nothing to do" in world.call("fuse")


def test_added_teacher_that_wins_nothing_costs_itself_and_the_policy(world):
    world.call("run")
    # noise of classes that the others' probes are sure of
    random = np.random.default_rng(0)
    world.add_teacher("noise", lambda label: random.choice([0, 2, 10], label.shape))
    assert world.states() | {"evaluation@val": "-"} == {
        **dict.fromkeys(PIPELINE | EVALUATED, "fresh"),
        "infer[noise]": "missing",
        "probe[noise]": "missing",
        "certainty[noise]": "missing",
        "policy": "waiting",
        "fusion": "waiting",
        "student": "waiting",
        "infer[noise]@val": "missing",
        "policy[oracle]@val": "stale",
        "fusion[channel]@val": "waiting",
        "fusion[majority]@val": "stale",
        "fusion[channel-oracle]@val": "waiting",
        "infer[student]@val": "waiting",
        "evaluation@val": "-",
    }
    assert set(ran(world, "--no-evaluate")) == {
        "infer[noise]",
        "probe[noise]",
        "certainty[noise]",
        "policy",
    }
    states = world.states()
    assert all(states[n] == "fresh" for n in PIPELINE)


def test_added_teacher_that_wins_a_class_reaches_the_student(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.write()
    assert set(ran(world, "--no-evaluate")) == {"infer[a]", "policy", "fusion", "student"} | {
        "infer[b]"
    }
    world.add_teacher("c", lambda label: label)
    world.settings["policy"]["assign"]["car"] = "c"
    world.write()
    assert set(ran(world, "--no-evaluate")) == {"infer[c]", "policy", "fusion", "student"}


def test_order_of_teachers_means_nothing(world):
    world.call("run")
    world.settings["teachers"].reverse()
    world.write()
    assert set(world.states().values()) == {"fresh"}


def test_a_renamed_teacher_reruns_no_network(world):
    world.call("run", "--no-evaluate")
    world.settings["teachers"][0]["name"] = "z"
    world.write()
    assert set(ran(world, "--no-evaluate")) == {"policy"}


def test_a_setting_changed_and_changed_back_finds_the_old_artifacts(world):
    world.call("run", "--no-evaluate")
    world.settings["fusion"]["window"] = 3
    world.write()
    found = {d["node"]: d for d in world.json("status")}
    assert found["fusion"]["state"] == "stale"
    assert found["fusion"]["changes"] == [{"field": "recipe.window", "old": 5, "new": 3}]
    assert "recipe.window changed from 5 to 3" in found["fusion"]["reason"]
    assert set(ran(world, "--no-evaluate")) == {"fusion", "student"}
    world.settings["fusion"]["window"] = 5
    world.write()
    assert ran(world, "--no-evaluate") == {}


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (("probe", "seed", 1), {"probe[a]", "probe[b]"}),
        (("student", "lr", 0.02), {"student"}),
        (("fusion", "holes", "ignore"), {"fusion"}),
    ],
)
def test_a_recipe_field_makes_exactly_its_stage_stale(world, change, stale):
    world.call("run", "--no-evaluate")
    section, field, value = change
    world.settings[section][field] = value
    world.write()
    states = world.states()
    assert {n for n in PIPELINE if states[n] == "stale"} >= stale
    assert all(states[n] == "fresh" for n in PIPELINE if n.startswith("infer"))


def test_runtime_and_place_change_nothing(world, tmp_path):
    world.call("run", "--no-evaluate")
    world.settings["runtime"] |= {"workers": 2, "checkpoint_every": 1}
    world.write()
    assert {n: s for n, s in world.states().items() if n in PIPELINE} == dict.fromkeys(
        PIPELINE, "fresh"
    )
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("images", "labels", "teachers", "work", "experiment.yaml"):
        (tmp_path / name).rename(moved / name)
    world.root, world.file = moved, moved / "experiment.yaml"
    assert {n: s for n, s in world.states().items() if n in PIPELINE} == dict.fromkeys(
        PIPELINE, "fresh"
    )


def test_a_changed_prediction_is_noticed_and_explained(world):
    world.call("run", "--no-evaluate")
    world.save("teachers/a", "train", "train_000001_000019", np.full((48, 64), 2))
    found = {d["node"]: d for d in world.json("status")}
    assert found["infer[a]"]["state"] == "stale"
    assert found["infer[b]"]["state"] == "fresh"
    assert [c["field"] for c in found["infer[a]"]["changes"]] == ["recipe.items.sha256"]


def test_workers_change_no_byte(world):
    assign = {"road": "a", "building": "a", "sidewalk": "b"}
    world.settings["policy"] = {"strategy": "manual", "assign": assign}
    world.write()
    world.call("fuse", "--upstream")
    one = files_of(world.artifact("fusion").path / "maps.zarr")
    world.settings["runtime"] |= {"workers": 3}
    world.settings["workspace"] = "other"
    world.write()
    world.call("fuse", "--upstream")
    assert files_of(world.artifact("fusion").path / "maps.zarr") == one


def test_dry_run_does_nothing(world):
    planned = {d["node"] for d in world.json("run", "--dry-run")}
    assert planned == PIPELINE | EVALUATED
    assert {p.name for p in (world.root / "work").iterdir()} == {"files.json"}


def test_a_command_names_the_command_that_is_missing(world):
    text = world.refuse("fuse")
    assert "fusion needs" in text
    assert "ensdistill" in text
    assert "--upstream" in text
    text = world.refuse("train-student")
    assert "student needs fusion" in text and "`ensdistill fuse`" in text


def test_stage_commands_one_after_the_other(world):
    assert "infer[a]: 5 of 5 written" in world.call("infer-teacher", "a")
    assert world.states()["infer[b]"] == "missing"
    world.call("infer-teacher")
    found = world.json("select-policy")
    assert set(found["policy"]["teacher"]) == set(found["certainty"]["a"]["certainty"])
    assert "of the pixels are labelled" in world.call("fuse")
    assert "student: " in world.call("train-student")
    assert {r["node"] for r in world.json("train-student")["ran"]} == set()
    assert "channel-oracle" in world.call("evaluate", "--upstream")


def test_status_names_every_node(world):
    text = world.call("status")
    for node_id in world.states():
        assert f"\n{node_id} " in text


def test_status_check_says_by_its_exit_code(world):
    world.call("status", "--check", expect=3)
    world.call("run")
    world.call("status", "--check")


TABLE = """
classes:
  - {name: ground, colour: [1, 0, 0], label_id: 0}
  - {name: other, colour: [2, 0, 0], label_id: 2}
ignored_label_ids: [IGNORED]
subsets: {first: [ground]}
"""
IGNORED = ", ".join(str(i) for i in (1, *range(3, 19)))


def own_table(world, text):
    (world.root / "table.yaml").write_text(text.replace("IGNORED", IGNORED))
    world.settings["classes"] = {"table": "table.yaml"}
    for teacher in world.settings["teachers"]:
        teacher["ids"] = "label_ids"
    world.settings["target"]["val"]["ids"] = "label_ids"
    world.settings["policy"] = {"strategy": "manual", "assign": {"ground": "a", "other": "a"}}
    world.write()


def test_what_ground_truth_means_is_part_of_the_evaluation(world):
    own_table(world, TABLE)
    world.call("run")
    assert set(world.states().values()) == {"fresh"}
    own_table(world, TABLE.replace("[IGNORED]", "[IGNORED, 77]"))
    states = world.states()
    assert states["truth@val"] == "stale"
    assert states["policy[oracle]@val"] == "stale"
    assert states["evaluation@val"] == "waiting"  # for its oracle
    assert states["student"] == "stale"


def test_subsets_are_part_of_the_evaluation_alone(world):
    own_table(world, TABLE)
    world.call("run")
    own_table(world, TABLE.replace("first: [ground]", "second: [other]"))
    assert {n for n, s in world.states().items() if s != "fresh"} == {"evaluation@val"}
    world.call("run")
    results = json.loads((world.root / "work" / "results.json").read_text())
    assert set(results["methods"][0]["miou_subsets"]) == {"second"}


def test_forgotten_digests_of_ground_truth_are_no_change(world):
    world.call("run")
    found = {d["node"]: d for d in world.json("status", "--rehash")}
    assert found["student"]["state"] == "fresh"
    assert found["evaluation@val"]["state"] == "waiting"
    assert found["truth@val"]["reason"] == "waits for the labels of val to be opened"
    assert found["policy[oracle]@val"]["reason"] == "waits for truth@val"
    assert ran(world) == {}


def test_majority_needs_no_probe_and_no_policy(world):
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    text = world.call("run")
    assert "majority" in text
    world.call("status", "--check")
    assert not any(n.startswith(("probe", "certainty")) for n in world.states())
    assert "needs no policy" in world.refuse("select-policy")


def test_manual_policy_needs_no_probe(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "car": "b"}}
    world.write()
    world.call("run")
    world.call("status", "--check")
    assert not any(n.startswith(("probe", "certainty")) for n in world.states())


def test_a_labelled_split_without_predictions_scores_the_student_alone(world):
    for teacher in world.settings["teachers"]:
        teacher["labels"].pop("val")
    world.write()
    text = world.call("run")
    assert "a: no label maps of val are declared\nb: no label maps" in text
    results = json.loads((world.root / "work" / "results.json").read_text())
    assert [m["name"] for m in results["methods"]] == ["student"]


def test_bad_ground_truth_is_refused_before_any_work(world):
    path = world.save("labels", "val", "val_000001_000019", np.full((48, 64), 26))
    text = world.refuse("run")
    assert f"{path}: value 26 on {48 * 64} pixels" in text
    assert "`ids: label_ids` on target.val" in text
    assert not list(world.root.glob("work/*/"))
    world.save("labels", "val", "val_000001_000019", np.zeros((24, 64)))
    assert "24x64 pixels" in world.refuse("run")
    world.call("check")
    world.call("run", "--no-evaluate")


def test_several_workers_count_what_they_write(world):
    world.settings["runtime"]["workers"] = 2
    world.write()
    report = world.json("infer-teacher")
    assert [r["written"] for r in report["ran"]] == [5, 5]


def test_the_conflict_rule_certainty_ranks_by_it_for_the_oracle_too(world):
    world.settings["fusion"]["conflict"] = "certainty"
    world.write()
    world.call("run")
    for node_id, policy in (
        ("fusion", "policy"),
        ("fusion[channel]@val", "policy"),
        ("fusion[channel-oracle]@val", "policy[oracle]@val"),
    ):
        ranks = world.artifact(node_id).manifest.recipe["certainty"]
        chosen = world.artifact(policy).manifest.result
        assert ranks == chosen["certainty"]
        assert any(ranks[c] is not None for c, t in chosen["teacher"].items() if t)
