"""Loading TensorFlow without the lines that its C++ part writes to stderr before any setting can reach it."""

from __future__ import annotations

import os
import sys


def load_tensorflow_quietly(start_devices: bool = True) -> None:
    """Import TensorFlow and start its devices, with the process's stderr closed to it meanwhile.

    Args:
        start_devices: False where a cluster must be set up before.
    """
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        if start_devices:
            tf.constant(0)  # the devices write theirs when they are first used
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
