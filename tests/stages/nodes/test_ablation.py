"""Which teachers help: against an experiment with just these teachers, and the files themselves."""

import copy
import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from faults import assert_every_kill_is_made_good
from PIL import Image
from told import Told
from worlds import World

from ensdistill.data.decoding import read_values
from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.node import Work
from ensdistill.stages import graph
from ensdistill.stages.demo.styles import CLASSES
from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import majority
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.functional.spoiling import relabel_segments
from ensdistill.stages.nodes.ablation import plan
from ensdistill.stages.nodes.ablation import run as ablation
from ensdistill.stages.nodes.ablation.compositions import (
    as_items,
    compositions,
    wanted,
    without_one,
)
from ensdistill.stages.nodes.label_model import plan as label_model
from ensdistill.stages.reading.tables import rivals_note

TEACHERS = "abcd"


def crowd(root):
    """Four teachers: c confuses cars and trucks, and d sees everything a bit to the right."""
    world = World(root)
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    world.add_teacher("d", lambda label: np.roll(label, 6, axis=1))
    world.settings["fusion"] = {"method": "label-model"}
    world.write()
    return world


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    world = crowd(tmp_path_factory.mktemp("ablated"))
    world.call("ablate", "--upstream")
    return world, json.loads((world.root / "work" / "ablation.json").read_text())


@pytest.fixture
def again(ablated, tmp_path):
    """A copy of it that can be changed."""
    world = copy.copy(ablated[0])
    shutil.copytree(world.root, tmp_path / "copy")
    world.root, world.truth = tmp_path / "copy", dict(world.truth)
    world.file, world.settings = world.root / "experiment.yaml", copy.deepcopy(world.settings)
    return world


@pytest.fixture
def made(monkeypatch):
    """The compositions that are computed, as they are journalled."""
    found, record = [], Draft.record

    def noted(draft, item_id, **fields):
        if draft.path.parent.name == "ablation":
            found.append(item_id)
        record(draft, item_id, **fields)

    monkeypatch.setattr(Draft, "record", noted)
    return found


def ids_of(names):
    return [item.id for item in as_items(names)]


def in_json(world):
    return json.loads((world.root / "work" / "ablation.json").read_text())


def of_a_new_workspace(world):
    """Return what is found without anything to take over."""
    shutil.copytree(world.root / "work/infer", world.root / "new/infer")
    world.settings["workspace"] = "new"
    world.write()
    return world.json("ablate", "--upstream")


def maps_of(world, split):
    """Return image id to the maps of a, b, c, d and the three bad teachers."""
    found = {}
    for _, image_id in (key for key in world.truth if key[0] == split):
        files = [world.root / f"teachers/{t}/{split}/{image_id}.png" for t in TEACHERS]
        maps = [read_values(file, palette=False) for file in files]
        seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest(), "big")
        bad = relabel_segments(maps[0], 0.4, 19, np.random.default_rng(seed))
        # road is the most frequent class, d the worst teacher
        found[image_id] = np.stack([*maps, bad, np.zeros_like(bad), maps[3]])
    return found


def scores(world, fuse):
    """Return three figures of what `fuse` makes of the maps of each image of val.

    The mIoU in percent, over how many classes it is, and the mIoU over those in the ground truth.
    """
    total = np.zeros((19, 20), np.int64)
    for image_id, maps in maps_of(world, "val").items():
        total += confusion(world.truth["val", image_id], fuse(maps)[None], 19)[0]
    found, there = iou(total), present_in(world)
    return 100 * mean_iou(found), np.isfinite(found).sum(), 100 * np.mean(found[there])


def present_in(world):
    """Return the train ids that occur in the ground truth of val."""
    labels = [label for (split, _), label in world.truth.items() if split == "val"]
    return sorted({v for label in labels for v in np.unique(label)} - {255})


def test_structure(ablated):
    world, found = ablated
    assert found["split"] == "val"
    assert (found["images"], found["fitted_images"]) == (3, 3)
    assert list(found["teachers"]) == list(TEACHERS)
    assert [row["added"] for row in found["robustness"]] == [None, "segments", "constant", "copy"]
    assert [row["of"] for row in found["robustness"]] == [None, "a", "road", "d"]
    wanted = [list(c) for size in (3, 4) for c in combinations(TEACHERS, size)]
    assert [row["teachers"] for row in found["flexibility"]["compositions"]] == wanted
    assert world.json("ablate") == found
    with Image.open(world.root / "work" / "ablation.png") as chart:
        assert min(chart.size) > 300


@pytest.mark.slow
def test_a_composition_is_an_experiment_with_these_teachers_alone(ablated, tmp_path):
    _, found = ablated
    alone = crowd(tmp_path)
    alone.settings["teachers"] = [t for t in alone.settings["teachers"] if t["name"] in "acd"]
    alone.settings["student"]["steps"] = 1  # nobody looks at it
    alone.write()
    scores = {m["name"]: m["miou"] for m in alone.json("evaluate", "--upstream")["methods"]}
    row = next(r for r in found["flexibility"]["compositions"] if r["teachers"] == list("acd"))
    # what is published of the label model is rounded
    assert row["label-model"] == pytest.approx(scores["label-model"], abs=1e-3)
    assert row["majority"] == pytest.approx(scores["majority"])
    assert row["best"] == max("acd", key=scores.get)
    assert row["best_miou"] == pytest.approx(scores[row["best"]])


@pytest.mark.parametrize("bad", range(4))
def test_bad_teachers_are_what_they_say(ablated, bad):
    world, found = ablated
    row, size = found["robustness"][bad], len(TEACHERS) + bad
    assert row["bad"] == bad
    votes = [labelmodel.count(maps[:size], 19) for maps in maps_of(world, "val").values()]
    model = labelmodel.fit(labelmodel.join(votes), 19)
    expected = {
        "label-model": scores(world, lambda maps: labelmodel.fuse(maps[:size], model)[0]),
        "majority": scores(world, lambda maps: majority(maps[:size], 19)),
    }
    if bad:
        expected["miou"] = scores(world, lambda maps: maps[size - 1])
    present = found["present"]["robustness"][bad]
    for key, (miou, classes, there) in expected.items():
        assert (row[key], present[key]) == pytest.approx((miou, there))
        assert row["classes"][key] == classes
    methods = expected.keys() - {"miou"}
    for rows in (found["robustness"], found["present"]["robustness"]):
        assert rows[bad]["loss"] == {m: rows[0][m] - rows[bad][m] for m in methods}


def test_means_over_classes_that_are_not_there_are_told_from_those_over_what_is(ablated):
    """Random segments are of any class, so that the means of this world are over different ones."""
    world, found = ablated
    there = present_in(world)
    assert found["classes_present"] == [CLASSES[c] for c in there]
    counts = {row["added"]: row["classes"]["miou"] for row in found["robustness"]}
    assert counts["segments"] == 19 > len(there) == counts["copy"]
    segments = found["robustness"][1]
    text = world.call("ablate")
    whole, _, present = text.partition(f"Over those {len(there)} alone:")
    assert f" {segments['miou']:.1f} (19) " in whole
    assert f"({len(there)})" not in text
    assert "compositions, mIoU, " in whole and "mIoU present" not in whole
    assert "compositions, mIoU present, " in present and "(19)" not in present
    assert f" {found['present']['robustness'][1]['miou']:.1f} " in present
    # c takes cars for trucks, of which there are none
    rows, others = (f["flexibility"]["compositions"] for f in (found, found["present"]))
    for row, other in zip(rows, others, strict=True):
        members = [TEACHERS.index(t) for t in row["teachers"]]
        miou, classes, mean = scores(world, lambda maps, of=members: majority(maps[of], 19))
        assert (row["majority"], other["majority"]) == pytest.approx((miou, mean))
        assert row["classes"]["majority"] == classes
        best = TEACHERS.index(row["best"])
        assert row["classes"]["best_miou"] == scores(world, lambda maps, of=best: maps[of])[1]
        alone = {t: scores(world, lambda maps, of=k: maps[of])[2] for k, t in enumerate(TEACHERS)}
        assert other["best"] == max(row["teachers"], key=alone.get)
        assert other["best_miou"] == pytest.approx(alone[other["best"]])
    assert {n for row in rows for n in row["classes"].values()} == {18, 19}
    flexibility = found["present"]["flexibility"]
    gains = [other["majority"] - other["best_miou"] for other in others]
    assert flexibility["margin"]["majority"] == pytest.approx(np.mean(gains))


def test_where_all_means_are_over_what_is_there_one_table_is_enough(world, monkeypatch):
    monkeypatch.setattr(
        "ensdistill.stages.nodes.ablation.run.SHARE", 0.0
    )  # segments that are not relabelled
    text = world.call("ablate", "--upstream")
    found = in_json(world)
    count = len(present_in(world))
    assert f"each mIoU is over the {count} classes in the ground truth of val" in text
    assert "mIoU present" not in text
    for key in ("teachers", "flexibility"):
        assert found["present"][key] == found[key]


def test_shares_and_margins_follow_from_the_compositions(ablated):
    _, found = ablated
    flexibility = found["flexibility"]
    for method in ("label-model", "majority"):
        gains = [r[method] - r["best_miou"] for r in flexibility["compositions"]]
        assert flexibility[method] == np.mean([g >= 0 for g in gains])
        assert flexibility["margin"][method] == pytest.approx(np.mean(gains))
    assert flexibility["compositions"][-1]["label-model"] == found["robustness"][0]["label-model"]


def test_without_a_teacher_stands_what_the_composition_of_the_others_has(ablated):
    _, whole = ablated
    for found in (whole, whole["present"]):
        by_members = {"".join(r["teachers"]): r for r in found["flexibility"]["compositions"]}
        rows = found["leave_one_out"]["teachers"]
        assert [row["teacher"] for row in rows] == list(TEACHERS)
        for row in rows:
            others = by_members[TEACHERS.replace(row["teacher"], "")]
            assert row["miou"] == found["teachers"][row["teacher"]]
            for m in ablation.METHODS:
                assert row[m] == others[m]
                assert row["gives"][m] == by_members[TEACHERS][m] - others[m]
                if found is whole:
                    assert row["classes"][m] == others["classes"][m]
        for m in ablation.METHODS:
            weakest = min(rows, key=lambda row, m=m: row["gives"][m])
            told = {"teacher": weakest["teacher"], "gives": weakest["gives"][m]}
            assert found["leave_one_out"]["weakest"][m] == told
        gains = [r["label-model"] - r["majority"] for r in by_members.values()]
        assert found["flexibility"]["on_majority"] == {
            "share": np.mean([g >= 0 for g in gains]),
            "margin": pytest.approx(np.mean(gains)),
        }
    bad = {row["added"]: row["classes"]["miou"] for row in whole["robustness"]}
    assert whole["leave_one_out"]["teachers"][3]["classes"]["miou"] == bad["copy"]  # of d


def test_what_a_teacher_gives_is_counted_by_hand():
    names = ["one", "two", "three", "four"]
    alone = {(0,): 50.0, (1,): 60.0, (2,): 55.0, (3,): 20.0, (4,): 1.0, (5,): 2.0}
    scores = {members: np.array([miou, miou]) for members, miou in alone.items()}
    scores |= {
        (1, 2, 3): np.array([61.0, 52.0]),
        (0, 2, 3): np.array([58.0, 50.0]),
        (0, 1, 3): np.array([64.0, 55.0]),
        (0, 1, 2): np.array([66.5, 67.0]),
        (0, 1, 2, 3): np.array([66.0, 57.0]),
        (0, 1, 2, 3, 4): np.array([65.0, 50.0]),
        (0, 1, 2, 3, 4, 5): np.array([65.0, 49.0]),
        (0, 1, 2, 3, 4, 5, 6): np.array([64.0, 48.0]),
    }
    found = ablation._shown(names, scores, ["one", "road", "four"], "miou")
    rows = found["leave_one_out"]["teachers"]
    assert [row["miou"] for row in rows] == [50.0, 60.0, 55.0, 20.0]
    assert [row["label-model"] for row in rows] == [61.0, 58.0, 64.0, 66.5]
    assert [row["gives"]["label-model"] for row in rows] == [5.0, 8.0, 2.0, -0.5]
    assert [row["gives"]["majority"] for row in rows] == [5.0, 7.0, 2.0, -10.0]
    assert found["leave_one_out"]["weakest"] == {
        "label-model": {"teacher": "four", "gives": -0.5},
        "majority": {"teacher": "four", "gives": -10.0},
    }
    # 9, 8, 9, -0.5 and 9 points in the compositions
    assert found["flexibility"]["on_majority"] == {"share": 0.8, "margin": pytest.approx(6.9)}
    assert found["beside"] == {
        "method": "label-model",
        "score": "miou",
        "value": 66.0,
        "majority": {"value": 57.0, "difference": 9.0},
        "teacher": {"name": "two", "value": 60.0, "difference": 6.0},
    }


@pytest.mark.parametrize("teachers", range(1, 7))
def test_whoever_is_left_out_the_others_are_a_composition(teachers):
    found = without_one(teachers)
    assert set(found) <= set(compositions(teachers))
    everyone = set(range(teachers))
    assert [everyone - set(members) for members in found] == [
        {t} for t in range(teachers if teachers > 3 else 0)
    ]


def test_none_of_three_teachers_is_left_out(world):
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    text = world.call("ablate", "--upstream")
    assert "none is left out: of fewer than four teachers" in text
    assert "of 1 compositions" in text
    found = in_json(world)
    for part in (found, found["present"]):
        none = {"label-model": None, "majority": None}
        assert part["leave_one_out"] == {"teachers": [], "weakest": none}
        assert part["flexibility"]["on_majority"]["share"] in (0.0, 1.0)


def test_what_an_earlier_version_kept_is_told_as_well(again):
    """All that is told of compositions follows from what is kept of them."""
    found = in_json(again)
    (made,) = (a.manifest.result for a in again.artifacts() if a.manifest.node == "ablation@val")
    assert made.keys() == {"images", "fitted_images", "teachers", "robustness", "flexibility"}
    assert made["flexibility"].keys() == {"compositions", "label-model", "majority", "margin"}
    assert made["teachers"] == found["teachers"]


def test_one_more_teacher_asks_only_for_compositions_with_it(again, made):
    again.call("ablate")  # so that the copy's labels are known
    again.add_teacher("bb", lambda label: np.where(label == 2, 0, label))
    text = again.call("explain", "ablation@val")
    assert "15 compositions are new: bb, a,b,bb, " in text
    again.call("ablate", "--upstream")
    new = ids_of(["a", "b", "bb", "c", "d"])
    assert made == [i for i in new if "bb" in i.split(",") or "(" in i]
    manifests = [a.manifest for a in again.artifacts() if a.manifest.node == "ablation@val"]
    manifest = max(manifests, key=lambda m: m.finished)
    assert (manifest.written, manifest.reused) == (len(made), len(new) - len(made)) == (17, 9)
    found = in_json(again)
    made.clear()
    assert of_a_new_workspace(again) == found
    assert made == new


def test_one_teacher_less_asks_only_for_the_bad_ones(again, made):
    again.settings["teachers"].pop(1)
    again.write()
    again.call("ablate")
    assert made == [i for i in ids_of(["a", "c", "d"]) if "(" in i]
    assert of_a_new_workspace(again) == in_json(again) | {"split": "val"}


@pytest.mark.parametrize(("name", "order"), [("aa", "abcd"), ("z", "bcda")])
def test_a_new_name_asks_only_for_what_ties_by_name_decide(ablated, again, made, name, order):
    again.settings["teachers"][0]["name"] = name
    again.write()
    again.call("ablate")
    names = [name if t == "a" else t for t in order]
    moved = [i for i in ids_of(names) if (name in i.split(",") and i != name) or "(" in i]
    assert made == ([] if order == "abcd" else moved)
    found = in_json(again)
    assert list(found["teachers"]) == names
    if order == "abcd":
        text = json.dumps(ablated[1])
        assert json.loads(text.replace('"a"', f'"{name}"')) == found
    else:
        assert of_a_new_workspace(again) == found


@pytest.mark.parametrize("after", [0, 6, 9, 13])
def test_what_was_done_before_an_interruption_is_kept(ablated, again, made, monkeypatch, after):
    shutil.rmtree(again.root / "work" / "ablation")
    monkeypatch.setattr(ablation, "_TOGETHER", 1)
    monkeypatch.setattr(ablation, "_SECONDS", 0.0)
    record = Draft.record

    def interrupted(draft, item_id, **fields):
        if len(made) == after:
            raise KeyboardInterrupt
        record(draft, item_id, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "record", interrupted)
        again.call("ablate", expect=1)
    every = ids_of(TEACHERS)
    assert made == every[:after]
    (row,) = (r for r in again.json("status") if r["node"] == "ablation@val")
    assert (row["state"], row["done"], row["total"]) == ("partial", after, len(every))
    assert f"compute {len(every) - after} compositions" in again.call("ablate", "--dry-run")
    again.call("ablate")
    assert made == every
    assert in_json(again) == ablated[1]


@pytest.mark.parametrize(("compositions", "steps"), [(1, 5), (4, 7), (9, 3), (3, 3)])
def test_progress_counts_compositions(compositions, steps):
    told = []

    class Shown:
        def advance(self, count, note):
            told.append(count)

    batch = ablation._Steps(Shown(), compositions, steps)
    for _ in range(steps):
        batch.advance()
    assert sum(told) == compositions
    assert 0 not in told  # a rate of nothing tells of no remaining time


@pytest.mark.slow
def test_a_kill_at_any_step_ends_in_the_same_bytes(ablated):
    assert_every_kill_is_made_good(ablated[0], "ablation", "ablate", every=3)


@pytest.mark.parametrize("teachers", range(1, 7))
def test_no_two_compositions_share_a_key_or_an_id(teachers):
    items = as_items([f"t{k}" for k in range(teachers)])
    assert len(items) == len(wanted(teachers)) == len({item.id for item in items})
    contents = {f"{kind}{k:02}": f"{kind}{k}" for kind in ("train", "split") for k in range(9)}
    contents["truth"] = "truth"
    keys = Work(Told(), items=items).item_keys("ablation", 1, {}, contents)
    assert len({*keys.values()}) == len(items)
    for item in items:
        members = [int(t[1:]) for t in item.id.split(",") if t[0] == "t"]
        bad = "(" in item.id
        read = {role for role in item.reads.values() if role.startswith("split")}
        assert read == {f"split{k:02}" for k in (range(teachers) if bad else members)}


def test_too_many_teachers_are_refused_before_any_planning(again, monkeypatch):
    monkeypatch.setattr("ensdistill.cli.commands.ablate.MOST", 3)
    monkeypatch.setattr(graph, "MOST", 3)
    monkeypatch.setattr(plan, "as_items", None)
    text = again.refuse("ablate")
    assert "4 teachers have 16 compositions; at most 3 can be compared" in text
    assert "ablation@val" not in again.states()


def test_status_asks_for_no_ablation(again):
    assert again.states()["ablation@val"] == "waiting"  # a copy's labels were not looked at yet
    again.call("ablate")
    assert again.states()["ablation@val"] == "fresh"
    again.settings["teachers"][0]["name"] = "aa"
    again.write()
    assert again.states()["ablation@val"] == "stale"
    shutil.rmtree(again.root / "work" / "ablation")
    assert "ablation@val" not in again.states()


def test_one_teacher_is_its_own_fusion(world):
    world.settings["teachers"].pop()
    world.write()
    found = world.json("ablate", "--upstream")
    without, *_ = found["robustness"]
    assert without["label-model"] == without["majority"] == found["teachers"]["a"]
    assert len(found["robustness"]) == 4


def test_it_is_made_once_and_is_no_garbage(ablated):
    world, _ = ablated
    files = {p: p.stat().st_mtime_ns for p in (world.root / "work").glob("ablation.*")}
    assert len(files) == 2
    text = world.call("ablate")
    assert "nothing to do" in text
    words = ("segments", "majority loses", "best member", "of 5 compositions", "gives majority")
    for told in (*words, "label-model is at or above majority in"):
        assert told in text
    found = in_json(world)
    for m, weakest in found["leave_one_out"]["weakest"].items():
        verb = "costs" if weakest["gives"] < 0 else "gives"
        told = f"of {m}, {weakest['teacher']}, {verb} it {abs(weakest['gives']):.2f} mIoU\n"
        assert f"the weakest real teacher {told}" in text
    assert rivals_note(found["beside"]) in text and rivals_note(found["present"]["beside"]) in text
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert not [row for row in world.json("gc") if row["reason"] is None]
    assert world.states()["ablation@val"] == "fresh"
    assert [row["state"] for row in world.json("ablate", "--dry-run")] == ["fresh"] * 6


def test_other_truth_or_another_teacher_ask_for_it_again(tmp_path, monkeypatch):
    world = crowd(tmp_path)
    world.call("ablate", "--upstream")

    def ran():
        return [row["node"] for row in world.json("ablate", "--dry-run") if row["state"] != "fresh"]

    assert ran() == []
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    assert ran() == []
    world.settings["teachers"][0]["name"] = "z"  # the result tells of teachers by name
    world.write()
    assert ran() == ["ablation@val"]
    world.call("ablate")
    world.save("labels", "val", "val_000001_000019", np.zeros((48, 64)))
    world.call("ablate", "--rehash")
    assert sum(a.manifest.node == "ablation@val" for a in world.artifacts()) == 3
    assert ran() == []
    monkeypatch.setattr(label_model, "STAGE", replace(label_model.STAGE, version=99))
    assert ran() == ["ablation@val"]


def test_neither_workers_nor_any_order_change_anything(ablated, tmp_path, monkeypatch):
    _, found = ablated
    world = crowd(tmp_path)
    world.settings["teachers"].reverse()
    world.settings["runtime"]["workers"] = 2
    world.write()
    begun = []

    def backwards(items, work, done, *, workers, progress):
        begun.append(workers)
        work = pickle.loads(pickle.dumps(work))  # as a worker process gets it
        for item in reversed(items):
            done(item, work(item))

    monkeypatch.setattr("ensdistill.stages.nodes.ablation.run.for_each", backwards)
    world.call("ablate", "--upstream")
    assert set(begun) == {2}
    assert json.loads((world.root / "work" / "ablation.json").read_text()) == found


def test_two_teachers_have_no_compositions(world):
    text = world.call("ablate", "--upstream")
    assert "none is left out" in text and "on the best teacher (" in text
    assert "at least three teachers: there are none" in text
    found = world.json("ablate")
    assert found["flexibility"]["compositions"] == []
    assert found["flexibility"]["label-model"] is None
    assert len(found["robustness"]) == 4


def test_a_split_that_a_teacher_lacks_is_refused(world):
    world.settings["teachers"][1]["labels"].pop("val")
    world.write()
    text = world.refuse("ablate", "--upstream")
    assert text.startswith("ConfigError") and "without label maps on val: b" in text
    assert not (world.root / "work" / "ablation.json").exists()
    world.call("infer-teacher")
    assert not [row for row in world.json("gc") if row["reason"] is None]


def test_a_further_split_has_files_of_its_own(world):
    world.settings["target"]["test"] = world.settings["target"]["val"]
    for teacher in world.settings["teachers"]:
        teacher["labels"]["test"] = teacher["labels"]["val"]
    world.write()
    assert "no --split was given" in world.refuse("ablate", "--upstream")
    world.call("ablate", "--upstream", "--split", "test")
    names = {p.name for p in (world.root / "work").glob("ablation*.*")}
    assert names == {"ablation-test.json", "ablation-test.png"}
