"""Versions and software that produced a result, without anything that identifies a patient or a place."""

from __future__ import annotations

import importlib.metadata
import platform

from liverseg_tf import __version__

SOFTWARE = f"liverseg_tf {__version__}"
NOT_A_MEDICAL_DEVICE = "Not a medical device: for research only."

_PACKAGES = (
    "numpy",
    "nibabel",
    "ai-edge-litert",
    "tensorflow",
    "keras",
    "segmentation-models",
    "tf-keras-vis",
    "matplotlib",
    "pillow",
)


def versions() -> dict[str, str | None]:
    """Versions of this package, of Python and of what results depend on, None where one is missing; loads none of them.

    Examples:
        >>> sorted(versions())[:2]
        ['ai-edge-litert', 'keras']
    """
    found: dict[str, str | None] = {"liverseg_tf": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
