"""Opening what somebody else may have written."""

import json
import os
import socket

import pytest

from ensdistill.pipeline.opening import (
    DEEPEST,
    NotRegularError,
    StrayNameError,
    inner,
    open_regular,
    parse_json,
    read_json,
    read_regular,
    what_instead,
)


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "work" / "a-1"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/x").write_bytes(b"x")
    (tmp_path / "precious").write_bytes(b"precious")
    return folder


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        for name, what in (
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "sock", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(NotRegularError) as raised:
                read_regular(name)
            assert raised.value.strerror == f"{what}, not a regular file"
            assert what in what_instead(name)
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(NotRegularError):
        open_regular(tmp_path / "link")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_regular_files_are_read_through_links_too(artifact):
    (artifact / "link").symlink_to(artifact / "sub/x")
    assert read_regular(artifact / "link") == b"x"


@pytest.mark.parametrize(
    "name",
    [
        *("../precious", "/etc/passwd", "sub/../../../precious", "", ".", "..", "sub//x", "sub/"),
        *("./x", "a\0b", None, 3, ["sub/x"], "/", "//x"),
    ],
)
def test_names_that_lead_out(artifact, name):
    with pytest.raises(StrayNameError):
        inner(artifact, name)


@pytest.mark.parametrize("name", ["sub/x", "new", "new/deep/er", "..x", "x..", "...", "a b"])
def test_names_that_stay_inside(artifact, name):
    assert inner(artifact, name) == artifact / name


def test_links_that_lead_out_at_any_depth(artifact, tmp_path):
    (artifact / "file").symlink_to(tmp_path / "precious")
    (artifact / "up").symlink_to("..")
    (artifact / "sub/up").symlink_to("../..")
    (artifact / "broken").symlink_to(tmp_path / "nowhere")
    (artifact / "circle").symlink_to("circle")
    (artifact / "sibling").symlink_to(artifact.parent / "a-1x")
    for name in ("file", "up/a-2/x", "sub/up/precious", "broken", "sibling/x"):
        with pytest.raises(StrayNameError):
            inner(artifact, name)
    inner(artifact, "circle")  # stays inside, and opening it fails


def test_links_that_stay_inside_and_a_folder_that_is_a_link(artifact, tmp_path):
    (artifact / "link").symlink_to("sub")
    (tmp_path / "elsewhere").symlink_to(artifact)
    folder = tmp_path / "elsewhere"
    assert read_regular(inner(folder, "link/x")) == b"x"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s31390--f50d7\n", "git annex get"),
        (b"\n  <!DOCTYPE html><html>sign in</html>", "web page"),
        (b"\xef\xbb\xbf<html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (bytes(2000), "begins with zeros only"),
        (b"PK\x03\x04 and more", "zip archive"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_what_a_file_is_instead(tmp_path, content, said):
    (tmp_path / "x.png").write_bytes(content)
    assert said in what_instead(tmp_path / "x.png")


def test_of_others_nothing_is_said(tmp_path):
    (tmp_path / "x").write_bytes(b"some text")
    assert what_instead(tmp_path / "x") is None
    assert what_instead(tmp_path / "none") is None


def test_json_that_is_none(tmp_path):
    for content in (b"{", b"[" * 200_000, b"\xff\xfe\xfa", b'{"a": ' * 100_000):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError):
            read_json(tmp_path / "x")
    (tmp_path / "x").write_text('{"a": [1]}')
    assert read_json(tmp_path / "x") == {"a": [1]}


def test_no_more_is_read_than_is_asked_for(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(10**12)  # of holes
    with pytest.raises(OSError, match=r"holds 1,000,000,000,000 bytes, expected 100 at most"):
        read_regular(tmp_path / "x", 100)
    (tmp_path / "y").write_bytes(b"x" * 100)
    assert read_regular(tmp_path / "y", 100) == b"x" * 100


@pytest.mark.parametrize("encode", [str, str.encode, lambda text: text.encode("utf-16")])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a": ', "}")])
def test_depth_is_that_of_values_and_not_of_brackets(encode, begin, end):
    def text(depth, beside):
        return encode(f"[{beside}" + begin * (depth - 1) + "1" + end * (depth - 1) + "]")

    assert parse_json(encode(json.dumps(["["] * 2 * DEEPEST)))
    for beside in ("", '"[[{{", [], '):
        assert parse_json(text(DEEPEST - 1, beside))
        with pytest.raises(ValueError, match="too deep"):
            parse_json(text(DEEPEST, beside))
