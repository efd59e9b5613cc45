"""The run for a GPU, in small on the CPU: nothing of it may fail for the first time there."""

import json
import subprocess
import sys

import pytest


def smoke(repository, file, *more):
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--smoke", "--json", str(file), *more],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


@pytest.mark.slow
def test_every_part_is_done_once(repository, tmp_path):
    file = tmp_path / "gpu.json"
    text, found = smoke(repository, file)
    parts = found["parts"]
    assert list(parts) and all(part["state"] == "done" for part in parts.values())
    assert {"tests", "demo", "scenes", "teachers", "training", "probes"} == parts.keys()
    figures = [figure for part in parts.values() for figure in part["figures"]]
    assert all(figure["value"] is not None for figure in figures), text
    assert found["machine"]["torch"] and found["machine"]["packages"]["numpy"]
    text, again = smoke(repository, file)
    assert again == found and "---" not in text
    del found["parts"]["tests"]
    file.write_text(json.dumps(found))
    text, again = smoke(repository, file)
    assert text.count("--- ") == 2 and again["parts"]["tests"]["state"] == "done"


@pytest.mark.slow
def test_what_fails_or_has_no_time_stops_no_other_part(repository, tmp_path):
    from gpu.__main__ import Part, Results, run

    class Asked:
        smoke = True

    results = Results(tmp_path / "gpu.json")
    (tmp_path / "demo").mkdir()  # where the part wants to make a folder of its own
    for part, until in ((Part("demo", 60, ""), 1e9), (Part("tests", 60, ""), 0)):
        run(part, results, Asked, tmp_path, until)
    states = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert states["demo"]["state"] == "ended with 1"
    assert "FileExistsError" in states["demo"]["error"]
    assert states["tests"]["state"] == "no time left"
