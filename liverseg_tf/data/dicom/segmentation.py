"""Reading DICOM SEG: frames and the classes of their segments, from raw pixel data and each frame's own position."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.data.nifti import max_bytes_limit
from liverseg_tf.errors import GeometryError, InputFileError, MissingDependencyError, require
from liverseg_tf.labels import LIVER, TUMOUR

SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# SNOMED CT codes, and the SRT codes that older software writes for them
_LIVER_CODES = ("10200004", "T-62000")
_ABNORMAL_CODES = ("49755003", "M-01000")
# Grids agree if no pixel lies further from its place than this, in shares of a voxel.
_OFF_GRID = 0.05
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class SegmentationFrame:
    """One frame.

    Attributes:
        position_mm: (3,) centre of the first pixel, LPS+.
        row_step_mm, column_step_mm: (3,) from a pixel to that of the next row, and of the next column, LPS+.
        source: SOPInstanceUID and index of the frame that it was made from, or None.
        masks: class (LIVER or TUMOUR) and segment number of each segment in the frame, and its pixels
            (rows, columns) bool.
    """

    position_mm: np.ndarray
    row_step_mm: np.ndarray
    column_step_mm: np.ndarray
    source: tuple[str, int | None] | None
    masks: list[tuple[int, int, np.ndarray]]


def is_segmentation(path: str | Path) -> bool:
    """Tell whether a file is a DICOM segmentation; reads no more than its first elements."""
    return sop_class(path) in SEGMENTATION_CLASSES


def sop_class(path: str | Path) -> str | None:
    """UID of what kind of DICOM object a file is; None if it can't be read as DICOM."""
    try:
        with quiet():
            pydicom = require("pydicom", "dicom", "reading DICOM")
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except Exception:  # pydicom raises many kinds
        return None
    return str(data.get("SOPClassUID") or "") or None


def referenced_series(path: str | Path) -> str:
    """UID of the one series that a DICOM segmentation refers to; "" if it is unknown."""
    try:
        return reference_and_content(path)[0]
    except InputFileError:  # reported by whoever reads the mask
        return ""


def reference_and_content(path: str | Path) -> tuple[str, bool]:
    """What a DICOM segmentation's header says; pixels are not read.

    Returns:
        UID of the one series that it refers to, or "" if it names none or several; and whether it has a segment of a
        liver or of lesions in it.

    Raises:
        InputFileError: if the header can't be read.
    """
    try:
        with quiet():
            pydicom = require("pydicom", "dicom", "reading DICOM")
            data = pydicom.dcmread(path, stop_before_pixels=True)
            found = {str(item.SeriesInstanceUID) for item in data.get("ReferencedSeriesSequence") or ()}
            return (found.pop() if len(found) == 1 else ""), bool(segment_classes(data))
    except MissingDependencyError:
        raise
    except Exception as error:  # pydicom raises many kinds; its texts may hold what the header holds
        raise InputFileError(f"its DICOM header can't be read ({type(error).__name__})") from None


def segment_classes(data: Any) -> dict[int, int]:
    """Number of each segment that is a liver or a lesion in it, and its class, by their codes; the others are left out.

    Args:
        data: of the SEG.
    """
    found = {}
    for segment in data.get("SegmentSequence", ()):
        region = _code(segment, "AnatomicRegionSequence")
        if _code(segment, "SegmentedPropertyTypeCodeSequence") in _LIVER_CODES:
            found[int(segment.SegmentNumber)] = LIVER
        elif _code(segment, "SegmentedPropertyCategoryCodeSequence") in _ABNORMAL_CODES and (
            not region or region in _LIVER_CODES
        ):
            found[int(segment.SegmentNumber)] = TUMOUR
    return found


def _code(item: Any, sequence: str) -> str:
    codes = item.get(sequence)
    return str(codes[0].get("CodeValue", "")) if codes else ""


def frames_of(stream: BinaryIO, data: Any) -> Iterator[SegmentationFrame]:
    """The frames that hold a liver or lesions, one at a time.

    Args:
        stream: the file, positioned at its pixel data, as reading `data` leaves it.
        data: its header.

    Raises:
        InputFileError: for pixels that are compressed or incomplete; other kinds for a damaged header.
    """
    classes = segment_classes(data)
    shared = data.SharedFunctionalGroupsSequence[0]
    pixels = _FramePixels(stream, data)
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        plane = _group(frame, shared, "PlaneOrientationSequence")
        turn = np.array(plane.ImageOrientationPatient, float)
        row_mm, column_mm = map(float, _group(frame, shared, "PixelMeasuresSequence").PixelSpacing)
        yield SegmentationFrame(
            np.array(_group(frame, shared, "PlanePositionSequence").ImagePositionPatient, float),
            turn[3:] * row_mm,
            turn[:3] * column_mm,
            _source(frame),
            [
                (classes[number], number, mask)
                for number, mask in pixels.read(index, frame, shared)
                if number in classes
            ],
        )


def _group(frame: Any, shared: Any, name: str) -> Any:
    return (frame if name in frame else shared)[name].value[0]


def _source(frame: Any) -> tuple[str, int | None] | None:
    derivation = frame.get("DerivationImageSequence")
    images = derivation[0].get("SourceImageSequence") if derivation else None
    if not images:
        return None
    number = images[0].get("ReferencedFrameNumber")
    return str(images[0].ReferencedSOPInstanceUID), None if number is None else int(number) - 1


class _FramePixels:
    """Pixels frame by frame, from the file."""

    def __init__(self, stream: BinaryIO, data: Any):
        from pydicom.uid import UID

        self._data, self._stream = data, stream
        self._is_binary = data.SegmentationType == "BINARY"
        self._size = int(data.Rows) * int(data.Columns)
        self._bits = 1 if self._is_binary else int(data.BitsAllocated)
        syntax = UID(data.file_meta.TransferSyntaxUID)
        if not syntax.is_little_endian or syntax.is_encapsulated or syntax.is_deflated:
            raise InputFileError("its pixels are compressed; convert it with: dcmconv +te, or dcmdrle, dcmdjpeg")
        head = stream.read(12)
        long = head[4:6] in (b"OB", b"OW")
        length = struct.unpack("<I", head[8:] if long else head[4:8])[0]
        self._start = stream.tell() - (0 if long else 4)
        expected = -(-self._size * int(data.NumberOfFrames) * self._bits // 8)
        end = stream.seek(0, 2)
        if head[:4] != b"\xe0\x7f\x10\x00" or length < expected or end - self._start < expected:
            raise InputFileError(f"has {max(end - self._start, 0)} bytes of pixels, expected {expected}")

    def read(self, index: int, frame: Any, shared: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Number and pixels of the segments in a frame."""
        shape = int(self._data.Rows), int(self._data.Columns)
        first, last = index * self._size * self._bits // 8, -((index + 1) * self._size * self._bits // -8)
        self._stream.seek(self._start + first)
        content = self._stream.read(last - first)
        if self._is_binary:
            number = int(_group(frame, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
            yield number, bits[index * self._size - 8 * first :][: self._size].astype(bool).reshape(shape)
            return
        values = np.frombuffer(content, "<u1" if self._bits == 8 else "<u2").reshape(shape)
        for number in np.unique(values[values > 0]).tolist():
            yield number, values == number


def read_segmentation(
    path: str | Path,
    grid: tuple[tuple[int, int, int], np.ndarray] | None = None,
    frame_of_reference_uid: str = "",
    max_bytes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read a DICOM SEG as a mask of 0, 1 (liver) and 2 (lesions, which lie over the liver).

    Segments are recognised by their codes: liver SCT 10200004, lesions the category SCT 49755003 in the liver or
    without a region; all others are left out.

    Args:
        path: the file, BINARY or LABELMAP, not compressed.
        grid: shape and affine (RAS+) of the CT that it is to lie on, since a SEG leaves empty slices out; by default
            the smallest grid that holds its frames.
        frame_of_reference_uid: of that CT, or "" if it is unknown.
        max_bytes: most bytes that the voxels may take; see `max_bytes_limit`.

    Returns:
        (x, y, z) uint8 and the affine (4, 4) float64 to mm in RAS+ coordinates.

    Raises:
        InputFileError: if it can't be read, is FRACTIONAL, or has no segment of a liver or lesion.
        GeometryError: if its frames are not on `grid`, or on no even grid of their own.
        MissingDependencyError: if pydicom is missing.
    """
    pydicom = require("pydicom", "dicom", "reading DICOM")
    try:
        with quiet(), Path(path).open("rb") as stream:
            data = pydicom.dcmread(stream, stop_before_pixels=True)
            if data.SegmentationType not in ("BINARY", "LABELMAP"):
                raise InputFileError(f"expected a BINARY or LABELMAP segmentation, got {data.SegmentationType}")
            if not segment_classes(data):
                labels = ", ".join(str(segment.SegmentLabel) for segment in data.SegmentSequence)
                raise InputFileError(f"expected segments coded as liver or lesion, got: {labels[:200]}")
            theirs = str(data.get("FrameOfReferenceUID") or "")
            if frame_of_reference_uid and theirs != frame_of_reference_uid:
                raise GeometryError("lies in another frame of reference than its CT; is it of another study?")
            shape, affine = grid if grid is not None else _own_grid(data)
            needed, limit = int(np.prod(shape, dtype=object)), max_bytes_limit(max_bytes)
            if needed > limit:
                raise InputFileError(
                    f"shape {shape} takes {needed} bytes, the limit is {limit}; if that is right, raise the limit with "
                    "max_bytes= or LIVERSEG_MAX_BYTES"
                )
            voxels = np.zeros(shape, np.uint8)
            to_index = np.linalg.inv(affine) @ _LPS_TO_RAS
            for frame in frames_of(stream, data):
                _place(frame, voxels, to_index)
    except (InputFileError, GeometryError) as error:
        raise type(error)(f"{path}: {error}") from None
    except Exception as error:  # pydicom raises many kinds; its texts may hold what the header holds
        raise InputFileError(f"{path}: can't be read as a DICOM segmentation ({type(error).__name__})") from None
    return voxels, affine


def lesion_tracking(path: str | Path, grid: tuple[tuple[int, int, int], np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Which tracking UIDs a DICOM SEG gives its lesions.

    Args:
        path: the file, as `read_segmentation` read it.
        grid: shape and affine of the grid that it was read on.

    Returns:
        (x, y, z) uint16, 0 where no lesion has a UID, else the UID's index plus 1; and the UIDs.
    """
    pydicom = require("pydicom", "dicom", "reading DICOM")
    shape, affine = grid
    with quiet(), Path(path).open("rb") as stream:
        data = pydicom.dcmread(stream, stop_before_pixels=True)
        uids = {int(s.SegmentNumber): str(s.get("TrackingUID") or "") for s in data.SegmentSequence}
        known = sorted({uid for uid in uids.values() if uid})
        voxels = np.zeros(shape, np.uint16)
        to_index = np.linalg.inv(affine) @ _LPS_TO_RAS
        for frame in frames_of(stream, data):
            lesions = [(known.index(uids[n]) + 1, n, m) for c, n, m in frame.masks if c == TUMOUR and uids.get(n)]
            _place(replace(frame, masks=lesions), voxels, to_index)
    return voxels, known


def liver_tracking(path: str | Path) -> str | None:
    """The tracking UID that a DICOM SEG gives its liver; None if it gives none, or has several livers."""
    pydicom = require("pydicom", "dicom", "reading DICOM")
    with quiet():
        data = pydicom.dcmread(path, stop_before_pixels=True)
        classes = segment_classes(data)
        uids = [s.get("TrackingUID") for s in data.SegmentSequence if classes.get(int(s.SegmentNumber)) == LIVER]
    return str(uids[0]) if len(uids) == 1 and uids[0] else None


def common_grid(
    one: tuple[tuple[int, int, int], np.ndarray], other: tuple[tuple[int, int, int], np.ndarray]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the smallest grid that holds two grids, with the steps and directions of the first.

    Example:
        >>> shifted = np.eye(4)
        >>> shifted[2, 3] = -3
        >>> common_grid(((4, 4, 2), np.eye(4)), ((4, 4, 4), shifted))[0]
        (4, 4, 5)
    """
    (shape, affine), (other_shape, other_affine) = one, other
    corners = np.array([np.zeros(3), np.subtract(other_shape, 1), np.zeros(3), np.subtract(shape, 1)])
    to_index = np.linalg.inv(affine) @ other_affine
    corners[:2] = np.rint(corners[:2] @ to_index[:3, :3].T + to_index[:3, 3])
    low = corners.min(axis=0)
    columns, rows, slices = (int(n) for n in corners.max(axis=0) - low + 1)
    grid = affine.copy()
    grid[:3, 3] += affine[:3, :3] @ low
    return (columns, rows, slices), grid


def _place(frame: SegmentationFrame, voxels: np.ndarray, to_index: np.ndarray) -> None:
    """Write a frame's pixels to their places; a lesion is never overwritten by liver."""
    steps = np.column_stack([frame.row_step_mm, frame.column_step_mm])
    origin = to_index[:3, :3] @ frame.position_mm + to_index[:3, 3]
    steps = to_index[:3, :3] @ steps
    for index, _, mask in frame.masks:
        pixels = np.argwhere(mask)
        exact = pixels @ steps.T + origin
        places = np.rint(exact).astype(np.int64)
        inside = ((places >= 0) & (places < voxels.shape)).all() and len(np.unique(places, axis=0)) == len(places)
        if len(pixels) and (not inside or np.abs(exact - places).max() > _OFF_GRID):
            raise GeometryError("does not lie on the grid of its CT; is it of another series?")
        at = tuple(places.T)
        voxels[at] = np.maximum(voxels[at], index)


def _own_grid(data: Any) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the smallest grid that holds the frames."""
    shared = data.SharedFunctionalGroupsSequence[0]
    frames = data.PerFrameFunctionalGroupsSequence
    planes = [_group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient for frame in frames]
    measures = [_group(frame, shared, "PixelMeasuresSequence") for frame in frames]
    positions = np.array([_group(f, shared, "PlanePositionSequence").ImagePositionPatient for f in frames], float)
    turns = np.array(planes, float)
    spacings = np.array([item.PixelSpacing for item in measures], float)
    if np.ptp(turns, axis=0).max() > 1e-3 or np.ptp(spacings, axis=0).max() > 1e-3:
        raise GeometryError("its frames differ in orientation or pixel spacing")
    normal = np.cross(turns[0, :3], turns[0, 3:])
    heights = positions @ normal
    positions = positions[np.argsort(heights)]
    gaps = np.diff(np.sort(heights))
    distances = gaps[gaps > 1e-2]
    if len(distances):
        low = int(np.flatnonzero(gaps > 1e-2)[distances.argmin()])
        step, count = positions[low + 1] - positions[low], round(float(np.ptp(heights) / distances.min())) + 1
        step = (positions[-1] - positions[0]) / (count - 1) if count > 1 else step
    else:
        thickness = measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness") or 1.0
        step, count = normal * float(thickness), 1
    affine = np.eye(4)
    affine[:3, 0] = turns[0, :3] * spacings[0, 1]
    affine[:3, 1] = turns[0, 3:] * spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return (int(data.Columns), int(data.Rows), count), _LPS_TO_RAS @ affine
