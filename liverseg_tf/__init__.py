"""Liver and liver-tumour segmentation in CT with TensorFlow: train, predict, score, serve, explain.

The public names stand in `__init__.pyi`. They load what they need on first use: importing the package loads neither
TensorFlow nor NumPy.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
