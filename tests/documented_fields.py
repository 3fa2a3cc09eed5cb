"""What docs/reference/files.md says about the keys of outputs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "files.md"
# The names directly under these keys are data: models, windows, flags, classes, figures.
NAMED_BY_DATA = {"runtimes", "windows", "flags", "distributions", "voxels", "dice", "dice_truth"}
# What is under these keys is not described field by field.
OPAQUE = {"versions", "models", "rules", "recipe", "sha256", "paths", "devices"}


def keys_of(value: object) -> set[str]:
    """All keys of nested dictionaries and lists."""
    if isinstance(value, list | tuple):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for name, inner in value.items():
        if name in NAMED_BY_DATA and isinstance(inner, dict):
            inner = list(inner.values())
        if name not in OPAQUE:
            found |= keys_of(inner)
    return found


def undocumented(content: object, *headings: str) -> set[str]:
    """Keys (or, of a set, its names) that none of the sections names; a heading is given by its beginning."""
    keys = content if isinstance(content, set) else keys_of(content)
    return keys - set(re.findall(r"`([^`]+)`", "".join(map(_section, headings))))


def stale(keys: set[str], heading: str) -> set[str]:
    """Names in the first column of the section's tables that are none of the keys."""
    cells = re.findall(r"^\| (`[^|]*) \|", _section(heading), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} - keys


def _section(heading: str) -> str:
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (found,) = (text for text in sections if text.startswith(heading))
    return found.partition("\n")[2]
