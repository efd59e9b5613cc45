"""Several problems in one refusal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdistill.pipeline.errors import DataError, grouped, raise_all, shortened, shown


def test_a_finding_on_many_files_hides_no_other():
    found = [("a: size", f"a/{k}.png: 3x4 pixels") for k in range(85)]
    found.insert(50, ("b: value", "b/7.png: value 77"))
    with pytest.raises(DataError) as refusal:
        raise_all(grouped(found), DataError)
    assert str(refusal.value).splitlines() == [
        "2 problems:",
        "  a/0.png: 3x4 pixels (and 84 more like it)",
        "  b/7.png: value 77",
    ]


def test_few_are_said_one_by_one():
    found = [(k % 2, f"{k}") for k in range(7)]
    assert grouped(found) == ["0 (and 3 more like it)", "1", "3", "5"]
    assert grouped([(c, "x") for c in range(30)]) == ["x"] * 30


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 99).map(str))))
def test_each_problem_is_said_or_counted_and_each_cause_heard(problems):
    lines = grouped(iter(problems))
    more = [int(found[1]) for line in lines if (found := re.search(r"and (\d+) more", line))]
    assert len(lines) + sum(more) == len(problems)
    for cause in {c for c, _ in problems}:
        first = next(text for c, text in problems if c == cause)
        assert any(line.split(" ")[0] == first for line in lines)
    texts = iter(text for _, text in problems)
    assert all(line.split(" ")[0] in texts for line in lines), "not in their order"
    assert len(lines) <= 3 * 5


def test_long_values_are_shown_by_both_ends():
    assert shown("road") == "'road'"
    assert shortened("x" * 1000) == "x" * 1000
    found = shortened("file: " + "x" * 5000 + "; remedy")
    assert found.startswith("file: x") and found.endswith("x; remedy") and len(found) < 1100
    assert "[... 4014 characters ...]" in found
    assert len(shown(["y"] * 10_000)) < 300
    assert shown(10**5000) == "a long int"  # whose digits Python refuses to write
