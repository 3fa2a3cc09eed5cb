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

    nibabel imports pydicom, if it is installed, to decode DICOM headers inside NIfTI files. This takes longer than all
    other imports of a prediction together, and the commands keep such headers unread. Only for the process of a
    command, because `nibabel` stays without this decoder.
    """
    if {"nibabel", "pydicom"} & set(sys.modules):
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import nibabel  # noqa: F401
    finally:
        del sys.modules["pydicom"]
