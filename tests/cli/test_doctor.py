"""`ensdistill doctor`, as it is run."""

import json
import os
import subprocess
import sys

import pytest

ERROR = "operator torchvision::nms does not exist"


def doctor(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ensdistill.cli", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def broken(tmp_path):
    """A folder for the path whose `torchvision` does not import, as the wrong wheel's does not."""
    package = tmp_path / "packages" / "torchvision"
    package.mkdir(parents=True)
    text = f"print('a message')\nraise RuntimeError({ERROR!r})\n"
    (package / "__init__.py").write_text(text)
    return package.parent


def test_a_broken_torchvision_is_told_and_breaks_nothing(broken, world):
    done = doctor(PYTHONPATH=str(broken))
    assert done.returncode == 1
    assert done.stderr == ""
    (line,) = [row for row in done.stdout.splitlines() if ERROR in row]
    assert line.split()[:2] == ["problem", "torchvision"]
    assert "pip uninstall torchvision" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 problem")


def test_what_is_found_as_json(world):
    import torch

    done = doctor("--json", "-c", world.file)
    found = json.loads(done.stdout)
    assert done.returncode == any(f["level"] == "problem" for f in found["findings"])
    assert set(found["findings"][0]) == {"about", "level", "text", "remedy"}
    assert found["facts"]["torch"]["package"]["version"] == torch.__version__
    assert len(found["facts"]["torch"]["gpus"]) == torch.cuda.device_count()
    teachers = [t["name"] for t in found["facts"]["experiment"]["teachers"]]
    assert teachers == ["a", "b"]
    levels = {f["about"]: f["level"] for f in found["findings"]}
    assert (levels["teacher a"], levels["teacher b"]) == ("ok", "ok")


def test_a_missing_file_of_a_teacher_is_a_problem(world):
    world.settings["teachers"].append({"name": "n", "network": {"hf": "nowhere"}})
    world.write()
    text = world.call("doctor", expect=1)
    (line,) = [row for row in text.splitlines() if "nowhere" in row]
    assert line.split()[:3] == ["problem", "teacher", "n"]
    assert "teachers[n].network.hf: " in line and "is not there" in line


def test_a_broken_experiment_file_is_refused_as_everywhere(world):
    world.file.write_text("version: 2\n")
    done = doctor("-c", world.file)
    assert done.returncode == 2
    assert done.stdout == "" and "experiment.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_needs_no_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text("no experiment")
    assert "python" in doctor().stdout


def test_where_compiled_code_is_kept(tmp_path):
    found = json.loads(doctor("--json", NUMBA_CACHE_DIR=str(tmp_path)).stdout)
    (numba,) = [f for f in found["findings"] if f["about"] == "numba"]
    assert numba["level"] == "ok"
    assert f"cache: {tmp_path}" in numba["text"]
