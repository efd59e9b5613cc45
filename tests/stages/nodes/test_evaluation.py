"""Scores: against a naive count from the files themselves."""

import json
import math

import numpy as np
import oracles
import pytest
from worlds import World

from ensdistill.data.decoding import read_values
from ensdistill.pipeline.plan import plan
from ensdistill.stages.demo.styles import CLASSES
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.reading.results import between_teachers
from ensdistill.stages.reading.tables import between_notes, rivals_note


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
    node = {"stage": "infer", "of": "a", "split": "val", "computed": 3, "reused": 0}
    [took] = [n["seconds"] for n in found["nodes"] if node.items() <= n.items()]
    assert took > 0
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


def truth_of(world):
    """Return the ground truth of val as it was saved."""
    return [label for (split, _), label in world.truth.items() if split == "val"]


@pytest.fixture(scope="module")
def imagined(tmp_path_factory):
    """A world of teachers that see classes that are not there, and one that sees little at all."""
    world = World(tmp_path_factory.mktemp("imagined"))
    for (split, name), label in world.truth.items():
        world.truth[split, name] = np.where(label > 13, 255, label)  # no trucks nor what follows
        if split == "val":
            world.save("labels", split, name, world.truth[split, name])
    present = {int(v) for label in truth_of(world) for v in np.unique(label)} - {255}
    world.teacher("a", lambda label: np.where(label == 0, 14, label))
    world.teacher("b", lambda label: np.where(label == 0, 15, label))
    world.add_teacher("c", lambda label: label)
    world.add_teacher("little", lambda label: np.where(label > 2, 255, label))
    world.settings["fusion"] = {"method": "label-model"}
    world.write()
    world.call("infer-teacher")
    world.call("select-policy")
    return world, sorted(present), CLASSES[14:16], world.json("evaluate")


def test_means_are_over_the_classes_that_they_say(imagined):
    world, present, (first, second), found = imagined
    assert found["classes_present"] == [CLASSES[c] for c in present]
    by_name = {m["name"]: m for m in found["methods"]}
    truth = [(k, label) for k, label in world.truth.items() if k[0] == "val"]
    for name in ("a", "b", "c", "little"):
        predicted = [
            read_values(world.root / f"teachers/{name}/val/{image_id}.png", palette=False)
            for (_, image_id), _ in truth
        ]
        pairs = list(zip([label for _, label in truth], predicted, strict=True))
        expected = {c: naive_iou(pairs, c) for c in range(len(CLASSES))}
        scored = [v for v in expected.values() if v is not None]
        m = by_name[name]
        assert m["miou_present"] == pytest.approx(np.mean([expected[c] for c in present]))
        assert m["miou"] == pytest.approx(np.mean(scored))
        assert m["miou_classes"] == len(scored)
    # as many classes, but others
    assert by_name["a"]["miou_classes"] == by_name["b"]["miou_classes"] == len(present) + 1
    assert by_name["a"]["iou"][first] == by_name["b"]["iou"][second] == 0
    assert by_name["a"]["miou"] < by_name["a"]["miou_present"]
    assert by_name["c"]["miou"] == by_name["c"]["miou_present"] == 100


def test_the_table_says_over_which_classes_its_means_are(imagined):
    world, present, (first, second), found = imagined
    lines = world.call("evaluate").splitlines()
    names = next(line for line in lines if line.startswith("class ")).split()[1:]
    at = {line[:28].strip(): k for k, line in enumerate(lines)}

    def row(label, after=0):
        cells = lines[at[label] + after].rsplit(maxsplit=len(names))[-len(names) :]
        return dict(zip(names, cells, strict=True))

    miou = row("mIoU")
    assert miou == {m["name"]: f"{m['miou']:.1f}" for m in found["methods"]}
    assert lines[at["mIoU"] + 1].startswith("  over classes ")
    counts = {m["name"]: str(m["miou_classes"]) for m in found["methods"]}
    assert row("mIoU", 1) == counts
    assert row("mIoU present") == {m["name"]: f"{m['miou_present']:.1f}" for m in found["methods"]}
    assert not lines[at["mIoU present"] + 1].startswith("  over")
    # of the 19 classes it covers few: others are left out of this mean, and not wrong in it
    assert row("mIoU where covered")["little"] == "100.0"
    assert row("mIoU where covered", 1)["little"] == str(len([c for c in present if c <= 2]))
    (note,) = (line for line in lines if line.startswith("mIoU present is over "))
    assert f"over the {len(present)} classes in the ground truth of val" in note
    assert f"{first} (a" in note and f"{second} (b" in note
    # and what is compared is compared over the same
    assert rivals_note(found["beside"]) in lines
    assert " on the best teacher (c, 100.0)" in rivals_note(found["beside"])
    oracle = next(m["miou_present"] for m in found["methods"] if m["name"] == "channel-oracle")
    regrets = {m["name"]: f"{oracle - m['miou_present']:.1f}" for m in found["methods"]}
    assert row("regret, mIoU present") == regrets
    shares = {m["name"]: f"{100 * m['coverage']:.1f}" for m in found["methods"]}
    assert row("coverage of labelled pixels") == shares


def test_majority_and_the_best_teacher_stand_beside_the_fusion(imagined):
    """By what is scored anyway: no flag, and no training."""
    world, _, _, found = imagined
    by_name = {m["name"]: m["miou_present"] for m in found["methods"]}
    own, majority = by_name["label-model"], by_name["majority"]
    assert found["beside"] == {
        "method": "label-model",
        "score": "miou_present",
        "value": own,
        "majority": {"value": majority, "difference": own - majority},
        "teacher": {"name": "c", "value": 100.0, "difference": own - 100},
    }
    assert not [a for a in world.artifacts() if a.manifest.stage in ("probe", "student")]
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    assert f"<li>{rivals_note(found['beside'])}</li>" in page
    assert f"; majority {majority:.1f}; best teacher (c) 100.0</small>" in page


@pytest.mark.parametrize("method", ["majority", "channel"])
def test_beside_majority_stands_the_best_teacher_and_beside_nothing_nothing(world, method):
    world.settings["fusion"] = {"method": method}
    world.write()
    world.call("infer-teacher")
    found = world.json("evaluate")  # no policy is chosen
    text = world.call("evaluate")
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    if method == "channel":
        assert found["beside"] is None
        assert "best teacher" not in text and "; best teacher (" not in page
        return
    by_name = {m["name"]: m["miou_present"] for m in found["methods"]}
    best = max("ab", key=by_name.get)
    difference = by_name["majority"] - by_name[best]
    assert found["beside"]["majority"] is None
    assert found["beside"]["teacher"] == {
        "name": best,
        "value": by_name[best],
        "difference": difference,
    }
    assert f": {difference:+.1f} on the best teacher ({best}, {by_name[best]:.1f})" in text
    assert f"; best teacher ({best}) {by_name[best]:.1f}</small>" in page
    assert "; majority " not in page


def test_the_report_says_over_which_classes_its_means_are(imagined):
    world, present, (first, _), found = imagined
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    a = next(m for m in found["methods"] if m["name"] == "a")
    assert f"{a['miou']:.2f} <small>of {a['miou_classes']}</small>" in page
    own = next(m for m in found["methods"] if m["name"] == "label-model")
    tile = f"{own['miou_present']:.1f}<small>percent over the {len(present)} classes in the ground"
    assert tile in page
    assert f"<li>mIoU present is over the {len(present)} classes" in page
    assert f"{first} (a" in page
    assert '<span class="best">100.00</span>' in page  # of mIoU present, none of mIoU


def test_estimates_say_over_how_many_classes_they_are(imagined):
    world, _, _, found = imagined
    for teacher, of in found["estimates"].items():
        iou = next(m["iou"] for m in found["methods"] if m["name"] == teacher)
        expected = found["reliability"][teacher]
        both = [c for c in CLASSES if iou[c] is not None and expected[c] is not None]
        assert of["reliability"]["classes"] == len(both)
    counts = {of["reliability"]["classes"] for of in found["estimates"].values()}
    assert len(counts) > 1
    assert "reliability: classes" in world.call("evaluate")


def test_estimates_are_compared_between_the_teachers_of_a_class(world):
    """As the policies published took the classes; of one teacher nothing is compared."""
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    world.settings["student"]["steps"] = world.settings["probe"]["steps"] = 1
    world.settings["policy"] = {"min_support": 0.02}
    world.write()
    world.call("evaluate", "--fusions", "all", "--upstream")
    found = json.loads((world.root / "work" / "results-all.json").read_text())
    iou = {m["name"]: m["iou"] for m in found["methods"] if m["kind"] == "teacher"}
    published = {a.manifest.stage: [] for a in world.artifacts()}
    for a in world.artifacts():
        published[a.manifest.stage].append(a.manifest.result)
    policies = {p["strategy"]: p["teacher"] for p in published["policy"]}
    assert found["between_teachers"].keys() == {"certainty", "reliability"}
    for kind, of in found["between_teachers"].items():
        present = found["classes_present"]
        sure, scores = (
            [[math.nan if v[t][c] is None else v[t][c] for c in present] for t in "abc"]
            for v in (found[kind], iou)
        )
        chosen = [t and "abc".index(t) for t in (policies[kind][c] for c in present)]
        expected = oracles.between(sure, scores, chosen)
        assert [*of.values()] == [
            None if math.isnan(v) else pytest.approx(v, abs=1e-6) for v in expected
        ]
        assert of["ranked"] > 0 and of["judged"] > 0
    world.settings["teachers"] = world.settings["teachers"][:1]
    world.write()
    found = world.json("evaluate", "--fusions", "all")
    assert found["estimates"] and not found["between_teachers"]


def test_a_policy_is_judged_by_the_teachers_of_the_split():
    """One that is not scored is chosen of a class: what that loses is not known."""
    methods = [
        {"name": t, "kind": "teacher", "iou": dict(zip(("road", "sky", "car"), of, strict=True))}
        for t, of in {"a": (90.0, 50.0, 0.0), "b": (80.0, 70.0, None)}.items()
    ]
    sure = {"a": {"road": 0.5, "sky": 0.9}, "b": {"road": 0.6, "sky": None}, "c": {"road": 0.7}}
    sure = {t: {"road": None, "sky": None, "car": 0.5} | of for t, of in sure.items()}
    chosen = {"certainty": {"road": "c", "sky": "a", "car": "c"}}
    found = between_teachers(methods, ["road", "sky"], {"certainty": sure}, chosen)
    told = {"rank": None, "ranked": 0, "best": 0, "lost": 20.0, "judged": 1}
    assert found == {"certainty": told}
    assert between_notes(found) == [
        "certainty, between teachers: no class has three teachers that can be ranked; a policy by "
        "it loses 20.0 points of IoU to the best teachers, on average over one class"
    ]
    chosen["certainty"]["sky"] = None
    found = between_teachers(methods, ["road", "sky"], {"certainty": sure}, chosen)
    assert found["certainty"]["lost"] is None
    assert between_notes(found)[0].endswith("can be ranked")


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


def test_specialists_of_a_single_class_speak_against_no_ground_truth(world):
    """Chance explains all that they say, and most of it is right."""
    for teacher, known in (("a", 2), ("b", 8)):

        def rule(label, known=known):
            too_much = np.arange(label.size).reshape(label.shape) % 40 == 0
            return np.where((label == known) | too_much, known, 255)

        world.teacher(teacher, rule)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    assert world.json("evaluate", "--upstream")["suspicions"] == []


def test_ground_truth_in_another_order_is_suspected(world):
    """Of a wholly other one by chance, of two classes by what the teachers call them."""
    world.add_teacher("c", lambda label: label)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    assert world.json("evaluate", "--upstream")["suspicions"] == []
    shifted, swapped = np.arange(256), np.arange(256)
    shifted[:19] = np.roll(np.arange(19), 7)
    swapped[[0, 2]] = 2, 0
    for order, words in (
        (shifted, "agrees with no teacher better than by chance"),
        (swapped, "calls road what the teachers call building, building what the teachers call"),
    ):
        for (split, name), label in world.truth.items():
            if split == "val":
                world.save("labels", "val", name, order[label])
        text = world.call("evaluate")
        assert f"warning: the ground truth of val {words}" in text
        assert words in json.loads((world.root / "work/results.json").read_text())["suspicions"][0]
        world.call("report")
        assert words in (world.root / "work/report.html").read_text()
