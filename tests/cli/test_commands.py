"""The command line as its user meets it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ensdistill.cli.__main__ import COMMANDS, cli, main
from ensdistill.pipeline.config import read_model
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.experiment.schema import Config, Teacher

README = (Path(__file__).parents[2] / "README.md").read_text()


def shell(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ensdistill.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


EXPORTS = [f"export {name}" for name in cli.get_command(None, "export").commands]


@pytest.mark.parametrize("name", [*COMMANDS, *EXPORTS])
def test_every_command_has_help_with_an_example_and_is_documented(name):
    result = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert f"ensdistill {name}" in result.output.split("Example:")[1]
    assert f"ensdistill {name}" in README


@pytest.mark.parametrize("command", ["init", "import", "evaluate", "report", *EXPORTS, "demo"])
def test_what_a_command_writes_is_called_alike(command):
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert "-o, --output " in result.output


def test_overview_lists_all_commands_without_importing_them():
    result = CliRunner().invoke(cli, ["--help"])
    assert [n for n in COMMANDS if f"\n  {n} " in result.output] == list(COMMANDS)


def test_version():
    from importlib.metadata import version

    assert version("ensdistill") in shell("--version").stdout


def test_unknown_command_and_option_are_wrong_usage():
    assert shell("infer-teachr").returncode == 2
    assert shell("status", "--jsn").returncode == 2


def test_missing_experiment_file_is_one_clear_line(tmp_path):
    done = shell("run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "experiment.yaml: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_shows_the_traceback(tmp_path):
    assert "Traceback" in shell("-v", "run", cwd=tmp_path).stderr


def test_bad_data_exits_with_1_and_keeps_stdout_clean(world):
    (world.root / "images/train/train_000001_000019.png").write_bytes(b"no image")
    done = shell("run", "--json", "-c", world.file)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "train_000001_000019.png" in done.stderr


def test_results_go_to_stdout_and_progress_to_stderr(world):
    done = shell("infer-teacher", "--json", "-c", world.file)
    assert [r["node"] for r in json.loads(done.stdout)["ran"]] == ["infer[a]", "infer[b]"]
    assert "infer[a]" in done.stderr


def test_unknown_teacher_is_named(world):
    done = shell("infer-teacher", "aa", "-c", world.file)
    assert done.returncode == 2
    assert "'aa'" in done.stderr and "a, b" in done.stderr


@pytest.mark.parametrize("template", ["folders", "cityscapes"])
def test_templates_are_valid_experiments(tmp_path, template):
    done = shell("init", "--template", template, "-o", "made.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "wrote made.yaml" in done.stdout
    read_model(tmp_path / "made.yaml", Config)
    # what it names is not there: check says so, in words
    done = shell("check", "-c", "made.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "target.train" in done.stderr and "Traceback" not in done.stderr


def test_the_networks_in_the_comments_of_a_template_are_valid(repository):
    text = (repository / "stages/experiment/templates/cityscapes.yaml").read_text()
    lines = [line[1:] for line in text.split("\n") if line.startswith("#  ")]
    teachers = [Teacher.model_validate(t) for t in yaml.safe_load("\n".join(lines))]
    taken = {t.name: t.network.take for t in teachers}
    assert taken == {"DACS": None, "R-MRNet": {"0": 0.5, "1": 1.0}}


def test_the_cityscapes_template_holds_the_papers_recipe(tmp_path):
    shell("init", "--template", "cityscapes", cwd=tmp_path)
    config = read_model(tmp_path / "experiment.yaml", Config)
    assert [t.name for t in config.teachers] == ["DACS", "CBST", "MRKLD", "R-MRNet"]
    s = config.student
    assert (s.optimizer, s.lr, s.head_lr_factor, s.weight_decay) == ("sgd", 1e-4, 10, 5e-4)
    assert (s.momentum, s.nesterov, s.power, s.batch_size) == (0.9, True, 0.9, 10)
    assert (s.steps, s.input_size, s.crop, s.scale) == (100001, (512, 1024), (256, 512), (1, 1))
    assert (s.class_balance, s.hard_share, s.watch, s.checkpoint) == (7, 0.2, "val", "best")
    assert s.preprocess.channels == "bgr" and s.preprocess.std == (1, 1, 1)
    assert config.fusion.window == 5 and config.policy.min_support == 0


def test_init_never_overwrites(tmp_path):
    (tmp_path / "experiment.yaml").write_text("mine")
    done = shell("init", cwd=tmp_path)
    assert done.returncode == 2 and "not overwritten" in done.stderr
    assert (tmp_path / "experiment.yaml").read_text() == "mine"


def test_camvid_template_says_what_it_needs(tmp_path):
    done = shell("init", "--template", "camvid", cwd=tmp_path, ENSDISTILL_CAMVID="")
    assert done.returncode == 2 and "ENSDISTILL_CAMVID" in done.stderr


def test_a_full_disk_is_reported_and_keeps_what_is_done(world, monkeypatch, capsys):
    from ensdistill.cli import __main__ as entry
    from ensdistill.data.store import LabelStore

    write, calls = LabelStore.write, []

    def full(self, index, label_map):
        calls.append(index)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        write(self, index, label_map)

    monkeypatch.setattr(LabelStore, "write", full)
    with pytest.raises(SystemExit) as stop:
        entry.main(["infer-teacher", "a", "-c", str(world.file)])
    assert stop.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    report = world.json("infer-teacher", "a")
    assert [r["written"] for r in report["ran"]] == [2]


def test_yaml_of_the_camvid_template(camvid, tmp_path):
    done = shell("init", "--template", "camvid", cwd=tmp_path, ENSDISTILL_CAMVID=str(camvid))
    assert done.returncode == 0
    content = yaml.safe_load((tmp_path / "experiment.yaml").read_text())
    assert len(content["teachers"]) == 6
    assert all(t["map"] == content["teachers"][0]["map"] for t in content["teachers"])


def test_a_rank_that_refuses_waits_until_rank_0_has_said_why(monkeypatch):
    """torchrun ends all processes where one has ended."""
    from ensdistill.stages.training import ranks

    def refuse(_):
        raise DataError("as rank 0 does")

    slept = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(ranks, "launched", lambda: True)
    monkeypatch.setattr(ranks, "join", lambda: 1)
    monkeypatch.setattr(ranks, "follow", refuse)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 1
    assert slept and slept[0] >= 5
