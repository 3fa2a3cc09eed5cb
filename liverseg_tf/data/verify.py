"""`verify`: reads every file of a data set completely and lists errors and doubts."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from liverseg_tf.data.cases import CaseFiles, VolumeFile, find_files, no_volumes, read_patients, skipped
from liverseg_tf.data.nifti import is_nifti_name, read_comment
from liverseg_tf.data.reading import VolumeHeader, open_mask, open_volume
from liverseg_tf.data.volume import Geometry, check_same_grid, check_same_voxels, doubt_about_hu
from liverseg_tf.errors import ConfigError, LiverSegError
from liverseg_tf.hounsfield import AIR_HU, BODY_HU
from liverseg_tf.labels import BACKGROUND, LIVER, LIVER_CLASSES, TUMOUR, ClassSet, to_labels
from liverseg_tf.wording import counted, readable

SEVERITIES = ("error", "warning")
# Between neighbouring pixels, and between slices.
PLAUSIBLE_SPACING_MM = ((0.2, 4.0), (0.2, 10.0))
# In a downsampled CT few pixels cover the body, so coarser pixels are plausible, and thicker slices too.
_WIDEST_BODY_MM, _SLICES_TO_PIXELS = 600.0, 6.0
# The liver's centre of mass lies about a fifth of the body's width to the right of its middle.
_LEFT_SHARE = 0.05
_TRAINED_PHASE = "portal venous"
# Files that are read at the same time may take this share of the machine's memory.
_MEMORY_SHARE, _MEMORY_UNKNOWN_BYTES = 0.25, 2 << 30

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Finding:
    """Something wrong or doubtful.

    Attributes:
        severity: "error" if the data can't be used unchanged, or "warning".
        kind: one of file, series, phase, pair, shape, affine, labels, spacing, orientation, intensities, padding,
            tumour, duplicate, patients.
        case: the case's number, or None.
        path: the file, or None.
        message: one line.
    """

    severity: str
    kind: str
    case: int | None
    path: str | None
    message: str


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        cases: a row for each case: files, shape (rows, columns, slices), spacing, orientation, voxels of each class; of
            a DICOM series also its UID, kernel, phase and tilt.
        findings: errors first, each severity in the order of the cases.
        patients: number of patients.
    """

    cases: list[dict[str, Any]]
    findings: list[Finding]
    patients: int

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "warning"]

    def to_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists and numbers."""
        return {
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "patients": self.patients,
            "findings": [asdict(finding) for finding in self.findings],
            "cases": self.cases,
        }

    def __repr__(self) -> str:
        return (
            f"Verification({counted(len(self.cases), 'case')}, {counted(self.patients, 'patient')}: "
            f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')})"
        )


def verify(
    *folders: str | Path,
    patients: str | Path | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    classes: ClassSet | None = None,
) -> Verification:
    """Check a data set before training, prediction or scoring. Every file is read completely.

    A DICOM series must have one grid, even steps without gaps, duplicates that are equal in each pixel, and pixels that
    are present and can be decoded. A tilted gantry is a warning, and so is another contrast phase than that of the
    shipped models' training data.

    Args:
        folders: as in `find_cases`; also single CTs and masks of any name, and .zip archives of DICOM.
        patients: CSV file with the columns `id,patient`.
        max_bytes: memory limit of a volume in bytes; see `CTVolume.load`.
        threads: number of cases read at a time, if memory allows; by default one per CPU.
        progress: called with the number of cases done, their total, and the name of the last.
        classes: what the masks hold; by default the classes that `predict` stored in each mask, else liver and
            tumour.

    Returns:
        The findings. Data without errors can be used for training; warnings should be looked at.

    Raises:
        InputFileError: if a folder is missing, or `patients` can't be read.
        CaseError: if the folders hold no CT.
        ConfigError: for fewer than one thread.

    Examples:
        >>> verify("LiTS").errors
        []
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: expected at least 1. Received: {threads}")
    groups = read_patients(patients) if patients is not None else {}
    files = find_files(*folders, files=True)
    if not files.volumes and not files.masks and not files.unusable:
        raise no_volumes(folders, 0, files.left_out)
    findings = [*_unusable(files), *_pairing(files), *_grouping(files, groups, patients)]
    numbers = sorted({*files.volumes, *files.masks})
    checks = [
        _CaseCheck(number, volume, mask, max_bytes, classes)
        for number in numbers
        for volume, mask in _pairs(files.volumes.get(number, []), files.masks.get(number, []))
    ]
    memory = _Memory(_memory_bytes())
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, "verify") as pool:
        running = {pool.submit(check.run, memory): check for check in checks}
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                if progress is not None:
                    progress(done, len(checks), running[future].name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    findings += [finding for check in checks for finding in check.findings]
    findings += _duplicates(checks, groups)
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.case is None, f.case or 0))
    owners = files.patients(groups) or {number: groups.get(number, str(number)) for number in files.masks}
    return Verification([check.row for check in checks], findings, len(set(owners.values())))


def _pairs(volumes: list[VolumeFile], masks: list[Path]) -> Iterator[tuple[VolumeFile | None, Path | None]]:
    """Each file once; the first volume and the first mask of a number are paired."""
    for index in range(max(len(volumes), len(masks))):
        yield volumes[index] if index < len(volumes) else None, masks[index] if index < len(masks) else None


def _pairing(files: CaseFiles) -> Iterator[Finding]:
    for kind, number, paths in files.duplicates():
        listed = ", ".join(map(str, paths))
        message = f"{files.named(kind, number)} is there {len(paths)} times: {listed}; keep one"
        yield Finding("error", "pair", number, str(paths[0]), message)
    for number in sorted(set(files.masks) - set(files.volumes)):
        path = str(files.masks[number][0])
        yield Finding("warning", "pair", number, path, f"{path}: has no CT here and is left out")
    if files.masks:
        for number in sorted(set(files.volumes) - set(files.masks)):
            path = str(files.volumes[number][0])
            yield Finding("warning", "pair", number, path, f"{path}: has no mask, so training and scoring leave it out")
    if files.others:
        yield Finding("warning", "pair", None, str(files.others[0]), skipped(files.others))


def _unusable(files: CaseFiles) -> Iterator[Finding]:
    for path, problem in files.unusable:
        yield Finding("error", "series", None, str(path), f"{path}: {problem}")
    if files.left_out:
        message = f"DICOM images are left out that are no slices of a CT: {', '.join(files.left_out)}"
        yield Finding("warning", "series", None, None, message)


def _grouping(files: CaseFiles, groups: dict[int, str], path: str | Path | None) -> Iterator[Finding]:
    if path is None:
        return
    for missing, what in (
        (set(files.volumes) - set(groups), "not in the groups file, each counts as its own patient"),
        (set(groups) - set(files.volumes), "of the groups file without a volume here"),
    ):
        if missing:
            listed = ", ".join(map(str, sorted(missing)[:5])) + (", ..." if len(missing) > 5 else "")
            yield Finding(
                "warning", "patients", None, str(path), f"{path}: {counted(len(missing), 'case')} {what}: {listed}"
            )


class _CaseCheck:
    """Checks one volume and its mask."""

    def __init__(
        self, number: int, volume: VolumeFile | None, mask: Path | None, max_bytes: int | None, classes: ClassSet | None
    ):
        self.number, self.mask, self.max_bytes, self.classes = number, mask, max_bytes, classes
        self.volume = volume.path if volume is not None else None
        self.series = volume.series if volume is not None else None
        self.findings: list[Finding] = []
        self.digest: str | None = None
        self.row: dict[str, Any] = {
            "case": number,
            "volume": str(volume) if volume else None,
            "segmentation": str(mask) if mask else None,
        }

    @property
    def name(self) -> str:
        return Path(self.volume or self.mask or "").name

    def run(self, memory: _Memory) -> None:
        volume = self._open(self.volume, lambda path: open_volume(path, self.series, self.max_bytes))
        mask = self._open(self.mask, lambda path: open_mask(path, volume, self.max_bytes))
        if volume is not None and mask is not None and not self._fit(volume, mask):
            mask = None
        needed = sum(2 * file.data_bytes for file in (volume, mask) if file)
        with memory.hold(needed):
            body_column = self._check_volume(volume) if volume else None
            if mask:
                self._check_mask(mask, body_column)

    def _add(self, severity: str, kind: str, path: Path, message: str) -> None:
        message = message if message.startswith(str(path)) else f"{path}: {message}"
        self.findings.append(Finding(severity, kind, self.number, str(path), message))

    def _open(self, path: Path | None, opened: Callable[[Path], VolumeHeader]) -> VolumeHeader | None:
        if path is None:
            return None
        try:
            return opened(path)
        except LiverSegError as error:
            self._add("error", "file", path, str(error))
            return None

    def _read(self, file: VolumeHeader) -> np.ndarray | None:
        try:
            return file.read()
        except LiverSegError as error:
            self._add("error", "file", file.path, str(error))
            return None

    def _fit(self, volume: VolumeHeader, mask: VolumeHeader) -> bool:
        grid, mask_grid = (Geometry(file.shape, file.affine) for file in (volume, mask))
        # two NIfTI files are streamed side by side in training, and must store their axes alike
        both = is_nifti_name(volume.path) and is_nifti_name(mask.path)
        try:
            (check_same_grid if both else check_same_voxels)(grid, mask_grid, (volume.path, mask.path))
        except LiverSegError as error:
            self._add("error", "affine" if volume.shape == mask.shape else "shape", mask.path, str(error))
            return volume.shape == mask.shape
        return True

    def _check_volume(self, file: VolumeHeader) -> float | None:
        """Check a CT; returns the column of the body's centre in the canonical view."""
        geometry = Geometry(file.shape, file.affine)
        self.row |= {
            "shape": geometry.canonical_shape,
            "spacing_mm": [round(s, 4) for s in geometry.spacing_mm],
            "orientation": geometry.axis_codes,
            "dtype": file.dtype.name,
        }
        for kind, doubt in file.doubts:
            self._add("warning", kind, file.path, doubt)
        if file.series is not None:
            known = file.series.to_dict()
            self.row |= {name: known[name] for name in ("series", "description", "kernel", "phase", "tilt_degrees")}
            if file.series.phase not in ("", _TRAINED_PHASE):
                message = (
                    f"its description says {file.series.phase}: the shipped models were trained on {_TRAINED_PHASE} CTs"
                )
                self._add("warning", "phase", file.path, message)
        if geometry.axis_codes[2] not in "IS":
            kind = "sagittal" if geometry.axis_codes[2] in "LR" else "coronal"
            self._add("warning", "orientation", file.path, f"is stored in {kind} slices; slower to train on")
        if geometry.is_identity_affine:
            self._add(
                "warning", "spacing", file.path, "1x1x1 mm without direction: mm, ml and left/right are unreliable"
            )
        for message in _doubts_about_spacing(geometry):
            self._add("warning", "spacing", file.path, message)
        stored = self._read(file)
        if stored is None:
            return None
        digest = hashlib.blake2b(repr((file.shape, file.slope, file.intercept)).encode(), digest_size=16)
        digest.update(stored.reshape(-1, order="F").view(np.uint8).data)
        self.digest = digest.hexdigest()
        self._check_intensities(file, stored)
        self._check_padding(file, stored, geometry)
        with np.errstate(all="ignore"):
            thinned = geometry.to_canonical(stored)[::4, :, ::4] * file.slope + file.intercept
            columns = np.count_nonzero(thinned > BODY_HU, axis=(0, 2))
        return float(np.average(np.arange(len(columns)), weights=columns)) if columns.any() else None

    def _check_intensities(self, file: VolumeHeader, stored: np.ndarray) -> None:
        values = stored
        if stored.dtype.kind == "f":
            values = stored[np.isfinite(stored)]
            if bad := stored.size - values.size:
                self._add(
                    "warning",
                    "intensities",
                    file.path,
                    f"{counted(bad, 'voxel is', 'voxels are')} NaN or infinite, taken as air",
                )
            if not values.size:
                return
        with np.errstate(all="ignore"):
            ends = [float(v) * file.slope + file.intercept for v in (values.min(), values.max())]
        if ends[0] == ends[1]:
            self._add("warning", "intensities", file.path, f"every voxel is {ends[0]:g}: expected a CT in HU")
            return
        doubt = doubt_about_hu(stored, file.slope, file.intercept)
        if doubt:
            self._add("warning", "intensities", file.path, doubt)

    def _check_padding(self, file: VolumeHeader, stored: np.ndarray, geometry: Geometry) -> None:
        """Warn of HU below air, unless they are one value outside the scanned circle, as scanners write it."""
        with np.errstate(all="ignore"):
            outside = np.isfinite(stored) & (stored * file.slope + file.intercept < AIR_HU)
            if not (count := int(np.count_nonzero(outside))):
                return
            values = stored[outside] * file.slope + file.intercept
        lowest = float(values.min())
        within = _scanned_circle(geometry)[..., None] & geometry.to_canonical(outside)
        if lowest < float(values.max()) or within.any():
            message = (
                f"{counted(count, 'voxel lies', 'voxels lie')} below {AIR_HU:g} HU (lowest {lowest:g}), taken as air"
            )
            self._add("warning", "padding", file.path, message)

    def _check_mask(self, file: VolumeHeader, body_column: float | None) -> None:
        stored = self._read(file)
        if stored is None:
            return
        stored_classes = ClassSet.from_json(read_comment(file.path)) if is_nifti_name(file.path) else None
        classes = self.classes or stored_classes or LIVER_CLASSES
        values = stored * file.slope + file.intercept if file.is_scaled else stored
        try:
            labels = to_labels(values, str(file.path), classes.names)
        except LiverSegError as error:
            self._add("error", "labels", file.path, str(error))
            return
        counts = np.bincount(labels.ravel(order="K"), minlength=len(classes))
        self.row["voxels"] = dict(zip(classes.names, counts.tolist(), strict=True))
        geometry = Geometry(file.shape, file.affine)
        labels = classes.organ_part(geometry.to_canonical(labels))
        boxes = ndimage.find_objects((labels != BACKGROUND).view(np.uint8))
        if not boxes:
            return
        if classes.lesion is not None:
            self._check_tumours(file, labels[boxes[0]], classes)
        identity = geometry.is_identity_affine
        if classes.is_liver and body_column is not None and counts[LIVER] and not identity:
            columns = np.count_nonzero(labels == LIVER, axis=(0, 2))
            left = float(np.average(np.arange(len(columns)), weights=columns)) - body_column
            if left > _LEFT_SHARE * len(columns):
                message = "its liver lies on the patient's left: is the orientation in the header right?"
                self._add("warning", "orientation", file.path, message)

    def _check_tumours(self, file: VolumeHeader, labels: np.ndarray, classes: ClassSet) -> None:
        """Find connected components of tumour that touch no liver."""
        if not (labels == TUMOUR).any():
            return
        pieces, count = ndimage.label(labels != BACKGROUND, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        with_liver = np.zeros(count + 1, bool)
        with_liver[np.unique(pieces[labels == LIVER])] = True
        alone = sizes[1:][~with_liver[1:]]
        if alone.size:
            what = counted(alone.size, "piece") + f" of {readable(classes.lesion or 'lesion')}"
            if classes == LIVER_CLASSES:
                what = counted(alone.size, "tumour")
            message = (
                f"{what} of {counted(int(alone.sum()), 'voxel')} {'touches' if alone.size == 1 else 'together touch'} "
                f"no {readable(classes.organ)}"
            )
            self._add("warning", "tumour", file.path, message)


def _doubts_about_spacing(geometry: Geometry) -> Iterator[str]:
    in_plane, between = PLAUSIBLE_SPACING_MM
    rows, columns, _ = geometry.canonical_shape
    most = (_WIDEST_BODY_MM / rows, _WIDEST_BODY_MM / columns, _SLICES_TO_PIXELS * min(geometry.spacing_mm[:2]))
    for axis, spacing, (low, high), reduced in zip(
        ("rows", "columns", "slices"), geometry.spacing_mm, (in_plane, in_plane, between), most, strict=True
    ):
        if not low <= spacing <= max(high, reduced):
            yield f"{spacing:g} mm between {axis}: expected {low:g} to {high:g}"


def _scanned_circle(geometry: Geometry) -> np.ndarray:
    """(rows, columns) bool: pixels within the circle that a scanner reconstructs, but for its edge."""
    sides_mm = [count * mm for count, mm in zip(geometry.canonical_shape[:2], geometry.spacing_mm, strict=False)]
    radius_mm = max(sides_mm) / 2 - max(geometry.spacing_mm[:2])
    y, x = (
        (np.arange(count) - (count - 1) / 2) * mm
        for count, mm in zip(geometry.canonical_shape[:2], geometry.spacing_mm, strict=False)
    )
    return y[:, None] ** 2 + x**2 < radius_mm**2


def _duplicates(checks: list[_CaseCheck], groups: dict[int, str]) -> Iterator[Finding]:
    counted = Counter(check.digest for check in checks if check.digest)
    for digest, count in counted.items():
        if count < 2:
            continue
        same = [check for check in checks if check.digest == digest]
        listed = ", ".join(str(check.volume) for check in same)
        patients = {groups.get(check.number, str(check.number)) for check in same}
        advice = "keep one" if len(patients) == 1 else "keep one, or give them one patient: a split may separate them"
        yield Finding(
            "warning", "duplicate", same[0].number, str(same[0].volume), f"{listed}: hold the same voxels; {advice}"
        )


class _Memory:
    """Limits the bytes that threads hold together; a thread that needs more than the limit runs alone."""

    def __init__(self, size: int):
        self._size, self._held, self._changed = size, 0, threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + count <= self._size)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()


def _memory_bytes() -> int:
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY_SHARE)
    except (AttributeError, ValueError, OSError):
        return _MEMORY_UNKNOWN_BYTES
