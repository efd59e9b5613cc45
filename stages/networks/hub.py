"""Folders of the Hugging Face hub: one pinned revision, in the library's own cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.folders import INDEX, shards

_FILES: Final = ["*.json", "*.safetensors", "*.txt"]  # weights, what they are, and vocabularies
_REVISION: Final = re.compile(r"[0-9a-f]{40}")
_REPOSITORY: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def hub_folder(repo_id: str, revision: str, *, download: bool) -> Path:
    """Return the folder of a repository of the hub, at one revision.

    Parameters
    ----------
    repo_id : str
        ``owner/name``.
    revision : str
        The commit, 40 hexadecimal digits: what a branch or tag means may change.
    download : bool
        Whether to fetch what is not in the cache (``HF_HOME``, ``HF_HUB_CACHE``); no code is
        fetched, nor weights other than safetensors.

    Raises
    ------
    DataError
        If the revision is not pinned, is not in the cache whole, or cannot be fetched.
    """
    if not _REVISION.fullmatch(revision):
        raise DataError(
            f"hub: {repo_id} is given at revision {revision!r}, which may mean another one "
            "tomorrow; expected the 40 hexadecimal digits of a commit (on its page: Files, History)"
        )
    if not _REPOSITORY.fullmatch(repo_id):
        raise DataError(f"hub: {repo_id!r} is no repository; expected owner/name")
    folder = _fetched(repo_id, revision) if download else _cached(repo_id, revision)
    if absent := _absent(folder):
        raise DataError(
            f"hub: {repo_id} at {revision} lacks {absent}; "
            + ("the repository has no such file" if download else "`ensdistill check` fetches it")
        )
    return folder


def _cached(repo_id: str, revision: str) -> Path:
    """Return where the library keeps a revision; its own look-up takes long to import."""
    from huggingface_hub.constants import HF_HUB_CACHE

    name = "--".join(["models", *repo_id.split("/")])
    folder = Path(HF_HUB_CACHE).expanduser() / name / "snapshots" / revision
    if not folder.is_dir():
        raise DataError(
            f"hub: {repo_id} at {revision} is not in the cache ({HF_HUB_CACHE}); "
            "`ensdistill check` fetches it"
        )
    return folder


def _fetched(repo_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of several libraries
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"hub: {repo_id} at {revision} cannot be fetched ({why})") from error


def _absent(folder: Path) -> str | None:
    """Return the first file that a model needs and that is not there."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if (folder / INDEX).is_file():
        return next((n for n in shards(folder / INDEX) if not (folder / n).is_file()), None)
    return None if (folder / "model.safetensors").is_file() else "model.safetensors"
