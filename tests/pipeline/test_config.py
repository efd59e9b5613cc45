"""Reading a configuration file, and the words of every refusal."""

import os
import socket
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


def test_an_equals_sign_is_a_text(tmp_path):
    """YAML 1.1 has a type of its own for it, of which PyYAML makes a text in keys alone."""
    file = tmp_path / "x.yaml"
    file.write_text("one: &one {=: 1}\nother: {<<: *one, a: =}\n")
    assert read_yaml(file) == {"one": {"=": 1}, "other": {"=": 1, "a": "="}}


def test_of_merged_mappings_the_first_wins_whatever_their_keys_are_called(tmp_path):
    """PyYAML 6.0.4 has it otherwise: of short keys the first, of long ones the last."""
    file = tmp_path / "x.yaml"
    for key in ("i", "images", "long name", "0"):
        file.write_text(
            f"one: &one {{{key}: 1, a: 1}}\nother: &other {{<<: *one, {key}: 2, b: 2}}\n"
            f"first: {{<<: [*one, *other]}}\nlast: {{<<: [*other, *one], a: 3}}\n"
        )
        found = read_yaml(file)
        name = int(key) if key.isdigit() else key
        assert found["other"] == {name: 2, "a": 1, "b": 2}
        assert found["first"] == {name: 1, "a": 1, "b": 2}
        assert found["last"] == {name: 2, "a": 3, "b": 2}


@pytest.mark.parametrize("merged", ["<<: 1", "<<: [1]", "<<: [[]]", "<<:"])
def test_only_mappings_are_merged(refuse, merged):
    assert "`<<` stands for mappings alone" in refuse(f"window: 1\nx: {{{merged}}}\n")


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


def _aliases(levels):
    """Return a text of a few hundred bytes whose last alias stands for 10 ** levels values."""
    lines = ["z0: &z0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"z{k}: &z{k} [{','.join([f'*z{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines)


def _merges(levels):
    lines = ["z0: &z0 {" + ", ".join(f"k{k}: 1" for k in range(10)) + "}"]
    lines += [f"z{k}: &z{k} {{<<: [{','.join([f'*z{k - 1}'] * 10)}]}}" for k in range(1, levels)]
    return "\n".join(lines)


MANY, DEEP, ITSELF = "more than 50,000 values", "more than 50 values", "stands for a value that"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_aliases(9), MANY),
        (_merges(9), MANY),
        ("note: [" + "1," * 60_000 + "]", MANY),
        ("a: &a [*a]", ITSELF),
        ("a: &a {b: [1, {c: *a}]}", ITSELF),
        ("a: &a\n  <<: *a", ITSELF),
        ("? &a [*a]\n: 1", ITSELF),
        ("[" * 300_000, DEEP),
        ("{a: " * 200_000, DEEP),
        ("- " * 400_000, DEEP),
        ("\n".join(" " * k + "a:" for k in range(1200)), DEEP),
        # each of the two is shallow enough
        ("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40, DEEP),
        ("note: 1" + ":1" * 400_000, "a number or date of"),
        ("note: 0x" + "f" * 900_000, "a number or date of"),
        ("note: " + "9" * 900_000, "a number or date of"),
        ("window: !!bool x", "'x'"),
        ("window: !!timestamp x", ""),
        ('window: !!int ""', ""),
        ("window: !" + "x" * 900_000 + " 1", "characters ..."),
        ("window: *" + "x" * 900_000, "characters ..."),
        ("'" * 900_001, "quoted scalar"),
    ],
)
def test_small_files_that_stand_for_much_are_refused_at_once(refuse, text, said):
    found = refuse(text)
    assert found.startswith("is not valid YAML")
    assert said in found
    assert len(found) < 1500


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "window: " + "x" * 900_000,
        "window: [" + "x, " * 40_000 + "]",
        "x" * 900_000 + ": 1\nwindow: 1",
        "window: 1\nholes: " + "y " * 400_000,
        "window: 1\nteachers: [{name: a, map: {" + "x" * 900_000 + ": []}}]",
        "window: 1\ntarget: {" + ", ".join(f"v{k}: []" for k in range(10_000)) + "}",
        "window: -0x" + "f" * 90,
    ],
)
def test_messages_are_short_whatever_the_value(refuse, text):
    said = refuse(text)
    assert len(said) < 40_000
    assert max(map(len, said.splitlines())) < 1100


def test_aliases_and_merges_are_what_yaml_makes_of_them(read):
    found = read(
        "window: 5\n"
        "target:\n"
        "  one: &one {images: 'a/*.png', labels: &l 'a/labels'}\n"
        "  two: *one\n"
        "  three: {<<: *one, images: 'b/*.png'}\n"
        "  four: {<<: [*one, {images: 'c/*.png'}], labels: *l}\n"
    )
    assert found.target["two"] == found.target["one"]
    assert (found.target["three"].images, found.target["three"].labels) == ("b/*.png", "a/labels")
    assert found.target["four"] == found.target["one"]


def test_a_file_of_many_aliases_is_read(read):
    maps = ", ".join(f"{{name: t{k}, map: *map}}" for k in range(200))
    shared = ", ".join(f"c{k}: d{k}" for k in range(100))
    found = read(f"window: 1\nteachers: [{{name: a, map: &map {{{shared}}}}}, {maps}]")
    assert len(found.teachers) == 201
    assert found.teachers[200].map == found.teachers[0].map


def test_a_large_file_is_refused_before_it_is_read(refuse):
    assert "larger than 1,000,000 bytes" in refuse("window: 1 # " + "x" * 1_000_000)


@pytest.mark.timeout(20)
def test_what_is_no_file_of_text_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock.yaml"))
        for name, said in (
            ("pipe", "a named pipe"),
            ("zero", "a device"),
            ("folder", "Is a directory"),
            ("sock", "a socket"),
        ):
            with pytest.raises(ConfigError, match=said):
                read_yaml(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\0" * 100, "zeros"),
    ],
)
def test_what_the_file_is_instead_is_said(refuse, content, said):
    assert said in refuse(content)


@pytest.mark.parametrize("text", ['name: "a\\0b"', '"a\\0b": 1', 'names: ["a\\x00b"]'])
def test_a_nul_in_a_name_is_refused_with_its_place(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a NUL character"):
        read_yaml(tmp_path / "x.yaml")


def test_a_file_that_is_a_circle_of_links_is_refused(tmp_path):
    from ensdistill.stages.graph import load

    (tmp_path / "x.yaml").symlink_to("x.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "x.yaml")
