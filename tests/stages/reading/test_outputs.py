"""What commands write where a user said: nothing is replaced but what the same command wrote."""

import os
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from worlds import World

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.workspace import Workspace
from ensdistill.stages.demo import experiments
from ensdistill.stages.graph import FORMS
from ensdistill.stages.reading import outputs, tables
from ensdistill.stages.reading.outputs import Output

PAGE = b'<!doctype html>\n<meta name="generator" content="ensdistill 1.0">'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Labels that are scored; nobody changes them."""
    world = World(tmp_path_factory.mktemp("made"), train=2, val=1)
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("evaluate", "--upstream")
    return world


@pytest.fixture
def place(tmp_path):
    return tmp_path / "report.html"


def output(path, **more):
    return Output(path, "report", outputs.PAGE, **more)


def refused(found):
    with pytest.raises(ConfigError) as error:
        found.write(b"new")
    return str(error.value)


def test_a_new_file_and_an_earlier_one_are_written(place):
    output(place).write(PAGE)
    output(place).write(PAGE + b" again")
    assert place.read_bytes() == PAGE + b" again"
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("content", [b"", b"mine", b"<html></html>", b"x" * 70000 + PAGE])
def test_another_file_is_replaced_where_the_user_says_so(place, content):
    place.write_bytes(content)
    said = refused(output(place))
    assert str(place) in said and "was not written by `ensdistill report`" in said
    assert "--overwrite" in said and place.read_bytes() == content
    output(place, overwrite=True).write(b"new")
    assert place.read_bytes() == b"new"


@pytest.mark.parametrize("mine", [b"mine", PAGE], ids=["another", "earlier"])
def test_no_link_is_written_through_without_the_word(place, mine):
    goal = place.with_name("goal")
    goal.write_bytes(mine)
    place.symlink_to(goal)
    assert "is a link" in refused(output(place)) and goal.read_bytes() == mine
    output(place, overwrite=True).write(b"new")
    assert place.is_symlink() and goal.read_bytes() == b"new"


def test_a_link_to_nothing_is_a_link(place):
    place.symlink_to(place.with_name("nothing"))
    assert "is a link" in refused(output(place))
    assert not place.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_files_are_written(place, overwrite):
    os.mkfifo(place)
    assert "is a named pipe" in refused(output(place, overwrite=overwrite))
    null = place.with_name("null")
    null.symlink_to("/dev/null")
    assert "is a device" in refused(output(null, overwrite=overwrite))
    folder = place.with_name("folder")
    folder.mkdir()
    assert "is a folder" in refused(output(folder, overwrite=overwrite))
    assert "is no folder" in refused(output(place.parent / "none" / "a", overwrite=overwrite))


@pytest.mark.parametrize("suffix", tables.WRITERS)
def test_a_table_is_known_by_its_beginning(made, suffix):
    content = tables.WRITERS[suffix](made.json("evaluate")).encode()
    others = [b"a,b\n1,2\n", b"# Notes\n\n" + content, b"kind,method\n", b"{}", b'{"split": "a"}']
    assert outputs.TABLES[suffix].search(content)
    assert not any(outputs.TABLES[suffix].search(other) for other in others)
    for other in tables.WRITERS.keys() - {suffix}:
        assert not outputs.TABLES[other].search(content)


@pytest.mark.parametrize("word", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "name",
    [
        "experiment.yaml",
        "images/train/train_000000_000019.png",
        "labels/val/val_000000_000019.png",
        "teachers/a/train/train_000000_000019.png",
    ],
)
def test_an_input_is_never_overwritten(made, tmp_path, name, word):
    before = (made.root / name).read_bytes()
    (tmp_path / "link.html").symlink_to(made.root / name)
    for path in (made.root / name, tmp_path / "link.html"):
        said = made.refuse("report", "-o", str(path), *word)
        assert "never overwritten" in said and str(path) in said
    assert (made.root / name).read_bytes() == before


def test_nothing_is_written_among_artifacts(made):
    folder = made.artifact("fusion").path
    for place in (folder / "manifest.json", folder / "new.csv", folder.parent / "new.csv"):
        said = made.refuse("report", "-o", str(place), "--overwrite")
        assert f"{place} lies among the artifacts of" in said


def test_nor_among_those_of_a_stage_not_known_or_behind_a_link(made, tmp_path):
    folder, root, far = made.artifact("fusion").path, tmp_path / "work", tmp_path / "far"
    shutil.copytree(folder, root / "former" / folder.name)
    shutil.copytree(folder, far / folder.name)
    (root / "fusion").symlink_to(far)
    asked = SimpleNamespace(workspace=Workspace(root, forms=FORMS))
    for place in ("former/{}/new.csv", "fusion/{}/new.csv", "fusion/new"):
        path = root / place.format(folder.name)
        with pytest.raises(ConfigError, match=f"{path} lies among the artifacts of"):
            outputs.require_outside_artifacts(path, asked)
    outputs.require_outside_artifacts(root / "former" / "new", asked)


def test_tables_are_written_again_and_nothing_else_is(made, tmp_path):
    files = [tmp_path / f"t{suffix}" for suffix in tables.WRITERS]
    options = [part for f in files for part in ("-o", str(f))]
    made.call("evaluate", *options)
    contents = [f.read_bytes() for f in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content + b"\n")
    made.call("evaluate", *options)
    assert [f.read_bytes() for f in files] == contents
    for file in files:
        file.write_text("mine")
        said = made.refuse("evaluate", "-o", str(file))
        assert "was not written by `ensdistill evaluate`" in said
        assert file.read_text() == "mine"
    made.call("evaluate", *options, "--overwrite")
    assert [f.read_bytes() for f in files] == contents


def test_a_table_is_refused_before_any_work(world, tmp_path):
    (tmp_path / "t.csv").write_text("mine")
    said = world.refuse("evaluate", "--upstream", "-o", str(tmp_path / "t.csv"))
    assert "was not written" in said and not (world.root / "work/infer").exists()


def test_files_of_the_workspace_do_not_lead_out_of_it(made, tmp_path):
    goal = tmp_path / "mine.json"
    for name in ("results.json", "report.html"):
        goal.write_text("mine")
        (made.root / "work" / name).unlink(missing_ok=True)
        (made.root / "work" / name).symlink_to(goal)
    made.call("evaluate")
    made.call("report")
    assert goal.read_text() == "mine"


def test_a_pipe_is_replaced_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    atomic.update_bytes(tmp_path / "results.json", b"new")
    assert (tmp_path / "results.json").read_bytes() == b"new"


def init(*options):
    return CliRunner().invoke(cli, ["init", *options])


def test_init_asks_too(tmp_path):
    file = tmp_path / "e.yaml"
    file.symlink_to(tmp_path / "nothing.yaml")
    done = init("-o", str(file))
    assert isinstance(done.exception, ConfigError) and not file.exists()
    file.unlink()
    file.write_text("mine")
    assert "--overwrite" in str(init("-o", str(file)).exception)
    assert init("-o", str(file), "--overwrite").exit_code == 0
    assert "version: 1" in file.read_text()
    assert "no folder" in str(init("-o", str(tmp_path / "none/e.yaml")).exception)


@pytest.mark.parametrize("name", ["experiment.yaml", "results.json", "teachers/{}.yaml"])
def test_a_demo_replaces_no_other_files(tmp_path, name):
    file = tmp_path / name.format(next(iter(experiments.SOURCES)))
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    done = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path)])
    assert isinstance(done.exception, ConfigError) and str(file) in str(done.exception)
    assert file.read_text() == "mine" and not (tmp_path / "cities").exists()


def test_every_edited_file_of_a_demo_is_kept(tmp_path):
    file = tmp_path / "experiment.yaml"
    for text in ("one", "two", "three"):
        file.write_text(text)
        experiments._write(file, "A title", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "experiment.yaml",
        "experiment.yaml.old",
        "experiment.yaml.old1",
        "experiment.yaml.old2",
    ]
    assert file.with_name("experiment.yaml.old").read_text() == "one"
