from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.errors import GeometryError

SPACING_MM = (0.5, 1.0, 4.0)


@pytest.fixture
def labels():
    """(rows, columns, slices): a liver of 20 x 20 x 10 with a small lesion and a larger one."""
    labels = np.zeros((30, 40, 20), np.uint8)
    labels[5:25, 10:30, 6:16] = 1
    labels[6:8, 11:13, 7] = 2  # front, right, low: 4 voxels
    labels[20:24, 25:29, 12:15] = 2  # back, left, high: 48 voxels
    return labels


def test_repr_tells_what_was_found(labels):
    assert repr(ls.statistics(labels, spacing_mm=SPACING_MM)) == (
        "MaskStatistics(liver 8 ml, tumour 0.1 ml (1.3 %), 2 lesions, the largest 6 mm; "
        "30 x 40 x 20 (rows, columns, slices), 0.5 x 1 x 4 mm)"
    )
    assert repr(ls.statistics(labels * 0, spacing_mm=SPACING_MM)).startswith(
        "MaskStatistics(liver 0 ml, tumour 0.0 ml, 0 lesions; "
    )


def test_volumes_and_burden(labels):
    found = ls.statistics(labels, spacing_mm=SPACING_MM)
    assert found.liver_volume_ml == pytest.approx(4000 * 2 / 1000)
    assert found.tumour_volume_ml == pytest.approx(52 * 2 / 1000)
    assert found.tumour_burden == pytest.approx(52 / 4000)
    assert found.liver_slices == (7, 16)
    assert found.lesion_count == 2
    assert found.liver_mean_hu is None


def test_lesions_come_by_size_and_say_where(labels):
    large, small = ls.statistics(labels, spacing_mm=SPACING_MM).lesions
    assert (large.number, small.number) == (1, 2)
    assert large.volume_ml == pytest.approx(0.096)
    assert large.diameter_mm == pytest.approx((6 * 96 / np.pi) ** (1 / 3))
    assert large.size == "small"
    assert large.extent_mm == (2.0, 4.0, 12.0)
    assert (large.slice, large.slices, large.side) == (13, (13, 15), "left")
    assert (
        large.place == "superior left, posterior; 7 mm left of, 10 mm superior to, 4 mm posterior to the liver's middle"
    )
    assert (small.slice, small.slices, small.side) == (8, (8, 8), "right")
    assert (
        small.place == "inferior right, anterior; 8 mm right of, 14 mm inferior to, 4 mm anterior to the liver's middle"
    )


def test_mean_hu(labels):
    hu = np.full(labels.shape, -1000.0)
    hu[labels == 1] = 100
    hu[6:8, 11:13, 7] = 40
    hu[20:24, 25:29, 12:15] = 60
    found = ls.statistics(labels, hu, spacing_mm=SPACING_MM)
    assert found.liver_mean_hu == pytest.approx(100)
    assert [lesion.mean_hu for lesion in found.lesions] == pytest.approx([60, 40])
    assert found.tumour_mean_hu == pytest.approx((4 * 40 + 48 * 60) / 52)
    volume = CTVolume.from_array(hu, SPACING_MM)
    assert ls.statistics(MaskVolume(labels, volume.geometry), volume) == found


def test_every_way_to_store_a_file_gives_the_same_place(labels, tmp_path):
    affine = np.array([[0, -1.0, 0, 30], [-0.5, 0, 0, 20], [0, 0, 4.0, -90], [0, 0, 0, 1]])  # P, L, S
    image = nib.Nifti1Image(labels, affine)
    expected = ls.statistics(MaskVolume(labels, Geometry(labels.shape, affine)))
    for axes, flips in itertools.product([(0, 1, 2), (2, 1, 0)], [(1, 1, 1), (-1, 1, -1)]):
        turned = image.as_reoriented(np.array([axes, flips]).T)
        nib.save(turned, tmp_path / "mask.nii.gz")
        found = ls.statistics(tmp_path / "mask.nii.gz")
        assert found.liver_volume_ml == pytest.approx(expected.liver_volume_ml)
        for lesion, other in zip(found.lesions, expected.lesions, strict=True):
            assert (lesion.place, lesion.slices) == (other.place, other.slices)
            assert lesion.center_mm == pytest.approx(other.center_mm, abs=1e-3)
            assert np.asarray(turned.dataobj)[lesion.voxel] == 2
            assert np.linalg.norm(turned.affine[:3, :3] @ lesion.voxel + turned.affine[:3, 3] - lesion.center_mm) < 3


def test_empty_liver_only_and_tumour_only():
    empty = ls.statistics(np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6)), spacing_mm=(1, 1, 1))
    assert (empty.liver_volume_ml, empty.tumour_burden, empty.lesion_count) == (0, None, 0)
    assert empty.liver_slices is None and empty.liver_mean_hu is None
    liver = ls.statistics(np.ones((4, 5, 6), np.uint8), spacing_mm=(1, 1, 1))
    assert (liver.tumour_burden, liver.lesions) == (0, ())
    tumour = ls.statistics(np.full((4, 5, 6), 2, np.uint8), spacing_mm=(1, 1, 1))
    assert (tumour.tumour_burden, tumour.lesion_count) == (1, 1)


def test_statistics_are_json(labels):
    assert json.loads(json.dumps(ls.statistics(labels, spacing_mm=SPACING_MM).to_dict()))["lesion_count"] == 2


def test_what_does_not_fit(labels):
    with pytest.raises(GeometryError, match="spacing_mm"):
        ls.statistics(labels)
    with pytest.raises(GeometryError, match="mask's shape"):
        ls.statistics(labels, np.zeros((3, 3, 3)), spacing_mm=SPACING_MM)
    with pytest.raises(GeometryError, match="affine"):
        mask = MaskVolume(labels, Geometry.from_spacing(labels.shape, SPACING_MM))
        ls.statistics(mask, CTVolume.from_array(labels - 1000.0, (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(("index", "third"), [(0, "right"), (2, "right"), (3, "central"), (6, "central"), (7, "left")])
def test_thirds_go_by_the_middle_of_a_voxel(index, third):
    labels = np.ones((10, 10, 10), np.uint8)
    labels[5, index, 5] = 2  # its middle lies at (index + 0.5) / 10 of the liver's width
    assert ls.statistics(labels, spacing_mm=(1, 1, 1)).lesions[0].side == third


def test_json_says_what_is_counted_from(labels):
    found = ls.statistics(labels, spacing_mm=SPACING_MM)
    printed = json.loads(json.dumps(found.to_dict()))
    assert printed["liver_slices_from_1"] == [7, 16]
    first, lesion = found.lesions[0], printed["lesions"][0]
    assert (lesion["slice_from_1"], lesion["slices_from_1"]) == (first.slice, list(first.slices))
    assert lesion["voxel_from_0"] == list(first.voxel)
    assert (
        labels[tuple(lesion["voxel_from_0"])] == 2 or labels[tuple(lesion["voxel_from_0"][i] for i in (1, 0, 2))] == 2
    )
    names = {*printed, *lesion}
    assert not names & {"slice", "slices", "voxel", "liver_slices"}
