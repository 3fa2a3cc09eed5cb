"""What pages are put together from: the files in a room's `viewer/`, templates, and data for scripts."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

from liverseg_tf.strict_json import to_json


def asset(package: str, name: str) -> str:
    """Text of a file in a package's `viewer/`."""
    return importlib.resources.files(package).joinpath("viewer", name).read_text("utf-8").strip()


def script_data(value: Any) -> str:
    """JSON for a script element; no text of it can end that element.

    Examples:
        >>> script_data({"title": "</script>"})
        '{"title":"\\\\u003c/script>"}'
    """
    return to_json(value, separators=(",", ":")).replace("<", "\\u003c")


def fill(package: str, name: str, values: Mapping[str, str]) -> str:
    """A page from a template in a package's `viewer/`; values are HTML, which the caller has escaped."""
    import jinja2

    return jinja2.Template(asset(package, name), undefined=jinja2.StrictUndefined).render(values) + "\n"
