"""Whatever is wrong with the inputs is refused before any work, with file, value and remedy."""

import numpy as np
import pytest
from PIL import Image
from worlds import World

from ensdistill.pipeline.files import FileCache as Digests
from ensdistill.stages.checks import files as check


@pytest.mark.parametrize("key", ["tensorboard", "scheduler"])
def test_a_missing_package_is_told_before_any_work(world, monkeypatch, key):
    monkeypatch.setattr(check, "find_spec", lambda _: None)
    world.settings["runtime"][key] = "somewhere"
    world.write()
    text = world.refuse("check")
    assert f"runtime.{key}: the package" in text and "pip install 'ensdistill[" in text


def refused(world, *words):
    """Every command that works refuses, nothing was made, and the text holds `words`."""
    texts = {world.refuse(command) for command in ("check", "run")}
    assert len(texts) == 1
    text = texts.pop()
    for word in words:
        assert word in text, text
    work = world.root / "work"
    assert not work.exists() or {p.name for p in work.iterdir()} <= {
        "files.json",
        "files-facts.json",
    }
    return text


def first(world, kind="teachers/a", split="train"):
    return world.root / kind / split / f"{split}_000001_000019.png"


def test_label_ids_where_train_ids_were_declared(world):
    ids = np.full((48, 64), 26)
    ids[:4] = 7
    path = world.save("teachers/a", "train", "train_000001_000019", ids)
    refused(
        world,
        "DataError",
        str(path),
        f"value 26 on {44 * 64} pixels",
        "0..18 and 255",
        "teachers[a]",
        "ids: label_ids",
    )


def test_truncated_image(world):
    path = first(world, "images")
    path.write_bytes(path.read_bytes()[:-60])
    refused(world, str(path), "cannot be read", "replace the file")


def test_an_image_that_cannot_be_read_is_one_problem(world):
    path = first(world, "images")
    path.unlink()
    path.symlink_to("nowhere.png")
    text = world.refuse("check")
    assert text.count(str(path)) == 1
    assert "problems" not in text


def test_what_is_learnt_is_of_the_bytes_that_were_digested(world):
    before = Digests(world.root / "facts.json").digest(first(world))
    world.save("teachers/a", "train", "train_000001_000019", np.zeros((48, 64)))
    found = check.look(check.Item(first(world), before, "ids", first(world, "images"), 10**6))
    assert "changed since this command looked at it" in found


def test_truncated_prediction(world):
    path = first(world)
    path.write_bytes(path.read_bytes()[:-40])
    refused(world, str(path), "cannot be read")


def test_missing_prediction(world):
    path = first(world)
    path.unlink()
    refused(world, "teachers[a].labels.train", "1 of 5 images", f"expected {path.name}")


def test_prediction_of_another_size(world):
    path = world.save("teachers/b", "val", "val_000001_000019", np.zeros((24, 32)))
    refused(world, str(path), "24x32", "48x64", "resize")


def test_colours_where_ids_are_expected(world):
    Image.new("RGB", (64, 48), (128, 64, 128)).save(first(world))
    refused(world, str(first(world)), "[128, 64, 128]", "row 0, column 0", "ids: palette")


def test_unknown_key(world):
    world.settings["fusion"] = {"windw": 5}
    world.write()
    refused(world, "ConfigError", str(world.file), "'fusion.windw'", "did you mean 'window'?")


def test_unknown_key_of_a_teacher(world):
    world.settings["teachers"][1]["clases"] = "camvid11"
    world.write()
    refused(world, "teachers[b].clases", "did you mean 'classes'?")


def test_two_teachers_of_one_name(world):
    world.settings["teachers"].append(world.settings["teachers"][0])
    world.write()
    refused(world, "ConfigError", "two of them are named 'a'", "unique")


def test_class_map_to_an_unknown_class(world):
    world.settings["teachers"][0]["map"] = {"road": "rode"}
    world.write()
    refused(world, "teachers[a].map.road", "unknown class 'rode'", "did you mean 'road'?")


def test_class_map_from_an_unknown_class(world):
    world.settings["teachers"][0]["map"] = {"raod": "road"}
    world.write()
    refused(world, "teachers[a].map", "unknown class 'raod'", "did you mean 'road'?")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("classes", "table"), "citscapes19", ["unknown class table", "cityscapes19"]),
        (("fusion", "window"), 4, ["fusion.window", "odd"]),
        (("student", "watch"), "test", ["student.watch", "'test'"]),
        (("student", "checkpoint"), "best", ["checkpoint: best", "watch"]),
        (("teachers", 0, "name"), "student", ["name of a method"]),
        (("teachers", 0, "name"), "a/b", ["cannot name a teacher"]),
        (("teachers", 0, "ids"), "trainids", ["teachers[a].ids", "'trainids'"]),
        (("teachers", 0, "classes"), "camvid11.yaml", ["camvid11.yaml", "cannot be read"]),
        (("teachers", 0, "network"), {"hf": "x"}, ["teachers[a]", "one of labels and network"]),
        (("policy",), {"strategy": "manual"}, ["assign"]),
        (("policy",), {"strategy": "manual", "assign": {"road": "x"}}, ["no teacher", "'x'"]),
        (("target", "train", "images"), "none/*.png", ["target.train.images", "none/*.png"]),
        (("target", "val", "labels"), "none/*.png", ["target.val.labels", "3 of 3 images"]),
        (("target", "train", "list"), "x", ["target.train", "one of images, cityscapes"]),
        (("version",), 2, ["version", "found 2"]),
        (("probe", "scale"), [2, 1], ["scale", "smaller factor first"]),
        (("probe", "nesterov"), True, ["nesterov", "optimizer: sgd"]),
        (("student", "preprocess"), {"std": [0, 1, 1]}, ["student.preprocess.std", "greater than"]),
        (("student", "preprocess"), {"align_corners": True}, ["align_corners", "for teachers"]),
        (("target", "val/day"), {"images": "images/val/*.png"}, ["'val/day'", "name a split"]),
        (("teachers", 0, "preprocess"), {"channels": "bgr"}, ["`preprocess` is for networks"]),
    ],
)
def test_what_cannot_be_meant(world, path, value, words):
    section = world.settings
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    world.write()
    text = refused(world, *words)
    assert str(world.file) in text or "DataError" in text


def test_all_problems_at_once(world):
    first(world).unlink()
    first(world, "images").write_bytes(b"no image")
    text = refused(world, "2 problems")
    assert "1 of 5 images have no prediction" in text and "images/train" in text


def test_an_image_in_both_splits(world):
    world.settings["target"]["val"] = {"images": "images/*/*.png", "labels": "labels/*/*.png"}
    for name in "ab":
        world.settings["teachers"]["ab".index(name)]["labels"].pop("val")
    world.write()
    refused(world, "target.val: 5 of its 8 images are among those of target.train", "is that file")


def test_a_good_world_is_described(world):
    text = world.call("check")
    assert "train: 5 images of 44x61, 48x64" in text
    assert "val: 3 images" in text and "labelled" in text
    assert "all inputs but the ground truth, which was not opened, are as declared" in text
    found = world.json("check")
    assert found["splits"]["train"]["images"] == 5
    assert found["teachers"]["a"]["left_out"] == []


def test_a_second_check_reads_no_file(world, monkeypatch):
    from ensdistill.data import decoding

    world.call("check")
    monkeypatch.setattr(decoding, "_open", None)
    world.call("check")


def test_an_interrupted_check_keeps_what_it_learnt(world, monkeypatch):
    looked = []

    def interrupted(item):
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(item)
        return look(item)

    look = check.look
    monkeypatch.setattr(check, "look", interrupted)
    world.call("check", expect=1)  # 130 where it is a program of its own
    monkeypatch.setattr(check, "look", lambda item: looked.append(item) or look(item))
    world.call("check")
    assert len(set(looked)) == len(looked) > 3


def test_network_folder_that_is_none(world):
    world.settings["teachers"].append({"name": "n", "network": {"hf": "nowhere"}})
    world.write()
    refused(world, "teachers[n].network.hf", "nowhere", "model.safetensors", "save_pretrained")


def png_of(height, width):
    """Return the header of a PNG, and nothing after it."""
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    empty = b"IDAT" + zlib.compress(b"")
    rest = struct.pack(">I", len(empty) - 4) + empty + struct.pack(">I", zlib.crc32(empty))
    return start + struct.pack(">I", zlib.crc32(chunk)) + rest


def test_an_image_beyond_the_limit_names_the_key(world):
    world.settings["runtime"]["max_pixels"] = 48 * 64 - 1
    world.write()
    for command in ("check", "run"):
        text = world.refuse(command)
        for word in ("48x64 pixels", "the limit of 3071", "`runtime: {max_pixels: 3072}`"):
            assert word in text
        assert "images/train" in text and "images/val" in text
    world.settings["runtime"]["max_pixels"] = 48 * 64
    world.write()
    world.call("check")


def test_a_lower_limit_holds_for_what_is_remembered(world):
    world.call("check")
    world.settings["runtime"]["max_pixels"] = 5
    world.write()
    assert "the limit of 5" in world.refuse("check")


def test_the_limit_holds_without_a_check(world):
    world.settings["runtime"]["max_pixels"] = 5
    world.write()
    assert "the limit of 5" in world.refuse("infer-teacher", "a")


@pytest.mark.parametrize("kind", ["teachers/a", "confidence"])
def test_a_size_is_compared_before_anything_is_decoded(world, kind):
    world.settings["runtime"]["max_pixels"] = 10**12
    if kind == "confidence":
        for split, name in world.truth:
            world.save("sure", split, name, np.zeros((48, 64)))
        world.settings["teachers"][0]["confidence"] = {"train": "sure/train"}
        world.settings["fusion"] = {"conflict": "certainty"}
    world.write()
    path = first(world, "sure" if kind == "confidence" else kind)
    path.write_bytes(png_of(100_000, 90_000))
    assert f"{path}: 100000x90000 pixels" in world.refuse("check")
    assert "its image has 48x64" in world.refuse("infer-teacher", "a")


def test_ground_truth_of_another_size_is_not_decoded(world):
    path = first(world, "labels", "val")
    path.write_bytes(png_of(100_000, 90_000))
    assert f"{path}: 100000x90000 pixels" in world.refuse("evaluate", "--upstream")


def test_the_limit_is_in_no_manifest(world):
    world.call("infer-teacher", "a")
    manifests = list((world.root / "work").glob("infer/*/manifest.json"))
    assert manifests
    assert not any("max_pixels" in path.read_text() for path in manifests)


def nested(world):
    """Give all images of a split the same names, in folders of their own."""
    for path in sorted(world.root.glob("*/**/*.png")):
        split, number, _ = path.stem.split("_")
        goal = path.parent / f"city{int(number) % 2}" / f"{int(number) // 2}.png"
        goal.parent.mkdir(exist_ok=True)
        path.rename(goal)
    for split in world.settings["target"].values():
        for key in {"images", "labels"} & split.keys():
            split[key] = split[key].replace("*", "**/*")
    world.write()


@pytest.mark.slow
def test_the_same_names_in_several_folders_go_all_the_way(tmp_path):
    plain, deep = World(tmp_path / "plain"), World(tmp_path / "deep")
    nested(deep)
    found = []
    for world in (plain, deep):
        world.call("check")
        world.call("run")
        world.call("report")
        world.call("verify")
        world.call("export", "labels", "-o", str(world.root / "out"))
        found.append(world.json("evaluate")["methods"])
    miou = [{m["name"]: m["miou"] for m in methods if m["name"] != "student"} for methods in found]
    assert miou[0] == miou[1]
    out = deep.root / "out"
    assert sorted(str(p.relative_to(out)) for p in out.glob("**/*.png") if "city1" in str(p))
