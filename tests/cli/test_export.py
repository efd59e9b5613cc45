"""`ensdistill export`: what it refuses, and what it leaves behind."""

import errno
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from worlds import World, files_of

from ensdistill.cli.__main__ import cli
from ensdistill.stages.export import labels as exporting
from ensdistill.stages.labelmaps import LabelMaps


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world with fused labels; nobody changes it."""
    world = World(tmp_path_factory.mktemp("made"), train=3, val=1)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    return world


@pytest.fixture
def own(tmp_path):
    """The same, to be changed."""
    world = World(tmp_path, train=3, val=1)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    return world


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def left(out):
    """Return what lies where the export would be, hidden or not."""
    return sorted(p.name for p in out.parent.iterdir() if "out" in p.name)


@pytest.mark.parametrize(
    "options, texts",
    [
        (["--of", "c"], ["'c'", "fusion, student or a teacher (a, b)"]),
        (["--split", "test"], ["no split 'test'", "train, val"]),
        (["--of", "student"], ["student has no label maps of train", "val"]),
        (["--split", "val"], ["fusion[majority]@val is missing", "`ensdistill evaluate`"]),
        (["--of", "a", "--split", "val"], ["infer[a]@val", "ensdistill evaluate --split val"]),
    ],
)
def test_labels_that_are_not_there_are_refused(made, out, options, texts):
    said = made.refuse("export", "labels", "-o", str(out), *options)
    assert all(text in said for text in texts), said
    assert not left(out)


def test_what_is_made_is_named_once(made, out):
    made.call("export", "labels", str(out))
    made.call("export", "labels", "-o", f"{out}-named")
    assert files_of(out).keys() == files_of(Path(f"{out}-named")).keys()
    twice = [f"{out}-a", "-o", f"{out}-b"]
    for given in (["labels"], ["labels", *twice], ["student", "--as", "hf"]):
        result = CliRunner().invoke(cli, ["export", *given, "-c", str(made.file)])
        assert result.exit_code == 2
        assert "Name one new folder or file to make, such as -o exported." in result.output
    assert left(out) == ["out", "out-named"]


@pytest.mark.parametrize("command", [["labels"], ["student", "--as", "hf"]])
def test_nothing_is_made_among_artifacts(made, command):
    for place in (made.root / "work/fusion/new", made.root / "work/infer/../student/new/hf"):
        said = made.refuse("export", *command, "-o", str(place))
        assert f"{place} lies among the artifacts of" in said
        assert not place.parent.joinpath("new").exists()


def test_a_file_beside_the_artifacts_may_be_called_as_a_stage_is(own):
    own.call("train-student")
    own.call("export", "student", "-o", str(own.root / "work/student"), "--as", "state-dict")
    assert (own.root / "work/student.safetensors").is_file()


def test_a_student_that_is_not_there_is_refused(made, out):
    said = made.refuse("export", "student", "-o", str(out), "--as", "state-dict")
    assert "NotReadyError: student is missing" in said
    assert "run `ensdistill train-student` first" in said and not left(out)


def test_stale_labels_are_refused(own, out):
    own.teacher("a", lambda label: label)
    said = own.refuse("export", "labels", "-o", str(out))
    assert "NotReadyError: fusion is stale" in said and "`ensdistill fuse`" in said
    assert not left(out)


def test_spoilt_labels_are_refused_and_leave_nothing(own, out):
    fused = own.artifact("fusion")
    chunk = fused.path / fused.items[1]["file"][0]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    said = own.refuse("export", "labels", "-o", str(out))
    assert "CorruptError" in said and str(chunk) in said and "verify --repair" in said
    assert not left(out)


def test_a_spoilt_student_is_refused(own, out):
    own.call("train-student")
    weights = own.artifact("student").path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = own.refuse("export", "student", "-o", str(out), "--as", "state-dict")
    assert "CorruptError" in said and "model.safetensors" in said and not left(out)


def test_an_image_that_changed_is_not_copied(own, out, monkeypatch):
    order = exporting.order

    def late(*arguments, **more):
        found = order(*arguments, **more)
        image_id = found.local.pictures[0].id
        own.save("images", "train", image_id, 0 * own.truth["train", "train_000000_000019"])
        return found

    monkeypatch.setattr(exporting, "order", late)
    said = own.refuse("export", "labels", "-o", str(out), "--copy-images")
    assert "DataError" in said and "changed" in said and not left(out)


def test_ground_truth_is_not_opened(own, out):
    """It could not be: what lies there are folders that have its names."""
    for file in (own.root / "labels").rglob("*.png"):
        file.unlink()
        file.mkdir()
    own.call("train-student")
    own.call("export", "labels", "-o", str(out))
    own.call("export", "student", "-o", str(out.with_name("s")), "--as", "state-dict")


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_nothing_is_overwritten(made, out, kind):
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    for command in (["labels", "-o", str(out)], ["student", "-o", str(out), "--as", "hf"]):
        said = made.refuse("export", *command)
        assert "ConfigError" in said and str(out) in said and "overwritten" in said
    assert left(out) == ["out"]


@pytest.mark.parametrize("place", ["file/out", "file/x/out"])
def test_a_file_on_the_way_is_named(made, out, place):
    out.with_name("file").write_text("mine")
    said = made.refuse("export", "labels", "-o", str(out.parent / place))
    assert "ConfigError" in said and "is no folder" in said
    assert out.with_name("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.safetensors.md", "out.json", "out.safetensors"])
def test_no_file_beside_the_student_is_overwritten(made, out, name):
    out.with_name(name).write_text("mine")
    said = made.refuse("export", "student", "-o", str(out), "--as", "state-dict")
    assert name in said and left(out) == [name]


def test_the_server_takes_label_ids_and_images_of_cityscapes_alone(made, out):
    file = str(out) + ".zip"
    assert "--ids label-ids" in made.refuse("export", "labels", "-o", file)
    label_ids = ("--ids", "label-ids")
    assert "no images" in made.refuse("export", "labels", "-o", file, *label_ids, "--copy-images")
    # <city>_<seq>_<frame>, as their names are
    made.call("export", "labels", "-o", file, *label_ids)
    assert left(out) == ["out.zip"]


def test_images_that_the_server_does_not_know_are_refused(own, out):
    for folder in ("images", "teachers/a", "teachers/b"):
        file = own.root / folder / "train/train_000000_000019.png"
        file.rename(file.with_name("first.png"))
    own.call("fuse", "--upstream")
    said = own.refuse("export", "labels", "-o", str(out) + ".zip", "--ids", "label-ids")
    assert "first.png" in said and "<city>_<seq>_<frame>" in said and not left(out)


def test_a_table_without_label_ids_has_none(own, out):
    own.settings["classes"] = {"table": "camvid11"}
    for teacher in own.settings["teachers"]:
        teacher |= {"classes": "cityscapes19", "map": {"sidewalk": "pavement"}}
    own.write()
    own.call("fuse", "--upstream")
    for target in (str(out), str(out) + ".zip"):
        said = own.refuse("export", "labels", "-o", target, "--ids", "label-ids")
        assert "camvid11 has no label ids" in said and "--ids train-ids" in said
    assert not left(out)


def mixed(own, *suffixes):
    """Give the images these suffixes, and the formats that they say."""
    files = sorted((own.root / "images/train").iterdir())
    for file, suffix in zip(files, suffixes, strict=True):
        with Image.open(file) as image:
            image.load()
        file.unlink()
        png = suffix.lower() in (".png", "")
        image.save(file.with_suffix(suffix), "PNG" if png else "JPEG")
    own.settings["target"]["train"]["images"] = "images/train/*"
    own.write()
    own.call("fuse", "--upstream")


@pytest.mark.parametrize("layout", ["flat", "zip"])
@pytest.mark.parametrize(
    "suffixes, end, changed",
    [
        ((".jpg", ".JPG", ".jpeg"), ".jpg", 0),
        ((".JPG", ".JPG", ".JPG"), ".JPG", 0),
        ((".jpg", ".PNG", ".jpeg"), ".png", 2),
        ((".png", ".JPEG", ".PNG"), ".png", 1),
    ],
)
def test_label_maps_are_had_whatever_images_are_called(own, out, layout, suffixes, end, changed):
    mixed(own, *suffixes)
    if layout == "zip":
        own.call("export", "labels", "-o", str(out) + ".ZIP", "--ids", "label-ids")
        with zipfile.ZipFile(str(out) + ".ZIP") as packed:
            assert len(packed.namelist()) == 3
        return
    said = own.call("export", "labels", "-o", str(out))
    assert ("written as PNG" in said) == bool(changed)
    ids = [f"train_{k:06}_000019" for k in range(3)]
    images = sorted((out / "images/train").iterdir())
    assert [p.name for p in images] == [f"{i}{end}" for i in ids]
    assert sorted(p.name for p in (out / "labels/train").iterdir()) == [f"{i}.png" for i in ids]
    assert sum(not p.is_symlink() for p in images) == changed
    for image, source in zip(images, sorted((own.root / "images/train").iterdir()), strict=True):
        with Image.open(image) as one, Image.open(source) as other:  # the same photograph
            assert np.array_equal(np.asarray(one), np.asarray(other))
            assert one.format == ("PNG" if image.suffix == ".png" else "JPEG")
    text = (out / "README.md").read_text()
    assert (f"{changed} of the images were written as PNG" in text) == bool(changed)
    copied = out.with_name("out-copied")
    own.call("export", "labels", "-o", str(copied), "--copy-images")
    assert {p.name: p.read_bytes() for p in images} == files_of(copied / "images/train")


def test_names_that_are_no_utf8_are_exported(own, out):
    old = "train_000000_000019.png"
    new = os.fsdecode(b"stra\xdfe_[1].png")
    for folder in ("images", "teachers/a", "teachers/b"):
        (own.root / folder / "train" / old).rename(own.root / folder / "train" / new)
    own.file = own.file.rename(own.root / os.fsdecode(b"\xdf.yaml"))
    own.call("fuse", "--upstream")
    own.call("export", "labels", "-o", str(out))
    assert (out / "labels/train" / new).is_file() and (out / "images/train" / new).is_file()
    assert "`\\xdf.yaml`" in (out / "README.md").read_text("utf-8")
    own.call("train-student")
    own.call("export", "student", "-o", str(out.with_name("out-s")), "--as", "state-dict")
    assert "`\\xdf.yaml`" in out.with_name("out-s.safetensors.md").read_text("utf-8")


def test_images_of_one_name_keep_their_folders(made, out, monkeypatch):
    """As ids do where stems are not unique."""
    order = exporting.order

    def nested(*arguments, **more):
        found = order(*arguments, **more)
        pictures = [replace(p, id=f"city{k}/0001") for k, p in enumerate(found.local.pictures)]
        return replace(found, local=replace(found.local, pictures=pictures))

    class Maps(LabelMaps):
        def find(self, image_id):
            return super().find(f"train_{int(image_id[4]):06}_000019")

    monkeypatch.setattr(exporting, "order", nested)
    monkeypatch.setattr(exporting, "LabelMaps", Maps)
    made.call("export", "labels", "-o", str(out))
    for folder in ("images", "labels"):
        found = sorted((out / folder / "train").rglob("*.png"))
        assert [p.relative_to(out / folder / "train").as_posix() for p in found] == [
            f"city{k}/0001.png" for k in range(3)
        ]
    assert "looks into no folders below" in (out / "README.md").read_text()


def test_where_links_cannot_be_made_images_are_copied(made, out, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted", "link")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    said = made.refuse("export", "labels", "-o", str(out))
    assert "DataError" in said and "--copy-images" in said and not left(out)
    made.call("export", "labels", "-o", str(out), "--copy-images")


def test_the_readme_names_no_place(made, out):
    made.call("export", "labels", "-o", str(out))
    assert str(out.parent) not in (out / "README.md").read_text()


def test_a_file_of_the_users_beside_the_student_is_no_hindrance(own, out):
    own.call("train-student")
    out.with_name("out.md").write_text("mine")
    own.call("export", "student", "-o", str(out), "--as", "state-dict")
    assert out.with_name("out.md").read_text() == "mine"


def test_a_missing_package_is_said_first(made, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out.with_name("out.onnx").write_text("mine")
    said = made.refuse("export", "student", "-o", str(out), "--as", "onnx")
    assert "pip install 'ensdistill[onnx]'" in said


@pytest.mark.parametrize("options", [[], ["--of", "a", "--ids", "palette"]])
def test_a_dry_run_says_what_would_be_and_does_nothing(made, out, options):
    command = ["export", "labels", "-o", str(out), *options, "--dry-run"]
    said = made.json(*command)
    assert said["target"] == str(out) and said["images"] == 3
    assert said["layout"] == ["images/train", "labels/train"]
    assert said["node"] in ("fusion", "infer[a]") and len(said["fingerprint"]) == 64
    assert "3 label maps" in made.call(*command)
    assert not left(out)


def test_an_interrupted_export_leaves_nothing(made, out, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "png", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        made.call("export", "labels", "-o", str(out))
    assert not left(out)


KILLED = """
import os, signal, sys
from ensdistill.cli.__main__ import main
from ensdistill.stages.export import labels

write, count = labels.write, []

def kill_at_the_second(folder, name, content):
    count.append(name)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, name, content)

labels.write = kill_at_the_second
main(["export", "labels", *sys.argv[1:]])
"""


def test_a_killed_export_leaves_nothing_under_its_name(made, out):
    arguments = ["-o", str(out), "-c", str(made.file)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -9
    assert not out.exists() and len(left(out)) == 1  # the hidden draft
    assert "3 label maps of fusion are there" in made.call("export", "labels", "-o", str(out))
    assert len(files_of(out / "labels")) == 3
