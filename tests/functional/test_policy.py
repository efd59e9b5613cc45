import math

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensdistill.stages.functional.policy import Choice, Evidence, best_policy, certainty_policy

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def evidences(draw):
    """Few distinct values, so that ties, thin support and classes of nobody are common."""
    classes = draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
    evidence = {}
    for name in names:
        support = draw(hnp.arrays(np.int64, classes, elements=st.sampled_from([0, 1, 10, 1000])))
        has_class = draw(hnp.arrays(np.bool_, classes))
        labelled = draw(hnp.arrays(np.int64, classes, elements=st.sampled_from([0, 5])))
        certainty = draw(
            hnp.arrays(np.float64, classes, elements=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
        )
        evidence[name] = Evidence(
            certainty=np.where(support > 0, certainty, np.nan),
            support=support,
            labelled=labelled * has_class,
            has_class=has_class,
        )
    return evidence, classes, draw(st.sampled_from([0.0, 0.005, 0.5]))


def allowed(evidence, classes, min_support):
    """By class, the certainties of the teachers that may have it, straight from the rule."""
    result = []
    for c in range(classes):
        result.append({})
        for name in sorted(evidence):
            e = evidence[name]
            total = sum(e.support.tolist())
            if (
                e.has_class[c]
                and e.labelled[c] >= 1
                and e.support[c] >= 1
                and e.support[c] >= min_support * total
            ):
                result[c][name] = float(e.certainty[c])
    return result


@quick
@given(problem=evidences())
def test_maximises_the_summed_certainty(problem):
    choices = certainty_policy(*problem)
    candidates = allowed(*problem)
    chosen = [choice.certainty for choice in choices if choice.certainty is not None]
    assert math.fsum(chosen) == oracles.best_sum_of_certainty(candidates)
    for choice, candidate in zip(choices, candidates, strict=True):
        if candidate:
            assert choice.certainty == candidate[choice.teacher]
            best = [n for n in sorted(candidate) if candidate[n] == max(candidate.values())]
            assert choice == Choice(best[0], choice.certainty, fallback=False)
        else:
            assert choice.certainty is None


@quick
@given(problem=evidences())
def test_fallback_and_unassigned(problem):
    evidence, classes, min_support = problem
    candidates = allowed(*problem)

    def overall(name):
        e = evidence[name]
        least = max(1, min_support * e.support.sum())
        values = [
            e.certainty[c] for c in range(classes) if e.support[c] >= least and e.has_class[c]
        ]
        return sum(values) / len(values) if values else -1

    for c, choice in enumerate(certainty_policy(*problem)):
        labelling = [name for name in sorted(evidence) if evidence[name].labelled[c]]
        assert choice.fallback == (bool(labelling) and not candidates[c])
        assert (choice.teacher is None) == (not labelling)
        if choice.fallback:
            best = max(overall(name) for name in labelling)
            assert choice.teacher == next(n for n in labelling if overall(n) == best)


@quick
@given(problem=evidences(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_mapping_means_nothing(problem, order):
    evidence, classes, min_support = problem
    names = order.sample(sorted(evidence), len(evidence))
    shuffled = {name: evidence[name] for name in names}
    assert certainty_policy(shuffled, classes, min_support) == certainty_policy(*problem)
    scores = {name: e.certainty for name, e in evidence.items()}
    reordered = {name: scores[name] for name in names}
    assert best_policy(reordered, classes) == best_policy(scores, classes)


def teacher(certainty, support, labelled=None, has_class=None):
    n = len(certainty)
    return Evidence(
        certainty=np.array(certainty, np.float64),
        support=np.array(support, np.int64),
        labelled=np.array([1] * n if labelled is None else labelled, np.int64),
        has_class=np.array([True] * n if has_class is None else has_class),
    )


def test_support_is_a_share_of_the_probes_pixels():
    evidence = {"a": teacher([0.5, 0.9], [90, 10]), "b": teacher([0.5, 0.6], [50, 50])}
    assert certainty_policy(evidence, 2, 0.1)[1].teacher == "a"
    assert certainty_policy(evidence, 2, 0.11)[1] == Choice("b", 0.6, fallback=False)
    assert certainty_policy(evidence, 2, 0)[1] == Choice("a", 0.9, fallback=False)


def test_a_class_that_no_probe_finds_goes_to_the_most_certain_teacher_labelling_it():
    evidence = {
        "a": teacher([0.9, np.nan], [100, 0], labelled=[1, 0]),  # most certain, labels no class 1
        "b": teacher([0.6, np.nan], [100, 0]),
        "c": teacher([0.7, np.nan], [100, 0]),
    }
    assert certainty_policy(evidence, 2, 1e-5) == (
        Choice("a", 0.9, fallback=False),
        Choice("c", None, fallback=True),
    )


def test_a_teacher_whose_probe_supports_nothing_comes_last_in_the_fallback():
    nothing = teacher([np.nan, np.nan], [0, 0])
    evidence = {"a": nothing, "b": teacher([0.1, np.nan], [5, 0])}
    assert certainty_policy(evidence, 2, 0)[1] == Choice("b", None, fallback=True)
    assert certainty_policy({"b": nothing, "a": nothing}, 2, 0)[1].teacher == "a"


def test_a_probe_alone_does_not_win_a_class_that_its_teacher_never_labels():
    evidence = {
        "a": teacher([0.9, 0.9], [50, 50], labelled=[7, 0]),
        "b": teacher([0.5, np.nan], [100, 0]),
    }
    assert certainty_policy(evidence, 2, 0)[1] == Choice("b", None, fallback=True)
    del evidence["b"]
    assert certainty_policy(evidence, 2, 0)[1] == Choice(None, None, fallback=False)


def test_without_teachers_every_class_is_unassigned():
    assert certainty_policy({}, 2, 0) == (Choice(None, None, False),) * 2
    assert best_policy({}, 2) == (Choice(None, None, False),) * 2


def test_best_policy():
    nan = np.nan
    scores = {"b": np.array([0.5, nan, nan, 0.0]), "a": np.array([0.5, 0.1, nan, nan])}
    assert [choice.teacher for choice in best_policy(scores, 4)] == ["a", "a", None, "b"]
    assert {(choice.certainty, choice.fallback) for choice in best_policy(scores, 4)} == {
        (None, False)
    }


def test_refusals():
    with pytest.raises(ValueError, match="support of teacher 'a'"):
        certainty_policy({"a": teacher([0.5], [1, 2])}, 1, 0)
    with pytest.raises(ValueError, match="'a' labels a class that it does not have"):
        certainty_policy({"a": teacher([0.5], [1], has_class=[False])}, 1, 0)
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="min_support"):
            certainty_policy({}, 1, share)
    with pytest.raises(ValueError, match="scores of teacher 'a'"):
        best_policy({"a": np.zeros(2)}, 3)
