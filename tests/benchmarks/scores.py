"""Confusion matrices, and evaluation against cityscapesScripts."""

import hashlib
import itertools
from types import SimpleNamespace
from unittest import mock

import numpy as np
from PIL import Image

from ensdistill.data.classes import TABLES
from ensdistill.data.decoding import Decoder
from ensdistill.data.store import LabelStore, checksum, chunk_name
from ensdistill.stages.functional.scores import confusion, iou
from ensdistill.stages.labelmaps import STORE, LabelMaps, LabelWriter, Place
from ensdistill.stages.nodes.evaluation.run import _Counting
from ensdistill.stages.nodes.infer.run import _read

from . import maps
from .measure import figure, turns

METHODS = 3
MANY = 16
TABLE = TABLES["cityscapes19"]
LEGAL = TABLE.legal_values("label_ids")


def label_ids():
    """Return (256,) uint8, the label id of each train id; of 255 an id that is not scored."""
    found = np.zeros(256, np.uint8)
    for label_id, train_id in LEGAL.items():
        if 0 <= label_id < 255 and train_id < 255:
            found[train_id] = label_id
    return found


def scene():
    """Return a ground truth, its bottom ignored as a car's bonnet is, and predictions of it."""
    target, predictions = maps.street(0, teachers=METHODS)
    target = target.copy()
    target[-60:] = 255
    return target, predictions


def counting(root):
    target, predictions = maps.street(0, teachers=METHODS)
    out = np.empty_like(target)

    def highest():
        for plane in predictions:
            np.maximum(target, plane, out=out)

    times = turns({"ours": lambda: confusion(target, predictions, maps.CLASSES), "max": highest})
    title = f"confusion of {METHODS} predictions / {METHODS} maxima of two planes"
    note = f"{1e3 * times.median('ours'):.2f} ms"
    yield figure(title, times.ratio("ours", "max"), note=note)


def published(folder, prediction):
    """Return a prediction as the artifact of a stage holds it."""
    labels = LabelStore.create(folder / STORE, 1, *prediction.shape)
    labels.write(0, prediction)
    content = (labels.path / chunk_name(0)).read_bytes()
    file = [f"{STORE}/{chunk_name(0)}", len(content), hashlib.sha256(content).hexdigest()]
    item = {"id": "x", "size": list(prediction.shape), "file": file}
    return LabelMaps(SimpleNamespace(path=folder, items=[item]))


class Scored:
    """One image: ground truth and predictions as PNGs of label ids, as arrays and as artifacts."""

    def __init__(self, root):
        self.target, self.predictions = scene()
        ids = label_ids()
        self.ids = ids[self.target], [ids[prediction] for prediction in self.predictions]
        self.truth = root / "aachen_000000_000019_gtFine_labelIds.png"
        self.files = [root / f"pred{k}.png" for k in range(METHODS)]
        for file, values in zip(
            (self.truth, *self.files), (self.ids[0], *self.ids[1]), strict=True
        ):
            Image.fromarray(values).save(file)
        # Things in blocks: the instances only have to be there to be counted.
        things = self.ids[0].astype(np.int32)
        block = np.arange(things.shape[1]) // 128
        things = np.where(things >= 24, 1000 * things + block, things)
        instances = str(self.truth).replace("labelIds", "instanceIds")
        Image.fromarray(things.astype(np.uint16)).save(instances)
        self.decoder = Decoder(LEGAL, palette=False)
        self.digest = hashlib.sha256(self.truth.read_bytes()).hexdigest()
        maps = (self.target, *self.predictions)
        self.maps = [published(root / f"{k}", labels) for k, labels in enumerate(maps)]
        self.counting = _Counting(tuple(m.reader for m in self.maps), len(TABLE))
        store = LabelStore.create(root / "truth" / STORE, 1 << 20, *self.target.shape)
        self.writer, self.positions = LabelWriter(store), itertools.count()

    def from_pngs(self):
        found = np.stack([self.decoder.read(file) for file in self.files])
        return confusion(self.decoder.read(self.truth), found, len(TABLE))

    def from_stores(self):
        """As `ensdistill evaluate` does it again: the ground truth lies in the cache."""
        return self.counting([label_maps.find("x") for label_maps in self.maps])

    def first(self):
        """As it does it the first time: the ground truth is a PNG."""
        self.keep(*self.read())
        return self.from_stores()

    def read(self):
        """Return the ground truth, and what is told of it."""
        return _read(self.decoder, len(TABLE), (str(self.truth), self.digest, self.target.shape))

    def keep(self, labels, told):
        """Keep a ground truth in the cache, each in a file of its own as those of a split are."""
        self.writer(Place("x", next(self.positions), labels.shape), labels, told)

    def copies(self, n):
        """Score `n` predictions of the cache at once."""
        maps = [self.maps[0], *(self.maps[1 + k % METHODS] for k in range(n))]
        counting = _Counting(tuple(m.reader for m in maps), len(TABLE))
        return lambda: counting([label_maps.find("x") for label_maps in maps])

    def counted(self):
        return confusion(self.target, self.predictions, len(TABLE))


class Peer:
    """cityscapesScripts on the same image. It evaluates one prediction for each ground truth."""

    def __init__(self, image):
        import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as peer  # noqa: N813

        self.image, self.scripts = image, peer
        self.note = None if peer.CSUPPORT else "without its Cython extension"
        peer.args.quiet, peer.args.JSONOutput = True, False

    def evaluated(self, instances=False):
        args = self.scripts.args
        args.evalInstLevelScore = instances
        truth = [str(self.image.truth)]
        with mock.patch.object(np, "in1d", np.isin, create=True):  # numpy 2.4 has it no more
            return [
                self.scripts.evaluateImgLists([str(file)], truth, args) for file in self.image.files
            ]

    def counted(self):
        args = self.scripts.args
        add = self.scripts.addToConfusionMatrix.cEvaluatePair
        target, predictions = self.image.ids
        return [
            add(p, target, self.scripts.generateMatrix(args), args.evalLabels) for p in predictions
        ]


def evaluation(root):
    image = Scored(root)
    title = f"cityscapesScripts / evaluation of {METHODS}"
    goals = {"at_least": 10, "stretch": 50, "better": "more"}
    try:
        peer = Peer(image)
    except ImportError:
        yield figure(f"{title} stored predictions", None, **goals, note="peer not installed")
        return
    expected = [[found["classScores"][c] for c in TABLE.classes] for found in peer.evaluated()]
    for work in (image.from_pngs, image.first, image.from_stores, image.counted):
        found = [iou(confmat) for confmat in work()]
        assert np.allclose(found, expected, rtol=1e-12, equal_nan=True)
    works = {
        "peer": peer.evaluated,
        "peer, instances": lambda: peer.evaluated(instances=True),
        "pngs": image.from_pngs,
        "stores": image.from_stores,
        "many": image.copies(MANY),
        "first": image.first,
        "read": image.read,
        "kept": lambda: image.keep(image.target, {}),
        "digest": lambda: checksum(image.target),
    }
    if peer.scripts.CSUPPORT:
        works |= {"peer counts": peer.counted, "counts": image.counted}
    times = turns(works)
    ms = {name: f"{1e3 * times.median(name):.1f} ms" for name in works}
    note = ", ".join(filter(None, (ms["stores"], peer.note)))
    yield figure(f"{title} stored predictions", times.ratio("peer", "stores"), **goals, note=note)
    ratio = times.ratio("peer, instances", "stores")
    yield figure(f"{title} stored predictions, with instances", ratio, better="more")
    yield figure(
        f"{title} stored predictions, ground truth in a PNG",
        times.ratio("peer", "first"),
        at_least=10,
        better="more",
        note=f"{ms['first']}: to read it {ms['read']}, to keep it {ms['kept']} (the digest of its "
        f"pixels {ms['digest']}), then as the second time",
    )
    yield figure(
        f"evaluation of {MANY} stored predictions / of {METHODS}",
        times.ratio("many", "stores"),
        note=f"{ms['many']}; it reads {(MANY + 1) / (METHODS + 1):.2f} times as many maps",
    )
    yield figure(
        f"{title} predictions in PNGs", times.ratio("peer", "pngs"), better="more", note=ms["pngs"]
    )
    if "counts" in works:
        ratio = times.ratio("peer counts", "counts")
        name = f"cityscapesScripts / confusion of {METHODS} predictions in memory"
        yield figure(name, ratio, better="more", note=ms["counts"])


MEASURES = (counting, evaluation)
