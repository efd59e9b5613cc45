"""What teachers' labels cannot tell, in words. Light: `results` and the command line say it too."""

from __future__ import annotations


def of_model(teachers: int, opinions: int | None) -> str | None:
    """Return why a label model cannot tell which of its teachers errs; None where it can.

    Where two contradict each other, only a third says which of them is to be believed.

    Parameters
    ----------
    teachers : int
        How many vote.
    opinions : int or None
        How many different ones meet at a pixel (see `labelmodel.opinions`); None where that was
        not counted.
    """
    if teachers == 1:
        return "one teacher alone cannot tell where it errs: its IoU is not estimated"
    if teachers == 2:
        return (
            "two teachers cannot tell which of them errs where they differ, a third one could: "
            "their IoU is not estimated"
        )
    if opinions is not None and opinions < 3:
        count = "never contradict each other" if opinions == 1 else "hold no more than two opinions"
        return (
            f"the {teachers} teachers {count} where they label the same pixels, so that their "
            "labels cannot tell which of them errs: their IoU is not estimated"
        )
    return None
