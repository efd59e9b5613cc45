"""Reading a YAML file into a frozen pydantic model, with errors a person can act on."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ensdistill.pipeline.errors import ConfigError, raise_all


class Section(BaseModel):
    """Base of all parts of an experiment file: frozen, unknown keys refused."""

    # built once, with the model that holds it, instead of once for itself and once in there
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


ModelT = TypeVar("ModelT", bound=Section)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a key appear twice and keeps the last one: a silent wrong result."""

    # before construction, which copies the keys of `<<: *base` into the mapping
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not YAML, with line and column.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, Loader=_UniqueKeyLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or 30 February
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error


def read_model(path: Path, model: type[ModelT]) -> ModelT:
    """Read a YAML file into `model`.

    Raises
    ------
    ConfigError
        With every problem at once: file, key, value and, for an unknown key, the nearest known.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path}: expected keys and values, found {found}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{path}: {_explain(e, content, model)}"
            for e in error.errors()
            # entries that were refused already are missing from pydantic's count
            if e["type"] != "too_short" or len(e["input"]) < e["ctx"]["min_length"]
        ]
        raise_all(problems, ConfigError)
        raise


def _explain(error: Any, content: Any, model: type[BaseModel]) -> str:
    path = _dotted(error["loc"], content)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if error["type"] == "missing":
        return f"the key {path!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else str(message)
    if message.startswith("Input should be "):
        message = "expected " + message.removeprefix("Input should be ")
    return f"{path}: {message}, found {error['input']!r}"


def _dotted(loc: tuple[int | str, ...], content: Any) -> str:
    """Return the path of an error; a list entry with a name is called by it."""
    text = ""
    for part in loc:
        if isinstance(content, list) and isinstance(part, int):
            content = content[part] if part < len(content) else None
            name = content.get("name", part) if isinstance(content, dict) else part
            text += f"[{name}]"
        else:
            content = content.get(part) if isinstance(content, dict) else None
            text += f".{part}" if text else str(part)
    return text


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at `loc`, found by walking the annotations."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, str) and any(part in m.model_fields for m in models):
            models = [
                found
                for m in models
                if part in m.model_fields
                for found in _models_in(m.model_fields[part].annotation)
            ]
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
