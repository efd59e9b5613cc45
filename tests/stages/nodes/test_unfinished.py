"""Scores of an experiment that is not finished: what is there is scored, what is not is named."""

import json
import shutil

import numpy as np
import pytest
from opened import opened
from worlds import UNCHECKED, World

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import DataError, NotReadyError
from ensdistill.stages.checks import files as checked_files

OWN = {"teacher a", "teacher b", "fusion majority", "fusion channel-oracle"}
MODEL, STUDENT = "fusion label-model", "student student"
CHANNEL, RELIABLE = "fusion channel", "fusion channel-reliability"
PROBES = {"probe a", "probe b"}


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path, train=3, val=2, size=(32, 48))
    world.settings["fusion"] = {"method": "label-model", "window": 5}
    world.settings["label_model"] = {"fit": "train"}  # `fused` needs nothing but label maps
    for training in ("probe", "student"):
        world.settings[training] |= {"steps": 1, "crop": [16, 32]}
    world.write()
    return world


def named(methods):
    return {f"{m['kind']} {m['name']}" for m in methods}


def evaluate(world, *more):
    """Evaluate, and return what was scored and why the rest was not."""
    found = world.json("evaluate", *more)
    why = {f"{m['kind']} {m['name']}": m["why"] for m in found["not_scored"]}
    scored = [f"{m['kind']} {m['name']}" for m in found["methods"]]
    assert len(set(scored)) == len(scored)
    assert not set(scored) & set(why)
    return set(scored), why


def evaluations(world):
    """Return the methods of every published evaluation, by node."""
    found = {}
    for a in world.artifacts():
        if a.manifest.stage == "evaluation":
            found.setdefault(a.manifest.node, []).append(named(a.manifest.result["methods"]))
    return found


def test_each_step_adds_what_it_made(world):
    """From nothing but predictions to a student: whenever it is asked, it scores what is there."""
    train, model = "`ensdistill train-student --upstream`", "`ensdistill select-policy --upstream`"
    assert evaluate(world) == (
        OWN,
        {MODEL: f"label model not fitted ({model})", STUDENT: f"not trained ({train})"},
    )
    assert world.states()["evaluation@val"] == "fresh"
    world.call("infer-teacher")
    world.call("select-policy")
    assert world.states()["evaluation@val"] == "stale"
    assert evaluate(world) == (OWN | {MODEL}, {STUDENT: f"not trained ({train})"})
    world.call("fuse")
    assert evaluate(world)[1] == {STUDENT: "not trained (`ensdistill train-student`)"}
    assert "nothing to do" in world.call("evaluate")
    world.call("train-student")
    row = {d["node"]: d for d in world.json("status")}["evaluation@val"]
    assert row["state"] == "stale" and row["reason"].startswith("inputs.student:student is new")
    before = {a.path for a in world.artifacts()}
    assert evaluate(world) == (OWN | {MODEL, STUDENT}, {})
    made = {a.manifest.node for a in world.artifacts() if a.path not in before}
    assert made == {"infer[student]@val", "evaluation@val"}
    assert set(world.states().values()) == {"fresh"}
    # as if all had been made at once
    found = world.json("evaluate")
    shutil.rmtree(world.root / "work")
    world.call("run")
    again = world.json("evaluate")
    timeless = {"nodes": 0, "seconds_per_image": 0}
    assert again | timeless == found | timeless


def test_a_label_model_of_the_split_itself_needs_nothing_made_before(world):
    world.settings["label_model"] = {"fit": "fused"}
    world.write()
    assert evaluate(world)[0] == OWN | {MODEL}


def test_what_is_there_is_told_by_every_command(world, tmp_path):
    world.call("fuse", "--upstream")
    table = [tmp_path / f"t{suffix}" for suffix in (".md", ".csv", ".json")]
    text = world.call("evaluate", *(a for file in table for a in ("-o", str(file))))
    line = "student: not trained (`ensdistill train-student`)"
    assert line in text.splitlines()
    assert line in table[0].read_text().splitlines()
    assert "student" not in table[1].read_text()
    assert [m["name"] for m in json.loads(table[2].read_text())["not_scored"]] == ["student"]
    assert json.loads((world.root / "work/results.json").read_text()) == world.json("evaluate")
    assert "fresh           without infer[student]@val" in world.call("status")
    world.call("status", "--check", expect=3)  # the student is missing
    text = world.call("explain", "evaluation@val")
    assert text.startswith("evaluation@val is fresh\n")
    assert "without, as it is not there: infer[student]@val (missing)" in text
    assert "made from: truth@val (fresh), infer[a]@val (fresh)" in text
    assert line in world.call("evaluate", "--dry-run").splitlines()
    assert {d["state"] for d in world.json("evaluate", "--dry-run")} == {"fresh"}
    found = {d["node"]: d for d in world.json("run", "--dry-run")}
    assert found["evaluation@val"]["state"] == "waiting"
    assert found["evaluation@val"]["reason"] == "waits for infer[student]@val"
    world.call("report")
    page = (world.root / "work/report.html").read_text()
    assert 'id="scores"' in page and "<li>student: not trained (`ensdistill" in page
    assert "student, mIoU" not in page
    assert not [row for row in world.json("gc") if row["reason"] is None]
    world.call("run", "--no-evaluate")
    assert world.states()["evaluation@val"] == "stale"


def test_two_of_them_are_compared(world):
    world.call("fuse", "--upstream")
    world.call("evaluate")
    one = world.root / "one.yaml"
    shutil.copy(world.file, one)
    world.settings["workspace"] = "other"
    world.write()
    world.call("run")
    found = compare(one, world.file)
    assert "student" not in {m["method"] for m in found["methods"]}
    assert found["notes"] == ["one.yaml: student: not trained (`ensdistill train-student`)"]
    assert {tuple(m["delta"]["miou_present"]) for m in found["methods"]} == {(0.0, 0.0)}
    kept = compare(world.root / "work" / "results.json", world.file)
    assert any("student: not trained" in note for note in kept["notes"])


def compare(*sources):
    from click.testing import CliRunner

    done = CliRunner().invoke(cli, ["compare", *map(str, sources), "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_a_student_of_other_settings_is_not_scored(world):
    world.call("run")
    scores = world.json("evaluate")
    world.settings["student"]["lr"] = 0.02
    world.write()
    why = (
        "not trained as the file says (recipe.lr changed from 0.01 to 0.02; "
        "`ensdistill train-student`)"
    )
    assert evaluate(world) == (OWN | {MODEL}, {STUDENT: why})
    world.settings["student"]["lr"] = 0.01
    world.write()
    assert "nothing to do" in world.call("evaluate")
    assert world.json("evaluate") == scores


def test_a_student_that_is_begun_or_damaged_is_not_scored(world):
    world.call("run")
    manifest = world.artifact("student").path / "manifest.json"
    maps = world.artifact("infer[student]@val").path
    content = manifest.read_bytes()
    manifest.unlink()
    # its label maps are there, and they are those of the student that is wanted
    assert evaluate(world) == (OWN | {MODEL, STUDENT}, {})
    assert world.states()["evaluation@val"] == "fresh"
    shutil.rmtree(maps)
    assert evaluate(world) == (OWN | {MODEL, STUDENT}, {})  # counted before
    evaluation = world.artifact("evaluation@val").path
    shutil.rmtree(evaluation)
    scored, why = evaluate(world)
    assert scored == OWN | {MODEL}
    assert "begun, not finished; `ensdistill train-student`" in why[STUDENT]
    manifest.write_bytes(content[:-10])
    scored, why = evaluate(world)
    assert scored == OWN | {MODEL}
    assert why[STUDENT].startswith("not trained any more (") and "verify --repair" in why[STUDENT]
    manifest.write_bytes(content)
    assert evaluate(world) == (OWN | {MODEL, STUDENT}, {})


@pytest.mark.parametrize("made", ["infer-teacher", "select-policy", "train-student"])
def test_all_fusions_as_far_as_they_go(world, made):
    """Trains the probes that it needs, if their labels are there; never what another one makes."""
    world.settings["fusion"] = {"method": "channel", "window": 5}
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "car": "b"}}
    world.write()
    scored, why = evaluate(world, "--fusions", "all")
    assert scored == OWN
    assert set(why) == {MODEL, CHANNEL, RELIABLE, STUDENT}
    assert why[CHANNEL] == "policy not chosen (`ensdistill select-policy`)"
    again = "`ensdistill evaluate --fusions all --upstream`"
    assert why[MODEL] == f"label model not fitted ({again})"
    assert again in why[RELIABLE]
    world.call(made, *(["--upstream"] if made != "infer-teacher" else []))
    if made == "select-policy":  # by hand: it needs no labels
        world.call("infer-teacher")
    scored, why = evaluate(world, "--fusions", "all")
    expected = OWN | {MODEL, RELIABLE}
    expected |= {CHANNEL} if made != "infer-teacher" else set()
    expected |= {STUDENT} if made == "train-student" else set()
    assert scored == expected
    assert set(why) == {CHANNEL, STUDENT} - scored


def test_probes_are_scored_where_their_labels_are(world):
    scored, why = evaluate(world, "--fusions", "all")
    assert scored == OWN
    assert why.keys() == {MODEL, CHANNEL, RELIABLE, STUDENT} | PROBES
    assert why["probe a"] == "not trained (`ensdistill evaluate --fusions all --upstream`)"
    world.call("infer-teacher", "a")
    assert "not trained" in evaluate(world, "--fusions", "all")[1]["probe b"]
    assert world.states()["infer[b]"] == "missing"
    assert evaluations(world)["evaluation[all]@val"] == [{"probe a"}]
    found = {d["node"]: d for d in world.json("evaluate", "--fusions", "all", "--dry-run")}
    assert found["evaluation[all]@val"]["state"] == "fresh"
    assert "infer[probe:b]@val" not in found
    world.call("infer-teacher")
    found = {d["node"]: d for d in world.json("evaluate", "--fusions", "all", "--dry-run")}
    assert found["evaluation[all]@val"]["state"] == "waiting"
    assert evaluate(world, "--fusions", "all")[0] == OWN | {CHANNEL} | PROBES
    assert "probe[b] is fresh" in world.call("explain", "probe[b]")
    below = world.json("explain", "probe[b]")["below"]
    assert {"infer[probe:b]@val", "evaluation[all]@val"} <= set(below)


def test_all_fusions_leave_the_own_evaluation_alone(world):
    world.call("run")
    key = world.artifact("evaluation@val").manifest.fingerprint
    scored, why = evaluate(world, "--fusions", "all")
    assert why == {}
    assert scored == OWN | {MODEL, STUDENT, CHANNEL, RELIABLE} | PROBES
    assert set(world.states().values()) == {"fresh"}
    world.call("status", "--check")
    assert world.artifact("evaluation@val").manifest.fingerprint == key
    # each method is counted once
    assert evaluations(world) == {
        "evaluation@val": [OWN | {MODEL, STUDENT}],
        "evaluation[all]@val": [{CHANNEL, RELIABLE} | PROBES],
    }
    own = json.loads((world.root / "work/results.json").read_text())
    every = json.loads((world.root / "work/results-all.json").read_text())
    assert named(own["methods"]) == OWN | {MODEL, STUDENT}
    assert all(m in every["methods"] for m in own["methods"])
    assert world.json("evaluate")["methods"] == own["methods"]
    assert not [row for row in world.json("gc") if row["reason"] is None]
    world.call("report")
    page = (world.root / "work/report.html").read_text()
    assert "probe of a" in page and "channel-reliability" in page
    methods = {m["method"] for m in compare(world.file, world.file)["methods"]}
    assert {"probe a", "fusion channel-reliability"} <= methods
    # with other probes it is of the own methods alone again
    world.settings["probe"]["lr"] = 0.02
    world.write()
    assert set(world.states().values()) == {"fresh"}
    world.call("report")
    page = (world.root / "work/report.html").read_text()
    assert "probe of a" not in page and 'id="scores"' in page


def test_what_may_turn_out_to_be_whole_again_is_no_garbage(world):
    """An evaluation without its student does not make that with it garbage while it may return."""
    world.settings["fusion"]["method"] = "channel"
    world.write()
    world.call("run")
    world.settings["probe"]["lr"] = 0.02
    world.write()
    evaluate(world)  # without policy and student, which are not known
    world.settings["probe"]["lr"] = 0.01
    world.write()
    policy = world.artifact("policy").path
    shutil.rmtree(policy)  # waits: the fusion and all below may turn out to be what they were
    assert world.states()["student"] == "waiting"
    assert world.states()["evaluation@val"] == "fresh"
    world.call("gc", "--delete")
    world.call("select-policy")
    assert set(world.states().values()) == {"fresh"}
    assert "nothing to do" in world.call("run")


def test_nothing_to_score_is_refused_before_any_work(world):
    for teacher in world.settings["teachers"]:
        teacher["labels"].pop("val")
    world.write()
    text = world.refuse("evaluate")
    assert text.startswith(NotReadyError.__name__)
    assert "nothing can be scored on val yet" in text
    assert "a: no label maps of val are declared" in text
    assert "student: not trained (`ensdistill train-student --upstream`)" in text
    assert not list((world.root / "work").glob("truth/*"))
    assert evaluate(world, "--upstream")[0] == {STUDENT}


def test_teachers_without_the_split_are_named_and_so_are_the_fusions_of_the_others(world):
    world.settings["teachers"][1]["labels"].pop("val")
    world.write()
    scored, why = evaluate(world)
    assert scored == OWN - {"teacher b"}
    assert why["teacher b"] == "no label maps of val are declared"
    assert why[MODEL] == "needs the label maps of all teachers on val"
    text = world.call("evaluate")
    assert "channel-oracle and majority: fused from a alone" in text
    assert compare(world.file, world.file)["teachers"] == {"a": [True] * 2, "b": [True] * 2}
    kept = world.root / "work" / "results.json"
    assert compare(kept, kept)["teachers"] == {"a": [True] * 2, "b": [True] * 2}


@pytest.mark.parametrize("lacking", [(), ("a", "b")])
def test_ground_truth_without_a_label_is_never_scored(world, monkeypatch, lacking):
    """`check` may refuse it too: the evaluation must not rely on that."""
    for (split, name), label in world.truth.items():
        if split == "val":
            world.save("labels", split, name, np.full_like(label, 255))
    for teacher in world.settings["teachers"]:
        if teacher["name"] in lacking:
            teacher["labels"].pop("val")
    world.write()
    monkeypatch.setattr(checked_files, "check", lambda *_, **__: UNCHECKED)
    text = world.refuse("evaluate", "--upstream")
    assert text.startswith(DataError.__name__)
    assert "the ground truth has no labelled pixel" in text
    assert not list((world.root / "work").glob("evaluation/*/manifest.json"))
    if not lacking:
        world.call("infer-teacher")
        assert "the ground truth has no labelled pixel" in world.refuse("ablate")


def test_a_damaged_evaluation_of_what_was_there_is_repaired(world):
    evaluate(world)
    manifest = world.artifact("evaluation@val").path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-10])
    assert world.states()["evaluation@val"] == "corrupt"
    assert "verify --repair" in world.refuse("evaluate")
    world.call("verify", "--repair")
    assert world.states()["evaluation@val"] == "fresh"


def test_what_all_fusions_made_is_repaired_too(world):
    evaluate(world, "--fusions", "all", "--upstream")
    before = world.json("evaluate", "--fusions", "all")
    (chunk,) = (world.root / "work").glob("infer/probe-a-val-*/maps.zarr/c.1.0.0")
    chunk.write_bytes(b"spoilt")
    (folder,) = (world.root / "work").glob("evaluation/all-val-*")
    (folder / "manifest.json").write_bytes(b"{")
    world.call("verify", "--repair")
    assert "nothing to do" in world.call("evaluate", "--fusions", "all")
    timeless = {"nodes": 0, "seconds_per_image": 0}
    assert world.json("evaluate", "--fusions", "all") | timeless == before | timeless


def test_another_split_is_left_alone(world):
    world.settings["target"]["test"] = world.settings["target"]["val"]
    for teacher in world.settings["teachers"]:
        teacher["labels"]["test"] = teacher["labels"]["val"]
    world.write()
    evaluate(world, "--fusions", "all", "--split", "val", "--upstream")
    assert not [a.manifest.node for a in world.artifacts() if a.manifest.node.endswith("@test")]
    more = ("--fusions", "all", "--split", "test", "--dry-run")
    planned = {d["node"] for d in world.json("evaluate", *more)}
    assert {"evaluation@test", "evaluation[all]@test", "probe[a]", "policy[reliability]"} <= planned
    assert not [node for node in planned if node.endswith("@val")]


def test_status_and_explain_open_no_ground_truth(world):
    evaluate(world)
    with opened() as paths:
        world.call("status")
        world.call("explain", "evaluation@val")
        world.call("explain", "evaluation[all]@val")
    assert not [p for p in paths if "/labels/" in p]
