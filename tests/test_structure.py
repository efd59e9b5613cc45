"""The house: who may import whom, and what must stay light."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "cli", "data")
HEAVY = {"torch", "numpy", "zarr", "PIL", "transformers", "numba", "dask", "safetensors"}
HEAVY |= {"scipy", "matplotlib"}
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

# module -> what it may import of ours
ALLOWED = {
    "pipeline": ("pipeline",),
    "data": ("data", "pipeline.errors", "pipeline.opening"),
    "stages": ("stages", "pipeline", "data"),
    "cli": ("cli", "stages", "pipeline", "data"),
}


def imported(path):
    """Yield every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(path):
    """Yield the modules imported when the file is."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def ours(names):
    return {n.removeprefix("ensdistill.") for n in names if n.startswith("ensdistill.")}


def within(name, allowed):
    return any(name == a or name.startswith(a + ".") or a.startswith(name + ".") for a in allowed)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    parts = path.relative_to(ROOT).parts
    allowed = ALLOWED[parts[0]]
    if parts[:2] == ("stages", "functional"):
        allowed = ("stages.functional",)
    wrong = {n for n in ours(imported(path)) if not within(n, allowed)}
    assert not wrong
    assert not set(imported(path)) & set(PACKAGES), "imported under a bare name"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_cli_imports_click(path):
    uses = any(n.split(".")[0] == "click" for n in imported(path))
    assert not uses or path.relative_to(ROOT).parts[0] == "cli"


def test_engine_is_light():
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert not {n.split(".")[0] for n in imported(path)} & HEAVY, path


def test_package_inits_are_light():
    for path in MODULES:
        if path.name == "__init__.py":
            assert not {n.split(".")[0] for n in top_level(path)} & HEAVY, path


def test_status_imports_nothing_heavy(world, python):
    world.call("run")
    code = """
import sys
from click.testing import CliRunner
from ensdistill.cli.__main__ import cli
result = CliRunner().invoke(cli, ["status", "-c", sys.argv[1]])
assert result.exit_code == 0, result.output
print(*sys.modules)
"""
    loaded = {name.split(".")[0] for name in python(code, world.file).split()}
    assert not loaded & HEAVY


def test_same_ignore_index_everywhere():
    from ensdistill.data.classes import IGNORE_INDEX
    from ensdistill.stages import functional

    assert IGNORE_INDEX == functional.IGNORE_INDEX == 255
