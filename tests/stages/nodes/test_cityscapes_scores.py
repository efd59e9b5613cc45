"""The official evaluation of Cityscapes, on the same PNGs, has the same scores."""

import json
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image
from worlds import TINY, World

from ensdistill.data.classes import TABLES
from ensdistill.data.splits import image_id
from ensdistill.pipeline.plan import plan
from ensdistill.stages.demo.city import write_city
from ensdistill.stages.demo.styles import LABEL_IDS, TARGET
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import LabelMaps

peer = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")

TABLE = TABLES["cityscapes19"]
IGNORED = [i for i, train_id in TABLE.label_ids.items() if train_id == 255 and 0 <= i < 255]
SIZE = (40, 64)
METHODS = [
    *(("teacher", t, f"infer[{t}]@val") for t in ("good", "holes", "one")),
    *(
        ("fusion", m, f"fusion[{m}]@val")
        for m in ("channel", "channel-oracle", "channel-reliability", "label-model", "majority")
    ),
    *(("probe", t, f"infer[probe:{t}]@val") for t in ("good", "holes", "one")),
    ("student", "student", "infer[student]@val"),
]


def label_ids(train_ids):
    """Return label ids; of 255 the one that stands for `unlabeled`."""
    table = np.zeros(256, np.uint8)
    table[: len(LABEL_IDS)] = LABEL_IDS
    return table[train_ids]


def spoilt(ids, rng):
    """Return a ground truth with every id that is not scored somewhere in it."""
    ids = ids.copy()
    for ignored in IGNORED:
        row, column = rng.integers(0, [s - 4 for s in SIZE])
        ids[row : row + 3, column : column + 4] = ignored
    return ids


def predicted(ids, rule):
    found = np.where(np.isin(ids, LABEL_IDS), ids, 7)
    return rule(np.roll(found, 1, axis=1)).astype(np.uint8)


RULES = {
    "good": lambda ids: ids,
    "holes": lambda ids: np.where(np.arange(ids.size).reshape(ids.shape) % 3 == 0, 4, ids),
    "one": lambda ids: np.full_like(ids, 23),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the folder of an experiment on a Cityscapes tree, its plan and its table."""
    root = tmp_path_factory.mktemp("cityscapes")
    write_city(root / "city", 0, TARGET, {"train": 3, "val": 3}, SIZE)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for file in (root / "city/gtFine" / split).rglob("*_labelIds.png"):
            ids = spoilt(np.asarray(Image.open(file)), rng)
            Image.fromarray(ids).save(file)
            for name, rule in RULES.items():
                out = root / "teachers" / name / split / f"{image_id(file.name)}.png"
                out.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(predicted(ids, rule)).save(out)
    world = World.__new__(World)
    world.root, world.file = root, root / "experiment.yaml"
    splits = ("train", "val")
    world.settings = {
        "version": 1,
        "workspace": "work",
        "classes": {"table": "cityscapes19"},
        "target": {s: {"cityscapes": "city", "split": s} for s in splits},
        "teachers": [world.entry(name, ids="label_ids") for name in RULES],
        "probe": TINY | {"steps": 2},
        "fusion": {"window": 5},
        "student": TINY | {"steps": 2},
        "runtime": {"device": "cpu", "workers": 0, "threads": 1},
    }
    world.file.write_text(yaml.safe_dump(world.settings))
    table = root / "table.json"
    world.call("evaluate", "--upstream", "--fusions", "all", "-o", str(table))
    experiment = load(world.file)
    nodes = build(experiment, opens=("evaluation",), all_fusions=True)
    return root, plan(nodes, experiment.workspace.scan()), json.loads(table.read_text())


def officially(root, artifact):
    """Return what cityscapesScripts says of the label maps of an artifact, saved as PNGs."""
    folder = root / "written" / artifact.path.name
    folder.mkdir(parents=True)
    maps, files, truth = LabelMaps(artifact), [], []
    for name in maps:
        files.append(folder / f"{name}_gtFine_labelIds.png")
        Image.fromarray(label_ids(maps.read(name))).save(files[-1])
        truth += (root / "city/gtFine/val").rglob(f"{name}_gtFine_labelIds.png")
    peer.args.quiet, peer.args.JSONOutput, peer.args.evalInstLevelScore = True, False, False
    with mock.patch.object(np, "in1d", np.isin, create=True):  # numpy 2.4 has it no more
        return peer.evaluateImgLists([str(f) for f in files], [str(f) for f in truth], peer.args)


def test_the_table_has_all_methods(evaluated):
    _, _, table = evaluated
    assert [(row["kind"], row["method"]) for row in table["rows"]] == [m[:2] for m in METHODS]
    assert table["columns"][:20] == [*TABLE.classes, "mIoU"]


@pytest.mark.parametrize(("kind", "name", "node"), METHODS)
def test_every_score_is_the_official_one(evaluated, kind, name, node):
    root, decisions, table = evaluated
    (row,) = (r for r in table["rows"] if (r["kind"], r["method"]) == (kind, name))
    official = officially(root, decisions[node].artifact)
    ours = np.array(row["values"][:20], float) / 100
    expected = [*(official["classScores"][c] for c in TABLE.classes)]
    expected.append(official["averageScoreClasses"])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, equal_nan=True)
    assert np.isfinite(ours).sum() > 5
    if (kind, name) == ("teacher", "good"):
        assert ours[19] > 0.5
    # class by class and pixel by pixel, what was predicted and what it was
    confmat = np.array(row["confmat"])
    theirs = np.array(official["confMatrix"])
    at = list(LABEL_IDS)
    np.testing.assert_array_equal(confmat[:, :19], theirs[np.ix_(at, at)])
    np.testing.assert_array_equal(confmat.sum(axis=1), theirs[at].sum(axis=1))


def test_the_ground_truth_has_what_is_not_scored(evaluated):
    root, decisions, _ = evaluated
    seen = set()
    for file in (root / "city/gtFine/val").rglob("*_labelIds.png"):
        seen |= set(np.unique(Image.open(file)).tolist())
    assert seen >= set(IGNORED)
    maps = LabelMaps(decisions["truth@val"].artifact)
    assert sum(int((maps.read(i) == 255).sum()) for i in maps) > 300
