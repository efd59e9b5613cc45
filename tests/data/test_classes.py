"""Class tables, their encodings, and the maps between them."""

import pytest

from ensdistill.data.classes import (
    MAX_CLASSES,
    TABLES,
    ClassTable,
    class_map,
    pack,
    parse_table,
    require_class,
    table_file,
    to_target_ids,
)
from ensdistill.pipeline.errors import ConfigError

CITYSCAPES, SYNTHIA, CAMVID = (TABLES[n] for n in ("cityscapes19", "synthia16", "camvid11"))


def table(*names, **more):
    return ClassTable("own", names, tuple((k, 1, 2) for k in range(len(names))), **more)


@pytest.mark.parametrize(
    ("name", "train_id", "label_id", "colour"),
    [
        ("road", 0, 7, (128, 64, 128)),
        ("wall", 3, 12, (102, 102, 156)),
        ("pole", 5, 17, (153, 153, 153)),
        ("traffic light", 6, 19, (250, 170, 30)),
        ("sky", 10, 23, (70, 130, 180)),
        ("rider", 12, 25, (255, 0, 0)),
        ("bus", 15, 28, (0, 60, 100)),
        ("train", 16, 31, (0, 80, 100)),
        ("bicycle", 18, 33, (119, 11, 32)),
    ],
)
def test_cityscapes_is_as_published(name, train_id, label_id, colour):
    assert CITYSCAPES.classes[train_id] == name
    assert CITYSCAPES.label_ids[label_id] == train_id
    assert CITYSCAPES.colours[train_id] == colour


@pytest.mark.parametrize(
    ("name", "count"), [("cityscapes19", 19), ("synthia16", 16), ("camvid11", 11)]
)
def test_tables_have_distinct_names_and_colours(name, count):
    found = TABLES[name]
    assert (found.name, len(found)) == (name, count)
    assert len(set(found.classes)) == len(set(found.colours)) == count


def test_label_ids_are_0_to_33_and_255():
    for found in (CITYSCAPES, SYNTHIA):
        legal = found.legal_values("label_ids")
        assert set(legal) == {*range(34), 255}
        assert sorted(v for v in legal.values() if v != 255) == list(range(len(found)))
        assert [legal[k] for k in (0, 6, 9, 10, 14, 18, 29, 30, 255)] == [255] * 9


def test_synthia_lacks_three_classes_and_its_subset_three_more():
    assert set(CITYSCAPES.classes) - set(SYNTHIA.classes) == {"terrain", "truck", "train"}
    assert set(SYNTHIA.classes) - set(SYNTHIA.subsets["miou13"]) == {"wall", "fence", "pole"}
    assert len(SYNTHIA.subsets["miou13"]) == 13
    assert SYNTHIA.classes == tuple(c for c in CITYSCAPES.classes if c in SYNTHIA.classes)
    assert CITYSCAPES.subsets == {"miou16": SYNTHIA.classes, "miou13": SYNTHIA.subsets["miou13"]}
    assert SYNTHIA.legal_values("label_ids")[31] == 255


def test_camvid_is_as_published():
    assert CAMVID.classes[:3] == ("sky", "building", "pole")
    assert CAMVID.colours[CAMVID.classes.index("bicyclist")] == (0, 128, 192)
    assert CAMVID.subsets == {}
    with pytest.raises(ConfigError, match=r"camvid11 has no label ids; .*`ids: train_ids` where"):
        CAMVID.legal_values("label_ids")


def test_train_ids_are_positions_and_255():
    legal = CAMVID.legal_values("train_ids")
    assert legal == {**{k: k for k in range(11)}, 255: 255}


def test_colours_are_packed_and_black_is_ignored():
    legal = CAMVID.legal_values("palette")
    assert len(legal) == 12
    assert legal[0] == 255
    assert legal[128 * 65536 + 64 * 256 + 128] == CAMVID.classes.index("road")
    assert pack((1, 2, 3)) == 0x010203


def test_black_may_be_a_class():
    own = ClassTable("own", ("void", "road"), ((0, 0, 0), (1, 0, 0)))
    assert own.legal_values("palette") == {0: 0, 1 << 16: 1}


def test_two_classes_of_one_colour_have_no_palette():
    own = ClassTable("own", ("a", "b"), ((1, 2, 3), (1, 2, 3)))
    with pytest.raises(ConfigError, match="own gives two classes the same colour"):
        own.legal_values("palette")
    assert own.legal_values("train_ids") == {0: 0, 1: 1, 255: 255}


def test_classes_go_by_name_and_the_rest_is_ignored():
    source, target = table("sky", "tram", "road"), table("road", "sky", "car")
    mapping = class_map(source, target, {}, "teachers[t]")
    assert mapping == {"sky": "sky", "tram": None, "road": "road"}
    assert to_target_ids(source, target, mapping) == {0: 1, 1: 255, 2: 0, 255: 255}


def test_many_classes_may_go_to_one():
    source, target = table("car", "truck", "bus", "road"), table("vehicle", "road")
    mapping = class_map(source, target, dict.fromkeys(("car", "truck", "bus"), "vehicle"), "t")
    assert to_target_ids(source, target, mapping) == {0: 0, 1: 0, 2: 0, 3: 1, 255: 255}


def test_an_override_beats_the_name():
    both = table("road", "sky")
    mapping = class_map(both, both, {"road": "sky", "sky": None}, "t")
    assert mapping == {"road": "sky", "sky": None}
    assert to_target_ids(both, both, mapping) == {0: 1, 1: 255, 255: 255}


def test_a_table_maps_onto_itself():
    mapping = class_map(CITYSCAPES, CITYSCAPES, {}, "t")
    assert to_target_ids(CITYSCAPES, CITYSCAPES, mapping) == CITYSCAPES.legal_values("train_ids")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"raod": "road"}, "t.map: unknown class 'raod'; did you mean 'road'?"),
        ({"road": "Sky"}, "t.map.road: unknown class 'Sky'; did you mean 'sky'?"),
        ({"zzz": None}, "t.map: unknown class 'zzz'; known classes: road, sky"),
    ],
)
def test_an_unknown_class_is_refused_with_the_nearest(overrides, said):
    with pytest.raises(ConfigError) as caught:
        class_map(table("road", "sky"), table("road", "sky"), overrides, "t")
    assert str(caught.value) == said


def test_require_class_says_nothing_about_a_known_one():
    require_class("road", ["road"], "here")


def test_a_table_name_is_built_in_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert table_file("cityscapes19", tmp_path) is None
    assert table_file("own.yaml", tmp_path) == tmp_path / "own.yaml"
    assert table_file("/x/own.yml", tmp_path).as_posix() == "/x/own.yml"
    assert table_file("~/own.yaml", tmp_path) == tmp_path / "home" / "own.yaml"
    with pytest.raises(ConfigError, match=r"'cityscape19'; did you mean 'cityscapes19'\?"):
        table_file("cityscape19", tmp_path)
    with pytest.raises(ConfigError, match=r"'voc'; known tables: .*camvid11.* \(or give a \.yaml"):
        table_file("voc", tmp_path)


ROAD = {"name": "road", "colour": [128, 64, 128]}
SKY = {"name": "sky", "colour": [70, 130, 180]}


def ids(**more):
    return {"classes": [ROAD | {"label_id": 7}, SKY | {"label_id": 300}]} | more


def test_a_table_file_is_read():
    found = parse_table("own.yaml", ids(ignored_label_ids=[0, 255], subsets={"half": ["sky"]}))
    assert found == ClassTable(
        "own.yaml",
        ("road", "sky"),
        ((128, 64, 128), (70, 130, 180)),
        {7: 0, 300: 1, 0: 255, 255: 255},
        {"half": ("sky",)},
    )
    assert found.legal_values("label_ids") == {0: 255, 7: 0, 255: 255, 300: 1}


def test_a_table_file_needs_no_label_ids():
    for more in ({}, {"ignored_label_ids": None, "subsets": None}, {"ignored_label_ids": []}):
        found = parse_table("own.yaml", {"classes": [ROAD, SKY]} | more)
        assert (found.label_ids, found.subsets) == ({}, {})


def numbered(count):
    return {"classes": [{"name": f"c{k}", "colour": [k, 0, 0]} for k in range(count)]}


def test_a_table_may_be_as_large_as_fusion_can_count():
    assert len(parse_table("own.yaml", numbered(MAX_CLASSES))) == MAX_CLASSES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no class table"),
        ([ROAD], "is no class table"),
        ({"classes": {"road": 1}}, "is no class table"),
        ({"classes": [ROAD], "subset": {}}, "unknown key 'subset'"),
        ({"classes": [ROAD], 7: {}}, "unknown key '7'"),
        ({"classes": []}, "0 classes; expected 1 to 254"),
        (numbered(MAX_CLASSES + 1), "255 classes; expected 1 to 254"),
        ({"classes": [ROAD, "sky"]}, r"classes\[1\] is 'sky'"),
        ({"classes": [ROAD | {"color": 1}]}, r"classes\[0\] is \{"),
        ({"classes": [{"colour": [1, 2, 3]}]}, r"classes\[0\]: the name None is missing"),
        ({"classes": [ROAD | {"name": False}]}, r"classes\[0\]: the name False is missing"),
        ({"classes": [ROAD, ROAD]}, r"classes\[1\]: the name 'road' is missing or not unique"),
        ({"classes": [{"name": "road"}]}, r"classes\[0\]: colour is None"),
        ({"classes": [ROAD | {"colour": [1, 2]}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"colour": [1, 2, 256]}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"colour": [1, 2, -1]}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"colour": [1, 2, 0.5]}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"colour": [True, 2, 3]}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"colour": "#804080"}]}, "expected three numbers 0..255"),
        ({"classes": [ROAD | {"label_id": "7"}]}, "label_id '7' is not a unique number"),
        ({"classes": [ROAD | {"label_id": None}]}, "label_id None is not a unique number"),
        ({"classes": [ROAD | {"label_id": True}]}, "label_id True is not a unique number"),
        ({"classes": [ROAD | {"label_id": -1}]}, "label_id -1 is not a unique number 0..65535"),
        ({"classes": [ROAD | {"label_id": 70000}]}, "label_id 70000 is not a unique number"),
        ({"classes": [ROAD | {"label_id": 255}]}, "label_id 255 .* other than 255"),
        (
            {"classes": [ROAD | {"label_id": 7}, SKY | {"label_id": 7}]},
            r"classes\[1\]: label_id 7 is not a unique number",
        ),
        ({"classes": [ROAD | {"label_id": 7}, SKY]}, "some classes have a label_id and some"),
        (ids(ignored_label_ids=[0, 7]), "ignored_label_ids has 7, the label_id of a class"),
        ({"classes": [ROAD | {"name": "x" * 201}]}, "is longer than 200 characters"),
        ({"classes": [ROAD | {"colour": [1] * 10_000}]}, r"colour is \[1, .* characters \.\.\."),
        ({"classes": [ROAD | {"name": ["x" * 10_000]}]}, "is missing or not unique"),
        (ids(subsets={"x" * 10_000: [["y" * 10_000]]}), "unknown class"),
        (ids(ignored_label_ids=3), "ignored_label_ids is 3; expected numbers"),
        (ids(ignored_label_ids=["x"]), "ignored_label_ids is .*; expected numbers"),
        (ids(ignored_label_ids=[-1]), "ignored_label_ids is .*; expected numbers"),
        ({"classes": [ROAD], "ignored_label_ids": [0]}, "but no class has a label_id"),
        (ids(subsets=["road"]), "subsets is .*; expected names"),
        (ids(subsets={"half": "road"}), r"subsets\.half is 'road'; expected a list"),
        (ids(subsets={"half": None}), r"subsets\.half is None; expected a list"),
        (ids(subsets={"half": []}), r"subsets\.half is \[\]; expected a list"),
        (ids(subsets={"half": ["raod"]}), r"subsets\.half: unknown class 'raod'; did you mean"),
        (ids(subsets={"half": ["sky", "sky"]}), r"subsets\.half names a class twice"),
    ],
)
def test_a_wrong_table_file_is_refused_by_name(content, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_table("own.yaml", content)
    assert str(caught.value).startswith("own.yaml: ")
    assert len(str(caught.value)) < 1000


def test_a_teacher_without_classes_of_its_own_is_told_whose_it_has():
    own = table("road", "sky")
    with pytest.raises(ConfigError, match="declares no `classes:` of its own"):
        class_map(own, own, {"house": "road"}, "teachers[t]")
    with pytest.raises(ConfigError) as refused:
        class_map(table("road"), own, {"house": "road"}, "teachers[t]")
    assert "classes:`" not in str(refused.value)
