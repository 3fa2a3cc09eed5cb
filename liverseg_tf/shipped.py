"""The models that come with the package. Loads nothing heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from liverseg_tf.errors import ModelError

DEFAULT_MODEL = "liverseg-resnet34"
SECOND_LOOK_MODEL = "liverseg-lite0"  # must confirm the tumours that the default model finds


def models_folder() -> Path:
    """The folder `savedmodels`: in the installed package, or beside it in a checkout."""
    spec = importlib.util.find_spec("liverseg_tf.savedmodels")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parent.parent / "savedmodels"


def shipped_models() -> dict[str, Path]:
    """Name and folder of each shipped model."""
    folder = models_folder()
    if not folder.is_dir():
        return {}
    return {p.name: p for p in sorted(folder.iterdir()) if (p / "model_card.md").is_file()}


def locate_model(model: Any) -> Any:
    """The folder of a shipped model, for its name or for "shipped" or None (the default model); else `model` itself.

    An existing path is returned unchanged, even if it has a shipped model's name.

    Raises:
        ModelError: for "shipped" or None, if this installation has no shipped model.

    Examples:
        >>> locate_model("run/")
        'run/'
    """
    if model is None or (isinstance(model, str) and model == "shipped"):
        return shipped_model()
    if isinstance(model, str) and not Path(model).exists():
        return shipped_models().get(model, model)
    return model


def shipped_model(name: str = DEFAULT_MODEL) -> Path:
    """Folder of a shipped model.

    Raises:
        ModelError: if this installation has no model of that name; the message says how to train one.
    """
    found = shipped_models()
    if name not in found:
        raise ModelError(
            f"this installation ships no model {name!r} (it has: {', '.join(found) or 'none'}): train one with "
            "'liverseg train DIR -o RUN' (try it on 'liverseg phantom DIR') and name that RUN as the model"
        )
    return found[name]
