"""`ensdistill import`: folders as the method's published code leaves them become an experiment."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from opened import opened
from PIL import Image
from worlds import World, files_of

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.stages.graph import load
from ensdistill.stages.labelmaps import LabelMaps

CLASSES = 19


def call(*arguments, expect=None):
    """Run `ensdistill import` and return what it printed; `expect` names the error."""
    result = CliRunner().invoke(cli, ["import", *map(str, arguments)])
    if expect is not None:
        assert isinstance(result.exception, expect), result.output
        return str(result.exception)
    if result.exception is not None:
        raise result.exception
    return result.stdout


class Published:
    """Workspaces as the release of the method writes them, of the images of a `World`.

    One folder for each teacher, flat, ``<image>_leftImg8bit.png`` of train ids.
    """

    def __init__(self, world):
        self.world = world
        self.root = world.root / "published"
        self.ids = sorted(i for split, i in world.truth if split == "train")
        for name in ("a", "b"):
            for image_id in self.ids:
                self.save(name, image_id, self.labels(name, image_id))

    def labels(self, name, image_id):
        return np.asarray(
            Image.open(self.world.root / f"teachers/{name}/train" / f"{image_id}.png")
        )

    def save(self, name, image_id, labels, suffix="_leftImg8bit"):
        path = self.root / name / f"{image_id}{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(path)
        return path

    def tensor(self, name, image_id, seed=0):
        """The softmax of all classes in whole percent, largest where the label is."""
        labels = self.labels(name, image_id)
        rng = np.random.default_rng([seed, self.ids.index(image_id)])
        tensor = rng.integers(0, 30, (*labels.shape, CLASSES)).astype(np.uint8)
        own = rng.integers(40, 101, labels.shape).astype(np.uint8)
        np.put_along_axis(tensor, labels[..., None], own[..., None], axis=2)
        return tensor, own

    def call(self, *more, folders=("A={}/a", "B={}/b"), expect=None):
        named = [f.format(self.root) for f in folders]
        where = self.world.root
        images = ["--images", f"{where}/images/train/*.png", "-o", str(where / "imported.yaml")]
        return call(*images, *named, *more, expect=expect)

    @property
    def file(self):
        return self.world.root / "imported.yaml"


@pytest.fixture
def published(world):
    return Published(world)


def fused(file):
    """Fuse what an experiment file says and return image id to label map."""
    result = CliRunner().invoke(cli, ["fuse", "--upstream", "-c", str(file)])
    assert result.exception is None, result.exception
    from ensdistill.pipeline.plan import plan
    from ensdistill.stages.graph import build

    experiment = load(file)
    artifact = plan(build(experiment), experiment.workspace.scan())["fusion"].artifact
    maps = LabelMaps(artifact)
    return {i: maps.read(i) for i in maps}


@pytest.mark.slow
def test_an_imported_experiment_fuses_as_one_written_by_hand(published):
    world = published.world
    found = published.call(folders=("a={}/a", "b={}/b"))
    assert "next: `ensdistill check -c" in found
    world.settings["fusion"] = {"method": "label-model"}
    world.settings["workspace"] = "by-hand"
    for teacher in world.settings["teachers"]:
        teacher["labels"] = {"train": f"teachers/{teacher['name']}/train"}
    world.write()
    assert load(published.file).config.fusion.method == "label-model"
    one, other = fused(published.file), fused(world.file)
    assert list(one) == list(other) == published.ids
    for image_id in one:
        np.testing.assert_array_equal(one[image_id], other[image_id])


def test_what_was_imported_passes_the_check_without_reading_a_label_map_again(
    published, monkeypatch
):
    published.call()
    from ensdistill.stages.checks import files as check

    monkeypatch.setattr(check, "look", lambda item: pytest.fail(f"{item} is read again"))
    result = CliRunner().invoke(cli, ["check", "-c", str(published.file)])
    assert result.exit_code == 0, result.exception


def test_label_maps_are_matched_by_name_and_not_by_position(published):
    first, second = published.ids[1], published.ids[2]
    (published.root / "a" / f"{first}_leftImg8bit.png").rename(published.root / "kept.png")
    # in another folder below, which is listed last, under the name without the suffix
    (published.root / "a" / "z").mkdir()
    (published.root / "kept.png").rename(published.root / "a" / "z" / f"{first}.png")
    published.call()
    experiment = load(published.file)
    from ensdistill.stages.checks.importing import find

    found = {f.name: f for f in find(experiment)}["A"]
    assert Path(found.labels[first]).parent.name == "z"
    assert Path(found.labels[second]).parent.name == "a"


def test_the_file_holds_paths_as_they_were_given_and_comments(published, monkeypatch):
    monkeypatch.chdir(published.world.root)
    (published.world.root / "sub").mkdir()
    images = ["--images", "images/train/*.png"]
    call(*images, "published/a", f"B={published.root}/b", "-o", "sub/e.yaml")
    text = Path("sub/e.yaml").read_text()
    content = yaml.safe_load(text)
    assert content["target"]["train"]["images"] == "../images/train/*.png"
    assert content["teachers"][0] == {"name": "a", "labels": {"train": "../published/a"}}
    assert content["teachers"][1]["labels"]["train"] == f"{published.root}/b"
    assert text.count("#") > 6 and "@" not in text
    assert len(load(Path("sub/e.yaml")).pictures("train")) == 5


def test_missing_label_maps_are_counted_and_nothing_is_written(published):
    for image_id in published.ids[1:3]:
        (published.root / "b" / f"{image_id}_leftImg8bit.png").unlink()
    (published.root / "a" / f"{published.ids[0]}_leftImg8bit.png").unlink()
    error = published.call(expect=DataError)
    assert "A: 1 of 5 images have no prediction" in error
    assert "B: 2 of 5 images have no prediction" in error and published.ids[1] in error
    assert not published.file.exists()


def test_pngs_of_no_image_are_named(published):
    colour = published.save("a", published.ids[0], np.zeros((4, 4)), "_leftImg8bit_color")
    assert f"not needed: {colour.name}" in published.call("--dry-run")
    assert json.loads(published.call("--json"))["teachers"]["A"]["extra"] == [str(colour)]


def test_illegal_values_and_other_sizes_are_refused_with_their_file(published):
    bad = published.labels("a", published.ids[1]).copy()
    bad[3, 3] = 30
    path = published.save("a", published.ids[1], bad)
    small = published.save("b", published.ids[2], np.zeros((7, 9)))
    error = published.call(expect=DataError)
    assert f"{path}: value 30 on 1 pixels is outside the train_ids" in error
    assert f"{small}: 7x9 pixels" in error and "nothing was written" in error
    assert not published.file.exists()


def test_names(published):
    assert "both called 'a'" in published.call(folders=("a={}/a", "a={}/b"), expect=ConfigError)
    assert "is given twice" in published.call(folders=("x={}/a", "y={}/a"), expect=ConfigError)
    error = published.call(folders=("student={}/a",), expect=ConfigError)
    assert "name of a method" in error and "NAME=" in error
    assert "cannot name a teacher" in published.call(folders=("a b={}/a",), expect=ConfigError)
    assert "is no folder" in published.call(folders=("c={}/c",), expect=DataError)


def test_an_existing_file_is_never_overwritten(published):
    published.file.write_text("mine")
    assert "not overwritten" in published.call(expect=ConfigError)
    assert published.file.read_text() == "mine"


def test_a_link_is_not_written_through(published):
    goal = published.file.with_name("goal.yaml")
    published.file.symlink_to(goal)
    assert "is a link" in published.call(expect=ConfigError)
    assert not goal.exists()


def test_another_file_is_replaced_where_the_user_says_so(published):
    published.file.write_text("mine")
    published.call("--overwrite")
    assert "teachers:" in published.file.read_text()


def test_a_dry_run_opens_and_writes_nothing(published):
    before = files_of(published.world.root)
    with opened() as paths:
        out = published.call("--dry-run")
    assert "would read all of them and write" in out and "fusion: {method: label-model}" in out
    assert not [p for p in paths if p.endswith(".png")]
    assert files_of(published.world.root) == before


def test_a_labelled_split_and_who_covers_it(published):
    world = published.world
    for split, image_id in world.truth:
        if split == "val":
            published.save("a", image_id, np.zeros_like(world.truth[split, image_id]))
    val = ["--val-images", f"{world.root}/images/val/*.png"]
    assert "go together" in published.call(*val, expect=ConfigError)
    with opened() as paths:
        out = published.call(*val, "--val-labels", f"{world.root}/labels/val/*.png")
    assert [p for p in paths if "/images/val/" in p]
    assert not [p for p in paths if "/labels/val/" in p]
    assert "A: label maps of 5 training images, labels train and val\n" in out
    content = load(published.file).config
    assert list(content.teachers[0].labels) == ["train", "val"]
    assert list(content.teachers[1].labels) == ["train"]
    assert content.target["val"].ids == "train_ids"


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_the_releases_tensors_become_the_confidence_of_each_label(published, kind, tmp_path):
    expected = {}
    for image_id in published.ids:
        tensor, own = published.tensor("a", image_id)
        expected[image_id] = own
        file = published.root / "a" / f"{image_id}_leftImg8bit.{kind}"
        np.save(file, tensor) if kind == "npy" else np.savez_compressed(file, tensor)
    before = files_of(published.root)
    error = published.call(expect=ConfigError)
    assert "A: there are confidences" in error and "--confidences DIR" in error
    out = published.call("--confidences", tmp_path / "sure")
    assert "5 PNGs written" in out and "warning" not in out
    assert files_of(published.root) == before
    for image_id, own in expected.items():
        grey = np.asarray(Image.open(tmp_path / "sure/A" / f"{image_id}.png"))
        assert np.abs(grey / 255 - own / 100).max() <= 0.5 / 255
    teachers = load(published.file).config.teachers
    assert teachers[0].confidence == {"train": str(tmp_path / "sure/A")}
    assert teachers[1].confidence is None
    result = CliRunner().invoke(cli, ["infer-teacher", "-c", str(published.file)])
    assert result.exception is None, result.exception


def test_a_second_import_takes_the_pngs_that_are_there(published, tmp_path):
    arrays = {i: published.root / "a" / f"{i}_leftImg8bit.npy" for i in published.ids}
    for image_id, file in arrays.items():
        np.save(file, published.tensor("a", image_id)[0])
    published.call("--confidences", tmp_path / "sure")
    made = files_of(tmp_path / "sure")
    published.file.unlink()
    np.save(arrays[published.ids[2]], published.tensor("a", published.ids[2], seed=1)[0])
    out = published.call("--confidences", tmp_path / "sure")
    assert "1 PNGs written, 4 there already" in out
    changed = [n for n, b in files_of(tmp_path / "sure").items() if made[n] != b]
    assert changed == [f"A/{published.ids[2]}.png"]


def test_what_was_converted_before_an_error_is_kept(published, tmp_path):
    arrays = {i: published.root / "a" / f"{i}.npy" for i in published.ids}
    for image_id, file in arrays.items():
        np.save(file, published.tensor("a", image_id)[0])
    spoilt = arrays[published.ids[3]]
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[:-10])
    error = published.call("--confidences", tmp_path / "sure", expect=DataError)
    assert str(spoilt) in error and not published.file.exists()
    spoilt.write_bytes(whole)
    out = published.call("--confidences", tmp_path / "sure")
    assert "2 PNGs written, 3 there already" in out


def test_another_png_is_not_overwritten(published, tmp_path):
    for image_id in published.ids:
        np.save(published.root / "a" / f"{image_id}.npy", published.tensor("a", image_id)[0])
    mine = tmp_path / "sure/A" / f"{published.ids[3]}.png"
    mine.parent.mkdir(parents=True)
    Image.new("L", (3, 3)).save(mine)
    content = mine.read_bytes()
    assert str(mine) in published.call("--confidences", tmp_path / "sure", expect=DataError)
    assert mine.read_bytes() == content and not published.file.exists()
    mine.unlink()
    os.mkfifo(mine)  # which nobody writes into
    assert str(mine) in published.call("--confidences", tmp_path / "sure", expect=DataError)


def test_confidences_are_of_all_images_and_outside_of_the_folders(published, tmp_path):
    sure = ["--confidences", tmp_path / "sure"]
    assert "no .npy or .npz" in published.call(*sure, expect=ConfigError)
    for image_id in published.ids[1:]:
        np.save(published.root / "a" / f"{image_id}.npy", published.tensor("a", image_id)[0])
    error = published.call(*sure, expect=DataError)
    assert f"1 of 5 images have no confidences in {published.root}/a" in error
    first = published.ids[0]
    np.save(published.root / "a" / f"{first}.npy", published.tensor("a", first)[0])
    for inside in (published.root / "a", published.root / "b" / "sure"):
        assert "nothing is written there" in published.call(
            "--confidences", inside, expect=ConfigError
        )
    published.call(*sure, "--dry-run")
    assert not (tmp_path / "sure").exists()
    np.savez(published.root / "a" / f"{first}_leftImg8bit.npz", np.zeros((4, 4)))
    said = published.call(*sure, expect=DataError)
    assert "A, confidences: " in said
    assert "have the same image id" in said


def test_confidences_of_other_labels_are_warned_of(published, tmp_path):
    for image_id in published.ids:
        np.save(published.root / "a" / f"{image_id}.npy", published.tensor("b", image_id)[0])
    assert "do they belong together" in published.call("--confidences", tmp_path / "sure")


def test_camvid_arrays_at_half_size(camvid, tmp_path, monkeypatch):
    """Real label maps; arrays (H/2, W/2) of percents, of floats, in archives."""
    name, count = "espnetv2", 24
    images = sorted((camvid / "images/train").iterdir())[:count]
    for kind in ("images", "espnetv2/labels", "espnetv2/confidence"):
        (tmp_path / kind).mkdir(parents=True)
    sure = {}
    for image in images:
        (tmp_path / "images" / image.name).symlink_to(image)
        label = camvid / "teachers" / name / "train" / f"{image.stem}.png"
        (tmp_path / name / "labels" / label.name).symlink_to(label)
        grey = np.asarray(Image.open(camvid / "certainty" / name / "train" / label.name))
        sure[image.stem] = grey * np.float32(100 / 255)
        np.savez_compressed(tmp_path / name / "confidence" / image.stem, sure[image.stem])
    monkeypatch.chdir(tmp_path)
    call("--images", "images/*.jpg", name, "--confidences", "sure")
    for stem, percents in sure.items():
        grey = np.asarray(Image.open(tmp_path / "sure" / name / f"{stem}.png"))
        assert np.abs(grey / 255 - percents / 100).max() <= 0.5 / 255 + 1e-6
    result = CliRunner().invoke(cli, ["infer-teacher", "--json"])
    assert result.exception is None, result.exception
    ran = {r["node"]: r["written"] for r in json.loads(result.stdout)["ran"]}
    assert ran == {f"infer[{name}]": count, f"confidence[{name}]": count}
    experiment = load(tmp_path / "experiment.yaml")
    assert experiment.classes.name == "cityscapes19"


def test_a_world_of_one_image_without_confidences(tmp_path):
    world = World(tmp_path, train=1, val=0)
    call(
        "--images",
        f"{tmp_path}/images/train/*.png",
        f"{tmp_path}/teachers/a/train",
        "-o",
        tmp_path / "one.yaml",
    )
    assert load(tmp_path / "one.yaml").config.teachers[0].name == "train"
    assert world.file.exists()


@pytest.mark.parametrize("name", ["image", "prediction", "table"])
def test_no_input_is_overwritten_whatever_the_user_says(world, name):
    world.settings["classes"]["table"] = "classes.yaml"
    table = world.root / "classes.yaml"
    rows = [
        {"name": c, "colour": [k, k, k]} for k, c in enumerate(load(world.file).classes.classes)
    ]
    table.write_text(yaml.safe_dump({"classes": rows}))
    image = min((world.root / "images" / "train").rglob("*.png"))
    prediction = min((world.root / "teachers" / "a" / "train").rglob("*.png"))
    target = {"image": image, "prediction": prediction, "table": table}[name]
    before = target.read_bytes()
    arguments = ["--images", str(world.root / "images/train/**/*.png"), "--classes", str(table)]
    teacher = f"A={world.root / 'teachers/a/train'}"
    result = CliRunner().invoke(
        cli, ["import", *arguments, teacher, "-o", str(target), "--overwrite"]
    )
    assert isinstance(result.exception, ConfigError), result.output
    assert "is never overwritten" in str(result.exception)
    assert target.read_bytes() == before
