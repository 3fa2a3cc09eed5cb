"""The one way in: NRRD and MetaImage give what NIfTI gives."""

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.reading import format_of, read_volume
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import ConfigError, DataWarning, GeometryError, InputFileError

itk = pytest.importorskip("SimpleITK")


@pytest.fixture
def image():
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    image = itk.GetImageFromArray(array)
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((4, 5, 6))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_they_give_what_nifti_gives(tmp_path, image, suffix):
    path = tmp_path / f"ct.{suffix}"
    itk.WriteImage(image, str(path), True)
    itk.WriteImage(image, str(tmp_path / "ct.nii"))
    volume, expected = CTVolume.load(path), CTVolume.load(tmp_path / "ct.nii")
    np.testing.assert_array_equal(volume.hu, expected.hu)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    back = volume.image_like((volume.hu > 0).astype(np.uint8))
    np.testing.assert_allclose(nib.affines.voxel_sizes(back.affine), (1, 2, 3))


def test_a_dicom_series_with_a_gap_is_read_only_where_that_is_asked_for(tmp_path):
    pytest.importorskip("pydicom")
    from liverseg_tf.data.dicom.writing import series_datasets

    hu = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 5)).astype(np.int16)
    for index, data in enumerate(series_datasets(hu, np.diag([-1.5, -2.0, 3.0, 1.0]), "X", "", 1, 0)):
        if index != 2:
            data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    with pytest.raises(InputFileError, match="1 missing"):
        read_volume(tmp_path)
    with pytest.warns(DataWarning, match="resampled to 5 slices"):
        assert read_volume(tmp_path, allow_gaps=True).voxels.shape == (6, 7, 5)


def test_masks_too(tmp_path, image):
    itk.WriteImage(itk.Cast(image > 0, itk.sitkUInt8), str(tmp_path / "mask.mha"))
    assert set(np.unique(MaskVolume.load(tmp_path / "mask.mha").labels)) == {0, 1}


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_truncated_files_and_limits(tmp_path, image, suffix):
    path = tmp_path / f"ct.{suffix}"
    itk.WriteImage(image, str(path))
    with pytest.raises(InputFileError, match="takes 420 bytes, the limit is 400"):
        read_volume(path, max_bytes=400)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputFileError, match="could not be read whole as"):
        read_volume(path)
    with pytest.raises(InputFileError, match="no such file"):
        read_volume(tmp_path / f"missing.{suffix}")


def test_colour_and_flat_images_are_refused(tmp_path):
    itk.WriteImage(itk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(tmp_path / "rgb.nrrd"))
    with pytest.raises(InputFileError, match="expected one value a voxel"):
        read_volume(tmp_path / "rgb.nrrd")
    itk.WriteImage(itk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "flat.nrrd"))
    with pytest.raises(GeometryError, match="expected a 3-D volume"):
        read_volume(tmp_path / "flat.nrrd")


def test_formats_are_told_apart(tmp_path):
    (tmp_path / "x").write_bytes(bytes(128) + b"DICM")
    names = {"a.nii": "nifti", "a.nii.gz": "nifti", "a.NRRD": "itk", "a.mhd": "itk", "a.zip": "dicom", "b.dcm": "dicom"}
    assert {name: format_of(tmp_path / name) for name in names} == names
    assert format_of(tmp_path) == format_of(tmp_path / "x") == "dicom"


def test_options_for_dicom_alone(tmp_path, image):
    itk.WriteImage(image, str(tmp_path / "ct.nii"))
    with pytest.raises(ConfigError, match="only for DICOM"):
        CTVolume.load(tmp_path / "ct.nii", series="1.2.3")
