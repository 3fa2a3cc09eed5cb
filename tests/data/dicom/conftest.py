"""Small DICOM series to read."""

import numpy as np
import pytest

AXIAL = np.array([[-1.5, 0, 0, 20], [0, -2.0, 0, 30], [0, 0, 3.0, -40], [0, 0, 0, 1]])


@pytest.fixture
def hu():
    """(columns, rows, slices) int16."""
    return np.random.default_rng(0).integers(-1024, 1500, (7, 6, 5)).astype(np.int16)


@pytest.fixture
def make_series(tmp_path, hu):
    """Write a series to a folder; `change(data, index)` may edit each slice's data set, or return False to leave it."""
    from liverseg_tf.data.dicom.writing import series_datasets

    def make(name="ct", *, array=hu, affine=AXIAL, change=None, seed=0, names="IM{:03d}"):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(series_datasets(array, affine, "DOE^JANE", "Abdomen", 3, seed)):
            if change is None or change(data, index) is not False:
                data.save_as(folder / names.format(index), enforce_file_format=True)
        return folder

    return make
