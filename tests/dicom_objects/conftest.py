"""A CT as a small DICOM series, and a mask with two lesions on it."""

import numpy as np
import pytest

pytest.importorskip("highdicom")

TILTED = np.array([[-1.5, 0, 0, 20], [0, -2.0, 0.9, 30], [0, 0, 3.0, -40], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def without_a_browser(monkeypatch):
    """Printing takes seconds; tests of the printed page undo this."""
    from liverseg_tf.reporting import printing

    monkeypatch.setattr(printing, "find_browser", lambda: None)
    return monkeypatch


@pytest.fixture
def make_findings(tmp_path):
    """Findings on a series of 19 x 21 pixels and 8 slices; frames of odd size, so their bits straddle bytes."""
    from liverseg_tf.data.dicom.writing import series_datasets
    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.dicom_objects.findings import Findings

    def make(affine=TILTED, labels=None, change=None, name="ct"):
        hu = np.random.default_rng(0).integers(-200, 300, (21, 19, 8)).astype(np.int16)
        folder = tmp_path / name
        folder.mkdir()
        for index, data in enumerate(series_datasets(hu, affine, "DOE^JANE", "Abdomen", 3, name)):
            data.add_new(0x00091001, "LO", "secret")
            if change is not None:
                change(data, index)
            data.save_as(folder / f"{index}.dcm", enforce_file_format=True)
        volume = CTVolume.load(folder)
        if labels is None:
            labels = np.zeros((21, 19, 8), np.uint8)
            labels[3:17, 4:15, 1:7] = 1
            labels[5:9, 5:8, 2:4] = 2
            labels[12:14, 11:14, 5] = 2
            labels[8, 12, 2] = 0  # a hole
            labels = volume.geometry.to_canonical(labels)
        return Findings(labels, volume, "shipped", "ab" * 32)

    return make


@pytest.fixture
def findings(make_findings):
    return make_findings()
