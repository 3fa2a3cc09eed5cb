"""One export of each kind for all tests here."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def keras_runtime(small_model):
    from liverseg_tf.inference.runtimes import KerasRuntime

    return KerasRuntime(small_model)


@pytest.fixture(scope="session")
def savedmodel(small_model_file, tmp_path_factory):
    """Folder of one version."""
    from liverseg_tf.exporting.export import export

    return export(small_model_file, tmp_path_factory.mktemp("serving") / "liverseg").path


@pytest.fixture(scope="session")
def tflite_files(small_model_file, phantom_folder, tmp_path_factory):
    """Path by precision."""
    from liverseg_tf.exporting.export import export

    folder = tmp_path_factory.mktemp("edge") / "liver"
    return {
        precision: export(
            small_model_file, folder, "tflite", precision, calibration=phantom_folder if precision == "int8" else None
        ).path
        for precision in ("float32", "float16", "int8")
    }


@pytest.fixture(scope="session")
def body_hu():
    """Function of a shape (B, H, W): smooth tissue-like integer HU with air around it."""

    def make(shape, seed=0):
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(seed)
        hu = gaussian_filter(rng.normal(size=shape), (0, shape[1] / 20, shape[2] / 20))
        hu = 60 + 150 * hu / hu.std() + rng.normal(0, 12, shape)
        rows, columns = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
        hu[:, rows**2 + columns**2 > 0.9] = -1000
        return np.rint(hu).astype(np.float32)

    return make
