"""The table of cases."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.data.cases import find_cases
from liverseg_tf.errors import GeometryError
from liverseg_tf.reporting.case_table import describe_cases, format_cases


@pytest.fixture
def folder(tmp_path, write_nifti):
    hu = np.full((10, 8, 4), 40, np.int16)
    hu[0, 0, 0], hu[1, 1, 1] = -3024, 2000
    labels = np.zeros((10, 8, 4), np.uint8)
    labels[2:6, 2:6, 1:4] = 1
    labels[3, 3, 2] = 2
    write_nifti(tmp_path / "volume-3.nii.gz", hu)
    write_nifti(tmp_path / "segmentation-3.nii.gz", labels)
    write_nifti(tmp_path / "volume-4.nii", hu, np.eye(4))
    return tmp_path


def test_a_row_for_each_case_with_and_without_a_mask(folder):
    seen = []
    first, second = describe_cases(find_cases(folder), progress=lambda case, done: seen.append((case.id, done)))
    assert seen == [(3, 1), (4, 2)]
    assert (first["hu_min"], first["hu_max"]) == (-3024, 2000)
    assert first["shape"] == (8, 10, 4) and first["spacing_mm"] == (1.5, 1.5, 3) and first["orientation"] == "LPS"
    assert [first[f"{c}_voxels"] for c in ("background", "liver", "tumour")] == [272, 47, 1]
    assert (first["liver_slices"], first["tumour_slices"]) == (3, 1)
    assert first["liver_ml"] == pytest.approx(48 * 6.75 / 1000, abs=0.005)
    assert second["liver_voxels"] is None and second["identity_affine"] is True


def test_the_table_as_text_has_a_line_for_each_case(folder):
    lines = format_cases(describe_cases(find_cases(folder))).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[0].split()[:3] == ["case", "patient", "shape"]
    assert "8 x 10 x 4" in lines[1] and "-3024" in lines[1] and lines[2].split()[-1] == "-"


def test_a_mask_on_another_grid_is_an_error(folder, write_nifti):
    write_nifti(folder / "segmentation-4.nii", np.zeros((10, 8, 5), np.uint8), np.eye(4))
    with pytest.raises(GeometryError, match="segmentation-4"):
        describe_cases(find_cases(folder))
