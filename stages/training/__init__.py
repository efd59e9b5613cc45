"""One training loop for probes and students."""

from typing import Final

METRICS: Final = "metrics.jsonl"  # the course of a training, in its folder
