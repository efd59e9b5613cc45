import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.stages.demo.city import scene_index, write_city
from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import LABEL_IDS, TARGET

SMALL = (48, 96)
SPLITS = {"train": 3, "val": 2}


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.png"))
    }


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("city")
    write_city(root, 0, TARGET, SPLITS, SMALL)
    return root


def test_splits_never_share_an_index():
    indices = [scene_index(split, k) for split in ("train", "val", "test") for k in range(100)]
    assert len(set(indices)) == len(indices)


def test_city_is_written_the_same_twice(city: Path, tmp_path: Path):
    # The order in which the splits are named changes nothing.
    write_city(tmp_path, 0, TARGET, dict(reversed(SPLITS.items())), SMALL)
    assert files(tmp_path) == files(city)
    write_city(tmp_path, 0, TARGET, SPLITS, SMALL)
    assert files(tmp_path) == files(city)


def test_city_of_another_seed_shares_no_picture(city: Path, tmp_path: Path):
    write_city(tmp_path, 1, TARGET, SPLITS, SMALL)
    assert files(tmp_path).keys() == files(city).keys()
    assert not set(files(tmp_path).values()) & set(files(city).values())


def test_city_follows_the_cityscapes_layout(city: Path):
    images = sorted(city.glob("leftImg8bit/*/*/*_leftImg8bit.png"))
    labels = sorted(city.glob("gtFine/*/*/*_gtFine_labelIds.png"))
    assert len(images) == len(labels) == sum(SPLITS.values())
    assert len(list(city.rglob("*.png"))) == len(images) + len(labels)
    ids = set()
    for image, label in zip(images, labels, strict=True):
        found = re.fullmatch(r"([a-z-]+)_(\d{6})_(\d{6})_leftImg8bit\.png", image.name)
        assert found
        assert found[1] == image.parent.name == label.parent.name
        assert image.parts[-3] == label.parts[-3]
        assert label.name == image.name.replace("_leftImg8bit", "_gtFine_labelIds")
        ids.add(image.name)
    assert len(ids) == len(images)  # image ids are unique over the splits


def test_label_ids_read_back_to_the_drawn_train_ids(city: Path):
    to_train_id = {label_id: train_id for train_id, label_id in enumerate(LABEL_IDS)}
    to_train_id[1] = IGNORE_INDEX
    for split, count in SPLITS.items():
        for number in range(count):
            image, label = draw_scene(0, scene_index(split, number), TARGET, SMALL)
            stem = f"{split}/harbour-{split}/harbour-{split}_{number:06d}_000019"
            with Image.open(city / "leftImg8bit" / f"{stem}_leftImg8bit.png") as written:
                assert written.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(written), image)
            with Image.open(city / "gtFine" / f"{stem}_gtFine_labelIds.png") as written:
                assert written.mode == "L"
                ids = np.asarray(written)
            assert set(np.unique(ids)) <= set(to_train_id)
            np.testing.assert_array_equal(np.vectorize(to_train_id.__getitem__)(ids), label)


def test_empty_split_and_no_splits(tmp_path: Path):
    write_city(tmp_path / "none", 0, TARGET, {})
    write_city(tmp_path / "empty", 0, TARGET, {"train": 0})
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("scenes", "message"),
    [({"train": -1}, "at least 0"), ({"../val": 1}, "split name"), ({"": 1}, "split name")],
)
def test_bad_splits_are_refused_before_anything_is_written(
    tmp_path: Path, scenes: dict[str, int], message: str
):
    with pytest.raises(ValueError, match=message):
        write_city(tmp_path / "city", 0, TARGET, {"test": 1, **scenes}, SMALL)
    assert not list(tmp_path.rglob("*.png"))


def test_bad_size_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 16"):
        write_city(tmp_path / "city", 0, TARGET, {"train": 1}, (8, 8))
    assert not list(tmp_path.rglob("*"))
