"""Deciding what must run, on graphs and snapshots that exist in memory only."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from told import Told

from ensdistill.pipeline.fingerprint import fingerprint
from ensdistill.pipeline.manifest import Artifact, Manifest
from ensdistill.pipeline.node import Command, Item, Node, NodeId, Work
from ensdistill.pipeline.plan import (
    Change,
    State,
    as_far_as_it_goes,
    awaiting,
    closure,
    describe,
    differences,
    left_out,
    makeable,
    plan,
    still,
)
from ensdistill.pipeline.workspace import Snapshot


class Memory(Snapshot):
    """A snapshot whose drafts say how many items they have."""

    def progress(self, key):
        return self.drafts[key]


def snapshot(*artifacts, drafts=(), corrupt=()):
    published = {a.manifest.fingerprint: a for a in artifacts}
    return Memory(published, dict(drafts), dict(corrupt))


def node(name, recipe=None, uses=(), contents=(), items=(), version=1):
    """A node; the results of `contents` become part of its recipe."""
    uses = dict(uses)

    def make(upstream):
        told = {f"of {c}": dict(upstream.content(c)) for c in contents}
        return Work(Told({**(recipe or {}), **told}), uses, tuple(items))

    node_id = NodeId(*name.rstrip("]").split("["))
    return Node(node_id, name, version, [*uses.values(), *contents], make, "m:f", Command(name))


def publish(decision, result=None, finished="2024-01-01", content="", made_from=None):
    """Return the artifact that running a decision would publish."""
    work = decision.work
    manifest = Manifest(
        node=decision.node.id,
        stage=decision.node.stage,
        version=decision.node.version,
        fingerprint=decision.fingerprint,
        recipe=work.hashed_recipe(),
        inputs={},
        made_from=made_from or {},
        result=result or {},
        content=content,
        finished=finished,
    )
    return Artifact(Path("nowhere"), manifest)


def key(decision):
    return decision.node.stage, decision.fingerprint[:12]


def states(decisions):
    return {name: str(d.state) for name, d in decisions.items()}


def test_nothing_made_is_missing():
    decision = plan([node("a", {"x": 1}, items=[Item("i"), Item("j")])], snapshot())["a"]
    assert (decision.state, decision.reason) == (State.MISSING, "never made")
    assert (decision.done, decision.total, decision.artifact) == (0, 2, None)
    items = {"count": 2, "sha256": decision.work.hashed_recipe()["items"]["sha256"]}
    assert decision.fingerprint == fingerprint("a", 1, {"x": 1, "items": items}, {})


def test_what_is_published_is_fresh():
    nodes = [node("a", {"x": 1}, items=[Item("i"), Item("j")])]
    artifact = publish(plan(nodes, snapshot())["a"])
    decision = plan(nodes, snapshot(artifact))["a"]
    assert (decision.state, decision.reason, decision.changes) == (State.FRESH, "", ())
    assert (decision.done, decision.total, decision.artifact) == (2, 2, artifact)


@pytest.mark.parametrize(
    ("other", "field", "old", "new"),
    [
        ({"recipe": {"fuse": {"window": 35}}}, "recipe.fuse.window", 5, 35),
        ({"recipe": {"fuse": {"window": 5.0}}}, "recipe.fuse.window", 5, 5.0),
        ({"recipe": {"fuse": {"window": [5]}}}, "recipe.fuse.window", 5, [5]),
        ({"recipe": {"fuse": {}}}, "recipe.fuse.window", 5, None),
        ({"recipe": {"fuse": {"window": 5, "no": None}}}, "recipe.fuse.no", None, None),
        ({"recipe": {"fuse": {"window": 5}, "new": "x"}}, "recipe.new", None, "x"),
        ({"version": 2}, "version", 1, 2),
        ({"uses": {"labels": "up"}}, "inputs.labels", None, "UP"),
    ],
)
def test_a_stale_node_names_the_field_with_old_and_new(other, field, old, new):
    up = node("up")
    base = {"recipe": {"fuse": {"window": 5}}}
    artifact = publish(plan([up, node("a", **base)], snapshot())["a"])
    decisions = plan([up, node("a", **(base | other))], snapshot(artifact))
    decision = decisions["a"]
    new = decisions["up"].fingerprint if new == "UP" else new
    assert decision.state is State.STALE
    assert decision.changes == (Change(field, old, new),)
    assert field in decision.reason
    assert decision.artifact is None


def test_a_stale_node_is_compared_with_the_last_one_made():
    kinds = {x: node("a", {"x": x}) for x in (1, 2, 3)}
    made = {x: plan([kinds[x]], snapshot())["a"] for x in kinds}
    old = snapshot(publish(made[1], finished="2024-01-02"), publish(made[2], finished="2024-01-01"))
    assert plan([kinds[3]], old)["a"].changes == (Change("recipe.x", 1, 3),)


def test_a_setting_that_changes_back_finds_its_artifact():
    old, new = node("a", {"x": 1}), node("a", {"x": 2})
    both = snapshot(*(publish(plan([n], snapshot())["a"]) for n in (old, new)))
    assert plan([old], both)["a"].state is plan([new], both)["a"].state is State.FRESH


def test_changed_items_make_a_node_stale():
    one, two = (node("a", items=[Item("i", {"image": c})]) for c in "xy")
    decision = plan([two], snapshot(publish(plan([one], snapshot())["a"])))["a"]
    assert decision.state is State.STALE
    assert [c.field for c in decision.changes] == ["recipe.items.sha256"]
    old, new = decision.changes[0].old, decision.changes[0].new
    assert f"from {old[:12]} to {new[:12]}" in decision.reason


def test_of_many_changes_three_are_told():
    old, new = (node("a", {f"k{n}": v for n in range(5)}) for v in (1, 2))
    decision = plan([new], snapshot(publish(plan([old], snapshot())["a"])))["a"]
    assert len(decision.changes) == 5
    assert decision.reason == (
        "recipe.k0 changed from 1 to 2; recipe.k1 changed from 1 to 2; "
        "recipe.k2 changed from 1 to 2; and 2 more"
    )


@pytest.mark.parametrize(
    ("items", "done", "reason"),
    [
        ([Item("i"), Item("j"), Item("k")], 2, "2 of 3 items done"),
        ([Item("i")], 0, "0 of 1 items done"),
        ([], 0, "begun, not finished"),
    ],
)
def test_a_draft_is_partial_and_says_how_far(items, done, reason):
    nodes = [node("a", items=items)]
    known = key(plan(nodes, snapshot())["a"])
    decision = plan(nodes, snapshot(drafts={known: done}))["a"]
    assert (decision.state, decision.reason) == (State.PARTIAL, reason)
    assert (decision.done, decision.total) == (done, len(items))


def test_a_draft_for_other_settings_is_not_mine():
    known = key(plan([node("a", {"x": 1})], snapshot())["a"])
    assert plan([node("a", {"x": 2})], snapshot(drafts={known: 1}))["a"].state is State.MISSING


def test_a_partial_node_also_tells_what_changed():
    old, new = node("a", {"x": 1}), node("a", {"x": 2})
    artifact = publish(plan([old], snapshot())["a"])
    known = key(plan([new], snapshot())["a"])
    decision = plan([new], snapshot(artifact, drafts={known: 0}))["a"]
    assert decision.state is State.PARTIAL
    assert decision.changes == (Change("recipe.x", 1, 2),)


def test_a_corrupt_manifest_makes_its_node_corrupt():
    nodes = [node("a")]
    known = key(plan(nodes, snapshot())["a"])
    decision = plan(nodes, snapshot(corrupt={known: "work/a: torn"}))["a"]
    assert (decision.state, decision.reason) == (State.CORRUPT, "work/a: torn")
    other = plan([node("a", {"x": 1})], snapshot(corrupt={known: "work/a: torn"}))["a"]
    assert other.state is State.MISSING


def test_a_node_waits_for_the_content_of_an_upstream_and_all_below_it_too():
    nodes = [
        node("small"),
        node("by-content", contents=["small"]),
        node("by-print", uses={"x": "small"}),
        node("below", uses={"x": "by-content"}),
        node("aside"),
    ]
    decisions = plan(nodes, snapshot())
    assert states(decisions) == {
        "small": "missing",
        "by-content": "waiting",
        "by-print": "missing",
        "below": "waiting",
        "aside": "missing",
    }
    assert decisions["by-content"].reason == "waits for small"
    assert decisions["below"].reason == "waits for by-content"
    assert decisions["below"].work is decisions["below"].fingerprint is None
    small = publish(decisions["small"], {"pi": "x"})
    after = plan(nodes, snapshot(small))
    assert after["by-content"].work.recipe == {"of small": {"pi": "x"}}
    assert states(after)["below"] == "missing"


@pytest.mark.parametrize("how", ["stale", "partial", "corrupt"])
def test_content_of_other_settings_is_never_used(how):
    old, new = node("small", {"x": 1}), node("small", {"x": 2})
    below = node("below", contents=["small"])
    known = key(plan([new], snapshot())["small"])
    artifact = publish(plan([old], snapshot())["small"], {"pi": "old"})
    more = {"partial": {"drafts": {known: 1}}, "corrupt": {"corrupt": {known: "torn"}}}
    decisions = plan([new, below], snapshot(artifact, **more.get(how, {})))
    assert states(decisions) == {"small": how, "below": "waiting"}


def test_equal_content_cuts_off_what_a_fingerprint_passes_on():
    def graph(x):
        return [node("up", {"x": x}), node("c", contents=["up"]), node("f", uses={"x": "up"})]

    made = [publish(plan(graph(1), snapshot())["up"], {"pi": "same"})]
    first = plan(graph(1), snapshot(*made))
    made += [publish(first["c"]), publish(first["f"])]
    made += [publish(plan(graph(2), snapshot())["up"], {"pi": "same"}, finished="2024-01-02")]
    assert states(plan(graph(2), snapshot(*made))) == {"up": "fresh", "c": "fresh", "f": "stale"}


def test_the_order_of_roles_is_no_change():
    up = [node("u"), node("v")]
    one = plan([*up, node("a", uses={"x": "u", "y": "v"})], snapshot())["a"]
    other = plan([*up, node("a", uses={"y": "v", "x": "u"})], snapshot())["a"]
    swapped = plan([*up, node("a", uses={"x": "v", "y": "u"})], snapshot())["a"]
    assert one.fingerprint == other.fingerprint != swapped.fingerprint


def test_a_renamed_node_is_fresh_by_its_fingerprint():
    old = plan([node("probe[a]", {"x": 1})], snapshot())["probe[a]"]
    renamed = node("probe[b]", {"x": 1})
    assert plan([renamed], snapshot(publish(old)))["probe[b]"].state is State.FRESH


def test_what_was_made_from_other_content_is_stale_and_names_the_role():
    nodes = [node("up"), node("more"), node("a", uses={"labels.b": "up", "other": "more"})]
    first = plan(nodes, snapshot())
    more = publish(first["more"], content="m")
    a = publish(first["a"], made_from={"labels.b": "old", "other": "m"})
    same = plan(nodes, snapshot(publish(first["up"], content="old"), more, a))
    assert states(same) == {"up": "fresh", "more": "fresh", "a": "fresh"}
    decision = plan(nodes, snapshot(publish(first["up"], content="new"), more, a))["a"]
    assert decision.state is State.STALE
    assert decision.fingerprint == a.manifest.fingerprint
    assert decision.changes == (Change("inputs.labels.b.content", "old", "new"),)
    assert decision.reason == "labels.b was made again and came out different"
    assert decision.artifact is None


def test_an_upstream_that_is_gone_leaves_what_was_made_from_it_fresh():
    nodes = [node("up"), node("a", uses={"labels": "up"})]
    a = publish(plan(nodes, snapshot())["a"], made_from={"labels": "old"})
    assert states(plan(nodes, snapshot(a))) == {"up": "missing", "a": "fresh"}
    up = key(plan(nodes, snapshot())["up"])
    assert states(plan(nodes, snapshot(a, drafts={up: 1}))) == {"up": "partial", "a": "fresh"}


def test_what_is_below_waits_until_a_remade_upstream_is_known():
    nodes = [
        node("up"),
        node("a", uses={"labels": "up"}),
        node("by-content", contents=["a"]),
        node("by-print", uses={"x": "a"}),
    ]
    made = [publish(plan(nodes, snapshot())["up"], content="new")]
    a = publish(plan(nodes, snapshot())["a"], {"n": 1}, made_from={"labels": "old"})
    below = plan(nodes, snapshot(*made, a))
    assert states(below)["by-content"] == "waiting"
    assert states(below)["by-print"] == "missing"


def test_a_node_planned_anew_is_still_the_same_until_its_inputs_change():
    items = [Item("i", {"image": "x"})]
    recipe = {"x": 1}
    up = node("up")

    def make(upstream):
        told = dict(upstream.content("up"))
        return Work(Told(recipe | told), {"labels": "up"}, tuple(items))

    a = Node(NodeId("a"), "a", 1, ["up"], make, "m:f", Command("a"))
    made = publish(plan([up], snapshot())["up"], {"n": 1})
    decisions = plan([up, a], snapshot(made))
    decision = decisions["a"]
    assert still(decision, decisions)
    items[0] = Item("i", {"image": "y"})
    assert not still(decision, decisions)
    items[0] = Item("i", {"image": "x"})
    assert still(decision, decisions)
    recipe["x"] = 2
    assert not still(decision, decisions)
    recipe["x"] = 1
    assert not still(decision, plan([up, a], snapshot()))  # it would wait


def test_what_nodes_share_is_made_once_a_plan():
    made = []

    def make(upstream):
        return Work(Told({"n": upstream.once(("a", "b"), lambda: made.append(1) or len(made))}))

    nodes = [Node(NodeId(x), x, 1, [], make, "m:f", Command(x)) for x in "uv"]
    decisions = plan(nodes, snapshot())
    assert [d.work.recipe["n"] for d in decisions.values()] == [1, 1]
    assert plan(nodes, snapshot())["u"].work.recipe["n"] == 2
    assert made == [1, 1]


def test_closure_takes_all_that_is_needed_and_nothing_else():
    nodes = [
        node("a"),
        node("b", uses={"x": "a"}),
        node("c", contents=["b"]),
        node("d", uses={"x": "a"}),
    ]
    decisions = plan(nodes, snapshot())
    assert closure(decisions, ["c"]) == {"a", "b", "c"}
    assert closure(decisions, ["d", "a"]) == {"a", "d"}
    assert closure(decisions, []) == set()


SOURCES = ("one", "two")


def takes_what_is_there(recipe=None):
    """Two sources, what each is mapped to, and a node of the maps that there are, and of a base."""
    sources = [node(s) for s in SOURCES]
    maps = [node(f"of {s}", uses={"x": s}) for s in SOURCES]
    uses = {"base": "base"} | {f"role:{s}": f"of {s}" for s in SOURCES}
    judge = node("judge", recipe, uses=uses)
    return [
        *(*sources, node("base"), *maps),
        replace(judge, any_of={f"of {s}": s for s in SOURCES}),
    ]


def made(nodes, names, found=()):
    """Publish nodes one after the other as a run makes them; return all that is published."""
    found = list(found)
    for name in names:
        decisions = plan(nodes, snapshot(*found))
        decision = as_far_as_it_goes(decisions[name], decisions, snapshot(*found))
        assert still(decision, decisions)
        found.append(publish(decision))
    return found


def test_a_node_is_made_of_what_is_there_and_made_again_when_there_is_more():
    nodes = takes_what_is_there()
    whole = plan(nodes, snapshot())["judge"]
    assert set(whole.work.uses) == {"base", "role:one", "role:two"}
    assert left_out(whole) == []
    part = made(nodes, ["one", "base", "of one", "judge"])
    decision = plan(nodes, snapshot(*part))["judge"]
    assert decision.state is State.FRESH
    assert decision.fingerprint != whole.fingerprint
    assert set(decision.work.uses) == {"base", "role:one"}
    assert left_out(decision) == ["of two"]
    assert awaiting(decision, ["of one"]) is decision
    assert awaiting(decision, ["of two"]).state is State.WAITING
    assert awaiting(decision, ["of two"]).reason == "waits for of two"
    # from when the other is there, before and after it is mapped
    for more in (["two"], ["two", "of two"]):
        later = plan(nodes, snapshot(*made(nodes, more, part)))["judge"]
        assert (later.state, later.fingerprint) == (State.STALE, whole.fingerprint)
        assert "inputs.role:two is new" in later.reason
    every = made(nodes, ["two", "of two", "judge"], part)
    assert plan(nodes, snapshot(*every))["judge"].fingerprint == whole.fingerprint
    # and it stays whole when a source is cleared away, as any node does
    kept = [a for a in every if a.manifest.node not in ("two", "of two")]
    assert plan(nodes, snapshot(*kept))["judge"].state is State.FRESH


def test_what_was_begun_of_what_was_there_stands_as_it_is():
    nodes = takes_what_is_there()
    part = made(nodes, ["one", "base", "of one"])
    decisions = plan(nodes, snapshot(*part))
    assert decisions["judge"].state is State.MISSING
    decision = as_far_as_it_goes(decisions["judge"], decisions, snapshot(*part))
    begun = snapshot(*part, drafts={key(decision): 0})
    assert plan(nodes, begun)["judge"].state is State.PARTIAL
    torn = snapshot(*part, corrupt={key(decision): "torn"})
    assert plan(nodes, torn)["judge"].state is State.CORRUPT


def test_where_nothing_is_there_it_waits():
    nodes = takes_what_is_there()
    decisions = plan(nodes, snapshot(*made(nodes, ["base"])))
    decision = as_far_as_it_goes(decisions["judge"], decisions, snapshot())
    assert (decision.state, decision.reason) == (State.WAITING, "waits for one")


def test_other_settings_of_it_are_told_against_what_was_made_of_less():
    part = made(takes_what_is_there({"x": 1}), ["one", "base", "of one", "judge"])
    decision = plan(takes_what_is_there({"x": 2}), snapshot(*part))["judge"]
    assert decision.state is State.STALE
    assert Change("recipe.x", 1, 2) in decision.changes


def test_what_can_be_made_is_what_runs_through():
    """Whatever is published and whatever is asked for: by trying."""
    nodes = takes_what_is_there()
    names = [n.id for n in nodes]
    for there in (c for size in range(4) for c in combinations(["one", "two", "base"], size)):
        published = made(nodes, there)
        for targets in (c for size in range(7) for c in combinations(names, size)):
            ran = set(there)
            for name in (n for n in names if n in targets):
                need = {
                    **{"of one": {"one"}, "of two": {"two"}},
                    "judge": {"base"},
                }.get(name, set())
                if need <= ran and (name != "judge" or ran & {"of one", "of two"}):
                    ran.add(name)
            decisions = plan(nodes, snapshot(*published))
            assert makeable(decisions, targets) == [n for n in targets if n in ran]


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": [{"b": (1,)}]}, {"a": [{"b": [1]}]}, []),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 1}}, []),
        ({"a": 1}, {"a": True}, ["a"]),
        ({"a": 1}, {"a": 1.0}, ["a"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a"]),
        ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, ["a.b", "a.c"]),
        ({"a": {"b": 1}}, {"a": None}, ["a"]),
        ({"a": None}, {}, ["a"]),
        ({}, {"a": {}}, ["a"]),
    ],
)
def test_differences_are_those_of_the_fingerprint(old, new, fields):
    assert [c.field for c in differences(old, new)] == fields
    assert (fingerprint("s", 1, old, {}) == fingerprint("s", 1, new, {})) is (fields == [])


def test_differences_are_in_the_order_of_their_numbers():
    old = {f"teacher{k:02}": k for k in range(97, 103)}
    assert [c.field for c in differences(old, {})] == list(old)


def test_differences_are_in_one_order_however_numbers_are_spelt():
    names = [f"{'0' * zeros}7" for zeros in range(8)]  # of a set, in an order of each process
    assert [c.field for c in differences(dict.fromkeys(names, 1), {})] == sorted(names)


def test_numbers_in_what_differs_may_be_of_any_length():
    names = ["9" * 5000, "8" * 5000]  # int() refuses them
    assert {c.field for c in differences(dict.fromkeys(names, 1), {})} == set(names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change("a", 1, 2), "a changed from 1 to 2"),
        (Change("a", 0, False), "a changed from 0 to False"),
        (Change("a", None, 2), "a is new (2)"),
        (Change("a", 1, None), "a is gone (was 1)"),
        (Change("a", "f" * 64, "0" * 64), "a changed from ffffffffffff to 000000000000"),
        (Change("a", 1, "x" * 41), f"a changed from 1 to {'x' * 37}..."),
    ],
)
def test_a_change_is_one_short_clause(change, said):
    assert describe(change) == said


def test_states_read_as_words():
    assert all(re.fullmatch("[a-z]+", str(state)) for state in State)
