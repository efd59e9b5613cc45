"""Arrays in, arrays out: no paths, no logging, no stores."""

from typing import Final

IGNORE_INDEX: Final = 255
"""The value of a pixel without a label in every label map: it claims, votes and counts nothing."""

MAX_FUSED: Final = 64
"""The most classes that can be fused: which of them claim a pixel are the bits of one number."""
