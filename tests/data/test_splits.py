"""Lists of images, of their label files and of predictions for them."""

import os
import unicodedata
from contextlib import contextmanager

import pytest

from ensdistill.data import splits
from ensdistill.data.splits import Picture, from_cityscapes, from_globs, from_list, image_id
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
        ("GOPR0475_frame_000041_rgb_anon.png", "GOPR0475_frame_000041"),
        ("GOPR0475_frame_000041_gt_labelTrainIds.png", "GOPR0475_frame_000041"),
        ("GOPR0475_frame_000041_gt_labelIds.png", "GOPR0475_frame_000041"),
        ("GOPR0475_frame_000041_gt_labelColor.png", "GOPR0475_frame_000041"),
        ("frame0029_gtFine_labelcsTrainIds.png", "frame0029"),
        ("0a0a0b1a-7c39d841_train_id.png", "0a0a0b1a-7c39d841"),
        # of one place there are several, which share their ground truth
        ("a_leftImg8bit_foggy_beta_0.02.png", "a_leftImg8bit_foggy_beta_0.02"),
        ("00001.png", "00001"),
    ],
)
def test_an_id_is_the_stem_without_what_a_data_set_appends(name, expected):
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
    touch(*(f"images/{d}/{n}.png" for d in ("x", "y") for n in "cab"))
    ids = ["a", "c", "b", "x/c", "x/a", "y/b"]

    def found():
        nested = from_globs("images/**/*.png", "images/**/*.png", base, "x")
        flat = from_globs("images/*.png", "labels/*", base, "x")
        return nested, flat, splits.predictions(base / "images", ids, "x")

    expected = found()
    listdir, scandir = os.listdir, os.scandir

    @contextmanager
    def backwards(path):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda e: e.name, reverse=True)

    monkeypatch.setattr(splits.os, "listdir", lambda p: sorted(listdir(p), reverse=True))
    monkeypatch.setattr(splits.os, "scandir", backwards)
    assert found() == expected
    assert list(expected[2]) == ids


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


def test_two_files_of_one_id_in_one_folder_are_refused_naming_both(touch):
    base = touch("images/x/a.png", "images/x/a_leftImg8bit.png", "images/y/b.png", "labels/a.png")
    with pytest.raises(DataError) as caught:
        from_globs("images/**/*.png", None, base, "target.train")
    assert str(caught.value) == (
        f"target.train.images: {base}/images/x/a.png and {base}/images/x/a_leftImg8bit.png "
        "have the same image id 'a'"
    )
    touch("labels/a_gtFine_labelIds.png")
    with pytest.raises(DataError, match=r"x\.labels: .*a\.png and .*same image id 'a'"):
        from_globs("images/x/a.png", "labels/*", base, "x")


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
    found = splits.predictions(base / "p", ["b", "a"], "teachers[t].labels.val")
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
        splits.predictions(base / "p", ["a", "b", "c"], "where")


def test_a_doubled_prediction_that_nobody_asked_for_is_harmless(touch):
    base = touch("p/a.png", "p/x/z.png", "p/y/z.png")
    assert list(splits.predictions(base / "p", ["a"], "x")) == ["a"]


NESTED = ("a/1.png", "a/2.png", "b/1.png")


def test_ids_are_relative_paths_where_stems_are_not_unique(touch):
    base = touch(*(f"deep/images/{name}" for name in NESTED), "images/c/3.png")
    found = from_globs("**/images/**/*.png", None, base / "deep", "x")
    assert ids(found) == ["a/1", "a/2", "b/1"]
    assert [p.image for p in found] == [base / f"deep/images/{name}" for name in NESTED]
    assert ids(from_globs("deep/images/a/*.png", None, base, "x")) == ["1", "2"]


def test_what_all_folders_have_in_common_is_in_no_id(touch):
    base = touch("set/a/rgb/1.png", "set/b/rgb/1.png", "set/a/gt/x/1.png", "set/b/gt/x/1.png")
    found = from_globs("set/*/rgb/*.png", "set/*/gt/x/*.png", base, "x")
    assert ids(found) == ["a/1", "b/1"]
    assert [p.labels for p in found] == [base / f"set/{f}/gt/x/1.png" for f in "ab"]


def test_images_beside_their_folder_have_ids_of_their_own(touch):
    base = touch("i/1.png", "i/b/1.png", "l/1.png", "l/b/1.png", "p/1.png", "p/b/1.png")
    found = from_globs("i/**/*.png", "l/**/*.png", base, "x")
    assert [(p.id, p.labels) for p in found] == [
        ("1", base / "l/1.png"),
        ("b/1", base / "l/b/1.png"),
    ]
    assert splits.predictions(base / "p", ["1", "b/1"], "x") == {
        "1": f"{base}/p/1.png",
        "b/1": f"{base}/p/b/1.png",
    }


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.png", "a/2.png", "b/1.png"),
        ("run/a/1.png", "run/a/2.png", "run/b/1.png"),
        ("a/1.png", "2.png", "b/1.png"),  # where a stem is unique, its folder does not matter
        ("a/1.png", "a/2.png", "b/1.png", "c/1.png", "vis/a/1.png"),
        ("a/out/1.png", "a/out/2.png", "b/out/1.png"),
        ("x/a/1.png", "x/a/2.png", "y/b/1.png"),
        ("a/1_gtFine_labelIds.png", "a/2.png", "b/1.PNG"),
    ],
    ids=repr,
)
def test_files_are_paired_by_folder_where_stems_are_not_unique(touch, names):
    base = touch(*(f"images/{name}" for name in NESTED), *(f"p/{name}" for name in names))
    expected = dict(
        zip(("a/1", "a/2", "b/1"), (f"{base}/p/{name}" for name in names), strict=False)
    )
    assert splits.predictions(base / "p", list(expected), "x") == expected
    found = from_globs("images/**/*.png", "p/**/*.[pP][nN][gG]", base, "x")
    assert {p.id: str(p.labels) for p in found} == expected


def test_labels_of_a_list_are_those_of_its_lines(touch):
    base = touch("a/1.png", "b/1.png", "l/x.png", "l/y.png")
    (base / "list.txt").write_text("a/1.png\tl/x.png\nb/1.png\tl/y.png\n")
    found = from_list("list.txt", base, "x")
    assert [(p.id, p.labels) for p in found] == [
        ("a/1", base / "l/x.png"),
        ("b/1", base / "l/y.png"),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("1.png", "2.png"), r"p/1\.png may belong to the image a/1 or to b/1; .*a/1\.png"),
        (("x/1.png", "2.png"), r"p/x/1\.png may belong to the image a/1 or to b/1"),
        (("a/1.png", "2.png"), r"1 of 3 images have no .*b/1"),
        (("a/1.png", "b/1.png"), r"1 of 3 images have no .*a/2"),
        (("a/1.png", "a/1_leftImg8bit.png", "b/1.png", "2.png"), r"p/a/1\.png and .*same image id"),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused(touch, names, said):
    base = touch(*(f"images/{name}" for name in NESTED), *(f"p/{name}" for name in names))
    with pytest.raises(DataError, match=f"^where: .*{said}"):
        splits.predictions(base / "p", ["a/1", "a/2", "b/1"], "where")
    with pytest.raises(DataError, match=rf"^where\.labels: .*{said}"):
        from_globs("images/**/*.png", "p/**/*.png", base, "where")


FOG = "_leftImg8bit_foggy_beta_0.0"


def test_images_in_several_kinds_of_weather_share_their_ground_truth(touch):
    base = touch(*(f"i/a{FOG}{k}.png" for k in (1, 2)), "l/ulm/a_gtFine_labelIds.png")
    found = from_globs("i/*", "l/*/*", base, "x")
    assert ids(found) == [f"a{FOG}1", f"a{FOG}2"]
    assert {p.labels for p in found} == {base / "l/ulm/a_gtFine_labelIds.png"}


def test_a_prediction_is_that_of_one_kind_of_weather(touch):
    base = touch(f"p/a{FOG}1.png", f"p/x/a{FOG}2.png", "q/a.png")
    expected = {f"a{FOG}2": f"{base}/p/x/a{FOG}2.png", f"a{FOG}1": f"{base}/p/a{FOG}1.png"}
    assert splits.predictions(base / "p", list(expected), "x") == expected
    assert splits.predictions(base / "q", [f"a{FOG}1"], "x") == {f"a{FOG}1": f"{base}/q/a.png"}
    with pytest.raises(DataError, match=r"q/a\.png may belong to the image a_left"):
        splits.predictions(base / "q", list(expected), "x")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a_rgb_anon.png", "a_gt_labelTrainIds.png"),
        (f"a{FOG}2.png", "a_gtFine_labelTrainIds.png"),
        (
            "a_leftImg8bit_rain_alpha_0.01_beta_0.005_dropsize_0.002_pattern_1.png",
            "a_gtFine_labelIds.png",
        ),
        ("a.jpg", "a_train_id.png"),
        ("a_leftImg8bit.png", "a_gtCoarse_labelTrainIds.png"),
        ("a.jpg", "a.png"),
        ("a_leftImg8bit.jpg", "a_gtFine_labelcsTrainIds.png"),
    ],
)
def test_labels_of_usual_data_sets_are_paired(touch, image, label):
    base = touch(f"i/{image}", f"l/{label}")
    (found,) = from_globs("i/*", "l/*", base, "x")
    assert found.labels == base / "l" / label


def test_labels_that_follow_no_known_rule_are_shown_beside_the_image(touch):
    base = touch("i/a.png", "i/b.png", "l/mask-a.png", "l/mask-b.png")
    with pytest.raises(DataError) as caught:
        from_globs("i/*", "l/*", base, "x")
    said = str(caught.value)
    assert "the first is a, and that of a label file is mask-a. Where" in said
    assert "`list: FILE`" in said


FORMS = [unicodedata.normalize(form, "straße_é") for form in ("NFC", "NFD")]


@pytest.mark.parametrize("forms", [FORMS, FORMS[::-1]], ids=["NFC first", "NFD first"])
def test_names_are_the_same_in_both_of_unicodes_forms(touch, forms):
    one, other = forms
    base = touch(f"i/{one}.png", f"l/{other}_gtFine_labelIds.png", f"p/{other}.png")
    touch(*(f"n/{one}/{k}/1.png" for k in "ab"), *(f"m/{k}{other}/1.png" for k in "ab"))
    (found,) = from_globs("i/*", "l/*", base, "x")
    assert found == Picture(one, base / f"i/{one}.png", base / f"l/{other}_gtFine_labelIds.png")
    assert splits.predictions(base / "p", [one], "x") == {one: f"{base}/p/{other}.png"}
    expected = {f"{k}{one}/1": f"{base}/m/{k}{other}/1.png" for k in "ab"}
    assert splits.predictions(base / "m", list(expected), "x") == expected
    assert ids(from_globs(f"n/{other}/*/*.png", None, base, "x")) == ["a/1", "b/1"]
    (base / "list.txt").write_text(f"n/{other}/a/1.png\tp/{one}.png\n")
    (found,) = from_list("list.txt", base, "x")
    assert (found.image, found.labels) == (base / f"n/{one}/a/1.png", base / f"p/{other}.png")


def test_two_names_in_different_forms_are_refused(touch):
    base = touch(*(f"{folder}/{name}.png" for folder in "ip" for name in FORMS))
    if len(list((base / "i").iterdir())) == 1:
        pytest.skip("this file system takes both names for one")
    with pytest.raises(DataError, match=r"differ in Unicode's normal form alone.*rename one"):
        from_globs("i/*", None, base, "x")
    with pytest.raises(DataError, match=r"differ in Unicode's normal form alone"):
        splits.predictions(base / "p", FORMS[:1], "x")


def linked(base, **links):
    for name, goal in links.items():
        (base / name.replace("__", "/")).symlink_to(goal)
    return base


def test_what_lies_behind_links_to_folders_is_found_once(touch):
    base = touch("far/a.png", "far/deep/b.png", "near/c.png", "p/x.txt", "i/c.png")
    linked(base, p__far="../far", p__again="../far", far__near="../near", near__up="..")
    linked(base, p__self=".", p__all="../p", p__above="../..")
    found = splits.predictions(base / "p", ["a", "b", "c"], "x")
    goals = {i: os.path.realpath(path) for i, path in found.items()}
    assert goals == {
        "a": f"{base}/far/a.png",
        "b": f"{base}/far/deep/b.png",
        "c": f"{base}/near/c.png",
    }
    assert ids(from_globs("p/**/*.png", None, base, "x")) == ["a", "b", "c"]
    assert ids(from_globs("p/far/*.png", None, base, "x")) == ["a"]
    linked(base, q="p")
    assert list(splits.predictions(base / "q", ["a"], "x")) == ["a"]


def test_what_has_a_name_of_its_own_is_not_found_behind_a_link(touch):
    base = touch("p/z/a.png")
    linked(base, p__b="z", p__zz="z")
    assert splits.predictions(base / "p", ["a"], "x") == {"a": f"{base}/p/z/a.png"}
    assert from_globs("p/**/*.png", None, base, "x") == [Picture("a", base / "p/z/a.png")]


def test_a_link_to_nothing_is_named(touch):
    base = linked(touch("p/a.png", "p/x/b.png"), p__city="../gone", q="gone")
    said = r"p/city is a link to \.\./gone, which is not there"
    with pytest.raises(DataError, match=said):
        splits.predictions(base / "p", ["a", "c"], "x")
    assert list(splits.predictions(base / "p", ["a", "b"], "x")) == ["a", "b"]
    with pytest.raises(DataError, match=r"x: .*/q is a link to gone, which is not there"):
        splits.predictions(base / "q", ["a"], "x")
    for pattern in ("p/**/*.png", "p/*/*.png", "q/*.png"):
        with pytest.raises(DataError, match=r"is a link to .*gone, which is not there; mend or"):
            from_globs(pattern, None, base, "x")


def test_a_folder_that_cannot_be_listed_is_named(touch, monkeypatch):
    base = touch("p/a.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(splits.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/p: cannot be listed \(Permission denied\)"):
        splits.predictions(base / "p", ["a"], "x")
    monkeypatch.setattr(splits.os, "listdir", refuse)
    with pytest.raises(DataError, match=r"/p: cannot be listed \(Permission denied\)"):
        from_globs("p/*.png", None, base, "x")


def test_a_name_with_brackets_that_exists_is_meant_literally(touch):
    base = touch(
        "[set 1] i/[a]/x[1].png", "s/wrong.png", "cs[1]/leftImg8bit/val/u/b_leftImg8bit.png"
    )
    for pattern in ("[set 1] i/[a]/*.png", "[set 1] i/**/*.png", "*/[a]/x[1].png"):
        assert ids(from_globs(pattern, None, base, "x")) == ["x[1]"]
    assert ids(from_globs(f"{base}/[set 1] i/[a]/x[[]*", None, base, "x")) == ["x[1]"]
    assert ids(from_globs("[a-z]/*.png", None, base, "x")) == ["wrong"]
    assert ids(from_cityscapes("cs[1]", "val", base, "x")) == ["b"]
    assert list(splits.predictions(base / "[set 1] i", ["x[1]"], "x")) == ["x[1]"]
    (base / "list[1].txt").write_text("[set 1] i/[a]/x[1].png\n")
    assert ids(from_list("list[1].txt", base, "x")) == ["x[1]"]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("i", "; it is a folder, name its files by a pattern: i/*"),
        ("i/", "; it is a folder, name its files by a pattern: i/*"),
        (".", "; it is a folder, name its files by a pattern: ./*"),
        ("i/*.{jpg,png}", "; `{a,b}` stands for itself here"),
        ("i/x [1]*.png", "; `[` begins a set of characters, and one that is part of a name is wr"),
        ("i/*.png", "; beside others there is x [1]2.PNG"),
        ("empty/*.png", "; its folder is empty"),
        ("~nobody-has-this-name/*.png", ""),
    ],
)
def test_a_pattern_that_matches_nothing_comes_with_a_hint(touch, pattern, hint):
    base = touch("i/x [1]2.PNG")
    (base / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        from_globs(pattern, None, base, "x")
    start = f"x.images: no file matches {pattern!r} (seen from {base})"
    assert str(caught.value).startswith(start + hint)
    with pytest.raises(DataError) as caught:
        from_globs("i/*", pattern, base, "x")
    assert f"among 0 that match {pattern!r}; the first is x [1]2{hint}" in str(caught.value)


def test_a_link_to_itself_is_no_folder(touch):
    base = linked(touch("p/a.png"), p__loop="loop")
    assert list(splits.predictions(base / "p", ["a"], "x")) == ["a"]
    with pytest.raises(DataError, match=r"p/loop is a link to loop, which is not there"):
        splits.predictions(base / "p", ["a", "b"], "x")


def test_names_that_are_no_utf8_are_paired(tmp_path):
    name = os.fsdecode(b"stra\xdfe")
    for file in (f"i/{name}.png", f"l/{name}_gtFine_labelIds.png", f"p/{name}/1.png", "p/b/1.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            (tmp_path / file).touch()
        except OSError:
            pytest.skip("this file system has no such names")
    (found,) = from_globs("i/*", "l/*", tmp_path, "x")
    assert (found.id, found.labels.name) == (name, f"{name}_gtFine_labelIds.png")
    wanted = [f"{name}/1", "b/1"]
    assert list(splits.predictions(tmp_path / "p", wanted, "x")) == wanted


def test_a_pattern_finds_no_hidden_folder_and_predictions_may_lie_in_one(touch):
    base = touch("i/.kept/b.png", "i/a.png", "i/.c.png")
    for pattern in ("i/**/*.png", "i/**", "**/*.png"):
        assert ids(from_globs(pattern, None, base, "x")) == ["a"]
    assert ids(from_globs("i/.*/*.png", None, base, "x")) == ["b"]
    assert list(splits.predictions(base / "i", ["a", "b"], "x")) == ["a", "b"]


def test_no_id_leads_up(touch):
    base = touch("lists/a/1.png", "b/1.png", "lists/c/1.png")
    (base / "lists/list.txt").write_text("a/1.png\n../b/1.png\na/../c/1.png\n")
    assert ids(from_list("lists/list.txt", base, "x")) == ["b/1", "lists/a/1", "lists/c/1"]
    (base / "lists/list.txt").write_text("a/1.png\nc/../a/1.png\n")
    with pytest.raises(DataError, match="have the same image id '1'"):
        from_list("lists/list.txt", base, "x")
