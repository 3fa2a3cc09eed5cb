"""DICOM SEG in: what was written comes back to the voxel, on the CT's grid or its own; what isn't a mask is refused."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from liverseg_tf.calibration.calibrate import calibrate  # noqa: E402
from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.dicom.segmentation import is_segmentation  # noqa: E402
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume  # noqa: E402
from liverseg_tf.dicom_objects.objects import write_dicom_objects  # noqa: E402
from liverseg_tf.errors import CaseError, ConfigError, GeometryError, InputFileError, OutputError  # noqa: E402
from liverseg_tf.evaluation.evaluate import evaluate  # noqa: E402
from liverseg_tf.evaluation.measure import find_masks, measure  # noqa: E402
from tests.data.dicom.test_voxels import TURNS, enhanced  # noqa: E402
from tests.dicom_objects.conftest import TILTED, findings, make_findings  # noqa: E402, F401

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@pytest.fixture
def seg(findings, tmp_path):  # noqa: F811
    """A SEG file, its CT and its mask."""
    rows = write_dicom_objects(findings.labels, findings.volume, tmp_path / "out", ["seg"])
    return rows[0]["output"], findings.volume, findings.labels


def change(path, edit, name="changed.dcm"):
    data = pydicom.dcmread(path)
    edit(data)
    target = str(path).replace("ct_seg.dcm", name)
    data.save_as(target)
    return target


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("turn", TURNS[::5], ids=range(5))
def test_a_seg_is_the_mask_it_was_made_of(make_findings, tmp_path, turn, kind):  # noqa: F811
    affine = np.eye(4)
    affine[:3, :3] = turn @ TILTED[:3, :3]
    found = make_findings(affine)
    (row,) = write_dicom_objects(found.labels, found.volume, tmp_path, segmentation_type=kind)
    mask = MaskVolume.load(row["output"], like=found.volume)
    np.testing.assert_array_equal(mask.labels, found.labels)
    np.testing.assert_array_equal(mask.affine, found.volume.affine)
    alone = MaskVolume.load(row["output"])  # the two empty slices at the ends are left out
    assert sorted(alone.shape) == sorted((21, 19, 6))
    assert measure(alone).statistics.liver_volume_ml == pytest.approx(found.statistics.liver_volume_ml)
    assert measure(alone).statistics.lesions[0].center_mm == pytest.approx(
        found.statistics.lesions[0].center_mm, abs=1e-2
    )


def test_a_seg_of_enhanced_ct_whose_frames_are_in_another_order(tmp_path):
    hu = np.random.default_rng(0).integers(-200, 300, (21, 19, 8)).astype(np.int16)
    enhanced(hu, order=[2, 0, 1, 4, 3, 7, 6, 5]).save_as(tmp_path / "e.dcm", enforce_file_format=True)
    volume = CTVolume.load(tmp_path / "e.dcm")
    labels = np.zeros(volume.shape, np.uint8)
    labels[3:15, 4:15, 1:7] = 1
    labels[5:9, 5:8, 2:4] = 2
    (row,) = write_dicom_objects(labels, volume, tmp_path / "out")
    np.testing.assert_array_equal(MaskVolume.load(row["output"], like=volume).labels, labels)


def test_a_seg_is_scored_and_measured_as_its_nifti(seg, tmp_path, capsys):
    path, volume, labels = seg
    nifti = tmp_path / "mask.nii.gz"
    nib.save(volume.image_like(labels), nifti)
    in_memory = MaskVolume(volume.geometry.to_file(labels), volume.geometry)
    of_mask, of_seg = (measure(mask, volume).to_dict() for mask in (in_memory, path))
    assert of_seg.pop("case") == "ct_seg.dcm" and of_mask.pop("case") == "mask"
    assert of_seg == of_mask
    for truth, prediction in ((nifti, path), (path, nifti), (path, path)):
        assert evaluate(truth, prediction, resamples=1).lits["lesion_dice_per_case"] == 1
    assert main(["measure", path, str(volume.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measurements"][0]["lesion_count"] == 2
    (tmp_path / "truth").mkdir()
    nifti.rename(tmp_path / "truth" / "ct.nii.gz")
    assert evaluate(tmp_path / "truth", tmp_path / "out", resamples=1).lits["liver_dice_per_case"] == 1


def test_masks_of_a_folder_find_the_series_that_they_were_made_of(seg, tmp_path):
    path, volume, labels = seg
    studies, masks = tmp_path / "studies", tmp_path / "masks"
    studies.mkdir()
    masks.mkdir()
    nib.save(volume.image_like(labels), masks / "ct_seg.nii.gz")
    volume.path.rename(studies / "ct")
    uid = volume.series.uid
    assert find_masks(tmp_path / "out", studies) == [(Path(path), studies / "ct", uid)]
    assert find_masks(masks, studies) == [(masks / "ct_seg.nii.gz", studies / "ct", uid)]
    assert measure(*find_masks(masks, studies)[0][:2]).statistics.liver_mean_hu is not None
    (masks / "ct_seg.nii.gz").rename(masks / "other_seg.nii.gz")
    with pytest.raises(CaseError, match="no CT for other_seg"):
        find_masks(masks, studies)


def test_a_seg_of_any_name_finds_its_series_among_others_and_beside_masks(seg, make_findings, tmp_path):  # noqa: F811
    path, volume, labels = seg
    make_findings(name="second")
    flat, masks = tmp_path / "flat", tmp_path / "masks"
    masks.mkdir()
    Path(path).rename(masks / "export 1.dcm")
    for number, file in enumerate(sorted(tmp_path.glob("ct/*")) + sorted(tmp_path.glob("second/*"))):
        flat.mkdir(exist_ok=True)
        file.rename(flat / f"{number:03}")
    nib.save(volume.image_like(labels), flat / "segmentation-1.nii.gz")  # a mask is no CT
    (found,) = find_masks(masks, flat)
    assert found == (masks / "export 1.dcm", flat, volume.series.uid)
    assert main(["measure", str(masks), str(flat), "-o", str(tmp_path / "m.json")]) == 0
    measured = json.loads((tmp_path / "m.json").read_text())["measurements"][0]
    assert measured["liver_mean_hu"] == pytest.approx(volume.hu[labels == 1].mean(), abs=1e-3)


def test_masks_beside_their_series_are_not_taken_for_cts(seg, tmp_path):
    path, volume, labels = seg
    nib.save(volume.image_like(labels), tmp_path / "segmentation-0.nii.gz")
    volume.path.rename(tmp_path / "volume-0")
    Path(path).rename(tmp_path / "out" / "segmentation-0.dcm")
    assert find_masks(tmp_path / "out", tmp_path)[0].ct == tmp_path / "volume-0"


def test_where_the_ct_of_a_lone_seg_ends_is_unknown(seg):
    path, volume, _ = seg
    alone = measure(path)
    assert "ct_extent_unknown" in alone.flags and not alone.volume_is_lower_bound
    assert "ct_extent_unknown" not in measure(path, volume).flags


def test_a_mask_in_another_order_of_axes_fits_its_series(seg, tmp_path):
    _, volume, labels = seg
    image = nib.as_closest_canonical(volume.image_like(labels))
    nib.save(image, tmp_path / "ras.nii.gz")
    assert not np.allclose(image.affine, volume.affine)
    expected = measure(MaskVolume(volume.geometry.to_file(labels), volume.geometry), volume).statistics
    assert measure(tmp_path / "ras.nii.gz", volume).statistics.liver_mean_hu == pytest.approx(expected.liver_mean_hu)
    moved = nib.Nifti1Image(image.dataobj, image.affine + np.eye(4) * [0, 0, 0, 0] + np.eye(4, k=3) * 0.5)
    nib.save(moved, tmp_path / "moved.nii.gz")
    with pytest.raises(GeometryError, match="affine"):
        measure(tmp_path / "moved.nii.gz", volume)


@pytest.mark.slow
def test_segs_calibrate_with_their_series(seg, tmp_path):
    path, volume, labels = seg
    for folder in ("truth", "predicted"):
        (tmp_path / folder).mkdir()
        for case in range(20):
            shutil.copy(path, tmp_path / folder / f"case-{case}.dcm")
    found = calibrate(tmp_path / "truth", volume.path, predictions=tmp_path / "predicted")
    assert found.with_ct and found.case_count == 20
    liver_ml = float(np.count_nonzero(labels) * volume.voxel_volume_ml)
    low, high = found.judge(measure(path, volume))["liver_interval_ml"]
    assert low == pytest.approx(liver_ml, rel=0.02) and high == pytest.approx(liver_ml, rel=0.02)


def test_segs_that_cover_other_slices_are_scored_on_a_grid_that_holds_both(seg, tmp_path):
    path, volume, labels = seg
    fewer = labels.copy()
    fewer[..., :3] = 0
    (row,) = write_dicom_objects(fewer, volume, tmp_path / "fewer")
    expected = 2 * np.count_nonzero(fewer) / (np.count_nonzero(labels) + np.count_nonzero(fewer))
    for pair in ((path, row["output"]), (row["output"], path)):
        assert evaluate(*pair, resamples=1).lits["liver_dice_per_case"] == pytest.approx(expected)


def shift(data):
    for frame in data.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.7


def other_frame_of_reference(data):
    data.FrameOfReferenceUID = "1.2.3"


def recode(data):
    for segment in data.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = "78961009"  # spleen
        segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue = "123037004"


def fractional(data):
    data.SegmentationType = "FRACTIONAL"


def cut(data):
    data.PixelData = data.PixelData[:-40]


def without_positions(data):
    for frame in data.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (shift, GeometryError, "does not lie on the grid of its CT"),
        (other_frame_of_reference, GeometryError, "another frame of reference"),
        (recode, InputFileError, "expected segments coded as liver or lesion, got: Liver, Lesions"),
        (fractional, InputFileError, "expected a BINARY or LABELMAP segmentation, got FRACTIONAL"),
        (cut, InputFileError, "bytes of pixels, expected"),
        (without_positions, InputFileError, "can't be read as a DICOM segmentation"),
    ],
)
def test_segs_that_are_no_mask_of_the_ct(seg, edit, error, words):
    path, volume, _ = seg
    with pytest.raises(error, match=words) as caught:
        MaskVolume.load(change(path, edit), like=volume)
    assert "DOE" not in str(caught.value) and "changed.dcm" in str(caught.value)


def test_lesions_of_another_organ_and_other_organs_are_left_out(seg):
    path, volume, labels = seg

    def elsewhere(data):
        data.SegmentSequence[1].AnatomicRegionSequence[0].CodeValue = "64033007"  # kidney

    mask = MaskVolume.load(change(path, elsewhere), like=volume)
    np.testing.assert_array_equal(mask.labels, labels > 0)

    def older_codes(data):
        for segment in data.SegmentSequence:
            segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = "T-62000"
        data.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "M-01100"
        data.SegmentSequence[1].SegmentedPropertyCategoryCodeSequence[0].CodeValue = "M-01000"
        del data.SegmentSequence[1].AnatomicRegionSequence

    np.testing.assert_array_equal(MaskVolume.load(change(path, older_codes), like=volume).labels, labels)


def test_the_limit_holds_for_positions_far_apart(seg):
    def far(data):
        data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[2] = -1e9

    with pytest.raises(InputFileError, match="the limit is 8000000"):
        MaskVolume.load(change(seg[0], far), max_bytes=8_000_000)


def test_what_is_a_seg(seg, tmp_path):
    assert is_segmentation(seg[0])
    assert not is_segmentation(tmp_path / "ct" / "0.dcm")
    (tmp_path / "text.dcm").write_text("x" * 300)
    assert not is_segmentation(tmp_path / "text.dcm")


def test_masks_are_taken_in_any_order_of_axes_and_refused_on_another_grid(seg, tmp_path):
    _, volume, labels = seg
    flipped = Geometry(volume.geometry.shape, volume.affine @ np.diag([-1, 1, 1, 1.0]))
    flipped.affine[:3, 3] += volume.affine[:3, 0] * (volume.geometry.shape[0] - 1)
    mask = MaskVolume(volume.geometry.to_file(labels)[::-1], flipped)
    rows = write_dicom_objects(mask, volume, tmp_path / "b", ("seg", "sr", "rtstruct"), name="x")
    assert [row["output"].rsplit("/", 1)[1] for row in rows] == ["x.dcm", "x_sr.dcm", "x_rtstruct.dcm"]
    assert len(rows[2]["read_again"]["lesions"]) == 2
    moved = Geometry(volume.geometry.shape, volume.affine + np.eye(4, k=3))
    with pytest.raises(GeometryError, match="differs from"):
        write_dicom_objects(MaskVolume(volume.geometry.to_file(labels), moved), volume, tmp_path / "c")
    with pytest.raises(GeometryError, match="expected the shape"):
        write_dicom_objects(labels[1:], volume, tmp_path / "c")
    with pytest.raises(ConfigError, match="expected some of seg, sr, rtstruct, pdf"):
        write_dicom_objects(labels, volume, tmp_path / "c", ["nifti"])
    with pytest.raises(OutputError, match="no DICOM series"):
        write_dicom_objects(labels, CTVolume.from_array(volume.hu, volume.spacing_mm), tmp_path / "c")
    assert not (tmp_path / "c").exists()
