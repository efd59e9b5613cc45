"""Features that a frozen backbone computes once: which, and what becomes of the store."""

import errno
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from threading import Timer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults import Killed, Said, killing_after
from PIL import Image

from ensdistill.data.decoded import Pixels
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.ownership import own
from ensdistill.stages.local import FEATURES_MARK
from ensdistill.stages.networks import features
from ensdistill.stages.networks.backbones import imagenet_weights
from ensdistill.stages.networks.deeplab import build
from ensdistill.stages.networks.features import Encoder, FeatureCache, prepare_features
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.work.caching import opened

LITE = "deeplabv3plus-efficientnet-lite0"
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


def network_of(classes=3):
    """Return a network with ImageNet weights: what random ones say is too small for float16."""
    network = build(LITE, classes)
    file = imagenet_weights("efficientnet-lite0")
    network.backbone.load_state_dict(torch.load(file, weights_only=True), strict=False)
    return network


def encoder_of(factor=1.0, **settings):
    network = network_of()
    with torch.no_grad():
        network.backbone._conv_stem.weight.mul_(factor)
    return Encoder.of(network, LITE, Preprocessing.from_settings(settings), CPU)


def world(root, sizes=((33, 40), (48, 64), (20, 90))):
    """Make images of these sizes, and one that equals the last of them."""
    rng = np.random.default_rng(0)
    for k, size in enumerate(sizes):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / f"{k}.png")
    shutil.copy(root / f"{len(sizes) - 1}.png", root / f"{len(sizes)}.png")
    return known(root)


def known(root):
    """Return what a node knows of the images of a folder."""
    pictures = tuple(Picture(p.stem, p) for p in sorted(root.glob("*.png")))
    digests = {str(p.image): sha256(p.image.read_bytes()).hexdigest() for p in pictures}
    return SimpleNamespace(
        pictures=pictures, digests=digests, features=root / "work" / ".features", workers=0
    )


def prepared(local, encoder=None, told=None):
    encoder, told = encoder or encoder_of(), told or Said()
    return prepare_features(encoder, local, Pixels(), "student", told)


@pytest.fixture
def local(tmp_path):
    return world(tmp_path)


@pytest.fixture
def encoded(monkeypatch):
    """Images in the order in which the backbone sees them."""
    found = []
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, image, x: found.append(image) or encode(self, image, x)
    )
    return found


@pytest.mark.parametrize("size", [None, (32, 50)])
def test_what_is_kept_is_what_the_backbone_says_of_the_image_and_of_it_mirrored(local, size):
    encoder = encoder_of(size=size)
    store = prepared(local, encoder)
    for picture in local.pictures:
        photograph = np.asarray(Image.open(picture.image))
        found = store.read(local.digests[str(picture.image)])
        assert found.size == photograph.shape[:2]
        if size is not None:
            resized = Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BILINEAR)
            photograph = np.asarray(resized)
        for seen, image in ((found.plain, photograph), (found.mirrored, photograph[:, ::-1])):
            x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
            with torch.inference_mode():
                expected = encoder.backbone(encoder.preprocessing.normalise(x))
            for ours, answer, stride in zip(seen, expected, (4, 16), strict=True):
                assert ours.dtype == np.float16
                assert ours.shape[:2] == tuple(-(-side // stride) for side in image.shape[:2])
                theirs = answer[0].permute(1, 2, 0).numpy()
                np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4 * theirs.max())
        assert not np.allclose(found.mirrored.low, found.plain.low[:, ::-1], rtol=0.01)


def test_nobody_decides_a_bit_but_the_network(local, encoded):
    """Not the threads, not how the network lay in memory, not what else was computed."""
    expected = bytes_of(prepared(local))
    shutil.rmtree(local.features)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        network = network_of().train()
        some = SimpleNamespace(**vars(local) | {"pictures": local.pictures[:2]})
        prepared(some, Encoder.of(network, LITE, Preprocessing(), CPU))
        assert torch.get_num_threads() == 3 and network.backbone.training
    finally:
        torch.set_num_threads(threads)
    encoded.clear()
    assert bytes_of(prepared(local)) == expected
    assert len(encoded) == 1


def bytes_of(store):
    return {f.name: f.read_bytes() for f in store.folder.glob("*.f16")}


def test_what_decides_features_names_their_folder(local):
    """Each of these, and nothing that is trained."""
    folders = [
        prepared(local, encoder).folder
        for encoder in (
            encoder_of(),
            encoder_of(factor=2.0),
            encoder_of(size=(20, 20)),
            encoder_of(mean=[0.0, 0.0, 0.0]),
        )
    ]
    assert len(set(folders)) == 4
    linear = "linear-efficientnet-lite0"
    network = build(linear, 7)
    network.backbone = network_of().backbone
    assert prepared(local, Encoder.of(network, linear, Preprocessing(), CPU)).folder == folders[0]
    assert features.feature_folders(local.features) == {
        folder: encoder_of(**settings).about()
        for folder, settings in zip(
            folders,
            ({}, {"factor": 2.0}, {"size": (20, 20)}, {"mean": [0.0, 0.0, 0.0]}),
            strict=True,
        )
    }


def test_features_of_another_torch_are_nobodys(local, monkeypatch):
    folder = prepared(local).folder
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert features.feature_folders(local.features) == {folder: {}}


@pytest.mark.parametrize(
    "about", ["[]", "5", "{}", '{"platform": 5}', '{"platform": {"a": 1}}', "{"]
)
def test_what_does_not_tell_what_it_is_of_is_nobodys(local, about):
    folder = prepared(local).folder
    (folder / features.ABOUT).write_text(about)
    assert features.feature_folders(local.features) == {folder: {}}


def test_a_folder_that_another_process_is_about_to_mark_is_waited_for(local):
    cache = FeatureCache(local.features / ("0" * 64))
    cache.folder.mkdir(parents=True)
    (cache.folder / ".ensdistill.partial").touch()

    def mark():
        own(cache.folder, FEATURES_MARK)
        (cache.folder / ".ensdistill.partial").unlink()

    timer = Timer(0.1, mark)
    timer.start()
    assert opened(cache, FEATURES_MARK) == set()
    timer.join()


def test_each_image_is_seen_once(local, encoded):
    told = Said()
    store = prepared(local, told=told)
    assert len(encoded) == 3  # of four files, two are equal
    size = sum(map(len, bytes_of(store).values()))
    assert told.messages[0].startswith(
        f"student: the features of 3 images take {size / 1e9:.3g} GB"
    )
    assert told.totals == [(3, "images")] and told.done == 3
    told = Said()
    prepared(local, told=told)
    assert len(encoded) == 3
    assert told.totals == [(3, "stored features")] and told.messages == []


def spoil(file, how):
    content = file.read_bytes()
    if how == "flipped":
        content = content[:-7] + bytes([content[-7] ^ 4]) + content[-6:]
    file.write_bytes({"truncated": content[:-1], "empty": b""}.get(how, content))


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "missing"])
def test_what_is_damaged_or_missing_is_computed_anew(local, encoded, how):
    before = bytes_of(store := prepared(local))
    file = min(store.folder.glob("*.f16"))
    file.unlink() if how == "missing" else spoil(file, how)
    encoded.clear()
    told = Said()
    assert bytes_of(prepared(local, told=told)) == before
    assert len(encoded) == 1
    if how != "missing":
        assert f"1 of 3 stored features are not used, such as {file} (it" in told.messages[0]


def test_what_was_computed_before_a_kill_is_used(local, encoded, monkeypatch):
    keep, count = FeatureCache.keep, killing_after(2)

    def die(self, *arguments):
        count()
        keep(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureCache, "keep", die)
        with pytest.raises(Killed):
            prepared(local)
    encoded.clear()
    prepared(local)
    assert len(encoded) == 1


def test_what_vanishes_meanwhile_is_said(local):
    store = prepared(local)
    shutil.rmtree(local.features)
    digest = local.digests[str(local.pictures[0].image)]
    with pytest.raises(DataError, match=r"gone.*run again"):
        store.read(digest)


def test_too_little_room_is_refused_with_figures_and_ways_out(local, encoded, monkeypatch):
    sizes = [np.asarray(Image.open(p.image)).shape[:2] for p in local.pictures[:3]]
    need = sum(features.bytes_of(size, (24, 320)) for size in sizes)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: Usage(10**9, 0, need))
    with pytest.raises(DataError) as refused:
        prepared(local)
    text = str(refused.value)
    assert f"{need / 1e9:.3g} GB of the {need / 1e9:.3g} GB" in text
    assert "`input_size`" in text and "`train: all`" in text
    assert encoded == []


def test_a_disk_that_gets_full_is_refused_and_what_is_there_is_used(local, encoded, monkeypatch):
    keep, left = FeatureCache.keep, 1

    def full(self, *arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(self, *arguments)

    monkeypatch.setattr(FeatureCache, "keep", full)
    with pytest.raises(DataError, match=r"No space left on device.*`input_size`"):
        prepared(local)
    monkeypatch.undo()
    left = 9
    store = prepared(local)
    assert len(bytes_of(store)) == 3


@pytest.mark.parametrize("inner", [False, True])
def test_nothing_is_written_behind_a_link(local, tmp_path, inner):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = local.features
    if inner:
        folder = prepared(local).folder
        shutil.rmtree(folder)
        link = folder
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(DataError, match="is a link to"):
        prepared(local)
    assert list(elsewhere.iterdir()) == []


def test_a_folder_of_others_is_refused(local):
    folder = prepared(local).folder
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"")
    with pytest.raises(DataError, match="holds files of others"):
        prepared(local)
    assert [f.name for f in folder.iterdir()] == ["notes.txt"]


def test_features_beyond_float16_are_refused(local):
    encoder = encoder_of()
    with torch.no_grad():
        encoder.backbone._blocks[-1]._bn2.weight.fill_(1e9)
    with pytest.raises(DataError, match=r"0\.png: its features are not finite, or too large"):
        prepared(SimpleNamespace(**vars(local) | {"pictures": local.pictures[:1]}), encoder)
    assert not list(local.features.rglob("*.f16*"))


FILL = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_features as t
store = t.prepared(t.known(Path(sys.argv[1])))
print(store.folder)
"""


def test_processes_that_fill_it_at_once_share_the_work(tmp_path, python, repository):
    local = world(tmp_path, [(48, 64 + k) for k in range(8)])
    here = [repository / "tests/stages/networks", repository / "tests"]
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(python, FILL, tmp_path, *here) for _ in range(2)]
        folders = {call.result() for call in calls}
    assert len(folders) == 1
    cache = FeatureCache(prepared(local).folder)
    assert f"{cache.folder}\n" in folders
    assert [cache.fault(digest) for digest in local.digests.values()] == [None] * 9
    assert not list(cache.folder.glob("*.partial"))
    found = bytes_of(prepared(local))
    shutil.rmtree(local.features)
    assert bytes_of(prepared(local)) == found
