"""HU out of DICOM: scaling, signs, padding, doubles, compression, multi-frame files; equal to NIfTI."""

import itertools
import warnings

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from liverseg_tf.data.dicom.writing import series_datasets  # noqa: E402
from liverseg_tf.data.volume import CTVolume  # noqa: E402
from liverseg_tf.errors import DataWarning, GeometryWarning, InputFileError  # noqa: E402
from tests.data.dicom.conftest import AXIAL  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
TURNS = [
    np.array(p) * np.array(s)[:, None]
    for p in itertools.permutations(np.eye(3))
    for s in itertools.product((1, -1), repeat=3)
    if np.linalg.det(np.array(p) * np.array(s)[:, None]) > 0
]


def stored(data, values):
    data.PixelData = np.ascontiguousarray(values).tobytes()


def loaded(folder, **options):
    return CTVolume.load(folder, hu_range=None, **options)


def test_voxels_and_affine_are_those_written(make_series, hu):
    volume = loaded(make_series())
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), hu)
    assert volume._stored.dtype == np.int16  # no more memory than the files
    np.testing.assert_allclose(volume.affine, AXIAL)
    assert volume.series.description == "Abdomen"
    assert "JANE" not in repr(volume)


@pytest.mark.parametrize("turn", TURNS, ids=range(24))
def test_nifti_and_dicom_give_the_same_canonical_view(make_series, hu, turn, tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, -2.0, 3.0])
    volume = loaded(make_series(affine=affine))
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii")
    other = CTVolume.load(tmp_path / "ct.nii", hu_range=None)
    np.testing.assert_array_equal(volume.hu, other.hu)
    np.testing.assert_allclose(volume.geometry.canonical_affine, other.geometry.canonical_affine, atol=1e-6)


def test_a_tilted_gantry_is_kept_as_the_sheared_grid_it_is(make_series, hu):
    affine = AXIAL.copy()
    affine[1, 2] = np.tan(np.radians(18)) * 3
    with pytest.warns(GeometryWarning, match="tilted by 18.0 degrees"):
        volume = loaded(make_series(affine=affine))
    np.testing.assert_allclose(volume.affine, affine)
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), hu)
    assert volume.voxel_volume_ml == pytest.approx(1.5 * 2 * 3 / 1000)


def test_each_slice_has_its_own_slope(make_series):
    def change(data, index):
        data.RescaleSlope, data.RescaleIntercept = str(index + 1), str(-10 * index)
        stored(data, np.full((6, 7), 100 + index, "<i2"))

    volume = loaded(make_series(change=change))
    assert [volume.hu[0, 0, i] for i in range(5)] == [(100 + i) * (i + 1) - 10 * i for i in range(5)]
    assert volume._stored.dtype == np.int16


def test_a_slope_without_an_intercept_scales(make_series):
    def change(data, index):
        data.RescaleSlope, data.RescaleIntercept = str(index + 1), "0"
        stored(data, np.full((6, 7), 100, "<i2"))

    assert loaded(make_series(change=change)).hu[0, 0].tolist() == [100, 200, 300, 400, 500]


def test_fractional_slopes_and_large_values_become_float32(make_series, hu):
    def fraction(data, index):
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-1000.25"

    volume = loaded(make_series("a", change=fraction))
    assert volume._stored.dtype == np.float32
    assert volume.hu.max() == pytest.approx(loaded(make_series("b")).hu.max() * 0.5 - 1000.25)

    for number, (slope, intercept) in enumerate((("1", "-1000.5"), ("0.5", "-1000"))):

        def one(data, index, slope=slope, intercept=intercept):
            if index == 3:
                data.RescaleSlope, data.RescaleIntercept = slope, intercept

        volume = loaded(make_series(f"one{number}", change=one))
        expected = hu.astype(np.float64)
        expected[..., 3] = expected[..., 3] * float(slope) + float(intercept)
        np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), expected)

    def large(data, index):
        data.PixelRepresentation = 0
        stored(data, np.full((6, 7), 60000 if index == 3 else index, "<u2"))

    np.testing.assert_array_equal(loaded(make_series("c", change=large)).hu[0, 0], [0, 1, 2, 60000, 4])


@pytest.mark.parametrize(
    ("signed", "bits", "raw", "expected"),
    [
        (0, 12, 0xF123, 0x123),  # an overlay in the bits above
        (1, 12, 0x0FFF, -1),  # the sign is bit 11
        (1, 16, 0xFFFE, -2),
        (0, 16, 0x8000, 0x8000),
    ],
)
def test_bits_and_signs(make_series, signed, bits, raw, expected):
    def change(data, index):
        data.PixelRepresentation, data.BitsStored, data.HighBit = signed, bits, bits - 1
        stored(data, np.full((6, 7), raw, "<u2"))

    assert (loaded(make_series(change=change)).hu == expected).all()


@pytest.mark.parametrize("value", [-2000, 63536])
def test_padding_is_air_also_where_it_was_written_unsigned(make_series, value):
    def change(data, index):
        element = pydicom.DataElement("PixelPaddingValue", "SS" if value < 0 else "US", value)
        data.add(element)
        values = np.full((6, 7), 40, "<i2")
        values[0] = -2000
        stored(data, values)
        data.RescaleIntercept = "3000"

    volume = loaded(make_series(change=change))
    assert (volume.hu[0] == -1024).all() and (volume.hu[1:] == 3040).all()


def test_a_range_of_padding(make_series):
    def change(data, index):
        data.add(pydicom.DataElement("PixelPaddingValue", "SS", -2000))
        data.add(pydicom.DataElement("PixelPaddingRangeLimit", "SS", -1500))
        stored(data, np.linspace(-2100, -1400, 42).astype("<i2"))

    found = loaded(make_series(change=change)).hu
    assert ((found == -1024) | (found < -2000) | (found > -1500)).all() and (found == -1024).any()


def test_equal_doubles_are_dropped_and_differing_ones_refused(make_series, hu):
    folder = make_series()
    make_series(names="again{}", change=lambda data, index: index == 2)
    with pytest.warns(DataWarning, match="1 slice is there twice"):
        np.testing.assert_array_equal(loaded(folder).geometry.to_file(loaded(folder).hu), hu)

    def other(data, index):
        stored(data, np.zeros((6, 7), "<i2"))
        return index == 3

    make_series(names="other{}", change=other)
    with pytest.raises(InputFileError, match=r"2 different images lie at one place \(IM003, other3\)"):
        loaded(folder)


def test_gaps_are_bridged_only_where_that_is_asked_for(make_series, hu):
    folder = make_series(change=lambda data, index: index != 2)
    with pytest.raises(InputFileError, match="1 missing"):
        loaded(folder)
    with pytest.warns(DataWarning, match="resampled to 5 slices 3.00 mm apart"):
        volume = loaded(folder, allow_gaps=True)
    found = volume.geometry.to_file(volume.hu)
    np.testing.assert_array_equal(found[..., [0, 1, 3, 4]], hu[..., [0, 1, 3, 4]])
    np.testing.assert_allclose(found[..., 2], (hu[..., 1].astype(float) + hu[..., 3]) / 2, atol=0.5)
    np.testing.assert_allclose(volume.affine, AXIAL)


def test_the_limit_is_checked_before_pixels_are_read(make_series):
    with pytest.raises(InputFileError, match="5 slices of 6 x 7 take 420 bytes, the limit is 419"):
        loaded(make_series(), max_bytes=419)
    loaded(make_series(), max_bytes=420)


def with_gdcm(folder, syntax):
    """Compress each file in place."""
    gdcm = pytest.importorskip("gdcm")
    for path in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return folder


@pytest.mark.parametrize(
    "syntax",
    ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless", "ImplicitVRLittleEndian"],
)
def test_compressed_series_decode_to_the_same_voxels(make_series, syntax):
    array = np.random.default_rng(1).integers(-1000, 1500, (40, 36, 3)).astype(np.int16)
    plain = loaded(make_series("plain", array=array))
    folder = with_gdcm(make_series("packed", array=array), syntax)
    volume = loaded(folder)
    assert volume.series.transfer_syntax != plain.series.transfer_syntax
    np.testing.assert_array_equal(volume.hu, plain.hu)
    first = min(folder.iterdir())
    if syntax != "ImplicitVRLittleEndian":
        first.write_bytes(first.read_bytes()[:-60])
        with pytest.raises(InputFileError, match=f"{first.name}.* truncated"):
            loaded(folder)


def test_damaged_compressed_pixels_are_an_error(make_series):
    array = np.random.default_rng(1).integers(-1000, 1500, (40, 36, 3)).astype(np.int16)
    folder = with_gdcm(make_series("packed", array=array), "RLELossless")
    path = sorted(folder.iterdir())[1]
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\xfe\xff\x00\xe0") + 8
    content[at : at + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=f"{path.name}: its pixels can't be decoded"):
        loaded(folder)


def enhanced(hu, affine=AXIAL, order=None):
    """The series as one Enhanced CT file; frames stored in `order`."""
    slices = list(series_datasets(hu, affine, "DOE^JANE", "Abdomen", 3, 0))
    order = list(range(len(slices))) if order is None else order
    data = slices[0]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.NumberOfFrames = len(slices)
    shared, frames = pydicom.Dataset(), []
    measures, orientation, transform = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
    orientation.ImageOrientationPatient = data.ImageOrientationPatient
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = "1", "-5", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [transform]
    for index in order:
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = slices[index].ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.PixelData = b"".join(slices[index].PixelData for index in order)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    return data


def test_enhanced_ct_is_read_frame_by_frame(tmp_path, hu):
    path = tmp_path / "enhanced.dcm"
    enhanced(hu, order=[2, 0, 1, 4, 3]).save_as(path, enforce_file_format=True)
    volume = loaded(path)
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), hu - 5)
    np.testing.assert_allclose(volume.affine, AXIAL)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputFileError, match="is truncated: 420 bytes"):
        loaded(path)


def test_one_file_of_a_series_is_that_slice_alone(make_series, hu):
    volume = loaded(make_series() / "IM002")
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu)[..., 0], hu[..., 2])


def test_pydicoms_warnings_about_values_are_kept_back(make_series):
    def change(data, index):
        data.SeriesInstanceUID = "Jane Doe"  # no UID: pydicom would warn, and print it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = make_series(change=change)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded(folder)
    assert not [w for w in caught if "Jane" in str(w.message)]


def test_the_attributes_of_the_pixels_fit_one_another(hu):
    """As the standard demands: the sign is the highest stored bit."""
    for data in series_datasets(hu, AXIAL, "DOE^JANE", "Abdomen", 3, 0):
        assert (data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation) == (16, 16, 15, 1)
        assert len(data.PixelData) == data.Rows * data.Columns * 2
