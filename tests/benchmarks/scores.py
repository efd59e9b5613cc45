"""Confusion matrices, and evaluation against cityscapesScripts."""

from unittest import mock

import numpy as np
from PIL import Image

from ensdistill.data.classes import TABLES
from ensdistill.data.pictures import Decoder
from ensdistill.data.store import LabelStore
from ensdistill.stages.functional.scores import confusion, iou

from . import maps
from .measure import figure, turns


def counting(root):
    scene, predictions = maps.street(0, teachers=3)
    out = np.empty_like(scene)

    def highest():
        for plane in predictions:
            np.maximum(scene, plane, out=out)

    times = turns({"ours": lambda: confusion(scene, predictions, maps.CLASSES), "max": highest})
    title = "confusion of 3 predictions / 3 maxima of two planes"
    yield figure(title, times.ratio("ours", "max"))
    yield figure("confusion of 3 predictions", 1e3 * times.median("ours"), "ms")


def evaluation(root):
    """Three predictions of one image, on the same PNGs of label ids, each by its own reader."""
    table = TABLES["cityscapes19"]
    legal = table.legal_values("label_ids")
    label_ids = np.zeros(256, np.uint8)
    for label_id, train_id in legal.items():
        if 0 <= label_id < 255 and train_id < 255:
            label_ids[train_id] = label_id
    scene, predictions = maps.street(0, teachers=3)
    scene = scene.copy()
    scene[-60:] = 255  # becomes id 0, which is not scored
    truth = root / "aachen_000000_000019_gtFine_labelIds.png"
    Image.fromarray(label_ids[scene]).save(truth)
    # Things in blocks: the instances only have to be there to be counted.
    things = label_ids[scene].astype(np.int32)
    block = np.arange(scene.shape[1]) // 128
    things = np.where(things >= 24, 1000 * things + block, things)
    Image.fromarray(things.astype(np.uint16)).save(str(truth).replace("labelIds", "instanceIds"))
    files = [root / f"pred{k}.png" for k in range(3)]
    for file, prediction in zip(files, predictions, strict=True):
        Image.fromarray(label_ids[prediction]).save(file)
    decoder = Decoder(legal, palette=False)

    def ours():
        target = decoder.read(truth)
        return confusion(target, np.stack([decoder.read(f) for f in files]), len(table))

    store = LabelStore.create(root / "labels.zarr", 3, *scene.shape)
    for k, prediction in enumerate(predictions):
        store.write(k, prediction)

    def stored():
        """As the stage does it: only the ground truth is a PNG."""
        found = np.stack([store.read(k, *scene.shape) for k in range(3)])
        return confusion(decoder.read(truth), found, len(table))

    title = "cityscapesScripts / evaluation of 3 predictions"
    try:
        import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as peer  # noqa: N813
    except ImportError:
        yield figure(title, None, "x", 10, 50, better="more", note="peer not installed")
        return
    peer.args.quiet, peer.args.JSONOutput = True, False

    def theirs(instances):
        peer.args.evalInstLevelScore = instances
        with mock.patch.object(np, "in1d", np.isin, create=True):  # numpy 2.4 has it no more
            return [peer.evaluateImgLists([str(f)], [str(truth)], peer.args) for f in files]

    for confmat, found in zip(ours(), theirs(False), strict=True):
        expected = [found["classScores"][c] for c in table.classes]
        assert np.allclose(iou(confmat), expected, rtol=1e-12, equal_nan=True)
    works = {"": lambda: theirs(False), ", with its instance scores": lambda: theirs(True)}
    pngs = lambda: [np.asarray(Image.open(f)) for f in (truth, *files)]  # noqa: E731
    times = turns(works | {"ours": ours, "stored": stored, "pngs": pngs})
    note = None if peer.CSUPPORT else "without its Cython extension"
    for name in works:
        ratio = times.ratio(name, "ours")
        yield figure(title + name, ratio, "x", 10, 50, better="more", note=note)
    ratio = times.ratio("", "stored")
    yield figure(title + " in label stores", ratio, "x", better="more")
    yield figure("evaluation of 3 predictions", 1e3 * times.median("ours"), "ms")
    yield figure("evaluation of 3 predictions in label stores", 1e3 * times.median("stored"), "ms")
    yield figure("decoding its 4 PNGs alone", 1e3 * times.median("pngs"), "ms")


MEASURES = (counting, evaluation)
