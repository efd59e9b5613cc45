"""Small experiments on disk, and a way to run the command line on them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from click.testing import CliRunner
from PIL import Image

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.manifest import read_manifest
from ensdistill.pipeline.ownership import MARK
from ensdistill.pipeline.plan import plan
from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import TARGET
from ensdistill.stages.graph import build, load

TINY = {
    "network": {"arch": "tiny"},
    "steps": 6,
    "batch_size": 2,
    "crop": [32, 48],
    "lr": 0.01,
}
# a student whose training has every part at once
EVERYTHING = {
    "batch_size": 4,
    "accumulate": 2,
    "class_mix": 0.5,
    "colour": 0.3,
    "blur": 0.5,
    "rare_class_temperature": 0.1,
    "class_balance": 3,
    "often_balance": 3,
    "hard_share": 0.5,
    "clip": 1.0,
    "ema": 0.95,
    "warmup": 5,
    "precision": "bfloat16",
}


# what `checks.files.check` returns where it looks at nothing
UNCHECKED = {"splits": {}, "teachers": {}, "warnings": []}


# calls commands in a fresh process, after what stands before it, and prints what came of each
COMMANDS = """
import json, sys
from click.testing import CliRunner
from ensdistill.cli.__main__ import cli

told = []
for command in json.loads(sys.argv[1]):
    found = CliRunner().invoke(cli, command)
    told.append([found.exit_code, found.stdout, str(found.exception)])
print(json.dumps(told))
"""


class World:
    """Images, ground truth and teachers below a folder, and the experiment file about them.

    Teacher `a` knows the even train ids and `b` the odd ones; what a teacher does not know it calls
    road. Sizes differ between images on purpose.
    """

    def __init__(self, root: Path, train=5, val=3, size=(48, 64)):
        self.root = root
        self.file = root / "experiment.yaml"
        self.truth = {}
        for split, count in (("train", train), ("val", val)):
            for k in range(count):
                shape = size if k else (size[0] - 4, size[1] - 3)
                image, label = draw_scene(0, 1000 * len(split) + k, TARGET, shape)
                name = f"{split}_{k:06}_000019"
                self.save("images", split, name, image)
                self.save("labels", split, name, label)
                self.truth[split, name] = label
        self.teacher("a", lambda label: np.where(label % 2 == 0, label, 0))
        self.teacher("b", lambda label: np.where(label % 2 == 1, label, 0))
        self.settings = {
            "version": 1,
            "workspace": "work",
            "classes": {"table": "cityscapes19"},
            "target": {
                "train": {"images": "images/train/*.png"},
                "val": {"images": "images/val/*.png", "labels": "labels/val/*.png"},
            },
            "teachers": [self.entry("a"), self.entry("b")],
            "probe": dict(TINY),
            "fusion": {"method": "channel", "window": 5},
            "student": dict(TINY),
            "runtime": {"device": "cpu", "workers": 0, "threads": 1},
        }
        self.write()

    def save(self, kind, split, name, array):
        path = self.root / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(path)
        return path

    def teacher(self, name, rule):
        """Write the predictions of a teacher: `rule` turns true train ids into predicted ones."""
        for (split, image_id), label in self.truth.items():
            known = np.where(label == 255, 0, label)
            self.save(f"teachers/{name}", split, image_id, rule(known))

    def entry(self, name, **more):
        """Return the entry of the experiment file for a teacher's predictions."""
        labels = {s: f"teachers/{name}/{s}" for s in ("train", "val")}
        return {"name": name, "labels": labels, **more}

    def add_teacher(self, name, rule):
        self.teacher(name, rule)
        self.settings["teachers"].append(self.entry(name))
        self.write()

    def write(self):
        self.file.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def call(self, *arguments, expect=0):
        """Run a command on the experiment and return what it printed on stdout."""
        result = CliRunner().invoke(cli, [*arguments, "-c", str(self.file)])
        if expect == 0 and result.exception is not None:
            raise result.exception
        assert result.exit_code == expect, result.output
        return result.stdout

    def json(self, *arguments):
        """Run a command with --json and return what it printed."""
        return json.loads(self.call(*arguments, "--json"))

    def refuse(self, *arguments):
        """Run a command that must refuse, and return the error's text."""
        result = CliRunner().invoke(cli, [*arguments, "-c", str(self.file)])
        assert result.exception is not None, result.output
        return f"{type(result.exception).__name__}: {result.exception}"

    def states(self):
        """Return node id to state."""
        return {d["node"]: d["state"] for d in self.json("status")}

    def artifacts(self):
        """Return all published artifacts."""
        return list(load(self.file).workspace.scan().published.values())

    def artifact(self, node_id):
        """Return the published artifact of a node."""
        experiment = load(self.file)
        nodes = build(experiment, opens=("student", "truth"))
        return plan(nodes, experiment.workspace.scan())[node_id].artifact


def files_of(folder: Path):
    """Return relative name to bytes of all files below a folder, but for our mark."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MARK
    }


def forge(folder: Path, **changes):
    """Rewrite fields of a manifest as somebody may who writes the checksums as well."""
    made = replace(read_manifest(folder), **changes)
    (folder / "manifest.json").write_bytes(made.to_bytes())


def segformer(folder, classes=19):
    """Write a small random SegFormer as a folder of transformers."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=classes,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 1, 1],
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def network_world(world, **entry):
    """Make one network the only teacher."""
    world.settings["teachers"] = [{"name": "seg", **entry}]
    world.write()
    return world
