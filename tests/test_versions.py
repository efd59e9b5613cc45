"""A stage's numbers do not change behind its VERSION.

Every stage is run on golden inputs, whatever the stages above it make of theirs now.
"""

import copy
import json
import shutil

import numpy as np
import pytest
from golden import make as golden

from ensdistill.data import decoding
from ensdistill.stages import graph
from ensdistill.stages.functional import fusion, labelmodel, policy
from ensdistill.stages.functional.certainty import mean_certainty
from ensdistill.stages.functional.fusion import FusionCounts, channel_wise, majority
from ensdistill.stages.functional.scores import mean_iou
from ensdistill.stages.functional.unify import unify
from ensdistill.stages.graph import VERSIONS
from ensdistill.stages.networks import frozen
from ensdistill.stages.networks.frozen import FrozenNetwork
from ensdistill.stages.nodes.ablation import run as ablation
from ensdistill.stages.nodes.certainty import run as certainty
from ensdistill.stages.nodes.evaluation import run as evaluation
from ensdistill.stages.nodes.infer import run as infer
from ensdistill.stages.nodes.noisy import run as noisy
from ensdistill.stages.training import loop, samples

RECORDED = json.loads((golden.GOLDEN / "numbers.json").read_text())


@pytest.fixture
def folder(tmp_path):
    copied = tmp_path / "golden"
    shutil.copytree(golden.GOLDEN, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def require(folder, stage):
    golden.require_unchanged(stage, RECORDED[stage], golden.measure(folder, [stage])[stage])


def test_every_stage_is_guarded():
    assert set(RECORDED) == set(VERSIONS) == set(golden.NUMBERS)
    for stage, recorded in RECORDED.items():
        numbers = {**recorded.get("exact", {}), **recorded.get("near", {})}
        assert numbers, stage
    assert {
        *(f"{c}-{h}" for c in ("window", "certainty", "ignore") for h in ("window", "ignore")),
        "majority",
    } < set(RECORDED["fusion"]["exact"])
    strategies = {"certainty", "fallback", "ties", "manual", "reliability", "oracle"}
    assert strategies == set(RECORDED["policy"]["exact"])


@pytest.mark.parametrize("stage", VERSIONS)
def test_the_numbers_of_a_stage_are_those_of_its_version(folder, stage):
    require(folder, stage)


@pytest.mark.parametrize("stage", ["policy", "evaluation"])
def test_a_raised_version_asks_to_record_anew(folder, monkeypatch, stage):
    found = golden.measure(folder, [stage])[stage]
    monkeypatch.setitem(found, "version", VERSIONS[stage] + 1)
    with pytest.raises(AssertionError, match=r"at version 1 .* version 2: .*golden/make\.py"):
        golden.require_unchanged(stage, RECORDED[stage], found)


def ties_to_the_last_teacher(labels, classes):
    return majority(np.ascontiguousarray(labels[::-1]), classes)


def ties_to_the_highest_class(labels, owner, *, certainty=None, **rules):
    last = len(owner) - 1
    turned = np.where(labels == 255, 255, last - labels).astype(np.uint8)
    ranks = None if certainty is None else certainty[::-1].copy()
    fused, counts = channel_wise(turned, owner[::-1].copy(), certainty=ranks, **rules)
    values = {k: v[::-1] if isinstance(v, np.ndarray) else v for k, v in vars(counts).items()}
    return np.where(fused == 255, 255, last - fused).astype(np.uint8), FusionCounts(**values)


def one_pixel_further(self, path, *more):
    labels, counts = COUNT(self, path, *more)
    return np.roll(labels, 1, axis=1), counts


COUNT = decoding.Decoder.count
SCORES = FrozenNetwork._scores
ALIKE = labelmodel._alike
CHANGES = {
    "predictions one pixel further": ("infer", decoding.Decoder, "count", one_pixel_further),
    "a network's least likely class": (
        "infer",
        FrozenNetwork,
        "_scores",
        lambda self, batch: -SCORES(self, batch),
    ),
    "a network's logits at other corners": (
        "infer",
        frozen,
        "unify",
        lambda *args, **more: unify(*args, **{**more, "align_corners": True}),
    ),
    "certainty of other corners": (
        "confidence",
        frozen,
        "unify",
        lambda *args, **more: unify(*args, **{**more, "align_corners": True}),
    ),
    "the softmax of twice the logits": (
        "soft",
        FrozenNetwork,
        "_scores",
        lambda self, batch: 2 * SCORES(self, batch),
    ),
    "a constant learning rate of the probe": ("probe", loop, "learning_rate", lambda r, _: r["lr"]),
    "a constant learning rate": ("student", loop, "learning_rate", lambda recipe, _: recipe["lr"]),
    "a learning rate one step ahead": (
        "student",
        loop,
        "learning_rate",
        lambda r, step: r["lr"] * (1 - (step + 1) / r["steps"]) ** r["power"],
    ),
    "other crops": ("student", samples, "_CROP", 7),
    "another mean certainty": (
        "certainty",
        certainty,
        "mean_certainty",
        lambda sums: mean_certainty(sums) * (1 + 1e-3),
    ),
    "a certainty counted from one": (
        "certainty",
        certainty,
        "mean_certainty",
        lambda sums: np.where(sums.support > 0, sums.sums / (sums.support + 1), np.nan),
    ),
    "the least certain fallback": ("policy", policy, "_mean", lambda v: -float(np.sum(v))),
    "the last of equals": ("policy", policy, "_best", lambda v: max(v, key=lambda n: (v[n], n))),
    "ties of the vote": ("fusion", fusion, "majority", ties_to_the_last_teacher),
    "ties of the window": ("fusion", fusion, "channel_wise", ties_to_the_highest_class),
    "ground truth one pixel further": ("truth", decoding.Decoder, "count", one_pixel_further),
    "absent classes count as wrong": (
        "evaluation",
        evaluation,
        "mean_iou",
        lambda values, *some: mean_iou(np.nan_to_num(values), *some),
    ),
    "shared errors that temper less": (
        "label-model",
        labelmodel,
        "_alike",
        lambda *given: ALIKE(*given) / 2,
    ),
    "less of the band's prior": ("fusion", labelmodel, "HELD", 0.1),
    "a model that is less sure": ("pixel-weights", labelmodel, "ODDS", (0.1, 0.5, 3.0, 0.995)),
    "noise of another seed": ("noisy", noisy, "SEED", 1),
    "a worse bad teacher": ("ablation", ablation, "SHARE", 0.9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_arithmetic_is_noticed(folder, monkeypatch, change):
    stage, owner, name, other = CHANGES[change]
    monkeypatch.setattr(owner, name, other)
    with pytest.raises(AssertionError) as caught:
        require(folder, stage)
    text = str(caught.value)
    still = f"its STAGE is still of version {VERSIONS[stage]}"
    assert f"the numbers of stage {stage} changed while {still}" in text
    assert "raise that" in text and "mend the code" in text and "golden/make.py" in text


def test_every_stage_has_an_arithmetic_that_is_noticed():
    assert {stage for stage, *_ in CHANGES.values()} == set(VERSIONS)


def test_a_stage_is_measured_whatever_the_stages_above_it_do(folder, monkeypatch):
    monkeypatch.setattr(infer, "from_files", None)
    monkeypatch.setattr(loop, "train", None)
    for stage in ("fusion", "policy", "evaluation"):
        require(folder, stage)
    assert graph.VERSIONS is VERSIONS


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("exact", lambda numbers: numbers.popitem()),
        ("exact", lambda numbers: numbers.update(new="")),
        ("near", lambda numbers: numbers["a"].update(loss=1.0002)),
        ("near", lambda numbers: numbers["a"].update(certainty=0.0)),
        ("near", lambda numbers: numbers["a"].update({"support x": 111})),
        ("agreement", lambda numbers: numbers.update(a=0.98)),
    ],
)
def test_what_may_differ_between_processors_is_bounded(kind, change):
    recorded = {
        "version": 1,
        "exact": {"a": "x"},
        "near": {"a": {"loss": 1.0, "certainty": None, "support x": 100}},
        "agreement": {"a": 1.0},
    }
    found = copy.deepcopy(recorded)
    found["near"]["a"] |= {"loss": 1.00001, "support x": 103}
    found["agreement"]["a"] = 0.995
    golden.require_unchanged("stage", recorded, found)
    change(found[kind])
    with pytest.raises(AssertionError, match=rf"\({kind}\)"):
        golden.require_unchanged("stage", recorded, found)
