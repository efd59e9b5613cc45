"""Charts: that they are there and can be read, whatever is missing."""

import json

import numpy as np
import pytest
from PIL import Image

from ensdistill.cli import plots

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


def size(path):
    with Image.open(path) as chart:
        chart.load()
        assert chart.format == "PNG"
        return chart.size


@pytest.mark.parametrize("teachers", [1, 4])
def test_estimates(tmp_path, teachers):
    found = results([f"a ${k}_$" for k in range(teachers)])
    plots.estimates(found, tmp_path / "chart.png")
    assert min(size(tmp_path / "chart.png")) > 200


def test_names_of_classes_are_no_formulas(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.CLASSES", ["$\\frac{$", "a\x1b\udcdf\u202e", "road"])
    plots.estimates(results(["a"]), tmp_path / "chart.png")
    assert min(size(tmp_path / "chart.png")) > 200


@pytest.mark.parametrize("compositions", [0, 3])
def test_ablation(tmp_path, compositions):
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
    plots.ablation({"split": "val", "present": present}, tmp_path / "chart.png")
    assert min(size(tmp_path / "chart.png")) > 300


def test_a_chart_that_did_not_change_is_not_written_again(tmp_path):
    path = tmp_path / "chart.png"
    plots.estimates(results(["a"]), path)
    before = path.stat().st_mtime_ns
    plots.estimates(results(["a"]), path)
    assert path.stat().st_mtime_ns == before
    plots.estimates(results(["b"]), path)
    assert path.stat().st_mtime_ns != before


def test_evaluate_draws_and_prints_the_estimates(world):
    world.add_teacher("c", lambda label: np.where(label == 13, 14, label))
    world.settings["fusion"] = {"method": "label-model"}
    world.settings["student"]["steps"] = world.settings["probe"]["steps"] = 1
    world.write()
    text = world.call("evaluate", "--upstream")
    assert "reliability: cosine similarity" in text and "certainty" not in text
    work = world.root / "work"
    assert not (work / "estimates.png").exists()
    found = json.loads((work / "results.json").read_text())
    assert found["estimates"].keys() == {"a", "b", "c"}
    assert all(of.keys() == {"reliability"} for of in found["estimates"].values())
    assert 0.5 < found["estimates"]["a"]["reliability"]["cosine"] <= 1
    text = world.call("evaluate", "--fusions", "all", "--upstream")
    assert "certainty: rank correlation" in text
    assert min(size(work / "estimates.png")) > 200
