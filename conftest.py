"""Fixtures that tests and the examples in docstrings share.

Examples run as tests, each in a folder of its own, which holds those of `EXAMPLE_FILES` that the example names. They
know the public names, as after `from liverseg_tf import *`.
"""

from __future__ import annotations

import doctest
import gc
import os
import re
import shutil

# Several processes share the tests: threads within each would only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from _pytest.doctest import DoctestItem

# A program that tests start, not a module to import.
collect_ignore = ["tests/serving_endpoint.py"]


def pytest_configure(config):
    # Several processes take files in the order below, not those of many tests first.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


# Examples that trace a network or export one: `-m "not slow"` leaves them out.
SLOW_EXAMPLES = (
    "cohorts.predict_folder.predict_folder",
    "data.slices.slice_dataset",
    "explanation.explain.explain",
    "explanation.integrated_gradients.IntegratedGradients",
    "explanation.occlusion.Occlusion",
    "explanation.uncertainty.measure_uncertainty",
    "exporting.export.export",
    "inference.runtimes.KerasRuntime",
    "reporting.report.report",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """Files of slow tests first: several processes then end at about the same time."""
    for item in items:
        if isinstance(item, DoctestItem) and item.name.removeprefix("liverseg_tf.") in SLOW_EXAMPLES:
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection():
    gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    """Python's garbage collector leaves out what was imported: it would walk through all of TensorFlow each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Function of a name and a function that fills a folder: the folder, filled by one of the tests' processes."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    base.mkdir(exist_ok=True)

    def folder(name, fill):
        path, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                fill(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def phantom_folder(made_once):
    """Six phantom patients of 64 x 64 x 12 voxels, in LiTS layout."""
    from liverseg_tf.data.phantom import write_phantoms

    return made_once("phantoms", lambda folder: write_phantoms(folder, cases=6, seed=5, shape=(64, 64, 12)))


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
def small_model_file(small_model, small_config, made_once):
    from liverseg_tf.models.saving import save_model

    return (
        made_once("model", lambda folder: save_model(small_model, small_config, folder / "small.keras")) / "small.keras"
    )


def _two_cases(request, folder):
    for path in request.getfixturevalue("phantom_folder").glob("*-[01].nii.gz"):
        shutil.copy(path, folder)


def _untrained_run(request, folder):
    shutil.copy(request.getfixturevalue("small_model_file"), folder / "model.keras")


def _dicom_study(request, folder):
    pytest.importorskip("pydicom", reason="needs the extra [dicom]")
    from liverseg_tf.data.phantom import write_phantoms

    def fill(made):
        write_phantoms(made, cases=1, seed=5, shape=(64, 64, 12), dicom=True)

    shutil.copytree(request.getfixturevalue("made_once")("study", fill), folder, dirs_exist_ok=True)


def _site(request, folder):
    """Twenty masks, and predictions that miss the liver's border and every second lesion."""
    import nibabel as nib
    import numpy as np

    for number in range(20):
        labels = np.zeros((24, 24, 10), np.uint8)
        labels[2 : 14 + number % 7, 2:20, 1:9] = 1
        predicted = labels.copy()
        predicted[2] = 0
        labels[5:8, 5:8, 3:6] = 2
        predicted[5:8, 5:8, 3:6] += number % 2 == 0
        predicted[10:13, 12:15, 3:6] += number % 3 == 0
        for name, array in (("references", labels), ("predictions", predicted)):
            path = folder / name / f"segmentation-{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-5.0, -5.0, 8.0, 1.0])), path)


EXAMPLE_FILES = {"LiTS": _two_cases, "run": _untrained_run, "study": _dicom_study, "site": _site}


@pytest.fixture(autouse=True)
def _set_up_example(request):
    if not isinstance(request.node, DoctestItem):
        return
    import numpy as np

    import liverseg_tf as ls

    folder = request.getfixturevalue("tmp_path")
    text = "".join(one.source for one in request.node.dtest.examples if doctest.SKIP not in one.options)
    for name, fill in EXAMPLE_FILES.items():
        if re.search(rf'"{name}["/]', text):
            (folder / name).mkdir()
            fill(request, folder / name)
    names = request.getfixturevalue("doctest_namespace")
    names["np"] = np
    names.update({name: getattr(ls, name) for name in set(re.findall(r"\w+", text)) & set(ls.__all__)})
    request.getfixturevalue("monkeypatch").chdir(folder)
