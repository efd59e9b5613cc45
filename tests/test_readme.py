"""The README's two commands, and that its example is a valid experiment."""

import re
from pathlib import Path

import yaml

from ensdistill.stages.experiment.schema import Config

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_are_the_first_bash_blocks_and_single_lines():
    install, test = blocks("bash")[:2]
    assert install == "pip install -c constraints.txt -e . && ensdistill demo\n"
    run = 'pytest -m "not slow" -n 2 --dist loadfile'
    assert test == f"pip install -c constraints.txt -e '.[test]' && {run}\n"


def test_the_example_is_a_valid_experiment():
    Config.model_validate(yaml.safe_load(blocks("yaml")[0]))


def test_every_setting_is_named():
    schema = Config.model_json_schema()
    settings = {key for part in (schema, *schema["$defs"].values()) for key in part["properties"]}
    assert {key for key in settings if not re.search(rf"\b{key}\b[`:]", README)} == set()


def test_the_sample_of_results_has_the_keys_of_real_ones(world):
    import json

    sample = json.loads(blocks("json")[0])
    world.call("run")
    real = json.loads((world.root / "work" / "results.json").read_text())
    assert set(sample) == set(real)
    assert list(sample["methods"][0]) == list(real["methods"][0])
