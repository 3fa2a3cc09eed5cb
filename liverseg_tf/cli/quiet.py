"""Loading TensorFlow without the lines that its C++ part writes to stderr before any setting can reach it."""

from __future__ import annotations

import sys

from liverseg_tf.native_logs import without_log_lines


def load_tensorflow_quietly(start_devices: bool = True) -> None:
    """Import TensorFlow and start its devices.

    Args:
        start_devices: False where a cluster must be set up before.
    """
    if "tensorflow" in sys.modules:
        return
    with without_log_lines():
        import tensorflow as tf

        if start_devices:
            tf.constant(0)  # the devices write theirs when they are first used
