"""Scores as tables: what a reader of the files finds in them."""

import csv
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import World

from ensdistill.cli.__main__ import cli
from ensdistill.stages.reading import tables

CLASSES = ("road", "a|b, c", "sky")
SUBSETS = {"miou16": ["road", "a|b, c"], "first": ["sky"]}


def method(kind, name, *iou, miou=50.0, present=51.0, subsets=(40.0, None), coverage=1.0):
    return {
        "kind": kind,
        "name": name,
        "iou": dict(zip(CLASSES, iou, strict=True)),
        "miou": miou,
        "miou_present": present,
        "miou_subsets": dict(zip(SUBSETS, subsets, strict=True)),
        "pixel_accuracy": 12.5,
        "coverage": coverage,
    }


RESULTS = {
    "split": "val",
    "overlap": {},
    "classes": list(CLASSES),
    "classes_present": ["road", "a|b, c"],
    "subsets": SUBSETS,
    "methods": [
        method("teacher", "x", 100 / 3, 20.0, None, coverage=None),
        method("fusion", "channel-oracle", 99.0, 99.0, None, miou=99.0, present=99.0),
        method("fusion", "majority", 66.666, 20.0, None, miou=51.0),
        method("probe", "x", 0.0, 1.0, None, miou=None, present=None, coverage=0.5),
        method("student", "student", 1.0, 2.0, None, miou=3.0),
    ],
    "beside": None,
    "label_model": None,
    "not_scored": [],
    "suspicions": [],
}
# whose student sees a class that is not there
IMAGINED = {
    **RESULTS,
    "methods": [
        *RESULTS["methods"][:-1],
        method("student", "student", 90.0, 60.0, 0.0, miou=50.0, present=75.0, subsets=(75.0, 0.0)),
    ],
}


def test_csv_has_every_digit_and_nothing_for_what_is_absent():
    head, *rows = csv.reader(io.StringIO(tables.to_csv(RESULTS)))
    assert head == [
        *("kind", "method", "road", "a|b, c", "sky"),
        *("mIoU", "classes of mIoU", "mIoU present", "classes of mIoU present"),
        *("mIoU16", "classes of mIoU16", "first", "classes of first"),
        *("pixel accuracy", "coverage"),
    ]
    assert [row[:2] for row in rows] == [[m["kind"], m["name"]] for m in RESULTS["methods"]]
    assert float(rows[0][2]) == 100 / 3
    assert rows[0][4:] == ["", "50.0", "2", "51.0", "2", "40.0", "2", "", "0", "12.5", ""]
    assert rows[3][5:] == ["", "2", "", "2", "40.0", "2", "", "0", "12.5", "50.0"]


def test_markdown_is_rounded_and_marks_the_best_that_no_ground_truth_chose():
    told, empty, head, line, *rows, blank, note = tables.to_markdown(RESULTS).splitlines()
    assert told == "IoU on val, percent" and empty == blank == ""
    assert head.startswith(
        "| method | road | a\\|b, c | sky | mIoU | mIoU present | mIoU16 | first"
    )
    assert line == "| --- |" + " ---: |" * 9
    assert rows == [
        "| x | 33.33 | **20.00** | - | 50.00 | **51.00** | **40.00** | - | **12.50** | - |",
        "| channel-oracle | 99.00 | 99.00 | - | 99.00 | 99.00 | 40.00 | - | 12.50 | 100.00 |",
        "| majority | **66.67** | **20.00** | - | **51.00** | **51.00** | **40.00** | - "
        "| **12.50** | **100.00** |",
        "| probe of x | 0.00 | 1.00 | - | - | - | **40.00** | - | **12.50** | 50.00 |",
        "| student | 1.00 | 2.00 | - | 3.00 | **51.00** | **40.00** | - | **12.50** | **100.00** |",
    ]
    assert note == "mIoU is over the 2 classes in the ground truth of val"


def test_markdown_says_over_how_many_classes_and_marks_no_best_of_different_ones():
    lines = [line.split(" | ") for line in tables.to_markdown(IMAGINED).splitlines()]
    head, student = lines[2], lines[8]
    found = dict(zip(head, zip(*lines[4:9], strict=True), strict=True))
    assert found["mIoU"] == ("50.00", "99.00", "51.00", "-", "50.00")
    assert found["classes of mIoU"] == ("2", "2", "2", "2", "3")
    # the same for all, and so it has a best one
    assert found["mIoU present"] == ("51.00", "99.00", "51.00", "-", "**75.00**")
    assert found["mIoU16"][-1] == "**75.00**" and "classes of mIoU16" not in head
    assert found["first"] == ("-", "-", "-", "-", "0.00")
    assert found["classes of first"] == ("0", "0", "0", "0", "1")
    assert student[0] == "| student"
    assert "mIoU counts as 0 what a method predicts beside them: sky (student)" in lines[-1][0]


@settings(derandomize=True, deadline=None)
@given(st.data())
def test_a_mean_is_alike_only_over_the_classes_of_the_ground_truth(data):
    """Whatever numbers of classes are equal by chance."""
    some = st.frozensets(st.sampled_from(CLASSES))
    present = data.draw(some)
    scored = data.draw(st.lists(some.map(lambda more: more | present), min_size=1, max_size=4))
    members = data.draw(some)
    methods = [
        method("teacher", "x", *(1.0 if c in of else None for c in CLASSES)) for of in scored
    ]
    for m in methods:
        m["miou_subsets"] = {"some": 1.0}
    found = tables.means(
        {
            "classes": CLASSES,
            "classes_present": [c for c in CLASSES if c in present],
            "subsets": {"some": members},
            "methods": methods,
        }
    )
    assert found["miou"].alike == all(of == present for of in scored if of)
    assert found["some"].alike == all(
        of & members == present & members for of in scored if of & members
    )
    assert found["miou_present"].alike
    assert [len(of) for of in found["miou"].classes] == [len(of) for of in scored]


def test_what_stands_beside_the_fusion_is_told_first():
    teacher = {"name": "a|b", "value": 51.0, "difference": 13.0}
    beside = {"method": "channel", "score": "miou_present", "value": 64.0, "majority": None}
    found = {**RESULTS, "beside": {**beside, "teacher": teacher}}
    text = "channel 64.0 mIoU present: +13.0 on the best teacher (a|b, 51.0)"
    assert tables.notes(found) == [text, *tables.notes(RESULTS)]
    assert text in tables.to_markdown(found)


def test_a_label_model_that_gives_way_to_the_majority_is_told():
    model = {"fit": "fused", "rule": "label-model", "because": None}
    assert tables.notes({**RESULTS, "label_model": model}) == tables.notes(RESULTS)
    because = "no teacher contradicts another"
    found = {**RESULTS, "label_model": {**model, "rule": "majority", "because": because}}
    text = f"label model: {because}: the majority of the votes counts instead"
    assert tables.notes(found) == [*tables.notes(RESULTS), text]
    assert text in tables.to_markdown(found)


def test_what_is_not_scored_is_told_everywhere():
    missing = [
        {"kind": "teacher", "name": "y", "why": "no label maps of val are declared"},
        {"kind": "probe", "name": "x", "why": "not trained"},
    ]
    found = {**RESULTS, "not_scored": missing}
    lines = tables.to_markdown(found).splitlines()
    assert "y: no label maps of val are declared" in lines
    assert "probe of x: not trained" in lines
    assert "channel-oracle and majority: fused from x alone" in lines
    assert json.loads(tables.to_json(found))["not_scored"] == missing


def test_ground_truth_without_a_label_is_no_score():
    none = {"classes_present": [], "methods": [method("teacher", "x", *[None] * 3)]}
    assert tables.notes({**RESULTS, **none}) == [
        "no pixel of the ground truth of val is labelled: nothing is scored"
    ]


def test_an_overlap_is_told():
    found = {**RESULTS, "overlap": {"train": 7}}
    first = tables.to_markdown(found).splitlines()[0]
    assert first == "IoU on val, percent; 7 of its images are also in train"
    assert json.loads(tables.to_json(found))["overlap"] == {"train": 7}


def test_json_has_confusion_matrices_where_they_are_given():
    found = json.loads(tables.to_json(RESULTS))
    assert (found["unit"], found["split"]) == ("percent", "val")
    assert found["columns"] == tables.columns(RESULTS)
    assert found["rows"][0]["values"] == [
        *(100 / 3, 20.0, None, 50.0, 2, 51.0, 2, 40.0, 2, None, 0, 12.5, None),
    ]
    assert "confmat" not in found["rows"][0]
    with_one = {**RESULTS, "methods": [RESULTS["methods"][0] | {"confmat": [[1, 2]]}]}
    assert json.loads(tables.to_json(with_one))["rows"][0]["confmat"] == [[1, 2]]


def test_a_name_that_is_no_text_is_spelt_in_json():
    name = "stra\udcdfe"
    classes = [name if c == RESULTS["classes"][0] else c for c in RESULTS["classes"]]
    odd = json.loads(
        json.dumps(RESULTS).replace(json.dumps(RESULTS["classes"][0]), json.dumps(name))
    )
    text = tables.to_json(odd)
    assert "stra\\udcdfe" in text and json.loads(text.encode())["classes"] == classes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("tables"))
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("run")
    return world


def test_the_command_writes_what_it_prints(made, tmp_path):
    files = [tmp_path / f"t{suffix}" for suffix in tables.WRITERS]
    assert [f.suffix for f in files] == [".csv", ".md", ".json"]
    found = made.json("evaluate", *(a for f in files for a in ("-o", str(f))))
    csv_file, markdown, json_file = files
    assert csv_file.read_text() == tables.to_csv(found)
    assert markdown.read_text() == tables.to_markdown(found)
    table = json.loads(json_file.read_text())
    assert table["columns"][19:27:2] == ["mIoU", "mIoU present", "mIoU16", "mIoU13"]
    for row, m in zip(table["rows"], found["methods"], strict=True):
        assert (row["kind"], row["method"]) == (m["kind"], m["name"])
        confmat = np.array(row["confmat"])
        assert confmat.shape == (19, 20) and confmat.dtype == np.int64
        hits = confmat.diagonal()
        union = confmat.sum(axis=1) + confmat[:, :19].sum(axis=0) - hits
        with np.errstate(invalid="ignore"):
            iou = 100 * hits / union
        expected = np.array(row["values"][:19], float)
        np.testing.assert_allclose(iou, expected, rtol=1e-12, equal_nan=True)
        # over the subset's own classes, and not over all of them times something
        thirteen = [c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)]
        assert row["values"][25] == pytest.approx(np.nanmean(iou[thirteen]), rel=1e-12)
        assert row["values"][27] == pytest.approx(100 * hits.sum() / confmat.sum())
        present = confmat.sum(axis=1) > 0
        assert row["values"][21] == pytest.approx(iou[present].mean(), rel=1e-12)
        counts = [np.isfinite(iou).sum(), present.sum(), np.isfinite(iou[thirteen]).sum()]
        assert [row["values"][k] for k in (20, 22, 26)] == counts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json", "t.md"]
    before = csv_file.stat().st_mtime_ns
    made.call("evaluate", "-o", str(csv_file))
    assert csv_file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t.xlsx", "expected a name in .csv, .md or .json"),
        ("t", "expected a name in .csv, .md or .json"),
        ("none/t.csv", "is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(world, name, said):
    file = world.root / name
    arguments = ["evaluate", "--upstream", "-o", str(file), "-c", str(world.file)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and said in " ".join(result.output.split())
    assert not (world.root / "work").exists()


def test_a_dry_run_writes_no_table(made, tmp_path):
    made.call("evaluate", "--dry-run", "-o", str(tmp_path / "t.csv"))
    assert list(tmp_path.iterdir()) == []
