"""Folders of the hub, from a cache made here; nothing is fetched."""

import json

import pytest

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.hub import hub_folder

pytest.importorskip("huggingface_hub")

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": "{}", "model.safetensors": "weights"}
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
SHARDS = {"model-1.safetensors": "", "model-2.safetensors": ""}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The library's cache, and a function that fills it as a download would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def fill(files, repo="them--theirs"):
        folder = tmp_path / f"models--{repo}" / "snapshots" / REVISION
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    return fill


def test_what_is_in_the_cache_is_found(cache):
    folder = cache(FILES)
    assert hub_folder("them/theirs", REVISION, download=False) == folder


@pytest.mark.parametrize("revision", ["main", "v1.0", REVISION[:-1], REVISION.upper(), ""])
def test_a_revision_that_may_move_is_refused(cache, revision):
    with pytest.raises(DataError, match="40 hexadecimal digits"):
        hub_folder("them/theirs", revision, download=True)


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({}, "config.json"),
        ({"config.json": "{}"}, "model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "model.safetensors"),
        (
            {"config.json": "{}", "model.safetensors.index.json": INDEX, "model-1.safetensors": ""},
            "model-2.safetensors",
        ),
    ],
)
def test_half_a_download_is_refused(cache, files, lacks):
    cache(files)
    with pytest.raises(DataError, match=rf"lacks {lacks}; `ensdistill check` fetches it"):
        hub_folder("them/theirs", REVISION, download=False)


def test_weights_in_several_files_are_one_model(cache):
    folder = cache({"config.json": "{}", "model.safetensors.index.json": INDEX, **SHARDS})
    assert hub_folder("them/theirs", REVISION, download=False) == folder
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DataError, match=r"index\.json: expected keys and values"):
        hub_folder("them/theirs", REVISION, download=False)


def test_what_is_not_in_the_cache_names_the_command_that_fetches_it(cache):
    with pytest.raises(DataError) as refused:
        hub_folder("them/theirs", REVISION, download=False)
    for word in ("them/theirs", REVISION, "not in the cache", "`ensdistill check`"):
        assert word in str(refused.value)


@pytest.mark.parametrize("name", ["a/b/c", "model", "../../etc", "a/..", "/a/b", "a b/c", ""])
def test_a_name_that_is_none_is_refused(cache, name):
    with pytest.raises(DataError, match="expected owner/name"):
        hub_folder(name, REVISION, download=False)


def test_the_library_itself_finds_the_same_folder(cache):
    from huggingface_hub import snapshot_download

    cache(FILES, "own.er--na-me_1")
    found = snapshot_download("own.er/na-me_1", revision=REVISION, local_files_only=True)
    assert str(hub_folder("own.er/na-me_1", REVISION, download=False)) == found


def test_a_download_fetches_the_revision_and_no_code(cache, monkeypatch):
    asked = []

    def download(repo_id, **more):
        asked.append((repo_id, more))
        return str(cache(FILES))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub_folder("them/theirs", REVISION, download=True).name == REVISION
    patterns = ["*.json", "*.safetensors", "*.txt"]
    more = {"revision": REVISION, "allow_patterns": patterns}
    assert asked == [("them/theirs", more)]


def test_a_download_that_fails_is_told(cache, monkeypatch):
    def download(repo_id, **more):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(DataError, match=r"fetched \(ConnectionError: no route to host\)$"):
        hub_folder("them/theirs", REVISION, download=True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache({})))
    with pytest.raises(DataError, match=r"lacks config\.json; the repository has no such file"):
        hub_folder("them/theirs", REVISION, download=True)


def test_it_is_light(python):
    code = """
import sys
from ensdistill.stages.networks.hub import hub_folder
from ensdistill.pipeline.errors import DataError
try:
    hub_folder("them/theirs", "0" * 40, download=False)
except DataError:
    pass
print(*sys.modules)
"""
    loaded = {name.split(".")[0] for name in python(code).split()}
    assert not loaded & {"torch", "numpy", "transformers", "PIL", "httpx2", "httpx"}
