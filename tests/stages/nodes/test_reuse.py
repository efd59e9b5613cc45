"""Images that were finished once are not computed again, in whatever list they stand."""

import copy
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from worlds import TINY, World, files_of

from ensdistill.data.decoding import Decoder, read_image
from ensdistill.data.store import LabelStore, chunk_name
from ensdistill.pipeline.draft import progress_of
from ensdistill.pipeline.journal import seal
from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.nodes.infer.run import LabelMapsDraft

FUSED = ("infer[a]", "infer[b]", "infer[n]", "fusion")


class Silent:
    def start(self, total, done, unit):
        pass

    def advance(self, count=1, note=""):
        pass

    def message(self, text):
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Two teachers by predictions and a network, all fused."""
    world = World(tmp_path_factory.mktemp("origin"), train=5, val=2, size=(28, 40))
    assign = {"road": "a", "building": "a", "sidewalk": "b", "car": "b"}
    world.settings["policy"] = {"strategy": "manual", "assign": assign}
    world.settings["student"] = TINY | {"steps": 2, "crop": [16, 24]}
    world.settings["workspace"] = "earlier"
    world.write()
    world.call("train-student", "--upstream")
    (world.root / "network").mkdir()
    for file in ("network.json", "model.safetensors"):
        shutil.copy(world.artifact("student").path / file, world.root / "network")
    shutil.rmtree(world.root / "earlier")
    world.settings["workspace"] = "work"
    world.settings["teachers"].append({"name": "n", "network": {"student": "network"}})
    world.settings["policy"]["assign"] |= {"building": "n", "sky": "n"}
    world.write()
    assert fuse(world) == dict.fromkeys(FUSED, (5, 0, 5)) | {"policy": (0, 0, 0)}
    return world


@pytest.fixture
def world(origin, tmp_path):
    """A copy of it that can be changed."""
    found = copy.copy(origin)
    shutil.copytree(origin.root, tmp_path / "copy")
    found.root, found.truth = tmp_path / "copy", dict(origin.truth)
    found.file, found.settings = found.root / "experiment.yaml", copy.deepcopy(origin.settings)
    return found


def fuse(world):
    """Make the fused maps and return node to images computed, taken over and in all."""
    report = world.json("fuse", "--upstream")
    found = {r["node"]: (r["written"], r["reused"], r["total"]) for r in report["ran"]}
    for node_id, (written, reused, _) in found.items():
        manifest = world.artifact(node_id).manifest
        assert (manifest.written, manifest.reused) == (written, reused)
    return found


def make(world, *targets):
    """Make nodes and what they need; return node to images computed, taken over and in all."""
    experiment = load(world.file)
    nodes = build(experiment)
    report = run(nodes, experiment.workspace, targets, lambda _: Silent(), upstream=True)
    return {r.node: (r.written, r.reused, r.total) for r in report.ran}


def paths(world, split, name):
    return [world.root / f"{k}/{split}/{name}.png" for k in ("images", "teachers/a", "teachers/b")]


def add(world, name, shape=(28, 40), split="train"):
    """Add an image with its predictions."""
    rng = np.random.default_rng(list(name.encode()))
    world.save("images", split, name, rng.integers(0, 256, (*shape, 3)))
    for teacher in "ab":
        world.save(f"teachers/{teacher}", split, name, rng.integers(0, 19, shape))


def ids(world, split="train"):
    return sorted(p.stem for p in (world.root / "images" / split).glob("*.png"))


def remove(world, name, split="train"):
    for path in paths(world, split, name):
        path.unlink()


def read_back(world, node_id="infer[a]", folder="teachers/a/train"):
    """Compare every label map of a teacher with its prediction on disk."""
    maps = LabelMaps(world.artifact(node_id))
    for image_id in maps:
        expected = np.asarray(Image.open(world.root / folder / f"{image_id}.png"))
        assert np.array_equal(maps.read(image_id), expected)


def shape(artifact):
    return LabelStore(artifact.path / "maps.zarr").shape


def require_as_new(world, *nodes):
    """Compare artifacts with what a new workspace computes, byte for byte."""
    nodes = nodes or FUSED
    used = {n: world.artifact(n) for n in nodes}
    shutil.rmtree(world.root / "new", ignore_errors=True)
    world.settings["workspace"] = "new"
    world.write()
    try:
        made = make(world, *nodes)
        new = {n: world.artifact(n) for n in nodes}
    finally:
        world.settings["workspace"] = "work"
        world.write()
    assert all(made[n][1] == 0 for n in nodes if "@" not in n)
    for node_id in nodes:
        one, other = files_of(used[node_id].path), files_of(new[node_id].path)
        del one["manifest.json"], other["manifest.json"]
        assert one == other, node_id
        assert used[node_id].manifest.content == new[node_id].manifest.content
        assert used[node_id].manifest.result == new[node_id].manifest.result
        assert used[node_id].manifest.files == new[node_id].manifest.files
    assert "no damage" in world.call("verify")


def test_a_new_image_costs_one_image(world):
    add(world, "train_000002_500000")  # in the middle of the list
    assert fuse(world) == dict.fromkeys(FUSED, (1, 5, 6))
    read_back(world)
    require_as_new(world)
    assert fuse(world) == {}


def test_a_removed_image_costs_nothing(world):
    remove(world, ids(world)[1])
    assert fuse(world) == dict.fromkeys(FUSED, (0, 4, 4))
    read_back(world)
    require_as_new(world)


def test_an_image_that_comes_back_costs_nothing(world):
    kept = {p: p.read_bytes() for p in paths(world, "train", ids(world)[1])}
    remove(world, ids(world)[1])
    add(world, "train_000009_000019")
    assert fuse(world) == dict.fromkeys(FUSED, (1, 4, 5))
    for path, content in kept.items():
        path.write_bytes(content)
    # taken from two artifacts
    assert fuse(world) == dict.fromkeys(FUSED, (0, 6, 6))
    require_as_new(world)


def test_an_image_in_two_splits_is_computed_once(world):
    source, name = ids(world)[2], "val_other_name"
    for one, other in zip(paths(world, "train", source), paths(world, "val", name), strict=True):
        shutil.copy(one, other)
    shutil.copy(world.root / f"labels/train/{source}.png", world.root / f"labels/val/{name}.png")
    goals = [f"infer[{t}]@val" for t in "abn"] + ["fusion[channel]@val"]
    assert make(world, *goals) == dict.fromkeys(goals, (2, 1, 3))
    read_back(world, "infer[a]@val", "teachers/a/val")
    require_as_new(world, *goals)


def test_a_renamed_image_is_not_computed_again(world):
    source = ids(world)[2]
    for path in paths(world, "train", source):
        path.rename(path.with_stem("zz_renamed"))
    assert fuse(world) == dict.fromkeys(FUSED, (0, 5, 5))
    read_back(world)
    require_as_new(world)


def test_a_changed_prediction_costs_its_image_and_its_fused_image(world):
    prediction = paths(world, "train", ids(world)[3])[1]
    labels = np.array(Image.open(prediction))
    labels[:9, :9] = 10
    Image.fromarray(labels).save(prediction)
    assert fuse(world) == {"infer[a]": (1, 4, 5), "fusion": (1, 4, 5)}
    read_back(world)
    require_as_new(world)


def test_a_prediction_of_the_same_pixels_costs_no_fused_image(world):
    prediction = paths(world, "train", ids(world)[3])[1]
    labels = Image.open(prediction)
    labels.load()
    before = prediction.read_bytes()
    labels.save(prediction, compress_level=0)
    assert prediction.read_bytes() != before
    assert fuse(world) == {"infer[a]": (1, 4, 5), "fusion": (0, 5, 5)}
    require_as_new(world)


def test_a_changed_image_costs_its_image(world):
    image = paths(world, "train", ids(world)[3])[0]
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    assert fuse(world) == dict.fromkeys(FUSED, (1, 4, 5))
    require_as_new(world)


def test_another_manual_policy_fuses_all_and_infers_nothing(world):
    world.settings["policy"]["assign"]["car"] = "a"
    world.write()
    assert fuse(world) == {"policy": (0, 0, 0), "fusion": (5, 0, 5)}


def test_a_larger_image_makes_the_chunks_larger_and_computes_nothing_again(world):
    before = world.artifact("infer[a]")
    add(world, "train_000009_000019", (40, 48))
    assert fuse(world) == dict.fromkeys(FUSED, (1, 5, 6))
    read_back(world)
    assert shape(world.artifact("infer[a]")) == (6, 40, 48)
    assert shape(before) == (5, 28, 40)
    require_as_new(world)
    # and smaller again
    remove(world, ids(world)[-1])
    remove(world, ids(world)[-1])
    assert fuse(world) == dict.fromkeys(FUSED, (0, 4, 4))
    read_back(world)
    assert shape(world.artifact("infer[a]")) == (4, 28, 40)
    require_as_new(world)


def test_a_kill_while_chunks_are_made_larger_keeps_those_that_are(world, monkeypatch):
    add(world, "train_000009_000019", (40, 48))
    write, count = LabelStore.write, []

    def killed(self, *arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(write(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            make(world, "infer[a]")
    drafts = load(world.file).workspace.scan().drafts.values()
    (draft,) = [folder for folder in drafts if folder.parent.name == "infer"]
    assert progress_of(draft) == 3
    assert make(world, "infer[a]") == {"infer[a]": (1, 2, 6)}
    read_back(world)


def test_a_killed_draft_of_an_older_list_lends_its_images(world, monkeypatch):
    shutil.rmtree(world.root / "work")
    journal, count = LabelMapsDraft.journal, []

    def killed(self, *arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(journal(self, *arguments))

    for target in ("infer[a]", "infer[n]"):
        count.clear()
        monkeypatch.setattr(LabelMapsDraft, "journal", killed)
        with pytest.raises(KeyboardInterrupt):
            make(world, target)
        monkeypatch.undo()
    (journal,) = world.root.glob("work/infer/a-*/journal-*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"id": "train_0')  # and the line that it was writing
    add(world, "train_000000_000001")
    made = fuse(world)
    assert made["infer[a]"] == made["infer[n]"] == (3, 3, 6)
    assert made["infer[b]"] == made["fusion"] == (6, 0, 6)
    read_back(world)
    require_as_new(world)


def test_two_experiments_in_one_workspace_share_their_images(world):
    other = world.root / "other.yaml"
    world.settings["target"]["train"]["images"] = "images/*/*.png"
    for entry in world.settings["teachers"][:2]:
        for path in (world.root / entry["labels"]["val"]).glob("*.png"):
            shutil.copy(path, world.root / entry["labels"]["train"])
    world.settings["target"].pop("val")
    for entry in world.settings["teachers"][:2]:
        entry["labels"].pop("val")
    world.file = other
    world.write()
    assert fuse(world) == dict.fromkeys(FUSED, (2, 5, 7))


def flip_chunk(world, artifact, position):
    """Spoil a chunk, in this artifact alone: others may hold the same file."""
    path = artifact.path / "maps.zarr" / chunk_name(position)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def swap_chunks(world, artifact, position):
    folder = artifact.path / "maps.zarr"
    shutil.copy(folder / chunk_name(position + 1), folder / chunk_name(position))


def lose_chunk(world, artifact, position):
    (artifact.path / "maps.zarr" / chunk_name(position)).unlink()


def flip_record(world, artifact, position):
    path = artifact.path / "items.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = lines[position].index(b'"content": "') + 13
    lines[position] = lines[position][:at] + b"g" + lines[position][at + 1 :]
    path.write_bytes(b"".join(lines))


def lose_name(world, artifact, position):
    file = artifact.path / "items.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[position] = seal({k: v for k, v in artifact.items[position].items() if k != "file"})
    file.write_bytes(b"".join(lines))


@pytest.mark.parametrize("larger", [False, True], ids=["same size", "larger"])
@pytest.mark.parametrize("spoil", [flip_chunk, swap_chunks, lose_chunk, flip_record, lose_name])
def test_a_spoilt_image_is_not_taken_over_but_computed(world, spoil, larger):
    spoil(world, world.artifact("infer[a]"), 1)
    add(world, "train_000009_000019", (40, 48) if larger else (28, 40))
    assert make(world, "infer[a]") == {"infer[a]": (2, 4, 6)}
    read_back(world)
    used = files_of(world.artifact("infer[a]").path)
    world.settings["workspace"] = "new"
    world.write()
    make(world, "infer[a]")
    new = files_of(world.artifact("infer[a]").path)
    del used["manifest.json"], new["manifest.json"]
    assert used == new


def test_no_image_of_a_store_without_its_description_is_taken_over(world):
    (world.artifact("infer[a]").path / "maps.zarr/zarr.json").write_text("{}")
    add(world, "train_000009_000019")
    assert make(world, "infer[a]") == {"infer[a]": (6, 0, 6)}
    read_back(world)


def test_a_description_of_another_shape_spoils_nothing_that_is_taken_over(world):
    folder = world.artifact("infer[a]").path / "maps.zarr"
    text = json.loads((folder / "zarr.json").read_text())
    text["shape"] = [5, 40, 28]
    text["chunk_grid"]["configuration"]["chunk_shape"] = [1, 40, 28]
    (folder / "zarr.json").write_text(json.dumps(text))
    add(world, "train_000009_000019")
    made = make(world, "infer[a]")["infer[a]"]
    assert made[0] + made[1] == made[2] == 6
    read_back(world)


@pytest.mark.parametrize("spoilt", [0, 1])
def test_of_two_that_hold_an_image_the_whole_one_lends_it(world, spoilt):
    two = [world.artifact("infer[a]")]
    add(world, "train_000009_000019")
    fuse(world)
    two.append(world.artifact("infer[a]"))
    flip_chunk(world, sorted(two, key=lambda a: a.path)[spoilt], 1)
    remove(world, ids(world)[-1])
    add(world, "train_000008_000019")
    assert make(world, "infer[a]") == {"infer[a]": (1, 5, 6)}
    read_back(world)


def test_what_is_lent_stays_as_it_is(world):
    lender = world.artifact("infer[a]")
    before = files_of(lender.path)
    add(world, "train_000009_000019")
    fuse(world)
    assert files_of(lender.path) == before


def test_the_same_pixels_in_other_bytes_are_another_image(world):
    image = paths(world, "train", ids(world)[0])[0]
    pixels = read_image(image)
    Image.fromarray(pixels).save(image, compress_level=0)
    assert np.array_equal(read_image(image), pixels)
    assert fuse(world) == dict.fromkeys(FUSED, (1, 4, 5))


def test_no_file_is_opened_for_an_image_that_is_taken_over(world, monkeypatch):
    opened = []
    count = Decoder.count
    monkeypatch.setattr(
        Decoder, "count", lambda self, path, *more: opened.append(path) or count(self, path, *more)
    )
    add(world, "train_000009_000019")
    make(world, "infer[a]", "infer[b]")
    assert opened == [str(p) for p in paths(world, "train", "train_000009_000019")[1:]]
