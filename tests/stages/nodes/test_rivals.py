"""What stands beside a fusion: majority, and the best teacher."""

import pytest

from ensdistill.stages.nodes.evaluation.rivals import rivals
from ensdistill.stages.reading.tables import rivals_note

TEACHERS = {"dacs": 51.25, "enet": 59.75, "fcn": 59.75, "none": None}


@pytest.mark.parametrize(
    ("method", "fusions", "majority", "difference", "text"),
    [
        (
            "label-model",
            {"channel-oracle": 66.0, "label-model": 64.25, "majority": 59.5},
            {"value": 59.5, "difference": 4.75},
            4.5,
            "label-model 64.2 mIoU present: +4.8 on majority (59.5), "
            "+4.5 on the best teacher (enet, 59.8)",
        ),
        (
            "channel",
            {"channel": 55.0, "majority": 59.5},
            {"value": 59.5, "difference": -4.5},
            -4.75,
            "channel 55.0 mIoU present: -4.5 on majority (59.5), "
            "-4.8 on the best teacher (enet, 59.8)",
        ),
        (
            "majority",
            {"channel-oracle": 66.0, "majority": 59.75},
            None,
            0.0,
            "majority 59.8 mIoU present: +0.0 on the best teacher (enet, 59.8)",
        ),
    ],
)
def test_differences_are_in_points_and_told_in_a_sentence(
    method, fusions, majority, difference, text
):
    found = rivals(method, "miou_present", fusions, TEACHERS)
    assert found == {
        "method": method,
        "score": "miou_present",
        "value": fusions[method],
        "majority": majority,
        "teacher": {"name": "enet", "value": 59.75, "difference": difference},
    }
    assert rivals_note(found) == text


def test_nothing_stands_beside_what_is_not_scored():
    assert rivals("channel", "miou", {"majority": 1.0}, TEACHERS) is None
    assert rivals("channel", "miou", {"channel": None, "majority": 1.0}, TEACHERS) is None
    assert rivals("channel", "miou", {"channel": 2.0, "majority": 1.0}, {"none": None}) is None
