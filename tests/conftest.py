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

    return ModelConfig(image_size=32, backbone="resnet18")


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
