"""How an experiment file, or a part of one, is written: from a template or from settings."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from ensdistill.pipeline.escaping import escaped


def from_template(name: str, **values: str) -> str:
    """Return the text of a template with a value in the place of each ``@KEY@``."""
    folder = resources.files("ensdistill.stages.experiment") / "templates"
    text = (folder / f"{name}.yaml").read_text("utf-8")
    return re.sub("@([A-Z]+)@", lambda found: values[found[1].lower()], text)


def from_settings(settings: Any) -> str:
    """Return what JSON can hold as YAML, the innermost lists and mappings in one line each."""
    import yaml

    plain = json.loads(json.dumps(settings))  # no object twice: YAML would write anchors for it
    return str(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=96))


def quoted(value: Any) -> str:
    """Return a value as YAML; JSON is YAML, but for what its readers do not take as it is."""
    return escaped(json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode())
