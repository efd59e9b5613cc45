"""What was compiled before is loaded, and where that cannot be it is compiled again."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from ensdistill.data import compiling

CODE = """
from ensdistill.data.compiling import jit

@jit
def twice(x):
    return x + x
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with code beside which nothing can be kept, and with no home."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/kernel.py").write_text(CODE)
    (tmp_path / "code/__pycache__").write_text("no folder")
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return tmp_path


def load(place):
    """Return the function as a new process would have it."""
    spec = importlib.util.spec_from_file_location("kernel", place / "code/kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


def call(place):
    """Call the function, and return where it is kept and whether it was loaded from there."""
    twice = load(place)
    assert twice(21) == 42
    return twice.stats.cache_path, bool(twice.stats.cache_hits)


def test_without_any_place_it_is_compiled_in_the_process(place):
    assert call(place) == call(place) == (None, False)


def test_the_installation_keeps_it(place):
    (place / "code/__pycache__").unlink()
    assert not call(place)[1]
    assert call(place) == (str(place / "code/__pycache__"), True)


@pytest.mark.parametrize("key", ["CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_folder_of_the_users_keeps_it(place, monkeypatch, key):
    if key == "CACHE_DIR":
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(place / "kept"))
    else:
        monkeypatch.setenv(key, str(place / "kept"))
    assert not call(place)[1]
    folder, loaded = call(place)
    assert loaded
    assert folder.startswith(str(place / "kept"))


@pytest.mark.parametrize("spoil", ["world", "owner"])
def test_code_is_loaded_from_no_folder_that_others_write_to(place, monkeypatch, spoil):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place / "kept"))
    folder, _ = call(place)
    if spoil == "world":
        Path(folder).chmod(0o777)
    else:
        monkeypatch.setattr(compiling.os, "geteuid", lambda: 12345)
        if os.getuid() == 0:  # whose folders everybody may trust
            os.chown(folder, 54321, -1)
    assert call(place) == (None, False)


@pytest.mark.parametrize("name", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"cos\nnothere\n."])
def test_what_is_spoilt_is_compiled_and_kept_again(place, monkeypatch, name, content):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place / "kept"))
    call(place)
    (file,) = (place / "kept").glob(f"*/{name}")
    file.write_bytes(content)
    assert not call(place)[1]
    assert call(place)[1]


def test_another_functions_code_is_not_taken_for_this_one(place, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place / "kept"))
    twice = load(place)
    assert (twice(21), twice(0.25)) == (42, 0.5)
    whole, real = sorted((place / "kept").glob("*/*.nbc"))
    whole.write_bytes(real.read_bytes())
    assert not call(place)[1]


def test_where_nothing_can_be_kept_any_more_the_work_goes_on(place, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place / "kept"))
    twice = load(place)
    (folder,) = (place / "kept").iterdir()
    folder.rmdir()
    folder.write_text("no folder")
    assert twice(21) == 42


def test_it_is_told_where_it_is_kept(place):
    def told(**more):
        code = "from ensdistill.data import compiling as c; print(c.cache_folder())"
        command = [sys.executable, "-c", code]
        return subprocess.check_output(command, text=True, env=os.environ | more).strip()

    assert told(NUMBA_CACHE_DIR=str(place / "kept")).startswith(str(place / "kept"))


def test_without_a_home_no_folder_is_made_where_the_command_runs(place):
    code = """if True:
        import os, pwd, sys
        sys.path.insert(0, "code")
        sys.dont_write_bytecode = True
        del os.environ["HOME"], os.environ["XDG_CACHE_HOME"]
        pwd.getpwuid = lambda uid: {}[uid]  # nobody knows this user
        from kernel import twice
        print(twice(21), twice.stats.cache_path)
    """
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=place)
    assert found.split() == ["42", "None"]
    assert [p.name for p in place.iterdir()] == ["code"]
