"""Canonical JSON, and what of a node's work enters its fingerprint."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import Told

from ensdistill.pipeline.fingerprint import canonical_json, digest, fingerprint
from ensdistill.pipeline.node import Item, Work

quick = settings(derandomize=True, deadline=None, max_examples=60)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
nested = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def shuffled(value, random):
    """Return an equal value whose mappings list their keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key], random) for key in keys}
    return [shuffled(v, random) for v in value] if isinstance(value, list) else value


def as_tuples(value):
    if isinstance(value, dict):
        return {key: as_tuples(v) for key, v in value.items()}
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value


def paths(value, path=()):
    """Yield the path of every leaf; an empty container is one."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from paths(part, (*path, key))
    else:
        yield path


def changed(value, path):
    """Return `value` with another leaf at `path`."""
    if not path:
        return {"was": repr(value)}
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:])
    return copy


@quick
@given(nested, st.randoms())
def test_the_order_of_keys_never_changes_a_digest(value, random):
    assert digest(shuffled(value, random)) == digest(value)


@quick
@given(nested)
def test_tuples_equal_lists(value):
    assert digest(as_tuples(value)) == digest(value)


@quick
@given(nested)
def test_any_changed_leaf_changes_the_digest(value):
    for path in paths(value):
        assert digest(changed(value, path)) != digest(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, None),
        ("", None),
        ("1", 1),
        ([], {}),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        ({"a": None}, {}),
        ("\u00e9", "e\u0301"),
    ],
    ids=repr,
)
def test_near_values_are_told_apart(one, other):
    assert digest({"x": one}) != digest({"x": other})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"a": [0, {"b": v}]}])
def test_what_json_cannot_carry_is_refused(number, wrap):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(wrap(number))


@pytest.mark.parametrize(
    "value",
    [{1}, b"x", Path("x"), object(), 1j, range(3)],
    ids=lambda v: type(v).__name__,  # the same in every process that collects tests
)
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(TypeError):
        canonical_json({"a": [value]})


@pytest.mark.parametrize("key", [1, True, None, 1.5])
def test_a_key_that_is_no_text_is_refused(key):
    with pytest.raises(TypeError, match="is no text"):
        canonical_json({"a": [({key: 1},)]})


def test_canonical_json_is_sorted_minimal_utf8():
    value = {"b": [1, 2.5, True], "a": {"\u00fc": None, "A": "x y"}}
    assert canonical_json(value) == '{"a":{"A":"x y","ü":null},"b":[1,2.5,true]}'.encode()


def test_a_name_that_is_no_utf8_has_a_digest():
    name = b"stra\xdfe".decode(errors="surrogateescape")
    assert digest(name) != digest("stra?e")
    assert digest(name) == digest(name[:])


def test_a_recorded_fingerprint_stays():
    found = fingerprint("fusion", 3, {"window": 35, "holes": "ignore"}, {"labels": "ab" * 32})
    text = (
        '{"format":1,"inputs":{"labels":"' + "ab" * 32 + '"},'
        '"recipe":{"holes":"ignore","window":35},"stage":"fusion","version":3}'
    )
    assert found == hashlib.sha256(text.encode()).hexdigest()
    assert found == "adbf05ea627ae42c6e2f5ce9dbe1cddcfb03c9c0326420f6c1bdeff0a9f072d9"


@pytest.mark.parametrize(
    "other",
    [
        ("probe", 1, {"a": 1}, {"x": "1"}),
        ("infer", 2, {"a": 1}, {"x": "1"}),
        ("infer", 1, {"a": 2}, {"x": "1"}),
        ("infer", 1, {"a": 1}, {"x": "2"}),
        ("infer", 1, {"a": 1}, {"y": "1"}),
        ("infer", 1, {"a": 1, "x": "1"}, {}),
    ],
    ids=repr,
)
def test_every_part_enters_the_fingerprint(other):
    assert fingerprint(*other) != fingerprint("infer", 1, {"a": 1}, {"x": "1"})


ITEMS = (Item("a", {"image": "1", "label": "2"}), Item("b", {"image": "3"}))


@pytest.mark.parametrize(
    "items",
    [
        (),
        ITEMS[:1],
        ITEMS[::-1],
        (*ITEMS, Item("c")),
        (Item("A", {"image": "1", "label": "2"}), ITEMS[1]),
        (Item("a", {"image": "1", "label": "9"}), ITEMS[1]),
        (Item("a", {"image": "2", "label": "1"}), ITEMS[1]),
        (Item("a", {"image": "1", "labels": "2"}), ITEMS[1]),
        (Item("a", {"image": "1"}), ITEMS[1]),
        (Item("a", {"image": "1"}), Item("label"), ITEMS[1]),
        (Item("a"), Item("b", {"image": "1", "label": "2"})),
    ],
    ids=repr,
)
def test_items_enter_by_id_content_and_order(items):
    work = Work(Told(window=3), items=ITEMS)
    other = replace(work, items=items)
    assert digest(other.hashed_recipe()) != digest(work.hashed_recipe())


def test_paths_and_runtime_never_enter():
    work = Work(Told(window=3), items=ITEMS)
    other = replace(work, local=object(), runtime={"device": "cuda"})
    assert other.hashed_recipe() == work.hashed_recipe()
    assert "cuda" not in str(other.hashed_recipe())


def test_items_are_hashed_short():
    recipe = Work(Told(window=3), items=ITEMS).hashed_recipe()
    listed = [["image", "label"], ["a", "1", "2", "b", "3", None]]
    assert recipe == {
        "window": 3,
        "items": {"count": 2, "sha256": digest(listed)},
    }
    assert Work(Told(window=3)).hashed_recipe() == {"window": 3}


def test_the_order_in_which_content_is_named_is_no_change():
    other = Item("a", {"label": "2", "image": "1"}), ITEMS[1]
    works = [Work(Told(), items=items) for items in (ITEMS, other)]
    assert works[0].hashed_recipe() == works[1].hashed_recipe()
    assert works[0].item_keys("s", 1, {}, {}) == works[1].item_keys("s", 1, {}, {})


def test_a_recipe_cannot_hide_the_list_of_items():
    with pytest.raises(ValueError, match="`items` is taken"):
        Work(Told(items=3), items=ITEMS).hashed_recipe()
    assert Work(Told(items=3)).hashed_recipe() == {"items": 3}


# the keys of items

WORK = Work(Told(window=3), items=ITEMS)
UPSTREAM = {"labels": {"a": "x", "b": "y", "c": "z"}, "network": "n" * 64}


def keys(work=WORK, stage="infer", version=1, upstream=UPSTREAM):
    return work.item_keys(stage, version, upstream, {})


def test_an_items_key_is_of_itself_alone():
    found = keys()
    assert list(found) == ["a", "b"]
    assert len({*found.values()}) == 2
    assert {len(key) for key in found.values()} == {64}
    assert keys(replace(WORK, items=ITEMS[::-1])) == found
    assert keys(replace(WORK, items=ITEMS[:1])) == {"a": found["a"]}
    renamed = replace(WORK, items=(Item("c", ITEMS[1].made_from),))
    same = UPSTREAM | {"labels": {"c": "y"}}
    assert keys(renamed, upstream=same) == {"c": found["b"]}
    assert keys(replace(WORK, local=object(), runtime={"device": "x"}, uses={"x": "y"})) == found


@pytest.mark.parametrize(
    "other",
    [
        {"stage": "fusion"},
        {"version": 2},
        {"work": replace(WORK, recipe=Told(window=3.0))},
        {"work": replace(WORK, recipe=Told())},
        {"upstream": UPSTREAM | {"network": "m" * 64}},
        {"upstream": UPSTREAM | {"more": "m" * 64}},
        {"upstream": {"labels": UPSTREAM["labels"]}},
        {"upstream": {"label": UPSTREAM["labels"], "network": "n" * 64}},
        {"upstream": UPSTREAM | {"labels": {"a": "y", "b": "x"}}},
    ],
    ids=repr,
)
def test_what_all_items_share_changes_every_key(other):
    assert not {*keys(**other).values()} & {*keys().values()}


def test_what_one_item_reads_changes_its_key_alone():
    changed = keys(upstream=UPSTREAM | {"labels": {"a": "x", "b": "Y"}})
    assert changed["a"] == keys()["a"]
    assert changed["b"] != keys()["b"]
    assert keys(upstream=UPSTREAM | {"labels": {"a": "x", "b": "y", "c": "other"}}) == keys()
    items = (Item("a", {"image": "1", "label": "9"}), ITEMS[1])
    changed = keys(replace(WORK, items=items))
    assert changed["a"] != keys()["a"]
    assert changed["b"] == keys()["b"]


def test_an_image_that_changes_its_role_changes_its_key():
    items = (Item("a", {"label": "1", "image": "2"}), ITEMS[1])
    assert keys(replace(WORK, items=items))["a"] != keys()["a"]


def test_a_recorded_key_stays():
    assert keys()["a"] == "1bd26b71fffab28e2336b1987291fde23d262a480cfd81744fe6ce9cd0c269ce"


# items that say what they read

PAIR = Item("a b", {"order": "1"}, {"first": "maps0", "second": "maps2"})
CONTENTS = {f"maps{k}": str(k) * 64 for k in range(3)}


def key_of(item, contents=None, upstream=None):
    return Work(Told(), items=[item]).item_keys("s", 1, upstream or {}, contents or CONTENTS)[
        item.id
    ]


def test_only_what_an_item_says_that_it_reads_enters_its_key():
    found = key_of(PAIR)
    assert key_of(PAIR, CONTENTS | {"maps1": "x", "maps3": "y"}) == found
    assert key_of(PAIR, upstream={"maps0": {"i": "x"}, "maps1": "y"}) == found
    for role in ("maps0", "maps2"):
        assert key_of(PAIR, CONTENTS | {role: "x" * 64}) != found
    one_more = PAIR._replace(reads={**PAIR.reads, "third": "maps1"})
    swapped = PAIR._replace(reads={"first": "maps2", "second": "maps0"})
    assert len({found, key_of(one_more), key_of(swapped), key_of(PAIR._replace(reads={}))}) == 4


def test_neither_roles_nor_ids_enter_such_a_key():
    moved = PAIR._replace(id="renamed", reads={"first": "maps5", "second": "maps1"})
    contents = {"maps5": CONTENTS["maps0"], "maps1": CONTENTS["maps2"]}
    assert key_of(moved, contents) == key_of(PAIR)
    assert key_of(PAIR._replace(made_from={"order": "2"})) != key_of(PAIR)


def test_what_items_read_enters_the_fingerprint():
    swapped = PAIR._replace(reads={"first": "maps2", "second": "maps0"})
    lists = [(PAIR,), (swapped,), (PAIR._replace(reads={}),), (PAIR._replace(reads=None),)]
    assert len({digest(Work(Told(), items=items).hashed_recipe()) for items in lists}) == 4


def test_items_of_one_node_may_read_in_either_way():
    work = Work(Told(), items=[PAIR, Item("b", {"image": "3"})])
    found = work.item_keys("s", 1, {"maps0": {"b": "x"}}, CONTENTS)
    assert found["a b"] == key_of(PAIR)
    alone = Work(Told(), items=work.items[1:])
    assert found["b"] == alone.item_keys("s", 1, {"maps0": {"b": "x"}}, {})["b"]
