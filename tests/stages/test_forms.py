"""What results and records are by type: real ones fit, and whatever is changed in them is told."""

import copy
import hashlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import forge

from ensdistill.pipeline.errors import CorruptError
from ensdistill.pipeline.journal import read_journal, seal
from ensdistill.pipeline.manifest import Artifact, SpoiltManifestError, read_manifest
from ensdistill.pipeline.verify import damages
from ensdistill.stages.graph import FORMS, VERSIONS

WORKSPACE = Path(__file__).parents[1] / "golden" / "workspace"


@pytest.fixture(scope="module")
def artifacts():
    """One artifact of each stage, as recorded in the golden workspace."""
    found = {}
    for file in sorted(WORKSPACE.glob("*/*/manifest.json")):
        manifest = read_manifest(file.parent, FORMS)
        found[manifest.stage] = Artifact(file.parent, manifest, FORMS[manifest.stage])
    return found


def told(artifact, result):
    """Return what is said of another result of an artifact."""
    return artifact.form.result(replace(artifact.manifest, result=result))


def test_every_stage_has_its_form(artifacts):
    assert set(FORMS) == set(VERSIONS)
    assert {stage: form.version for stage, form in FORMS.items()} == dict(VERSIONS)
    for stage, artifact in artifacts.items():
        assert FORMS[stage].result(artifact.manifest) is None
        for record in artifact.items:
            assert FORMS[stage].record(record) is None


NEEDED = {
    "infer": ["images", "labels"],
    "noisy": ["images", "labels", "changed"],
    "truth": ["images", "labels"],
    "fusion": ["images", "labels", "coverage"],
    "confidence": ["images", "mean"],
    "soft": ["images", "mean"],
    "pixel-weights": ["images", "mean", "classes"],
    "certainty": ["certainty", "support", "labelled", "has_class"],
    "label-model": ["weights", "prior", "confusions", "reliability", "rounds", "converged"],
    "policy": ["strategy", "teacher", "certainty", "fallback"],
    "probe": ["steps", "loss"],
    "student": ["steps", "loss"],
    "evaluation": ["classes", "methods"],
    "ablation": ["images", "teachers", "robustness", "flexibility"],
}


def test_of_every_stage_it_is_said_what_is_read():
    assert set(NEEDED) == set(VERSIONS)


@pytest.mark.parametrize(("stage", "field"), [(s, f) for s, of in NEEDED.items() for f in of])
def test_a_field_that_is_read_is_there_and_of_its_type(artifacts, stage, field):
    result = artifacts[stage].manifest.result
    without = {name: value for name, value in result.items() if name != field}
    assert told(artifacts[stage], without) == f"the key {field!r} is missing"
    for wrong in ("x" if field != "strategy" else 3, ["x", None], {"x": ["y"]}, float("nan")):
        why = told(artifacts[stage], {**result, field: wrong})
        assert why is not None and why.removeprefix("the key '").startswith(field), wrong
        assert len(why) < 300


def test_values_within_a_field_are_looked_at(artifacts):
    for stage, at, wrong in (
        ("infer", ("labels", "road"), "12"),
        ("infer", ("labels", "road"), True),
        ("policy", ("teacher", "road"), ["own"]),
        ("certainty", ("certainty", "road"), "0.5"),
        ("label-model", ("confusions", 0, 0), 0.5),
        ("label-model", ("confusions", 0, 0, 0), None),
        ("label-model", ("confusions", 0), [[0.5], [0.5, 0.5]]),
        ("evaluation", ("methods", 0), None),
        ("evaluation", ("methods", 0, "iou"), []),
        ("ablation", ("flexibility", "compositions", 0, "best"), 3),
    ):
        result = copy.deepcopy(artifacts[stage].manifest.result)
        *way, last = at
        holder = result
        for key in way:
            holder = holder[key]
        holder[last] = wrong
        why = told(artifacts[stage], result)
        assert (why.startswith(str(at[0])) and "expected" in why) or "rows of one" in why, at


def of_each_class(value, classes):
    """Yield ways to the parts of a result that are of each class."""
    if isinstance(value, dict):
        if value.keys() == set(classes):
            yield ()
        for key, part in value.items():
            yield from ((key, *way) for way in of_each_class(part, classes))
    if isinstance(value, list):
        for number, part in enumerate(value[:1]):
            yield from ((number, *way) for way in of_each_class(part, classes))


OF_EACH = [
    "infer",
    "noisy",
    "truth",
    "fusion",
    "policy",
    "certainty",
    "evaluation",
    "pixel-weights",
]


@pytest.mark.parametrize("stage", OF_EACH)
@pytest.mark.parametrize("change", ["one is gone", "one is new", "one is another"])
def test_what_is_of_each_class_is_so(artifacts, stage, change):
    classes = artifacts["infer"].manifest.recipe["classes"]
    ways = list(of_each_class(artifacts[stage].manifest.result, classes))
    assert ways
    for way in ways:
        result = copy.deepcopy(artifacts[stage].manifest.result)
        holder = result
        for key in way:
            holder = holder[key]
        some = holder["sky"]
        if change != "one is new":
            del holder["sky"]
        if change != "one is gone":
            holder["heaven"] = some
        assert "class" in told(artifacts[stage], result), way


def test_a_certainty_counts_no_labels_that_its_teacher_cannot_give(artifacts):
    artifact = artifacts["certainty"]
    whole, recipe = artifact.manifest.result, artifact.manifest.recipe
    assert whole["labelled"]["road"] and recipe["reached"][0] == "road"
    lacking = {**whole, "has_class": {**whole["has_class"], "road": False}}
    made = replace(artifact.manifest, recipe={**recipe, "reached": recipe["reached"][1:]})
    why = told(replace(artifact, manifest=made), lacking)
    assert why == "labelled: its teacher has no class road"


def test_a_certainty_is_of_the_classes_that_its_teacher_has(artifacts):
    whole = artifacts["certainty"].manifest.result
    gone = {field: {c: v for c, v in of.items() if c != "sky"} for field, of in whole.items()}
    flipped = {**whole, "has_class": {c: not has for c, has in whole["has_class"].items()}}
    for result in (gone, flipped):
        why = told(artifacts["certainty"], result)
        assert why == "has_class: expected the classes that its teacher has"


def test_a_policy_is_of_the_teachers_that_it_was_chosen_from(artifacts):
    result = copy.deepcopy(artifacts["policy"].manifest.result)
    result["teacher"]["sky"] = "nobody"
    assert told(artifacts["policy"], result) == "teacher: nobody is none that it was made from"
    result = copy.deepcopy(artifacts["policy"].manifest.result)
    result["fallback"] = ["heaven"]
    assert told(artifacts["policy"], result) == "fallback: heaven is no class"


@pytest.mark.parametrize("stage", ["infer", "policy"])
def test_what_is_of_many_classes_is_soon_looked_at(artifacts, stage):
    names = [f"class {k}" for k in range(20_000)]
    manifest, of_each = artifacts[stage].manifest, dict.fromkeys(names, 1)
    if stage == "infer":
        recipe, result = {"classes": names}, {"labels": of_each}
    else:
        recipe = {"assign": {c: f"teacher {c}" for c in names}}
        result = {"teacher": recipe["assign"], "certainty": of_each, "fallback": names}
    forged = replace(manifest, recipe=recipe, result={**manifest.result, **result})
    begin = time.process_time()
    assert artifacts[stage].form.result(forged) is None
    assert time.process_time() - begin < 1  # and not the square of their number


@pytest.mark.parametrize("field", ["weights", "prior", "confusions", "reliability"])
def test_a_label_model_is_of_its_teachers_and_classes(artifacts, field):
    whole = artifacts["label-model"].manifest.result
    fewer = [whole[field][1:]] if field != "prior" else []
    if field != "weights":
        fewer.append([of[1:] for of in whole[field]])
    if field == "confusions":
        fewer.append([[row[1:] for row in of] for of in whole[field]])
    for found in fewer:
        why = told(artifacts["label-model"], {**whole, field: found})
        assert why == "expected a model of 3 teachers and 5 classes"


@pytest.mark.parametrize(
    "change",
    [
        lambda methods: methods[1]["confmat"].pop(),
        lambda methods: [row.pop() for row in methods[1]["confmat"]],
        lambda methods: methods.clear(),
        lambda methods: methods.append(methods[0]),
        lambda methods: methods[0].update(kind="guess"),
        lambda methods: methods[0].update(name="nobody"),
    ],
)
def test_an_evaluation_is_of_its_methods_and_classes(artifacts, change):
    result = copy.deepcopy(artifacts["evaluation"].manifest.result)
    change(result["methods"])
    assert "methods" in told(artifacts["evaluation"], result)


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("size", None),
        ("size", [0, 4]),
        ("size", [22]),
        ("size", [22, 31, 3]),
        ("size", ["22", "31"]),
        ("labels", None),
        ("labels", [-1]),
        ("labels", [1.5]),
        ("labels", "12"),
    ],
)
def test_a_record_of_other_types_is_damage(artifacts, tmp_path, field, new):
    made = artifacts["infer"]
    folder = tmp_path / made.path.name
    shutil.copytree(made.path, folder)
    records = read_journal(folder / "items.jsonl")
    records[1][field] = new
    for record in records:
        record.pop("check", None)
    index = b"".join(seal(record) for record in records)
    (folder / "items.jsonl").write_bytes(index)
    files = made.manifest.files | {"items.jsonl": [len(index), hashlib.sha256(index).hexdigest()]}
    forge(folder, files=files)
    found = damages(folder, forms=FORMS)
    assert [(d.file, d.item) for d in found] == [("items.jsonl", records[1]["id"])]
    assert field in found[0].reason
    with pytest.raises(CorruptError, match=f"line 2: {field}"):
        list(Artifact(folder, read_manifest(folder), FORMS["infer"]).items)


def test_a_result_of_another_version_is_not_looked_at(artifacts, tmp_path):
    folder = tmp_path / artifacts["policy"].path.name
    shutil.copytree(artifacts["policy"].path, folder)
    forge(folder, result={"old": "form"}, version=0)
    assert read_manifest(folder, FORMS).result == {"old": "form"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (lambda m: {"recipe": m.recipe | {"source": "network"}}, "fingerprint"),
        (lambda m: {"inputs": {"labels": "0" * 64}}, "fingerprint"),
        (lambda m: {"stage": "truth"}, "fingerprint"),
        (lambda m: {"files": {k: v for k, v in m.files.items() if k != "items.jsonl"}}, "files"),
    ],
    ids=["recipe", "inputs", "stage", "no index"],
)
def test_a_manifest_whose_fields_do_not_go_together_is_corrupt(artifacts, tmp_path, changes, field):
    folder = tmp_path / artifacts["infer"].path.name
    shutil.copytree(artifacts["infer"].path, folder)
    forge(folder, **changes(read_manifest(folder)))
    with pytest.raises(SpoiltManifestError) as caught:
        read_manifest(folder, FORMS)
    assert caught.value.spoilt == [field]
    assert [d.field for d in damages(folder, forms=FORMS)] == [field]


@pytest.mark.parametrize("kept", [(0,), (0, 0)], ids=["one less", "one twice"])
def test_an_index_of_another_number_of_items_is_damage(artifacts, tmp_path, kept):
    made = artifacts["infer"]
    folder = tmp_path / made.path.name
    shutil.copytree(made.path, folder)
    lines = (folder / "items.jsonl").read_bytes().splitlines(keepends=True)
    index = b"".join(lines[k] for k in kept)
    (folder / "items.jsonl").write_bytes(index)
    entry = [len(index), hashlib.sha256(index).hexdigest()]
    forge(folder, files=made.manifest.files | {"items.jsonl": entry})
    assert [d.reason for d in damages(folder, forms=FORMS)] == ["holds 1 items, expected 2"]
    with pytest.raises(CorruptError, match="does not hold 2 items"):
        list(Artifact(folder, read_manifest(folder, FORMS), FORMS["infer"]).items)
