"""What an installation holds."""

import os
import subprocess
import sys
import zipfile

import pytest

PACKAGES = ("pipeline", "stages", "cli", "data")


@pytest.mark.parametrize("name", PACKAGES)
def test_not_importable_under_a_bare_name(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import {name}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"No module named '{name}'" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    root = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    # from a copy, since a build leaves files in the tree
    copy = folder / "tree"
    subprocess.run(["git", "clone", "-q", "--local", root, copy], check=True)
    tracked = subprocess.run(
        ["git", "-C", root, "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):
        source, goal = os.path.join(root, name), copy / name  # noqa: PTH118
        if os.path.exists(source):  # noqa: PTH110
            goal.parent.mkdir(parents=True, exist_ok=True)
            with open(source, "rb") as file:  # noqa: PTH123
                goal.write_bytes(file.read())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
            *("--disable-pip-version-check", "-w", folder, copy),
        ],
        check=True,
    )
    return next(folder.glob("*.whl")), copy


def test_wheel_holds_the_whole_tree(wheel):
    path, tree = wheel
    inside = {n for n in zipfile.ZipFile(path).namelist() if ".dist-info/" not in n}
    expected = {
        f"ensdistill/{p.relative_to(tree)}"
        for package in PACKAGES
        for p in (tree / package).rglob("*")
        if p.suffix in (".py", ".typed", ".yaml", ".html", ".css", ".js") and "build" not in p.parts
    }
    assert inside == expected


def test_installed_wheel_runs(wheel, tmp_path):
    path, _ = wheel
    target = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"),
            *("--disable-pip-version-check", "--target", target, path),
        ],
        check=True,
    )
    code = (
        "import ensdistill.cli.__main__ as m, sys; assert sys.argv[1] in m.__file__, m.__file__;"
        "m.main(['init', '--template', 'folders', '-o', 'made.yaml'])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        check=True,
    )
    assert "teachers:" in (tmp_path / "made.yaml").read_text()
