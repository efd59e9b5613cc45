import pickle
from dataclasses import replace

import numpy as np
import pytest

from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import (
    BICYCLE,
    CLASSES,
    LABEL_IDS,
    LIGHT,
    ROAD,
    SOURCES,
    TARGET,
    Style,
)

SMALL = (48, 96)


def test_class_table():
    by_name = dict(zip(CLASSES, LABEL_IDS, strict=True))
    assert len(by_name) == 19
    assert (CLASSES[ROAD], CLASSES[LIGHT], CLASSES[BICYCLE]) == ("road", "traffic light", "bicycle")
    assert by_name["road"] == 7
    assert by_name["sky"] == 23
    assert by_name["train"] == 31
    assert by_name["bicycle"] == 33


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
