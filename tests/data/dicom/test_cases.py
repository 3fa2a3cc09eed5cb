"""DICOM series as cases of a data set: found, paired with their SEGs, verified, and streamed to training."""

import json
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

import liverseg_tf as ls  # noqa: E402
from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.slices import count_slices, explain_read_error  # noqa: E402
from liverseg_tf.data.verify import verify  # noqa: E402
from liverseg_tf.errors import CaseError, DataWarning, InputFileError, LabelError  # noqa: E402
from tests.data.test_verify import body  # noqa: E402

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Three series of two patients, in folders that say nothing, and their SEGs in another; and the masks."""
    from liverseg_tf.data.dicom.writing import write_series

    root = tmp_path_factory.mktemp("studies")
    (root / "masks").mkdir()
    masks = {}
    for number, (patient, phase) in enumerate((("A", "Portal venous"), ("A", "Arterial"), ("B", "Portal venous"))):
        folder = root / "cts" / f"export {number}"
        folder.mkdir(parents=True)
        hu, labels = body(number)
        write_series(hu, AFFINE, folder, patient=f"{patient}^DOE", description=phase, seed=number)
        mask = ls.MaskVolume(labels, ls.CTVolume.load(folder).geometry)
        ls.write_dicom_objects(mask, folder, root / "masks", name=f"x{number}")
        masks[folder] = labels
    return root, masks


@pytest.fixture
def copied(studies, tmp_path):
    shutil.copytree(studies[0], tmp_path / "data")
    return tmp_path / "data"


def test_a_series_is_paired_with_the_seg_that_refers_to_it(studies):
    root, masks = studies
    cases = ls.find_cases(root / "cts", root / "masks")
    assert [case.volume for case in cases] != []
    for case in cases:
        assert np.array_equal(case.load_mask(volume := case.load_volume()).labels, to_view(masks[case.volume], volume))
    assert len({case.id for case in cases}) == 3 and len({case.patient for case in cases}) == 2
    assert cases == ls.find_cases(root)  # numbers are the series' own
    assert not any("DOE" in f"{case}" for case in cases)


def to_view(labels, volume):
    return volume.geometry.to_canonical(labels)


def test_names_pair_too_and_a_nifti_mask_counts_before_a_seg(copied):
    cts = copied / "cts"
    (cts / "export 0").rename(cts / "volume-7")
    labels = body(0)[1]
    labels[labels == 2] = 1
    image = nib.as_closest_canonical(nib.Nifti1Image(labels, AFFINE))  # axes in another order than the series'
    nib.save(image, copied / "segmentation-7.nii.gz")
    nib.save(nib.Nifti1Image(body(1)[1], AFFINE), copied / "masks" / "cts_export 1_seg.nii.gz")
    cases = ls.find_cases(copied)
    assert cases[0].id == 7 and cases[0].segmentation.name == "segmentation-7.nii.gz"
    assert cases[0].load_mask(cases[0].load_volume()).labels.max() == 1
    assert sum(case.segmentation.name.endswith("export 1_seg.nii.gz") for case in cases) == 1


def test_segs_of_other_organs_or_series_are_no_masks(copied):
    segs = sorted((copied / "masks").glob("*.dcm"))
    data = pydicom.dcmread(segs[0])
    for segment in data.SegmentSequence:
        segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = "78961009"  # spleen
        segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue = "123037004"
    data.save_as(segs[0])
    data = pydicom.dcmread(segs[1])
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    data.save_as(segs[1])
    with pytest.warns(DataWarning) as told:
        assert sum(case.segmentation is not None for case in ls.find_cases(copied)) == 1
    said = " | ".join(str(one.message) for one in told)
    assert f"1 file is skipped, no CT or mask by name or codes: {segs[0]}" in said
    assert f"1 mask has no volume and is left out: {segs[1]}" in said


def test_two_segs_of_one_series_are_named_and_one_can_be_chosen(copied):
    segs = sorted((copied / "masks").glob("*.dcm"))
    again = copied / "masks" / "again.dcm"
    again.write_bytes(segs[2].read_bytes())
    uid = pydicom.dcmread(again).ReferencedSeriesSequence[0].SeriesInstanceUID
    with pytest.raises(CaseError, match=f"mask of series {uid} is there twice: .*x2.dcm; remove one"):
        ls.find_cases(copied)
    assert uid in " ".join(f.message for f in verify(copied).errors)
    segs[2].unlink()
    assert [case.segmentation for case in ls.find_cases(copied)].count(again) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_masks_may_be_named_before_their_series(studies, order):
    folders = [studies[0] / name for name in ("cts", "masks")]
    cases = ls.find_cases(*(folders[i] for i in order))
    assert len(cases) == 3 and all(case.segmentation is not None for case in cases)


@pytest.mark.parametrize("harm", ["segments", "start", "archive"])
def test_no_seg_is_dropped_without_a_word(copied, harm):
    """One whose segments can't be read, one that was cut at its start, and one in an archive."""
    victim = copied / "masks" / "x1.dcm"
    if harm == "archive":
        with zipfile.ZipFile(copied / "masks.zip", "w") as archive:
            archive.write(victim, "x1.dcm")
        found = verify(copied / "masks.zip").errors
        assert [f.message for f in found] == [
            f"{copied / 'masks.zip'}: x1.dcm in it is a SEG; unpack it, to use it as a mask"
        ]
        return
    if harm == "segments":
        data = pydicom.dcmread(victim)
        del data.SegmentSequence[0].SegmentNumber
        data.save_as(victim)
        words = "x1.dcm: is a SEG, and its DICOM header can't be read"
    else:
        victim.write_bytes(victim.read_bytes()[200:])
        words = "x1.dcm: x1.dcm is named .dcm and holds something else"
    with pytest.warns(DataWarning, match=words):
        cases = ls.find_cases(copied)
    assert sum(case.segmentation is not None for case in cases) == 2
    assert any(words in f.message for f in verify(copied).errors)


def test_slices_are_those_of_the_same_cases_as_nifti(studies, tmp_path, write_nifti):
    root, _ = studies
    cases = ls.find_cases(root)
    as_nifti = []
    for number, case in enumerate(cases[:2]):  # the third stays DICOM: both ways in one data set
        hu, labels = body(int(case.volume.name[-1]))
        write_nifti(tmp_path / f"volume-{number}.nii.gz", hu, AFFINE)
        write_nifti(tmp_path / f"segmentation-{number}.nii.gz", labels, AFFINE)
    as_nifti = [*ls.find_cases(tmp_path), cases[2]]
    options = {"selection": ls.SliceSelection(every_slice=3, only_liver=True), "shuffle": True}
    first, second = (list(ls.slice_dataset(some, **options).as_numpy_iterator()) for some in (cases, as_nifti))
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert count_slices(cases) == count_slices(as_nifti) == {"tumour": 6, "liver only": 9, "neither": 9}


def test_a_slice_that_breaks_while_training_is_named(copied):
    cases = ls.find_cases(copied)
    victim = sorted(cases[0].volume.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-500])
    with pytest.raises(Exception, match=r".") as caught:
        list(ls.slice_dataset(cases, image_size=24))
    assert victim.name in str(explain_read_error(caught.value, cases))


def test_labels_that_the_model_does_not_have_are_refused(studies):
    import tensorflow as tf

    cases = ls.find_cases(studies[0])
    with pytest.raises(tf.errors.OpError) as caught:
        list(ls.slice_dataset(cases, image_size=24, classes=2))
    assert isinstance(explain_read_error(caught.value, cases, ("background", "liver")), LabelError)


def test_good_series_have_rows_and_a_phase(studies):
    found = verify(studies[0])
    assert not found.errors and found.patients == 2
    assert [(f.severity, f.kind) for f in found.findings] == [("warning", "phase")]
    assert "arterial" in found.warnings[0].message
    row = next(row for row in found.cases if row["volume"].endswith("0"))
    assert row["phase"] == "portal venous" and row["shape"] == (36, 40, 8) and row["tilt_degrees"] == 0
    assert row["voxels"]["tumour"] == 18


def test_what_is_wrong_with_a_series_is_found(copied, capsys):
    cts = copied / "cts"
    (cts / "export 0" / "IM0004.dcm").unlink()
    shutil.copy(cts / "export 1" / "IM0002.dcm", cts / "export 1" / "again.dcm")
    cut = cts / "export 2" / "IM0002.dcm"
    cut.write_bytes(cut.read_bytes()[:-200])
    found = verify(copied)
    errors = " ".join(f.message for f in found.errors)
    assert [f.kind for f in found.errors] == ["series", "series"]
    assert "IM0003.dcm and IM0005.dcm" in errors and "IM0002.dcm is truncated" in errors
    assert [(f.kind, "twice; one of each" in f.message) for f in found.warnings if f.kind == "duplicate"] == [
        ("duplicate", True)
    ]
    data = pydicom.dcmread(cts / "export 1" / "again.dcm")
    data.PixelData = data.PixelData[:-2] + b"\x07\x00"
    data.save_as(cts / "export 1" / "again.dcm")
    found = verify(cts / "export 1")
    assert [f.kind for f in found.errors] == ["file"] and "different images lie at one place" in found.errors[0].message
    assert main(["verify", str(copied), "--json"]) == 1
    assert "DOE" not in (out := capsys.readouterr().out) and json.loads(out)["errors"] == 3
    with pytest.warns(DataWarning, match="IM0003.dcm and IM0005.dcm"):
        assert len(ls.find_cases(copied)) == 1


def test_tilt_and_hu_of_a_series_are_told(tmp_path):
    from liverseg_tf.data.dicom.writing import write_series

    tilted = AFFINE.copy()
    tilted[1, 2] = 0.8
    (tmp_path / "ct").mkdir()
    write_series(body()[0] + np.int16(1024), tilted, tmp_path / "ct")
    kinds = {f.kind: f.message for f in verify(tmp_path).warnings}
    assert "tilted by 14.9 degrees" in kinds["orientation"] and "shifted by 1024" in kinds["intensities"]


def test_single_files_archives_and_other_formats_are_verified(studies, tmp_path, write_nifti):
    itk = pytest.importorskip("SimpleITK")
    root, _ = studies
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((root / "cts" / "export 0").iterdir()):
            file.write(path, path.name)
    hu, labels = body()
    write_nifti(tmp_path / "some scan.nii.gz", hu, AFFINE)
    for name, array in (("volume-3.nrrd", hu), ("segmentation-3.mha", labels)):
        image = itk.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing((1.5, 1.5, 3.0))
        itk.WriteImage(image, str(tmp_path / "itk" / name) if (tmp_path / "itk").is_dir() else str(tmp_path / name))
    for given in (archive, tmp_path / "some scan.nii.gz", tmp_path / "volume-3.nrrd"):
        found = verify(given)
        assert not found.errors and found.cases[0]["shape"] == (36, 40, 8), given
    (case,) = ls.find_cases(tmp_path)
    assert case.segmentation.suffix == ".mha" and len(list(ls.slice_dataset([case], image_size=24))) == 8
    lone = verify(root / "masks" / "x0.dcm")
    assert lone.cases[0]["voxels"]["tumour"] == 18 and not lone.errors
    single = verify(root / "cts" / "export 0" / "IM0001.dcm")
    assert single.cases[0]["shape"] == (36, 40, 1)
    with pytest.raises(InputFileError, match="there is none"):
        verify(tmp_path / "nowhere.dcm")
