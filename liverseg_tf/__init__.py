"""Liver and liver-tumour segmentation in CT with TensorFlow: train, predict, score, serve, explain.

Attributes load what they need on first use; importing the package loads neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module that holds it.
_PUBLIC = {
    "LiverSegError": "errors",
    "WINDOWS": "windows",
    "CLASSES": "labels",
    "CLASS_NAMES": "labels",
    "color_mask": "labels",
    "ChannelsConfig": "config",
    "ModelConfig": "config",
    "Case": "data.cases",
    "find_cases": "data.cases",
    "split_by_patient": "data.cases",
    "folds_by_patient": "data.cases",
    "CTVolume": "data.volume",
    "MaskVolume": "data.volume",
    "Phantom": "data.phantom",
    "make_phantom": "data.phantom",
    "write_phantoms": "data.phantom",
    "slice_dataset": "data.slices",
    "SliceSelection": "data.slices",
    "Augmentation": "data.augmentation",
    "LesionSynthesis": "data.lesion_synthesis",
    "CTWindow": "channels",
    "HistogramScale": "channels",
    "CTChannels": "channels",
    "SquareResize": "channels",
    "RestoreSize": "channels",
    "build_unet": "models.unet",
    "load_model": "models.saving",
    "save_model": "models.saving",
    "build_loss": "models.losses",
    "find_learning_rate": "training.find_learning_rate",
    "RECIPES": "training.recipes",
    "Recipe": "training.recipes",
    "train": "training.train",
    "Run": "training.train",
    "Predictor": "inference.predictor",
    "Prediction": "inference.predictor",
    "PostProcessing": "inference.postprocessing",
    "evaluate": "evaluation.evaluate",
    "Evaluation": "evaluation.evaluate",
    "statistics": "evaluation.statistics",
    "verify": "data.verify",
    "explain": "explanation.explain",
    "measure_uncertainty": "explanation.uncertainty",
    "Variations": "inference.test_time_augmentation",
    "report": "reporting.report",
    "montage": "reporting.montage",
    "describe_cases": "reporting.case_table",
    "write_image_folder": "data.image_folder",
    "image_folder_dataset": "data.image_folder",
    "export": "exporting.export",
    "ServingClient": "inference.serving_client",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from liverseg_tf.data.cases import Case, find_cases, split_by_patient  # noqa: F401
    from liverseg_tf.data.volume import CTVolume, MaskVolume  # noqa: F401
