from dataclasses import replace

import numpy as np
import pytest

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.stages.demo.city import scene_index
from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import CLASSES, SOURCES, TARGET

SMALL = (48, 96)


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
    assert set(np.unique(label)) <= {*range(19), IGNORE_INDEX}


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
    ignored = target_labels == IGNORE_INDEX
    assert 0.01 < ignored.mean() < 0.1
    assert not ignored[:, : 96 * 3 // 4].any()
