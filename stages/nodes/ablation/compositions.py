"""Which compositions of teachers an ablation looks at, as the items of its node.

No teacher's name enters the key of an item, nor does a teacher that it does not have: one more
teacher asks only for compositions with it (and for those with bad teachers, which are made of all
others), and a renamed one for none. The order of the members is part of the key, as ties of
majority voting go to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from ensdistill.pipeline.node import Item

BAD: Final = ("segments", "constant", "copy")
"""The bad teachers, in the order in which they join."""
LEAST: Final = 3
"""Teachers of the smallest composition: two of them have no majority."""
MOST: Final = 12
"""Teachers that are ablated at most: twelve have 4,000 compositions, and each more doubles them."""

Members = tuple[int, ...]  # places among T teachers in the order of names; from T on, of the bad


def compositions(teachers: int) -> list[Members]:
    """Return all compositions of at least `LEAST` of so many teachers, small ones first."""
    sizes = range(LEAST, teachers + 1)
    return [members for size in sizes for members in combinations(range(teachers), size)]


def without_one(teachers: int) -> list[Members]:
    """Return all of so many teachers but the first, but the second, and so on.

    Each is a composition; there is none where fewer than `LEAST` would be left.
    """
    if teachers <= LEAST:
        return []
    everyone = range(teachers)
    return [tuple(t for t in everyone if t != left_out) for left_out in everyone]


def crowds(teachers: int) -> list[Members]:
    """Return all of so many teachers without bad ones, with the first bad one, and so on."""
    return [tuple(range(teachers + bad)) for bad in range(len(BAD) + 1)]


def wanted(teachers: int) -> list[Members]:
    """Return each teacher and bad teacher alone (the copy is no other), compositions and crowds."""
    alone = [(member,) for member in range(teachers + len(BAD) - 1)]
    return list(dict.fromkeys([*alone, *compositions(teachers), *crowds(teachers)]))


def as_items(names: Sequence[str], *, train: bool = False) -> list[Item]:
    """Return what is `wanted` of teachers as items that read ``truth`` and ``split00``...

    Parameters
    ----------
    names : sequence of str
        The teachers, sorted. They are the first ids; the others are names joined by commas.
    train : bool
        Whether label models are fitted to ``train00``..., and not to what is fused.
    """
    return [_item(members, names, train) for members in wanted(len(names))]


def _item(members: Members, names: Sequence[str], train: bool) -> Item:
    bad = [member for member in members if member >= len(names)]
    read = range(len(names)) if bad else members
    told = {member: BAD[member - len(names)] for member in bad}
    places = {member: str(k) for k, member in enumerate(read)} | told
    called = {**dict(enumerate(names)), **{member: f"({kind})" for member, kind in told.items()}}
    # the votes in training images decide nothing of a teacher alone
    alone = not bad and len(members) == 1
    kinds = ("split", "train") if train and not alone else ("split",)
    return Item(
        ",".join(called[member] for member in members),
        {"members": ",".join(places[member] for member in members)},
        {f"{kind}{k:02}": f"{kind}{member:02}" for kind in kinds for k, member in enumerate(read)}
        | {"truth": "truth"},
    )
