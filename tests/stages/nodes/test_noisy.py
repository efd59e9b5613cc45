"""Noise in a teacher's labels: against maps spoilt by hand, and what a user sees of it."""

import hashlib
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner
from faults import assert_every_kill_is_made_good, proofs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr
from worlds import World

from ensdistill.cli.__main__ import cli
from ensdistill.data.decoding import read_values
from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.errors import NotReadyError
from ensdistill.pipeline.plan import plan
from ensdistill.stages.experiment.schema import NAME
from ensdistill.stages.functional.spoiling import relabel_segments
from ensdistill.stages.graph import build_all, load
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.nodes.certainty.plan import certainty_id
from ensdistill.stages.nodes.noisy.plan import LEVELS, called, labels_id
from ensdistill.stages.reading.noise import noise

NOISY = [f"noisy[a~{level}]" for level in LEVELS[1:]]


def small(root, **more):
    world = World(root, train=4, val=2, size=(28, 40))
    world.settings["fusion"] = {"method": "label-model"}
    for training in ("probe", "student"):
        world.settings[training] |= {"steps": 1, "crop": [16, 24]}
    world.settings["probe"] |= more
    world.write()
    return world


@pytest.fixture
def world(tmp_path):
    return small(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A world whose label model needs no probe, and what was found of its teacher a."""
    world = small(tmp_path_factory.mktemp("noise"), steps=20)
    return world, world.json("ablate", "--noise", "a", "--upstream")


def decided(world):
    experiment = load(world.file)
    return plan(build_all(experiment), experiment.workspace.scan())


def published(world, node_id):
    return decided(world)[node_id].artifact


def maps_of(world, node_id):
    maps = LabelMaps(published(world, node_id))
    return {image_id: maps.read(image_id) for image_id in maps}


def trained(world, *arguments):
    """Return the probes that a command trained."""
    return [r["node"] for r in world.json(*arguments)["ran"] if r["node"].startswith("probe")]


# --- the maps --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS[1:])
def test_maps_are_spoilt_by_the_photograph_and_the_level_alone(done, level):
    world, found = done
    maps, labels, changed = maps_of(world, f"noisy[a~{level}]"), np.zeros(19, int), 0
    for image_id, spoilt in maps.items():
        photograph = (world.root / f"images/train/{image_id}.png").read_bytes()
        text = f"0 {level} {hashlib.sha256(photograph).hexdigest()}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        own = read_values(world.root / f"teachers/a/train/{image_id}.png", palette=False)
        expected = relabel_segments(own, level / 100, 19, np.random.default_rng(seed))
        np.testing.assert_array_equal(spoilt, expected)
        labels += np.bincount(spoilt.ravel(), minlength=19)
        changed += (spoilt != own).sum()
    told = published(world, f"noisy[a~{level}]").manifest.result
    assert (list(told["labels"].values()), told["changed"]) == (labels.tolist(), changed)
    row = found["levels"][LEVELS.index(level)]
    assert (row["noise"], row["changed"]) == (level / 100, changed / labels.sum())


@pytest.mark.slow
def test_neither_order_nor_workers_matter(done, world, eager):
    world.settings["runtime"]["workers"] = 2
    world.write()
    world.call("ablate", "--noise", "a", "--upstream")
    for node_id in NOISY:
        one, other = maps_of(done[0], node_id), maps_of(world, node_id)
        assert one.keys() == other.keys()
        assert all((one[i] == other[i]).all() for i in one)


def test_another_name_of_an_image_is_no_other_noise(world):
    """What is taken from before is what would be computed anew."""
    world.call("ablate", "--noise", "a", "--upstream")
    before = maps_of(world, NOISY[2])
    for kind in ("images", "teachers/a", "teachers/b"):
        folder = world.root / kind / "train"
        (folder / "train_000000_000019.png").rename(folder / "train_000009_000019.png")
    world.call("ablate", "--noise", "a", "--upstream")
    reused = maps_of(world, NOISY[2])
    assert published(world, NOISY[2]).manifest.written == 0
    world.settings["workspace"] = "new"
    world.write()
    world.call("ablate", "--noise", "a", "--upstream")
    anew = maps_of(world, NOISY[2])
    assert list(reused) == list(anew) != list(before)
    assert all((reused[i] == anew[i]).all() for i in anew)


# --- what is found ---------------------------------------------------------------------------


def test_each_level_is_told(done):
    world, found = done
    assert list(found) == ["format", "teacher", "classes", "rank", "levels"]
    assert (found["format"], found["teacher"]) == (1, "a")
    assert [row["noise"] for row in found["levels"]] == [0, 0.05, 0.1, 0.2, 0.4, 0.6]
    changed = [row["changed"] for row in found["levels"]]
    assert changed[0] == 0 < min(changed[1:])
    least, enough = load(world.file).config.policy.min_support, []
    for level, row in zip(LEVELS, found["levels"], strict=True):
        told = published(world, f"certainty[{called('a', level)}]").manifest.result
        assert row["certainty"] == told["certainty"]
        support, pixels = told["support"], sum(told["support"].values())
        has = {c for c, n in support.items() if n and n >= least * pixels and told["has_class"][c]}
        enough.append(has)
    classes = [c for c in row["certainty"] if all(c in of for of in enough)]
    assert found["classes"] == classes != []
    means = [np.mean([row["certainty"][c] for c in classes]) for row in found["levels"]]
    np.testing.assert_allclose([row["mean"] for row in found["levels"]], means)
    assert found["rank"] == pytest.approx(spearmanr(LEVELS, means).statistic, abs=1e-6)
    assert json.loads((world.root / "work/noise.json").read_text()) == found
    with Image.open(world.root / "work/noise.png") as chart:
        assert min(chart.size) > 300


def test_it_is_printed_and_nothing_is_made_again(done):
    text = done[0].call("ablate", "--noise", "a")
    assert "nothing to do" in text and "rank correlation of noise and mean certainty" in text
    assert sum(line.split()[:1] == ["60.0"] for line in text.splitlines()) == 1


def made_up(certainty, support):
    """Return a plan in which each level was told a certainty and a support of road, sky and car."""
    classes = ("road", "sky", "car")
    decisions = {}
    for level, sure, pixels in zip(LEVELS, certainty, support, strict=True):
        result = {
            "certainty": dict(zip(classes, sure, strict=True)),
            "support": dict(zip(classes, pixels, strict=True)),
            "labelled": dict(zip(classes, (10, 10, 10 * (level > 0)), strict=True)),
            "has_class": dict(zip(classes, (True, True, level > 0), strict=True)),
        }
        maps = {"images": 1, "labels": dict.fromkeys(classes, 10), "changed": level // 5}
        for node_id, told in (
            (certainty_id(called("a", level)), result),
            (labels_id("a", level), maps),
        ):
            manifest = SimpleNamespace(manifest=SimpleNamespace(result=told))
            decisions[node_id] = SimpleNamespace(artifact=manifest)
    experiment = SimpleNamespace(
        classes=SimpleNamespace(classes=classes),
        config=SimpleNamespace(policy=SimpleNamespace(min_support=0.1)),
    )
    return experiment, "a", decisions


def test_the_mean_is_over_what_is_supported_at_all_levels():
    """Sky has too few pixels at one level, and cars are none of the teacher's own classes."""
    certainty = [[0.9 - k / 10, 0.5, 0.7] for k in range(6)]
    support = [[90, 90, 90] for _ in range(6)]
    support[3][1] = 19
    found = noise(*made_up(certainty, support))
    assert found["classes"] == ["road"]
    assert [row["mean"] for row in found["levels"]] == [row[0] for row in certainty]
    assert found["rank"] == -1
    assert [row["changed"] for row in found["levels"]] == [n / 30 for n in (0, 1, 2, 4, 8, 12)]
    support[3][1] = 20
    found = noise(*made_up(certainty, support))
    assert found["classes"] == ["road", "sky"]
    assert found["levels"][5]["mean"] == pytest.approx((0.4 + 0.5) / 2)


def test_without_a_class_that_is_supported_at_all_levels_there_is_no_mean():
    certainty = [[0.9, 0.5, None]] * 6
    found = noise(*made_up(certainty, [[90, 0, 0]] * 3 + [[0, 90, 0]] * 3))
    assert (found["classes"], found["rank"]) == ([], None)
    assert {row["mean"] for row in found["levels"]} == {None}


def test_a_level_that_is_gone_is_refused():
    *about, decisions = made_up([[0.9, 0.5, 0.7]] * 6, [[90, 90, 90]] * 6)
    decisions[labels_id("a", 20)].artifact = None
    with pytest.raises(NotReadyError, match="noise of 20 %"):
        noise(*about, decisions)


# --- the command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "strategy"),
    [("channel", "certainty"), ("channel", "reliability"), ("majority", "certainty")],
)
def test_it_works_with_any_fusion_and_without_a_labelled_split(world, fusion, strategy):
    del world.settings["target"]["val"]
    for teacher in world.settings["teachers"]:
        del teacher["labels"]["val"]
    world.settings |= {"fusion": {"method": fusion}, "policy": {"strategy": strategy}}
    world.write()
    dry = world.call("ablate", "--noise", "a", "--upstream", "--dry-run")
    assert "would train 6 probes of up to 1 steps" in dry
    assert not (world.root / "work" / "probe").exists()
    found = world.json("ablate", "--noise", "a", "--upstream")
    assert len(found["levels"]) == 6
    states = {d["node"]: d["state"] for d in world.json("ablate", "--noise", "a", "-n")}
    assert len(states) == 17 and set(states.values()) == {"fresh"}
    assert "would train" not in world.call("ablate", "--noise", "a", "-n")
    assert not any("~" in node for node in world.states())
    if (fusion, strategy) == ("channel", "certainty"):
        assert trained(world, "select-policy", "--upstream") == ["probe[b]"]


def test_the_probe_of_the_policy_is_that_without_noise(world):
    world.settings["fusion"] = {"method": "channel", "window": 5}
    world.write()
    world.call("select-policy", "--upstream")
    text = world.call("ablate", "--noise", "b")
    assert "probe[b~5]" in text and "probe[b]:" not in text


@pytest.mark.slow
def test_folds_and_jobs(done, world):
    """Every level has its folds, and other processes make the same of them."""
    world.settings["probe"] |= {"folds": 2}
    world.write()
    found = world.json("ablate", "--noise", "a", "--upstream")
    assert {f"probe[a~60.{k}]" for k in (1, 2)} <= decided(world).keys()
    world.settings["workspace"] = "other"
    world.settings["runtime"]["jobs"] = 2
    world.write()
    assert world.json("ablate", "--noise", "a", "--upstream") == found


def test_all_maps_come_before_the_first_probe(world):
    """So that the probes of all levels can be made at a time (`runtime.jobs`)."""
    stages = [n.stage for n in build_all(load(world.file))]
    assert len(stages) - stages[::-1].index("noisy") <= stages.index("probe")


def test_labels_that_are_missing_are_named(world):
    assert "infer-teacher" in world.refuse("ablate", "--noise", "a")


def test_an_unknown_teacher_is_refused(world):
    for more in ([], ["--dry-run"]):
        text = world.refuse("ablate", "--noise", "c", *more)
        assert text == "ConfigError: no teacher is named 'c'; there are a, b"


def test_a_split_is_none_of_its_matters(world):
    arguments = ["ablate", "--noise", "a", "--split", "val", "-c", str(world.file)]
    found = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(found.exception, click.UsageError) and "no --split" in str(found.exception)


def test_a_single_class_is_refused(world):
    table = world.root / "one.yaml"
    table.write_text("classes: [{name: road, colour: [128, 64, 128]}]")
    world.settings["classes"] = {"table": "one.yaml"}
    for teacher in world.settings["teachers"]:
        teacher["map"] = {"road": "road"}
        teacher["classes"] = "cityscapes19"
    world.write()
    assert "expected two classes" in world.refuse("ablate", "--noise", "a", "--upstream")


# --- what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3, 17])
def test_what_was_done_before_an_interruption_is_kept(done, world, monkeypatch, after):
    world.settings["probe"]["steps"] = 20
    world.write()
    world.call("infer-teacher")
    record, made = Draft.record, []

    def noted(draft, item_id, **fields):
        if draft.path.parent.name == "noisy":
            if len(made) == after:
                raise KeyboardInterrupt
            made.append((draft.path.name, item_id))
        record(draft, item_id, **fields)

    monkeypatch.setattr(Draft, "record", noted)
    world.call("ablate", "--noise", "a", expect=1)
    # also certainties of 4 images at 6 levels
    left = f"would compute at most {20 - after + 24} images"
    assert left in world.call("ablate", "--noise", "a", "-n")
    after = None
    assert world.json("ablate", "--noise", "a") == done[1]
    assert len(made) == len(set(made)) == 20


@pytest.mark.slow
def test_a_kill_at_any_step_ends_in_the_same_bytes(done):
    assert_every_kill_is_made_good(done[0], "noisy", "ablate", "--noise", "a", every=7)


names = st.from_regex(NAME, fullmatch=True)


@given(st.lists(names, min_size=2, max_size=4, unique=True))
def test_no_two_labels_are_called_alike(teachers):
    every = Counter(called(t, level) for t in [*teachers, "a", "a.20"] for level in LEVELS)
    assert max(every[called(t, level)] for t in teachers for level in LEVELS) <= 2
    assert not any(NAME.fullmatch(called(t, 5)) for t in teachers)


def test_no_node_of_one_teacher_is_another_teachers(world):
    for name in ("a.20", "a-20", "a.5.1"):
        world.add_teacher(name, lambda label: label)
    world.settings["probe"]["folds"] = 2
    world.write()
    nodes = build_all(load(world.file))
    assert max(Counter(n.id for n in nodes).values()) == 1
    assert max(Counter((n.stage, n.name) for n in nodes).values()) == 1


def test_gc_keeps_it_while_the_experiment_has_the_teacher(done, tmp_path):
    shutil.copytree(done[0].root, tmp_path / "copy")
    world = small(tmp_path / "other")
    world.root, world.file = tmp_path / "copy", tmp_path / "copy/experiment.yaml"
    world.settings["probe"]["steps"] = 20
    rows = world.json("gc")
    assert {r["node"]: r["reason"] for r in rows}["noisy[a~20]"] == "is noisy[a~20]"
    assert not [r for r in rows if r["reason"] is None]
    assert "fresh" in world.call("explain", "certainty[a~20]")
    world.settings["teachers"] = [world.entry("b"), world.entry("c")]
    world.teacher("c", lambda label: label)
    world.write()
    gone = {r["node"] for r in world.json("gc") if r["reason"] is None}
    every = {
        n
        for level in LEVELS
        for n in (f"probe[{called('a', level)}]", f"certainty[{called('a', level)}]")
    }
    assert gone >= {*NOISY, *every}


def test_a_damaged_map_is_made_again(done, tmp_path):
    shutil.copytree(done[0].root, tmp_path / "copy")
    world = small(tmp_path / "other")
    world.root, world.file = tmp_path / "copy", tmp_path / "copy/experiment.yaml"
    before = proofs(world.root / "work")
    folder = published(world, "noisy[a~20]").path
    file = folder / published(world, "noisy[a~20]").items[1]["file"][0]
    file.write_bytes(file.read_bytes()[:-1])
    assert "1 damages in 1" in world.call("verify", expect=1)
    world.call("verify", "--repair")
    assert proofs(world.root / "work") == before
