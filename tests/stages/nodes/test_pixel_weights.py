"""Weights of the fused labels, through the command line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from worlds import World, files_of

from ensdistill.data.store import checksum
from ensdistill.pipeline.errors import ConfigError, CorruptError
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.runner import run
from ensdistill.stages.functional.labelmodel import posterior
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import LabelMaps, LabelMapsDraft
from ensdistill.stages.nodes.label_model.run import read_model
from ensdistill.stages.work import items

INFERRED = {"infer[a]", "infer[b]", "infer[c]"}
FUSED = INFERRED | {"label-model", "fusion", "pixel-weights"}
MANUAL = {"strategy": "manual", "assign": {"road": "a", "building": "a", "car": "b", "sky": "c"}}


class Silent:
    def start(self, total, done, unit): ...

    def advance(self, count=1, note=""): ...

    def message(self, text): ...


@pytest.fixture
def world(world):
    """Three teachers who differ, fused by the label model for a student that weighs its pixels."""
    world.add_teacher("c", lambda label: np.where(label == 13, 14, np.roll(label, 2, axis=1)))
    use(world, "label-model")
    world.settings["student"]["pixel_weights"] = "posterior"
    world.write()
    return world


def use(world, method):
    world.settings["fusion"] = {"method": method, "window": 5}
    world.settings["policy"] = MANUAL if method == "channel" else {}
    world.write()


def made(world, *command):
    """Run a command and return node to images computed and taken over."""
    report = world.json(*command)
    return {r["node"]: (r["written"], r["reused"]) for r in report["ran"]}


def contents(world):
    """What the weights are, but for when and how they were made."""
    artifact = world.artifact("pixel-weights")
    found = files_of(artifact.path)
    del found["manifest.json"]
    return found, artifact.manifest.result, artifact.manifest.content


@pytest.mark.parametrize("method", ["label-model", "channel", "majority"])
def test_the_stage_does_what_the_function_says(world, method):
    use(world, method)
    expected = FUSED | ({"policy"} if method == "channel" else set())
    assert set(made(world, "fuse", "--upstream")) == expected
    weights, fused = (LabelMaps(world.artifact(n)) for n in ("pixel-weights", "fusion"))
    teachers = [LabelMaps(world.artifact(f"infer[{t}]")) for t in "abc"]
    model = read_model(world.artifact("label-model"))
    assert list(weights) == list(fused) and len(weights) == 5
    every = []
    for image_id in weights:
        label = fused.read(image_id)
        labels = np.stack([t.read(image_id) for t in teachers])
        percent, pixels, sums = posterior(labels, label, model)
        found, record = weights.read(image_id), weights.records[image_id]
        np.testing.assert_array_equal(found, percent)
        assert 50 < found.max() < 100 and not found[label == 255].any()
        assert (record["labels"], record["sums"]) == (pixels.tolist(), sums.tolist())
        assert record["content"] == checksum(percent)
        assert record["mean"] == pytest.approx(found[label != 255].mean() / 100)
        every.append((label.ravel(), found.ravel()))
    label, found = (np.concatenate(parts) for parts in zip(*every, strict=True))
    result = world.artifact("pixel-weights").manifest.result
    assert result["images"] == 5
    assert result["mean"] == pytest.approx(found[label != 255].mean() / 100)
    for c, mean in enumerate(result["classes"].values()):
        there = found[label == c]
        assert mean == (pytest.approx(there.mean() / 100) if len(there) else None)
    assert 0 < result["mean"] < 1


def test_who_does_not_ask_for_them_has_none(world):
    use(world, "majority")
    asked = {d["node"] for d in world.json("status")}
    assert asked >= FUSED
    world.settings["student"]["pixel_weights"] = "none"
    world.write()
    assert asked - {d["node"] for d in world.json("status")} == {"pixel-weights", "label-model"}
    assert set(made(world, "fuse", "--upstream")) == INFERRED | {"fusion"}
    written = plan_of(world, "student")
    del world.settings["student"]["pixel_weights"]
    world.write()
    assert plan_of(world, "student") == written
    world.settings["probe"]["pixel_weights"] = "posterior"
    world.write()
    with pytest.raises(ConfigError, match="pixel_weights"):
        load(world.file)


def plan_of(world, node_id):
    row = {d["node"]: d for d in world.json("status")}[node_id]
    return row["fingerprint"]


def test_the_student_is_made_from_them(world):
    world.call("run", "--no-evaluate")
    student = world.artifact("student").manifest
    assert student.recipe["pixel_weights"] == "posterior"
    assert set(student.inputs) == {"labels", "pixel_weights"}
    assert "nothing to do" in world.call("run", "--no-evaluate")
    assert "nothing to do" in world.call("fuse")
    assert world.states()["pixel-weights"] == "fresh"
    # without them it is another student, of the same fused labels
    world.settings["student"]["pixel_weights"] = "none"
    world.write()
    assert set(made(world, "train-student", "--upstream")) == {"student"}
    assert "pixel_weights" not in world.artifact("student").manifest.recipe
    assert {r["node"] for r in world.json("gc") if r["reason"] is None} == {
        "pixel-weights",
        "student",
    }


def test_commands_know_them(world):
    use(world, "majority")
    assert world.states()["pixel-weights"] == "missing"
    planned = {d["node"] for d in world.json("fuse", "--dry-run", "--upstream")}
    assert planned == FUSED
    assert {d["node"] for d in world.json("fuse", "--dry-run")} == {"fusion", "pixel-weights"}
    for teacher in "abc":
        world.call("infer-teacher", teacher)
    assert "select-policy" in world.refuse("fuse")
    assert set(made(world, "select-policy")) == {"label-model"}
    assert "the mean weight of a label is 0." in world.call("fuse")
    text = world.call("explain", "pixel-weights")
    assert "weights is fresh" in text and "below it: student" in text
    use(world, "label-model")
    text = world.call("explain", "pixel-weights")
    assert "to make it: ensdistill fuse" in text
    assert not [r for r in world.json("gc") if r["reason"] is None and r["node"] == "label-model"]


def test_an_image_costs_itself_where_the_model_stays(world):
    world.call("fuse", "--upstream")
    before = contents(world)
    file = next((world.root / "teachers/c/train").glob("*.png"))
    label = Image.open(file)
    label.load()
    label.save(file, compress_level=0)  # the same pixels in other bytes
    assert made(world, "fuse", "--upstream")["pixel-weights"] == (0, 5)
    assert contents(world) == before
    # the same labels from another method, of a model that is the same
    use(world, "majority")
    same = made(world, "fuse", "--upstream")
    assert set(same) == {"fusion", "pixel-weights"}
    world.settings["teachers"].reverse()
    world.write()
    assert "nothing to do" in world.call("fuse")


def test_worker_processes_change_nothing(world, eager, monkeypatch):
    world.call("fuse", "--upstream")
    expected = contents(world)
    world.settings["workspace"] = "again"
    world.write()
    for node_id in ("fusion", "label-model"):
        make(world, node_id)
    world.settings["runtime"]["workers"] = 2
    world.write()
    spread, started = items.share_out, []
    monkeypatch.setattr(items, "share_out", lambda *a: started.append(a[1]) or spread(*a))
    world.call("fuse")
    assert started[-1].make.func.__name__ == "_weigh"  # the check before it looks at the files
    assert contents(world) == expected


def make(world, node_id, part=None):
    experiment = load(world.file)
    nodes = build(experiment)
    return run(
        nodes,
        experiment.workspace,
        [node_id],
        lambda _: Silent(),
        upstream=part is None,
        part=part,
    )


def test_a_killed_run_and_shares_end_in_the_same_bytes(world, monkeypatch):
    world.call("fuse", "--upstream")
    expected = contents(world)
    shutil.rmtree(world.root / "work/pixel-weights")
    journal, count = LabelMapsDraft.journal, []

    def killed(self, *arguments):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(journal(self, *arguments))

    monkeypatch.setattr(LabelMapsDraft, "journal", killed)
    with pytest.raises(KeyboardInterrupt):
        make(world, "pixel-weights")
    monkeypatch.undo()
    assert world.states()["pixel-weights"] == "partial"
    assert "2/5" in world.call("status")
    assert made(world, "fuse")["pixel-weights"] == (3, 0)
    assert contents(world) == expected
    shutil.rmtree(world.root / "work/pixel-weights")
    for k in (1, 2):
        assert world.states()["pixel-weights"] == ("missing" if k == 1 else "partial")
        make(world, "pixel-weights", Part(k, 2))
    assert contents(world) == expected


def test_a_damaged_image_alone_is_weighed_again(world):
    world.call("fuse", "--upstream")
    expected = contents(world)
    chunk = world.artifact("pixel-weights").path / "maps.zarr/c.3.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert f"{chunk} (item train_000003_000019)" in world.call("verify", expect=1)
    with pytest.raises(CorruptError, match=r"maps\.zarr/c\.3\.0\.0: is not what was written"):
        LabelMaps(world.artifact("pixel-weights")).read("train_000003_000019")
    found = world.json("verify", "--repair")["repair"]
    assert [(r["node"], r["written"], r["total"]) for r in found["ran"]] == [
        ("pixel-weights", 1, 5)
    ]
    assert contents(world) == expected


def test_where_nothing_is_fused_there_is_no_mean(world):
    use(world, "channel")
    world.settings["fusion"] |= {"holes": "ignore"}
    world.settings["policy"] = {"strategy": "manual", "assign": {"building": "b"}}  # who sees none
    world.write()
    assert "mean weight" not in world.call("fuse", "--upstream")
    result = world.artifact("pixel-weights").manifest.result
    assert result["mean"] is None and set(result["classes"].values()) == {None}
    weights = LabelMaps(world.artifact("pixel-weights"))
    assert all(not weights.read(i).any() and r["mean"] is None for i, r in weights.records.items())
    json.dumps(result, allow_nan=False)


def test_the_student_counts_pixels_by_them(tmp_path):
    from ensdistill.stages.training.samples import Samples

    world = World(tmp_path)
    world.settings["student"] |= {"pixel_weights": "posterior", "steps": 4, "class_mix": 0.5}
    world.settings["fusion"] = {"method": "label-model"}
    world.write()
    seen = []
    take = Samples.__getitem__

    def remember(self, k):
        seen.append(take(self, k))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Samples, "__getitem__", remember)
        world.call("train-student", "--upstream")
    assert {tuple(s.weight.shape) for s in seen} == {(32, 48)}
    assert any(0 < s.weight[s.label != 255].float().mean() < 100 for s in seen)
    assert all((s.weight[s.label == 255] == 0).all() for s in seen)
    weighted = world.artifact("student").manifest
    world.settings["student"]["pixel_weights"] = "none"
    world.write()
    world.call("train-student", "--upstream")
    assert world.artifact("student").manifest.result["loss"] != weighted.result["loss"]
