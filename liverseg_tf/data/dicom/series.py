"""The CT series among DICOM files: grouped, ordered by position, and checked for gaps before any pixel is read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.data.dicom.files import DicomFile, files_of
from liverseg_tf.data.dicom.headers import DicomHeader, DicomImage, HeaderError, read_header
from liverseg_tf.data.nifti import stem
from liverseg_tf.errors import InputFileError
from liverseg_tf.wording import counted

# Steps between slices may differ by this much: a share of the step, or the rounding of positions to 0.01 mm.
STEP_TOLERANCE = 0.01
ROUNDING_MM = 0.02
_TILT_DEGREES = 0.5
# A pair of slices further apart than this many thicknesses has something missing between.
_MOST_THICKNESSES = 2.5
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """Images of one series on one grid, in the order of their positions.

    Attributes:
        path: the folder, file or archive that was searched.
        uid, study_uid, frame_of_reference_uid: of the series; "" where they are missing.
        number: SeriesNumber, or None.
        patient_digest, modality, description, kernel, phase: as `DicomHeader` has them.
        shape: rows, columns.
        bits_stored, is_signed, padding, transfer_syntax: of the stored pixels.
        images: along the normal of the slices, ascending; duplicates included.
        folder: of its first file.
        left_out: what it is if it is left out by default (a localizer, derived images), else ""; derived images can be
            picked by UID.
        problem: why it can't be used, or "".
        is_uneven: True if the problem is gaps or uneven steps alone, which resampling can bridge.
    """

    path: Path
    uid: str
    study_uid: str
    frame_of_reference_uid: str
    number: int | None
    patient_digest: str
    modality: str
    description: str
    kernel: str
    phase: str
    shape: tuple[int, int]
    bits_stored: int
    is_signed: bool
    padding: tuple[int, int] | None
    transfer_syntax: str
    images: tuple[DicomImage, ...]
    folder: str
    left_out: str = ""
    problem: str = ""
    is_uneven: bool = False

    @property
    def is_usable(self) -> bool:
        return not self.left_out and not self.problem

    @property
    def orientation(self) -> np.ndarray:
        """(6,) float64, along a row and a column, LPS+."""
        return self.images[0].orientation

    @property
    def normal(self) -> np.ndarray:
        """(3,) float64, along which slices are ordered, LPS+."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @cached_property
    def places(self) -> list[list[DicomImage]]:
        """Images by place; more than one where a slice has a duplicate."""
        return _by_place(self.images)

    @property
    def positions_mm(self) -> np.ndarray:
        """(slices, 3) float64, LPS+, without duplicates."""
        return np.array([images[0].position_mm for images in self.places])

    @property
    def step_mm(self) -> np.ndarray:
        """(3,) float64, from one slice to the next, LPS+; not along the normal if the gantry was tilted."""
        positions = self.positions_mm
        if len(positions) > 1:
            return (positions[-1] - positions[0]) / (len(positions) - 1)
        return self.normal * (self.images[0].thickness_mm or 1.0)

    @property
    def tilt_degrees(self) -> float:
        """Angle between the step and the normal of the slices."""
        step = self.step_mm
        return float(np.degrees(np.arccos(np.clip(step @ self.normal / np.linalg.norm(step), -1, 1))))

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64: (column, row, slice) to mm in RAS+ coordinates; sheared if the gantry was tilted."""
        affine = np.eye(4)
        row_mm, column_mm = self.images[0].spacing_mm
        affine[:3, 0] = self.orientation[:3] * column_mm
        affine[:3, 1] = self.orientation[3:] * row_mm
        affine[:3, 2] = self.step_mm
        affine[:3, 3] = self.positions_mm[0]
        return _LPS_TO_RAS @ affine

    def to_dict(self) -> dict[str, Any]:
        """What `liverseg series` prints of it; JSON, without dates and names."""
        known = bool(self.images)
        return {
            "series": self.uid,
            "study": self.study_uid,
            "number": self.number,
            "modality": self.modality,
            "description": self.description,
            "slices": len(self.places) if known else 0,
            "rows": self.shape[0],
            "columns": self.shape[1],
            "spacing_mm": [*self.images[0].spacing_mm, float(np.linalg.norm(self.step_mm))] if known else None,
            "tilt_degrees": round(self.tilt_degrees, 2) if known else None,
            "kernel": self.kernel,
            "phase": self.phase,
            "folder": self.folder,
            "usable": self.is_usable,
            "reason": self.problem or self.left_out,
        }


@dataclass(frozen=True, eq=False)
class Found:
    """What lies at a path.

    Attributes:
        path: that was searched.
        series: of CT and other images, in the order of their folders, numbers and UIDs.
        broken: DICOM files that can't be assigned to a series, and why.
        other_files: number of files that are not DICOM.
        directories: number of DICOMDIR files, which are not followed.
        segmentations: DICOM SEG files.
    """

    path: Path
    series: tuple[DicomSeries, ...]
    broken: tuple[tuple[DicomFile, str], ...] = ()
    other_files: int = 0
    directories: int = 0
    segmentations: tuple[DicomFile, ...] = ()

    @property
    def usable(self) -> list[DicomSeries]:
        return [series for series in self.series if series.is_usable]


@dataclass
class _Group:
    headers: list[DicomHeader] = field(default_factory=list)


def find_series(path: str | Path, max_bytes: int | None = None, progress: Callable[[int], None] | None = None) -> Found:
    """Find the DICOM series at or below a path; reads headers, no pixels.

    Images are grouped by series, orientation, matrix, pixel spacing and frame of reference, and ordered by position
    along the slices' normal. A series that can't be used says why (`problem`, `left_out`).

    Args:
        path: a folder, one file, or a .zip archive; files need no particular name.
        max_bytes: most bytes that an archive may expand to; see `max_bytes_limit`.
        progress: called with the number of files seen.

    Returns:
        The series, usable or not, and the files that could not be read.

    Raises:
        InputFileError: if the path is missing, or an archive can't be read.
        MissingDependencyError: if pydicom is missing.

    Examples:
        >>> [(series.description, series.shape, len(series.images)) for series in find_series("study").usable]
        [('Abdomen', (64, 64), 12)]
    """
    path = Path(path)
    groups: dict[str, list[DicomHeader]] = {}
    broken: list[tuple[DicomFile, str]] = []
    others = directories = 0
    for count, file in enumerate(files_of(path, max_bytes), 1):
        if progress is not None:
            progress(count)
        try:
            if not file.looks_like_dicom():
                if Path(file.name).suffix.lower() == ".dcm":
                    raise HeaderError("is named .dcm and holds something else, or was cut at its start")
                others += 1
                continue
            header = read_header(file)
        except HeaderError as error:
            broken.append((file, str(error)))
        except Exception as error:  # a damaged archive, or a file that went away
            broken.append((file, f"can't be read ({type(error).__name__})"))
        else:
            if header is None:
                directories += 1
            else:
                # files that have lost their UIDs are grouped by folder
                groups.setdefault(header.series_uid or file.folder, []).append(header)
    series = [found for headers in groups.values() for found in _series(path, headers)]
    series = [_beside_broken(found, broken) for found in series]
    series.sort(key=lambda found: (found.folder, found.number if found.number is not None else -1, found.uid))
    segs = tuple(header.file for headers in groups.values() for header in headers if header.modality == "SEG")
    return Found(path, tuple(series), tuple(broken), others, directories, segs)


def pick_series(found: Found, uid: str | None = None, *, allow_gaps: bool = False) -> DicomSeries:
    """The one usable series, or the one with a given UID.

    Args:
        found: what `find_series` gave.
        uid: the series' UID; needed where several are usable. Derived images can be picked so too.
        allow_gaps: take one whose only problem is gaps or uneven steps.

    Raises:
        InputFileError: if there is no such series, if there are several, or if it can't be used, with the reason.
    """
    candidates = [series for series in found.series if uid is None or series.uid == uid]
    if uid is not None:
        if not candidates:
            raise InputFileError(f"{found.path}: holds no series {uid}; 'liverseg series {found.path}' lists them")
        candidates = [replace(s, left_out="") if s.left_out.startswith("derived") else s for s in candidates]
    usable = [s for s in candidates if s.is_usable or (allow_gaps and s.is_uneven and not s.left_out)]
    if len(usable) == 1:
        return usable[0]
    if usable:
        listed = "; ".join(
            f"{s.uid or f'without UID in {s.folder}'} ({s.description or 'no description'}, "
            f"{counted(len(s.places), 'slice')})"
            for s in usable[:5]
        )
        raise InputFileError(
            f"{found.path}: holds {len(usable)} CT series, expected one: {listed}; pick one with series="
        )
    raise InputFileError(f"{found.path}: {why_nothing(found, candidates)}")


def doubts_about_series(series: DicomSeries) -> list[tuple[str, str]]:
    """What deserves a look in a usable series: `duplicate` or `orientation`, and a text; no pixels are read."""
    doubts = []
    if doubles := len(series.images) - len(series.places):
        twice = counted(doubles, "slice is", "slices are")
        text = f"{twice} there twice; one of each is used if their pixels are equal"
        doubts.append(("duplicate", text))
    if not series.is_uneven and series.tilt_degrees > _TILT_DEGREES:
        text = f"the gantry was tilted by {series.tilt_degrees:.1f} degrees; its sheared grid is kept"
        doubts.append(("orientation", text))
    return doubts


def named_series(path: Path, usable: Sequence[DicomSeries]) -> list[tuple[str, DicomSeries]]:
    """Series with the names that their masks get: the folder's or archive's; several are distinguished by a hash."""
    in_folder = Counter(one.folder for one in usable)
    named = []
    for one in usable:
        name = stem(path)
        if path.is_dir():
            name = "_".join(Path(one.folder).relative_to(path).parts) or Path(os.path.abspath(path)).name
        if in_folder[one.folder] > 1 or (not path.is_dir() and len(usable) > 1):
            name += f"_{hashlib.sha256(one.uid.encode()).hexdigest()[:8]}"
        named.append((name, one))
    return named


def why_nothing(found: Found, candidates: Sequence[DicomSeries] | None = None) -> str:
    """Why no series at a path can be used, in one line."""
    series = found.series if candidates is None else candidates
    reasons = [f"series {s.number if s.number is not None else s.uid}: {s.problem}" for s in series if s.problem]
    reasons += [f"{file.name} {reason}" for file, reason in found.broken[:3]]
    left = sorted({s.left_out for s in series if s.left_out and not s.problem})
    if left:
        reasons.append(f"left out: {', '.join(left)}")
    if found.directories and not found.series:
        reasons.append("a DICOMDIR lists files that lie elsewhere; name the folder that holds them")
    if not reasons:
        count = found.other_files
        return f"expected DICOM files of a CT, got none{f' among {count} files' if count else ', it is empty'}"
    return f"expected a whole CT series, got none; {'; '.join(reasons[:4])}{'; ...' if len(reasons) > 4 else ''}"


def _series(path: Path, headers: list[DicomHeader]) -> list[DicomSeries]:
    """What the files of one series UID hold: at most one series that may be usable, and what is left out."""
    groups: dict[Any, list[DicomHeader]] = {}
    for header in headers:
        if header.kind:
            groups.setdefault((header.kind,), []).append(header)
    slices = [header for header in headers if not header.kind]
    unread = [header for header in slices if header.problem]
    by_grid: dict[Any, list[tuple[DicomHeader, DicomImage]]] = {}
    for header in slices:
        for image in header.images:
            key = (
                header.shape,
                header.frame_of_reference_uid,
                tuple(np.round(image.orientation, 3) + 0.0),
                tuple(np.round(image.spacing_mm, 4)),
            )
            by_grid.setdefault(key, []).append((header, image))
    found = [_made(path, group, (), kind[0], "") for kind, group in groups.items()]
    if unread:
        first = unread[0]
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        problem = f"{first.file.name}{more} {first.problem}; copy or export the series again"
        found.append(_made(path, slices, [i for h in slices for i in h.images], "", problem))
    elif len(by_grid) > 1:
        sizes = ", ".join(str(len(images)) for images in sorted(by_grid.values(), key=len, reverse=True))
        problem = (
            f"mixes {len(by_grid)} grids ({sizes} images) that differ in orientation, matrix, pixel spacing or "
            "frame of reference; export them as series of their own"
        )
        found.append(_made(path, slices, [image for h in slices for image in h.images], "", problem))
    elif by_grid:
        (pairs,) = by_grid.values()
        found.append(_ordered(path, [header for header, _ in pairs], [image for _, image in pairs]))
    return found


def _made(path: Path, headers: Sequence[DicomHeader], images, left_out: str, problem: str) -> DicomSeries:
    first = headers[0]
    return DicomSeries(
        path=path,
        uid=first.series_uid,
        study_uid=first.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        number=first.number,
        patient_digest=first.patient_digest,
        modality=first.modality,
        description=first.description,
        kernel=first.kernel,
        phase=first.phase,
        shape=first.shape,
        bits_stored=first.bits_stored,
        is_signed=first.is_signed,
        padding=first.padding,
        transfer_syntax=first.transfer_syntax,
        images=tuple(images),
        folder=first.file.folder,
        left_out=left_out,
        problem=problem,
    )


def _ordered(path: Path, headers: list[DicomHeader], images: list[DicomImage]) -> DicomSeries:
    row, column = images[0].orientation[:3], images[0].orientation[3:]
    normal = np.cross(row, column)
    images = sorted(images, key=lambda image: (float(normal @ image.position_mm), image.file.name, image.frame or 0))
    problem = ""
    stored = {(h.bits_stored, h.is_signed, h.padding) for h in headers}
    if len(stored) > 1:
        problem = "its slices store their pixels in different ways (bits, sign or padding value)"
    series = _made(path, headers, images, "", problem)
    uneven = "" if problem else _uneven(series)
    return replace(series, problem=problem or uneven, is_uneven=bool(uneven))


def _by_place(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    places: list[list[DicomImage]] = []
    for image in images:
        if places and np.allclose(places[-1][0].position_mm, image.position_mm, rtol=0, atol=ROUNDING_MM / 2):
            places[-1].append(image)
        else:
            places.append([image])
    return places


def _uneven(series: DicomSeries) -> str:
    """What is wrong with the steps between slices, naming the slices; or ""."""
    positions = series.positions_mm
    steps = np.diff(positions, axis=0)
    if not len(steps):
        return ""
    usual = np.median(steps, axis=0)
    size = float(np.linalg.norm(usual))
    thickness = series.images[0].thickness_mm
    if len(steps) == 1 and thickness and size > _MOST_THICKNESSES * thickness:
        return f"its two slices of {thickness:g} mm lie {size:g} mm apart; slices between them are missing"
    if float(usual @ series.normal) < 1e-3:
        return "its slices do not follow one another along their normal"
    tolerance = max(STEP_TOLERANCE * size, ROUNDING_MM)
    wrong = np.flatnonzero(np.linalg.norm(steps - usual, axis=1) > tolerance)
    if not len(wrong):
        return ""
    listed = []
    for index in wrong[:3]:
        pair = [series.places[i][0] for i in (index, index + 1)]
        names = " and ".join(i.file.name + (f" frame {i.frame + 1}" if i.frame is not None else "") for i in pair)
        step = float(np.linalg.norm(steps[index]))
        missing = round(step / size) - 1
        gap = f", {missing} missing" if missing > 0 and abs(step / size - round(step / size)) < 0.1 else ""
        listed.append(f"between {names} (slices {index + 1} and {index + 2} of {len(positions)}) {step:.2f} mm{gap}")
    more = f" and {len(wrong) - 3} more places" if len(wrong) > 3 else ""
    return (
        f"expected steps of {size:.2f} mm between slices, got {'; '.join(listed)}{more}; export the whole series "
        "again, or resample it with allow_gaps=True"
    )


def _beside_broken(series: DicomSeries, broken: Sequence[tuple[DicomFile, str]]) -> DicomSeries:
    """A series beside a file whose header can't be read, and which may be one of its slices."""
    if series.left_out or series.problem:
        return series
    folders = {image.file.folder for image in series.images}
    for file, reason in broken:
        if file.folder in folders:
            return replace(
                series,
                problem=f"{file.name} in its folder {reason}, and may be one of its slices; copy it again or remove it",
            )
    return series
