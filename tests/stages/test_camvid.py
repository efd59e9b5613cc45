"""Real images, real predictions: the figures of the data's own README come out."""

import re

import pytest
import yaml
from click.testing import CliRunner
from worlds import TINY, World

from ensdistill.cli.__main__ import cli
from ensdistill.data.classes import TABLES

COLUMNS = TABLES["camvid11"].classes
EACH_THIRD = "*[036]?.jpg"


class CamVid(World):
    """The experiment that `init --template camvid` writes, with short trainings."""

    def __init__(self, root, folder):
        self.root, self.file = root, root / "experiment.yaml"
        result = CliRunner().invoke(
            cli,
            ["init", "--template", "camvid", "-o", str(self.file)],
            env={"ENSDISTILL_CAMVID": str(folder)},
        )
        assert result.exit_code == 0, result.output
        self.settings = yaml.safe_load(self.file.read_text())
        short = TINY | {"steps": 30, "batch_size": 4, "crop": [120, 160]}
        self.settings["probe"] = dict(short)
        self.settings["student"] = short | {"steps": 40}
        self.settings["runtime"] = {"device": "cpu", "workers": 2, "threads": 2}
        self.write()


def readme_figures(folder):
    """Return teacher to its IoUs and mIoU, from the data's README."""
    found = {}
    for line in (folder / "README.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 13 and re.fullmatch(r"[\d.]+", cells[1]):
            found[cells[0]] = [float(c) for c in cells[1:]]
    return found


@pytest.mark.slow
def test_teachers_have_the_figures_of_the_readme(camvid, tmp_path):
    world = CamVid(tmp_path, camvid)
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "dicenet"}}
    world.settings["student"] |= {"steps": 2}
    world.settings["target"]["train"]["images"] = str(camvid / "images/train/0016E5_00*.jpg")
    world.write()
    found = world.json("run")
    expected = readme_figures(camvid)
    assert len(expected) == 6
    teachers = {m["name"]: m for m in found["methods"] if m["kind"] == "teacher"}
    for name, figures in expected.items():
        ours = [teachers[name]["iou"][c] for c in COLUMNS] + [teachers[name]["miou"]]
        assert ours == pytest.approx(figures, abs=0.1), name


def test_segformer_with_random_weights_on_real_images(camvid, tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    SegformerForSemanticSegmentation(SegformerConfig(num_labels=19)).save_pretrained(
        tmp_path / "segformer"
    )
    world = CamVid(tmp_path, camvid)
    mapping = world.settings["teachers"][0]["map"]
    network = {"hf": "segformer"}
    world.settings["teachers"] = [
        {"name": "seg", "network": network, "classes": "cityscapes19", "map": mapping}
    ]
    world.settings["target"]["train"]["images"] = str(camvid / "images/train/0006R0_f010*.jpg")
    world.write()
    count = len(list((camvid / "images/train").glob("0006R0_f010*.jpg")))
    assert f"infer[seg]: {count} of {count} written" in world.call("infer-teacher")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_and_then_a_sixth_teacher(camvid, tmp_path):
    world = CamVid(tmp_path, camvid)
    sixth = world.settings["teachers"].pop()
    assert world.settings["fusion"]["method"] == "label-model"
    world.settings["fusion"]["method"] = "channel"
    # of all three videos every third image or so: a certainty looks at each with a network
    train = list((camvid / "images/train").glob(EACH_THIRD))
    world.settings["target"]["train"]["images"] = str(camvid / "images/train" / EACH_THIRD)
    world.write()
    five = [t["name"] for t in world.settings["teachers"]]
    first = world.json("run")
    names = [m["name"] for m in first["methods"]]
    assert names == [*five, "channel", "channel-oracle", "majority", "student"]
    assert set(world.states().values()) == {"fresh"}

    world.settings["teachers"].append(sixth)
    world.write()
    states = world.states()
    own = {f"{stage}[{sixth['name']}]" for stage in ("infer", "probe", "certainty")}
    assert {n for n, s in states.items() if s == "missing"} >= own
    assert {n for n in states if "@" not in n and states[n] == "waiting"} == {
        "policy",
        "fusion",
        "student",
    }
    assert all(
        states[f"{s}[{t}]"] == "fresh" for s in ("infer", "probe", "certainty") for t in five
    )

    before = {a.path for a in world.artifacts()}
    world.call("run", "--no-evaluate")
    made = {a.manifest.node: a.manifest.written for a in world.artifacts() if a.path not in before}
    expected = own | {"policy"}
    if world.json("select-policy")["policy"]["teacher"] != first["policy"]:
        expected |= {"fusion", "student"}
    assert set(made) == expected
    assert made[f"infer[{sixth['name']}]"] == len(train) == 107
    world.call("run")
    assert set(world.states().values()) == {"fresh"}
    assert "nothing to do" in world.call("run")

    world.settings["fusion"]["method"] = "label-model"
    world.write()
    methods = world.json("run")["methods"]
    miou = {m["name"]: m["miou"] for m in methods}
    best = max(m["miou"] for m in methods if m["kind"] == "teacher")
    assert miou["label-model"] > max(best, miou["majority"]) + 2
