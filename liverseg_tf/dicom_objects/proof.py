"""Is what was written what was found? Objects are read again by code that shares nothing with their writers.

A segmentation is read from its raw frames and each frame's own position, a structure set from its contours, a report
from its content items: no highdicom, no affine, no transposing. Each region's volume, center and spread in patient
coordinates must agree with the mask's, which are computed from the volume's affine. A mirrored, shifted, turned or
rescaled object disagrees in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import OutputError
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.labels import BACKGROUND, TUMOUR

# Positions are decimal strings of 16 characters, pixel spacings often of fewer.
_VOLUME_TOLERANCE = 1e-3
_CENTER_TOLERANCE_MM = 0.05
_SPREAD_TOLERANCE = 2e-3
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"


@dataclass(frozen=True, eq=False)
class Region:
    """Where something lies.

    Attributes:
        volume_ml: its volume.
        center_mm: (3,) LPS+.
        spread_mm2: (3, 3) covariance of its points, LPS+: tells a mirrored or turned region with the same center.
    """

    volume_ml: float
    center_mm: np.ndarray
    spread_mm2: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        return {"volume_ml": round(self.volume_ml, 4), "center_mm": np.round(self.center_mm, 2).tolist()}


def prove(path: Path, findings: Findings) -> dict[str, Any]:
    """Read a DICOM object that was just written and compare it with the mask.

    Returns:
        The figures read: for `liver` and each of `lesions` volume in ml and center in mm (LPS+).

    Raises:
        OutputError: naming the first figure that differs.
    """
    import pydicom

    with quiet():
        try:
            data = pydicom.dcmread(path)
        except Exception as error:
            raise OutputError(f"{path}: can't be read again ({type(error).__name__})") from None
        _same_patient(path, data, findings)
        if data.SOPClassUID in _SEGMENTATIONS:
            found = _segmentation_regions(path, data, findings)
        elif data.SOPClassUID == _STRUCTURES:
            found = _structure_regions(path, data, findings)
        elif data.SOPClassUID == _REPORT:
            return _prove_report(path, data, findings)
        else:
            return _prove_document(path, data)
    expected_liver, expected_lesions = expected_regions(findings)
    liver, lesions = found
    _compare(path, "liver", liver, expected_liver)
    if len(lesions) != len(expected_lesions):
        raise OutputError(f"{path}: expected {len(expected_lesions)} lesions, {len(lesions)} were read again")
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

    def place(voxels: np.ndarray) -> np.ndarray:
        return voxels @ to_patient[:3, :3].T + to_patient[:3, 3]

    lesions = []
    around = bounding_box(findings.labels == TUMOUR)
    low = np.array([s.start for s in around or ()])
    components = ndimage.label(findings.labels[around] == TUMOUR)[0] if around else np.zeros((1, 1, 1), int)
    for number, box in enumerate(ndimage.find_objects(components), 1):
        points = place(np.argwhere(components[box] == number) + [s.start for s in box] + low)
        lesions.append(_Moments().add(points).region(geometry.voxel_volume_ml))
    lesions.sort(key=lambda one: -one.volume_ml)
    liver = _Moments()
    for index in range(findings.labels.shape[2]):
        flat = np.argwhere(findings.labels[..., index] != BACKGROUND)
        liver.add(place(np.column_stack([flat, np.full(len(flat), index)])))
    return liver.region(geometry.voxel_volume_ml), lesions


class _Moments:
    """Count, center and spread of points that come in pieces."""

    def __init__(self):
        self.count, self.origin = 0, None
        self.sum, self.squares = np.zeros(3), np.zeros((3, 3))

    def add(self, points_mm: np.ndarray) -> _Moments:
        if len(points_mm):
            self.origin = points_mm[0] if self.origin is None else self.origin  # near the points: no digits are lost
            apart = points_mm - self.origin
            self.count += len(apart)
            self.sum += apart.sum(axis=0)
            self.squares += apart.T @ apart
        return self

    def region(self, point_ml: float) -> Region:
        mean = self.sum / self.count
        return Region(self.count * point_ml, self.origin + mean, self.squares / self.count - np.outer(mean, mean))


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


def _segmentation_regions(path: Path, data: Any, findings: Findings) -> tuple[Region, list[Region]]:
    step = _slice_step_mm(findings)
    where = {(i.sop_instance_uid, i.frame): i.position_mm for i in findings.series.images}
    lesion_numbers = [int(s.SegmentNumber) for s in data.SegmentSequence if "Lesion" in s.SegmentLabel.split()[0]]
    is_whole = data.SegmentationType == "BINARY"  # the liver's segment holds its lesions
    liver = _Moments()
    lesion_points: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        shared = data.SharedFunctionalGroupsSequence[0]
        plane = (frame if "PlaneOrientationSequence" in frame else shared).PlaneOrientationSequence[0]
        measures = (frame if "PixelMeasuresSequence" in frame else shared).PixelMeasuresSequence[0]
        turn = np.array(plane.ImageOrientationPatient, float)
        row_mm, column_mm = map(float, measures.PixelSpacing)
        _check_source(path, frame, position, where)
        for number, rows, columns in _frame_pixels(data, index, (frame, shared)):
            points = position + np.outer(columns * column_mm, turn[:3]) + np.outer(rows * row_mm, turn[3:])
            height = round(float(np.cross(turn[:3], turn[3:]) @ position) / step)
            if number == 1 or not is_whole:
                liver.add(points)
            if number in lesion_numbers:
                places = np.column_stack([np.full(len(rows), height), rows, columns])
                lesion_points.setdefault(number, []).append((places, points))
    point_ml = row_mm * column_mm * step / 1000
    lesions = []
    for pieces in lesion_points.values():
        places, points = (np.concatenate(part) for part in zip(*pieces, strict=True))
        lesions += [_Moments().add(part).region(point_ml) for part in _components(places, points)]
    return liver.region(point_ml), lesions


def _frame_pixels(data: Any, index: int, groups: tuple[Any, Any]):
    """(segment, rows, columns) of the pixels that are set in a frame, out of its raw bytes."""
    size = data.Rows * data.Columns
    if data.SegmentationType == "BINARY":
        owner = next(group for group in groups if "SegmentIdentificationSequence" in group)
        number = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        first, last = index * size // 8, -((index + 1) * size // -8)
        bits = np.unpackbits(np.frombuffer(data.PixelData[first:last], np.uint8), bitorder="little")
        there = np.flatnonzero(bits[index * size - 8 * first :][:size])
        yield number, there // data.Columns, there % data.Columns
        return
    kind = np.dtype("<u1" if data.BitsAllocated == 8 else "<u2")
    start = index * size * kind.itemsize
    values = np.frombuffer(data.PixelData[start : start + size * kind.itemsize], kind)
    for number in np.unique(values[values > 0]).tolist():
        there = np.flatnonzero(values == number)
        yield number, there // data.Columns, there % data.Columns


def _check_source(path: Path, frame: Any, position: np.ndarray, where: dict) -> None:
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    number = source.get("ReferencedFrameNumber")
    key = (str(source.ReferencedSOPInstanceUID), None if number is None else int(number) - 1)
    if key not in where or np.linalg.norm(where[key] - position) > _CENTER_TOLERANCE_MM:
        raise OutputError(f"{path}: a frame refers to an image of another place, when read again")


def _components(places: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
    """Points in groups that connect by faces."""
    low = places.min(axis=0)
    grid = np.zeros(np.ptp(places, axis=0) + 1, bool)
    grid[tuple((places - low).T)] = True
    numbered, count = ndimage.label(grid)
    of_point = numbered[tuple((places - low).T)]
    return [points[of_point == number] for number in range(1, count + 1)]


def _structure_regions(path: Path, data: Any, findings: Findings) -> tuple[Region, list[Region]]:
    """Regions of a structure set: each contour's area, center and spread by Green's theorem."""
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
    """Area, center and unnormalised second moment (3, 3) of a plane polygon (N, 3), as a fan of triangles."""
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


def _items(data: Any):
    for item in data.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _meaning(item: Any) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if "ConceptNameCodeSequence" in item else ""
