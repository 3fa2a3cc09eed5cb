"""DICOM objects of a mask: right in any orientation, and refused when they are not."""

import itertools
import os
import shutil
import subprocess
import sysconfig

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from liverseg_tf.data.dicom.formats import PRODUCTS  # noqa: E402
from liverseg_tf.dicom_objects import segmentation, structure_set, structured_report  # noqa: E402
from liverseg_tf.dicom_objects.objects import write_objects  # noqa: E402
from liverseg_tf.errors import OutputError  # noqa: E402
from tests.dicom_objects.conftest import TILTED  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
TURNS = [
    np.array(p) * np.array(s)[:, None]
    for p in itertools.permutations(np.eye(3))
    for s in itertools.product((1, -1), repeat=3)
    if np.linalg.det(np.array(p) * np.array(s)[:, None]) > 0
]


def paths(folder, *formats):
    return {name: folder / f"x_seg{PRODUCTS[name][0]}" for name in formats or PRODUCTS}


@pytest.mark.slow
def test_all_objects_are_written_and_proven(findings, tmp_path):
    rows = write_objects(findings, paths(tmp_path / "out"))
    assert [row["format"] for row in rows] == ["seg", "sr", "rtstruct", "pdf", "sc"]
    for row in rows[:3]:
        assert row["read_again"]["liver"]["volume_ml"] == pytest.approx(findings.statistics.liver_volume_ml, rel=1e-3)
        expected = [lesion.volume_ml for lesion in findings.statistics.lesions]
        assert [one["volume_ml"] for one in row["read_again"]["lesions"]] == pytest.approx(expected, rel=1e-3)
    center = np.multiply(findings.statistics.lesions[0].center_mm, (-1, -1, 1))
    np.testing.assert_allclose(rows[0]["read_again"]["lesions"][0]["center_mm"], center, atol=0.01)
    write_objects(findings, paths(tmp_path / "out"))  # our own files are replaced
    assert not [p for p in (tmp_path / "out").iterdir() if "partial" in p.name]


@pytest.mark.parametrize("turn", [TURNS[i] for i in (0, 5, 9, 14, 18, 23)], ids=range(6))
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_every_orientation_is_proven(make_findings, tmp_path, turn, kind):
    affine = np.eye(4)
    affine[:3, :3] = turn @ TILTED[:3, :3]
    rows = write_objects(make_findings(affine), paths(tmp_path, "seg", "rtstruct"), segmentation_type=kind)
    assert len(rows[0]["read_again"]["lesions"]) == len(rows[1]["read_again"]["lesions"]) == 2


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("harm", ["columns", "rows", "slices", "shift", "turned", "one pixel"])
def test_a_wrong_segmentation_is_refused_and_removed(findings, tmp_path, monkeypatch, kind, harm):
    right = segmentation._plane

    def wrong(found, place, each):
        if harm == "slices":
            return right(found, 7 - place, each)
        plane = right(found, place, each)
        if harm == "shift":
            return np.roll(plane, 1, axis=1)
        if harm == "turned":
            turned = plane.copy()
            turned[:19, :19] = np.rot90(plane[:19, :19])
            return turned
        if harm == "one pixel":
            plane = plane.copy()
            if place == 2:
                plane[tuple(np.argwhere(plane == 2)[0])] = 0
            return plane
        return np.flip(plane, axis={"rows": 0, "columns": 1}[harm])

    monkeypatch.setattr(segmentation, "_plane", wrong)
    with pytest.raises(OutputError, match="when read again|were read again"):
        write_objects(findings, paths(tmp_path / "out", "seg"), segmentation_type=kind)
    assert [p.name for p in (tmp_path / "out").iterdir()] == []


def test_a_mirrored_mask_with_the_same_center_is_refused(make_findings, tmp_path, monkeypatch):
    labels = np.zeros((21, 19, 8), np.uint8)
    labels[4:17, 6:13, 2:5] = 1
    labels[np.arange(6, 15), np.arange(5, 14), 3] = 1  # a slanted line through the centre
    found = make_findings(np.diag([-1.5, -2.0, 3.0, 1.0]), None)
    found.labels = found.volume.geometry.to_canonical(labels)
    right = segmentation._plane
    monkeypatch.setattr(segmentation, "_plane", lambda *args: np.flip(right(*args), axis=1))
    with pytest.raises(OutputError, match="turned, mirrored or stretched"):
        write_objects(found, paths(tmp_path, "seg"))


def test_wrong_contours_and_numbers_are_refused(findings, tmp_path, monkeypatch):
    right = structure_set.outlines
    monkeypatch.setattr(structure_set, "outlines", lambda mask: [loop + (0, 1) for loop in right(mask)])
    with pytest.raises(OutputError, match="lies 1.50 mm from where the mask has it"):
        write_objects(findings, paths(tmp_path, "rtstruct"))
    monkeypatch.undo()
    monkeypatch.setattr(structured_report, "_number", lambda value: value * 1.01)
    with pytest.raises(OutputError, match="ml when read again"):
        write_objects(findings, paths(tmp_path, "seg", "sr"))
    assert not (tmp_path / "x_seg_sr.dcm").exists()


def test_a_reference_to_another_slice_is_refused(findings, tmp_path, monkeypatch):
    right = type(findings).source_datasets

    def shuffled(self, slices):
        found = right(self, slices)
        found[0].SOPInstanceUID, found[1].SOPInstanceUID = found[1].SOPInstanceUID, found[0].SOPInstanceUID
        return found

    monkeypatch.setattr(type(findings), "source_datasets", shuffled)
    with pytest.raises(OutputError, match="refers to an image of another place"):
        write_objects(findings, paths(tmp_path, "seg"))


def test_segments_say_what_they_are(findings, tmp_path):
    write_objects(findings, paths(tmp_path, "seg"))
    data = pydicom.dcmread(tmp_path / "x_seg.dcm")
    liver, lesions = data.SegmentSequence
    assert (liver.SegmentLabel, lesions.SegmentLabel) == ("Liver", "Lesions")
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert lesions.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert lesions.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert "ab" * 32 in lesions.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert (str(data.PatientName), data.SegmentationType) == ("DOE^JANE", "BINARY")
    assert "secret" not in str(data)
    write_objects(findings, paths(tmp_path / "b", "seg", "sr"))
    data = pydicom.dcmread(tmp_path / "b/x_seg.dcm")
    uids = [segment.TrackingUID for segment in data.SegmentSequence]
    assert uids == [findings.liver_tracking_uid, *(lesion.tracking_uid for lesion in findings.lesions)]
    report = str(pydicom.dcmread(tmp_path / "b/x_seg_sr.dcm"))
    assert all(uid in report for uid in uids) and "secret" not in report
    for name in ("Long axis", "Short axis", "Attenuation Coefficient", "Volume"):
        assert name in report


def test_files_of_others_and_the_ct_are_left_alone(findings, tmp_path):
    foreign = tmp_path / "x_seg.dcm"
    foreign.write_bytes(b"mine")
    with pytest.raises(OutputError, match="was not made by this library"):
        write_objects(findings, {"seg": foreign})
    source = tmp_path / "ct" / "3.dcm"
    with pytest.raises(OutputError, match="is an input"):
        write_objects(findings, {"seg": source}, overwrite=True)
    assert foreign.read_bytes() == b"mine"


def test_series_that_nothing_can_refer_to_are_refused(make_findings):
    def lost(data, index):
        data.StudyInstanceUID = ""

    with pytest.raises(OutputError, match="lost their UIDs"):
        make_findings(change=lost, name="lost")


def test_an_empty_mask_is_refused(make_findings, tmp_path):
    found = make_findings(labels=np.zeros((19, 21, 8), np.uint8))
    for name in ("seg", "rtstruct"):
        with pytest.raises(OutputError, match="no liver was found"):
            write_objects(found, paths(tmp_path, name))


def test_outlines_have_the_area_of_their_pixels():
    rng = np.random.default_rng(4)
    for _ in range(30):
        mask = rng.random((9, 8)) < 0.55
        area = sum(structure_set._signed_area(loop) for loop in structure_set.outlines(mask))
        assert area == mask.sum()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segmentation_is_written_frame_by_frame(tmp_path, kind):
    import tracemalloc

    from liverseg_tf.data.dicom.writing import series_datasets
    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.dicom_objects.findings import Findings

    for index, data in enumerate(series_datasets(np.zeros((512, 512, 30), np.int16), TILTED, "X", "", 1, 0)):
        data.save_as(tmp_path / f"{index}", enforce_file_format=True)
    labels = np.zeros((512, 512, 30), np.uint8)
    labels[100:400, 100:400] = 1
    labels[200:220, 200:220, 3:20] = 2
    found = Findings(labels, CTVolume.load(tmp_path))
    found.lesions  # noqa: B018
    tracemalloc.start()
    try:
        write_objects(found, paths(tmp_path, "seg"), segmentation_type=kind, lesion_segments=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < labels.nbytes + 4e6  # a mask of 7.9 MB; all frames at once would take ten times that


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
def test_dciodvfy_finds_no_errors(findings, tmp_path):
    write_objects(findings, paths(tmp_path))
    for path in paths(tmp_path).values():
        found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
        errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
        assert not errors, (path.name, errors)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
def test_dciodvfy_knows_of_a_labelmap_no_more_than_that_it_is_new(findings, tmp_path):
    write_objects(findings, paths(tmp_path, "seg"), segmentation_type="LABELMAP")
    found = subprocess.run(["dciodvfy", str(tmp_path / "x_seg.dcm")], capture_output=True, text=True, timeout=60)
    errors = [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]
    # releases older than this object of 2024 have no definition of it, and know no background segment of number 0
    assert all("Information Object Not found" in line or "with SegmentNumber of 0" in line for line in errors), errors


# of this environment, whose programs need not be on the PATH
DCMQI = shutil.which("segimage2itkimage", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))


@pytest.mark.skipif(DCMQI is None, reason="dcmqi (PyPI) is not installed")
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("turn", [TURNS[i] for i in (0, 9, 18)], ids=range(3))
def test_dcmqi_reads_the_same_voxels(make_findings, tmp_path, turn, kind):
    import nibabel as nib

    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, -2.0, 3.0])
    found = make_findings(affine)
    write_objects(found, paths(tmp_path, "seg"), segmentation_type=kind, lesion_segments=True)
    command = [DCMQI, "--inputDICOM", "x_seg.dcm", "--outputDirectory", ".", "--outputType", "nii"]
    read = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert read.returncode == 0, read.stderr
    seen = np.zeros(found.volume.geometry.shape, np.uint8)
    files = list(tmp_path.glob("*.nii.gz"))
    assert len(files) == (3 if kind == "BINARY" else 1)  # one a segment, or one with all of their numbers
    for path in files:
        image = nib.load(path)
        values = np.asarray(image.dataobj).astype(int)
        places = np.argwhere(values > 0)
        numbers = values[values > 0] if kind == "LABELMAP" else int(path.name.split(".")[0])
        places = nib.affines.apply_affine(np.linalg.inv(found.volume.affine) @ image.affine, places)
        np.testing.assert_allclose(places, np.rint(places), atol=1e-3)
        at = tuple(np.rint(places).astype(int).T)
        seen[at] = np.maximum(seen[at], np.minimum(numbers, 2))
    np.testing.assert_array_equal(found.volume.geometry.to_canonical(seen), found.labels)


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (Debian: dcmtk) is not installed")
def test_dcmtk_reads_the_report(findings, tmp_path):
    write_objects(findings, paths(tmp_path, "seg", "sr"))
    found = subprocess.run(["dsrdump", str(tmp_path / "x_seg_sr.dcm")], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Measurement Group") == 3


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_objects_of_enhanced_ct_whose_frames_are_in_another_order(tmp_path, kind):
    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.dicom_objects.findings import Findings
    from tests.data.dicom.test_voxels import enhanced

    hu = np.random.default_rng(0).integers(-200, 300, (21, 19, 8)).astype(np.int16)
    enhanced(hu, order=[2, 0, 1, 4, 3, 7, 6, 5]).save_as(tmp_path / "e.dcm", enforce_file_format=True)
    volume = CTVolume.load(tmp_path / "e.dcm")
    labels = np.zeros((21, 19, 8), np.uint8)
    labels[3:17, 4:15, 1:7] = 1
    labels[5:9, 5:8, 2:4] = 2
    found = Findings(volume.geometry.to_canonical(labels), volume)
    rows = write_objects(found, paths(tmp_path / "out", "seg", "rtstruct"), segmentation_type=kind)
    assert [len(row["read_again"]["lesions"]) for row in rows] == [1, 1]
