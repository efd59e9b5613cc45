"""What networks answer: whatever they return, and the tensor of it that is meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ensdistill.pipeline.errors import DataError

_ROUNDED: Final = 0.02  # of a sum of half-precision probabilities
_SHOWN: Final = 8  # tensors of an answer
_PLAIN: Final = re.compile(r"(0|[1-9]\d*)(/[\w./-]*)?|[A-Za-z_/][\w./-]*")  # to YAML
_WORDS: Final = {"null", "true", "false", "yes", "no", "on", "off"}  # to YAML, no texts
_ONE_BY_ONE: Final = (
    "; if it answers to one image at a time, or to each of them apart, say `runtime: "
    "{batch_size: 1}`"
)
_SLACK: Final = 2  # rows or columns by which scores may differ from the image at their stride
_REMEDIES: Final = {
    "ids": "ids, of a network that ends in an argmax: say `output: ids` on the network",
    "floating ids": (
        "ids that were turned into floating numbers: leave them whole (int64), and say "
        "`output: ids` on the network"
    ),
    "(N, h, w, 1)": "(N, h, w, 1) ids: take the last axis away, and say `output: ids`",
    "(h, w)": "(h, w) ids: keep the axis of the images, and say `output: ids`",
    "scores": "scores, of a network without an argmax: leave `output: ids` out",
    "whole scores": "scores in whole numbers: leave them floating",
    "(N, h, w, C)": (
        "(N, h, w, C): put the channels first, by `.permute(0, 3, 1, 2)` or a Transpose at the "
        "end of the ONNX model"
    ),
    "(h, w, C)": "(h, w, C): put the channels first and keep the axis of the images",
    "(C, h, w)": "(C, h, w): keep the axis of the images",
    "(N, C)": "(N, C), of a classifier of whole images: it labels no pixels",
    "binary": (
        "the one channel of a binary network, for two classes: answer "
        "`torch.cat([torch.zeros_like(x), x], 1)` of its (N, 1, h, w) logits x"
    ),
}

Named = tuple[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """How what a network returns is to be read.

    Attributes
    ----------
    output : str
        ``"logits"``, ``"probabilities"`` or ``"ids"``.
    classes : int or None
        Channels that stand for classes; None takes all there are.
    void : tuple of int
        Channels that stand for none.
    precision : str
        Of torch's autocast; ``"float32"`` is none.
    take : str, mapping or None
        The part of the answer that is meant, by name or position (``1``, ``out``, ``aux/0``), or
        the weights of the parts whose sum is; None for the only one that can be.
    """

    output: Literal["logits", "probabilities", "ids"] = "logits"
    classes: int | None = None
    void: tuple[int, ...] = ()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    take: str | Mapping[str, float] | None = None

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Reading:
        """Return what a teacher's recipe says."""
        return cls(
            recipe.get("output", "logits"),
            len(recipe["teacher_classes"]) if "teacher_classes" in recipe else None,
            tuple(recipe.get("void_channels", ())),
            recipe.get("precision", "float32"),
            recipe.get("take"),
        )

    def read(self, answer: object, count: int, *, align_corners: bool = False) -> Tensor:
        """Return what a network says of some images.

        Parameters
        ----------
        answer : object
            What it returned: a tensor, or containers of tensors within each other.
        count : int
            How many images it saw.
        align_corners : bool
            How parts of other sizes are resized before they are summed.

        Returns
        -------
        Tensor
            (N, C, h, w) floating scores, void channels among them, or (N, h, w) int64 where
            `output` is ids.

        Raises
        ------
        DataError
            If nothing there is of that form, several tensors are and none is taken, or what is
            taken is not there.
        """
        if not isinstance(self.take, Mapping):
            return self._one(answer, self.take or "", count, align_corners)
        terms = [
            (self._one(answer, name, count, align_corners), self.take[name])
            for name in sorted(self.take)
        ]
        channels = {scores.shape[1] for scores, _ in terms}
        if len(channels) > 1:
            raise DataError(
                f"`take` sums outputs of {' and '.join(map(str, sorted(channels)))} channels: "
                f"{_listed(tensors_in(answer))}; expected as many in each"
            )
        return _weighted_sum(terms, align_corners)

    def doubt(self, scores: Tensor) -> str | None:
        """Return why scores may be other than `output` says, None if nothing tells.

        Raises
        ------
        DataError
            If they cannot be what it says.
        """
        if self.output == "ids" or not scores.numel():
            return None
        low = scores.amin().item()
        if self.output == "probabilities" and low < 0:
            raise DataError(
                f"the network's output goes down to {low:.3g}, and `output: probabilities` says "
                "that it is never below 0; if these are logits, leave `output` out"
            )
        total = sum(self.take.values()) if isinstance(self.take, Mapping) else 1.0
        alike = None if self.output != "logits" else probabilities(scores, total)
        if alike is None:
            return None
        return (
            f"{alike}: they look like probabilities, and a softmax of these makes it less certain "
            "of everything; if they are, say `output: probabilities` on the network"
        )

    def taken(self, answer: object) -> str:
        """Return which parts of an answer are taken, and which there are."""
        assert self.take is not None
        weights = self.take if isinstance(self.take, Mapping) else {self.take: None}
        terms = [name if w is None else f"{w:g} x {name}" for name, w in sorted(weights.items())]
        return f"{' + '.join(terms)} of {_listed(tensors_in(answer))}"

    def channels(self, count: int) -> list[int]:
        """Return which of `count` channels stand for classes.

        Raises
        ------
        DataError
            If they are not as many as were declared.
        """
        beyond = [k for k in self.void if k >= count]
        kept = [k for k in range(count) if k not in self.void]
        if beyond or self.classes not in (None, len(kept)):
            void = f" beside void_channels {list(self.void)}" if self.void else ""
            raise DataError(
                f"the network has {count} channels, the declared table {self.classes} "
                f"classes{void}; declare the teacher's own `classes:`, or its `void_channels`"
            )
        return kept

    @property
    def _declared(self) -> int | None:
        """How many channels were declared."""
        return None if self.classes is None else self.classes + len(self.void)

    @property
    def _expected(self) -> str:
        if self.output == "ids":
            return "(N, h, w) or (N, 1, h, w) whole numbers, as `output: ids` says"
        channels = "" if self._declared is None else f" of {self._declared} channels"
        return f"(N, C, h, w) {self.output}{channels}"

    def _one(self, answer: object, name: str, count: int, align_corners: bool) -> Tensor:
        """Return the tensor that is meant of an answer, or of the part of that name."""
        inside = tensors_in(_part(answer, name) if name else answer, name)
        able = self._candidates(inside)
        if not able:
            raise DataError(self._unlike(answer, inside, count))
        if len(able) > 1:
            each = count > 1 and [len(tensor) for _, tensor in able] == [1] * count
            several = self._several(able, align_corners)
            raise DataError(f"{several}{_ONE_BY_ONE * each}")
        [(name, found)] = able
        if len(found) != count:
            raise DataError(
                f"the network returned {_shape(found)} for {count} images; expected {count} of "
                f"them{_ONE_BY_ONE * (count > 1)}"
            )
        if not found.numel():
            raise DataError(f"the network returned {_shape(found)}, of no pixel at all")
        if self.output == "ids":
            return (found if found.ndim == 3 else found[:, 0]).long()
        known = self._declared in (None, found.shape[1])
        if not known and _form(found, count, self._declared) != "scores":
            raise DataError(self._unlike(answer, able, count))
        self.channels(found.shape[1])
        return found

    def _candidates(self, inside: Sequence[Named]) -> list[Named]:
        """Return the tensors that could be the answer, each once."""
        once = list({id(t): (n, t) for n, t in reversed(inside)}.values())[::-1]
        if self.output == "ids":
            flat = [(n, t) for n, t in once if t.ndim == 3 or (t.ndim == 4 and t.shape[1] == 1)]
            return [(n, t) for n, t in flat if _is_whole(t)]
        scores = [(n, t) for n, t in once if t.ndim == 4 and t.is_floating_point()]
        return [(n, t) for n, t in scores if t.shape[1] == self._declared] or scores

    def _several(self, able: Sequence[Named], align_corners: bool) -> str:
        """Return why an answer is refused in which several tensors could be meant."""
        first, one = able[0]
        texts = [f"{name} {_shape(tensor)}" for name, tensor in able]
        for k, (_, other) in enumerate(able[1:_SHOWN], 1):
            if (apart := _apart(one, other, align_corners)) is not None:
                texts[k] += f" (other labels than {first} on {100 * apart:.1f} % of the pixels)"
        declared = self.output == "ids" or self._declared in (None, one.shape[1])
        misfit = "" if declared else f", none of the declared {self._declared} channels"
        keys = [f"`take: {_as_key(name)}`" for name, _ in able[:_SHOWN]]
        weights = ", ".join(f"{_as_key(n)}: {w}" for (n, _), w in zip(able, (0.5, 1), strict=False))
        summed = "" if self.output == "ids" else f"; or a weighted sum: `take: {{{weights}}}`"
        return (
            f"the network has several outputs that could be its {self.output}{misfit}: "
            f"{_some(texts)}. Say on the network which is meant: {' or '.join(keys)}{summed}"
        )

    def _unlike(self, answer: object, inside: Sequence[Named], count: int) -> str:
        """Return why an answer is refused in which no tensor could be meant."""
        there = _listed(inside) or type(answer).__name__
        forms = {_form(tensor, count, self._declared) for _, tensor in inside}
        found = next((form for form in _REMEDIES if form in forms), None)
        more = "" if found is None else f". It looks like {_REMEDIES[found]}"
        return f"the network returned {there}; expected {self._expected}{more}"


def tensors_in(answer: object, name: str = "", above: tuple[int, ...] = ()) -> list[Named]:
    """Return the tensors of an answer with their names: ``out``, ``1``, or within others ``1/0``.

    Mappings, sequences, dataclasses and plain objects are looked through. A tensor by itself has
    the `name` of the answer; `above` are the containers that it is in.
    """
    if isinstance(answer, Tensor):
        return [(name, answer)]
    if id(answer) in above:  # it holds itself
        return []
    inside, above = _parts(answer), (*above, id(answer))
    named = [(f"{name}/{part}" if name else part, inner) for part, inner in inside]
    return [found for part, inner in named for found in tensors_in(inner, part, above)]


def probabilities(scores: Tensor, total: float = 1.0) -> str | None:
    """Return why (N, C, h, w) scores look like probabilities, None if they do not.

    There are pixels and classes; `total` is what probabilities would sum to, where several outputs
    are summed.
    """
    low, high = scores.amin().item(), scores.amax().item()
    if low < 0 or not 0 < high <= total:
        return None
    whole = (scores.float().sum(dim=1) - total).abs().amax().item() < _ROUNDED * total
    sums = f" and sum to {total:g} over the classes" if whole else ""
    return f"all its scores are between 0 and {total:g}{sums}"


def misshapen(found: tuple[int, int], seen: tuple[int, int]) -> str | None:
    """Return why an answer may not lie over its image, None if nothing tells.

    Both are height and width, of the answer and of the image that the network saw.
    """
    if _covers(found, seen):
        return None
    turned = " It looks turned: are its rows first?" * _covers(found[::-1], seen)
    return (
        f"its output is {found[0]}x{found[1]} for an image of {seen[0]}x{seen[1]} (height x "
        "width), of another shape, and is stretched over the whole image as if it covered it: "
        f"does it?{turned}"
    )


def _covers(found: tuple[int, ...], seen: tuple[int, int]) -> bool:
    """Whether there is a stride at which an answer is as high and as wide as its image."""
    pairs = list(zip(seen, found, strict=True))
    least = max(side / (own + _SLACK) for side, own in pairs)
    return least <= min(side / max(own - _SLACK, 0.5) for side, own in pairs)


def _form(found: Tensor, count: int, declared: int | None) -> str | None:
    """Return what the answer to `count` images looks like: a key of `_REMEDIES`, or nothing known.

    Scores of another number of channels than was `declared` are scores.
    """
    shape = tuple(found.shape)
    if _is_whole(found):
        if len(shape) == 3 or (len(shape) == 4 and shape[1] == 1):
            return "ids"
        if len(shape) == 4:
            return "(N, h, w, 1)" if shape[3] == 1 else "whole scores"
        return "(h, w)" if len(shape) == 2 else None
    if not found.is_floating_point():
        return None
    if len(shape) == 4 and shape[1] == declared:
        return "scores"
    if len(shape) == 4 and shape[3] == declared:
        return "(N, h, w, C)"
    if shape[:1] == (count,) and (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)):
        if bool((found == found.round()).all()):
            return "floating ids"
        if declared == 2:
            return "binary"
    if len(shape) == 3 and declared in (shape[0], shape[2]):
        return "(C, h, w)" if shape[0] == declared else "(h, w, C)"
    if len(shape) == 4:
        return "scores"
    return "(N, C)" if len(shape) == 2 and shape[0] == count else None


def joined(answers: Sequence[Any]) -> Any:
    """Return the answers to single images as the answer to all; containers become mappings."""
    first = answers[0]
    if isinstance(first, Tensor):
        return torch.cat(list(answers)) if first.ndim else first
    parts = [dict(_parts(answer)) for answer in answers]
    return {name: joined([of[name] for of in parts]) for name in parts[0]}


def _parts(found: object) -> list[tuple[str, Any]]:
    """Return what a container holds, with names; nothing of what is none."""
    if isinstance(found, Mapping):
        return [(str(name), part) for name, part in found.items()]
    if isinstance(found, (tuple, list)):
        names = getattr(found, "_fields", range(len(found)))
        return [(str(name), part) for name, part in zip(names, found, strict=True)]
    if is_dataclass(found) and not isinstance(found, type):
        return [(field.name, getattr(found, field.name)) for field in fields(found)]
    if callable(found) or not hasattr(found, "__dict__"):  # a network is no container of weights
        return []
    return list(vars(found).items())


def _part(answer: object, name: str) -> Any:
    """Return a part of an answer by its name, else by its position.

    DataError if there is none; it lists what there is.
    """
    found = list(_parts_called(answer, name))
    if not found:
        there = _listed(tensors_in(answer)) or type(answer).__name__
        if isinstance(answer, Tensor):
            there = f"one tensor alone, {there}: leave `take` out"
        raise DataError(f"`take` names {_as_key(name)}, and the network returned {there}")
    return found[0]


def _parts_called(found: object, name: str) -> Iterator[Any]:
    parts = [] if isinstance(found, Tensor) else _parts(found)
    for own, part in (*parts, *((str(k), part) for k, (_, part) in enumerate(parts))):
        if own == name:
            yield part
        elif name.startswith(f"{own}/"):
            yield from _parts_called(part, name.removeprefix(f"{own}/"))


def _weighted_sum(terms: Sequence[tuple[Tensor, float]], align_corners: bool) -> Tensor:
    """Return the float32 sum of scores, each resized to the largest of them."""
    size = _largest([scores for scores, _ in terms])
    parts = [weight * _resized(scores.float(), size, align_corners) for scores, weight in terms]
    return sum(parts[1:], parts[0])


def _apart(one: Tensor, other: Tensor, align_corners: bool) -> float | None:
    """Return on which share of the pixels two outputs have other labels, None if they have none."""
    if len(one) != len(other) or not one.numel() or not other.numel():
        return None
    size = _largest([one, other])
    labels = [_labels(found, size, align_corners) for found in (one, other)]
    return (labels[0] != labels[1]).float().mean().item()


def _labels(found: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if found.is_floating_point():
        return _resized(found.float(), size, align_corners).argmax(dim=1)
    ids = found if found.ndim == 4 else found[:, None]
    return functional.interpolate(ids.float(), size, mode="nearest-exact")[:, 0]


def _largest(tensors: Sequence[Tensor]) -> tuple[int, int]:
    return max(t.shape[-2] for t in tensors), max(t.shape[-1] for t in tensors)


def _resized(scores: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(scores.shape[-2:]) == size:
        return scores
    return functional.interpolate(scores, size, mode="bilinear", align_corners=align_corners)


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} ".removeprefix("torch.")
    return f"{kind}{tuple(tensor.shape)}"


def _listed(inside: Sequence[Named]) -> str:
    return _some([f"{name} {_shape(tensor)}".strip() for name, tensor in inside])


def _some(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return ", ".join([*texts[:_SHOWN], *more])


def _as_key(name: str) -> str:
    """Return a name as the experiment file has it."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _WORDS
    return name if plain else json.dumps(name)  # a text of JSON is one of YAML
