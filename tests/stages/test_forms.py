"""Files of others with a value of every wrong type in every place: read, or refused by name."""

import json

import pytest
from mutants import mutants

from ensdistill.pipeline.errors import EnsdistillError
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
TABLE = {
    "classes": [{"name": "road", "colour": [1, 2, 3], "label_id": 1}],
    "ignored_label_ids": [0],
    "subsets": {"half": ["road"]},
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
    for _, _, content in mutants(EXPERIMENT[part]):
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
