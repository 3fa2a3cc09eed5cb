"""Liver and liver-tumour segmentation in CT with TensorFlow: train, predict, score, serve, explain.

The public names are listed in `__init__.pyi`. Each loads its module on first use; importing the package loads neither
TensorFlow nor NumPy.
"""

import os
from typing import Any

import lazy_loader

# TensorFlow leaves oneDNN off on CPUs without AVX-512; a training step takes 1.5 times as long without it there. It
# reads the variable when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
# Old name -> new name; see `deprecation.py`.
_RENAMED = {"Variations": "TestTimeAugmentation"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from liverseg_tf.deprecation import deprecated

        deprecated(f"liverseg_tf.{name}", _RENAMED[name], "0.3")
        name = _RENAMED[name]
    return _load(name)
