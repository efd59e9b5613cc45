"""The laws of the keys: what names an artifact or an item, and what never does.

Nothing runs here but the tests at the end: what waits for a policy or a certainty is given a result
that was made up, so the key of every node is known.
"""

import copy
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from told import Told
from worlds import TINY, World, files_of

from ensdistill.pipeline.config import Section
from ensdistill.pipeline.errors import ConfigError, CorruptError
from ensdistill.pipeline.manifest import Artifact, Manifest
from ensdistill.pipeline.node import NodeId
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.runner import item_keys
from ensdistill.pipeline.workspace import Snapshot
from ensdistill.stages import graph
from ensdistill.stages.experiment.schema import Config
from ensdistill.stages.graph import VERSIONS, build, load
from ensdistill.stages.networks.backbones import imagenet_weights

OPENS = ("student", "truth")
CHOSEN = {"road": "a", "car": "b", "sky": "n"}
few = settings(max_examples=20, derandomize=True, deadline=None)


def decided(world, chosen=None, **more):
    """Plan every node. `chosen` maps classes to teachers, where the policy measures them."""
    experiment = load(world.file)
    nodes = build(experiment, opens=OPENS, **more)
    classes = experiment.classes.classes
    published = {}
    while True:
        decisions = plan(nodes, Snapshot(published, {}, {}))
        new = {
            d.fingerprint: invented(d, classes, chosen or CHOSEN)
            for d in decisions.values()
            if d.fingerprint is not None and d.fingerprint not in published
        }
        if not new:
            waiting = [n for n, d in decisions.items() if d.fingerprint is None]
            assert not waiting
            return decisions
        published |= new


def invented(decision, classes, chosen):
    """Return an artifact of a node that never ran."""
    node, work = decision.node, decision.work
    result = {}
    if node.stage == "certainty":
        result = {k: dict.fromkeys(classes, 1) for k in ("certainty", "support", "labelled")}
        result["has_class"] = dict.fromkeys(classes, True)
    elif node.stage == "policy":
        teacher = work.recipe.to_json().get("assign") or {c: chosen.get(c) for c in classes}
        result = {"strategy": "x", "teacher": teacher, "fallback": []}
        result["certainty"] = dict.fromkeys(classes, 0.5)
    artifact = Artifact(
        Path("nowhere"),
        Manifest(node.id, node.stage, node.version, decision.fingerprint, {}, {}, result),
    )
    # label maps are read item by item, all else whole
    mapped = node.stage in ("infer", "noisy", "truth", "fusion", "pixel-weights")
    artifact.__dict__["items"] = [
        {"id": item.id, "content": f"{node.id} {item.id}"} for item in work.items if mapped
    ]
    return artifact


def prints(world, chosen=None, **more):
    """Return node id to fingerprint."""
    return {n: d.fingerprint for n, d in decided(world, chosen, **more).items()}


def changed(one, other):
    """Return the nodes that both have, under different keys."""
    return {n for n in one.keys() & other.keys() if one[n] != other[n]}


def reaching(decisions, direct):
    """Return `direct` and all nodes that read one of them, directly or not."""
    found = set(direct)
    for node_id, decision in decisions.items():
        if found & set(decision.work.uses.values()):
            found.add(node_id)
    return found


def keys_of(world, node_id, change=None, chosen=None):
    """Return item id to key of one node, after `change` of what it reads."""
    decisions = decided(world, chosen)
    decision = decisions[node_id]
    inputs = {role: decisions[up].artifact for role, up in decision.work.uses.items()}
    if change is not None:
        inputs = {role: change(artifact) for role, artifact in inputs.items()}
    return item_keys(decision.node, decision.work, inputs)


def with_items(artifact, items, **fields):
    """Return an invented artifact with other items, and other fields in its manifest."""
    other = Artifact(artifact.path, replace(artifact.manifest, **fields))
    other.__dict__["items"] = items
    return other


def unnamed(artifact):
    """Return an upstream whose key does not matter to an item's key any more."""
    return with_items(artifact, artifact.items, fingerprint="")


def segformer(folder):
    pytest.importorskip("transformers")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=19,
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        decoder_hidden_size=8,
        num_attention_heads=[1] * 4,
        sr_ratios=[1] * 4,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)


def flip(path, position=-1):
    """Change one byte of a file, and not its length."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


TREE = "tree/leftImg8bit/{}/city/{}_leftImg8bit.png"
OTHER_TREE = "other-tree/leftImg8bit/{}/city/{}_leftImg8bit.png"


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A world with two teachers by predictions and one network, and all that a setting can name."""
    root = tmp_path_factory.mktemp("origin")
    world = World(root, train=3, val=2)
    ids = [i for split, i in world.truth if split == "train"]
    world.teacher("other", lambda label: np.where(label == 2, 0, label))
    for folder in ("network", "network-2"):
        segformer(root / folder)
    flip(root / "network-2" / "model.safetensors")
    for folder in ("trained", "trained-2"):
        (root / folder).mkdir()
        (root / folder / "network.json").write_text("{}")
        (root / folder / "model.safetensors").write_bytes(folder.encode())
    for folder in ("code", "code-2"):
        (root / folder).mkdir()
        (root / folder / "nets.py").write_text(f"# {folder}\n")
    for name in ("init.pt", "init-2.pt"):
        (root / name).write_bytes(name.encode())
    for pattern, split, some in (
        (TREE, "one", ids),
        (TREE, "two", ids[1:]),
        (OTHER_TREE, "one", ids),
    ):
        for k, image_id in enumerate(some):
            path = root / pattern.format(split, image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / f"images/train/{image_id}.png", path)
            if k == 0 and pattern is OTHER_TREE:
                flip(path)
    lines = [f"images/train/{i}.png\n" for i in ids]
    (root / "list.txt").write_text("".join(lines))
    (root / "short.txt").write_text("".join(lines[1:]))
    shutil.copytree(root / "labels", root / "labels-2")
    flip(root / f"labels-2/val/{at(world, 'val', 0)}.png")
    world.settings["teachers"].append({"name": "n", "network": {"hf": "network"}})
    world.settings = json.loads(json.dumps(world.settings))  # nothing shared between sections
    world.write()
    return world


def at(world, split, k):
    """Return the id of the k-th image of a split."""
    return sorted(i for s, i in world.truth if s == split)[k]


def copied(world, root):
    """Return a world with a folder and settings of its own."""
    found = copy.copy(world)
    shutil.copytree(world.root, root)
    found.root, found.file = root, root / "experiment.yaml"
    found.settings = copy.deepcopy(world.settings)
    return found


@pytest.fixture
def world(origin, tmp_path):
    return copied(origin, tmp_path / "copy")


# --- what is in no key -----------------------------------------------------------------------


def shuffled(value, rng):
    """Return settings with the keys of every mapping in another order."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {k: shuffled(value[k], rng) for k in keys}
    return [shuffled(v, rng) for v in value] if isinstance(value, list) else value


def absolute(value, root):
    """Return settings with every path below `root` written out."""
    if isinstance(value, dict):
        return {k: absolute(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [absolute(v, root) for v in value]
    there = isinstance(value, str) and (root / value.split("*")[0]).exists()
    return str(root / value) if there else value


def with_settings(world, changed_settings):
    """Return the keys of a world under other settings, beside its own file."""
    file = world.root / "other.yaml"
    file.write_text(yaml.safe_dump(changed_settings, sort_keys=False))
    own = world.file
    try:
        world.file = file
        return prints(world)
    finally:
        world.file = own


# Any value of every field that says how the work is done.
RUNTIME = {
    "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
    "batch_size": st.integers(1, 9),
    "channels_last": st.booleans(),
    "workers": st.integers(0, 9),
    "threads": st.none() | st.integers(1, 9),
    "checkpoint_every": st.integers(1, 999),
    "cache": st.booleans(),
    "keep_checkpoints": st.integers(1, 9),
    "tensorboard": st.none() | st.just("curves"),
    "max_pixels": st.integers(1, 10**12),
}
JOBS = {"jobs": st.integers(1, 9), "scheduler": st.just("tcp://host:8786")}  # one goes alone


@few
@given(
    seed=st.integers(0, 2**32),
    place=st.booleans(),
    runtime=st.one_of(
        st.fixed_dictionaries({}, optional=RUNTIME),
        *(st.fixed_dictionaries({key: values}) for key, values in JOBS.items()),
    ),
    workspace=st.sampled_from(["work", "a/b", "../beside"]),
)
def test_order_runtime_and_place_are_in_no_key(origin, seed, place, runtime, workspace):
    rng = random.Random(seed)
    other = shuffled(origin.settings, rng)
    rng.shuffle(other["teachers"])
    if place:
        other = absolute(other, origin.root)
    other |= {"runtime": runtime, "workspace": workspace}
    assert with_settings(origin, other) == prints(origin)


def test_a_default_that_is_written_out_is_in_no_key(origin):
    config = load(origin.file).config
    other = copy.deepcopy(origin.settings)
    for section in ("probe", "student", "policy", "fusion", "runtime"):
        other[section] = getattr(config, section).model_dump(mode="json")
    for entry in other["teachers"]:
        entry |= {"map": {"road": "road"}, "classes": "cityscapes19", "trust": "none"}
    for entry in other["teachers"][:2]:
        entry["ids"] = "train_ids"
    other["teachers"][2]["preprocess"] = {}
    other["target"]["val"]["ids"] = "train_ids"
    assert with_settings(origin, other) == prints(origin)


def test_the_spelling_of_a_number_is_in_no_key(origin):
    found = []
    for number in (1, 1.0):
        values = {"power": number, "head_lr_factor": number, "weight_decay": number}
        other = copy.deepcopy(origin.settings)
        other["probe"] |= values | {"preprocess": {"mean": [number] * 3}}
        other["student"] |= values | {"scale": [number, number]}
        other["teachers"][2]["preprocess"] = {"std": [number] * 3, "scale": number}
        other["policy"] = {"min_support": number}
        found.append(with_settings(origin, other))
    assert found[0] == found[1]


def test_first_weights_have_one_key_however_they_are_written(origin):
    def recipe(**given):
        other = copy.deepcopy(origin.settings)
        other["student"] |= given
        origin.file.write_text(yaml.safe_dump(other))
        try:
            return decided(origin)["student"].work.recipe.to_json()
        finally:
            origin.write()

    bare = recipe()
    assert bare.keys().isdisjoint({"init", "head"})
    sha256 = load(origin.file).files.digest(origin.root / "init.pt")
    plain = recipe(init="init.pt")
    assert plain == bare | {"init": sha256}
    assert recipe(init={"file": "init.pt"}) == plain
    assert recipe(init={"file": "init.pt", "into": None, "head": "new"}) == plain
    given = [
        recipe(init={"file": "init.pt", "into": f"encoder{dot}", "strip": f"module.net{dot}"})
        for dot in ("", ".")
    ]
    into = {"file": sha256, "into": "encoder.", "strip": "module.net."}
    assert given[0] == given[1] == bare | {"init": into}
    heads = recipe(head=["out.*", "decoder.*"]), recipe(head=["decoder.*", "out.*", "out.*"])
    assert heads[0] == heads[1] == bare | {"head": ["decoder.*", "out.*"]}
    assert recipe(init="none") == bare
    assert recipe(init="none", network={"hf": "network"}) != recipe(network={"hf": "network"})
    lite = {"network": {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}}
    weights = imagenet_weights("efficientnet-lite0")
    assert recipe(**lite)["init"] == load(origin.file).files.digest(weights)
    assert recipe(**lite) == recipe(**lite, init="imagenet") == recipe(**lite, init=str(weights))
    assert recipe(**lite, head=["decoder.*"]) == recipe(**lite)
    assert "init" not in recipe(**lite, init="none")


def test_names_of_files_and_folders_are_in_no_key(world):
    world.settings["teachers"].append({"name": "o", "trust": "code", "network": CODE})
    world.settings["student"]["init"] = "init.pt"
    world.write()
    before = prints(world)
    for old, new in (
        ("images", "photographs"),
        ("labels", "truth"),
        ("teachers/a", "elsewhere"),
        ("network", "weights"),
        ("code", "scripts"),
        ("init.pt", "start.pt"),
    ):
        (world.root / old).rename(world.root / new)
        text = world.file.read_text().replace(f"{old}/", f"{new}/")
        for key in ("hf", "root", "init", "weights"):
            text = text.replace(f"{key}: {old}\n", f"{key}: {new}\n")
        world.file.write_text(text)
    world.file.rename(world.root / "renamed.yaml")
    world.file = world.root / "renamed.yaml"
    assert not (world.root / "images").exists()
    assert prints(world) == before


def test_modification_times_are_in_no_key(world):
    before = prints(world)
    load(world.file).files.save()
    for path in world.root.rglob("*"):
        os.utime(path, (1, 1))
    assert prints(world) == before


def test_what_was_remembered_is_in_no_key(world):
    before = prints(world)
    experiment = load(world.file)
    plan(build(experiment, opens=OPENS), experiment.workspace.scan())
    experiment.files.save()
    assert (world.root / "work/files.json").exists()
    assert prints(world) == before


def test_a_new_teacher_is_in_no_key_of_the_others(world):
    before = prints(world)
    world.teacher("aa", lambda label: label)
    world.settings["teachers"].append(world.entry("aa"))
    world.write()
    # by name: the policies and the votes are among all teachers, the scores are of all
    expected = {"policy", "policy[oracle]@val", "fusion[majority]@val", "evaluation@val"}
    assert changed(before, prints(world)) == expected


def test_a_new_teacher_without_a_class_is_in_no_key_of_a_manual_policy(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "car": "n"}}
    world.write()
    before = prints(world)
    world.teacher("aa", lambda label: label)
    world.settings["teachers"].append(world.entry("aa"))
    world.write()
    expected = {"policy[oracle]@val", "fusion[majority]@val", "evaluation@val"}
    assert changed(before, prints(world)) == expected


@pytest.mark.parametrize("name", ["0", "zz"])
def test_the_name_of_a_teacher_is_in_no_key_of_a_network(world, name):
    before = prints(world)
    world.settings["teachers"][0]["name"] = name
    world.write()
    after = prints(world, CHOSEN | {"road": name})
    expected = {"policy", "policy[oracle]@val", "evaluation@val"}
    assert changed(before, after) <= {*expected, "fusion[majority]@val"}
    renamed = {n for n in before if "[a]" in n}
    assert renamed and {before[n] for n in renamed} == {
        after[n.replace("[a]", f"[{name}]")] for n in renamed
    }


def test_the_order_of_a_stored_policy_is_in_no_key(world):
    one = prints(world)
    decisions = decided(world)
    stored = {d.fingerprint: d.artifact for d in decisions.values()}
    name = decisions["policy"].fingerprint
    result = stored[name].manifest.result
    other = {**result, "teacher": dict(reversed(result["teacher"].items()))}
    manifest = replace(stored[name].manifest, result=other)
    stored[name] = Artifact(Path("nowhere"), manifest)
    nodes = build(load(world.file), opens=OPENS)
    again = plan(nodes, Snapshot(stored, {}, {}))
    assert {n: d.fingerprint for n, d in again.items() if n.startswith("fusion")} == {
        n: found for n, found in one.items() if n.startswith("fusion")
    }


# --- what is in which key --------------------------------------------------------------------

A, B, N = ({f"infer[{t}]", f"infer[{t}]@val"} for t in "abn")
PROBES = {f"probe[{t}]" for t in "abn"}
FOLDS = {f"probe[{t}.{k}]" for t in "abn" for k in (1, 2, 3)}
MAPS = {"fusion[channel]@val", "fusion[channel-oracle]@val", "fusion"}
TRUTH = {"truth@val"}
ALL = None

# field: (settings before, settings after, the nodes whose own recipe or items it belongs to)
SPLIT_TRAIN = {"infer[a]", "infer[b]", "infer[n]", *(f"certainty[{t}]" for t in "abn"), "fusion"}
ON_VAL = {f"infer[{t}]@val" for t in ("a", "b", "n", "student")} | {"fusion[majority]@val"}
WATCHED = {"student.watch": "val", "student.watch_every": 2}
MANUAL = {"policy": {"strategy": "manual", "assign": CHOSEN}}
TRAINED = {"teachers.2": {"name": "n", "network": {"student": "trained"}}}

CODE = {
    "factory": "nets:one",
    "root": "code",
    "kwargs": {"width": 1},
    "files": {"weights": "init.pt"},
}


def code(**more):
    return {"teachers.2": {"name": "n", "trust": "code", "network": CODE | more}}


def own_code(section, **more):
    return {f"{section}.trust": "code", f"{section}.network": CODE | more}


def opened(kind, file):
    return {"teachers.2": {"name": "n", "trust": "code", "network": {kind: file}}}


def tree(**more):
    return {"target.train": {"cityscapes": "tree", "split": "one"} | more}


def training(section, direct):
    """Return the cases of a probe's or student's fields."""
    sgd = {f"{section}.optimizer": "sgd"}
    values = {
        "network.arch": "mobilenetv2-deeplabv3plus",
        "network.divisor": 32,
        "steps": 7,
        "batch_size": 3,
        "input_size": [24, 32],
        "crop": [32, 40],
        "scale": [0.5, 1.25],
        "flip": False,
        "preprocess.preset": "caffe",
        "preprocess.mean": [0.1, 0.2, 0.3],
        "preprocess.std": [0.1, 0.2, 0.3],
        "preprocess.scale": 1.0,
        "preprocess.channels": "bgr",
        "optimizer": "sgd",
        "lr": 0.02,
        "head_lr_factor": 10.0,
        "momentum": 0.8,
        "weight_decay": 0.0,
        "power": 1.0,
        "class_balance": 2.0,
        "often_balance": 2.0,
        "hard_share": 0.5,
        "colour": 0.2,
        "blur": 0.5,
        "class_mix": 0.5,
        "rare_class_temperature": 0.01,
        "warmup": 3,
        "clip": 1.0,
        "ema": 0.99,
        "settle": 0.01,
        "precision": "bfloat16",
        "batch_norm": "frozen",
        "seed": 1,
    }
    cases = {f"{section}.{k}": ({}, {f"{section}.{k}": v}, direct) for k, v in values.items()}
    four = {f"{section}.batch_size": 4}
    cases[f"{section}.accumulate"] = (four, four | {f"{section}.accumulate": 2}, direct)
    for field, value in (
        ("factory", "nets:two"),
        ("root", "code-2"),
        ("kwargs", {"width": 2}),
        ("files", {"weights": "init-2.pt"}),
    ):
        own = own_code(section), own_code(section, **{field: value})
        cases[f"{section}.network.{field}"] = (*own, direct)
    folder = {f"{section}.network": {"hf": "network"}}
    cases[f"{section}.network.hf"] = (folder, {f"{section}.network.hf": "network-2"}, direct)
    lite = {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}
    cases[f"{section}.network.backbone"] = (
        {f"{section}.network": lite, f"{section}.init": "none"},
        {f"{section}.network.backbone": "resnet50"},
        direct,
    )
    still = {
        f"{section}.network": lite,
        f"{section}.crop": [32, 48],
        f"{section}.scale": [1.0, 1.0],
    }
    cases[f"{section}.train"] = (still, {f"{section}.train": "decoder"}, direct)
    init = {f"{section}.init": {"file": "init.pt"}}
    for field, value in (
        ("file", "init-2.pt"),
        ("into", "encoder"),
        ("strip", "module."),
        ("head", "keep"),
    ):
        cases[f"{section}.init.{field}"] = (init, {f"{section}.init.{field}": value}, direct)
    cases[f"{section}.head"] = ({}, {f"{section}.head": ["decoder.*"]}, direct)
    cases[f"{section}.nesterov"] = (sgd, sgd | {f"{section}.nesterov": True}, direct)
    return cases


CASES = {
    "classes.table": ({}, {"classes.table": "synthia16"}, ALL),
    "target.images": ({}, {"target.train.images": "images/train/*[12]_000019.png"}, SPLIT_TRAIN),
    "target.labels": ({}, {"target.val.labels": "labels-2/val/*.png"}, TRUTH),
    "target.cityscapes": (tree(), tree(cityscapes="other-tree"), SPLIT_TRAIN),
    "target.split": (tree(), tree(split="two"), SPLIT_TRAIN),
    "target.list": (
        {"target.train": {"list": "list.txt"}},
        {"target.train": {"list": "short.txt"}},
        SPLIT_TRAIN,
    ),
    "target.ids": ({}, {"target.val.ids": "label_ids"}, TRUTH),
    "teachers.labels": ({}, {"teachers.0.labels.train": "teachers/other/train"}, {"infer[a]"}),
    "teachers.network.hf": ({}, {"teachers.2.network.hf": "network-2"}, N),
    "teachers.network.student": (TRAINED, {"teachers.2.network.student": "trained-2"}, N),
    "teachers.network.factory": (code(), code(factory="nets:two"), N),
    "teachers.network.root": (code(), code(root="code-2"), N),
    "teachers.network.kwargs": (code(), code(kwargs={"width": 2}), N),
    "teachers.network.divisor": ({}, {"teachers.2.network.divisor": 32}, N),
    "teachers.network.onnx": (opened("onnx", "init.pt"), opened("onnx", "init-2.pt"), N),
    "teachers.network.exported": (
        opened("exported", "init.pt"),
        opened("exported", "init-2.pt"),
        N,
    ),
    "teachers.network.torchscript": (
        opened("torchscript", "init.pt"),
        opened("torchscript", "init-2.pt"),
        N,
    ),
    "teachers.network.state_dict": (
        {"teachers.2.network.state_dict": "init.pt"},
        {"teachers.2.network.state_dict": "init-2.pt"},
        N,
    ),
    "teachers.network.ignore_keys": (
        {"teachers.2.network.state_dict": "init.pt"},
        {"teachers.2.network.ignore_keys": ["head.*"]},
        N,
    ),
    "teachers.network.output": ({}, {"teachers.2.network.output": "probabilities"}, N),
    "teachers.network.void_channels": ({}, {"teachers.2.network.void_channels": [0]}, N),
    "teachers.network.take": ({}, {"teachers.2.network.take": "logits"}, N),
    "teachers.network.precision": ({}, {"teachers.2.network.precision": "bfloat16"}, N),
    "teachers.confidence": (
        {"teachers.0.confidence": {"train": "teachers/a/train"}},
        {"teachers.0.confidence": {"train": "teachers/other/train"}},
        {"confidence[a]"},
    ),
    "teachers.preprocess.preset": ({}, {"teachers.2.preprocess.preset": "caffe"}, N),
    "teachers.preprocess.factor": ({}, {"teachers.2.preprocess.factor": 0.5}, N),
    "teachers.preprocess.flip": ({}, {"teachers.2.preprocess.flip": True}, N),
    "teachers.preprocess.scales": ({}, {"teachers.2.preprocess.scales": [1, 2]}, N),
    "teachers.preprocess.tiles.size": ({}, {"teachers.2.preprocess.tiles.size": [24, 32]}, N),
    "teachers.preprocess.tiles.overlap": (
        {"teachers.2.preprocess.tiles.size": [24, 32]},
        {"teachers.2.preprocess.tiles.overlap": [8, 8]},
        N,
    ),
    "teachers.network.files": (code(), code(files={"weights": "init-2.pt"}), N),
    "teachers.ids": ({}, {"teachers.0.ids": "label_ids"}, A),
    "teachers.classes": ({}, {"teachers.0.classes": "synthia16"}, A),
    "teachers.map": ({}, {"teachers.0.map": {"car": None}}, A),
    "teachers.preprocess.mean": ({}, {"teachers.2.preprocess.mean": [0.1, 0.2, 0.3]}, N),
    "teachers.preprocess.std": ({}, {"teachers.2.preprocess.std": [0.1, 0.2, 0.3]}, N),
    "teachers.preprocess.scale": ({}, {"teachers.2.preprocess.scale": 1}, N),
    "teachers.preprocess.channels": ({}, {"teachers.2.preprocess.channels": "bgr"}, N),
    "teachers.preprocess.size": ({}, {"teachers.2.preprocess.size": [24, 32]}, N),
    "teachers.preprocess.interpolation": (
        {},
        {"teachers.2.preprocess.interpolation": "nearest"},
        N,
    ),
    "teachers.preprocess.align_corners": ({}, {"teachers.2.preprocess.align_corners": True}, N),
    **training("probe", PROBES),
    "probe.folds": ({"probe.folds": 2}, {"probe.folds": 3}, FOLDS),
    **training("student", {"student"}),
    "student.watch": ({}, {"student.watch": "val"}, {"student"}),
    "student.watch_every": (WATCHED, {"student.watch_every": 3}, {"student"}),
    "student.checkpoint": (WATCHED, {"student.checkpoint": "best"}, {"student"}),
    "student.pixel_weights": ({}, {"student.pixel_weights": "posterior"}, {"student"}),
    "policy.strategy": ({}, MANUAL, {"policy"}),
    "policy.min_support": ({}, {"policy.min_support": 0.1}, {"policy"}),
    "policy.assign": (
        MANUAL,
        {"policy.assign": CHOSEN | {"road": "b"}},
        {"policy", "fusion", "fusion[channel]@val"},
    ),
    "fusion.method": ({}, {"fusion.method": "majority"}, {"fusion"}),
    "fusion.window": ({}, {"fusion.window": 7}, MAPS),
    "fusion.conflict": ({}, {"fusion.conflict": "certainty"}, MAPS),
    "fusion.holes": ({}, {"fusion.holes": "ignore"}, MAPS),
    "label_model.fit": ({}, {"label_model.fit": "train"}, {"fusion[label-model]@val"}),
}
# These fields are in no key, by design.
NO_KEY = {
    "version": "only one value is legal",
    "workspace": "where the artifacts lie; what they hold does not depend on it",
    "target.overlap": "permits to score images that are trained on; results tell how many",
    "teachers.name": "networks have no name; policies and scores, which name teachers, do the rest",
    "probe.trust": "permits to run a network's code; what the code says is in the key",
    "student.trust": "the same",
    "teachers.trust": "permits to run a teacher's code; what the code says is in the key",
    **{f"runtime.{key}": "how the work is done: see RUNTIME" for key in (*RUNTIME, *JOBS)},
    "probe.preset": "stands for settings that are in the key",
    "student.preset": "the same",
    "teachers.network.revision": "names a folder; what its files hold is in the key",
    "teachers.keep": "what is kept are nodes of their own",
    "probe.preprocess.tiles.overlap": "refused with `tiles`",
    "student.preprocess.tiles.overlap": "the same",
}
# These are fields of a section used twice, and legal only in its other place.
REFUSED = {
    f"{section}.preprocess.{field}": value
    for section in ("probe", "student")
    for field, value in (
        ("size", [24, 32]),
        ("interpolation", "nearest"),
        ("align_corners", True),
        ("factor", 0.5),
        ("flip", True),
        ("scales", [1, 2]),
        ("tiles.size", [24, 32]),
    )
}


def sections_in(annotation):
    """Yield the sections that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def leaves(model, prefix=""):
    """Yield the dotted path of every field of a model that is no section itself."""
    for name, field in model.model_fields.items():
        inner = list(sections_in(field.annotation))
        for found in inner:
            yield from leaves(found, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def patch(target, changes):
    """Set dotted paths in settings."""
    for path, value in changes.items():
        *way, last = path.split(".")
        at_path = target
        for part in way:
            at_path = at_path[int(part)] if part.isdigit() else at_path.setdefault(part, {})
        at_path[int(last) if last.isdigit() else last] = copy.deepcopy(value)
    return target


def test_of_every_field_it_is_decided_which_keys_it_enters():
    fields = list(leaves(Config))
    assert len(set(fields)) == len(fields) > 70
    undecided = set(fields) - CASES.keys() - NO_KEY.keys() - REFUSED.keys()
    assert not undecided, (
        f"{sorted(undecided)}: add a case that says which nodes such a field belongs to, or say "
        "in NO_KEY why it is in no key"
    )
    assert not CASES.keys() & NO_KEY.keys()
    gone = {*CASES, *NO_KEY, *REFUSED} - set(fields)
    assert not gone


@pytest.mark.parametrize("field", CASES)
def test_a_field_is_in_the_keys_of_its_own_nodes_and_what_reads_them(origin, field):
    before, after, direct = CASES[field]
    one = patch(copy.deepcopy(origin.settings), before)
    two = patch(copy.deepcopy(one), after)
    found = []
    for each in (one, two):
        origin.file.write_text(yaml.safe_dump(each))
        try:
            found.append(decided(origin))
        finally:
            origin.write()
    first, second = ({n: d.fingerprint for n, d in f.items()} for f in found)
    expected = set(second) if direct is ALL else reaching(found[1], direct)
    if field in ("target.images", "target.cityscapes", "target.split", "target.list"):
        # a training reads images by the list of its label maps
        assert {"probe[a]", "student"} <= expected
    assert changed(first, second) == expected & first.keys() & second.keys()


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_means_nothing_there_is_refused(world, field):
    patch(world.settings, {field: REFUSED[field]})
    world.write()
    with pytest.raises(ConfigError, match=rf"`{field.split('.')[1]}\.{field.split('.')[2]}` is"):
        load(world.file)


def test_trust_is_in_no_key(world):
    before = prints(world)
    world.settings["teachers"][2]["trust"] = "code"
    world.write()
    assert prints(world) == before


def test_ground_truth_of_the_training_images_is_in_no_key(world):
    before = prints(world)
    world.settings["target"]["train"]["labels"] = "labels/train/*.png"
    world.write()
    assert prints(world) == before


# The settings that ask for a stage which those of `origin` do not ask for.
WANTED = {
    "label-model": {"fusion.method": "label-model"},
    "pixel-weights": {"student.pixel_weights": "posterior"},
    "confidence": {"teachers.2.keep": ["confidence"]},
    "soft": {"teachers.2.keep": ["soft"]},
}
# What else asks for one; an ablation also has other stages' versions in its key.
ASKED = {"ablation": {"ablation": True}, "noisy": {"noise": ["a"]}}


@pytest.mark.parametrize("stage", VERSIONS)
def test_the_version_of_a_stage_is_in_its_keys(world, monkeypatch, stage):
    patch(world.settings, WANTED.get(stage, {}))
    world.write()
    asked = ASKED.get(stage, {})
    before = prints(world, **asked)
    room = next(room for room in graph.ROOMS if room.STAGE.name == stage)
    monkeypatch.setattr(room, "STAGE", replace(room.STAGE, version=VERSIONS[stage] + 1))
    found = decided(world, **asked)
    direct = {n for n, d in found.items() if d.node.stage == stage}
    assert direct, f"say in WANTED which settings ask for {stage}"
    after = {n: d.fingerprint for n, d in found.items()}
    assert changed(before, after) == reaching(found, direct)


# A file that is in the keys of the nodes whose images or ground truth it is.
FILES = {
    "images/train/{train}.png": SPLIT_TRAIN,
    "images/val/{val}.png": ON_VAL | MAPS - {"fusion"},
    "teachers/a/train/{train}.png": {"infer[a]"},
    "teachers/b/val/{val}.png": {"infer[b]@val"},
    "labels/val/{val}.png": TRUTH,
    "labels/train/{train}.png": set(),
    "network/model.safetensors": N,
    "network/config.json": N,
    "experiment.yaml": set(),
}


@pytest.mark.parametrize("file", FILES)
def test_the_bytes_of_a_file_are_in_the_keys_of_its_nodes(world, file):
    before = prints(world)
    path = world.root / file.format(train=at(world, "train", 1), val=at(world, "val", 1))
    if file == "experiment.yaml":
        path.write_bytes(b"# a comment\n" + path.read_bytes())
    elif path.suffix == ".json":
        path.write_bytes(b" " + path.read_bytes())  # damaged, it would be refused
    else:
        flip(path)
    found = decided(world)
    after = {n: d.fingerprint for n, d in found.items()}
    assert changed(before, after) == reaching(found, FILES[file])


@pytest.mark.parametrize("more", [{"preprocessor_config.json": b"{}"}, {"README.md": b"weights"}])
def test_a_file_beside_the_weights_is_in_the_key_if_it_can_change_the_output(world, more):
    before = prints(world)
    for name, content in more.items():
        (world.root / "network" / name).write_bytes(content)
    found = changed(before, prints(world))
    assert found == set() if "README.md" in more else found >= N


TABLE = {
    "classes": [
        {"name": "road", "colour": [1, 0, 0], "label_id": 0},
        {"name": "car", "colour": [2, 0, 0], "label_id": 2},
        {"name": "sky", "colour": [3, 0, 0], "label_id": 3},
    ],
    "ignored_label_ids": [1],
    "subsets": {"first": ["road"]},
}


@pytest.mark.parametrize(
    ("change", "direct"),
    [
        # a comment or another order of keys
        ({}, set()),
        # no split and no teacher of this world is encoded in colours
        ({"classes.0.colour": [9, 9, 9]}, set()),
        # a teacher's and the split's values may be label ids
        ({"classes.1.label_id": 7}, {*A, *TRUTH}),
        ({"ignored_label_ids": [1, 77]}, {*A, *TRUTH}),
        ({"subsets.first": ["car"]}, {"evaluation@val"}),
        ({"classes.2.name": "person"}, ALL),
    ],
)
def test_the_class_table_is_in_the_keys_by_content(world, change, direct):
    table = world.root / "table.yaml"
    table.write_text(yaml.safe_dump(TABLE))
    patch(
        world.settings,
        {
            "classes.table": "table.yaml",
            "teachers.0.ids": "label_ids",
            "target.val.ids": "label_ids",
        },
    )
    world.write()
    before = prints(world, {"road": "a", "car": "b"})
    other = world.root / "renamed-table.yaml"
    text = yaml.safe_dump(patch(copy.deepcopy(TABLE), change), sort_keys=False)
    other.write_text("# another file\n" + text)
    world.settings["classes"]["table"] = other.name
    world.write()
    found = decided(world, {"road": "a", "car": "b"})
    after = {n: d.fingerprint for n, d in found.items()}
    expected = set(found) if direct is ALL else reaching(found, direct)
    assert changed(before, after) == expected


# --- keys of items ---------------------------------------------------------------------------

# Every kind of node with items, and its twin on the other split.
WITH_ITEMS = ("infer[a]", "infer[n]", "certainty[a]", "fusion", "infer[student]@val", "truth@val")
TWINS = {
    "infer[a]": "infer[a]@val",
    "infer[n]": "infer[n]@val",
    "fusion": "fusion[channel]@val",
}


def test_every_stage_with_items_is_tried(origin):
    stages = {d.node.stage for d in decided(origin).values() if d.work.items}
    assert stages == {"infer", "certainty", "fusion", "truth"}


@pytest.mark.parametrize("node_id", WITH_ITEMS)
def test_other_items_are_in_no_items_key(world, node_id):
    # a probe is another one after any change of its images: not the matter here
    before = keys_of(world, node_id, unnamed)
    assert len(set(before.values())) == len(before)
    split = "val" if node_id.endswith("@val") else "train"
    gone = at(world, split, 0)
    (world.root / f"images/{split}/{gone}.png").unlink()
    assert keys_of(world, node_id, unnamed) == {i: k for i, k in before.items() if i != gone}


@pytest.mark.parametrize("node_id", TWINS)
def test_neither_id_nor_split_is_in_an_items_key(world, node_id):
    source, copied = at(world, "train", 1), "another_name"
    for folder in ("images", "teachers/a", "teachers/b"):
        shutil.copy(world.root / folder / f"train/{source}.png", world.root / f"{folder}/val")
        (world.root / folder / f"val/{source}.png").rename(
            world.root / folder / f"val/{copied}.png"
        )
    shutil.copy(world.root / f"labels/train/{source}.png", world.root / f"labels/val/{copied}.png")

    def same_content(artifact):
        items = [
            {"id": r["id"], "content": "same" if r["id"] in (source, copied) else r["content"]}
            for r in artifact.items
        ]
        return with_items(artifact, items)

    one = keys_of(world, node_id, same_content)
    other = keys_of(world, TWINS[node_id], same_content)
    assert one[source] == other[copied]
    assert len({*one.values(), *other.values()}) == len(one) + len(other) - 1


@pytest.mark.parametrize("node_id", ["infer[a]", "certainty[a]"])
def test_the_name_of_a_teacher_is_in_no_items_key(world, node_id):
    def nameless(artifact):
        return with_items(artifact, [r | {"content": "same"} for r in artifact.items])

    before = keys_of(world, node_id, nameless)
    world.settings["teachers"][0]["name"] = "zz"
    world.write()
    after = keys_of(world, node_id.replace("[a]", "[zz]"), nameless, CHOSEN | {"road": "zz"})
    assert after == before


def values_in(value, path=()):
    """Yield the path of every leaf of a recipe, empty mappings and lists included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, dict | list) and part:
            yield from values_in(part, (*path, key))
        else:
            yield (*path, key)


def test_every_value_of_the_recipe_is_in_all_items_keys(origin):
    decisions = decided(origin)
    for node_id in WITH_ITEMS:
        decision = decisions[node_id]
        node, work = decision.node, decision.work
        inputs = {role: decisions[up].artifact for role, up in work.uses.items()}
        before = item_keys(node, work, inputs)
        paths = list(values_in(work.recipe.to_json()))
        assert paths
        for path in paths:
            recipe = copy.deepcopy(work.recipe.to_json())
            inner = recipe
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = "something else"
            after = item_keys(node, replace(work, recipe=Told(recipe)), inputs)
            assert after.keys() == before.keys()
            assert not set(after.values()) & set(before.values()), (node_id, path)
        after = item_keys(replace(node, version=node.version + 1), work, inputs)
        assert not set(after.values()) & set(before.values())
        after = item_keys(replace(node, id=NodeId("other")), work, inputs)
        assert not set(after.values()) & set(before.values())


@pytest.mark.parametrize(
    ("file", "touched"),
    [
        ("images/train/{}.png", {"infer[a]", "infer[n]", "certainty[a]", "fusion"}),
        ("teachers/a/train/{}.png", {"infer[a]"}),
        ("labels/train/{}.png", set()),
    ],
)
def test_a_files_bytes_are_in_its_own_items_key_alone(world, file, touched):
    image = at(world, "train", 1)

    # a probe is another one after any change of its images: not the matter here
    before = {n: keys_of(world, n, unnamed) for n in WITH_ITEMS[:4]}
    flip(world.root / file.format(image))
    for node_id, old in before.items():
        new = keys_of(world, node_id, unnamed)
        assert {i for i in old if new[i] != old[i]} == ({image} if node_id in touched else set())


@pytest.mark.parametrize("node_id", ["certainty[a]", "fusion"])
def test_what_an_upstream_item_holds_is_in_its_own_items_key_alone(origin, node_id):
    before = keys_of(origin, node_id)
    image = at(origin, "train", 1)

    def other_content(artifact):
        items = [r | {"content": "other"} if r["id"] == image else r for r in artifact.items]
        return with_items(artifact, items)

    after = keys_of(origin, node_id, other_content)
    assert {i for i in before if after[i] != before[i]} == {image}


@pytest.mark.parametrize("node_id", ["certainty[a]", "infer[student]@val"])
def test_an_upstream_that_is_read_whole_is_in_all_items_keys(origin, node_id):
    before = keys_of(origin, node_id, unnamed)

    def other_network(artifact):  # of the same key: made again, it came out different
        content = artifact.manifest.content if artifact.items else "another"
        return with_items(artifact, artifact.items, fingerprint="", content=content)

    after = keys_of(origin, node_id, other_network)
    assert not set(after.values()) & set(before.values())


texts = st.text(max_size=4)
contents = st.dictionaries(texts, texts, max_size=3)


@few
@given(
    recipe=st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)),
    items=st.dictionaries(texts, st.tuples(contents, texts), min_size=1, max_size=5),
    names=st.permutations(list("vwxyz")),
    whole=texts,
)
def test_an_items_key_is_what_it_is_made_from(recipe, items, names, whole):
    from ensdistill.pipeline.node import Item, Work

    def keys(given_items):
        work = Work(
            Told(recipe), items=[Item(i, content) for i, (content, _) in given_items.items()]
        )
        upstream = {"map": {i: held for i, (_, held) in given_items.items()}, "network": whole}
        return work.item_keys("stage", 1, upstream, {})

    found = keys(items)
    for item_id, made_from in items.items():
        assert keys({item_id: made_from})[item_id] == found[item_id]
    renamed = dict(zip(names, items.values(), strict=False))
    assert list(keys(renamed).values()) == list(found.values())
    # the same key if and only if made from the same
    for one in items:
        for other in items:
            assert (found[one] == found[other]) == (items[one] == items[other])


# --- end to end ------------------------------------------------------------------------------


def finished(world):
    """Run all and return the published artifacts by path relative to the workspace."""
    world.call("run")
    root = load(world.file).workspace.root
    return {str(a.path.relative_to(root)): a for a in world.artifacts()}


def content(artifacts):
    """Return everything of artifacts but how, when and by whom they were made."""
    told = {"called", "runtime", "provenance", "seconds", "finished", "written", "reused"}
    found = {}
    for name, artifact in artifacts.items():
        files = files_of(artifact.path)
        manifest = json.loads(files.pop("manifest.json"))
        for key in (*told, "check", "checks"):
            del manifest[key]
        found[name] = (files, manifest)
    return found


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("complete"), train=3, val=2, size=(24, 32))
    small = TINY | {"steps": 2, "crop": [16, 24]}
    world.settings |= {"probe": dict(small), "student": dict(small)}
    world.write()
    world.made = finished(world)
    return world


def test_the_order_of_teachers_changes_no_byte(complete):
    before = content(complete.made)
    complete.settings["teachers"].reverse()
    complete.settings["workspace"] = "other"
    complete.write()
    try:
        after = content(finished(complete))
    finally:
        complete.settings["teachers"].reverse()
        complete.settings["workspace"] = "work"
        complete.write()
    assert after.keys() == before.keys()
    for name, (files, manifest) in after.items():
        assert files == before[name][0], name
        assert manifest == before[name][1], name


def test_order_and_names_of_teachers_rerun_no_network(complete, tmp_path):
    world = copied(complete, tmp_path / "copy")
    world.settings["teachers"].reverse()
    world.write()
    assert {d["state"] for d in world.json("run", "--dry-run", "--no-evaluate")} == {"fresh"}
    # still the second by name: a vote's ties go by it
    world.settings["teachers"][0]["name"] = "bb"
    world.write()
    before = {a.path for a in world.artifacts()}
    world.call("run")
    made = {a.manifest.node for a in world.artifacts() if a.path not in before}
    assert made == {"policy", "policy[oracle]@val", "evaluation@val"}


def test_the_place_of_a_networks_folder_is_in_no_byte_of_a_student(origin, tmp_path):
    found = []
    for place in ("here", "there"):
        world = copied(origin, tmp_path / place)
        world.settings["teachers"].pop()
        world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "car": "b"}}
        world.settings["student"] |= {"network": {"hf": "network"}, "steps": 2, "crop": [32, 32]}
        world.write()
        world.call("train-student", "--upstream")
        found.append(content({"student": world.artifact("student")})["student"])
    (one, manifest), (other, other_manifest) = found
    assert one["network.json"] == other["network.json"]
    assert one == other
    assert manifest == other_manifest


def test_a_trained_students_folder_is_in_the_key_by_its_bytes(complete, tmp_path):
    world = copied(complete, tmp_path / "copy")
    student = world.root / "student"
    shutil.copytree(world.artifact("student").path, student)
    world.settings["teachers"].append({"name": "n", "network": {"student": "student"}})
    world.write()
    before = prints(world)
    # where and when it was trained does not matter
    (student / "manifest.json").unlink()
    assert prints(world) == before
    for file in ("model.safetensors", "network.json"):
        flip(student / file)
        assert changed(before, after := prints(world)) >= N
        assert not changed(before, after) & {*A, *B, "probe[a]"}
        flip(student / file)
    assert prints(world) == before


def test_a_trained_students_folder_that_is_not_what_was_written_is_refused(complete, tmp_path):
    world = copied(complete, tmp_path / "copy")
    student = world.artifact("student").path
    world.settings["teachers"].append(
        {"name": "n", "network": {"student": str(student.relative_to(world.root))}}
    )
    world.write()
    for file in ("model.safetensors", "network.json"):
        flip(student / file)
        with pytest.raises(CorruptError, match=file):
            prints(world)
        flip(student / file)


def test_another_order_of_classes_gives_the_same_keys_in_a_used_and_in_a_new_workspace(tmp_path):
    table = tmp_path / "table.yaml"
    classes = [{"name": n, "colour": [k, 1, 1]} for k, n in enumerate(["first", "second"])]
    table.write_text(yaml.safe_dump({"classes": classes}))
    world = World(tmp_path, train=2, val=1, size=(24, 32))
    world.teacher("a", lambda label: label % 2)
    world.teacher("b", lambda label: label // 2 % 2)
    world.settings["classes"] = {"table": "table.yaml"}
    world.settings["policy"] = {"strategy": "manual", "assign": {"first": "a", "second": "b"}}
    world.write()
    world.call("fuse", "--upstream")
    table.write_text(yaml.safe_dump({"classes": classes[::-1]}))
    world.call("fuse", "--upstream")
    used = world.artifact("fusion")
    world.settings["workspace"] = "new"
    world.write()
    world.call("fuse", "--upstream")
    new = world.artifact("fusion")
    assert files_of(used.path / "maps.zarr") == files_of(new.path / "maps.zarr")
    assert used.manifest.recipe == new.manifest.recipe
    assert used.manifest.fingerprint == new.manifest.fingerprint
