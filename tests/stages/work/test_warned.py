"""Warnings on their way through processes."""

import json
import logging
import warnings
from collections import Counter
from threading import Thread

import PIL.Image
import pytest
import rich
from hypothesis import given
from hypothesis import strategies as st

from ensdistill.stages.work.warned import Warned, heard_by, issue, kept, taken

SITE = "/x/lib/python3.12/site-packages"


@pytest.mark.parametrize(
    ("file", "package"),
    [
        (f"{SITE}/torch/nn/modules/conv.py", "torch"),
        (f"{SITE}/six.py", "six"),
        ("/usr/lib/python3/dist-packages/yaml/loader.py", "yaml"),
        (f"{SITE}/ensdistill/stages/infer.py", "ensdistill"),
        (rich.__file__, "rich"),
        (json.__file__, "json"),
        (Thread.__init__.__code__.co_filename, "threading"),
        ("/home/me/model.py", None),
        ("model.py", None),
        ("<string>", None),
    ],
)
def test_a_warning_names_its_package_or_its_line(file, package):
    warned = Warned("odd", "UserWarning", file, 7)
    assert warned.package == package
    assert str(warned) == f"warning: odd ({package or f'{file}:7'})"


def test_code_in_a_clone_is_ours_only_in_our_packages(repository):
    ours = Warned("", "UserWarning", str(repository / "stages/networks/stream.py"), 1)
    theirs = Warned("", "UserWarning", str(repository / "repositories/dacs/model.py"), 1)
    assert (ours.package, theirs.package) == ("ensdistill", None)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
def test_what_only_authors_can_mend_is_noise_unless_the_user_is_one(category):
    of_library = Warned.of("old", category, f"{SITE}/torch/a.py", 1)
    of_user = Warned.of("old", category, "/home/me/model.py", 1)
    assert of_library.is_noise == (category is not UserWarning)
    assert not of_user.is_noise


def test_all_of_a_text_is_on_one_line_and_numbers_make_no_other_warning():
    one, other = (Warned(f"image {k} is\n   odd\t", "UserWarning", "m.py", 3) for k in (7, 12))
    assert str(one) == "warning: image 7 is odd (m.py:3)"
    assert one.alike == other.alike
    assert one.alike != Warned("image is odd", "UserWarning", "m.py", 3).alike


@given(
    st.lists(
        st.tuples(
            st.text(),
            st.sampled_from(["UserWarning", "FutureWarning", "RuntimeWarning", "Warning"]),
            st.sampled_from(["/home/me/model.py", f"{SITE}/torch/a.py"]),
            st.integers(1, 99),
            st.integers(1, 3),
        )
    )
)
def test_what_is_issued_again_is_what_was_given(found):
    expected = Counter()
    for *what, times in found:
        expected[Warned(*what)] += times
    travelled = [(what, n) for what, n in json.loads(json.dumps(taken(Counter(expected))))]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with kept() as again:
            issue(travelled)
    assert again == expected


def test_a_class_of_a_library_travels_as_the_one_that_python_has():
    warned = Warned.of("large", PIL.Image.DecompressionBombWarning, "a.py", 1)
    assert warned.category == "RuntimeWarning"


def test_what_was_taken_is_gone_and_in_order():
    found = Counter({Warned(t, "UserWarning", "a.py", 1): k for k, t in enumerate("cab", 1)})
    assert [(w.text, times) for w, times in taken(found)] == [("c", 1), ("a", 2), ("b", 3)]
    assert not found


def test_filters_of_the_users_code_hold(lenient):
    with kept() as found:
        warnings.filterwarnings("ignore", "quiet")
        for text in ("quiet", "loud", "loud"):
            warnings.warn(text, stacklevel=1)
    assert {w.text: n for w, n in found.items()} == {"loud": 2}


def test_what_is_logged_is_heard_and_tracebacks_are_left_whole(capsys):
    log = logging.Logger("some.library")  # which pytest does not listen to
    with kept() as found:
        log.info("no")
        log.warning("%d of %s", 3, "them")
        log.error("bad")
        log.warning("%d", "no number")  # a mistake of a library stops nobody
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("it failed")
    assert [str(w).partition(" (")[0] for w in found] == ["warning: 3 of them", "error: bad"]
    err = capsys.readouterr().err
    assert "--- Logging error ---" in err
    assert "it failed\nTraceback (most recent call last):\n" in err and "ValueError: why" in err


def test_what_was_logged_elsewhere_is_logged_here():
    with kept() as found:
        issue([(Warned("100 % of %s", "ERROR", "/home/me/m.py", 5), 2)])
    assert dict(found) == {Warned("100 % of %s", "ERROR", "/home/me/m.py", 5): 2}


def test_the_inner_one_hears(lenient):
    heard = []
    with kept() as outer, heard_by(heard.append):
        warnings.warn("odd", stacklevel=1)
    assert [w.text for w in heard] == ["odd"]
    assert not outer
