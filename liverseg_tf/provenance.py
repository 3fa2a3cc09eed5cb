"""Where a figure or a page comes from: versions, without anything that names a patient or a place."""

from __future__ import annotations

import importlib.metadata
import platform

from liverseg_tf import __version__

_PACKAGES = ("numpy", "nibabel", "tensorflow", "keras", "tf-keras-vis", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of this package, Python and what figures depend on; loads none of them.

    Example:
        >>> sorted(versions())[:2]
        ['Python', 'keras']
    """
    found = {"liverseg_tf": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
