"""Finding volumes and masks, pairing them, and splitting them by patient."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liverseg_tf.data.nifti import is_nifti_name, stem
from liverseg_tf.errors import CaseError, ConfigError, DataWarning, InputFileError, warn
from liverseg_tf.files import is_hidden

# LiTS: volume-7, segmentation-7. Medical Segmentation Decathlon: imagesTr/liver_7, labelsTr/liver_7.
_NUMBER = r"(\d{1,18})"  # fits 64 bits
_LITS_NAME = re.compile(rf"(volume|segmentation)-{_NUMBER}", re.IGNORECASE)
_DECATHLON_NAME = re.compile(rf"[a-z]+_{_NUMBER}", re.IGNORECASE)
_NUMBERED_NAME = re.compile(rf"(?:volume|segmentation)-{_NUMBER}(?:_seg)?|[a-z]+_{_NUMBER}(?:_seg)?", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One CT, and its mask if there is one.

    Attributes:
        id: number in the file's name.
        patient: the patient's name; splits, folds and bootstraps group by it.
        volume: the CT.
        segmentation: its mask, or None for a case to predict.
    """

    id: int
    patient: str
    volume: Path
    segmentation: Path | None = None

    @property
    def files(self) -> list[Path]:
        """The CT, and the mask if there is one."""
        return [self.volume] if self.segmentation is None else [self.volume, self.segmentation]


def find_cases(*folders: str | Path, patients: str | Path | None = None) -> list[Case]:
    """Find CTs and masks in folders and pair them by number.

    Recognises LiTS's names (`volume-7.nii`, `segmentation-7.nii`, also .nii.gz) in any sub-folder, and the Medical
    Segmentation Decathlon's layout (`imagesTr/liver_7.nii.gz`, `labelsTr/liver_7.nii.gz`, `imagesTs/...`).
    Hidden files and folders are skipped.

    Args:
        folders: any number of folders, searched recursively; volumes and masks may lie in different ones.
        patients: CSV file with the columns `id,patient`; each case not in it is its own patient.

    Returns:
        Cases in the order of their numbers.

    Raises:
        InputFileError: if a folder is missing.
        CaseError: if no volume is found, or two files have the same number.

    Warns:
        DataWarning: for masks without a volume.

    Examples:
        >>> find_cases("LiTS/vol_1", "LiTS/vol_2", "LiTS/segmentations")  # doctest: +SKIP
    """
    found = find_files(*folders)
    for kind, files in (("volume", found.volumes), ("segmentation", found.masks)):
        for number, paths in files.items():
            if len(paths) > 1:
                raise CaseError(
                    f"{kind} {number} is there twice: {paths[0]} and {paths[1]}; remove one, or name fewer folders"
                )
    volumes, masks = ({number: paths[0] for number, paths in files.items()} for files in (found.volumes, found.masks))
    if not volumes:
        raise no_volumes(folders, len(masks))
    orphans = sorted(set(masks) - set(volumes))
    if orphans:
        listed = ", ".join(str(masks[n]) for n in orphans[:5]) + (", ..." if len(orphans) > 5 else "")
        warn(f"{len(orphans)} masks have no volume and are left out: {listed}", DataWarning)
    groups = read_patients(patients) if patients is not None else {}
    return [Case(n, groups.get(n, str(n)), volumes[n], masks.get(n)) for n in sorted(volumes)]


@dataclass(frozen=True)
class CaseFiles:
    """NIfTI files by the number in their name.

    Attributes:
        volumes, masks: number -> its files; more than one is an error.
        others: files without a number.
    """

    volumes: dict[int, list[Path]]
    masks: dict[int, list[Path]]
    others: list[Path]


def find_files(*folders: str | Path) -> CaseFiles:
    """Find the files that `find_cases` pairs, duplicates included.

    Raises:
        InputFileError: if a folder is missing.
        CaseError: if no folder is named.
    """
    found = CaseFiles({}, {}, [])
    for path in _nifti_files(folders):
        kind, number = _kind_and_number(path)
        if kind is None:
            found.others.append(path)
        else:
            (found.volumes if kind == "volume" else found.masks).setdefault(number, []).append(path)
    return found


def no_volumes(folders: Sequence[str | Path], masks: int) -> CaseError:
    """The error for folders without a CT."""
    return CaseError(
        f"{', '.join(map(str, folders))}: expected CTs named volume-<number>.nii or .nii.gz (LiTS) or "
        f"imagesTr/<name>_<number>.nii.gz (Medical Segmentation Decathlon), got none"
        f"{f' but {masks} masks' if masks else ''}; DICOM series are checked by 'liverseg series'"
    )


def read_patients(path: str | Path) -> dict[int, str]:
    """Read a groups file: CSV with the header `id,patient`.

    Raises:
        InputFileError: if it can't be read or has another header or row.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"id", "patient"} <= set(reader.fieldnames or ()):
                raise InputFileError(f"{path}: expected a CSV file with the header id,patient, got {reader.fieldnames}")
            groups: dict[int, str] = {}
            for row in reader:
                if not (row["id"] or "").strip().isdecimal() or not (row["patient"] or "").strip():
                    raise InputFileError(f"{path}, line {reader.line_num}: expected a number and a patient, got {row}")
                if int(row["id"]) in groups:
                    raise InputFileError(
                        f"{path}, line {reader.line_num}: case {row['id']} is there twice; remove one row"
                    )
                groups[int(row["id"])] = row["patient"].strip()
            return groups
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"{path}: could not be read as CSV ({error})") from None


def case_number(path: str | Path) -> int | None:
    """The case number in a file's name, or None: 7 for `segmentation-7`, `volume-7_seg`, `liver_7`, `liver_7_seg`."""
    match = _NUMBERED_NAME.fullmatch(stem(path))
    return int(match[1] or match[2]) if match else None


def is_mask_name(path: str | Path) -> bool:
    """Tell whether a file's name or folder says that it is a mask: `segmentation-7`, `labelsTr/liver_7`, `x_seg`."""
    name = stem(path).lower()
    return name.startswith("segmentation-") or name.endswith("_seg") or Path(path).parent.name.lower() == "labelstr"


def split_by_patient(
    cases: Sequence[Case], validation_fraction: float = 0.2, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Split cases so that no patient is in both parts.

    Args:
        cases: at least two patients.
        validation_fraction: share of the patients to validate on, above 0 and below 1; at least one patient.
        seed: any integer of at least 0; the same seed gives the same split.

    Returns:
        Training and validation cases, each in the order of `cases`.

    Raises:
        CaseError: for fewer than two patients.
        ConfigError: for a fraction outside (0, 1).
    """
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"validation fraction: expected above 0 and below 1. Received: {validation_fraction}")
    patients = _shuffled_patients(cases, seed)
    if len(patients) < 2:
        raise CaseError(f"expected at least two patients to split, got {len(patients)}; add cases or a groups file")
    count = min(max(1, round(len(patients) * validation_fraction)), len(patients) - 1)
    return _divide(cases, set(patients[:count]))


def folds_by_patient(cases: Sequence[Case], folds: int, seed: int = 0) -> list[tuple[list[Case], list[Case]]]:
    """Split cases into `folds` pairs of training and validation, with each patient in exactly one validation part.

    Raises:
        CaseError: if there are fewer patients than folds.
        ConfigError: for fewer than two folds.
    """
    if folds < 2:
        raise ConfigError(f"folds: expected at least 2. Received: {folds}")
    patients = _shuffled_patients(cases, seed)
    if len(patients) < folds:
        raise CaseError(f"expected at least {folds} patients for {folds} folds, got {len(patients)}")
    return [_divide(cases, set(patients[i::folds])) for i in range(folds)]


def with_masks(cases: Iterable[Case]) -> list[Case]:
    """The cases that have a mask.

    Raises:
        CaseError: if no case has one.
    """
    labelled = [case for case in cases if case.segmentation is not None]
    if not labelled:
        raise CaseError("expected cases with masks (segmentation-<number>.nii or .nii.gz), got none with one")
    return labelled


def _shuffled_patients(cases: Sequence[Case], seed: int) -> list[str]:
    patients = sorted({case.patient for case in cases})
    np.random.default_rng(seed).shuffle(patients)
    return patients


def _divide(cases: Sequence[Case], validation: set[str]) -> tuple[list[Case], list[Case]]:
    return [c for c in cases if c.patient not in validation], [c for c in cases if c.patient in validation]


def _nifti_files(folders: Sequence[str | Path]) -> list[Path]:
    if not folders:
        raise CaseError("expected at least one folder to search, got none")
    files: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "got a file" if folder.exists() else "there is none"
            raise InputFileError(f"{folder}: expected a folder of CTs, {what}; check the path")
        for path in sorted(folder.rglob("*")):
            if is_nifti_name(path) and path.is_file() and not is_hidden(path, folder):
                files.setdefault(path.resolve(), path)  # a file found through two overlapping folders counts once
    return list(files.values())


def _kind_and_number(path: Path) -> tuple[str | None, int]:
    if match := _LITS_NAME.fullmatch(stem(path)):
        return match[1].lower(), int(match[2])
    if match := _DECATHLON_NAME.fullmatch(stem(path)):
        folder = path.parent.name.lower()
        if folder in ("imagestr", "imagests"):
            return "volume", int(match[1])
        if folder == "labelstr":
            return "segmentation", int(match[1])
    return None, -1
