"""Which teacher is warned of, and of what: numbers alone."""

from itertools import combinations

import pytest

from ensdistill.stages.checks.suspicion import CHANCE, FEW, LITTLE, suspicions

NAN = float("nan")


def beyond(names, default=0.8, **values):
    """Return the kappa of every two teachers; `ab=0.1` is that of a and b."""
    return {(j, k): values.get(j + k, default) for j, k in combinations(names, 2)}


def told(coverage, kappas, images=FEW):
    return suspicions(coverage, kappas, images)


def full(names, **shares):
    return dict.fromkeys(names, 1.0) | shares


def test_good_teachers_are_not_suspected():
    assert told(full("abc"), beyond("abc")) == {}
    assert told(full("abc"), beyond("abc", default=CHANCE)) == {}
    assert told(full("abc", a=LITTLE), beyond("abc")) == {}


@pytest.mark.parametrize("strange", "abcd")
def test_one_that_agrees_with_none_is_named_and_no_other(strange):
    values = {p: 0.03 if strange in p else 0.8 for p in combinations("abcd", 2)}
    turned = {p[::-1]: value for p, value in values.items()}
    for kappas in (values, turned):
        found = told(full("abcd"), kappas)
        assert list(found) == [strange]
        [said] = found[strange]
        assert said.startswith("agrees with the others no better than chance (kappa 0.03 at most)")
        for cause in ("ids", "channels", "preprocessing", "output taken", "order of its classes"):
            assert cause in said


def test_one_that_agrees_with_any_is_not_suspected():
    assert list(told(full("abc"), beyond("abc", ac=0.0, bc=CHANCE - 0.01))) == ["c"]
    assert told(full("abc"), beyond("abc", ac=0.0, bc=CHANCE)) == {}


@pytest.mark.parametrize("pair", ["ab", "ba"])
def test_of_two_it_cannot_be_told_which(pair):
    found = told(full(pair), {tuple(pair): -0.2})
    assert list(found) == ["a"]
    [said] = found["a"]
    assert said.startswith("agrees with b no better than chance (kappa -0.20)")
    assert "cannot be told which" in said


def test_two_that_can_be_compared_with_nobody_else_are_as_two():
    found = told(full("abc"), beyond("abc", ab=0.0, ac=NAN, bc=NAN))
    assert list(found) == ["a"]
    assert "cannot be told which" in found["a"][0]


def test_who_can_be_compared_with_a_strange_one_alone_is_not_accused():
    found = told(full("abcd"), beyond("abcd", default=NAN, ab=0.0, ac=0.0))
    assert list(found) == ["a"]
    assert "with the others" in found["a"][0]
    found = told(full("abcd"), beyond("abcd", ac=NAN, ad=NAN, ab=0.0))
    assert list(found) == ["a"]  # b agrees with c and d
    assert "with the others" in found["a"][0]


def test_where_all_disagree_all_are_named():
    found = told(full("abc"), beyond("abc", default=0.0))
    assert list(found) == ["a", "b", "c"]
    assert all("with the others" in said[0] for said in found.values())


def test_what_is_undefined_accuses_nobody():
    assert told(full("abc"), beyond("abc", default=NAN)) == {}
    assert told(full("a"), {}) == {}
    assert told(full("abc", a=0.0, b=0.0, c=0.0), beyond("abc", default=NAN)) == {}


def test_little_is_measured_by_the_median_of_the_others():
    found = told(full("abcd", a=0.03, b=0.95, c=0.95, d=0.05), beyond("abcd"))
    assert found == {
        "a": [
            "labels 3.0% of the pixels, the others 95.0%: are its ids, its classes and where they "
            "go as declared?"
        ],
        "d": [
            "labels 5.0% of the pixels, the others 95.0%: are its ids, its classes and where they "
            "go as declared?"
        ],
    }
    [said] = told({"a": 0.0, "b": 0.5}, {("a", "b"): None})["a"]
    assert said.startswith("labels 0.0% of the pixels, the other 50.0%")


def test_no_common_pixel_is_said_once_of_a_pair():
    found = told(full("abc", a=0.5, b=0.4, c=0.3), beyond("abc", ab=None, bc=None))
    assert found == {
        "b": ["labels no pixel that a labels"],
        "c": ["labels no pixel that b labels"],
    }
    found = told(full("abc", c=0.3), beyond("abc", ac=None, bc=None))
    assert found == {"c": ["labels no pixel that a or b labels"]}


def test_of_few_images_only_less_than_chance_is_told():
    kappas = beyond("abc", ab=0.0, ac=0.05)
    assert list(told(full("abc"), kappas, FEW)) == ["a"]
    assert told(full("abc"), kappas, FEW - 1) == {}
    assert list(told(full("abc"), beyond("abc", ab=-0.01, ac=-0.2), FEW - 1)) == ["a"]
    assert told(full("abc", a=0.0), beyond("abc"), FEW - 1) == {}
