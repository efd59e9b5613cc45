"""What the result of each stage and the record of each of its items are, by type.

An artifact may be from another machine, another version or another hand, and its checksums prove
only that it is what somebody wrote. What does not fit is corrupt, before anything is read from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, Field

from ensdistill.pipeline.config import Foreign, misfit
from ensdistill.pipeline.manifest import Form
from ensdistill.stages.graph import VERSIONS

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Size = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]


def _rectangular(rows: list[list[T]]) -> list[list[T]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("expected rows of one length")
    return rows


Counts = Annotated[list[list[Count]], AfterValidator(_rectangular)]
Numbers = Annotated[list[list[float]], AfterValidator(_rectangular)]


class _Labelled(Foreign):
    images: Count
    labels: dict[str, Count]


class _Kept(Foreign):
    images: Count
    mean: float


class _Fused(_Labelled):
    coverage: float
    conflict: float | None = None
    hole: float | None = None
    ignored: float | None = None
    classes: dict[str, dict[str, float | None]] | None = None


class _Weighed(Foreign):
    images: Count
    mean: float | None
    classes: dict[str, float | None]


class _Certain(Foreign):
    certainty: dict[str, float | None]
    support: dict[str, Count]
    labelled: dict[str, Count]
    has_class: dict[str, bool]


class _Modelled(Foreign):
    images: Count
    weights: list[float]
    prior: Numbers
    confusions: list[Numbers]
    reliability: Annotated[list[list[float | None]], AfterValidator(_rectangular)]
    rounds: Count
    converged: bool
    fallback: str | None


class _Policy(Foreign):
    strategy: str
    teacher: dict[str, str | None]
    certainty: dict[str, float | None]
    fallback: list[str]


class _Trained(Foreign):
    steps: Count
    loss: float | None


class _Method(Foreign):
    name: str
    kind: str
    miou: float | None
    iou: dict[str, float | None]
    miou_covered: float | None
    iou_covered: dict[str, float | None]
    coverage: float | None
    pixel_accuracy: float | None
    confmat: Counts | None = None


class _Evaluated(Foreign):
    classes: list[str]
    methods: list[_Method]


class _Spoilt(Foreign):
    bad: Count
    added: str | None
    miou: float | None


class _Composition(Foreign):
    teachers: list[str]
    best: str
    best_miou: float | None


class _Flexibility(Foreign):
    compositions: list[_Composition]
    margin: dict[str, float | None]


class _Ablated(Foreign):
    images: Count
    fitted_images: Count
    teachers: dict[str, float | None]
    robustness: list[_Spoilt]
    flexibility: _Flexibility


class _Item(Foreign):
    """The record of an item of which nothing more is read."""


class _LabelMap(Foreign):
    size: Size
    labels: list[Count]
    counts: dict[str, Count | list[Count]] | None = None


class _WeightMap(Foreign):
    size: Size
    labels: list[Count]
    sums: list[Count]


class _KeptMap(Foreign):
    size: Size
    mean: float


class _Sums(Foreign):
    sums: list[float]
    support: list[Count]


class _Confusions(Foreign):
    confmats: list[Counts]


_FORMS: Final[Mapping[str, tuple[type[Foreign], type[Foreign]]]] = {
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

FORMS: Final[Mapping[str, Form]] = {
    stage: Form(VERSIONS[stage], partial(misfit, model=result), partial(misfit, model=record))
    for stage, (result, record) in _FORMS.items()
}
