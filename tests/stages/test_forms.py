"""Files of others with a value of every wrong type in every place: read, or refused by name."""

import json

import pytest
from click.testing import CliRunner
from mutants import mutants

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import ConfigError, EnsdistillError
from ensdistill.stages.comparison import compare, summary
from ensdistill.stages.experiment import load

EXPERIMENT = {
    "version": 1,
    "workspace": "work",
    "classes": {"table": "classes.yaml"},
    "target": {
        "train": {"images": "i/*.png"},
        "val": {"images": "v/*.png", "labels": "g/*.png", "ids": "train_ids", "overlap": ["train"]},
        "test": {"cityscapes": "c", "split": "test"},
        "more": {"list": "list.txt"},
    },
    "teachers": [
        {
            "name": "a",
            "labels": {"train": "a"},
            "certainty": {"train": "c"},
            "map": {"road": "road"},
        },
        {
            "name": "b",
            "classes": "camvid11",
            "trust": "code",
            "keep": ["soft"],
            "network": {
                "factory": "m:f",
                "root": ".",
                "kwargs": {"n": [1, {"a": 2}]},
                "files": {"weights": "w.pth"},
                "void_channels": [0],
                "take": {"out": 1.0, "1": 0.5},
                "divisor": 8,
            },
            "preprocess": {"preset": "caffe", "mean": [1, 2, 3], "size": [8, 8], "flip": True},
        },
        {"name": "c", "network": {"hf": "o/n", "revision": "0" * 40, "state_dict": "w", "take": 1}},
        {"name": "d", "network": {"onnx": "f"}, "preprocess": {"tiles": {"size": [8, 8]}}},
    ],
    "probe": {"recipe": "paper", "init": {"file": "w", "into": "a"}, "head": ["x.*"]},
    "policy": {"strategy": "manual", "assign": {"road": "a"}},
    "fusion": {"method": "channel", "window": 3},
    "student": {"init": "w", "network": {"arch": "tiny"}, "scale": [1, 2], "preprocess": {}},
    "runtime": {"device": "cpu", "workers": 0},
}
FEW = (None, True, -1, 10**30, float("inf"), "", "x", [[]], {"x": 1}, {"preset": []})
TABLE = {
    "classes": [{"name": "road", "colour": [1, 2, 3], "label_id": 1}],
    "ignored_label_ids": [0],
    "subsets": {"half": ["road"]},
}
METHOD = {"kind": "teacher", "name": "a", "miou": 50, "miou_present": 50.5, "iou": {"road": 50}}
METHOD = METHOD | {"miou_subsets": {"half": None}, "coverage": 1.0}
RESULTS = {
    "experiment": "experiment.yaml",
    "split": "val",
    "classes": ["road"],
    "classes_present": ["road"],
    "subsets": {"half": ["road"]},
    "fusion": "majority",
    "methods": [METHOD, METHOD | {"kind": "fusion", "name": "majority"}],
    "not_scored": [{"kind": "student", "name": "student", "why": "not trained"}],
    "policy": {"road": "a"},
    "seconds": {"infer[a]": 1.5},
}


def outcome(call, *names):
    """Return the refusal's text, empty where there is none; it names one of `names`."""
    try:
        call()
    except EnsdistillError as error:
        assert any(str(name) in str(error) for name in names), error
        assert len(str(error)) < 20_000
        return str(error)
    return ""


@pytest.mark.parametrize("part", EXPERIMENT)
def test_an_experiment_file_of_wrong_types(tmp_path, part):
    (tmp_path / "classes.yaml").write_text(json.dumps(TABLE))
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps(EXPERIMENT))
    load(file)
    refused = 0
    for _, _, content in mutants(EXPERIMENT[part], FEW):
        file.write_text(json.dumps({**EXPERIMENT, part: content}))
        refused += bool(outcome(lambda: load(file), file))
    assert refused


def test_a_class_table_of_wrong_types(tmp_path):
    settings = {**EXPERIMENT, "teachers": [{"name": "a", "labels": {"train": "a"}}], "policy": {}}
    file, table = tmp_path / "experiment.yaml", tmp_path / "classes.yaml"
    file.write_text(json.dumps(settings))
    table.write_text(json.dumps(TABLE))
    load(file)
    refused = 0
    for _, _, content in mutants(TABLE):
        table.write_text(json.dumps(content))
        refused += bool(outcome(lambda: load(file), file, table))
    assert refused


def test_results_of_wrong_types(tmp_path):
    file, other = tmp_path / "results.json", tmp_path / "other.json"
    file.write_text(json.dumps(RESULTS))
    other.write_text(json.dumps(RESULTS))

    def call():
        compare([summary(file, None), summary(other, None)])

    assert not outcome(call)
    refused = 0
    for at, new, content in mutants(RESULTS):
        other.write_text(json.dumps(content))
        if said := outcome(call, other):
            assert "\n" not in said
            refused += 1
        else:  # then it can be shown too
            done = CliRunner().invoke(cli, ["compare", str(file), str(other)])
            assert done.exit_code == 0, (at, new, done.exception)
    assert refused > 500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "too deep in each other"),
        ('{"a": ' * 200 + "1" + "}" * 200, "values lie in each other"),
        ('{"classes": [], "classes": []}', "the key 'classes' appears twice"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("", "is empty"),
        ("<html>", "a web page"),
        ("nul", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ("[1]", r"expected keys and values, found \[1\]"),
        ("1" * 5000, "cannot be read as JSON"),
    ],
)
def test_results_that_are_no_such_file(tmp_path, content, said):
    file = tmp_path / "results.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=said):
        summary(file, None)
