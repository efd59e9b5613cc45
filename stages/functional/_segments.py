"""The compiled loops behind `spoiling`, imported only when one is called."""

from ensdistill.stages.functional._compiling import Int64, UInt8, jit


@jit
def find_segments(labels: UInt8, width: int, first: Int64) -> None:
    """Write for each pixel of a label map the first one of its segment, row by row.

    Parameters
    ----------
    labels
        (N,), the rows one after the other.
    width
        Pixels of a row.
    first
        (N,), out: indices of pixels.
    """
    for i in range(len(labels)):
        first[i] = i
        if i % width and labels[i - 1] == labels[i]:
            first[i] = _first(first, i - 1)
        if i >= width and labels[i - width] == labels[i]:
            a, b = _first(first, i), _first(first, i - width)
            first[max(a, b)] = min(a, b)
    for i in range(len(labels)):
        first[i] = first[first[i]]  # which lies before it, or is it: it is known


@jit
def _first(first: Int64, i: int) -> int:
    """Return the first pixel so far of a pixel's segment, and shorten the way to it."""
    while first[i] != i:
        first[i] = first[first[i]]
        i = first[i]
    return i
