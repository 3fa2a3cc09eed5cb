"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import liverseg_tf
from liverseg_tf.strict_json import to_json


def test_what_json_lacks_becomes_null_at_any_depth():
    value = {"a": math.nan, "b": [1.5, (math.inf, {"c": -math.inf})], "d": "NaN", "e": True, "f": 3}
    text = to_json(value, indent=2)
    refuse = {"parse_constant": lambda name: pytest_fail(name)}
    assert json.loads(text, **refuse) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": True, "f": 3}
    assert json.loads(to_json({"a": 1e300, "b": "\u00e4"}, ensure_ascii=False)) == {"a": 1e300, "b": "\u00e4"}


def pytest_fail(name):
    raise AssertionError(f"{name} is no JSON")


def test_nothing_else_in_the_package_writes_json():
    folder = Path(liverseg_tf.__file__).parent
    writers = [p.name for p in folder.rglob("*.py") if any(w in p.read_text("utf-8") for w in ("json.dump", "JSONEnc"))]
    assert writers == ["strict_json.py"]
