"""Fixtures shared by all tests: small phantoms, small models, no network, no GPU."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nibabel as nib
import numpy as np
import pytest

# Files that take longest, from the longest down. Where several processes share the tests (pytest -n), they come first:
# at the end, one of them would keep one process busy while the others have nothing left to do.
LONGEST = (
    "inference/test_ray_engine.py",
    "training/test_train.py",
    "cli/test_demo.py",
    "training/test_multiworker.py",
    "exporting/test_export.py",
    "test_kills.py",
    "test_other_organs.py",
    "training/test_folds.py",
    "training/test_strategies.py",
    "examples/test_walkthrough.py",
    "examples/test_train_jax.py",
)


def pytest_configure(config):
    # xdist itself would begin with the files of most tests, and the longest ones have few
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Put the longest files first, those of quick tests last; leave slow tests out of coverage where that is asked."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}

        def rank(item):
            listed = [index for index, name in enumerate(LONGEST) if item.path.as_posix().endswith(f"tests/{name}")]
            return listed[0] if listed else len(LONGEST) + (item.path not in slow)

        items.sort(key=rank)
    if os.environ.get("LIVERSEG_COVER") == "quick":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker("no_cover")


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
def keras_runtime(small_model):
    from liverseg_tf.inference.runtimes import KerasRuntime

    return KerasRuntime(small_model)


@pytest.fixture(scope="session")
def small_predictor(small_model_file):
    """Of the model's file, opened once; don't change it."""
    from liverseg_tf.inference.predictor import Predictor

    return Predictor(small_model_file)


@pytest.fixture
def open_model_file(small_model_file, small_predictor, monkeypatch):
    """The path `small_model_file`, which commands and predictors find opened already.

    To open and to trace it takes a second each time; for tests that aren't about that.
    """
    from liverseg_tf.inference import runtimes

    (opened,), open_keras = small_predictor.runtimes, runtimes.open_keras
    monkeypatch.setattr(runtimes, "open_keras", lambda path: opened if path == small_model_file else open_keras(path))
    return small_model_file


@pytest.fixture(scope="session")
def savedmodel(small_model_file, made_once):
    """Folder of one version."""
    from liverseg_tf.exporting.export import export

    return made_once("serving", lambda folder: export(small_model_file, folder / "liverseg")) / "liverseg" / "1"


@pytest.fixture(scope="session")
def tflite_file(small_model_file, made_once):
    """In float32; what opens it in a process of its own need not load TensorFlow, which takes seconds."""
    from liverseg_tf.exporting.export import export

    folder = made_once("edge-float32", lambda folder: export(small_model_file, folder / "liver", "tflite"))
    return folder / "liver" / "liver-float32.tflite"


@pytest.fixture(scope="session")
def tflite_files(small_model_file, tflite_file, phantom_folder, made_once):
    """Path by precision."""
    from liverseg_tf.exporting.export import export

    def smaller(folder):
        export(small_model_file, folder / "liver", "tflite", "float16")
        export(small_model_file, folder / "liver", "tflite", "int8", calibration=phantom_folder)

    folder = made_once("edge-smaller", smaller)
    return {"float32": tflite_file, **{p: folder / "liver" / f"liver-{p}.tflite" for p in ("float16", "int8")}}


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
