"""Writes JSON that every JSON reader accepts; all JSON of this library is written here."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """JSON text of a value; NaN and infinity, which JSON does not have, become null.

    Args:
        value: dictionaries, lists, tuples, text, numbers, True, False and None.
        options: of `json.dumps`.

    Example:
        >>> to_json({"dice": float("nan"), "ml": (1.5, 2)})
        '{"dice": null, "ml": [1.5, 2]}'
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
