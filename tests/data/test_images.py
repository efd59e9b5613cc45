"""Lists of images, of their label files and of predictions for them."""

import os

import pytest

from ensdistill.data import images
from ensdistill.data.images import Picture, from_cityscapes, from_globs, from_list, image_id
from ensdistill.pipeline.errors import DataError


@pytest.fixture
def touch(tmp_path):
    def run(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return run


def ids(pictures):
    return [p.id for p in pictures]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aachen_000000_000019_leftImg8bit.png", "aachen_000000_000019"),
        ("aachen_000000_000019_gtFine_labelIds.png", "aachen_000000_000019"),
        ("aachen_000000_000019_gtFine_labelTrainIds.png", "aachen_000000_000019"),
        ("aachen_000000_000019_gtFine_color.png", "aachen_000000_000019"),
        ("aachen_000000_000019.jpg", "aachen_000000_000019"),
        ("frame.001.png", "frame.001"),
        ("leftImg8bit.png", "leftImg8bit"),
    ],
)
def test_an_id_is_the_stem_without_a_cityscapes_suffix(name, expected):
    assert image_id(name) == expected


def test_a_glob_is_sorted_by_id_whatever_the_folders(touch):
    base = touch("images/z/a.png", "images/a/c.png", "images/m/b.png", "images/a/c.txt")
    found = from_globs("images/*/*.png", None, base, "target.train")
    assert found == [
        Picture("a", base / "images/z/a.png"),
        Picture("b", base / "images/m/b.png"),
        Picture("c", base / "images/a/c.png"),
    ]


def test_the_order_of_the_file_system_means_nothing(touch, monkeypatch):
    base = touch(*(f"{d}/{n}.png" for d in ("images", "labels") for n in "cab"))
    expected = from_globs("images/*", "labels/*", base, "x")
    walk, glob = os.walk, images.glob.glob
    monkeypatch.setattr(images.glob, "glob", lambda *a, **k: glob(*a, **k)[::-1])
    monkeypatch.setattr(images.os, "walk", lambda *a: [(p, d, f[::-1]) for p, d, f in walk(*a)])
    assert from_globs("images/*", "labels/*", base, "x") == expected
    assert list(images.predictions(base / "images", ["c", "a", "b"], "x")) == ["c", "a", "b"]


def test_two_stars_reach_every_depth_and_no_folder(touch):
    base = touch("images/a.png", "images/x/b.png", "images/x/y.png/c.png")
    for pattern in ("images/**/*.png", "images/**", "images/**/**/*.png"):
        assert ids(from_globs(pattern, None, base, "x")) == ["a", "b", "c"]
    assert ids(from_globs("images/*.png", None, base, "x")) == ["a"]


def test_a_pattern_may_be_absolute_or_at_home(touch, monkeypatch):
    base = touch("home/images/a.png")
    monkeypatch.setenv("HOME", str(base / "home"))
    for pattern in (f"{base}/home/images/*.png", "~/images/*.png"):
        found = from_globs(pattern, None, base / "elsewhere", "x")
        assert found == [Picture("a", base / "home/images/a.png")]


def test_a_folder_whose_name_is_a_pattern_is_meant_literally(touch):
    base = touch("run[1]/images/a.png", "run[1]/cs/leftImg8bit/val/x/b_leftImg8bit.png") / "run[1]"
    touch("run1/images/wrong.png")
    assert ids(from_globs("images/*.png", None, base, "x")) == ["a"]
    assert ids(from_cityscapes("cs", "val", base, "x")) == ["b"]


def test_a_broken_link_is_listed_and_not_left_out(touch):
    base = touch("images/a.png")
    (base / "images/b.png").symlink_to("gone.png")
    assert ids(from_globs("images/*.png", None, base, "x")) == ["a", "b"]


def test_labels_are_joined_by_id(touch):
    base = touch(
        "images/a_leftImg8bit.png", "images/b.jpg", "labels/b.png", "labels/a_gtFine_labelIds.png"
    )
    touch("labels/unused.png")
    assert from_globs("images/*", "labels/*.png", base, "x") == [
        Picture("a", base / "images/a_leftImg8bit.png", base / "labels/a_gtFine_labelIds.png"),
        Picture("b", base / "images/b.jpg", base / "labels/b.png"),
    ]


def test_no_match_is_refused_with_pattern_and_place(touch):
    base = touch("images/a.png")
    with pytest.raises(DataError) as caught:
        from_globs("image/*.png", None, base, "target.val")
    said = str(caught.value)
    assert said == f"target.val.images: no file matches 'image/*.png' (seen from {base})"


def test_two_files_of_one_id_are_refused_naming_both(touch):
    base = touch("images/x/a.png", "images/y/a_leftImg8bit.png", "labels/a.png")
    with pytest.raises(DataError) as caught:
        from_globs("images/**/*.png", None, base, "target.train")
    assert str(caught.value) == (
        f"target.train.images: {base}/images/x/a.png and {base}/images/y/a_leftImg8bit.png "
        "have the same image id 'a'"
    )
    touch("labels/a_gtFine_labelIds.png")
    with pytest.raises(DataError, match=r"x\.labels: .*a\.png and .*same image id 'a'"):
        from_globs("images/x/*.png", "labels/*", base, "x")


def test_missing_labels_are_counted_and_the_first_is_named(touch):
    base = touch("images/a.png", "images/b.png", "images/c.png", "labels/a.png")
    with pytest.raises(DataError) as caught:
        from_globs("images/*.png", "labels/*.png", base, "target.val")
    assert str(caught.value) == (
        "target.val.labels: 2 of 3 images have no label file among 1 that match 'labels/*.png'; "
        "the first is b. Where only some are labelled, name these by `list: FILE`, with image and "
        "label file on each line"
    )


def test_a_cityscapes_tree_is_read_with_and_without_ground_truth(touch, monkeypatch):
    base = touch(
        "cs/leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png",
        "cs/leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png",
        "cs/leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.json",
        "cs/leftImg8bit/train/bonn/bonn_0_2_leftImg8bit.png",
        "cs/gtFine/val/ulm/ulm_0_1_gtFine_labelIds.png",
        "cs/gtFine/val/ulm/ulm_0_1_gtFine_color.png",
        "cs/gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png",
    )
    found = from_cityscapes("cs", "val", base, "target.val")
    assert ids(found) == ["bonn_0_1", "ulm_0_1"]
    assert found[0].labels == base / "cs/gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png"
    assert from_cityscapes("cs", "train", base, "x")[0].labels is None
    monkeypatch.setenv("HOME", str(base))
    for root in (str(base / "cs"), "~/cs"):
        assert from_cityscapes(root, "val", base / "elsewhere", "x") == found
    with pytest.raises(DataError, match=r"target\.test\.images: no file matches"):
        from_cityscapes("cs", "test", base, "target.test")


def test_many_images_that_are_gone_do_not_hide_a_label_file(touch):
    base = touch("l/0.png", "i/30.png")
    rows = [f"i/{k}.png\tl/0.png" for k in range(30)] + ["i/30.png\tl/gone.png"]
    (base / "list.txt").write_text("\n".join(rows))
    with pytest.raises(DataError) as refusal:
        from_list("list.txt", base, "x")
    first, images, labels = str(refusal.value).splitlines()
    assert first == "2 problems:"
    assert images.endswith("i/0.png, which is no file (and 29 more like it)")
    assert labels.endswith("l/gone.png, which is no file")


def test_a_list_is_read_relative_to_itself(touch):
    base = touch("lists/i/b.png", "lists/i/a.png", "lists/l/a.png", "lists/l/x.png")
    file = base / "lists/val.txt"
    file.write_text("# images\n\ni/b.png\tl/x.png\n  \ni/a.png\tl/a.png\n")
    expected = [
        Picture("a", base / "lists/i/a.png", base / "lists/l/a.png"),
        Picture("b", base / "lists/i/b.png", base / "lists/l/x.png"),
    ]
    assert from_list("lists/val.txt", base, "target.val") == expected
    assert from_list(str(file), base / "elsewhere", "target.val") == expected


@pytest.mark.parametrize(
    "text",
    [
        "i/a.png\ni/b.png\n",
        "i/b.png\ni/a.png",
        "i/a.png\r\ni/b.png\r\n",
        "\ufeffi/a.png\ni/b.png \n",
    ],
    ids=repr,
)
def test_a_list_of_images_alone_is_read(touch, text, monkeypatch):
    base = touch("i/a.png", "i/b.png")
    (base / "list.txt").write_bytes(text.encode())
    expected = [Picture(i, base / f"i/{i}.png") for i in "ab"]
    assert from_list("list.txt", base, "x") == expected
    monkeypatch.setenv("HOME", str(base))
    assert from_list("~/list.txt", base / "elsewhere", "x") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no image"),
        ("# nothing\n", "lists no image"),
        ("i/a.png\tl/a.png\tx\n", r"expected `image` or `image<tab>labels`, found \['i/a.png'"),
        ("i/a.png\tl/a.png\ni/b.png\n", "1 of 2 lines name a label file; all or none"),
        ("i/a.png l/a.png\n", r"lists .*i/a\.png l/a\.png, which is no file"),
        ("i/a.png\n\ni/gone.png\n", r"list\.txt: lists .*i/gone\.png, which is no file"),
        ("i/a.png\tl/gone.png\n", r"lists .*l/gone\.png, which is no file"),
        ("i/a.png\t\n", "which is no file"),
        ("i/a.png\ni/a.png\n", "have the same image id 'a'"),
        ("i\n", "which is no file"),
    ],
)
def test_a_wrong_list_is_refused(touch, text, said):
    base = touch("i/a.png", "i/b.png", "l/a.png")
    (base / "list.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        from_list("list.txt", base, "target.val")


def test_all_missing_files_of_a_list_are_told_at_once(touch):
    base = touch("i/a.png")
    (base / "list.txt").write_text("i/x.png\ti/y.png\ni/a.png\ti/z.png\n")
    with pytest.raises(DataError) as caught:
        from_list("list.txt", base, "x")
    said = str(caught.value)
    assert said.startswith("3 problems:")
    assert [name in said for name in ("i/x.png", "i/y.png", "i/z.png")] == [True] * 3


@pytest.mark.parametrize("content", [None, b"stra\xdfe.png"])
def test_an_unreadable_list_is_named(touch, content):
    base = touch()
    if content is not None:
        (base / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"target\.val\.list: .*list\.txt cannot be read"):
        from_list("list.txt", base, "target.val")


@pytest.mark.parametrize(
    "names",
    [
        ("p/a.png", "p/b.png"),
        ("p/a_leftImg8bit.png", "p/b_leftImg8bit.png"),
        ("p/bonn/a_leftImg8bit.png", "p/ulm/deep/b.png"),
        ("p/a.PNG", "p/b.Png"),
        ("p/a.png", "p/b.png", "p/c.png", "p/a.txt", "p/a.png.txt"),
        ("p/a_gtFine_labelTrainIds.png", "p/b.png"),
    ],
    ids=repr,
)
def test_predictions_are_found_flat_or_nested_by_id(touch, names):
    base = touch(*names)
    found = images.predictions(base / "p", ["b", "a"], "teachers[t].labels.val")
    assert list(found.items()) == [("b", str(base / names[1])), ("a", str(base / names[0]))]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "where: .*p is no folder"),
        (("p/a.png",), r"where: 2 of 3 images have no prediction in .*p; expected b\.png \(or b_l"),
        (("p/a.png", "p/b.jpg", "p/c.png"), r"1 of 3 .*; expected b\.png"),
        (("p/x/a.png", "p/y/a.png"), r"p/x/a\.png and .*p/y/a\.png have the same image id 'a'"),
        (("p/a.png", "p/a_leftImg8bit.png"), "have the same image id 'a'"),
    ],
)
def test_missing_and_doubled_predictions_are_refused(touch, names, said):
    base = touch(*names)
    with pytest.raises(DataError, match=said):
        images.predictions(base / "p", ["a", "b", "c"], "where")


def test_a_doubled_prediction_that_nobody_asked_for_is_harmless(touch):
    base = touch("p/a.png", "p/x/z.png", "p/y/z.png")
    assert list(images.predictions(base / "p", ["a"], "x")) == ["a"]
