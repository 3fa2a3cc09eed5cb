"""Finding volumes and masks, pairing them, and splitting them by patient."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liverseg_tf.data.nifti import is_nifti_name, stem
from liverseg_tf.data.reading import format_of, is_volume_name
from liverseg_tf.errors import CaseError, ConfigError, DataWarning, InputFileError, MissingDependencyError, warn
from liverseg_tf.files import is_hidden
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.wording import counted

if TYPE_CHECKING:
    from liverseg_tf.data.dicom.files import DicomFile
    from liverseg_tf.data.dicom.series import DicomSeries
    from liverseg_tf.data.volume import CTVolume, MaskVolume
    from liverseg_tf.labels import ClassSet

# LiTS: volume-7, segmentation-7. Medical Segmentation Decathlon: imagesTr/liver_7, labelsTr/liver_7.
_NUMBER = r"(\d{1,18})"  # fits 64 bits
_LITS_NAME = re.compile(rf"(volume|segmentation)-{_NUMBER}", re.IGNORECASE)
_DECATHLON_NAME = re.compile(rf"[a-z]+_{_NUMBER}", re.IGNORECASE)
_NUMBERED_NAME = re.compile(rf"(?:(?:volume|segmentation)-|[a-z]+_){_NUMBER}(?:[._]seg)?", re.IGNORECASE)
# `predict` appends _seg, and _seg_entropy and the like to maps; 3D Slicer appends .seg
_MASK_NAME = re.compile(r"segmentation-.*|.*[._]seg(_[a-z]+)*", re.IGNORECASE)
_MASK_FOLDERS = ("labelstr", "labelsts")


@dataclass(frozen=True)
class Case:
    """One CT, with its mask if it has one.

    Attributes:
        id: number in the file's name.
        patient: the patient's name; splits, folds and bootstraps group by it.
        volume: the CT.
        segmentation: its mask, or None for a case to predict.
        series: the DICOM series, if the CT is one, in the folder or archive `volume`; else None.

    Examples:
        >>> Case(7, "7", Path("volume-7.nii.gz")).segmentation is None
        True
    """

    id: int
    patient: str
    volume: Path
    segmentation: Path | None = None
    series: DicomSeries | None = field(default=None, compare=False, repr=False)

    @property
    def files(self) -> list[Path]:
        """The CT's files, and the mask if there is one."""
        volume = [self.volume]
        if self.series is not None:
            volume = list(dict.fromkeys(image.file.path for image in self.series.images))
        return volume if self.segmentation is None else [*volume, self.segmentation]

    def load_volume(self, hu_range: tuple[float, float] | None = HU_RANGE) -> CTVolume:
        """Read the CT; see `CTVolume.load`."""
        from liverseg_tf.data.volume import CTVolume

        return CTVolume.load(self.volume, hu_range=hu_range, series=self.series)

    def load_mask(self, volume: CTVolume, classes: ClassSet | None = None) -> MaskVolume:
        """Read the mask, on the CT's grid.

        Raises:
            CaseError: if the case has no mask.
            GeometryError: if the mask is on another grid than the CT.
            InputFileError, LabelError: as `MaskVolume.load`.
        """
        from liverseg_tf.data.volume import MaskVolume, check_same_voxels

        if self.segmentation is None:
            raise CaseError(f"case {self.id}: expected a mask, it has none")
        mask = MaskVolume.load(self.segmentation, classes=classes, like=volume)
        check_same_voxels(volume.geometry, mask.geometry, (self.volume, self.segmentation))
        return mask


def find_cases(*folders: str | Path, patients: str | Path | None = None) -> list[Case]:
    """Find CTs and masks in folders and pair them by number.

    Recognised are LiTS's names (`volume-7.nii`, `segmentation-7.nii`, also .nii.gz) in any sub-folder, and the Medical
    Segmentation Decathlon's layout (`imagesTr/liver_7.nii.gz`, `labelsTr/liver_7.nii.gz`, `imagesTs/...`); NRRD and
    MetaImage files have the same names. Every usable DICOM CT series is a case: its mask is the DICOM SEG that refers
    to it, or a file named `segmentation-7` for the folder `volume-7`, or `<folder>_seg`. A series whose folder is not
    named `volume-<number>` gets a number computed from its UID. Series with one PatientID belong to one patient. Hidden
    files and folders are skipped.

    Args:
        folders: any number of folders, searched recursively; volumes and masks may lie in different ones.
        patients: CSV file with the columns `id,patient`; each case not in it is its own patient.

    Returns:
        Cases in the order of their numbers.

    Raises:
        InputFileError: if a folder is missing.
        CaseError: if no volume is found, or two files have the same number.

    Warns:
        DataWarning: for masks without a volume, DICOM series and SEGs that can't be used, and files whose names or
            codes say neither CT nor mask.

    Examples:
        >>> [(case.id, case.volume.name, case.segmentation.name) for case in find_cases("LiTS")]
        [(0, 'volume-0.nii.gz', 'segmentation-0.nii.gz'), (1, 'volume-1.nii.gz', 'segmentation-1.nii.gz')]
    """
    found = find_files(*folders)
    for kind, number, paths in found.duplicates():
        what = found.named(kind, number)
        raise CaseError(
            f"{what} is there twice: {paths[0]} and {paths[1]}; remove one or move it elsewhere, or name fewer folders"
        )
    volumes = {number: files[0] for number, files in found.volumes.items()}
    masks = {number: paths[0] for number, paths in found.masks.items()}
    for path, problem in found.unusable:
        warn(f"{path}: {problem}", DataWarning)
    if found.others:
        warn(skipped(found.others), DataWarning)
    if not volumes:
        raise no_volumes(folders, len(masks), found.left_out)
    orphans = sorted(set(masks) - set(volumes))
    if orphans:
        listed = ", ".join(str(masks[n]) for n in orphans[:5]) + (", ..." if len(orphans) > 5 else "")
        few = counted(len(orphans), "mask has no volume and is", "masks have no volume and are")
        warn(f"{few} left out: {listed}", DataWarning)
    groups = read_patients(patients) if patients is not None else {}
    patients_of = found.patients(groups)
    return [Case(n, patients_of[n], volumes[n].path, masks.get(n), volumes[n].series) for n in sorted(volumes)]


@dataclass(frozen=True)
class VolumeFile:
    """A CT: a file, or a DICOM series and the folder or archive that holds it."""

    path: Path
    series: DicomSeries | None = None

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class CaseFiles:
    """CTs and masks by the number in their name, or computed from a DICOM series' UID.

    Attributes:
        volumes, masks: number -> files that have it; more than one is a mistake.
        others: files whose names have no number or kind.
        unusable: paths of DICOM series and files that can't be used, and why.
        left_out: kinds of DICOM series that are no CT slices (localizers, derived images), each once.
    """

    volumes: dict[int, list[VolumeFile]] = field(default_factory=dict)
    masks: dict[int, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def duplicates(self) -> Iterator[tuple[str, int, list[Path]]]:
        """Kind, number and paths of volumes or masks with the same number."""
        for number, volumes in self.volumes.items():
            if len(volumes) > 1:
                yield "volume", number, [volume.path for volume in volumes]
        for number, paths in self.masks.items():
            if len(paths) > 1:
                yield "segmentation", number, paths

    def named(self, kind: str, number: int) -> str:
        """Its name in messages: `volume 7`, or `mask of series 1.2.3` if the number is computed from its UID."""
        series = self.volumes[number][0].series if number in self.volumes else None
        if series is None or not series.uid or number != _number_of(series.uid):
            return f"{kind} {number}"
        return f"{'mask of ' if kind == 'segmentation' else ''}series {series.uid}"

    def patients(self, groups: dict[int, str]) -> dict[int, str]:
        """Patient of each volume: from the groups file, else the first of the series with the same PatientID."""
        first: dict[str, int] = {}
        found = {}
        for number in sorted(self.volumes):
            series = self.volumes[number][0].series
            digest = series.patient_digest if series is not None else ""
            own = first.setdefault(digest, number) if digest else number
            found[number] = groups.get(number, str(own))
        return found


def find_files(*folders: str | Path, files: bool = False) -> CaseFiles:
    """Find the files that `find_cases` pairs, including duplicates.

    Args:
        folders: searched recursively.
        files: also accept single files: volumes or masks of any name, and .zip archives of DICOM.

    Raises:
        InputFileError: if a folder is missing.
        CaseError: if no folder is named.
    """
    if not folders:
        raise CaseError("expected at least one folder to search, got none")
    found = CaseFiles()
    seen: set[Path] = set()
    named: dict[str, int] = {}
    segs: list[DicomFile] = []
    for folder in map(Path, folders):
        if not folder.is_dir() and not (files and folder.exists()):
            what = "got a file" if folder.exists() else "there is none"
            raise InputFileError(f"{folder}: expected a folder of CTs, {what}; check the path")
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                is_volume = is_volume_name(path) and path.is_file() and not is_hidden(path, folder)
                if is_volume and path.resolve() not in seen:  # overlapping folders give no duplicates
                    seen.add(path.resolve())
                    _add_file(found, path, *_kind_and_number(path))
        elif format_of(folder) != "dicom":
            kind, number = _kind_and_number(folder)
            number = _number_of(str(folder.resolve())) if kind is None else number
            _add_file(found, folder, kind or ("segmentation" if is_mask_name(folder) else "volume"), number)
            continue
        named |= _add_dicom(found, folder, seen, segs)
    _add_segmentations(found, segs, seen)  # their series may lie in a folder that was named later
    for path in [path for path in found.others if stem(path).removesuffix("_seg") in named]:
        if stem(path).endswith("_seg"):  # as `predict` names the mask of a series
            found.others.remove(path)
            found.masks[named[stem(path).removesuffix("_seg")]] = [path]  # the same mask as the SEG, or preferred to it
    return found


def _add_file(found: CaseFiles, path: Path, kind: str | None, number: int) -> None:
    if kind is None:
        found.others.append(path)
    elif kind == "volume":
        found.volumes.setdefault(number, []).append(VolumeFile(path))
    else:
        found.masks.setdefault(number, []).append(path)


def _add_dicom(found: CaseFiles, given: Path, seen: set[Path], segs: list[DicomFile]) -> dict[str, int]:
    """Add DICOM series, and SEGs to `segs`; returns the names that `predict` gives the series, and their numbers."""
    from liverseg_tf.data.dicom.series import find_series, named_series

    try:
        there = find_series(given)
    except MissingDependencyError as error:
        if not found.volumes and not found.masks:
            raise
        found.unusable.append((given, f"holds DICOM files, which are left out ({error})"))
        return {}
    new = [one for one in there.series if not one.images or one.images[0].file.path.resolve() not in seen]
    usable = [one for one in new if one.is_usable]
    seen.update(image.file.path.resolve() for one in new for image in one.images if image.file.member is None)
    found.unusable.extend((Path(one.folder), f"series {one.number}: {one.problem}") for one in new if one.problem)
    found.unusable.extend((file.path, f"{file.name} {why}") for file, why in there.broken)
    kinds = {one.left_out for one in new if one.left_out and one.modality != "SEG"}
    found.left_out.extend(sorted(kinds - set(found.left_out)))
    names = {}
    for name, series in named_series(given, usable):
        path = Path(series.folder) if given.is_dir() else given
        alone = sum(other.folder == series.folder for other in usable) == 1
        match = _LITS_NAME.fullmatch(stem(path))
        number = int(match[2]) if match and alone else _number_of(series.uid or series.folder)
        found.volumes.setdefault(number, []).append(VolumeFile(path, series))
        names[name] = number
    segs.extend(there.segmentations)
    return names


def _add_segmentations(found: CaseFiles, segs: Sequence[DicomFile], seen: set[Path]) -> None:
    """Add DICOM SEGs as masks of the series that they refer to, else by their names; list those that can't be used."""
    from liverseg_tf.data.dicom.segmentation import reference_and_content

    known = {f.series.uid: n for n, files in found.volumes.items() for f in files if f.series is not None}
    for file in segs:
        if file.member is not None:
            found.unusable.append((file.path, f"{file.name} in it is a SEG; unpack it, to use it as a mask"))
            continue
        if file.path.resolve() in seen:
            continue
        seen.add(file.path.resolve())
        try:
            series, holds_liver = reference_and_content(file.path)
        except InputFileError as error:
            found.unusable.append((file.path, f"is a SEG, and {error}; copy or export it again"))
            continue
        kind, number = _kind_and_number(file.path)
        if kind is None:  # a SEG of no series here is a mask without a volume
            number = _number_of(str(file.path.resolve()))
        number = known.get(series, number)
        if not holds_liver:
            found.others.append(file.path)
        elif not any(is_nifti_name(path) for path in found.masks.get(number, ())):  # `predict` writes a mask as both
            found.masks.setdefault(number, []).append(file.path)


def _number_of(name: str) -> int:
    """A number computed from a name or UID; two names with the same number are very unlikely."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)


def skipped(paths: Sequence[Path]) -> str:
    """The sentence about files that are neither CT nor mask."""
    listed = ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return f"{counted(len(paths), 'file is', 'files are')} skipped, no CT or mask by name or codes: {listed}"


def no_volumes(folders: Sequence[str | Path], masks: int, left_out: Sequence[str] = ()) -> CaseError:
    """The error for folders without a CT."""
    sep, but = ", ", f" but {counted(masks, 'mask')}" if masks else ""
    return CaseError(
        f"{', '.join(map(str, folders))}: expected CTs named volume-<number>.nii or .nii.gz (LiTS) or "
        f"imagesTr/<name>_<number>.nii.gz (Medical Segmentation Decathlon), or DICOM series, got none"
        f"{but}{f'; left out: {sep.join(left_out)}' if left_out else ''}"
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
    return int(match[1]) if match else None


def is_mask_name(path: str | Path) -> bool:
    """Tell whether a file's name or folder says that it is a mask or a map of `predict`.

    Examples:
        >>> names = "segmentation-7.nii.gz", "labelsTr/liver_7.nii", "x_seg.nii", "x_seg_entropy.nii", "x.seg.nrrd"
        >>> [is_mask_name(name) for name in (*names, "x.nii.gz", "imagesTr/liver_7.nii")]
        [True, True, True, True, True, False, False]
    """
    return bool(_MASK_NAME.fullmatch(stem(path))) or Path(path).parent.name.lower() in _MASK_FOLDERS


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

    Examples:
        >>> cases = [Case(number, f"patient {number // 2}", Path(f"volume-{number}.nii")) for number in range(6)]
        >>> training, validation = split_by_patient(cases, validation_fraction=0.3)
        >>> len(training), len(validation)
        (4, 2)
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

    Args:
        cases: at least `folds` patients.
        folds: number of pairs, at least 2.
        seed: any integer of at least 0; the same seed gives the same folds.

    Returns:
        (training cases, validation cases) of each fold, in the order of `cases`.

    Raises:
        CaseError: if there are fewer patients than folds.
        ConfigError: for fewer than two folds.

    Examples:
        >>> cases = [Case(number, f"patient {number // 2}", Path(f"volume-{number}.nii")) for number in range(6)]
        >>> [len(validation) for _, validation in folds_by_patient(cases, folds=3)]
        [2, 2, 2]
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
        raise CaseError(
            "expected cases with masks (segmentation-<number>.nii or .nii.gz, or a DICOM SEG of the series), got none "
            "with one"
        )
    return labelled


def _shuffled_patients(cases: Sequence[Case], seed: int) -> list[str]:
    patients = sorted({case.patient for case in cases})
    np.random.default_rng(seed).shuffle(patients)
    return patients


def _divide(cases: Sequence[Case], validation: set[str]) -> tuple[list[Case], list[Case]]:
    return [c for c in cases if c.patient not in validation], [c for c in cases if c.patient in validation]


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
