"""Volumes and masks: any orientation, any dtype, and exactly back."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume, check_same_grid, doubt_about_hu
from liverseg_tf.errors import (
    DataWarning,
    GeometryError,
    GeometryWarning,
    InputFileError,
    LabelError,
    LiverSegWarning,
    NotHounsfieldWarning,
)

ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips, strict=True))
    for pairs in itertools.permutations(["LR", "PA", "IS"])
    for flips in itertools.product((0, 1), repeat=3)
]


def stored_as(canonical, spacing_mm, codes):
    """A canonical (P, L, S) array as a file of orientation `codes` has it: array and affine."""
    affine = CTVolume.from_array(canonical, spacing_mm).affine
    ornt = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("PLS"), nib.orientations.axcodes2ornt(codes)
    )  # fmt: skip
    array = nib.orientations.apply_orientation(canonical, ornt)
    return array, affine @ nib.orientations.inv_ornt_aff(ornt, canonical.shape)


def gradient(shape=(5, 6, 7)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 100


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_gives_the_same_view_and_goes_back_exactly(tmp_path, write_nifti, codes):
    canonical = gradient()
    array, affine = stored_as(canonical, (1.0, 2.0, 3.0), codes)
    path = write_nifti(tmp_path / "ct.nii", array, affine)
    volume = CTVolume.load(path)
    np.testing.assert_array_equal(volume.hu, canonical)
    assert volume.spacing_mm == (1.0, 2.0, 3.0)
    assert volume.geometry.axis_codes == codes
    assert volume.shape == volume.geometry.canonical_shape
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), array)
    np.testing.assert_allclose(volume.geometry.canonical_affine, CTVolume.from_array(canonical, (1, 2, 3)).affine)
    image = volume.image_like((canonical > 0).astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(image.dataobj), array > 0)
    np.testing.assert_allclose(image.affine, affine)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-0.6, 0.6)] * 3), st.sampled_from(ORIENTATIONS))
def test_oblique_grids_round_trip(angles, codes):
    from scipy.spatial.transform import Rotation

    array, affine = stored_as(gradient(), (1.0, 2.0, 3.0), codes)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix()
    geometry = Geometry(array.shape, turned @ affine)
    np.testing.assert_array_equal(geometry.to_file(geometry.to_canonical(array)), array)
    index = np.array([2, 3, 4, 1])
    corner = geometry.canonical_affine @ index
    moved = np.zeros(geometry.canonical_shape)
    moved[2, 3, 4] = 1
    back = np.append(np.argwhere(geometry.to_file(moved))[0], 1)
    np.testing.assert_allclose(geometry.affine @ back, corner, atol=1e-9)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_and_byte_order(tmp_path, dtype, order):
    stored = np.arange(-4 if np.dtype(dtype).kind != "u" else 0, 56).astype(dtype)[:56].reshape(2, 4, 7)
    header = nib.Nifti1Header(endianness=order)
    image = nib.Nifti1Image(stored, np.diag([-1, -1, 2, 1]), header, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = CTVolume.load(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), stored)


def test_slope_and_intercept_give_hu(tmp_path):
    stored = np.arange(60, dtype=np.uint16).reshape(3, 4, 5) * 50
    image = nib.Nifti1Image(stored, np.diag([-1, -1, 2, 1]))
    image.header.set_slope_inter(0.5, -1000)
    with open(tmp_path / "ct.nii", "wb") as file:  # nibabel would rescale
        header = image.header.copy()
        header["magic"], header["vox_offset"] = b"n+1", 352
        file.write(header.binaryblock + b"\0" * 4 + stored.tobytes("F"))
    volume = CTVolume.load(tmp_path / "ct.nii", hu_range=None)
    np.testing.assert_allclose(volume.geometry.to_file(volume.hu), stored * 0.5 - 1000, atol=1e-3)


def test_values_beyond_hu_are_clipped_unless_asked_otherwise(tmp_path, write_nifti):
    array = np.full((4, 4, 4), 40, np.int16)
    array[0], array[1] = -3024, 9000
    path = write_nifti(tmp_path / "ct.nii", array)
    assert (CTVolume.load(path).hu.min(), CTVolume.load(path).hu.max()) == (-1024, 3071)
    free = CTVolume.load(path, hu_range=None).hu
    assert (free.min(), free.max()) == (-3024, 9000)


def test_nan_and_infinity_become_air_with_a_count(tmp_path, write_nifti):
    array = np.full((4, 4, 4), -40, np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write_nifti(tmp_path / "ct.nii", array)
    with pytest.warns(DataWarning, match="3 voxels are NaN or infinite"):
        hu = CTVolume.load(path).hu
    assert np.isfinite(hu).all()
    assert (hu == -1024).sum() == 3


def test_slices_are_the_volumes_slices(tmp_path, write_nifti):
    volume = CTVolume.load(write_nifti(tmp_path / "ct.nii", gradient()))
    np.testing.assert_array_equal(volume.slices(2, 5), np.moveaxis(volume.hu[..., 2:5], 2, 0))


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3, 1), (9, 8, 3, 1, 1)])
def test_flat_and_trailing_axes_are_accepted(tmp_path, write_nifti, shape):
    volume = CTVolume.load(write_nifti(tmp_path / "ct.nii", np.full(shape, -5, np.int16)))
    assert volume.shape == (8, 9, shape[2] if len(shape) > 2 else 1)


def test_identity_affine_is_noticed(tmp_path, write_nifti):
    array = np.full((4, 4, 4), -5, np.int16)
    assert CTVolume.load(write_nifti(tmp_path / "a.nii", array, np.eye(4))).geometry.is_identity_affine
    assert not CTVolume.load(write_nifti(tmp_path / "b.nii", array)).geometry.is_identity_affine


def test_oblique_slices_and_forms_that_disagree_are_warned_of(tmp_path):
    array = np.full((4, 4, 4), -5, np.int16)
    affine = np.eye(4)
    affine[:2, :2] = [[0.9, -0.436], [0.436, 0.9]]
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "oblique.nii")
    with pytest.warns(GeometryWarning, match="26 degrees oblique"):
        CTVolume.load(tmp_path / "oblique.nii")
    image = nib.Nifti1Image(array, np.diag([1, 1, 2, 1]))
    image.set_qform(np.diag([1, 1, 3, 1]), code=1)
    nib.save(image, tmp_path / "forms.nii")
    with pytest.warns(GeometryWarning, match="qform and sform disagree"):
        assert CTVolume.load(tmp_path / "forms.nii").spacing_mm[2] == 2


def ct_like():
    rng = np.random.default_rng(0)
    hu = np.full((20, 20, 20), -1000.0)
    hu[4:16, 4:16] = rng.normal(50, 30, (12, 12, 20))
    return hu


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu + 1024, "shifted by 1024"),
        (lambda hu: np.clip((hu + 200) / 450, 0, 1), "scaled to 0..1"),
        (lambda hu: np.clip((hu + 200) / 450, 0, 1) * 255, "scaled to 0..255"),
        (lambda hu: np.abs(hu) % 300 * 4, "is this a CT"),
    ],
)
def test_what_is_not_hu_is_told(change, words):
    with pytest.warns(NotHounsfieldWarning, match=words):
        CTVolume.from_array(change(ct_like()), (1, 1, 1))


@pytest.mark.parametrize("change", [lambda hu: hu, lambda hu: np.where(hu < 4, -1000, hu.clip(0, 255)), np.zeros_like])
def test_real_hu_are_quiet(recwarn, change):
    CTVolume.from_array(change(ct_like()), (1, 1, 1))
    assert not [w for w in recwarn if issubclass(w.category, LiverSegWarning)]
    assert doubt_about_hu(np.full((3, 3, 3), np.nan)) is None


def test_masks_are_rounded_or_refused(tmp_path, write_nifti):
    labels = np.zeros((4, 5, 6))
    labels[0], labels[1] = 1.0002, 1.9999
    mask = MaskVolume.load(write_nifti(tmp_path / "mask.nii.gz", labels))
    assert mask.labels.dtype == np.uint8
    assert sorted(np.unique(mask.labels)) == [0, 1, 2]
    for bad, count in ((255, 30), (-1, 30), (7, 30), (1.5, 30), (np.nan, 30)):
        labels[2] = bad
        with pytest.raises(LabelError, match=rf"mask.nii.gz: expected labels .* got {bad:g} \({count} voxels\)"):
            MaskVolume.load(write_nifti(tmp_path / "mask.nii.gz", labels))


def test_a_mask_knows_its_grid(tmp_path, write_nifti):
    affine = np.array([[0, -2.0, 0, 30], [-1.5, 0, 0, 20], [0, 0, 4.0, -90], [0, 0, 0, 1]])
    mask = MaskVolume.load(write_nifti(tmp_path / "mask.nii.gz", np.zeros((4, 5, 6), np.uint8), affine))
    np.testing.assert_array_equal(mask.affine, affine)
    assert mask.spacing_mm == (1.5, 2.0, 4.0) and mask.shape == (4, 5, 6)
    assert mask.voxel_volume_ml == pytest.approx(0.012)


def test_volume_and_mask_on_other_grids():
    geometry = Geometry((4, 4, 4), np.diag([-1.0, -1, 2, 1]))
    check_same_grid(geometry, Geometry((4, 4, 4), geometry.affine + 9.9e-4), ("ct", "mask"))
    with pytest.raises(GeometryError, match=r"mask: expected the shape \(4, 4, 4\) of ct, got \(4, 4, 5\)"):
        check_same_grid(geometry, Geometry((4, 4, 5), geometry.affine), ("ct", "mask"))
    with pytest.raises(GeometryError, match="mask: its affine .* differs from .* of ct"):
        check_same_grid(geometry, Geometry((4, 4, 4), geometry.affine + 1.1e-3), ("ct", "mask"))


@pytest.mark.parametrize("array", [np.zeros((3, 3)), np.zeros((3, 3, 0)), np.zeros((2, 3, 3, 3))])
def test_arrays_of_another_shape(array):
    with pytest.raises(GeometryError, match="three axes"):
        CTVolume.from_array(array, (1, 1, 1))


def test_arrays_of_another_kind():
    with pytest.raises(InputFileError, match="real numbers"):
        CTVolume.from_array(np.zeros((3, 3, 3), complex), (1, 1, 1))
    with pytest.raises(GeometryError, match="spacing_mm"):
        CTVolume.from_array(np.zeros((3, 3, 3)), (1, 0, 1))


def test_repr_tells_what_it_is(tmp_path, write_nifti):
    volume = CTVolume.load(write_nifti(tmp_path / "ct.nii", gradient()))
    assert "6 x 5 x 7 (rows, columns, slices)" in repr(volume)
    assert "1.5 x 1.5 x 3 mm" in repr(volume)
    assert "stored LPS as int16" in repr(volume)
    labels = np.zeros((6, 5, 7), np.uint8)
    labels[1:3] = 2
    mask = MaskVolume.load(write_nifti(tmp_path / "mask.nii", labels))
    assert repr(mask) == (
        "MaskVolume(mask.nii: 5 x 6 x 7 (rows, columns, slices), 1.5 x 1.5 x 3 mm, stored LPS, classes 0, 2, 0 MB)"
    )
    assert repr(MaskVolume(labels, mask.geometry)).startswith("MaskVolume(array: 5 x 6 x 7 ")


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])  # unknown, metre, mm, micron
def test_the_headers_unit_of_length_is_honoured(tmp_path, code, factor):
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    affine[:3, 3] = 20, -30, 40
    array = np.full((4, 5, 6), -5, np.int16)
    image = nib.Nifti1Image(array, np.diag([1 / factor] * 3 + [1]) @ affine)
    image.header["xyzt_units"] = code + 8  # seconds
    nib.save(image, tmp_path / "ct.nii")
    for volume in (CTVolume.load(tmp_path / "ct.nii"), CTVolume.from_image(nib.load(tmp_path / "ct.nii"))):
        np.testing.assert_allclose(volume.affine, affine, rtol=1e-5)
        assert volume.voxel_volume_ml == pytest.approx(0.00675, rel=1e-5)
        result = volume.image_like(np.zeros(volume.shape, np.uint8))
        np.testing.assert_allclose(result.affine, nib.load(tmp_path / "ct.nii").affine, rtol=1e-6)
        assert int(result.header["xyzt_units"]) == code + 8
