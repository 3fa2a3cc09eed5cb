from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_tf.errors import CaseError, DataWarning, GeometryError, InputFileError
from liverseg_tf.evaluation.evaluate import evaluate
from liverseg_tf.evaluation.measure import find_masks
from liverseg_tf.evaluation.pairs import find_pairs

LABELS = np.ones((4, 5, 3), np.uint8)
TRUE, PREDICTED = np.zeros((2, 12, 10, 6), np.uint8)
TRUE[2:10, 1:8, 1:5], PREDICTED[2:11, 2:8, 1:6] = 1, 1
TRUE[3:5, 2:5, 2:4] = TRUE[8, 5:7, 2] = PREDICTED[3:6, 3:5, 2] = PREDICTED[9, 6, 3] = 2


@pytest.mark.parametrize("name", ["segmentation-7.nii", "liver_7.nii.gz", "liver_7_seg.nii.gz", "volume-7_seg.nii.gz"])
def test_names_of_one_number_are_one_case(tmp_path, write_mask, name):
    truth = write_mask(tmp_path / "truth" / "segmentation-7.nii.gz", LABELS)
    prediction = write_mask(tmp_path / "pred" / name, LABELS)
    (pair,) = find_pairs(tmp_path / "truth", tmp_path / "pred")
    assert (pair.case, pair.patient, pair.truth, pair.prediction) == (7, "7", truth, prediction)


def test_cases_come_by_number_and_volumes_are_passed_over(tmp_path, write_mask):
    for case in (10, 9, 1):
        write_mask(tmp_path / "lits" / f"segmentation-{case}.nii.gz", LABELS)
        write_mask(tmp_path / "lits" / f"volume-{case}.nii.gz", LABELS)
        write_mask(tmp_path / "msd" / "imagesTr" / f"liver_{case}.nii.gz", LABELS)
        write_mask(tmp_path / "msd" / "labelsTr" / f"liver_{case}.nii.gz", LABELS)
    pairs = find_pairs(tmp_path / "lits", tmp_path / "msd")
    assert [pair.case for pair in pairs] == [1, 9, 10]
    assert all("labelsTr" in str(pair.prediction) and "segmentation" in pair.truth.name for pair in pairs)


def test_names_without_a_number_pair_by_name_and_files_pair_as_they_are(tmp_path, write_mask):
    truth = write_mask(tmp_path / "truth" / "Anna B.nii.gz", LABELS)
    prediction = write_mask(tmp_path / "pred" / "Anna B_seg.nii.gz", LABELS)
    assert find_pairs(tmp_path / "truth", tmp_path / "pred")[0].case == "Anna B"
    assert find_pairs(truth, prediction)[0].prediction == prediction


@pytest.mark.parametrize("name", ["case-a.nrrd", "case-a.seg.nrrd", "case-a_seg.mha"])
def test_masks_of_other_programs_pair_and_score_as_nifti(tmp_path, write_mask, name):
    itk = pytest.importorskip("SimpleITK")
    truth = write_mask(tmp_path / "truth" / "case-a.nii.gz", LABELS)
    (tmp_path / "pred").mkdir()
    itk.WriteImage(itk.ReadImage(str(truth)), str(tmp_path / "pred" / name))
    for reference, predicted in ((tmp_path / "truth", tmp_path / "pred"), (truth, tmp_path / "pred" / name)):
        (pair,) = find_pairs(reference, predicted)
        assert pair.prediction.name == name
        assert evaluate(reference, predicted, resamples=1).cases[0]["liver_dice"] == 1.0
    assert [one.mask.name for one in find_masks(tmp_path / "pred")] == [name]


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=12, deadline=None)
def test_masks_that_store_their_axes_otherwise_get_the_same_scores(order, flipped):
    image = nib.Nifti1Image(PREDICTED, np.diag([-0.8, -0.8, 2.5, 1]))
    turned = image.as_reoriented(np.stack([order, np.where(flipped, -1, 1)], axis=1))
    with TemporaryDirectory() as folder:
        names = [f"{folder}/{name}/segmentation-1.nii.gz" for name in ("truth", "plain", "turned")]
        for name, one in zip(names, (nib.Nifti1Image(TRUE, image.affine), image, turned), strict=True):
            Path(name).parent.mkdir()
            nib.save(one, name)
        plain, otherwise = (evaluate(names[0], name, resamples=1) for name in names[1:])
    strip = {"prediction": None}
    assert [row | strip for row in plain.cases] == [row | strip for row in otherwise.cases]
    assert plain.lits == otherwise.lits and plain.lesions == otherwise.lesions


def test_a_missing_prediction_is_an_error_that_names_it(tmp_path, write_mask):
    for case in (1, 2):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii.gz", LABELS)
    write_mask(tmp_path / "pred" / "segmentation-1.nii.gz", LABELS)
    with pytest.raises(CaseError, match=r"1 of 2 reference masks: segmentation-2\.nii\.gz"):
        find_pairs(tmp_path / "truth", tmp_path / "pred")
    with pytest.warns(DataWarning, match=r"1 prediction has no reference.*segmentation-2"):
        assert len(find_pairs(tmp_path / "pred", tmp_path / "truth")) == 1


def test_a_doubled_case_is_an_error(tmp_path, write_mask):
    write_mask(tmp_path / "truth" / "segmentation-1.nii.gz", LABELS)
    write_mask(tmp_path / "pred" / "segmentation-1.nii.gz", LABELS)
    write_mask(tmp_path / "pred" / "volume-1_seg.nii.gz", LABELS)
    with pytest.raises(CaseError, match="case 1 is there twice"):
        find_pairs(tmp_path / "truth", tmp_path / "pred")


def test_missing_and_empty_folders(tmp_path, write_mask):
    mask = write_mask(tmp_path / "truth" / "segmentation-1.nii.gz", LABELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="there is none"):
        find_pairs(tmp_path / "truth", tmp_path / "nowhere")
    with pytest.raises(CaseError, match="expected masks"):
        find_pairs(tmp_path / "truth", tmp_path / "empty")
    with pytest.raises(InputFileError, match="two folders or two files"):
        find_pairs(tmp_path / "truth", mask)


def test_misfits_are_found_in_the_headers(tmp_path, write_mask):
    truth = write_mask(tmp_path / "truth" / "segmentation-1.nii.gz", LABELS)
    other = write_mask(tmp_path / "other" / "segmentation-1.nii.gz", np.ones((4, 5, 4)))
    with pytest.raises(GeometryError, match=r"segmentation-1.*\(4, 5, 3\).*\(4, 5, 4\)"):
        find_pairs(truth, other)
    moved = write_mask(tmp_path / "moved" / "segmentation-1.nii.gz", LABELS, np.diag([-0.8, -0.8, 2.0, 1]))
    with pytest.raises(GeometryError, match="affine"):
        find_pairs(truth, moved)


def test_patients_from_a_file(tmp_path, write_mask):
    for folder in ("truth", "pred"):
        for case in (1, 2, 3):
            write_mask(tmp_path / folder / f"segmentation-{case}.nii.gz", LABELS)
    (tmp_path / "groups.csv").write_text("id,patient\n1,A\n2,A\n")
    pairs = find_pairs(tmp_path / "truth", tmp_path / "pred", tmp_path / "groups.csv")
    assert [pair.patient for pair in pairs] == ["A", "A", "3"]
