"""Griffe extension of the site: an item of a docstring that describes several names becomes one item for each.

Griffe would take "liver, tumour: ..." for a name and its type.
"""

from __future__ import annotations

import re

import griffe

_SECTION = re.compile(r"^ *(Args|Attributes):$")
_ITEM = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): ")


class NamesByThemselves(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = split_items(obj.docstring.value)


def split_items(docstring: str) -> str:
    """Give each name of a shared item its own item, with the same text."""
    lines, in_section, result = docstring.splitlines(), False, []
    while lines:
        line = lines.pop(0)
        if line and not line.startswith("    "):
            in_section = bool(_SECTION.match(line))
        found = _ITEM.match(line) if in_section else None
        if not found:
            result.append(line)
            continue
        text = [line[found.end() :]]
        while lines and lines[0].startswith(found[1] + " "):
            text.append(lines.pop(0))
        for name in found[2].split(", "):
            result += [f"{found[1]}{name}: {text[0]}", *text[1:]]
    return "\n".join(result)
