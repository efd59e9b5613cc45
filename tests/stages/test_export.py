"""Label maps as other programs find and read them."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import World, files_of

from ensdistill.data.classes import TABLES
from ensdistill.stages.export.labels import png, values_of
from ensdistill.stages.labelmaps import LabelMaps


class Cities(World):
    """A world whose images are called and laid out as Cityscapes'."""

    def __init__(self, root, **more):
        super().__init__(root, **more)
        for split in ("train", "val"):
            for path in sorted((root / "images" / split).iterdir()):
                _, number, frame = path.stem.split("_")
                city = ("aachen", "ulm")[int(number) % 2]
                name = f"{city}_{number}_{frame}"
                (root / f"images/{split}/{city}").mkdir(exist_ok=True)
                path.rename(root / f"images/{split}/{city}/{name}_leftImg8bit.png")
                for folder in (f"labels/{split}", f"teachers/a/{split}", f"teachers/b/{split}"):
                    (root / folder / path.name).rename(root / folder / f"{name}.png")
        target = self.settings["target"]
        target["train"]["images"] = "images/train/*/*.png"
        target["val"]["images"] = "images/val/*/*.png"
        self.write()


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    """Everything is made, and read by all tests: each exports under a name of its own."""
    made = Cities(tmp_path_factory.mktemp("cities"))
    made.call("run")
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same of other images."""
    made = World(tmp_path_factory.mktemp("folders"))
    made.call("run", "--no-evaluate")
    return made


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def stored(world, node_id="fusion"):
    maps = LabelMaps(world.artifact(node_id))
    return {image_id: maps.read(image_id) for image_id in maps}


# How the loaders find their files, from reading them; each returns (image, label) by image.


def mmsegmentation(image_suffix, label_suffix, images, labels):
    """BaseSegDataset without a list: every image below, its name with the suffix replaced."""
    found = {}
    for image in sorted(p for p in images.rglob("*") if p.is_file()):
        assert image.name.endswith(image_suffix)
        relative = str(image.relative_to(images)).replace(image_suffix, label_suffix)
        found[image] = np.array(Image.open(labels / relative))  # pillow, unchanged
    return found


def detectron2(images, labels):
    """load_cityscapes_semantic, and read_image(file, "L") of its mapper."""
    found = {}
    for city in images.iterdir():
        for image in city.iterdir():
            stem = image.name.removesuffix("leftImg8bit.png")
            assert stem != image.name
            beside = {k: labels / city.name / f"{stem}gtFine_{k}" for k in DETECTRON2}
            assert all(p.is_file() for p in beside.values())
            size = json.loads(beside["polygons.json"].read_bytes())
            label = np.asarray(Image.open(beside["labelTrainIds.png"]).convert("L"))
            assert label.shape == (size["imgHeight"], size["imgWidth"])
            found[image] = label
    return found


DETECTRON2 = ("instanceIds.png", "labelIds.png", "polygons.json", "labelTrainIds.png")


def detectron2_flat(images, labels, image_ext):
    """load_sem_seg: both folders listed, sorted by stem, side by side."""
    one = sorted(p for p in images.iterdir() if p.name.endswith(image_ext))
    other = sorted(p for p in labels.iterdir() if p.name.endswith("png"))
    assert len(one) == len(other) > 0
    pairs = zip(one, other, strict=True)
    return {a: np.asarray(Image.open(b).convert("L")) for a, b in pairs}


def assert_same(found, expected, suffix):
    assert {p.name.removesuffix(suffix) for p in found} == expected.keys()
    for image, label in found.items():
        want = expected[image.name.removesuffix(suffix)]
        assert label.dtype == np.uint8 and np.array_equal(label, want)
        with Image.open(image) as opened:  # the link leads to an image of that size
            assert (opened.height, opened.width) == want.shape


def test_images_of_cityscapes_come_into_its_tree(cities):
    expected = stored(fused(cities))
    out = cities.root / "out"
    said = cities.json("export", "labels", str(out))
    images, labels = out / "leftImg8bit/train", out / "gtFine/train"
    assert {p.name for p in images.iterdir()} == {"aachen", "ulm"}
    end = "_leftImg8bit.png"
    assert_same(mmsegmentation(end, "_gtFine_labelTrainIds.png", images, labels), expected, end)
    assert_same(detectron2(images, labels), expected, end)
    assert said["images"] == 5 and said["node"] == "fusion"
    files = {k: v for k, v in files_of(out).items() if not k.startswith("leftImg8bit")}
    assert {k: v["bytes"] for k, v in said["files"].items()} == {k: len(v) for k, v in files.items()}
    assert not [p for p in cities.root.iterdir() if p.name.startswith(".out")]


def test_other_images_come_into_two_folders(world):
    expected = stored(fused(world))
    out = world.root / "out"
    world.call("export", "labels", str(out))
    images, labels = out / "images/train", out / "labels/train"
    assert_same(mmsegmentation(".png", ".png", images, labels), expected, ".png")
    assert_same(detectron2_flat(images, labels, "png"), expected, ".png")
    assert all(p.is_symlink() for p in images.iterdir())


def test_copied_images_are_the_images(world):
    fused(world)
    world.call("export", "labels", str(world.root / "out"), "--copy-images")
    copies = world.root / "out/images/train"
    assert not any(p.is_symlink() for p in copies.iterdir())
    assert files_of(copies) == files_of(world.root / "images/train")


def test_a_palette_is_read_as_ids_and_seen_as_colours(cities):
    expected = stored(fused(cities))
    out = cities.root / "out"
    cities.call("export", "labels", str(out), "--ids", "palette")
    images, labels, end = out / "leftImg8bit/train", out / "gtFine/train", "_leftImg8bit.png"
    assert_same(mmsegmentation(end, "_gtFine_color.png", images, labels), expected, end)
    colours = np.array([*TABLES["cityscapes19"].colours, *[(0, 0, 0)] * 237], np.uint8)
    for image_id, label in expected.items():
        file = labels / image_id.split("_")[0] / f"{image_id}_gtFine_color.png"
        with Image.open(file) as opened:
            assert opened.mode == "P"
            assert np.array_equal(opened.convert("RGB"), colours[label])


def test_label_ids_are_those_of_cityscapes(cities):
    expected = stored(fused(cities))
    out = cities.root / "out"
    cities.call("export", "labels", str(out), "--ids", "label-ids")
    table = TABLES["cityscapes19"]
    for image_id, label in expected.items():
        file = out / f"gtFine/train/{image_id.split('_')[0]}/{image_id}_gtFine_labelIds.png"
        ids = np.array(Image.open(file))
        assert not np.isin(ids, 255).any()
        back = np.vectorize(table.label_ids.get)(ids)
        assert np.array_equal(back, label)


def test_a_table_without_an_ignored_0_keeps_255():
    from dataclasses import replace

    table = replace(TABLES["camvid11"], label_ids={k: k for k in range(11)})
    assert values_of(table, "label-ids")[255] == 255
    assert values_of(TABLES["cityscapes19"], "label-ids")[255] == 0
    assert list(values_of(TABLES["synthia16"], "label-ids")[:16]) == sorted(
        k for k, v in TABLES["synthia16"].label_ids.items() if v != 255
    )


@pytest.mark.parametrize("with_colours", [False, True])
def test_pngs_hold_every_value(with_colours):
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    content = png(values, TABLES["cityscapes19"] if with_colours else None)
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), values)
    few = np.zeros((3, 5), np.uint8)  # a palette of few colours could be packed into less bits
    content = png(few, TABLES["cityscapes19"])
    assert content[24] == 8  # bits


def zip_for_server(world, name="results.zip", *more):
    out = world.root / name
    world.call("export", "labels", str(out), "--ids", "label-ids", *more)
    return out


def test_the_server_finds_one_prediction_for_each_image(cities):
    import fnmatch

    cities.call("run")
    out = zip_for_server(cities, "results.zip", "--of", "student", "--split", "val")
    expected = stored(cities, "infer[student]@val")
    with zipfile.ZipFile(out) as packed:
        names = packed.namelist()
        assert names == sorted(names) and len(names) == len(expected) == 3
        for image_id, label in expected.items():
            city, sequence, frame = image_id.split("_")
            (name,) = fnmatch.filter(names, f"{city}_{sequence}_{frame}*.png")
            ids = np.array(Image.open(io.BytesIO(packed.read(name))))
            table = TABLES["cityscapes19"]
            assert np.array_equal(np.vectorize(table.label_ids.get)(ids), label)
    again = zip_for_server(cities, "again.zip", "--of", "student", "--split", "val")
    assert again.read_bytes() == out.read_bytes()


def test_pixels_without_a_label_are_said(cities):
    cities.teacher("a", lambda label: np.full_like(label, 255))
    cities.teacher("b", lambda label: np.full_like(label, 255))
    for path in (cities.root / "teachers").rglob("train_*.png"):
        _, number, frame = path.stem.split("_")
        path.rename(path.with_name(f"{('aachen', 'ulm')[int(number) % 2]}_{number}_{frame}.png"))
    cities.settings["fusion"] = {"method": "majority"}
    cities.write()
    fused(cities)
    out = str(cities.root / "results.zip")
    said = cities.json("export", "labels", out, "--ids", "label-ids")
    assert said["ignored"] == said["pixels"] > 0


def test_teachers_and_splits_are_chosen_by_name(world):
    world.call("run")
    world.call("export", "labels", str(world.root / "a"), "--of", "a", "--split", "val")
    found = mmsegmentation(
        ".png", ".png", world.root / "a/images/val", world.root / "a/labels/val"
    )
    assert_same(found, stored(world, "infer[a]@val"), ".png")
    world.call("export", "labels", str(world.root / "f"), "--split", "val")
    found = mmsegmentation(
        ".png", ".png", world.root / "f/images/val", world.root / "f/labels/val"
    )
    assert_same(found, stored(world, "fusion[channel]@val"), ".png")


def test_the_readme_tells_what_it_is_and_its_code_is_code(cities):
    fused(cities)
    cities.call("export", "labels", str(cities.root / "out"))
    text = (cities.root / "out/README.md").read_text()
    made = cities.artifact("fusion").manifest
    assert made.fingerprint in text and made.content in text and "| 5 of the split train |" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    config = {}
    exec(blocks[0], config)
    dataset = config["train_dataloader"]["dataset"]
    assert dataset["type"] == "CityscapesDataset" and "metainfo" not in dataset
    for folder in dataset["data_prefix"].values():
        assert (Path(dataset["data_root"]) / folder).is_dir()
    compile(blocks[1], "README", "exec")
    assert "load_cityscapes_semantic" in blocks[1]


def test_fewer_classes_are_not_called_those_of_cityscapes(cities):
    """CityscapesDataset would take ids of 16 classes for ids of 19, and map them once more."""
    cities.settings["classes"] = {"table": "synthia16"}
    for teacher in cities.settings["teachers"]:
        teacher["classes"] = "cityscapes19"
    cities.write()
    fused(cities)
    cities.call("export", "labels", str(cities.root / "out"))
    config = {}
    text = (cities.root / "out/README.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], config)
    dataset = config["train_dataloader"]["dataset"]
    assert dataset["type"] == "BaseSegDataset"
    assert dataset["metainfo"]["classes"] == list(TABLES["synthia16"].classes)
    end = dataset["img_suffix"]
    root = Path(dataset["data_root"])
    images, labels = (root / dataset["data_prefix"][k] for k in ("img_path", "seg_map_path"))
    found = mmsegmentation(end, dataset["seg_map_suffix"], images, labels)
    assert_same(found, stored(cities), end)


def test_worker_processes_write_the_same(cities, monkeypatch):
    from ensdistill.stages import parallel

    fused(cities)
    cities.call("export", "labels", str(cities.root / "one"))
    monkeypatch.setattr(parallel, "_TRIAL", 0.0)
    monkeypatch.setattr(parallel, "_STARTING", 0.0)
    cities.settings["runtime"]["workers"] = 2
    cities.write()
    cities.call("export", "labels", str(cities.root / "two"))
    one, two = (files_of(cities.root / name) for name in ("one", "two"))
    assert one.pop("README.md") != two.pop("README.md")  # they name their folder
    assert one == two
