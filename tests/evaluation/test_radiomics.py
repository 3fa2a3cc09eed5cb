"""Radiomics by IBSI's names, beside our own figures of the same lesion; and what is said where they can't be had."""

import csv
import importlib.util
import io
import math
import sys

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.data.volume import Geometry, MaskVolume
from liverseg_tf.errors import MissingDependencyError
from liverseg_tf.evaluation.measure import measurement_tables

SPACING = (1.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def measured():
    """An ellipsoid and a single voxel, with and without a CT, and in a tilted grid."""
    if importlib.util.find_spec("pictologics") is None:  # importing it here would compile all of it
        pytest.skip("needs pictologics")
    labels = np.zeros((40, 40, 30), np.uint8)
    labels[3:-3, 3:-3, 3:-3] = 1
    places = np.moveaxis(np.indices(labels.shape), 0, -1) * SPACING - (30, 18, 28)
    labels[((places / (14, 9, 11)) ** 2).sum(axis=-1) <= 1] = 2
    labels[5, 5, 5] = 2
    hu = np.random.default_rng(0).normal(100 - 60 * (labels == 2), 12).astype(np.float32)
    tilted = np.diag([-1.0, -1.5, 2.0, 1.0])
    tilted[1, 2] = 0.6
    return {
        "ct": ls.measure(labels, hu, spacing_mm=SPACING, radiomics=True),
        "mask": ls.measure(labels, spacing_mm=SPACING, radiomics=True),
        "tilted": ls.measure(MaskVolume(labels, Geometry(labels.shape, tilted)), radiomics=True),
    }


def test_they_agree_with_our_own_figures(measured):
    lesion = measured["ct"].lesions[0]
    found = lesion.radiomics
    assert found["volume_voxel_counting_YEKZ"] == pytest.approx(1000 * lesion.statistics.volume_ml)
    assert found["mean_intensity_Q4LE"] == pytest.approx(lesion.hu["mean"], rel=1e-6)
    assert math.sqrt(found["intensity_variance_ECT3"]) == pytest.approx(lesion.hu["sd"], rel=1e-6)
    assert found["median_intensity_Y12H"] == pytest.approx(lesion.hu["p50"], abs=0.2)
    assert found["maximum_3d_diameter_L0JK"] == pytest.approx(lesion.axes.largest_diameter_mm, rel=0.01)
    assert found["sphericity_QCFX"] == pytest.approx(lesion.sphericity, rel=0.005)
    # of the ellipsoid itself
    assert found["volume_RNU0"] == pytest.approx(4 / 3 * math.pi * 14 * 9 * 11, rel=0.03)
    axes = [
        found[f"{name}_axis_length_{code}"] for name, code in (("major", "TDIC"), ("minor", "P9VJ"), ("least", "7J51"))
    ]
    assert axes == pytest.approx([4 * r / math.sqrt(5) for r in (14, 11, 9)], rel=0.03)  # of second moments


def test_what_is_not_defined_is_none_and_every_row_has_every_column(measured):
    first, voxel = measured["mask"].lesions
    assert first.radiomics["mean_intensity_Q4LE"] is None and first.radiomics["integrated_intensity_99N0"] is None
    assert first.radiomics["flatness_N17B"] > 0 and voxel.radiomics["flatness_N17B"] is None
    tilted = measured["tilted"].lesions[0].radiomics
    assert tilted["sphericity_QCFX"] is None and "sheared_grid" in measured["tilted"].flags
    assert first.radiomics.keys() == voxel.radiomics.keys() == tilted.keys()
    assert first.to_dict()["sphericity_QCFX"] == first.radiomics["sphericity_QCFX"]
    rows = list(csv.DictReader(io.StringIO(measurement_tables([measured["ct"], measured["mask"]])[1])))
    assert len(rows) == 4 and rows[1]["flatness_N17B"] == "" and float(rows[0]["mean_intensity_Q4LE"]) < 50


def test_nobody_gets_them_unasked():
    labels = np.pad(np.full((4, 4, 4), 2, np.uint8), 3, constant_values=1)
    (lesion,) = ls.measure(labels, spacing_mm=SPACING).lesions
    assert lesion.radiomics is None and not any(name.endswith("_QCFX") for name in lesion.to_dict())


def test_an_older_python_or_a_missing_extra_is_told_in_one_line(monkeypatch, tmp_path, write_nifti, capsys):
    from liverseg_tf.cli.main import main

    mask = tmp_path / "mask.nii.gz"
    write_nifti(mask, np.pad(np.full((4, 4, 4), 2, np.uint8), 3, constant_values=1), np.diag([-1, -1, 2, 1]))
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    assert main(["measure", str(mask), "--radiomics", "-o", str(tmp_path / "out.csv")]) == 1
    told = capsys.readouterr().err
    assert "radiomics needs Python 3.12 or later" in told and told.count("\n") == 1
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    monkeypatch.setitem(sys.modules, "pictologics.features", None)
    with pytest.raises(MissingDependencyError, match=r"liverseg_tf\[radiomics\]"):
        ls.measure(np.ones((4, 4, 4), np.uint8), spacing_mm=SPACING, radiomics=True)
    assert main(["measure", str(mask), "--radiomics", "-o", str(tmp_path / "out.csv")]) == 1
    assert not (tmp_path / "out.csv").exists()
