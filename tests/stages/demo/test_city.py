import hashlib
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensdistill.stages.demo.city import (
    CLASSES,
    IGNORE,
    LABEL_IDS,
    SOURCES,
    TARGET,
    Style,
    draw_scene,
    scene_index,
    write_city,
)

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


@pytest.fixture(scope="module")
def target_labels() -> np.ndarray:
    """48 training label maps of the default size, as the demo draws them."""
    return np.stack([draw_scene(0, scene_index("train", k), TARGET)[1] for k in range(48)])


def test_scene_shapes_types_and_values():
    image, label = draw_scene(0, 0, TARGET)
    assert image.shape == (96, 192, 3)
    assert image.dtype == np.uint8
    assert label.shape == (96, 192)
    assert label.dtype == np.uint8
    assert image.std() > 20


@pytest.mark.parametrize("size", [(16, 16), (47, 95), (33, 200), (120, 50), (97, 193)])
@pytest.mark.parametrize("name", ["target", *SOURCES])
def test_any_size_can_be_drawn(size: tuple[int, int], name: str):
    style = TARGET if name == "target" else SOURCES[name]
    image, label = draw_scene(3, 1, style, size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert set(np.unique(label)) <= {*range(19), IGNORE}


@pytest.mark.parametrize("size", [(15, 192), (96, 15), (0, 0), (-96, 192)])
def test_too_small_a_picture_is_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match="at least 16 pixels"):
        draw_scene(0, 0, TARGET, size)


def test_a_scene_is_the_same_every_time():
    first = draw_scene(5, 7, TARGET, SMALL)
    draw_scene(5, 8, TARGET, SMALL)  # no state is carried from scene to scene
    second = draw_scene(5, 7, TARGET, SMALL)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_scene_does_not_depend_on_the_global_random_state():
    np.random.seed(1)
    first = draw_scene(5, 7, TARGET, SMALL)[0]
    np.random.seed(2)
    np.testing.assert_array_equal(first, draw_scene(5, 7, TARGET, SMALL)[0])


def test_seeds_indices_splits_and_styles_draw_different_scenes():
    renamed = replace(TARGET, name="elsewhere")
    keys = [
        (0, 0, TARGET),
        (1, 0, TARGET),
        (0, 1, TARGET),
        (1, 1, TARGET),
        (0, scene_index("train", 0), TARGET),
        (0, scene_index("val", 0), TARGET),
        (0, 0, renamed),
        *((0, 0, style) for style in SOURCES.values()),
    ]
    labels = {draw_scene(*key, SMALL)[1].tobytes() for key in keys}
    assert len(labels) == len(keys)


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
    to_train_id[1] = IGNORE
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


def test_class_table():
    by_name = dict(zip(CLASSES, LABEL_IDS, strict=True))
    assert len(by_name) == 19
    assert by_name["road"] == 7
    assert by_name["sky"] == 23
    assert by_name["train"] == 31
    assert by_name["bicycle"] == 33


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


def test_many_classes_are_in_use_and_thin_ones_among_them(target_labels: np.ndarray):
    scenes = {
        name: int((target_labels == train_id).any(axis=(1, 2)).sum())
        for train_id, name in enumerate(CLASSES)
    }
    assert sum(count >= 8 for count in scenes.values()) >= 15
    for name in ("pole", "traffic sign", "traffic light", "person", "rider", "bicycle"):
        assert scenes[name] >= 30, name


def test_poles_are_thin(target_labels: np.ndarray):
    """Most pole pixels lie in horizontal runs of at most three pixels."""
    pole = np.pad(target_labels == CLASSES.index("pole"), ((0, 0), (0, 0), (1, 1)))
    edges = np.diff(pole.astype(np.int8), axis=2)
    runs = np.nonzero(edges == -1)[2] - np.nonzero(edges == 1)[2]
    assert np.median(runs) <= 3
    assert (runs == 1).any()


def test_only_the_hood_is_ignored(target_labels: np.ndarray):
    ignored = target_labels == IGNORE
    assert 0.01 < ignored.mean() < 0.1
    assert not ignored[:, : 96 * 3 // 4].any()


def test_four_sources_named_by_their_keys():
    assert len(SOURCES) == 4
    assert all(name == style.name for name, style in SOURCES.items())
    assert TARGET.name not in SOURCES


def test_sources_look_different_from_the_target():
    def means(style: Style) -> np.ndarray:
        pictures = [draw_scene(0, k, style, SMALL)[0] for k in range(4)]
        return np.stack(pictures).mean(axis=(0, 1, 2))

    target = means(TARGET)
    darkest = min(SOURCES, key=lambda name: float(means(SOURCES[name]).sum()))
    assert darkest == "nocturne"
    for style in SOURCES.values():
        assert np.abs(means(style) - target).max() > 2


def test_styles_can_be_hashed_and_pickled():
    for style in (TARGET, *SOURCES.values()):
        assert pickle.loads(pickle.dumps(style)) == style
        assert hash(style) == hash(replace(style))


def test_a_style_needs_a_look_for_each_class_and_a_plain_name():
    with pytest.raises(ValueError, match="one look for each of 19 classes, got 18"):
        replace(TARGET, looks=TARGET.looks[:-1])
    with pytest.raises(ValueError, match="lower-case letters"):
        replace(TARGET, name="a_b")
