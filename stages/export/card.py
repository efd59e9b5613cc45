"""The card of an exported student: how it was made, and how it is to be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensdistill.pipeline.escaping import in_a_cell
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.plan import Decision, State
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import Teacher
from ensdistill.stages.experiment.writing import from_settings
from ensdistill.stages.export.guides import classes_table
from ensdistill.stages.fusions import method_called
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.nodes.evaluation.plan import Evaluated, evaluation_id
from ensdistill.stages.nodes.learning import Trained
from ensdistill.stages.nodes.policy.plan import Policy, policy_id

_HEAD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [semantic-segmentation, knowledge-distillation, unsupervised-domain-adaptation]
---

"""
_NOT_TRAINING = ("classes", "watch", "network", "preprocess")  # of a recipe; said elsewhere


def card(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    artifact: Artifact,
    description: Mapping[str, Any],
    form: str,
    name: str,
) -> str:
    """Return the text about a student that is fresh in the plan.

    `description` is its ``network.json``, `form` is ``hf``, ``onnx`` or ``state-dict``, and `name`
    that of the folder or file.
    """
    recipe = artifact.manifest.recipe
    training = {k: v for k, v in recipe.items() if k not in _NOT_TRAINING}
    parts = [
        "# Semantic segmentation student\n",
        "Distilled by `ensdistill` from the labels of its teachers, after Chao, Cheng, Lee, "
        '"Rethinking Ensemble-Distillation for Semantic Segmentation Based Unsupervised Domain '
        'Adaption" (CVPR Workshops 2021).\n',
        _facts(experiment, decisions, artifact, description),
        "## Training\n",
        _block("yaml", from_settings(training)),
        f"## Classes\n\n{classes_table(experiment.classes)}",
        "## Input and output\n",
        _input(description),
        _usage(description, form, name),
    ]
    if scores := _scores(experiment, decisions):
        parts += ["## Scores\n", scores]
    return (_HEAD if form == "hf" else "") + "\n".join(parts)


def _facts(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    artifact: Artifact,
    description: Mapping[str, Any],
) -> str:
    """Return what it was made from and with, as a table."""
    made = artifact.manifest
    fusion = decisions["fusion"].artifact
    assert fusion is not None  # the student is fresh
    items = fusion.manifest.recipe["items"]
    packages = made.provenance.get("packages") or {}
    versions = ", ".join(f"{k} {v}" for k, v in packages.items() if v is not None)
    rows = {
        "experiment": f"`{experiment.path.name}`",
        "teachers": "; ".join(map(_teacher, experiment.teachers)),
        "fusion": _fusion(experiment, decisions),
        "network": _network(description["architecture"]),
        "images": f"{items['count']}, digest of the list `{items['sha256']}`",
        "label maps trained on": f"digest `{fusion.manifest.content}`",
        "ground truth of the target": _truth(experiment, Trained.told_by(artifact)),
        "made with": versions or "not recorded",
        "fingerprint": f"`{made.fingerprint}`",
        "digest": f"`{made.content}`",
    }
    return "| | |\n| --- | --- |\n" + "".join(
        f"| {k} | {in_a_cell(v)} |\n" for k, v in rows.items()
    )


def _teacher(teacher: Teacher) -> str:
    kind = "labels in files" if teacher.network is None else f"network, {teacher.network.kind}"
    return f"{teacher.name} ({kind})"


def _fusion(experiment: Experiment, decisions: Mapping[str, Decision]) -> str:
    settings = experiment.config.fusion
    method = method_called(settings.method)
    if method.policy is None:
        return method.told
    policy = decisions[policy_id()].artifact
    assert policy is not None
    chosen = Policy.told_by(policy).teacher
    classes = "; ".join(f"{c}: {t or 'none'}" for c, t in chosen.items())
    return (
        f"{method.told}, window {settings.window}, conflicts: {settings.conflict}, holes: "
        f"{settings.holes}. Policy by {experiment.config.policy.strategy}: {classes}"
    )


def _network(architecture: Any) -> str:
    if isinstance(architecture, str):
        return architecture
    if "factory" in architecture:
        return f"the experiment's own code, `{architecture['factory']}`"
    return f"{architecture['hf_config']['model_type']} of transformers"


def _truth(experiment: Experiment, trained: Trained) -> str:
    watch = experiment.config.student.watch
    if watch is None:
        return "none was used"
    if trained.watched is not None and trained.watched.kept == "best":
        return f"**the checkpoint that scored best on the labelled split {watch} was kept**"
    return f"the labelled split {watch} was watched; the last step was kept whatever it scored"


def _input(description: Mapping[str, Any]) -> str:
    seen = Preprocessing.from_settings(description["preprocessing"])
    size = "as it is" if seen.size is None else f"resized to {seen.size[0]}x{seen.size[1]} pixels"
    if seen.size is not None:
        size += f" (height x width, {seen.interpolation})"
    divisor = description.get("divisor", 1)
    padded = (
        f", padded at the bottom and right with zeros to multiples of {divisor} pixels after that"
        if divisor > 1
        else ""
    )
    return (
        f"The image {size}, {seen.channels.upper()}, `(pixel / {seen.scale:g} - mean) / std` with "
        f"mean {list(seen.mean)} and std {list(seen.std)}{padded}. Logits of the classes come out "
        "at the network's own stride; resize them to the image (bilinear, align_corners="
        f"{seen.align_corners}), then take the argmax.\n"
    )


def _usage(description: Mapping[str, Any], form: str, name: str) -> str:
    if form == "hf":
        return _block(
            "python",
            "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation\n\n"
            f"processor = AutoImageProcessor.from_pretrained({name!r})\n"
            f"model = AutoModelForSemanticSegmentation.from_pretrained({name!r})\n"
            'logits = model(**processor(image, return_tensors="pt")).logits\n',
        ) + _as_teacher({"hf": name}, description, form)
    if form == "onnx":
        return _block(
            "python",
            "import onnxruntime\n\n"
            f"session = onnxruntime.InferenceSession({name!r})\n"
            '(logits,) = session.run(["logits"], {"image": images})  # (N, 3, H, W) float32\n',
        ) + _as_teacher({"onnx": name}, description, form)
    about = name.removesuffix(".safetensors") + ".json"
    return (
        "The tensors have the names that the network's own code gives them; "
        f"`{about}` says how it is built:\n\n"
        + _block(
            "python",
            "from safetensors.torch import load_file\n\n"
            f"network.load_state_dict(load_file({name!r}))\n",
        )
    )


def _as_teacher(network: dict[str, Any], description: Mapping[str, Any], form: str) -> str:
    """Return the entry of an experiment file whose teacher it is."""
    if description.get("divisor", 1) > 1:
        network["divisor"] = description["divisor"]
    entry: dict[str, Any] = {"name": "student-before", "network": network}
    if form == "onnx":  # a folder of transformers says it itself
        seen = description["preprocessing"]
        entry["preprocess"] = {**seen, "size": seen["size"] or "image"}
    return "\nAs a teacher of another experiment:\n\n" + _block("yaml", from_settings([entry]))


def _scores(experiment: Experiment, decisions: Mapping[str, Decision]) -> str:
    """Return the scores of this very student on every split that was evaluated."""
    columns = {}
    for split in experiment.labelled:
        decision = decisions[evaluation_id(split)]
        if decision.state is State.FRESH and decision.artifact is not None:
            methods = Evaluated.told_by(decision.artifact).methods
            (columns[split],) = [m for m in methods if m.kind == "student"]
    if not columns:
        return ""
    lines = [
        "| IoU in percent | " + " | ".join(f"split {split}" for split in columns) + " |",
        "| --- |" + " --- |" * len(columns),
        *(
            f"| {in_a_cell(c)} | " + " | ".join(_percent(m.iou[c]) for m in columns.values()) + " |"
            for c in experiment.classes.classes
        ),
        "| **mean** | " + " | ".join(_percent(m.miou) for m in columns.values()) + " |",
    ]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{value:.1f}"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}```\n"
