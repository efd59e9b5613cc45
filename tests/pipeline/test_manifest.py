"""Manifests prove themselves: whatever byte changes is noticed, and the field is named."""

import hashlib
import json
import os
from dataclasses import fields, replace

import pytest

from ensdistill.pipeline.atomic import json_bytes
from ensdistill.pipeline.errors import CorruptError
from ensdistill.pipeline.fingerprint import digest, fingerprint
from ensdistill.pipeline.journal import seal
from ensdistill.pipeline.manifest import (
    FORMAT,
    RECORDED,
    Artifact,
    Manifest,
    SpoiltManifestError,
    read_manifest,
)

RECIPE = {"window": 3, "names": ["straße", "b"], "share": 0.5, "none": None}
INPUTS = {"labels": "b" * 64}
MANIFEST = Manifest(
    node="fusion@val",
    stage="fusion",
    version=1,
    fingerprint=fingerprint("fusion", 1, RECIPE, INPUTS),
    recipe=RECIPE,
    inputs=INPUTS,
    result={"n": 1, "by": {"road": 0.25}},
    made_from={"labels": "c" * 64},
    called={"labels": "größe"},
    content="d" * 64,
    files={"items.jsonl": [12, "e" * 64]},
    runtime={"device": "cpu", "folder": "/home/größe"},
    provenance={"git": None, "peak_memory": 1234567890},
    seconds=12.345,
    written=4,
    reused=0,
    finished="2024-01-01T00:00:00+00:00",
)
NAMES = [f.name for f in fields(Manifest)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(MANIFEST.to_bytes())
    return path


def refused(file, content):
    """Return the error that reading a manifest with this content gives."""
    file.write_bytes(content)
    with pytest.raises(SpoiltManifestError) as caught:
        pytest.fail(f"read: {read_manifest(file.parent)} of {content}"[:2000])
    assert str(file) in str(caught.value)
    return caught.value


def names_of_each_byte(raw):
    """Return for each byte the field that it belongs to; or, of a checksum, either name."""
    found, field = [], None
    for line in raw.splitlines(keepends=True):
        said = line.split(b'"')[1].decode() if b'"' in line else field
        if line[:2] == b' "':
            field = said
        names = {"checks", "check", said} if field in ("checks", "check") else {field}
        indent = len(line) - len(line.lstrip())
        inside = line.startswith(b" ")
        found += [None] * indent + [names if inside else None] * (len(line) - indent)
    assert len(found) == len(raw)
    return found


def test_what_is_written_is_read(file):
    assert read_manifest(file.parent) == MANIFEST
    assert file.read_bytes() == read_manifest(file.parent).to_bytes()


def test_a_folder_without_a_manifest_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path)


def test_it_is_plain_json_with_a_checksum_for_each_field(file):
    found = json.loads(file.read_bytes())
    assert list(found) == [*NAMES, "checks", "check"]
    assert list(found["checks"]) == NAMES
    assert {len(check) for check in found["checks"].values()} == {16}
    assert found["recipe"] == RECIPE


@pytest.mark.slow
def test_any_changed_byte_is_noticed_and_its_field_named(file):
    raw, unnamed = file.read_bytes(), []
    for k, names in enumerate(names_of_each_byte(raw)):
        for other in {*b' \n"', raw[k] ^ 1, raw[k] ^ 32} - {raw[k]}:
            error = refused(file, raw[:k] + bytes([other]) + raw[k + 1 :])
            assert all(name in str(error) for name in error.spoilt)
            between = raw[k] == ord("\n")  # belongs to the field before it as to that after it
            if names and not between and not names & {name.split(".")[0] for name in error.spoilt}:
                unnamed.append((k, sorted(names), bytes([other]), error.spoilt))
    assert unnamed == []


@pytest.mark.parametrize("more", [b"", b" ", b"\n", b"0"])
def test_any_byte_more_or_less_is_noticed(file, more):
    raw = file.read_bytes()
    for k in range(len(raw)):
        refused(file, raw[:k] + more + raw[k + (not more) :])
    if more:
        refused(file, raw + more)


def test_wherever_it_is_cut_it_is_noticed(file):
    raw = file.read_bytes()
    for k in range(len(raw)):
        refused(file, raw[:k])


@pytest.mark.parametrize(
    "respell",
    [
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b"\n", b""),
        lambda raw: raw.replace(b"\n ", b"\n\t"),
        lambda raw: raw.rstrip(),
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace("ß".encode(), b"\\u00df"),
        lambda raw: raw.replace(b"12.345", b"12.3450"),
        lambda raw: json.dumps(json.loads(raw)).encode(),
        lambda raw: json.dumps(json.loads(raw), indent=1, sort_keys=True).encode() + b"\n",
        lambda raw: raw.decode().encode("utf-16"),
    ],
)
def test_another_spelling_of_the_same_is_noticed_but_nothing_is_lost(file, respell):
    error = refused(file, respell(file.read_bytes()))
    assert error.found == MANIFEST
    assert "not what was written" in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_lost_its_value_is_named(file, name):
    values = json.loads(file.read_bytes())
    values[name] = ["other"]
    error = refused(file, json.dumps(values, indent=1).encode())
    assert error.spoilt == [name]
    assert f": {name} not what was written; `ensdistill verify --repair`" in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_nothing_depends_on_can_be_done_without(file, name):
    values = json.loads(file.read_bytes())
    values[name] = ["other"]
    found = refused(file, json.dumps(values, indent=1).encode()).found
    if name not in RECORDED:
        assert found is None
        return
    empty = Manifest("n", "s", 1, "f", {}, {}, {})
    assert found == replace(MANIFEST, **{name: getattr(empty, name)})
    file.write_bytes(found.to_bytes())
    assert read_manifest(file.parent) == found


def test_one_needed_field_beside_the_others_is_enough_to_lose_it(file):
    values = json.loads(file.read_bytes()) | {"seconds": 1, "result": {}}
    error = refused(file, json.dumps(values, indent=1).encode())
    assert (error.spoilt, error.found) == (["result", "seconds"], None)


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_checksum_counts_as_a_spoilt_field(file, name):
    values = json.loads(file.read_bytes())
    values["checks"][name] = "0" * 16
    assert refused(file, json.dumps(values, indent=1).encode()).spoilt == [name]
    del values["checks"][name]
    assert refused(file, json.dumps(values, indent=1).encode()).spoilt == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_field_is_named(file, name):
    values = json.loads(file.read_bytes())
    del values[name]
    assert refused(file, json.dumps(values, indent=1).encode()).spoilt == [name]


def test_an_unheard_of_field_is_named(file):
    values = json.loads(file.read_bytes()) | {"unheard": 1}
    assert refused(file, json.dumps(values, indent=1).encode()).spoilt == ["unheard"]
    values = json.loads(MANIFEST.to_bytes())
    values["checks"]["unheard"] = "0" * 16
    assert refused(file, json.dumps(values, indent=1).encode()).spoilt == ["checks.unheard"]


def later(file, **more):
    """Return a manifest as a later version of the same format may write it."""
    values = json.loads(MANIFEST.to_bytes())
    values["checks"] |= {name: digest(value)[:16] for name, value in more.items()}
    body = json_bytes(
        {k: v for k, v in (values | more).items() if k != "check"}, indent=1
    ).removesuffix(b"\n}\n")
    return sealed(file, lambda _: body)


def test_what_a_later_version_adds_is_not_looked_at(file):
    file.write_bytes(later(file, colour={"hue": 3}))
    assert read_manifest(file.parent) == MANIFEST


def test_damage_is_named_beside_and_in_what_a_later_version_adds(file):
    raw = later(file, colour={"hue": 3})
    error = refused(file, raw.replace(b"12.345", b"12.346"))
    assert error.spoilt == ["seconds"]
    assert error.found == replace(MANIFEST, seconds=0.0)
    assert refused(file, raw.replace(b'"hue": 3', b'"hue": 4')).spoilt == ["colour"]


def test_a_manifest_of_another_format_is_refused_with_both_numbers(file):
    for other in (FORMAT - 1, FORMAT + 1):
        error = refused(file, replace(MANIFEST, format=other).to_bytes())
        assert f"format {other}, expected {FORMAT}; it was made by another version" in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b"{}", b'{"checks": 3}', b'{"checks": {}}', b"[" * 100_000],
    ids=repr,
)
def test_what_is_no_manifest_is_refused(file, content):
    assert refused(file, content).found is None


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(SpoiltManifestError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path)


# the item index

RECORDS = [
    {"id": i, "key": "k", "made_from": {}, "content": "0", "n": n} for n, i in enumerate("xyz", 1)
]


@pytest.fixture
def artifact(file):
    (file.parent / "items.jsonl").write_bytes(b"".join(map(seal, RECORDS)))
    return Artifact(file.parent, MANIFEST)


def test_items_are_read_once_in_stored_order(artifact):
    assert artifact.items == RECORDS
    (artifact.path / "items.jsonl").unlink()
    assert artifact.items == RECORDS


def test_an_artifact_without_items_has_none(artifact):
    assert Artifact(artifact.path, replace(MANIFEST, files={})).items == []


def test_an_unreadable_item_index_is_refused_with_the_way_out(artifact):
    (artifact.path / "items.jsonl").unlink()
    with pytest.raises(CorruptError, match=r"items\.jsonl: .*verify --repair"):
        artifact.items  # noqa: B018


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_spoilt_line_of_the_item_index_is_refused_by_number(artifact, number):
    lines = [seal(r) for r in RECORDS]
    lines[number - 1] = lines[number - 1].replace(b'"n"', b'"m"')
    (artifact.path / "items.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(CorruptError, match=rf"items\.jsonl: line {number} .*verify --repair"):
        artifact.items  # noqa: B018


TEXT, COUNT, KEYS, TEXTS = "text", "a whole number", "keys and values", "texts by name"
OTHERS = {  # what is expected: values that are something else
    TEXT: [None, True, 3, [], ["x"], {}],
    COUNT: [None, True, 1.5, -1, "1", [1], {}],
    KEYS: [None, True, 3, "x", [], [["x", 1]]],
    TEXTS: [None, 3, "x", [], {"x": 1}, {"x": None}, {"x": ["y"]}],
    "what is known": [
        *(
            None,
            3,
            "x",
            [],
            {"command": 3},
            {"begun": "x"},
            {"git": "abc"},
            {"git": {"commit": None}},
        ),
        *({"packages": []}, {"messages": "x"}, {"messages": [3]}, {"peak_memory": ["x"]}),
    ],
    "a time": [None, True, 3, [], {}, "yesterday", "2024-13-01"],
    "a number": [None, True, "1", [1.5], {}],
    "length and digest": [
        *(None, 3, "x", [], ["x"], {"x": None}, {"x": 3}, {"x": [3]}, {"x": ["3", "0"]}),
        *({"x": [3, None]}, {"x": [-1, "0"]}, {"x": [True, "0"]}, {"x": [3, "0", 0]}),
        *({"../x": [3, "0"]}, {"/x": [3, "0"]}, {"a/../../x": [3, "0"]}, {"": [3, "0"]}),
        *({"manifest.json": [3, "0"]}, {"a\0b": [3, "0"]}, {"x" * 300: [3, "0"]}),
    ],
}
EXPECTED = {
    **dict.fromkeys(["node", "stage", "fingerprint", "content"], TEXT),
    "finished": "a time",
    **dict.fromkeys(["version", "disk_bytes", "written", "reused", "format"], COUNT),
    **dict.fromkeys(["recipe", "result", "runtime"], KEYS),
    "provenance": "what is known",
    **dict.fromkeys(["inputs", "made_from", "called"], TEXTS),
    "seconds": "a number",
    "files": "length and digest",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_another_type_is_refused_although_all_checksums_hold(file, name):
    for value in OTHERS[EXPECTED[name]]:
        error = refused(file, replace(MANIFEST, **{name: value}).to_bytes())
        assert error.spoilt == [name], value
        assert f"{name}: expected {EXPECTED[name]}" in str(error)
        assert len(str(error)) < len(str(file)) + 400
        assert (error.found is None) == (name not in RECORDED)


def sealed(file, change):
    """Return the bytes of a manifest whose last checksum fits whatever `change` made of it."""
    body = change(file.read_bytes().rpartition(b',\n "check"')[0])
    return body + b',\n "check": "' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"\n}\n'


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b'"seconds": 12.345', b'"seconds": NaN'),
        lambda raw: raw.replace(b'"seconds": 12.345', b'"seconds": 1e999'),
        lambda raw: raw.replace(b'"share": 0.5', b'"share": -Infinity'),
        lambda raw: raw.replace(b'"share": 0.5', b'"share": ' + b"[" * 10**5 + b"]" * 10**5),
        lambda raw: raw.replace(b'"share": 0.5', b'"share": ' + b"[" * 900 + b"]" * 900),
        lambda raw: raw.replace(b'"recipe"', b'"receipt"'),
        lambda raw: b"[" + raw[1:],
    ],
    ids=["NaN", "huge", "infinite", "deep", "rather deep", "renamed", "list"],
)
def test_what_cannot_be_hashed_or_is_no_mapping_is_refused(file, change):
    refused(file, sealed(file, change))


def test_a_manifest_behind_a_link_that_leads_out_is_refused(file, tmp_path):
    elsewhere = tmp_path.parent / "elsewhere.json"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(SpoiltManifestError, match="a link leads out"):
        read_manifest(tmp_path)


@pytest.mark.timeout(20)
def test_a_manifest_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(SpoiltManifestError, match="a named pipe"):
        read_manifest(tmp_path)
