"""`ensdistill explain`, `status -v` and dry runs: why, what it would cost, how it was made."""

import json
import re

import numpy as np
import pytest

from ensdistill.pipeline import atomic


@pytest.fixture
def made(world):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.write()
    world.call("run")
    return world


def would(world, *arguments):
    return {row["node"]: row["would"] for row in world.json(*arguments)}


def test_a_changed_setting_is_named_with_old_and_new(made):
    made.settings["fusion"]["window"] = 3
    made.write()
    text = made.call("explain", "fusion")
    assert text.startswith("fusion is stale: recipe.window changed from 5 to 3\n")
    assert "  recipe.window: 5 -> 3\n" in text
    assert "compute 5 images" in text
    assert "to make it: ensdistill fuse" in text
    found = made.json("explain", "fusion")
    assert found["changes"] == [{"field": "recipe.window", "old": 5, "new": 3}]
    assert found["would"]["compute"] == 5
    assert found["below"] == ["student", "infer[student]@val", "evaluation@val"]
    assert found["needs"] == {"infer[a]": "fresh", "infer[b]": "fresh", "policy": "fresh"}


def test_changed_new_and_gone_images_are_named(made):
    made.save("teachers/a", "train", "train_000001_000019", np.full((48, 64), 2))
    for kind in ("images", "teachers/a", "teachers/b"):
        folder = made.root / kind / "train"
        (folder / "train_000004_000019.png").rename(folder / "train_000007_000019.png")
    found = made.json("explain", "infer[a]")
    assert found["items"] == {
        "new": ["train_000007_000019"],
        "gone": ["train_000004_000019"],
        "changed": {"train_000001_000019": ["prediction"]},
    }
    assert (found["would"]["compute"], found["would"]["reuse"]) == (1, 4)
    text = made.call("explain", "infer[a]")
    assert "1 images are new: train_000007_000019" in text
    assert "1 images changed: train_000001_000019 (prediction)" in text
    assert made.json("explain", "infer[b]")["would"] | {"bytes": 0} == {
        "compute": 0,
        "reuse": 5,
        "bytes": 0,
        "at_most": False,
    }
    report = made.json("infer-teacher")
    assert [(r["written"], r["reused"]) for r in report["ran"]] == [(1, 4), (0, 5)]


def test_a_changed_teacher_is_named(made):
    """Roles are numbers, so that no name enters a key."""
    made.save("teachers/b", "train", "train_000001_000019", np.full((48, 64), 1))
    text = made.call("explain", "fusion")
    assert "fusion is stale: inputs.teacher01 changed from " in text
    assert "\n  inputs.teacher01 (b): " in text
    assert made.json("explain", "fusion")["called"] == {"teacher00": "a", "teacher01": "b"}
    assert made.json("explain", "student")["called"] == {}


def test_the_teacher_that_had_a_role_is_named_too(made):
    made.settings["fusion"] = {"method": "majority"}
    del made.settings["policy"]
    made.write()
    made.call("fuse")
    made.settings["teachers"][0]["name"] = "z"
    made.write()
    text = made.call("explain", "fusion")
    assert "\n  inputs.teacher00 (a -> b): " in text
    assert "\n  inputs.teacher01 (b -> z): " in text
    made.settings["teachers"].pop(0)
    made.write()
    text = made.call("explain", "fusion")
    assert "\n  inputs.teacher01 (b): " in text and " -> nothing\n" in text


def test_a_fresh_node_says_how_it_was_made(made):
    text = made.call("explain", "fusion")
    assert text.startswith("fusion is fresh\n")
    assert "command: " in text


def test_an_unknown_node_is_refused_with_the_nearest(made):
    assert "did you mean 'infer[a]'?" in made.refuse("explain", "infer[aa]")
    assert made.refuse("explain", "infr[b]").endswith("did you mean 'infer[b]'?")


def test_a_dry_run_tells_what_is_computed_taken_over_and_written(made):
    image = np.zeros((48, 64, 3))
    made.save("images", "train", "train_000009_000019", image)
    for teacher in "ab":
        made.save(f"teachers/{teacher}", "train", "train_000009_000019", image[..., 0])
    found = would(made, "run", "--dry-run")
    assert found["infer[a]@val"] is None
    assert found["infer[a]"]["compute"] == 1
    assert found["infer[a]"]["reuse"] == 5
    assert found["infer[a]"]["bytes"] > 0
    assert found["fusion"]["at_most"]
    assert found["student"] == {"compute": 0, "reuse": 0, "at_most": True} | {
        "bytes": found["student"]["bytes"]
    }
    text = made.call("run", "--dry-run")
    assert re.search(r"\ninfer\[a\] +stale +1 +5 +~\S+ [kM]?B ", text)
    assert re.search(r"would compute at most \d+ images, take 10 from other artifacts", text)
    # what is taken over is linked
    mean = made.artifact("infer[a]@val").manifest
    assert found["infer[a]"]["bytes"] < 2 * mean.disk_bytes / mean.count
    made.call("run")
    assert set(would(made, "run", "--dry-run").values()) == {None}


def test_an_estimate_before_anything_was_made_is_of_the_right_size(world):
    found = would(world, "infer-teacher", "--dry-run")
    world.call("infer-teacher")
    for node in ("infer[a]", "infer[b]"):
        size = world.artifact(node).manifest.disk_bytes
        assert size / 3 < found[node]["bytes"] < size * 3


def test_a_dry_run_writes_nothing_but_the_cache_of_digests(world):
    for command in ("run", "infer-teacher", "select-policy", "fuse", "train-student", "evaluate"):
        world.call(command, "--dry-run")
    assert {p.name for p in (world.root / "work").iterdir()} == {"files.json"}


def test_status_v_prints_how_each_was_made(made):
    text = made.call("status", "-v")
    manifest = made.artifact("student").manifest
    for said in (f"finished {manifest.finished}", "peak memory", "python: 3.", "torch 2."):
        assert said in text
    rows = {row["node"]: row["made"] for row in made.json("status", "-v")}
    about = rows["student"]["provenance"]
    assert set(about) == {
        "begun",
        "command",
        "git",
        "host",
        "messages",
        "platform",
        "python",
        "packages",
        "peak_memory",
    }
    assert about["peak_memory"] > 10**7
    assert rows["student"]["seconds"] > 0
    assert "made" not in made.json("status")[0]


def test_the_state_of_the_users_repository_is_recorded(world, tmp_path):
    import subprocess

    def git(*arguments):
        me = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        done = subprocess.run(
            ["git", *me, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", "experiment.yaml")
    git("commit", "-qm", "x")
    world.call("infer-teacher", "a")
    commit = git("rev-parse", "HEAD")
    assert world.artifact("infer[a]").manifest.provenance["git"] == {
        "commit": commit,
        "changed": False,
    }
    world.settings["fusion"]["window"] = 3
    world.write()
    world.call("infer-teacher", "b")
    assert world.artifact("infer[b]").manifest.provenance["git"]["changed"]
    assert f"git: {commit} and changed files" in world.call("status", "-v")


def test_a_finished_workspace_may_be_read_only(made, monkeypatch):
    before = json.loads((made.root / "work" / "results.json").read_text())

    def refuse(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(atomic, "write_bytes", refuse)
    assert "nothing to do" in made.call("run")
    assert made.json("run") == before
    made.call("status", "--check")
    made.call("verify")


def test_what_changed_is_told_against_the_nearest_artifact(made):
    """A setting that was tried and taken back is nobody's change."""
    changed = {"window": 7, "holes": "ignore", "conflict": "ignore"}
    made.settings["fusion"] = {"method": "channel"} | changed
    made.write()
    made.call("fuse")
    made.settings["fusion"] = {"method": "channel", "window": 3}
    made.write()
    found = made.json("explain", "fusion")
    assert found["changes"] == [{"field": "recipe.window", "old": 5, "new": 3}]


def test_the_command_that_is_named_works(made):
    made.settings["fusion"]["window"] = 3
    made.write()
    other = made.root / "other.yaml"
    made.file.rename(other)
    made.file = other
    text = made.call("explain", "student")
    assert text.endswith(f"to make it: ensdistill train-student --upstream -c {other}\n")
    made.call("train-student", "--upstream")
    assert made.states()["student"] == "fresh"


def test_a_part_of_a_dry_run_is_a_part(world):
    found = would(world, "infer-teacher", "a", "--part", "1/2", "--dry-run")
    assert found["infer[a]"]["compute"] == 3


def test_data_that_are_gone_are_not_fresh(made):
    (made.artifact("fusion").path / "items.jsonl").unlink()
    row = {d["node"]: d for d in made.json("status")}["fusion"]
    assert row["state"] == "corrupt"
    assert "items.jsonl: is gone; `ensdistill verify --repair`" in row["reason"]
    assert "to make it good: ensdistill verify --repair" in made.call("explain", "fusion")
    made.call("verify", "--repair")
    made.call("status", "--check")


def test_what_is_no_workspace_is_not_an_empty_one(world):
    (world.root / "work").write_text("a file")
    for command in ("status", "verify", "gc", "fuse"):
        assert "is a file; expected a folder" in world.refuse(command)
    (world.root / "work").unlink()
    for command in ("verify", "gc"):
        assert "there is no such workspace yet" in world.refuse(command)
