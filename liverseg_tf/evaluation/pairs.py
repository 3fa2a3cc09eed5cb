"""Pairing reference masks with predicted masks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from liverseg_tf.data.cases import case_number, read_patients
from liverseg_tf.data.nifti import stem
from liverseg_tf.data.reading import is_segmentation_file, is_volume_name, open_volume
from liverseg_tf.data.volume import Geometry, check_same_voxels
from liverseg_tf.errors import CaseError, DataWarning, InputFileError, warn
from liverseg_tf.files import is_hidden
from liverseg_tf.ownership import MAPS, kind_of
from liverseg_tf.wording import counted

_VOLUME_NAME = re.compile(r"volume-\d+", re.IGNORECASE)


@dataclass(frozen=True)
class MaskPair:
    """A reference mask and the mask to score against it.

    Attributes:
        case: number in the files' names, or their name without `_seg` if it has none.
        patient: patient of the case; the bootstrap resamples patients.
        truth: the reference mask's file.
        prediction: the predicted mask's file.
    """

    case: int | str
    patient: str
    truth: Path
    prediction: Path


def find_pairs(truth: str | Path, prediction: str | Path, patients: str | Path | None = None) -> list[MaskPair]:
    """Pair two folders of masks by case number, or two files.

    `segmentation-7`, `liver_7`, `liver_7_seg` and `volume-7_seg` are all case 7; a name without a number pairs with the
    same name, with or without `_seg` or `.seg`. Sub-folders are searched too. CTs beside the masks (`volume-7`,
    `imagesTr/liver_7`) are skipped, and so are DICOM SEGs beside another mask of the same case. Shapes and affines
    are compared from the headers before any case is scored, those of a SEG when it is read; the files may store their
    axes in different orders and directions.

    Args:
        truth: folder of reference masks, or one file.
        prediction: folder of predicted masks, or one file.
        patients: CSV file with the columns `id,patient`; cases not in it are each their own patient.

    Returns:
        Pairs by number, then by name.

    Raises:
        InputFileError: for a missing path, or a file that can't be read.
        CaseError: if no mask is found, a case has two masks, or a reference has no prediction.
        GeometryError: if the masks of a pair don't hold the same voxels.

    Warns:
        DataWarning: for predictions without a reference.
    """
    groups = read_patients(patients) if patients is not None else {}
    truth, prediction = Path(truth), Path(prediction)
    if truth.is_file() and prediction.is_file():
        case = _case(truth)
        matched = [(case, truth, prediction)]
    else:
        truths, predictions = masks_in(truth), masks_in(prediction)
        missing = [case for case in truths if case not in predictions]
        if missing:
            raise CaseError(
                f"{prediction}: no prediction for {len(missing)} of {len(truths)} reference masks: "
                f"{_listed([truths[case].name for case in missing])}; predict them, or take the references out"
            )
        extra = [predictions[case].name for case in predictions if case not in truths]
        if extra:
            warn(
                f"{prediction}: {counted(len(extra), 'prediction has', 'predictions have')} no reference and "
                f"{'is' if len(extra) == 1 else 'are'} left out: {_listed(extra)}",
                DataWarning,
            )
        matched = [(case, truths[case], predictions[case]) for case in truths]
    for _, reference, predicted in matched:
        if is_segmentation_file(reference) or is_segmentation_file(predicted):
            continue  # a SEG is put on the other's grid when it is read
        grid, other = (Geometry(header.shape, header.affine) for header in map(open_volume, (reference, predicted)))
        check_same_voxels(grid, other, (reference, predicted))
    patient_of = {case: groups.get(case, str(case)) if isinstance(case, int) else case for case, _, _ in matched}
    return [MaskPair(case, patient_of[case], *paths) for case, *paths in matched]


def masks_in(folder: Path) -> dict[int | str, Path]:
    """The masks of a folder and its sub-folders by case, without CTs and without the other files of `predict`.

    Raises:
        InputFileError: if there is no such folder.
        CaseError: if there is no mask, or a case has two.
    """
    if not folder.exists():
        raise InputFileError(f"{folder}: expected a folder of masks, there is none; check the path")
    if not folder.is_dir():
        raise InputFileError(f"{folder}: expected a folder of masks, got a file; give two folders or two files")
    masks: dict[int | str, Path] = {}
    segmentations: dict[int | str, Path] = {}
    seg_duplicates: dict[int | str, Path] = {}
    for path in sorted(folder.rglob("*")):
        is_volume = _VOLUME_NAME.fullmatch(stem(path)) or path.parent.name.lower() in ("imagestr", "imagests")
        if is_volume or not path.is_file() or is_hidden(path, folder):
            continue
        if not is_volume_name(path):
            if path.suffix.lower() == ".dcm" and _is_segmentation(path):
                seg_duplicates.update({_case(path): path} if _case(path) in segmentations else {})
                segmentations.setdefault(_case(path), path)
            continue
        if kind_of(path) in MAPS:  # for classes of any name
            continue
        case = _case(path)
        if case in masks:
            raise CaseError(f"case {case} is there twice: {masks[case]} and {path}; remove one, or name another folder")
        masks[case] = path
    for case in [case for case in seg_duplicates if case not in masks]:
        paths = f"{segmentations[case]} and {seg_duplicates[case]}"
        raise CaseError(f"case {case} is there twice: {paths}; remove one, or name another folder")
    masks = segmentations | masks  # `predict` writes both of one mask
    if not masks:
        raise CaseError(
            f"{folder}: expected masks (.nii, .nii.gz, .nrrd, .mha or .mhd, as segmentation-<number>.nii.gz, or DICOM "
            "SEG), got none"
        )
    return dict(sorted(masks.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _is_segmentation(path: Path) -> bool:
    """Tell whether a DICOM file is a SEG; what can't be read is left out with a warning."""
    if is_segmentation_file(path):
        return True
    from liverseg_tf.data.dicom.segmentation import sop_class

    if sop_class(path) is None:
        warn(f"{path}: can't be read as DICOM and is left out; copy or export it again", DataWarning)
    return False


def _case(path: Path) -> int | str:
    number = case_number(path)
    return re.sub(r"[._]seg$", "", stem(path)) if number is None else number


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
