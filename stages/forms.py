"""What the result of each stage and the record of each of its items are, by type.

An artifact may be from another machine, another version or another hand, and its checksums prove
only that it is what somebody wrote. What does not fit is corrupt, before anything is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ensdistill.pipeline.manifest import Form
from ensdistill.stages.graph import VERSIONS

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Size = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _rectangular(rows: list[list[T]]) -> list[list[T]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows of one length")
    return rows


Counts = Annotated[list[list[Count]], AfterValidator(_rectangular)]
Numbers = Annotated[list[list[Number]], AfterValidator(_rectangular)]
_SHOWN: Final = 40


class _Form(BaseModel):
    """Base of all forms: no text passes for a number; what is not named may be anything."""

    model_config = ConfigDict(strict=True, extra="ignore", defer_build=True)


class _Labelled(_Form):
    images: Count
    labels: dict[str, Count]


class _Kept(_Form):
    images: Count
    mean: Number


class _Fused(_Labelled):
    coverage: Number
    conflict: Number | None = None
    hole: Number | None = None
    ignored: Number | None = None
    classes: dict[str, dict[str, Number | None]] | None = None


class _Weighed(_Form):
    images: Count
    mean: Number | None
    classes: dict[str, Number | None]


class _Certain(_Form):
    certainty: dict[str, Number | None]
    support: dict[str, Count]
    labelled: dict[str, Count]
    has_class: dict[str, bool]


class _Modelled(_Form):
    images: Count
    weights: list[Number]
    prior: list[Number]
    confusions: list[Numbers]
    reliability: Annotated[list[list[Number | None]], AfterValidator(_rectangular)]
    rounds: Count
    converged: bool


class _Policy(_Form):
    strategy: str
    teacher: dict[str, str | None]
    certainty: dict[str, Number | None]
    fallback: list[str]


class _Trained(_Form):
    steps: Count
    loss: Number | None


class _Method(_Form):
    name: str
    kind: str
    miou: Number | None
    iou: dict[str, Number | None]
    miou_covered: Number | None
    iou_covered: dict[str, Number | None]
    coverage: Number | None
    pixel_accuracy: Number | None
    confmat: Counts | None = None


class _Evaluated(_Form):
    classes: list[str]
    methods: list[_Method]


class _Spoilt(_Form):
    bad: Count
    added: str | None
    miou: Number | None


class _Composition(_Form):
    teachers: list[str]
    best: str
    best_miou: Number | None


class _Flexibility(_Form):
    compositions: list[_Composition]
    margin: dict[str, Number | None]


class _Ablated(_Form):
    images: Count
    train_images: Count
    teachers: dict[str, Number | None]
    robustness: list[_Spoilt]
    flexibility: _Flexibility


class _Item(_Form):
    """The record of an item of which nothing more is read."""


class _LabelMap(_Form):
    size: Size
    labels: list[Count]
    counts: dict[str, Count | list[Count]] | None = None


class _WeightMap(_Form):
    size: Size
    labels: list[Count]
    sums: list[Count]


class _KeptMap(_Form):
    size: Size
    mean: Number


class _Sums(_Form):
    sums: list[Number]
    support: list[Count]


class _Confusions(_Form):
    confmats: list[Counts]


_FORMS: Final[Mapping[str, tuple[type[_Form], type[_Form]]]] = {
    "infer": (_Labelled, _LabelMap),
    "certainty-maps": (_Kept, _KeptMap),
    "soft-maps": (_Kept, _KeptMap),
    "probe": (_Trained, _Item),
    "certainty": (_Certain, _Sums),
    "label-model": (_Modelled, _Item),
    "policy": (_Policy, _Item),
    "fusion": (_Fused, _LabelMap),
    "weights": (_Weighed, _WeightMap),
    "student": (_Trained, _Item),
    "truth": (_Labelled, _LabelMap),
    "evaluation": (_Evaluated, _Item),
    "ablation": (_Ablated, _Confusions),
}


def _misfit(form: type[_Form]) -> Callable[[object], str | None]:
    def why(found: object) -> str | None:
        try:
            form.model_validate(found)
        except ValidationError as error:
            return _told(error.errors()[0])
        return None

    return why


def _told(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where}: is missing"
    said = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    found = repr(error["input"])
    shown = found if len(found) <= _SHOWN else found[: _SHOWN - 3] + "..."
    return f"{where}: expected {said}, found {shown}"


FORMS: Final[Mapping[str, Form]] = {
    stage: Form(VERSIONS[stage], _misfit(result), _misfit(record))
    for stage, (result, record) in _FORMS.items()
}
