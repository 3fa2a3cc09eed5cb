"""Verification of written objects: they are read again by code that shares nothing with their writers.

A segmentation is read from its raw frames and each frame's own position, a structure set from its contours, a report
from its content items: no highdicom, no affine, no transposing. Each region's volume, centre and spread in patient
coordinates must agree with the mask's, which are computed from the volume's affine. A mirrored, shifted, turned or
rescaled object disagrees in at least one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.data.dicom.segmentation import SEGMENTATION_CLASSES, SegmentationFrame, frames_of
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import OutputError
from liverseg_tf.evaluation.surface import Box, bounding_box, enclosing_box
from liverseg_tf.labels import BACKGROUND, LIVER, TUMOUR
from liverseg_tf.wording import counted

# Positions are decimal strings of 16 characters, pixel spacings often of fewer.
_VOLUME_TOLERANCE = 1e-3
_CENTER_TOLERANCE_MM = 0.05
_SPREAD_TOLERANCE = 2e-3
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
_PICTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, eq=False)
class Region:
    """Where something lies.

    Attributes:
        volume_ml: its volume.
        center_mm: (3,) LPS+.
        spread_mm2: (3, 3) covariance of its points, LPS+: tells a mirrored or turned region with the same centre.
    """

    volume_ml: float
    center_mm: np.ndarray
    spread_mm2: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        return {"volume_ml": round(self.volume_ml, 4), "center_mm": np.round(self.center_mm, 2).tolist()}


def prove(path: Path, findings: Findings) -> dict[str, Any]:
    """Read a DICOM object that was just written and compare it with the mask.

    Returns:
        The figures read: for `liver` and each of `lesions` volume in ml and centre in mm (LPS+).

    Raises:
        OutputError: naming the first figure that differs.
    """
    import pydicom

    try:
        with quiet(), path.open("rb") as stream:
            data = pydicom.dcmread(stream, stop_before_pixels=True)
            _same_patient(path, data, findings)
            if data.SOPClassUID in SEGMENTATION_CLASSES:
                is_whole = data.SegmentationType == "BINARY"
                found = _segmentation_regions(path, frames_of(stream, data), is_whole, findings)
            elif data.SOPClassUID == _STRUCTURES:
                found = _structure_regions(path, data, findings)
            elif data.SOPClassUID == _REPORT:
                return _prove_report(path, data, findings)
            elif data.SOPClassUID == _PICTURE:
                return _prove_picture(path, data, stream.read())
            else:
                return _prove_document(path, data)
    except OutputError:
        raise
    except Exception as error:  # a damaged object can raise anything
        raise OutputError(f"{path}: can't be read again ({type(error).__name__})") from None
    expected_liver, expected_lesions = expected_regions(findings)
    liver, lesions = found
    _compare(path, "liver", liver, expected_liver)
    if len(lesions) != len(expected_lesions):
        raise OutputError(
            f"{path}: expected {counted(len(expected_lesions), 'lesion')}, {len(lesions)} were read again"
        )
    left = list(lesions)
    matched = []
    for number, expected in enumerate(expected_lesions, 1):
        nearest = min(left, key=lambda region: float(np.linalg.norm(region.center_mm - expected.center_mm)))
        left.remove(nearest)
        _compare(path, f"lesion {number}", nearest, expected)
        matched.append(nearest)
    return {"liver": liver.to_dict(), "lesions": [lesion.to_dict() for lesion in matched]}


def expected_regions(findings: Findings) -> tuple[Region, list[Region]]:
    """Liver and lesions of the mask, from the canonical labels and the volume's affine."""
    geometry = findings.volume.geometry
    to_patient = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.canonical_affine
    row, column, step, origin = to_patient[:3].T
    lesions = []
    around = bounding_box(findings.labels == TUMOUR)
    if around:
        components = ndimage.label(findings.labels[around] == TUMOUR)[0]
        corner = origin + to_patient[:3, :3] @ [s.start for s in around]
        for number, box in enumerate(ndimage.find_objects(components), 1):
            lesion = _Moments()
            start = corner + to_patient[:3, :3] @ [s.start for s in box]
            for index, mask in enumerate(np.moveaxis(components[box] == number, 2, 0)):
                lesion.add(mask, start + index * step, row, column)
            lesions.append(lesion.region(geometry.voxel_volume_ml))
    lesions.sort(key=lambda one: -one.volume_ml)
    liver = _Moments()
    for index in range(findings.labels.shape[2]):
        liver.add(findings.labels[..., index] != BACKGROUND, origin + index * step, row, column)
    return liver.region(geometry.voxel_volume_ml), lesions


class _Moments:
    """Count, centre and spread of pixels that come plane by plane."""

    def __init__(self):
        self.count, self.origin = 0, None
        self.sum, self.squares = np.zeros(3), np.zeros((3, 3))

    def add(self, mask: np.ndarray, position_mm: np.ndarray, row_step_mm: np.ndarray, column_step_mm: np.ndarray):
        """Add the pixels of a plane, (rows, columns) bool, whose first pixel lies at a position."""
        of_rows, of_columns = mask.sum(axis=1, dtype=float), mask.sum(axis=0, dtype=float)
        count = of_rows.sum()
        if not count:
            return
        self.origin = position_mm if self.origin is None else self.origin  # near the pixels: no digits are lost
        steps = np.array([row_step_mm, column_step_mm])
        rows, columns = np.arange(mask.shape[0]), np.arange(mask.shape[1])
        first = np.array([of_rows @ rows, of_columns @ columns])
        mixed = rows @ (mask @ columns.astype(float))
        second = np.array([[of_rows @ rows**2, mixed], [mixed, of_columns @ columns**2]])
        apart, along = position_mm - self.origin, first @ steps
        self.count += int(count)
        self.sum += count * apart + along
        crossed = np.outer(apart, along)
        self.squares += count * np.outer(apart, apart) + crossed + crossed.T + steps.T @ second @ steps

    def region(self, point_ml: float) -> Region:
        mean = self.sum / max(self.count, 1)
        spread = self.squares / max(self.count, 1) - np.outer(mean, mean)
        return Region(self.count * point_ml, mean + (0 if self.origin is None else self.origin), spread)


def _compare(path: Path, name: str, found: Region, expected: Region) -> None:
    if abs(found.volume_ml - expected.volume_ml) > _VOLUME_TOLERANCE * expected.volume_ml:
        raise OutputError(
            f"{path}: {name} has {found.volume_ml:.3f} ml when read again, the mask has {expected.volume_ml:.3f} ml"
        )
    distance = float(np.linalg.norm(found.center_mm - expected.center_mm))
    if distance > _CENTER_TOLERANCE_MM:
        raise OutputError(f"{path}: {name} lies {distance:.2f} mm from where the mask has it, when read again")
    scale = max(float(np.trace(expected.spread_mm2)), 1.0)
    if np.abs(found.spread_mm2 - expected.spread_mm2).max() > _SPREAD_TOLERANCE * scale:
        raise OutputError(f"{path}: {name} is turned, mirrored or stretched against the mask, when read again")


def _same_patient(path: Path, data: Any, findings: Findings) -> None:
    if data.get("StudyInstanceUID") != findings.series.study_uid:
        raise OutputError(f"{path}: belongs to another study than its CT, when read again")


def _slice_step_mm(findings: Findings) -> float:
    """Distance of the CT's slices along their normal."""
    places = [(image.position_mm, image.orientation) for image in findings.series.images]
    normal = np.cross(places[0][1][:3], places[0][1][3:])
    heights = np.unique(np.round([position @ normal for position, _ in places], 4))
    if len(heights) == 1:
        return findings.series.images[0].thickness_mm or 1.0
    return float(heights[-1] - heights[0]) / (len(heights) - 1)


def _segmentation_regions(
    path: Path, frames: Iterable[SegmentationFrame], is_whole: bool, findings: Findings
) -> tuple[Region, list[Region]]:
    """Liver and lesions of a SEG; `is_whole` if the liver's segment holds its lesions."""
    step = _slice_step_mm(findings)
    where = {(i.sop_instance_uid, i.frame): i.position_mm for i in findings.series.images}
    liver = _Moments()
    planes: dict[int, list[_Plane]] = {}
    point_ml = 0.0
    for frame in frames:
        if frame.source not in where or _apart(where[frame.source], frame.position_mm):
            raise OutputError(f"{path}: a frame refers to an image of another place, when read again")
        normal = np.cross(frame.column_step_mm, frame.row_step_mm)
        point_ml = float(np.linalg.norm(normal)) * step / 1000
        height = round(float(normal @ frame.position_mm / np.linalg.norm(normal)) / step)
        for index, number, mask in frame.masks:
            if index == LIVER or not is_whole:
                liver.add(mask, frame.position_mm, frame.row_step_mm, frame.column_step_mm)
            box = bounding_box(mask) if index == TUMOUR else None
            if box is not None:
                planes.setdefault(number, []).append(_Plane(height, frame, box, mask[box].copy()))
    lesions = [lesion.region(point_ml) for of_segment in planes.values() for lesion in _components(of_segment)]
    return liver.region(point_ml), lesions


@dataclass(frozen=True, eq=False)
class _Plane:
    """A segment's pixels in a frame: how high it lies, in slices; the box that holds them; and they themselves."""

    height: int
    frame: SegmentationFrame
    box: Box
    mask: np.ndarray


def _components(planes: Sequence[_Plane]) -> list[_Moments]:
    """Groups of pixels that connect by faces."""
    heights = [plane.height for plane in planes]
    rows, columns = enclosing_box([plane.box for plane in planes])
    grid = np.zeros((max(heights) - min(heights) + 1, rows.stop - rows.start, columns.stop - columns.start), bool)
    frames: dict[int, SegmentationFrame] = {}
    for plane in planes:
        own_rows, own_columns = plane.box
        at = slice(own_rows.start - rows.start, own_rows.stop - rows.start)
        beside = slice(own_columns.start - columns.start, own_columns.stop - columns.start)
        grid[plane.height - min(heights), at, beside] |= plane.mask
        frames[plane.height - min(heights)] = plane.frame
    numbered = ndimage.label(grid)[0]
    found = []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        lesion = _Moments()
        for height in range(box[0].start, box[0].stop):
            frame = frames[height]
            start = frame.position_mm + (rows.start + box[1].start) * frame.row_step_mm
            start = start + (columns.start + box[2].start) * frame.column_step_mm
            lesion.add(numbered[height][box[1:]] == number, start, frame.row_step_mm, frame.column_step_mm)
        found.append(lesion)
    return found


def _apart(one_mm: np.ndarray, other_mm: np.ndarray) -> bool:
    return bool(np.linalg.norm(one_mm - other_mm) > _CENTER_TOLERANCE_MM)


def _structure_regions(path: Path, data: Any, findings: Findings) -> tuple[Region, list[Region]]:
    """Regions of a structure set: each contour's area, centre and spread by Green's theorem."""
    step = _slice_step_mm(findings)
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.StructureSetROISequence}
    liver: Region | None = None
    lesions = []
    for roi in data.ROIContourSequence:
        parts = [_polygon(np.array(c.ContourData, float).reshape(-1, 3)) for c in roi.ContourSequence]
        area = sum(part[0] for part in parts)
        center = np.sum([part[0] * part[1] for part in parts], axis=0) / area
        moment = sum(part[2] + part[0] * np.outer(part[1] - center, part[1] - center) for part in parts) / area
        # pixels are areas here and points there: a square spreads by a twelfth of its sides' squares
        image = findings.series.images[0]
        turn = image.orientation
        moment -= np.outer(turn[:3], turn[:3]) * image.spacing_mm[1] ** 2 / 12
        moment -= np.outer(turn[3:], turn[3:]) * image.spacing_mm[0] ** 2 / 12
        region = Region(area * step / 1000, center, moment)
        if names[int(roi.ReferencedROINumber)] == "Liver":
            liver = region
        else:
            lesions.append(region)
    if liver is None:
        raise OutputError(f"{path}: expected contours of the liver, got none, when read again")
    return liver, lesions


def _polygon(points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Area, centre and unnormalised second moment (3, 3) of a plane polygon (N, 3), as a fan of triangles."""
    first = points[0]
    a, b = points[1:-1] - first, points[2:] - first
    crosses = np.cross(a, b) / 2
    normal = crosses.sum(axis=0)
    normal /= np.linalg.norm(normal)
    areas = crosses @ normal  # triangles outside the polygon count against it
    area = areas.sum()
    center = (areas[:, None] * (a + b) / 3).sum(axis=0) / area
    # of a triangle (0, a, b): area / 12 * (aa + bb + (a + b)(a + b)), about its first corner
    moment = sum(
        w / 12 * (np.outer(p, p) + np.outer(q, q) + np.outer(p + q, p + q)) for w, p, q in zip(areas, a, b, strict=True)
    )
    return float(area), first + center, moment - area * np.outer(center, center)


def _prove_report(path: Path, data: Any, findings: Findings) -> dict[str, Any]:
    """The numbers of a report, item by item, against the mask."""
    groups = [item for item in _items(data) if _meaning(item) == "Measurement Group"]
    liver, lesions = expected_regions(findings)
    if len(groups) != 1 + len(lesions):
        raise OutputError(f"{path}: expected {1 + len(lesions)} measurement groups, {len(groups)} were read again")
    figures = []
    for group, expected in zip(groups, (liver, *lesions), strict=True):
        values = {
            _meaning(item): float(item.MeasuredValueSequence[0].NumericValue)
            for item in group.ContentSequence
            if item.ValueType == "NUM"
        }
        volume_ml = values["Volume"] / 1000
        if abs(volume_ml - expected.volume_ml) > _VOLUME_TOLERANCE * expected.volume_ml:
            raise OutputError(
                f"{path}: says {volume_ml:.3f} ml when read again, the mask has {expected.volume_ml:.3f} ml"
            )
        figures.append({"volume_ml": round(volume_ml, 4)})
    return {"liver": figures[0], "lesions": figures[1:]}


def _prove_document(path: Path, data: Any) -> dict[str, Any]:
    content = data.get("EncapsulatedDocument", b"")
    if not content.startswith(b"%PDF-") or b"%%EOF" not in content[-64:]:
        raise OutputError(f"{path}: holds no whole PDF, when read again")
    return {"bytes": len(content)}


def _prove_picture(path: Path, data: Any, element: bytes) -> dict[str, Any]:
    """A picture of three bytes a pixel, out of the whole element of the pixel data."""
    pixels, expected = element[12:], int(data.Rows) * int(data.Columns) * 3
    if len(pixels) != expected + expected % 2 or len(set(pixels)) < 2:
        raise OutputError(f"{path}: holds no whole picture, when read again")
    return {"rows": int(data.Rows), "columns": int(data.Columns)}


def _items(data: Any):
    for item in data.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _meaning(item: Any) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if "ConceptNameCodeSequence" in item else ""
