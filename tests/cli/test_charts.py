"""Charts: that they are there and can be read, whatever is missing."""

import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ensdistill.cli import charts

CLASSES = ["road", "sky", "rider"]


def method(name, *iou, kind="teacher"):
    return {"name": name, "kind": kind, "iou": dict(zip(CLASSES, iou, strict=True))}


def results(teachers):
    methods = [method(t, 90.0, 40.0, None) for t in teachers]
    values = dict(zip(CLASSES, (0.9, None, 0.3), strict=True))
    return {
        "classes": CLASSES,
        "methods": [*methods, method("majority", 1.0, 2.0, 3.0, kind="fusion")],
        "certainty": {teachers[0]: values},
        "reliability": dict.fromkeys(teachers, values),
        "estimates": {
            t: {"reliability": {"cosine": 0.5, "rank": None, "classes": 2}}
            | ({} if k else {"certainty": {"cosine": None, "rank": None, "classes": 0}})
            for k, t in enumerate(teachers)
        },
    }


def size(content):
    with Image.open(io.BytesIO(content)) as chart:
        chart.load()
        assert chart.format == "PNG"
        return chart.size


def texts(svg):
    return [t.text for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("teachers", [1, 4])
def test_estimates(teachers):
    names = [f"a ${k}_$" for k in range(teachers)]
    assert min(size(charts.png(charts.estimates(results(names))))) > 150
    shown = texts(charts.svg(charts.estimates(results(names))))
    assert {*names, "road", "sky", "certainty of its probe"} <= set(shown)
    assert "rider" not in shown
    assert shown.count("reliability: cosine 0.50, rank - over 2 classes") == teachers


def test_names_of_classes_are_no_formulas(monkeypatch):
    monkeypatch.setattr(f"{__name__}.CLASSES", ["$\\frac{$", "a\x1b\udcdf\u202e", "road"])
    assert min(size(charts.png(charts.estimates(results(["a"]))))) > 150
    assert "$\\frac{$" in texts(charts.svg(charts.estimates(results(["a"]))))


def test_the_page_shows_names_in_any_script_without_a_warning(monkeypatch):
    monkeypatch.setattr(f"{__name__}.CLASSES", ["道路", "<script>", "road"])
    assert {"道路", "<script>"} <= set(texts(charts.svg(charts.estimates(results(["a"])))))


@pytest.mark.parametrize("points", [[(0, 1.0)], [(3, -1.3)], [(1, 2.0), (50, 0.5)]])
def test_curve(points):
    shown = texts(charts.svg(charts.curve(points)))
    assert "step" in shown and "0" in shown


def test_a_chart_is_the_same_file_each_time():
    for kind in (charts.png, charts.svg):
        one, again, other = (kind(charts.estimates(results([n]))) for n in "aab")
        assert one == again != other
    assert not re.search(rb"matplotlib.org|20\d\d-", one)


@pytest.mark.parametrize("compositions", [0, 3])
def test_ablation(compositions):
    rows = [
        {"label-model": 40.0 + k, "majority": None if k else 39.0, "best_miou": 40.0}
        for k in range(compositions)
    ]
    none = {"label-model": None, "majority": None}
    bad = {"label-model": 0.1, "majority": 2.0}
    one_out = [{"teacher": f"$_{k}", "gives": bad} for k in range(compositions)]
    present = {
        "robustness": [
            {"bad": 0, "added": None, "loss": none},
            {"bad": 1, "added": "segments", "loss": bad},
        ],
        "leave_one_out": {"teachers": one_out},
        "flexibility": {"compositions": rows},
    }
    assert min(size(charts.png(charts.ablation({"split": "val", "present": present})))) > 300


@pytest.mark.parametrize("classes", [[], ["road", "sky"]])
def test_noise(classes):
    """Also where no class is supported at all levels, and whatever a teacher is called."""
    rows = [
        {"noise": k / 10, "mean": k / 2 if classes else None, "certainty": dict.fromkeys(CLASSES)}
        for k in range(3)
    ]
    found = {"teacher": "$a_{", "classes": classes, "rank": None, "levels": rows}
    assert min(size(charts.png(charts.noise(found)))) > 300
    assert "Noise in the labels of $a_{: rank correlation -" in texts(
        charts.svg(charts.noise(found))
    )


def test_evaluate_draws_and_prints_the_estimates(world):
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    world.settings["fusion"] = {"method": "label-model"}
    world.settings["student"]["steps"] = world.settings["probe"]["steps"] = 1
    world.write()
    text = world.call("evaluate", "--upstream")
    assert "reliability: cosine similarity" in text and "certainty" not in text
    assert "does reliability tell quality?" in text and "reliability, between teachers: " in text
    work = world.root / "work"
    assert not (work / "estimates.png").exists()
    found = json.loads((work / "results.json").read_text())
    assert found["estimates"].keys() == {"a", "b", "c"}
    assert all(of.keys() == {"reliability"} for of in found["estimates"].values())
    assert 0.5 < found["estimates"]["a"]["reliability"]["cosine"] <= 1
    assert found["between_teachers"].keys() == {"reliability"}
    text = world.call("evaluate", "--fusions", "all", "--upstream")
    assert "certainty: rank correlation" in text
    assert "do certainty and reliability tell quality?" in text
    assert "certainty, between teachers: " in text
    chart = work / "estimates.png"
    assert min(size(chart.read_bytes())) > 150
    before = chart.stat().st_mtime_ns
    world.call("evaluate", "--fusions", "all")
    assert chart.stat().st_mtime_ns == before
