"""Results as tables, in the layout of Chao, Cheng, Lee (CVPR Workshops 2021, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["method_label"]


def method_label(method: Mapping[str, Any]) -> str:
    """Return what a method of ``results.json`` is called where no column tells its kind."""
    name: str = method["name"]
    return f"probe of {name}" if method["kind"] == "probe" else name
