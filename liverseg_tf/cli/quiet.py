"""Loads TensorFlow without its lines on stderr, and nibabel without the parts that no command needs."""

from __future__ import annotations

import sys

from liverseg_tf.native_logs import without_log_lines


def load_tensorflow_quietly(start_devices: bool = True) -> None:
    """Import TensorFlow and start its devices.

    Args:
        start_devices: False if a cluster must be set up first.
    """
    if "tensorflow" in sys.modules:
        return
    with without_log_lines():
        import tensorflow as tf

        if start_devices:
            tf.constant(0)  # devices write their lines on first use


def load_nibabel_quickly() -> None:
    """Import nibabel without pydicom, if neither is loaded yet.

    Where pydicom is installed nibabel imports it, which takes longer than all else that a prediction imports together,
    to decode DICOM headers inside NIfTI files. Nothing here looks at those; they are kept as they are. Only for a
    command's own process: another program's nibabel stays whole.
    """
    if {"nibabel", "pydicom"} & set(sys.modules):
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # Python's way to say that it can't be imported
    try:
        import nibabel  # noqa: F401
    finally:
        del sys.modules["pydicom"]
