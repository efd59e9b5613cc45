"""Label maps as other programs find and read them."""

import fnmatch
import io
import json
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from worlds import World, files_of

from ensdistill.data.classes import TABLES
from ensdistill.stages.export.labels import png, values_of
from ensdistill.stages.labelmaps import LabelMaps


class Cities(World):
    """A world whose images are called and laid out as Cityscapes'; `a` has pixels without label."""

    def __init__(self, root, **more):
        super().__init__(root, **more)
        self.teacher("a", lambda label: np.where(label == 2, 255, label))
        self.teacher("b", lambda label: np.where(label == 2, 255, label))
        self.settings["fusion"] = {"method": "majority"}
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
    made.settings["fusion"] = {"method": "majority"}
    made.write()
    made.call("fuse", "--upstream")
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


END = "_leftImg8bit.png"
CITYSCAPES = TABLES["cityscapes19"]


def test_images_of_cityscapes_come_into_its_tree(cities, out):
    expected = stored(cities)
    said = cities.json("export", "labels", "-o", str(out))
    images, labels = out / "leftImg8bit/train", out / "gtFine/train"
    assert {p.name for p in images.iterdir()} == {"aachen", "ulm"}
    assert all(p.is_symlink() for p in images.rglob("*.png"))
    assert_same(mmsegmentation(END, "_gtFine_labelTrainIds.png", images, labels), expected, END)
    assert_same(detectron2(images, labels), expected, END)
    assert said["images"] == 5 and said["node"] == "fusion"
    assert said["ignored"] == sum((label == 255).sum() for label in expected.values()) > 0
    files = {k: v for k, v in files_of(out).items() if not k.startswith("leftImg8bit")}
    assert {k: v["bytes"] for k, v in said["files"].items()} == {
        k: len(v) for k, v in files.items()
    }
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_other_images_come_into_two_folders(folders, out):
    expected = stored(folders)
    folders.call("export", "labels", "-o", str(out), "--copy-images")
    images, labels = out / "images/train", out / "labels/train"
    assert_same(mmsegmentation(".png", ".png", images, labels), expected, ".png")
    assert_same(detectron2_flat(images, labels, "png"), expected, ".png")
    assert not any(p.is_symlink() for p in images.iterdir())
    assert files_of(images) == files_of(folders.root / "images/train")
    text = (out / "README.md").read_text()
    assert "BaseSegDataset" in text and "load_sem_seg" in text


def test_a_palette_is_read_as_ids_and_seen_as_colours(cities, out):
    expected = stored(cities)
    cities.call("export", "labels", "-o", str(out), "--ids", "palette")
    images, labels = out / "leftImg8bit/train", out / "gtFine/train"
    assert_same(mmsegmentation(END, "_gtFine_color.png", images, labels), expected, END)
    colours = np.array([*CITYSCAPES.colours, *[(0, 0, 0)] * 237], np.uint8)
    for image_id, label in expected.items():
        file = labels / image_id.split("_")[0] / f"{image_id}_gtFine_color.png"
        with Image.open(file) as opened:
            assert opened.mode == "P"
            assert np.array_equal(opened.convert("RGB"), colours[label])
    text = (out / "README.md").read_text()  # detectron2 would make grey of the colours
    assert "load_cityscapes_semantic" not in text and "--ids train-ids" in text


def test_label_ids_are_those_of_cityscapes(cities, out):
    cities.call("export", "labels", "-o", str(out), "--ids", "label-ids")
    for image_id, label in stored(cities).items():
        file = out / f"gtFine/train/{image_id.split('_')[0]}/{image_id}_gtFine_labelIds.png"
        ids = np.array(Image.open(file))
        assert not np.isin(ids, 255).any()
        assert np.array_equal(np.vectorize(CITYSCAPES.label_ids.get)(ids), label)


def test_a_table_without_an_ignored_0_keeps_255():
    table = replace(TABLES["camvid11"], label_ids={k: k for k in range(11)})
    assert values_of(table, "label-ids")[255] == 255
    assert values_of(CITYSCAPES, "label-ids")[255] == 0
    assert list(values_of(TABLES["synthia16"], "label-ids")[:16]) == sorted(
        k for k, v in TABLES["synthia16"].label_ids.items() if v != 255
    )


@pytest.mark.parametrize("table", [None, CITYSCAPES])
def test_pngs_hold_every_value_in_8_bits(table):
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png(values, table)))), values)
    bits = 24  # where a PNG has them; few colours could be packed into less
    assert png(np.zeros((3, 5), np.uint8), table)[bits] == 8


def test_the_server_finds_one_prediction_for_each_image(cities, out):
    packed_bytes = []
    for name in ("one.zip", "two.zip"):
        file = out.with_name(name)
        options = ("--of", "student", "--split", "val", "--ids", "label-ids")
        said = cities.json("export", "labels", "-o", str(file), *options)
        packed_bytes.append(file.read_bytes())
        assert said["files"][name]["bytes"] == len(packed_bytes[-1])
    assert packed_bytes[0] == packed_bytes[1]
    expected = stored(cities, "infer[student]@val")
    with zipfile.ZipFile(file) as packed:
        names = packed.namelist()
        assert names == sorted(names) and len(names) == len(expected) == 3
        for image_id, label in expected.items():
            city, sequence, frame = image_id.split("_")
            (name,) = fnmatch.filter(names, f"{city}_{sequence}_{frame}*.png")
            ids = np.array(Image.open(io.BytesIO(packed.read(name))))
            assert np.array_equal(np.vectorize(CITYSCAPES.label_ids.get)(ids), label)


@pytest.mark.parametrize("of, node", [("a", "infer[a]@val"), ("fusion", "fusion[majority]@val")])
def test_teachers_and_splits_are_chosen_by_name(cities, out, of, node):
    cities.call("export", "labels", "-o", str(out), "--of", of, "--split", "val")
    images, labels = out / "leftImg8bit/val", out / "gtFine/val"
    found = mmsegmentation(END, "_gtFine_labelTrainIds.png", images, labels)
    assert_same(found, stored(cities, node), END)


def dataset_of(folder):
    """Run the code of the README for mmsegmentation; return its dataset and detectron2's code."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    config = {}
    exec(blocks[0], config)
    compile(blocks[1], "README", "exec")
    return config["train_dataloader"]["dataset"], blocks[1]


def test_the_readme_tells_what_it_is_and_its_code_is_code(cities, out):
    cities.call("export", "labels", "-o", str(out))
    text = (out / "README.md").read_text()
    made = cities.artifact("fusion").manifest
    assert made.fingerprint in text and made.content in text and "| 5 of the split train |" in text
    dataset, other = dataset_of(out)
    assert dataset["type"] == "CityscapesDataset" and "metainfo" not in dataset
    assert all((out / folder).is_dir() for folder in dataset["data_prefix"].values())
    assert dataset["data_root"] == "." and "load_cityscapes_semantic" in other


def test_fewer_classes_are_not_called_those_of_cityscapes(tmp_path, out):
    """CityscapesDataset would take ids of 16 classes for ids of 19, and map them once more."""
    cities = Cities(tmp_path / "world", train=2, val=1)
    cities.settings["classes"] = {"table": "synthia16"}
    for teacher in cities.settings["teachers"]:
        teacher["classes"] = "cityscapes19"
    cities.write()
    cities.call("fuse", "--upstream")
    cities.call("export", "labels", "-o", str(out))
    dataset, _ = dataset_of(out)
    assert dataset["type"] == "BaseSegDataset"
    assert dataset["metainfo"]["classes"] == list(TABLES["synthia16"].classes)
    images, labels = (out / dataset["data_prefix"][k] for k in ("img_path", "seg_map_path"))
    found = mmsegmentation(dataset["img_suffix"], dataset["seg_map_suffix"], images, labels)
    assert_same(found, stored(cities), END)


@pytest.mark.slow
def test_worker_processes_write_the_same(cities, out, tmp_path):
    from ensdistill.stages.export import labels as module
    from ensdistill.stages.work.items import share_out

    cities.call("export", "labels", "-o", str(out))

    def spread(items, work, done, *, workers, progress):
        share_out(items, work, done, 2, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "for_each", spread)
        cities.call("export", "labels", "-o", str(tmp_path / "two"))
    one, two = files_of(out), files_of(tmp_path / "two")
    assert one.pop("README.md") != two.pop("README.md")  # they name their folder
    assert one == two
