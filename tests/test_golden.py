"""A finished workspace of an earlier day stays finished."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from golden import make as golden

from ensdistill.data.store import checksum
from ensdistill.pipeline.plan import State, plan
from ensdistill.pipeline.verify import damages
from ensdistill.stages.graph import VERSIONS, build, load
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.reading.results import results


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden experiment, somewhere else."""
    copied = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", "*.py", "*.md")
    shutil.copytree(golden.GOLDEN, copied, ignore=left_out)
    return copied


def opened(folder):
    experiment = load(folder / "experiment.yaml")
    nodes = build(experiment, opens=golden.OPENS)
    return experiment, nodes, plan(nodes, experiment.workspace.scan())


def recorded(name):
    return json.loads((golden.GOLDEN / name).read_text())


def test_every_node_is_fresh(folder):
    _, _, decisions = opened(folder)
    stale = {n: (d.state, d.reason) for n, d in decisions.items() if d.state is not State.FRESH}
    assert not stale, "users would have to run this again: see tests/golden/README.md"


def every_graph(folder):
    """Return the nodes of the golden experiment and of those with a label model and weights."""
    variants = ({}, golden.LABEL_MODEL, golden.WEIGHTS)
    return [golden._opened(folder, changes)[1] for changes in variants]


def test_every_stage_occurs(folder):
    stages = {n.stage for nodes in every_graph(folder) for n in nodes}
    assert stages == set(VERSIONS)
    assert {p.name for p in (folder / "workspace").iterdir() if p.is_dir()} == set(VERSIONS)


def test_nothing_lies_there_that_no_node_made(folder):
    workspace = load(folder / "experiment.yaml").workspace
    plans = [plan(nodes, workspace.scan()) for nodes in every_graph(folder)]
    found = {d.artifact.path for p in plans for d in p.values() if d.artifact is not None}
    assert set(workspace.folders()) == found


def test_every_fingerprint_is_the_recorded_one(folder):
    found, expected = golden.fingerprints(folder), recorded("fingerprints.json")
    assert found["golden"] == expected["golden"], "see tests/golden/README.md"
    assert found == expected, "see tests/golden/README.md"


def test_the_fingerprints_of_variants_are_recorded_too(folder):
    expected = recorded("fingerprints.json")
    assert expected.keys() == {"golden", *golden.VARIANTS}
    # each has nodes of its own, and no two variants the same fusion
    fused = [prints["fusion"] for prints in expected.values() if "fusion" in prints]
    assert len(set(fused)) == len(fused) > 7
    assert "policy" in expected["fallback"] and "policy" in expected["manual"]


def test_no_damage_is_found(folder):
    _, _, decisions = opened(folder)
    for artifact in (d.artifact for d in decisions.values()):
        assert damages(artifact.path) == []


def test_label_maps_read_back_as_recorded(folder):
    _, _, decisions = opened(folder)
    read = 0
    for decision in decisions.values():
        if decision.node.stage in ("infer", "fusion"):
            maps = LabelMaps(decision.artifact)
            for image_id in maps:
                record = maps.records[image_id]
                labels = maps.read(image_id)
                assert checksum(labels) == record["content"]
                assert np.bincount(labels.ravel(), minlength=256)[:5].tolist() == record["labels"]
                read += 1
            counts = decision.artifact.manifest.result["labels"]
            assert list(counts.values()) == maps.shares().tolist()
    assert read == 3 * 4 + 2 * 7


def test_a_label_map_is_its_teachers_prediction(folder):
    from PIL import Image

    _, _, decisions = opened(folder)
    maps = LabelMaps(decisions["infer[own]"].artifact)
    for image_id in maps:
        expected = np.asarray(Image.open(folder / f"teachers/own/train/{image_id}.png"))
        assert np.array_equal(maps.read(image_id), expected)


def test_policy_and_results_read_back_as_recorded(folder):
    experiment, _, decisions = opened(folder)
    expected = json.loads((folder / "workspace/results.json").read_text())
    assert results(experiment, "val", decisions) == expected
    assert expected["policy"]["sky"] == "segformer"
    assert {m["name"] for m in expected["methods"]} == {
        *("own", "mapped", "segformer", "majority", "channel", "channel-oracle", "student")
    }


def test_the_commands_find_nothing_to_do(folder):
    """What a user sees: `run` and `verify` in a workspace that was moved here."""
    from click.testing import CliRunner

    from ensdistill.cli.__main__ import cli

    def call(*arguments):
        done = CliRunner().invoke(cli, [*arguments, "-c", str(folder / "experiment.yaml")])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    before = {p: p.read_bytes() for p in (folder / "workspace").rglob("*") if p.is_file()}
    assert "nothing to do" in call("run")
    call("status", "--check")
    artifacts = [*(folder / "workspace").glob("*/*/manifest.json")]
    assert f"no damage in any of {len(artifacts)} artifacts" in call("verify")
    assert {p: p.read_bytes() for p in before} == before


def test_nothing_here_names_a_machine_a_place_or_a_time():
    for path in golden.GOLDEN.rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        assert manifest["provenance"].keys() == {"python", "packages"}
        assert "folder" not in manifest["runtime"]
        assert manifest["seconds"] == 0 and manifest["finished"].startswith("2026-01-01")
    root = str(golden.GOLDEN.parent.parent).encode()
    for path in golden.GOLDEN.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            content = path.read_bytes()
            assert not any(text in content for text in (root, b"/home/", b"_name_or_path")), path


def test_it_is_small_and_git_keeps_every_byte(repository):
    files = [p for p in golden.GOLDEN.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) < 600_000
    for question, expected in (
        (["check-ignore", "--no-index", *map(str, files)], ""),
        (["check-attr", "text", "--", *map(str, files)], None),
    ):
        done = subprocess.run(
            ["git", "-C", str(repository), *question], capture_output=True, text=True, check=False
        )
        lines = done.stdout.splitlines()
        if expected is None:
            assert len(lines) == len(files)
            assert all(line.endswith("text: unset") for line in lines)
        else:
            assert not lines


@pytest.mark.slow
def test_the_script_makes_a_finished_experiment(tmp_path):
    for name in golden.WRITTEN_BY_HAND:
        shutil.copy(golden.GOLDEN / name, tmp_path)
    golden.make(tmp_path)
    assert {d.state for d in opened(tmp_path)[2].values()} == {State.FRESH}
    made = {p.relative_to(tmp_path).parts[0] for p in tmp_path.iterdir()}
    kept = {p.name for p in golden.GOLDEN.iterdir()} - {"make.py", "README.md", "__pycache__"}
    assert made == kept
    assert {p.name for p in (tmp_path / "workspace").iterdir()} == {*VERSIONS, "results.json"}


def test_the_golden_experiment_is_of_version_1():
    settings = yaml.safe_load((golden.GOLDEN / "experiment.yaml").read_text())
    assert settings["version"] == 1
