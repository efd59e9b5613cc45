"""What the JSON files of a network's folder say; no torch needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from ensdistill.pipeline.errors import DataError

NETWORK: Final = "network.json"
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")


def network_classes(folder: Path, kind: Literal["hf", "student"], where: str) -> int:
    """Return the number of classes of the network in a folder.

    Parameters
    ----------
    folder : Path
        A transformers folder, or that of a student trained here.
    kind : str
        Which of the two.
    where : str
        The key of the experiment file, for errors.

    Raises
    ------
    DataError
        If the folder does not hold such a network with weights as safetensors.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise DataError(
            f"{where}: {folder} holds no {_WEIGHTS[0]}; expected a folder written by "
            + ("`model.save_pretrained(folder)`" if kind == "hf" else "`ensdistill train-student`")
        )
    if kind == "student":
        return len(read_description(folder)["classes"])
    try:
        config = json.loads((folder / "config.json").read_bytes())
        # transformers leaves out what equals its default: two labels
        return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{where}: {folder}/config.json cannot be read ({error})") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of a trained student's ``network.json``.

    Raises
    ------
    DataError
        If it is missing or not whole.
    """
    try:
        description: dict[str, Any] = json.loads((folder / NETWORK).read_bytes())
        missing = {"architecture", "classes", "preprocessing"} - set(description)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / NETWORK}: cannot be read ({error})") from error
    if missing:
        raise DataError(f"{folder / NETWORK}: the key {min(missing)!r} is missing")
    return description
