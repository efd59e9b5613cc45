"""Class tables by name, and maps between them.

Train ids are positions in a table, 0..C-1; everything else about classes goes by name. This module
imports no numpy: planning needs tables, not arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from ensdistill.data.splits import expanded
from ensdistill.pipeline.errors import ConfigError, shortened, shown

IGNORE_INDEX: Final = 255
MAX_CLASSES: Final = 254  # of a teacher; ids are 8 bits and 255 is taken
_LONGEST: Final = 200  # characters of a name

Ids: TypeAlias = Literal["train_ids", "label_ids", "palette"]
Colour: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of an experiment or of a teacher.

    By `label_ids` an id in ground-truth files is a train id, 255 for ids that evaluation ignores;
    there are none where train ids are the only ids. By `subsets` a name, such as ``miou13``, stands
    for several classes.
    """

    name: str  # `cityscapes19` or the path of a YAML file
    classes: tuple[str, ...]  # in train-id order
    colours: tuple[Colour, ...]  # RGB, 0..255, in train-id order
    label_ids: Mapping[int, int] = field(default_factory=dict)
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.classes)

    def legal_values(self, ids: Ids) -> dict[int, int]:
        """Return every pixel value allowed under an encoding, with its train id or 255.

        Palette colours are packed as ``red << 16 | green << 8 | blue``; black stands for 255
        unless the table gives it to a class.

        Raises
        ------
        ConfigError
            If the table has no such encoding.
        """
        if ids == "train_ids":
            return {i: i for i in range(len(self))} | {IGNORE_INDEX: IGNORE_INDEX}
        if ids == "label_ids":
            if not self.label_ids:
                raise ConfigError(
                    f"class table {self.name} has no label ids; give each class its `label_id` in "
                    "it, or declare `ids: train_ids` where files hold positions in the table"
                )
            return {IGNORE_INDEX: IGNORE_INDEX} | dict(self.label_ids)
        packed = {pack(colour): i for i, colour in enumerate(self.colours)}
        if len(packed) < len(self):
            raise ConfigError(f"class table {self.name} gives two classes the same colour")
        return {0: IGNORE_INDEX} | packed


def pack(colour: Colour) -> int:
    """Return an RGB colour as one integer."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


_CITYSCAPES: Final[dict[str, tuple[int, Colour]]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
_SYNTHIA16: Final = tuple(c for c in _CITYSCAPES if c not in ("terrain", "truck", "train"))
_SYNTHIA13: Final = tuple(c for c in _SYNTHIA16 if c not in ("wall", "fence", "pole"))
_CAMVID: Final[dict[str, Colour]] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def _cityscapes_like(name: str, classes: tuple[str, ...], **subsets: tuple[str, ...]) -> ClassTable:
    # ids 0..33 and 255 are legal in ground truth; those without a train id are ignored
    ids = dict.fromkeys(range(34), IGNORE_INDEX)
    ids |= {_CITYSCAPES[c][0]: i for i, c in enumerate(classes)}
    return ClassTable(name, classes, tuple(_CITYSCAPES[c][1] for c in classes), ids, subsets)


TABLES: Final[Mapping[str, ClassTable]] = {
    table.name: table
    for table in (
        _cityscapes_like("cityscapes19", tuple(_CITYSCAPES), miou16=_SYNTHIA16, miou13=_SYNTHIA13),
        _cityscapes_like("synthia16", _SYNTHIA16, miou13=_SYNTHIA13),
        ClassTable("camvid11", tuple(_CAMVID), tuple(_CAMVID.values())),
    )
}


def parse_table(name: str, content: Any) -> ClassTable:
    """Return the table that a YAML file describes.

    The form is ``classes: [{name: road, colour: [128, 64, 128], label_id: 7}, ...]``, where
    `label_id` may be left out of all classes, with optional ``ignored_label_ids: [0, 1]`` and
    ``subsets: {miou13: [road, ...]}``.

    Raises
    ------
    ConfigError
        If anything is missing, unknown, twice or out of range.
    """
    expected = "expected `classes: [{name: road, colour: [128, 64, 128]}, ...]`"
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise ConfigError(f"{name}: is no class table; {expected}")
    unknown = set(content) - {"classes", "subsets", "ignored_label_ids"}
    if unknown:
        raise ConfigError(f"{name}: unknown key {shown(min(map(str, unknown)))}; {expected}")
    entries = content["classes"]
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise ConfigError(f"{name}: {len(entries)} classes; expected 1 to {MAX_CLASSES}")
    names, colours = [], []
    label_ids: dict[int, int] = {}
    for position, entry in enumerate(entries):
        where = f"{name}: classes[{position}]"
        if not isinstance(entry, dict) or set(entry) - {"name", "colour", "label_id"}:
            raise ConfigError(f"{where} is {shown(entry)}; {expected}")
        own = entry.get("name")
        if not isinstance(own, str) or own in names:
            raise ConfigError(f"{where}: the name {shown(own)} is missing or not unique")
        if len(own) > _LONGEST:
            raise ConfigError(
                f"{where}: the name {shown(own)} is longer than {_LONGEST} characters"
            )
        colour = entry.get("colour")
        if (
            not isinstance(colour, list)
            or len(colour) != 3
            or not all(_is_number(v, 255) for v in colour)
        ):
            raise ConfigError(f"{where}: colour is {shown(colour)}; expected three numbers 0..255")
        names.append(own)
        colours.append((colour[0], colour[1], colour[2]))
        if "label_id" in entry:
            label_id = entry["label_id"]
            if not _is_number(label_id, 65535) or label_id in (*label_ids, IGNORE_INDEX):
                raise ConfigError(
                    f"{where}: label_id {shown(label_id)} is not a unique number 0..65535 "
                    f"other than {IGNORE_INDEX}"
                )
            label_ids[label_id] = position
    if label_ids and len(label_ids) < len(names):
        raise ConfigError(f"{name}: some classes have a label_id and some have none")
    ignored = content.get("ignored_label_ids") or []
    if not isinstance(ignored, list) or not all(_is_number(v, 65535) for v in ignored):
        raise ConfigError(
            f"{name}: ignored_label_ids is {shown(ignored)}; expected numbers 0..65535"
        )
    if ignored and not label_ids:
        raise ConfigError(f"{name}: has ignored_label_ids, but no class has a label_id")
    for v in ignored:
        if v in label_ids:
            raise ConfigError(f"{name}: ignored_label_ids has {v}, the label_id of a class")
    label_ids |= dict.fromkeys(ignored, IGNORE_INDEX)
    subsets = content.get("subsets") or {}
    if not isinstance(subsets, dict):
        raise ConfigError(
            f"{name}: subsets is {shown(subsets)}; expected names with lists of classes"
        )
    for subset, members in subsets.items():
        where = f"{name}: subsets.{shortened(str(subset), _LONGEST)}"
        if not isinstance(members, list) or not members:
            raise ConfigError(f"{where} is {shown(members)}; expected a list of classes")
        for member in members:
            require_class(member, names, where)
        if len(set(members)) < len(members):
            raise ConfigError(f"{where} names a class twice")
    subsets = {str(subset): tuple(members) for subset, members in subsets.items()}
    return ClassTable(name, tuple(names), tuple(colours), label_ids, subsets)


def _is_number(value: Any, highest: int) -> bool:
    return type(value) is int and 0 <= value <= highest  # True is an int too


def require_class(name: str, known: tuple[str, ...] | list[str], where: str) -> None:
    """Refuse a class name that is not in `known`, naming the nearest one."""
    if name not in known:
        near = difflib.get_close_matches(str(name)[:_LONGEST], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known classes: {', '.join(known)}"
        raise ConfigError(f"{where}: unknown class {shown(name)}; {hint}")


def class_map(
    source: ClassTable, target: ClassTable, overrides: Mapping[str, str | None], where: str
) -> dict[str, str | None]:
    """Return where every class of `source` goes in `target`, by name.

    Parameters
    ----------
    source, target : ClassTable
        The teacher's classes and the experiment's.
    overrides : mapping
        Source class to target class, or to None for 255. Many may go to one. A class that is not
        mentioned goes to the class of its own name, or to 255 where there is none.
    where : str
        Named in errors.

    Raises
    ------
    ConfigError
        If an override names an unknown class.
    """
    for old, new in overrides.items():
        try:
            require_class(old, source.classes, f"{where}.map")
        except ConfigError as error:
            if source is not target:
                raise
            own = f"{where} has the experiment's classes, as it declares no `classes:` of its own"
            raise ConfigError(f"{error}. {own}") from None
        if new is not None:
            require_class(new, target.classes, f"{where}.map.{old}")
    same = {c: c if c in target.classes else None for c in source.classes}
    return same | dict(overrides)


def to_target_ids(
    source: ClassTable, target: ClassTable, mapping: Mapping[str, str | None]
) -> dict[int, int]:
    """Return `class_map` in train ids: source id (and 255) to target id or 255."""
    ids: dict[int, int] = {IGNORE_INDEX: IGNORE_INDEX}
    for i, name in enumerate(source.classes):
        goal = mapping[name]
        ids[i] = IGNORE_INDEX if goal is None else target.classes.index(goal)
    return ids


def table_file(name: str, base: Path) -> Path | None:
    """Return the YAML file a table name stands for, or None for a built-in table.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if name in TABLES:
        return None
    if name.endswith((".yaml", ".yml")):
        return base / expanded(name)
    near = difflib.get_close_matches(name[:_LONGEST], list(TABLES), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known tables: {', '.join(TABLES)}"
    raise ConfigError(f"unknown class table {shown(name)}; {hint} (or give a .yaml file)")
