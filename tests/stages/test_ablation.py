"""Which teachers help: against an experiment with just these teachers, and the files themselves."""

import hashlib
import json
import pickle
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from worlds import World

from ensdistill.data.pictures import read_values
from ensdistill.stages import graph
from ensdistill.stages.functional import labelmodel
from ensdistill.stages.functional.fusion import majority
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.functional.spoiling import relabel_segments

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


def score(world, fuse):
    """Return the mIoU of what `fuse` makes of the maps of each image of val, in percent."""
    total = np.zeros((19, 20), np.int64)
    for image_id, maps in maps_of(world, "val").items():
        total += confusion(world.truth["val", image_id], fuse(maps)[None], 19)[0]
    return 100 * mean_iou(iou(total))


def test_structure(ablated):
    world, found = ablated
    assert found["split"] == "val"
    assert (found["images"], found["train_images"]) == (3, 5)
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
    votes = [labelmodel.count(maps[:size], 19) for maps in maps_of(world, "train").values()]
    model = labelmodel.fit(labelmodel.join(votes), 19)
    expected = {
        "label-model": score(world, lambda maps: labelmodel.fuse(maps[:size], model)[0]),
        "majority": score(world, lambda maps: majority(maps[:size], 19)),
    }
    assert {m: row[m] for m in expected} == pytest.approx(expected)
    without = found["robustness"][0]
    assert row["loss"] == {m: without[m] - row[m] for m in expected}
    if bad:
        assert row["miou"] == pytest.approx(score(world, lambda maps: maps[size - 1]))


def test_shares_and_margins_follow_from_the_compositions(ablated):
    _, found = ablated
    flexibility = found["flexibility"]
    for method in ("label-model", "majority"):
        gains = [r[method] - r["best_miou"] for r in flexibility["compositions"]]
        assert flexibility[method] == np.mean([g >= 0 for g in gains])
        assert flexibility["margin"][method] == pytest.approx(np.mean(gains))
    assert flexibility["compositions"][-1]["label-model"] == found["robustness"][0]["label-model"]


def test_it_is_made_once_and_is_no_garbage(ablated):
    world, _ = ablated
    files = {p: p.stat().st_mtime_ns for p in (world.root / "work").glob("ablation.*")}
    assert len(files) == 2
    text = world.call("ablate")
    assert "nothing to do" in text
    for words in ("segments", "majority loses", "best member", "of 5 compositions"):
        assert words in text
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert not [row for row in world.json("gc") if row["reason"] is None]
    assert world.states()["ablation@val"] == "fresh"
    assert [row["state"] for row in world.json("ablate", "--dry-run")] == ["fresh"] * 5


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
    monkeypatch.setattr(graph, "VERSIONS", {**graph.VERSIONS, "label-model": 99})
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

    monkeypatch.setattr("ensdistill.stages.ablation.for_each", backwards)
    world.call("ablate", "--upstream")
    assert set(begun) == {2}
    assert json.loads((world.root / "work" / "ablation.json").read_text()) == found


def test_two_teachers_have_no_compositions(world):
    text = world.call("ablate", "--upstream")
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
