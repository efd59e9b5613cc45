"""What a stage is told and what it tells, by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo

from ensdistill.pipeline.config import Foreign
from ensdistill.pipeline.figures import some
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.manifest import Artifact, Manifest

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Size = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]


def _rectangular(rows: list[list[T]]) -> list[list[T]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("expected rows of one length")
    return rows


Counts = Annotated[list[list[Count]], AfterValidator(_rectangular)]
Numbers = Annotated[list[list[float]], AfterValidator(_rectangular)]
Maybes = Annotated[list[list[float | None]], AfterValidator(_rectangular)]


def _of_each_class(found: dict[str, T], info: ValidationInfo) -> dict[str, T]:
    manifest: Manifest | None = info.context
    recipe: dict[str, Any] = {} if manifest is None else manifest.recipe
    classes = recipe.get("classes", recipe.get("assign"))
    if isinstance(classes, list | dict):
        names = dict.fromkeys(map(str, classes))
        if odd := [c for c in (*names, *found) if (c in names) != (c in found)]:
            raise ValueError(
                f"expected one of each class; {some(odd)} is of recipe or result alone"
            )
    return found


ByClass = Annotated[dict[str, T], AfterValidator(_of_each_class)]
"""Of every class of the experiment, as the recipe that an artifact is made by has them."""
Named = dict[str, float | None]


@dataclass(frozen=True)
class Recipe:
    """Everything that changes a stage's numbers: no paths, no names of teachers, no devices."""

    def to_json(self) -> dict[str, Json]:
        """Return it as it is hashed."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Json:
    """Return a value in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(of) for of in value]
    plain: Json = value.to_json() if isinstance(value, Result) else value
    return plain


@dataclass(frozen=True)
class OfClasses(Recipe):
    """The recipe of a stage that nothing else changes than which classes there are."""

    classes: tuple[str, ...]


@dataclass(frozen=True)
class Settings(Recipe):
    """A recipe whose keys are settings of the experiment file."""

    values: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Return it as it is hashed."""
        return dict(self.values)


class Result(Foreign):
    """What a stage publishes beside its items."""

    def to_json(self) -> dict[str, Json]:
        """Return it as its manifest has it."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def told_by(cls, artifact: Artifact) -> Self:
        """Return what an artifact published."""
        return cls.model_validate(artifact.manifest.result)


class Record(Foreign):
    """What is kept of an item; here of one of which nothing more is read."""


class Labelled(Result):
    """Of label maps: how many images, and how many pixels each class has in them."""

    images: Count
    labels: ByClass[Count]


class LabelMap(Record):
    """A label map: its height and width, and the pixels of each class."""

    size: Size
    labels: list[Count]
