import pytest
import yaml

from ensdistill.stages.experiment.writing import from_settings, from_template, quoted


@pytest.mark.parametrize("text", ["a", "a: b", "# a", "no", "~", "\x85 \u2028", 'a"b\\c', "köln"])
def test_what_is_quoted_reads_as_it_was(text):
    assert yaml.safe_load(quoted(text)) == text
    assert yaml.safe_load(f"[{quoted({'key': [text]})}]") == [{"key": [text]}]
    assert "\n" not in quoted(text)


def test_a_name_that_is_no_utf8_can_be_written():
    assert quoted("k\udcf6ln").encode() == rb'"k\udcf6ln"'


def test_a_value_that_looks_like_a_place_of_the_template_is_left_alone():
    text = from_template("imported", classes="@TARGET@", target="  a: @CLASSES@", teachers="")
    assert "classes: {table: @TARGET@}\ntarget:\n  a: @CLASSES@\n" in text


def test_a_value_that_the_template_has_no_other_for_is_missed():
    with pytest.raises(KeyError, match="target"):
        from_template("imported", classes="c", teachers="t")


def test_settings_are_written_without_anchors():
    crop = [256, 512]
    text = from_settings({"b": {"crop": crop}, "a": {"crop": crop}})
    assert text == "b:\n  crop: [256, 512]\na:\n  crop: [256, 512]\n"
