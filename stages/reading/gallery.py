"""Pictures of a report: images chosen by how far the teachers agree, and what was made of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensdistill.data.classes import IGNORE_INDEX, ClassTable
from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import UInt8
from ensdistill.data.splits import Picture
from ensdistill.pipeline.node import Progress
from ensdistill.stages.functional.agreement import Agreement, agreement, claims
from ensdistill.stages.functional.numbers import or_none, share
from ensdistill.stages.functional.scores import class_counts
from ensdistill.stages.labelmaps import LabelMaps, LabelReader, Stored, read_all
from ensdistill.stages.nodes.label_model.run import spread
from ensdistill.stages.work.items import for_each

IMAGES: Final = 512
"""The most images in which agreement is counted, spread evenly over the sorted ids."""

_EACH: Final = 3  # images of most, of median and of least agreement
_WIDTHS: Final = (640, 480, 360, 240)  # in pixels; the first whose pictures take no more than
_BYTES: Final = 4_000_000  # a gallery
_NAMED: Final = 4  # classes in a picture's description
_SPOT: Final = 0.005  # of an image: a class below it is not worth a word

# Okabe and Ito's colours: what is settled is clear, the more claims the darker
_HOLE: Final = (0, 114, 178)
_CLAIMED: Final = ((240, 228, 66), (230, 159, 0), (213, 94, 0))
_WRONG: Final = (213, 94, 0)
_OVERLAY: Final = 210  # of 255, how opaque


@dataclass(frozen=True)
class Drawn:
    """One picture: a file, its `title`, and in `text` what is to be seen, for who cannot see it.

    `kind` is ``photo``, ``labels`` (a palette PNG whose indices are train ids), ``claims`` or
    ``wrong``.
    """

    kind: str
    title: str
    mime: str
    content: bytes
    text: str


@dataclass(frozen=True)
class Shot:
    """An image of a gallery, and its pictures of so many pixels, the photograph first.

    `rank` is ``most``, ``median`` or ``least``: how far the teachers agree among all images looked
    at. `agreement` is the share of the pixels that any teacher labels which all give the same
    class, None where no teacher labels any; `unlabelled` is that of all pixels which none labels.
    """

    id: str
    rank: str
    agreement: float | None
    unlabelled: float
    width: int
    height: int
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class _Counting:
    """Counts the agreement in one image: its teachers' label maps, then the fused one."""

    readers: tuple[LabelReader, ...]
    n_classes: int

    def __call__(self, stored: list[Stored]) -> Agreement:
        *label_maps, fused = read_all(self.readers, stored)
        return agreement(np.stack(label_maps), fused, self.n_classes)


def agreements(
    teachers: Sequence[LabelMaps],
    fused: LabelMaps,
    n_classes: int,
    *,
    workers: int,
    progress: Progress,
) -> dict[str, Agreement]:
    """Count how far teachers agree in at most `IMAGES` images, by image id."""
    ids = spread(sorted(fused), IMAGES)
    maps = [*teachers, fused]
    found: dict[str, Agreement] = {}
    progress.start(len(ids), 0, "images")
    for_each(
        [[m.find(image_id) for m in maps] for image_id in ids],
        _Counting(tuple(m.reader for m in maps), n_classes),
        lambda stored, counted: found.update({stored[0].id: counted}),
        workers=workers,
        progress=progress,
    )
    return found


def total(found: Mapping[str, Agreement]) -> Agreement:
    """Return the agreement in all images together."""
    return reduce(add, found.values())


def unanimity(found: Agreement) -> float | None:
    """Return the share of the labelled pixels on which all teachers agree; None without any."""
    return or_none(share(found.unanimous, found.labelled))


def choose(found: Mapping[str, Agreement]) -> list[tuple[str, str]]:
    """Return image ids and their ranks: most, median and least agreement, each image once.

    Images of which no teacher labels any pixel come last.
    """

    def place(image_id: str) -> tuple[bool, float, str]:
        share = unanimity(found[image_id])
        return share is None, -(share or 0.0), image_id

    ordered = sorted(found, key=place)
    count = len(ordered)
    each = min(_EACH, -(-count // 3))
    starts = (0, (count - each) // 2, count - each) if count > 3 * each else (0, each, 2 * each)
    return [
        (image_id, rank)
        for rank, start in zip(("most", "median", "least"), starts, strict=True)
        for image_id in ordered[start : start + each]
    ]


@dataclass(frozen=True)
class Gallery:
    """Draws images of one split.

    Beside the `teachers` it shows what was `made` of them, by title and in that order, of which
    `truth` judges the `fused` maps. `digests` is path to sha256 of every image; for the `owner` of
    each class see `agreement.claims`.
    """

    pictures: Mapping[str, Picture]
    digests: Mapping[str, str]
    pixels: Pixels
    table: ClassTable
    teachers: Mapping[str, LabelMaps]
    made: Mapping[str, LabelMaps]
    fused: LabelMaps
    owner: NDArray[np.intp] | None = None
    truth: LabelMaps | None = None

    def draw(self, found: Mapping[str, Agreement], progress: Progress) -> list[Shot]:
        """Draw the chosen images, smaller where they would take too much room."""
        chosen = choose(found)
        shots: list[Shot] = []
        for width in _WIDTHS:
            progress.start(len(chosen), 0, "pictures")
            shots = []
            for image_id, rank in chosen:
                shots.append(self._shot(image_id, rank, found[image_id], width))
                progress.advance()
            if sum(len(d.content) for s in shots for d in s.drawn) <= _BYTES:
                break
        return shots

    def _shot(self, image_id: str, rank: str, found: Agreement, most: int) -> Shot:
        file = str(self.pictures[image_id].image)
        photo = self.pixels.read(file, self.digests[file])
        height, width = photo.shape[:2]
        if width > most:
            height, width = max(1, round(height * most / width)), most
        size = width, height
        drawn = [_photo(photo, size, f"Photograph {image_id}.")]
        maps = {name: of.read(image_id) for name, of in self.teachers.items()}
        drawn += [self._labels(name, labels, size) for name, labels in maps.items()]
        drawn += [self._labels(name, of.read(image_id), size) for name, of in self.made.items()]
        drawn.append(_claims(claims(np.stack(list(maps.values())), self.owner), size))
        if self.truth is not None:
            truth = self.truth.read(image_id)
            drawn.append(self._labels("ground truth", truth, size))
            drawn.append(_wrong(self.fused.read(image_id), truth, size))
        unlabelled = 1 - found.labelled / found.pixels
        return Shot(image_id, rank, unanimity(found), unlabelled, width, height, tuple(drawn))

    def _labels(self, title: str, labels: UInt8, size: tuple[int, int]) -> Drawn:
        counts = class_counts(labels, len(self.table))
        order = np.argsort(-counts, kind="stable")[:_NAMED]
        shares = {self.table.classes[c]: counts[c] / labels.size for c in order}
        named = [f"{name} {share:.0%}" for name, share in shares.items() if share >= _SPOT]
        rest = 1 - counts.sum() / labels.size
        named += [f"no label {rest:.0%}"] if rest >= _SPOT else []
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.table)] = self.table.colours
        content = _palette_png(labels, size, colours, np.full(256, 255, np.uint8))
        return Drawn("labels", title, "image/png", content, f"{title}: {', '.join(named)}.")


def owner_of(chosen: Mapping[str, str | None], teachers: Sequence[str]) -> NDArray[np.intp]:
    """Return (C,) the index of the teacher that a policy gives each class to, -1 for none."""
    return np.array([-1 if t is None else teachers.index(t) for t in chosen.values()], np.intp)


def _photo(photo: UInt8, size: tuple[int, int], text: str) -> Drawn:
    content = io.BytesIO()
    image = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    image.save(content, "JPEG", quality=80, optimize=True)
    return Drawn("photo", "photograph", "image/jpeg", content.getvalue(), text)


def _claims(counted: UInt8, size: tuple[int, int]) -> Drawn:
    colours, opacity = np.zeros((256, 3), np.uint8), np.full(256, _OVERLAY, np.uint8)
    colours[0], colours[2:] = _HOLE, _CLAIMED[-1]
    colours[2 : 2 + len(_CLAIMED)] = _CLAIMED
    opacity[1] = 0
    conflict, hole = np.count_nonzero(counted > 1), np.count_nonzero(counted == 0)
    text = f"Conflicts on {conflict / counted.size:.1%}, holes on {hole / counted.size:.1%}."
    content = _palette_png(counted, size, colours, opacity)
    return Drawn("claims", "conflicts and holes", "image/png", content, text)


def _wrong(fused: UInt8, truth: UInt8, size: tuple[int, int]) -> Drawn:
    wrong = (fused != truth) & (truth != IGNORE_INDEX)
    colours, opacity = np.zeros((256, 3), np.uint8), np.zeros(256, np.uint8)
    colours[1], opacity[1] = _WRONG, _OVERLAY
    judged = max(1, int(np.count_nonzero(truth != IGNORE_INDEX)))
    text = f"Fused labels are wrong on {np.count_nonzero(wrong) / judged:.1%}."
    content = _palette_png(wrong.astype(np.uint8), size, colours, opacity)
    return Drawn("wrong", "errors of the fused labels", "image/png", content, text)


def _palette_png(
    values: UInt8, size: tuple[int, int], colours: NDArray[np.uint8], opacity: NDArray[np.uint8]
) -> bytes:
    """Return a PNG whose indices are the values: the page makes classes clear in its tRNS chunk."""
    image = Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
    image.putpalette(colours.tobytes())  # makes it a palette image
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True, transparency=opacity.tobytes())
    return content.getvalue()
