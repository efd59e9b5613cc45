"""The table of the label model's quality, of a tiny fleet; what generated worlds promise."""

import json
import sys

import numpy as np
import pytest
from labelquality import __main__ as program
from labelquality import families, judging, measures, sweep, timing, worlds

from ensdistill.stages.functional import labelmodel

TINY = {"fleet4": families.Fleet(5, (2, 2), (0.55, 1.0, 2.0, 1.0))}
MAKE = worlds.fleet


def tiny(name):
    return MAKE(name, TINY, {"train": 2, "val": 4})


@pytest.fixture
def world(monkeypatch):
    """A world of four teachers, which the tasks find by its name."""
    world = tiny("fleet4")
    monkeypatch.setitem(judging.WORLDS, world.name, world)
    return world


@pytest.fixture(scope="module")
def fleets():
    """The fleets that the label model is judged on, a few scenes of each."""
    return [worlds.fleet(name, scenes={"train": 0, "val": 12}) for name in families.FLEETS]


def test_the_table_of_a_fleet_comes_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(judging, "WORLDS", {})
    monkeypatch.setattr(program, "FLEETS", TINY)
    monkeypatch.setattr(worlds, "fleet", tiny)
    file = tmp_path / "quality.json"
    asked = f"--world fleets --no-times --processes 1 --fit both --json {file}"
    monkeypatch.setattr(sys, "argv", ["labelquality", *asked.split()])
    assert program.main() == 0
    text, found = capsys.readouterr().out, json.loads(file.read_text())
    for split in ("train", "val"):
        of = found["fits"][split]["fleet4"]
        assert np.isfinite(list(of["figures"].values())).all()
        assert [t["teacher"] for t in of["teachers"]] == ["a0", "a1", "b2", "b3"]
        assert f"{of['figures']['all teachers: label model']:.2f}" in text
    figures = found["fits"]["val"]["fleet4"]["figures"]
    assert figures["compositions: number"] == 5 and figures["pairs: number"] == 6


def test_figures_are_what_they_are_called(world):
    results = judging.perform(measures.tasks(world, "val"), 1)
    found = measures.Found(world, "val", results)
    figures = {f.name: f.value for f in found.figures()}
    model = labelmodel.fit(worlds.count_all(world.maps["val"], families.C), families.C)
    fused = [labelmodel.fuse(maps, model)[0] for maps in world.maps["val"]]
    assert figures["all teachers: label model"] == judging._miou(fused, world.truth, families.C)
    assert figures["best teacher"] == max(world.miou)
    gains = [found.judged(t).miou - found.majority(t) for t in world.compositions]
    assert figures["compositions: against majority, least"] == min(gains)
    without = found.judged((0, 1, 3)).miou
    assert list(found.teachers())[2]["adds"] == found.full.miou - without


def test_times_are_of_two_fleets(monkeypatch):
    monkeypatch.setattr(timing, "SCENES", 2)
    found = dict(timing.times(["fleets"]))
    assert [name.split()[0] for name in found] == ["9", "12"]
    assert all(seconds > 0 for seconds in found.values())


def test_calibration_error():
    chances = np.zeros((2, 101), int)
    assert measures.calibration_error(chances) == 0
    chances[:, 80] = 100, 80
    chances[:, 100] = 100, 90  # in the last bin, as 95 is
    chances[:, 95] = 100, 100
    assert measures.calibration_error(chances) == pytest.approx((195 - 190) / 300)


def test_constants_come_back_whatever_happens():
    before = labelmodel.HELD
    with pytest.raises(ZeroDivisionError), judging.constants([("HELD", 3)]):
        assert labelmodel.HELD == 3
        raise ZeroDivisionError
    assert before == labelmodel.HELD


def test_the_first_setting_is_the_default():
    found = sweep.settings()
    assert dict(found[0]).items() <= vars(labelmodel).items()
    together = {(dict(f)["BANDS"], dict(f)["HELD"]) for f in found}
    assert len(found) == len(set(found)) and len(together) >= 9


def test_constants_reach_the_label_model(world):
    tasks = [measures.sweep_tasks(world, c)[-1] for c in ((), (("BANDS", 1), ("HELD", 1000)))]
    one, other = judging.perform(tasks, 1).values()
    assert one.miou != other.miou


def test_two_worlds_choose_for_the_third():
    def row(bands, *gains):
        of = {name: {"gain": g} for name, g in zip("xyz", gains, strict=True)}
        return {"constants": {"BANDS": bands}, **of}

    rows = [row(6, 1.0, 1.0, 1.0), row(8, 0.5, 3.0, 0.0), row(4, 2.0, 0.0, 1.5)]
    found = {of["left out"]: of for of in sweep.left_out(rows)}
    assert found["x"]["chosen"] == {"BANDS": 8} and found["x"]["gain"] == 0.5
    assert found["y"]["chosen"] == {"BANDS": 4} and found["y"]["gain"] == 0.0
    assert found["z"]["chosen"] == {"BANDS": 8} and found["z"]["at best"] == 1.5
    assert found["nothing"]["gain"] == pytest.approx(3.5 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", worlds.VARIABLES)
def test_real_teachers_have_the_figures_of_the_readme(kind):
    folder = worlds.on_disk(kind)
    if folder is None:
        pytest.skip(f"{worlds.VARIABLES[kind]} is not set")
    world = folder.world({"val"}, 8, 1)
    text = (folder.root / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    told = {row[0]: row[-1] for row in rows if len(row) == len(world.classes) + 2}
    for name, miou in zip(world.teachers, world.miou, strict=True):
        assert miou == pytest.approx(float(told[name]), abs=0.7)


def test_a_fleet_is_the_same_every_time():
    one, other = tiny("fleet4"), tiny("fleet4")
    for a, b in zip(one.maps["val"] + one.truth, other.maps["val"] + other.truth, strict=True):
        assert (a == b).all()
    assert all((m < families.C).all() for m in one.maps["val"])


def test_one_teacher_is_strong_and_two_are_weak(fleets):
    for world, fleet in zip(fleets, families.FLEETS.values(), strict=True):
        order = np.argsort(world.miou)
        assert order[-1] == np.argmin(fleet.skill)
        assert set(order[:2]) == set(np.argsort(fleet.skill)[-2:])


def test_families_share_their_errors(fleets):
    for world, fleet in zip(fleets, families.FLEETS.values(), strict=True):
        alike = {True: [], False: []}
        for a, b in world.pairs:
            alike[bool(fleet.family[a] == fleet.family[b])].append(_alike(world, a, b))
        assert np.mean(alike[True]) > 1.5 * np.mean(alike[False])


def _alike(world, a, b):
    """The part of where either errs that both call the same."""
    same = either = 0
    for maps, truth in zip(world.maps["val"], world.truth, strict=True):
        wrong = (truth != 255) & (maps[[a, b]] != truth).any(axis=0)
        either += wrong.sum()
        same += (wrong & (maps[a] == maps[b])).sum()
    return same / either
