"""What the label files of a teacher, or of the ground truth, hold as a whole.

Each file may be as declared and all of them together not: masks of 0 and 255, train ids that are
declared as label ids, a class map under which little is left. Numbers in, sentences out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ensdistill.data.classes import IGNORE_INDEX, ClassTable, Ids
from ensdistill.pipeline.figures import some

LITTLE: Final = 0.5
"""The share of the pixels with a label below which it is asked where they went."""

_NAMED: Final = 3  # classes that are left out


@dataclass(frozen=True)
class LabelFolder:
    """The label files of one split, counted.

    Attributes
    ----------
    where : str
        The key of the experiment file that declares how they are encoded, such as ``teachers[a]``.
    goals : mapping
        Each class of `table`, in which they are written, to that of the experiment, or to None:
        no label.
    files : int
        How many were counted.
    values : mapping
        Raw value to pixels, over all of these; every value is legal.
    """

    where: str
    ids: Ids
    table: ClassTable
    goals: Mapping[str, str | None]
    files: int = 0
    values: Mapping[int, int] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """All pixels."""
        return sum(self.values.values())

    @property
    def classes(self) -> dict[str, int]:
        """The pixels of each of their own classes."""
        legal = self.table.legal_values(self.ids)
        found = dict.fromkeys(self.table.classes, 0)
        for value, pixels in self.values.items():
            if (own := legal[value]) != IGNORE_INDEX:
                found[self.table.classes[own]] += pixels
        return found

    @property
    def labelled(self) -> int:
        """The pixels that have a label of the experiment."""
        return sum(n for name, n in self.classes.items() if self.goals[name] is not None)

    @property
    def coverage(self) -> float:
        """The share of the pixels that have a label of the experiment."""
        return self.labelled / self.pixels

    @property
    def shares(self) -> dict[str, float]:
        """The share of each own class that occurs, and of what is ``ignored``; largest first."""
        counts = {name: n for name, n in self.classes.items() if n}
        if ignored := self.pixels - sum(counts.values()):
            counts["ignored"] = ignored
        largest = sorted(counts, key=lambda name: -counts[name])
        return {name: counts[name] / self.pixels for name in largest}

    @property
    def absent(self) -> list[str]:
        """Their own classes that occur in no file."""
        return [name for name, n in self.classes.items() if not n]


def described(found: LabelFolder) -> dict[str, Any]:
    """Return what they hold as JSON-able data; shares and coverage are fractions of all pixels."""
    return {
        "files": found.files,
        "shares": found.shares,
        "coverage": found.coverage,
        "absent": found.absent,
        "warnings": warnings(found),
    }


def without_label(found: LabelFolder) -> str | None:
    """Return why no pixel of any file has a label, None if some has."""
    if found.labelled:
        return None
    return f"no labelled pixel in any of its {found.files} files: {_lost(found)}"


def warnings(found: LabelFolder) -> list[str]:
    """Return what is likely to be another thing than what was declared."""
    said = []
    raw = {value for value, pixels in found.values.items() if pixels}
    if raw == {0, IGNORE_INDEX} and found.ids != "palette" and len(found.table) > 1:
        said.append(
            f"its files hold 0 and 255 alone, as masks do: 255, {1 - found.coverage:.0%} of the "
            "pixels, means no label here. If it is the foreground, say `ids: palette` and give the "
            "two classes the colours [0, 0, 0] and [255, 255, 255] in the class table"
        )
    elif _are_train_ids(found, raw):
        said.append(
            f"these look like train ids ({min(raw)}..{max(raw - {IGNORE_INDEX})}"
            f"{' and 255' if IGNORE_INDEX in raw else ''}), and are read as label ids: "
            f"{1 - found.coverage:.0%} of the pixels get no label; set `ids: train_ids` on "
            f"{found.where}"
        )
    elif found.coverage < LITTLE:
        said.append(
            f"only {found.coverage:.1%} of the pixels have a label: {_lost(found)}; are "
            f"`ids:`, `classes:` and `map:` of {found.where} those of its files?"
        )
    occurring = [name for name in found.classes if name not in found.absent]
    if len(occurring) == 1 and len(found.table) > 1 and found.coverage == 1:
        said.append(
            f"its {found.files} files call every pixel {occurring[0]}: are `ids:` and `classes:` "
            f"of {found.where} those of its files?"
        )
    return said


def _are_train_ids(found: LabelFolder, raw: set[int]) -> bool:
    """Whether files that are declared as label ids look like train ids.

    Label ids of street scenes begin with what evaluation ignores, so that most would be lost; and
    255 is the train id of these.
    """
    train_ids = {*range(len(found.table)), IGNORE_INDEX}
    lost = IGNORE_INDEX in raw or found.coverage < LITTLE
    return found.ids == "label_ids" and lost and raw <= train_ids and raw != {IGNORE_INDEX}


def _lost(found: LabelFolder) -> str:
    """Return where the pixels without a label are, in words."""
    pixels = found.pixels
    left_out = {c: n for c, n in found.classes.items() if n and found.goals[c] is None}
    ignored = pixels - sum(found.classes.values())
    parts = []
    if ignored:
        legal = found.table.legal_values(found.ids)
        values = sorted(v for v, n in found.values.items() if n and legal[v] == IGNORE_INDEX)
        shown = [f"#{v:06x}" if found.ids == "palette" else str(v) for v in values[:_NAMED]]
        more = ", ..." if len(values) > _NAMED else ""
        parts.append(f"{_share(ignored, pixels)} {', '.join(shown)}{more}, which is no class")
    if left_out:
        names = sorted(left_out, key=lambda c: -left_out[c])
        parts.append(
            f"{_share(sum(left_out.values()), pixels)} of classes that go nowhere "
            f"({some(names, _NAMED)})"
        )
    return " and ".join(parts)


def _share(part: int, whole: int) -> str:
    return "all are" if part == whole else f"{part / whole:.0%} are"
