"""Make the golden experiment anew: `python tests/golden/make.py`. See README.md before you do."""

import importlib
import json
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ensdistill.data.classes import TABLES, parse_table
from ensdistill.data.store import LabelStore
from ensdistill.pipeline.atomic import json_bytes
from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.fingerprint import digest
from ensdistill.pipeline.manifest import MANIFEST
from ensdistill.pipeline.node import Job
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.runner import item_keys, run
from ensdistill.stages.demo.scene import draw_scene
from ensdistill.stages.demo.styles import TARGET
from ensdistill.stages.graph import VERSIONS, build, load
from ensdistill.stages.labelmaps import STORE, LabelMaps
from ensdistill.stages.nodes.noisy.plan import LEVELS
from ensdistill.stages.reading.results import results

GOLDEN = Path(__file__).parent
OPENS = ("student", "truth")
WRITTEN_BY_HAND = ("experiment.yaml", "classes.yaml")  # all else is made
LABEL_MODEL = {"fusion": {"method": "label-model"}}
WEIGHTS = {"student": {"pixel_weights": "posterior"}}
NOISE = ["own"]  # the teacher whose labels noise is put into
# Other settings, beside the golden ones, whose fingerprints and exact numbers are recorded.
VARIANTS = {
    "fallback": {"policy": {"min_support": 0.4}},
    "ties": {"policy": {"min_support": 1}},  # no probe is trusted, so names decide
    "manual": {"policy": {"strategy": "manual", "assign": {"road": "own", "sky": "segformer"}}},
    "majority": {"fusion": {"method": "majority"}},
    "label-model": LABEL_MODEL,
    "pixel-weights": WEIGHTS,
    "reliability": {"policy": {"strategy": "reliability"}},
    **{
        f"{conflict}-{holes}": {
            "fusion": {"method": "channel", "window": 3, "conflict": conflict, "holes": holes}
        }
        for conflict in ("window", "certainty", "ignore")
        for holes in ("window", "ignore")
    },
}
RTOL = 1e-4  # of what a network's arithmetic decides, on another processor
SCORED = ("miou", "label-model", "majority")  # of a row of the ablation
AGREEMENT = 0.99  # of the pixels of a network's label maps


class Silent:
    """Progress that nobody watches."""

    def start(self, total, done, unit):
        pass

    def advance(self, count=1, note=""):
        pass

    def message(self, text):
        pass


# --- inputs ----------------------------------------------------------------------------------


def draw(folder):
    """Draw images, ground truth and predictions, and make a small random SegFormer."""
    table = parse_table("classes", yaml.safe_load((folder / "classes.yaml").read_text()))
    wide = TABLES["cityscapes19"]
    to_label_id = np.full(256, 0, np.uint8)
    to_own = np.full(256, 255, np.uint8)
    for label_id, train_id in wide.label_ids.items():
        if train_id != 255:
            to_label_id[train_id] = label_id
            to_own[train_id] = table.label_ids[label_id]
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            shape = (24, 32) if k else (22, 31)
            image, label = draw_scene(0, 100 * len(split) + k, TARGET, shape)
            name = f"{split}_{k}"
            own = np.where(label == 10, 255, label)  # sees no sky
            mapped = np.roll(np.where(label == 2, 0, label), 2, axis=1)  # takes buildings for roads
            _save(folder / "images" / split / f"{name}.png", image)
            _save(folder / "teachers/own" / split / f"{name}.png", to_own[own])
            _save(folder / "teachers/mapped" / split / f"{name}.png", to_label_id[mapped])
            _save(folder / "teachers/own-confidence" / split / f"{name}.png", image[..., 0])
            if split == "val":
                _save(folder / "truth" / split / f"{name}.png", to_label_id[label])
    _segformer(folder / "segformer", len(table))


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def _segformer(folder, classes):
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=classes,
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        sr_ratios=[1] * 4,
        mlp_ratios=[2] * 4,
        decoder_hidden_size=8,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        initializer_range=0.3,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)


# --- the workspace ---------------------------------------------------------------------------


def make_workspace(folder):
    """Make what is missing, and keep nothing that tells where, when or by whom."""
    experiment = load(folder / "experiment.yaml")
    nodes = build(experiment, opens=OPENS)
    workspace = experiment.workspace
    made = [(nodes, [n.id for n in nodes])]
    made.append((_opened(folder, LABEL_MODEL)[1], ["label-model", "ablation@val"]))
    made.append((_opened(folder, WEIGHTS)[1], ["pixel-weights"]))
    made.append((_opened(folder, {})[1], ["noisy[own~20]"]))
    reached = set()
    for graph, targets in made:
        run(graph, workspace, targets, lambda _: Silent(), about=folder)
        decisions = plan(graph, workspace.scan())
        reached |= {decisions[node_id].artifact.path for node_id in targets}
    for artifact in workspace.scan().published.values():
        if artifact.path not in reached:  # of an earlier version
            shutil.rmtree(artifact.path)
            continue
        manifest = artifact.manifest
        neutral = replace(
            manifest,
            runtime={k: v for k, v in manifest.runtime.items() if k != "folder"},
            provenance={k: manifest.provenance[k] for k in ("python", "packages")},
            seconds=0.0,
            finished="2026-01-01T00:00:00+00:00",
        )
        (artifact.path / MANIFEST).write_bytes(neutral.to_bytes())
    forget(workspace)
    found = results(experiment, "val", plan(nodes, workspace.scan()))
    (workspace.root / "results.json").write_bytes(json_bytes(found, indent=1))


def forget(workspace):
    """Remove what tells of the machine."""
    for name in (".locks", ".pixels"):
        shutil.rmtree(workspace.root / name, ignore_errors=True)
    for name in ("files.json", "files-facts.json"):
        (workspace.root / name).unlink(missing_ok=True)


def fingerprints(folder):
    """Return the fingerprint of every node that is known, of the experiment and its variants."""
    found = {}
    for name, changes in {"golden": {}, **VARIANTS}.items():
        experiment, nodes = _opened(folder, changes)
        decisions = plan(nodes, experiment.workspace.scan())
        found[name] = {n: d.fingerprint for n, d in decisions.items() if d.fingerprint}
        if name != "golden":  # what is new in it
            found[name] = dict(found[name].items() - found["golden"].items())
    return {name: dict(sorted(prints.items())) for name, prints in found.items()}


def _opened(folder, changes):
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    file = folder / "variant.yaml"
    file.write_text(yaml.safe_dump(settings))
    experiment = load(file)
    file.unlink()
    return experiment, build(experiment, opens=OPENS, ablation=True, noise=NOISE)


# --- the numbers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rerun:
    """What a stage makes of published inputs."""

    result: dict
    records: dict
    path: Path

    def exact(self):
        """Return a digest of everything that was counted."""
        told = ("labels", "counts", "size")
        counted = {
            i: {"sha256": r["content"]} | {k: r.get(k) for k in told}
            for i, r in sorted(self.records.items())
        }
        return digest(_rounded([self.result, counted]))


def _rounded(value):
    """Return JSON whose floats have nine digits: quotients of integers, on every processor."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return f"{value:.9g}" if isinstance(value, float) else value


def rerun(folder, node_id, changes=()):
    """Run one node on the published artifacts above it, into a draft of its own."""
    experiment, nodes = _opened(folder, dict(changes))
    decisions = plan(nodes, experiment.workspace.scan())
    node, work = decisions[node_id].node, decisions[node_id].work
    assert work is not None, f"{node_id}: {decisions[node_id].reason}"
    inputs = {role: decisions[up].artifact for role, up in work.uses.items()}
    path = Path(tempfile.mkdtemp(dir=folder))
    made_from = {item.id: item.made_from for item in work.items}
    draft = Draft(path, item_keys(node, work, inputs), made_from)
    module, function = node.run.split(":")
    try:
        run_stage = getattr(importlib.import_module(module), function)
        result = run_stage(Job(node, work, draft, inputs, Silent())).to_json()
    finally:
        draft.close()
    return Rerun(result, draft.records(), path)


def measure(folder, stages=tuple(VERSIONS)):
    """Return the numbers of stages, each computed from the golden artifacts above it.

    Parameters
    ----------
    folder : Path
        A copy of the golden experiment that may be written to.
    stages : sequence of str
        Which ones.

    Returns
    -------
    dict
        Stage to its `version` and, by what was computed, `exact` digests, `near` numbers and the
        `agreement` of label maps with the golden ones.
    """
    return {stage: {"version": VERSIONS[stage], **NUMBERS[stage](folder)} for stage in stages}


def _infer_numbers(folder):
    labels = [f"infer[{t}]{at}" for t in ("own", "mapped") for at in ("", "@val")]
    networks = ("infer[segformer]", "infer[segformer]@val", "infer[student]@val")
    return {
        "exact": {n: rerun(folder, n).exact() for n in labels},
        "agreement": {n: _agreement(folder, n) for n in networks},
    }


def _noisy_numbers(folder):
    noisy = [f"noisy[own~{level}]" for level in LEVELS if level]
    return {"exact": {n: rerun(folder, n).exact() for n in noisy}}


def _agreement(folder, node_id):
    found = LabelStore(rerun(folder, node_id).path / STORE)
    experiment, nodes = _opened(folder, {})
    golden = LabelMaps(plan(nodes, experiment.workspace.scan())[node_id].artifact)
    same = pixels = 0
    for k, image_id in enumerate(golden):
        expected = golden.read(image_id)
        same += int((found.read(k, *expected.shape) == expected).sum())
        pixels += expected.size
    return same / pixels


def _training_numbers(folder, node_id):
    found = rerun(folder, node_id)
    lines = (found.path / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    numbers = {f"{k} at step {m['step']}": v for m in metrics for k, v in m.items() if k != "step"}
    return numbers | {"result": found.result["loss"]}


def _confidence_numbers(folder):
    mean = rerun(folder, "confidence[segformer]").result["mean"]
    return {
        "exact": {"confidence[own]": rerun(folder, "confidence[own]").exact()},
        "near": {"confidence[segformer]": {"mean": mean}},
    }


def _soft_numbers(folder):
    found = rerun(folder, "soft[segformer]")
    [image_id, *_] = found.records
    rows, columns = found.records[image_id]["size"]
    classes = found.result["classes"]
    soft = LabelStore(found.path / STORE).read(0, rows, columns)
    means = soft.reshape(len(classes), -1).mean(axis=1)
    return {"near": {"soft[segformer]": dict(zip(classes, means.tolist(), strict=True))}}


def _probe_numbers(folder):
    probes = [f"probe[{t}]" for t in ("own", "mapped", "segformer")]
    return {"near": {n: _training_numbers(folder, n) for n in probes}}


def _student_numbers(folder):
    return {"near": {"student": _training_numbers(folder, "student")}}


def _certainty_numbers(folder):
    near = {}
    for teacher in ("own", "mapped", "segformer"):
        result = rerun(folder, f"certainty[{teacher}]").result
        near[f"certainty[{teacher}]"] = {
            f"{kind} {c}": value
            for kind in ("certainty", "support", "labelled", "has_class")
            for c, value in result[kind].items()
        }
    return {"near": near}


def _policy_numbers(folder):
    variants = {"certainty": {}} | {
        k: VARIANTS[k] for k in ("fallback", "ties", "manual", "reliability")
    }
    found = {name: rerun(folder, "policy", v) for name, v in variants.items()}
    assert found["fallback"].result["fallback"], "no class falls back: raise min_support"
    exact = {name: f.exact() for name, f in found.items()}
    return {"exact": exact | {"oracle": rerun(folder, "policy[oracle]@val").exact()}}


def _label_model_numbers(folder):
    result = rerun(folder, "label-model", LABEL_MODEL).result
    near = {"weights": result["weights"]}
    for rows in ("prior", "reliability"):
        near |= {f"{rows} {k}": row for k, row in enumerate(result[rows])}
    return {"near": {n: {str(k): v for k, v in enumerate(vs)} for n, vs in near.items()}}


def _fusion_numbers(folder):
    rules = {k: v for k, v in VARIANTS.items() if "fusion" in v}
    exact = {
        name: rerun(folder, "fusion", v).exact() for name, v in {"golden": {}, **rules}.items()
    }
    for method in ("channel", "majority", "channel-oracle"):
        exact[f"{method}@val"] = rerun(folder, f"fusion[{method}]@val").exact()
    return {"exact": exact}


def _pixel_weights_numbers(folder):
    result = rerun(folder, "pixel-weights", WEIGHTS).result
    return {"near": {"mean": {"mean": result["mean"], **result["classes"]}}}


def _truth_numbers(folder):
    return {"exact": {"truth@val": rerun(folder, "truth@val").exact()}}


def _evaluation_numbers(folder):
    return {"exact": {"evaluation@val": rerun(folder, "evaluation@val").exact()}}


def _ablation_numbers(folder):
    result = rerun(folder, "ablation@val").result
    rows = [("teachers", result["teachers"])]
    rows += [(f"bad {r['bad']}", {k: r[k] for k in SCORED}) for r in result["robustness"]]
    for row in result["flexibility"]["compositions"]:
        rows.append((" ".join(row["teachers"]), {k: row[k] for k in SCORED if k != "miou"}))
    return {"near": dict(rows)}


NUMBERS = {
    "infer": _infer_numbers,
    "noisy": _noisy_numbers,
    "confidence": _confidence_numbers,
    "soft": _soft_numbers,
    "probe": _probe_numbers,
    "certainty": _certainty_numbers,
    "label-model": _label_model_numbers,
    "policy": _policy_numbers,
    "fusion": _fusion_numbers,
    "pixel-weights": _pixel_weights_numbers,
    "student": _student_numbers,
    "truth": _truth_numbers,
    "evaluation": _evaluation_numbers,
    "ablation": _ablation_numbers,
}


def require_unchanged(stage, recorded, found):
    """Refuse numbers of a stage that are not what was recorded at its VERSION.

    Raises
    ------
    AssertionError
        Which says what to do.
    """
    anew = "then record anew with `python tests/golden/make.py` (tests/golden/README.md)"
    assert recorded["version"] == found["version"], (
        f"the numbers of stage {stage} were recorded at version {recorded['version']} and "
        f"its STAGE is of version {found['version']}: if that is meant, {anew}"
    )
    different = [
        *_different("exact", recorded, found, lambda old, new: old == new),
        *_different("near", recorded, found, _near),
        *_different("agreement", recorded, found, lambda _, new: new >= AGREEMENT),
    ]
    assert not different, (
        f"the numbers of stage {stage} changed while its STAGE is still of version "
        f"{found['version']}: raise that, {anew}; or, if they were meant not to change, mend the "
        f"code. What changed: {'; '.join(different)}"
    )


def _different(kind, recorded, found, same):
    old, new = recorded.get(kind, {}), found.get(kind, {})
    for name in sorted({*old, *new}):
        if name not in old or name not in new or not same(old[name], new[name]):
            yield f"{name} ({kind}) was {old.get(name)}, is {new.get(name)}"


def _near(old, new):
    return old.keys() == new.keys() and all(_close(k, old[k], new[k]) for k in old)


def _close(name, old, new):
    if old is None or new is None or isinstance(old, bool):
        return old is new
    # a pixel at the border of two classes may fall to the other
    return abs(old - new) <= (10 if name.startswith("support") else RTOL * abs(old))


# --- all of it -------------------------------------------------------------------------------


def make(folder):
    """Make everything below a folder that holds the files written by hand.

    What its workspace holds is kept where it still is what would be made.
    """
    for name in ("images", "truth", "teachers", "segformer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    draw(folder)
    make_workspace(folder)
    record(folder)


def record(folder):
    """Record fingerprints, and the numbers that are not as they were recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "golden"
        shutil.copytree(folder, copied)
        found = {"fingerprints.json": fingerprints(copied), "numbers.json": measure(copied)}
    file = folder / "numbers.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    for stage in found["numbers.json"].keys() & recorded.keys():
        with suppress(AssertionError):
            require_unchanged(stage, recorded[stage], found["numbers.json"][stage])
            found["numbers.json"][stage] = recorded[stage]
    for name, content in found.items():
        (folder / name).write_bytes(json_bytes(content, indent=1))


if __name__ == "__main__":
    make(GOLDEN)
    size = sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file())
    sys.stdout.write(f"{size / 1000:.0f} kB\n")
