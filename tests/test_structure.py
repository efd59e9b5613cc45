"""The house: who may import whom, and what must stay light."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "cli", "data")
HEAVY = {"torch", "numpy", "zarr", "PIL", "transformers", "numba", "dask", "safetensors"}
HEAVY |= {"scipy", "matplotlib", "isal"}
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

# module -> what it may import of ours
ALLOWED = {
    "pipeline": ("pipeline",),
    "data": ("data", "pipeline.errors", "pipeline.opening"),
    "stages": ("stages", "pipeline", "data"),
    "cli": ("cli", "stages", "pipeline", "data"),
}

# within stages, from the top: each imports what stands below it; of one line, without a circle
LAYERS = (
    ("demo", "export", "reading", "checks", "jobs"),
    ("graph",),
    ("nodes",),
    ("training",),
    ("experiment",),
    ("networks", "fusions"),
    ("labelmaps", "local", "contract", "work"),
    ("functional",),
)
# planned without an array: modules that import nothing heavy, nor do those that they import
LIGHT = ("graph.py", "nodes/*/plan.py", "fusions/*.py", "networks/kinds.py")
LIGHT += ("contract.py", "local.py")
# arithmetic of hundreds of lines that are one thing
KERNELS = {"stages/functional/labelmodel.py", "stages/functional/_voting.py"}
MOST_LINES = 620
# a function of `run.py` that takes and returns a part of a JSON file
UNTYPED = {"ablation.with_present"}


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


def name_of(path):
    """Return what a module is called, without the package of all."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for path in MODULES}


def needs(path, find=imported):
    """Return our modules that a file imports: those that `find` does, and no package for them."""
    found = ours(find(path)) & PATHS.keys()
    return {n for n in found if not any(m.startswith(f"{n}.") for m in found)} - {name_of(path)}


def room(module):
    """Return where in stages a module lies."""
    return module.split(".")[1]


def ours(names):
    return {n.removeprefix("ensdistill.") for n in names if n.startswith("ensdistill.")}


def within(name, allowed):
    return any(name == a or name.startswith(a + ".") or a.startswith(name + ".") for a in allowed)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    parts = path.relative_to(ROOT).parts
    allowed = ALLOWED[parts[0]]
    if parts[:2] == ("stages", "functional"):
        allowed = ("stages.functional", "data.compiling", "data.loops")
    wrong = {n for n in ours(imported(path)) if not within(n, allowed)}
    assert not wrong
    assert not set(imported(path)) & set(PACKAGES), "imported under a bare name"


def test_stages_import_downwards():
    heights = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    rooms = {name: set() for name in heights}
    for module, path in PATHS.items():
        if not module.startswith("stages."):
            continue
        for needed in needs(path):
            if needed.startswith("stages.") and room(needed) != room(module):
                assert heights[room(needed)] >= heights[room(module)], (module, needed)
                rooms[room(module)].add(room(needed))
    TopologicalSorter(rooms).prepare()  # raises where there is a circle
    assert rooms.keys() == {room(m) for m in PATHS if m.startswith("stages.")}


def test_no_modules_import_each_other():
    """Nor inside functions, nor for the sake of types."""
    TopologicalSorter({module: needs(path) for module, path in PATHS.items()}).prepare()


def test_what_is_planned_is_light():
    def load(module):
        """Return the module and all that is loaded with it."""
        if module not in seen:
            seen.add(module)
            for needed in needs(PATHS[module], top_level):
                load(needed)

    for path in (path for pattern in LIGHT for path in (ROOT / "stages").glob(pattern)):
        seen = set()
        load(name_of(path))
        heavy = {m for m in seen if {n.split(".")[0] for n in top_level(PATHS[m])} & HEAVY}
        assert not heavy, path


def test_no_module_is_long():
    assert len((ROOT / "stages/graph.py").read_text().splitlines()) <= 180
    long = {p for p in MODULES if len(p.read_text().splitlines()) > MOST_LINES}
    assert {p.relative_to(ROOT).as_posix() for p in long} <= KERNELS


def untyped(node):
    return any(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(node))


def test_the_contract_of_a_stage_is_typed():
    """Nothing of a plan is `Any`, nor what the functions that make it take and return."""
    nodes = ROOT / "stages/nodes"
    for path in nodes.glob("*/plan.py"):
        assert not untyped(ast.parse(path.read_text())), path
    found = {
        f"{path.parent.name}.{each.name}"
        for path in nodes.glob("*/run.py")
        for each in ast.parse(path.read_text()).body
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        if untyped(each.args) or (each.returns is not None and untyped(each.returns))
    }
    assert found <= UNTYPED


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
