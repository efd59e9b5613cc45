"""Reading YAML and JSON files into frozen pydantic models, with errors a person can act on."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ensdistill.pipeline.errors import (
    ConfigError,
    DataError,
    EnsdistillError,
    raise_all,
    shortened,
    shown,
)
from ensdistill.pipeline.opening import DEEPEST, open_regular, parse_json, what_instead

_MOST_BYTES: Final = 1_000_000  # of a YAML file; those with a table of 254 classes have 20,000
_MOST_JSON: Final = 100_000_000  # bytes of a JSON file
_MOST_VALUES: Final = 50_000  # of a YAML file, each time that an alias repeats one
_MERGE: Final = "tag:yaml.org,2002:merge"  # what `<<` is resolved to
_VALUE: Final = "tag:yaml.org,2002:value"  # and a plain `=`
_LONGEST: Final = 100  # characters of a number or a date: long ones take a square of that to read


class Section(BaseModel):
    """Base of all parts of an experiment file: frozen, unknown keys refused."""

    # built once, with the model that holds it, instead of once for itself and once in there
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)


class Foreign(BaseModel):
    """Base of what is read of a JSON file that another program may have written.

    Types are strict, so that `true` is no number and `"1"` neither; keys that nobody reads are not
    looked at.
    """

    model_config = ConfigDict(
        extra="ignore", frozen=True, defer_build=True, allow_inf_nan=False, strict=True
    )


ModelT = TypeVar("ModelT", bound=Section)
ForeignT = TypeVar("ForeignT", bound=Foreign)


class _Loader(yaml.SafeLoader):
    """Refuses what YAML permits and nobody means, before anything is made of it.

    That is a key that appears twice, of which YAML keeps the last one in silence; and aliases that
    stand for more than memory holds, or for what they are in.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._count = 0  # of values, those that aliases repeat included
        self._depth = 0  # of the value that is being composed
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}  # values, and how deep they lie

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._count
        self._depth += 1
        self._count += 1
        self._require_bounds(event, self._depth)
        node = super().compose_node(parent, index)
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _refusal(f"the alias *{event.anchor} stands for a value that it is in", event)
            count, height = self._sizes[node]
            self._count = before + count
            self._require_bounds(event, self._depth + height - 1)
        else:
            height = 1 + max((self._sizes[part][1] for part in _inside(node)), default=0)
            self._sizes[node] = self._count - before, height
        self._depth -= 1
        return node

    def _require_bounds(self, event: yaml.Event, depth: int) -> None:
        if self._count > _MOST_VALUES:
            raise _refusal(f"it holds more than {_MOST_VALUES:,} values, as aliases count", event)
        if depth > DEEPEST:
            raise _refusal(f"more than {DEEPEST} values lie in each other", event)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if "\0" in node.value:
            raise _refusal("a NUL character, which no name can hold", node)
        if node.tag == _VALUE:  # of which nothing can be made
            node.tag = self.DEFAULT_SCALAR_TAG
        if len(node.value) > _LONGEST and node.tag != self.DEFAULT_SCALAR_TAG:
            raise _refusal(f"a number or date of {len(node.value):,} characters", node)
        return node

    # before construction, which copies the keys of `<<: *base` into the mapping
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refusal(f"the key {key.value!r} appears twice", key)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace `<<` by what it stands for; a mapping's own keys win, then the first mapping's.

        Here, because PyYAML 6.0.4 takes equal keys for different ones by what Python did with their
        texts, and lets now the first win and now the last.
        """
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for _, value in (pair for pair in node.value if pair[0].tag == _MERGE):
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(part, yaml.MappingNode):
                    raise _refusal("`<<` stands for mappings alone", part)
                self.flatten_mapping(part)
                merged = [*part.value, *merged]
        # of equal keys the last one is taken
        node.value = merged + [pair for pair in node.value if pair[0].tag != _MERGE]


def _inside(node: yaml.Node) -> list[yaml.Node]:
    """Return the values, and the keys, that a value holds."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refusal(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """Return an error that shows where an event or a node is."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises
    ------
    ConfigError
        If it cannot be read, is not YAML, with line and column, or larger than anybody writes.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"{path}: is larger than {_MOST_BYTES:,} bytes; expected YAML that a person wrote"
        )
    if content and (instead := what_instead(path)) is not None:
        raise ConfigError(f"{path}: {instead}")
    try:
        return yaml.load(content.decode(), Loader=_Loader)  # a SafeLoader
    except Exception as error:  # not UTF-8, 30 February, and whatever `!!bool x` trips over
        text = shortened(str(error))
        raise ConfigError(f"{path}: is not valid YAML: {text}") from error


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
            f"{path}: {shortened(_explain(e, content, model))}"
            for e in error.errors()
            # entries that were refused already are missing from pydantic's count
            if e["type"] != "too_short" or len(e["input"]) < e["ctx"]["min_length"]
        ]
        raise_all(problems, ConfigError)
        raise


def read_object(path: Path, error: type[EnsdistillError] = DataError) -> dict[str, Any]:
    """Return the content of a JSON file of keys and values.

    Raises
    ------
    EnsdistillError
        Of the kind of `error`, if it cannot be read, is no such file or too deep in itself, or a
        key appears twice, of which JSON would keep the last in silence.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_JSON + 1)
        if len(content) > _MOST_JSON:
            raise error(f"{path}: is larger than {_MOST_JSON:,} bytes; expected a small JSON file")
        found = parse_json(content, _each_key_once)
    except OSError as failed:
        raise error(f"{path}: cannot be read ({failed.strerror or failed})") from failed
    except ValueError as failed:
        if isinstance(failed, error):
            raise
        why = what_instead(path) or f"cannot be read as JSON ({shortened(str(failed))})"
        raise error(f"{path}: {why}") from failed
    if not isinstance(found, dict):
        raise error(f"{path}: expected keys and values, found {shown(found)}")
    return found


def described(
    path: Path, content: object, model: type[ForeignT], error: type[EnsdistillError] = DataError
) -> ForeignT:
    """Return what a JSON file, or a part of one, says.

    Raises
    ------
    EnsdistillError
        Of the kind of `error`, in one line: file, key, what was expected and what was found.
    """
    why = misfit(content, model)
    if why is not None:
        raise error(f"{path}: {why}")
    return model.model_validate(content)


def misfit(content: object, model: type[Foreign], context: object = None) -> str | None:
    """Return the first thing in which a JSON value is not as described, None if it is.

    `context` is what the model's own validators ask.
    """
    try:
        model.model_validate(content, context=context)
    except ValidationError as failed:
        return shortened(_explain(failed.errors()[0], content, model))
    return None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} appears twice")
        found[key] = value
    return found


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
    return f"{path}: {message}, found {shown(error['input'])}"


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
            key = str(part) if str(part).isprintable() else repr(part)
            text += f".{key}" if text else key
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
