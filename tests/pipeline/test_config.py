"""Reading a configuration file, and the words of every refusal."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from ensdistill.pipeline.config import Section, read_model, read_yaml
from ensdistill.pipeline.errors import ConfigError


class Network(Section):
    folder: str | None = None
    strides: tuple[int, int] | None = None


class Teacher(Section):
    name: str
    network: Network | None = None
    map: Mapping[str, str] = {}


class Split(Section):
    images: str
    labels: str | None = None

    @model_validator(mode="after")
    def _labels_are_elsewhere(self):
        if self.images == self.labels:
            raise ValueError("labels are images")
        return self


class Config(Section):
    window: Annotated[int, Field(gt=0)]
    holes: Literal["window", "ignore"] = "window"
    teachers: tuple[Teacher, ...] = Field(default=(Teacher(name="a"),), min_length=1)
    target: Mapping[str, Split] = {}
    note: str = ""


@pytest.fixture
def read(tmp_path):
    """Read a text as the file `config.yaml`."""

    def run(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_model(path, Config)

    return run


@pytest.fixture
def refuse(read, tmp_path):
    """Read a text that must be refused; return what is said, without the file's name."""

    def run(text):
        with pytest.raises(ConfigError) as caught:
            read(text)
        file = f"{tmp_path / 'config.yaml'}: "
        said = str(caught.value)
        assert file in said
        return said.replace(file, "")

    return run


def test_a_good_file_is_read(read):
    found = read(
        "window: 5\nholes: ignore\nteachers: [{name: a, map: {x: y}}]\n"
        "target: {val: {images: 'i/*.png'}}\n"
    )
    assert (found.window, found.holes, found.teachers[0].map) == (5, "ignore", {"x": "y"})
    assert found.target["val"].images == "i/*.png"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window: 1\nwindwo: 2", "unknown key 'windwo'; did you mean 'window'?"),
        (
            "window: 1\nzzz: 2",
            "unknown key 'zzz'; known keys: holes, note, target, teachers, window",
        ),
        (
            "window: 1\nteachers: [{name: b}, {name: segf, netwrk: {}}]",
            "unknown key 'teachers[segf].netwrk'; did you mean 'network'?",
        ),
        (
            "window: 1\nteachers: [{name: segf, network: {foldr: x}}]",
            "unknown key 'teachers[segf].network.foldr'; did you mean 'folder'?",
        ),
        (
            "window: 1\nteachers: [{name: segf, network: {window: 1}}]",
            "unknown key 'teachers[segf].network.window'; known keys: folder, strides",
        ),
        (
            "window: 1\ntarget: {val: {images: x, lables: y}}",
            "unknown key 'target.val.lables'; did you mean 'labels'?",
        ),
        (
            "window: 1\ntarget: {teachers: {images: x, lables: y}}",
            "unknown key 'target.teachers.lables'; did you mean 'labels'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known(refuse, text, said):
    assert refuse(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("note: x", "the key 'window' is missing"),
        ("window: 1\nteachers: [{name: a}, {map: {}}]", "the key 'teachers[1].name' is missing"),
        ("window: 1\ntarget: {val: {}}", "the key 'target.val.images' is missing"),
        (
            "window: 1\nteachers: [{name: a, network: {strides: [1]}}]",
            "the key 'teachers[a].network.strides[1]' is missing",
        ),
    ],
)
def test_a_missing_key_is_named(refuse, text, said):
    assert refuse(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window: [1]", "window: expected a valid integer, found [1]"),
        ("window: 0", "window: expected greater than 0, found 0"),
        ("window: 1\nholes: fill", "holes: expected 'window' or 'ignore', found 'fill'"),
        ("window: 1\nnote: 7", "note: expected a valid string, found 7"),
        ("window: 1\nnote: no", "note: expected a valid string, found False"),
        (
            "window: 1\nteachers: [{name: a, map: {x: [y]}}]",
            "teachers[a].map.x: expected a valid string, found ['y']",
        ),
        (
            "window: 1\ntarget: {val: {images: x, labels: x}}",
            "target.val: labels are images",
        ),
    ],
)
def test_a_wrong_value_is_shown_with_what_was_expected(refuse, text, said):
    assert refuse(text) == said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("window: 1\nteachers: 7", ["teachers: expected", "found 7"]),
        ("window: 1\nteachers: [7]", ["teachers[0]: expected", "found 7"]),
        ("window: 1\nteachers: []", ["teachers: Tuple should have at least 1 item", "found []"]),
        ("window: 1\n7: x", ["7: Keys should be strings", "found 7"]),
        ("window: 1\nteachers: [{name: a, map: {7: x}}]", ["teachers[a].map.7", "found 7"]),
        ("window: 1\nteachers: [{name: a, map: {no: x}}]", ["teachers[a].map.", "found False"]),
    ],
)
def test_a_wrong_form_says_what_was_found(refuse, text, parts):
    said = refuse(text)
    assert all(part in said for part in parts), said
    assert "expected Tuple" not in said
    assert "expected Keys" not in said


def test_all_problems_are_told_at_once(refuse):
    said = refuse(
        "windwo: 1\nholes: fill\nteachers: [{name: a, nam: b}]\ntarget: {val: {images: 3}}\n"
    ).splitlines()
    assert said[0] == "5 problems:"
    assert sorted(line.strip() for line in said[1:]) == [
        "holes: expected 'window' or 'ignore', found 'fill'",
        "target.val.images: expected a valid string, found 3",
        "the key 'window' is missing",
        "unknown key 'teachers[a].nam'; did you mean 'name'?",
        "unknown key 'windwo'; did you mean 'window'?",
    ]


def test_of_many_problems_twenty_are_told(refuse):
    entries = ", ".join(f"{{name: t{k}, zzz: 1}}" for k in range(27))
    said = refuse(f"window: 1\nteachers: [{entries}]").splitlines()
    assert said[0] == "27 problems:"
    assert len(said) == 22
    assert said[-1].strip() == "... and 7 more"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("window: 1\nnote: x\nwindow: 2\n", "window", 3),
        ("window: 1\nteachers:\n- name: a\n  map: {x: a,\n    x: b}\n", "x", 5),
        ("window: 1\ntarget: {val: {images: a}, val: {images: b}}\n", "val", 2),
    ],
)
def test_a_key_that_appears_twice_is_refused(refuse, text, key, line):
    said = refuse(text)
    assert f"the key '{key}' appears twice" in said
    assert f"line {line}" in said


def test_a_merged_mapping_may_be_overridden(read):
    found = read(
        "window: 1\n"
        "target:\n"
        "  train: &train {images: a, labels: b}\n"
        "  val: &val {<<: *train, images: c}\n"
        "  test: {<<: *val, labels: d}\n"
    )
    assert {k: (v.images, v.labels) for k, v in found.target.items()} == {
        "train": ("a", "b"),
        "val": ("c", "b"),
        "test": ("c", "d"),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "nothing"), ("# only this\n", "nothing"), ("- 1", "list"), ("x", "str")],
)
def test_a_file_without_keys_is_refused(refuse, text, found):
    assert refuse(text) == f"expected keys and values, found {found}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window: 1\nnote: [", "line 2"),
        ("window: 1\n\tnote: x", "line 2"),
        ("window: 1\n---\nwindow: 2\n", "line 2"),
        ("window: !!python/object:os.system {}", "line 1"),
        ("window: {{ WINDOW }}", "unhashable key"),
        ("? [a, b]\n: c", "unhashable key"),
        ("note: 2024-02-30", "day is out of range"),
        (b"window: 1\nnote: stra\xdfe", "utf-8"),
        (b"window: \x00", "special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(refuse, text, said):
    found = refuse(text)
    assert found.startswith("is not valid YAML")
    assert said in found


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "gone.yaml")


def test_what_was_read_cannot_be_changed(read):
    with pytest.raises(ValueError, match="frozen"):
        read("window: 1").window = 2
