"""Fixtures shared by all tests: small phantoms, small models, no network, no GPU."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def write_nifti():
    """Write an array as NIfTI; the affine defaults to LPS with 1.5 x 1.5 x 3 mm, as most of LiTS is stored."""

    def write(path, array, affine=None, **header):
        affine = np.diag([-1.5, -1.5, 3.0, 1.0]) if affine is None else affine
        image = nib.Nifti1Image(np.asarray(array), affine)
        for name, value in header.items():
            image.header[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """Six phantom patients of 64 x 64 x 12 voxels, in LiTS layout."""
    from liverseg_tf.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=6, seed=5, shape=(64, 64, 12))
    return folder


@pytest.fixture(scope="session")
def small_config():
    from liverseg_tf.config import ModelConfig

    return ModelConfig(image_size=32, backbone="tiny")


@pytest.fixture(scope="session")
def small_model(small_config):
    """An untrained network whose output varies with its input."""
    import keras

    from liverseg_tf.models.saving import build_model

    keras.utils.set_random_seed(3)
    return build_model(small_config)


@pytest.fixture(scope="session")
def small_model_file(small_model, small_config, tmp_path_factory):
    from liverseg_tf.models.saving import save_model

    path = tmp_path_factory.mktemp("model") / "small.keras"
    save_model(small_model, small_config, path)
    return path


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
def tflite_file(small_model_file, tmp_path_factory):
    """In float32; what opens it in a process of its own need not load TensorFlow, which takes seconds."""
    from liverseg_tf.exporting.export import export

    return export(small_model_file, tmp_path_factory.mktemp("edge") / "liver", "tflite").path


@pytest.fixture(scope="session")
def tflite_files(small_model_file, tflite_file, phantom_folder):
    """Path by precision."""
    from liverseg_tf.exporting.export import export

    folder = tflite_file.parent
    float16 = export(small_model_file, folder, "tflite", "float16").path
    int8 = export(small_model_file, folder, "tflite", "int8", calibration=phantom_folder).path
    return {"float32": tflite_file, "float16": float16, "int8": int8}


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
