"""Our mark: what bears it is ours, and what a link leads to never is."""

import os

import pytest

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.ownership import MARK, cut_links, is_own, own


def test_what_was_made_is_ours_and_only_as_what_it_was_made(tmp_path):
    folder = tmp_path / "work" / "a"
    own(folder, "fusion 0123")
    assert is_own(folder, "fusion 0123")
    assert not is_own(folder, "fusion 0124")
    assert not is_own(tmp_path, "fusion 0123")
    own(folder, "fusion 0123")
    assert [p.name for p in folder.iterdir()] == [MARK]


def test_a_folder_that_was_there_is_marked(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    own(tmp_path, "pixels")
    assert is_own(tmp_path, "pixels")


def test_a_link_is_neither_ours_nor_made_so(tmp_path):
    own(tmp_path / "real", "pixels")
    (tmp_path / "link").symlink_to("real")
    assert not is_own(tmp_path / "link", "pixels")
    with pytest.raises(DataError, match="is a link to real, and nothing is written or deleted"):
        own(tmp_path / "link", "pixels")


@pytest.mark.timeout(20)
def test_a_mark_that_is_a_pipe_is_none(tmp_path):
    os.mkfifo(tmp_path / MARK)
    assert not is_own(tmp_path, "pixels")


def test_only_the_links_of_a_folder_are_cut(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "draft"
    for one in (outside, folder / "sub"):
        one.mkdir(parents=True)
        (one / "file").write_bytes(b"precious")
    (folder / "sub" / "link").symlink_to(outside)
    (folder / "maps").symlink_to(outside)
    (folder / "file").symlink_to(outside / "file")
    cut_links(folder)
    assert sorted(p.name for p in folder.rglob("*")) == ["file", "sub"]
    assert (outside / "file").read_bytes() == b"precious"
