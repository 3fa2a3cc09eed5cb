"""Model cards: what an exported model is, what it is for, where it comes from."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from liverseg_tf.config import ModelConfig
from liverseg_tf.labels import LIVER_CLASSES
from liverseg_tf.models.model import Model
from liverseg_tf.models.saving import weights_sha256
from liverseg_tf.provenance import versions


def model_card(model: Model, format: str, precision: str) -> dict[str, Any]:
    """Describe an exported model.

    Args:
        model: the network with its configuration; the text of a `model_card.md` beside its source is included.
        format: `"savedmodel"` or `"tflite"`.
        precision: of weights and activations.

    Returns:
        A dictionary for JSON, without names of persons or of this machine's folders.
    """
    network, config = model.network, model.config
    card = {
        "name": f"{network.name}, {precision}, {format}",
        "intended_use": f"Research and teaching: outlines {_outlined(config)}. "
        "Not a medical device; not for diagnosis or treatment.",
        "input": "axial CT slices in Hounsfield units, row 0 anterior, column 0 the patient's right",
        "output": [{"index": i, "class": name} for i, name in enumerate(config.class_names)],
        "format": format,
        "precision": precision,
        "weights_sha256": weights_sha256(network),
        "parameters": int(network.count_params()),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    markdown = _markdown_beside(model.source)
    return card | ({"model_card.md": markdown} if markdown else {})


def _outlined(config: ModelConfig) -> str:
    if config.classes == LIVER_CLASSES:
        return "liver and liver tumours in portal-venous CT of adults"
    return f"{', '.join(config.class_names[1:])} in CT"


def _markdown_beside(source: Path | None) -> str | None:
    if source is None:
        return None
    path = (source if source.is_dir() else source.parent) / "model_card.md"
    return path.read_text("utf-8", errors="replace") if path.is_file() else None
