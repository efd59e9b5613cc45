"""What label files hold as a whole, where each of them may be as declared."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ensdistill.cli.__main__ import cli
from ensdistill.data.classes import TABLES, ClassTable
from ensdistill.stages.checks.labels import LabelFolder, described, warnings, without_label

WIDE = TABLES["cityscapes19"]
TWO = ClassTable("two", ("ground", "thing"), ((0, 0, 0), (255, 255, 255)))


def files(values, ids="train_ids", table=WIDE, **goals):
    goals = {c: c for c in table.classes} | goals
    return LabelFolder("teachers[a]", ids, table, goals, 4, values)


def said(values, *more, **goals):
    return " | ".join(warnings(files(values, *more, **goals)))


def test_shares_and_coverage_are_of_all_pixels():
    found = described(files({0: 50, 2: 30, 255: 20}, building=None))
    assert found["shares"] == {"road": 0.5, "building": 0.3, "ignored": 0.2}
    assert found["coverage"] == 0.5
    assert {"road", "building"}.isdisjoint(found["absent"]) and len(found["absent"]) == 17
    assert found["files"] == 4


def test_values_that_mean_one_class_are_one_share():
    table = ClassTable("t", ("a", "b"), ((0, 0, 0), (1, 1, 1)), {3: 0, 4: 1, 5: 255, 6: 255})
    found = described(files({3: 5, 4: 2, 5: 1, 6: 1, 255: 1}, "label_ids", table))
    assert found["shares"] == {"a": 0.5, "b": 0.2, "ignored": 0.3}


@pytest.mark.parametrize(
    ("values", "ids", "goals", "words"),
    [
        ({255: 10}, "train_ids", {}, ["in any of its 4 files", "all are 255"]),
        ({0: 5, 3: 5}, "label_ids", {}, ["all are 0, 3, which is no class"]),
        ({0: 10}, "palette", {}, ["all are #000000"]),
        ({0: 10}, "train_ids", {"road": None}, ["all are of classes that go nowhere (road)"]),
        (
            {0: 6, 255: 4},
            "train_ids",
            {"road": None},
            ["40% are 255, which is no class and 60% are of classes that go nowhere (road)"],
        ),
    ],
)
def test_no_label_at_all(values, ids, goals, words):
    text = without_label(files(values, ids, **goals))
    for word in words:
        assert word in text, text


def test_one_labelled_pixel_is_enough():
    assert without_label(files({255: 10**6, 18: 1})) is None


def test_masks_of_0_and_255():
    assert "8% of the pixels, means no label" in said({0: 92, 255: 8}, "train_ids", TWO)
    assert "ids: palette" in said({0: 92, 255: 8})  # whatever the number of classes
    assert said({0: 92, 1: 2, 255: 8}, "train_ids", TWO) == ""
    assert said({0: 92, 0xFFFFFF: 8}, "palette", TWO) == ""  # read as what they mean
    one = ClassTable("one", ("thing",), ((255, 255, 255),))
    assert said({0: 92, 255: 8}, "train_ids", one) == ""  # one class, and where it is not


def test_train_ids_read_as_label_ids():
    text = said({0: 45, 13: 10, 10: 30, 255: 15}, "label_ids")
    assert "look like train ids (0..13 and 255)" in text and "set `ids: train_ids`" in text
    assert "90% of the pixels get no label" in text
    assert "look like train ids" in said({0: 60, 8: 40}, "label_ids")
    assert said({0: 10, 7: 60, 23: 30}, "label_ids") == ""
    assert said({7: 60, 8: 30, 11: 10}, "label_ids") == ""  # low, but nothing is lost
    assert said({0: 45, 13: 10, 10: 30, 255: 15}) == ""


def test_little_is_left_under_a_class_map():
    text = said({0: 40, 1: 30, 2: 25, 255: 5}, road=None, sidewalk=None)
    assert "only 25.0% of the pixels have a label" in text
    assert "5% are 255" in text and "70% are of classes that go nowhere (road, sidewalk)" in text
    assert said({0: 40, 1: 30, 2: 25, 255: 5}, sidewalk=None) == ""
    many = said(dict.fromkeys(range(19), 10), **dict.fromkeys(WIDE.classes[:12]))
    assert "(road, sidewalk, building and 9 more)" in many


def test_one_class_everywhere():
    assert "call every pixel sky" in said({10: 100})
    assert said({10: 99, 0: 1}) == "" == said({10: 60, 255: 40})


def test_a_folder_that_is_read_in_another_way_than_it_was_written_is_told(world):
    """Through the command: shares, coverage and the likely cause; in --json too."""
    for (split, name), label in world.truth.items():
        world.save("teachers/b", split, name, np.where(label % 2 == 1, label, 0))
    world.settings["teachers"][1]["ids"] = "label_ids"
    world.write()
    text = world.call("check")
    assert "warning: teachers[b].labels.train: these look like train ids (0.." in text
    assert "warning: teachers[b]: labels " in text and "the other 100.0%" in text
    found = world.json("check")["teachers"]["b"]["labels"]
    assert set(found) == {"train", "val"}
    assert found["train"]["coverage"] < 0.3
    assert sum(found["train"]["shares"].values()) == pytest.approx(1)
    text = world.call("check")  # from memory
    assert "these look like train ids" in text


@pytest.mark.slow
def test_who_makes_something_is_warned_as_well(world):
    world.settings["teachers"][1]["map"] = dict.fromkeys(WIDE.classes[:-1])
    for (split, name), label in world.truth.items():
        rows = np.arange(len(label))[:, None]
        world.save("teachers/b", split, name, np.where(rows < 5, 18, label))
    world.write()
    result = CliRunner().invoke(cli, ["infer-teacher", "-c", str(world.file)])
    assert result.exit_code == 0
    assert "warning: teachers[b].labels.train: only " in result.stderr


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_teacher_that_labels_nothing_is_refused(world, split):
    for name in [name for s, name in world.truth if s == split]:
        world.save("teachers/b", split, name, np.full(world.truth[split, name].shape, 255))
    for command in ("check", "run"):
        text = world.refuse(command)
        assert f"teachers[b].labels.{split}: no labelled pixel in any of its" in text
    assert not list((world.root / "work").glob("infer/*"))


def test_ground_truth_without_a_label_is_refused_before_any_work(world):
    for (split, name), label in world.truth.items():
        if split == "val":
            world.save("labels", "val", name, np.full_like(label, 255))
    assert "target.val.labels: no labelled pixel in any of its 3 files" in world.refuse("run")
    assert not list((world.root / "work").glob("infer/*"))
    world.call("check")  # opens none


def test_a_finding_on_many_files_hides_no_other(world):
    for (split, name), label in world.truth.items():
        if split == "train":
            world.save("teachers/a", "train", name, np.full_like(label, 77))
    world.save("teachers/b", "train", "train_000003_000019", np.full((48, 64), 88))
    text = world.refuse("check")
    assert text.count("value 77") == 1 and "(and 4 more like it)" in text
    assert text.count("value 88") == 1
    assert "2 problems" in text


def test_unreadable_files_are_one_finding_for_each_folder(world):
    for kind in ("teachers/a", "teachers/b"):
        for path in (world.root / kind / "train").iterdir():
            path.write_bytes(b"nothing")
    text = world.refuse("check")
    assert "2 problems" in text and text.count("(and 4 more like it)") == 2


def test_a_void_outside_the_table_can_be_declared(world):
    """The way that the refusal names leads on."""
    for (split, name), label in world.truth.items():
        world.save("teachers/b", split, name, np.where(label % 2 == 1, label, 250))
    text = world.refuse("check")
    assert "ignored_label_ids: [250]" in text and "ids: label_ids" in text
    rows = [
        f"- {{name: {name}, colour: [0, 0, {k}], label_id: {k}}}"
        for k, name in enumerate(WIDE.classes)
    ]
    table = "\n".join(["classes:", *rows, "ignored_label_ids: [250]"])
    (world.root / "own.yaml").write_text(table)
    world.settings["teachers"][1] |= {"ids": "label_ids", "classes": "own.yaml"}
    world.write()
    shares = world.json("check")["teachers"]["b"]["labels"]["train"]["shares"]
    assert 0 < shares["ignored"] < 1


def test_ids_that_count_from_one_are_guessed(world):
    for (split, name), label in world.truth.items():
        world.save("teachers/b", split, name, np.where(label == 255, 0, label + 1))
    world.save("teachers/b", "train", "train_000002_000019", np.full((48, 64), 19))
    text = world.refuse("check")
    assert "if they count from 1, and 0 is no class" in text
    assert "ignored_label_ids: [0]" in text


def test_a_split_that_no_teacher_labels_is_told(world):
    for teacher in world.settings["teachers"]:
        teacher["labels"].pop("val")
    world.write()
    text = world.call("check")
    assert "warning: target.val: no teacher has label maps of it" in text


def test_colours_are_counted_by_class(world):
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(WIDE)] = WIDE.colours
    for (split, name), label in world.truth.items():
        rgb = palette[np.where(label == 255, 19, label)]
        path = world.root / "teachers/b" / split / f"{name}.png"
        Image.fromarray(rgb).save(path)
    world.settings["teachers"][1]["ids"] = "palette"
    world.write()
    found = world.json("check")["teachers"]["b"]["labels"]["train"]
    label = np.concatenate([v.ravel() for (s, _), v in world.truth.items() if s == "train"])
    assert found["coverage"] == pytest.approx(np.mean(label != 255))
    assert found["shares"]["road"] == pytest.approx(np.mean(label == 0))
