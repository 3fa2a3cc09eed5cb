"""What one DICOM file's header says, without its pixels."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from liverseg_tf.data.dicom.files import DicomFile
from liverseg_tf.errors import require

_CT = "1.2.840.10008.5.1.4.1.1.2"
CT_CLASSES = {
    _CT: "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
}
_DICOMDIR = "1.2.840.10008.1.3.10"
# No private tags. The patient's name is read only to remove it from descriptions, the ID only to group series by
# patient.
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "ImageType",
    "SeriesDescription",
    "SeriesNumber",
    "ProtocolName",
    "ConvolutionKernel",
    "PatientName",
    "PatientID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "InstanceNumber",
    "AcquisitionNumber",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_DATES = re.compile(r"\b(?:19|20)\d{6}\b|\b\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\b")
_PHASES = {
    "native": r"native|non.?contrast|without contrast|unenhanced|\bnc\b|nativ\b",
    "arterial": r"arter",
    "portal venous": r"portal|\bpv\b|\bpvp\b|venous|ven[oö]s",
    "delayed": r"delay|equilibrium|\blate\b",
}


class HeaderError(Exception):
    """A DICOM file that can't be used; the text says why and quotes nothing that may name a patient."""


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One slice: a file, or a frame of a multi-frame file.

    Attributes:
        file: where it lies.
        frame: index from 0 in a multi-frame file; None in a file of one image.
        sop_class_uid, sop_instance_uid: of the file; the latter "" where it is missing.
        position_mm: (3,) float64, centre of the first pixel in the patient's LPS+ coordinates.
        orientation: (6,) float64, unit vectors along a row (to higher columns) and a column (to higher rows), LPS+.
        spacing_mm: distance between rows, and between columns.
        slope, intercept: stored values to HU.
        thickness_mm: of the slice, or None.
    """

    file: DicomFile
    frame: int | None
    sop_class_uid: str
    sop_instance_uid: str
    position_mm: np.ndarray
    orientation: np.ndarray
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    thickness_mm: float | None


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """What a file's header says of its series, and its images.

    Attributes:
        file: where it lies.
        series_uid, study_uid, frame_of_reference_uid: "" where they are missing, as some de-identified files have it.
        patient_digest: keyed hash of PatientID, equal for files of one patient, new in every run; "" without an ID.
        modality: as CT.
        description: without dates and the patient's name.
        number: of the series, or None.
        kernel: reconstruction kernel, or "".
        phase: contrast phase if the description names one, or "".
        kind: what it is if it is no CT slice (a localizer, derived, no CT image), else "".
        shape: rows, columns.
        bits_stored, is_signed: of the stored pixels.
        padding: lowest and highest stored value that means "no pixel", or None.
        transfer_syntax: UID.
        images: one, or one a frame; none where `kind` or `problem` says why.
        problem: why the file can't be used, or "".
    """

    file: DicomFile
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    patient_digest: str
    modality: str
    description: str
    number: int | None
    kernel: str
    phase: str
    kind: str
    shape: tuple[int, int]
    bits_stored: int
    is_signed: bool
    padding: tuple[int, int] | None
    transfer_syntax: str
    images: tuple[DicomImage, ...]
    problem: str


def read_header(file: DicomFile) -> DicomHeader | None:
    """Read one file's header and check that its pixels are there, whole.

    Returns:
        The header; None for a DICOMDIR.

    Raises:
        HeaderError: if the file can't be assigned to a series.
        MissingDependencyError: if pydicom is missing.
    """
    pydicom = require("pydicom", "dicom", "reading DICOM")
    with quiet(), _opened(file) as stream:
        try:
            data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if hasattr(data, "file_meta") else ""
            if not syntax:
                syntax = "1.2.840.10008.1.2" if data.original_encoding[0] else "1.2.840.10008.1.2.1"
            if getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID") == _DICOMDIR:
                return None
            if not _class(data):
                raise HeaderError("does not say what it is, or is truncated in its header")
            problem, kind = "", _kind(data)
            images: tuple[DicomImage, ...] = ()
            if not kind:
                try:
                    _check_pixels(data, syntax, stream)
                    images = tuple(_images(data, file))
                except HeaderError as error:
                    if not data.get("SeriesInstanceUID"):
                        raise
                    problem = str(error)
            return _header(file, data, syntax, kind, images, problem)
        except HeaderError:
            raise
        except Exception as error:  # pydicom raises many kinds; its texts may hold what the header holds
            raise HeaderError(f"its DICOM header can't be read ({type(error).__name__})") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's own warnings: they print values of the header, the patient's name among them."""
    import pydicom.config

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _opened(file: DicomFile) -> Iterator[BinaryIO]:
    try:
        stream = file.open()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise HeaderError(f"can't be read ({getattr(error, 'strerror', None) or error})") from None
    with stream:
        yield stream


def _header(file: DicomFile, data: Any, syntax: str, kind: str, images: tuple, problem: str) -> DicomHeader:
    description = _clean(str(data.get("SeriesDescription") or ""), str(data.get("PatientName") or ""))
    kernel = data.get("ConvolutionKernel") or ""
    said = f"{description} {data.get('ProtocolName') or ''}".lower()
    signed = bool(data.get("PixelRepresentation") or 0)
    return DicomHeader(
        file=file,
        series_uid=str(data.get("SeriesInstanceUID") or ""),
        study_uid=str(data.get("StudyInstanceUID") or ""),
        frame_of_reference_uid=str(data.get("FrameOfReferenceUID") or ""),
        patient_digest=_digest(str(data.get("PatientID") or "").strip()),
        modality=str(data.get("Modality") or ""),
        description=description,
        number=int(data.SeriesNumber) if data.get("SeriesNumber") not in (None, "") else None,
        kernel=kernel if isinstance(kernel, str) else " ".join(map(str, kernel)),
        phase=next((name for name, pattern in _PHASES.items() if re.search(pattern, said)), ""),
        kind=kind,
        shape=(int(data.get("Rows") or 0), int(data.get("Columns") or 0)),
        bits_stored=int(data.get("BitsStored") or data.get("BitsAllocated") or 16),
        is_signed=signed,
        padding=_padding(data, signed),
        transfer_syntax=syntax,
        images=images,
        problem=problem,
    )


# differs from run to run, so that nobody can try IDs against a digest
_SALT = secrets.token_bytes(16)


def _digest(patient_id: str) -> str:
    return hashlib.blake2b(patient_id.encode(), key=_SALT, digest_size=16).hexdigest() if patient_id else ""


def _class(data: Any) -> str:
    """SOP class. Of files that lost it with their other UIDs: CT for a slice of a CT, else the modality."""
    named = data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID")
    single = data.get("Modality") == "CT" and data.get("ImagePositionPatient") is not None
    return str(named or (_CT if single else data.get("Modality") or ""))


def _clean(description: str, patient_name: str) -> str:
    """A description without dates and without the parts of a patient's name."""
    text = _DATES.sub("", description)
    for part in re.split(r"[\^=\s]+", patient_name):
        if len(part) > 2:
            text = re.sub(re.escape(part), "", text, flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" ,;")


def _kind(data: Any) -> str:
    """What an image is if it is no CT slice that may be segmented, else ""."""
    if _class(data) not in CT_CLASSES:
        return f"no CT image ({data.get('Modality') or 'unknown modality'})"
    kinds = [str(value).upper() for value in data.get("ImageType") or ()]
    if "LOCALIZER" in kinds:
        return "a localizer"
    # DERIVED\PRIMARY is what lossy compression makes of a slice; DERIVED\SECONDARY is computed from slices
    if kinds[:2] == ["DERIVED", "SECONDARY"]:
        return f"derived ({' '.join(kinds[2:]).lower() or 'secondary'})"
    return ""


def _check_pixels(data: Any, syntax: str, stream: BinaryIO) -> None:
    """Check that an image can be decoded and that its file holds all of its pixels.

    Raises:
        HeaderError: if not.
    """
    from pydicom.uid import UID

    rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    allocated = int(data.get("BitsAllocated") or 0)
    samples = int(data.get("SamplesPerPixel") or 1)
    color = str(data.get("PhotometricInterpretation") or "MONOCHROME2")
    if samples != 1 or not color.startswith("MONOCHROME"):
        raise HeaderError(f"holds {color} pixels, expected one grey value each")
    if not rows or not columns:
        raise HeaderError("has no pixel data (no rows and columns)")
    if allocated not in (8, 16, 32):
        raise HeaderError(f"stores {allocated} bits a pixel, expected 8, 16 or 32")
    if not UID(syntax).is_transfer_syntax:
        raise HeaderError(f"has an unknown transfer syntax ({syntax}); convert it with: dcmconv +te")
    # the stream is at the pixel data, or at the end of the file
    at, end = stream.tell(), stream.seek(0, 2)
    stream.seek(at)
    start = stream.read(12)
    big = not UID(syntax).is_little_endian
    if len(start) < 12 or struct.unpack(">HH" if big else "<HH", start[:4]) != (0x7FE0, 0x0010):
        raise HeaderError("has no pixel data, or is truncated before it")
    if start[4:6] in (b"OB", b"OW", b"UN"):
        length, first = struct.unpack(">I" if big else "<I", start[8:])[0], at + 12
    else:
        length, first = struct.unpack(">I" if big else "<I", start[4:8])[0], at + 8
    frames = int(data.get("NumberOfFrames") or 1)
    if UID(syntax).is_encapsulated:
        _check_fragments(stream, first, end, frames)
        return
    expected = rows * columns * frames * allocated // 8
    if end - first < min(length, expected):
        raise HeaderError(f"is truncated: {expected} bytes of pixels expected, {end - first} there")
    if length != expected + expected % 2:
        raise HeaderError(f"has {length} bytes of pixels, expected {expected} for {frames} x {rows} x {columns}")


def _check_fragments(stream: BinaryIO, at: int, end: int, frames: int) -> None:
    """Walk over compressed pixel data to its end mark."""
    fragments = -1  # the first item is the offset table
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            raise HeaderError("is truncated inside its compressed pixels")
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or at + 8 + length > end:
            raise HeaderError("is truncated or damaged inside its compressed pixels")
        fragments += 1
        at += 8 + length
    if fragments < frames:
        raise HeaderError(f"has {max(fragments, 0)} compressed frames, expected {frames}")


def _images(data: Any, file: DicomFile) -> Iterator[DicomImage]:
    frames = data.get("PerFrameFunctionalGroupsSequence")
    if _class(data) == _CT:
        yield _image(data, file, None, [data])
        return
    shared = list(data.get("SharedFunctionalGroupsSequence") or ())
    if not frames or len(frames) != int(data.get("NumberOfFrames") or 1):
        raise HeaderError("is a multi-frame file without a description of each frame")
    for index, own in enumerate(frames):
        groups = [own, *shared]
        kind = _first(groups, "CTImageFrameTypeSequence", "FrameType") or ()
        if "LOCALIZER" in [str(value).upper() for value in kind]:
            continue
        yield _image(data, file, index, groups)


def _image(data: Any, file: DicomFile, frame: int | None, groups: list) -> DicomImage:
    """One image, from its own header or from its frame's and the shared functional groups."""
    multi = frame is not None

    def get(sequence: str, name: str) -> Any:
        return _first(groups, sequence, name) if multi else data.get(name)

    position = _numbers(get("PlanePositionSequence", "ImagePositionPatient"), 3, "position (ImagePositionPatient)")
    orientation = _numbers(get("PlaneOrientationSequence", "ImageOrientationPatient"), 6, "orientation")
    spacing = _numbers(get("PixelMeasuresSequence", "PixelSpacing"), 2, "pixel spacing")
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(row @ column) > 1e-2 or not (spacing > 0).all():
        raise HeaderError("has an orientation or pixel spacing that describes no grid")
    slope = get("PixelValueTransformationSequence", "RescaleSlope")
    intercept = get("PixelValueTransformationSequence", "RescaleIntercept")
    thickness = get("PixelMeasuresSequence", "SliceThickness")
    number = float(slope) if slope not in (None, "") else 1.0
    offset = float(intercept) if intercept not in (None, "") else 0.0
    if not np.isfinite([number, offset]).all() or number == 0:
        raise HeaderError("has no usable rescale slope and intercept")
    return DicomImage(
        file=file,
        frame=frame,
        sop_class_uid=_class(data),
        sop_instance_uid=str(data.get("SOPInstanceUID") or ""),
        position_mm=position,
        orientation=np.concatenate([row / lengths[0], column / lengths[1]]),
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        slope=number,
        intercept=offset,
        thickness_mm=float(thickness) if thickness not in (None, "") and float(thickness) > 0 else None,
    )


def _first(groups: list, sequence: str, name: str) -> Any:
    """A value from the first functional group that has it."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(name) is not None:
            return items[0].get(name)
    return None


def _numbers(value: Any, count: int, name: str) -> np.ndarray:
    try:
        numbers = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise HeaderError(f"has no usable {name}")
    return numbers


def _padding(data: Any, is_signed: bool) -> tuple[int, int] | None:
    """Range of stored values that mean "outside the scan"; some scanners write it unsigned for signed pixels."""
    value, limit = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    bits = int(data.get("BitsAllocated") or 16)
    ends = [value, limit if isinstance(limit, int) else value]
    if is_signed:
        ends = [end - (1 << bits) if end >= 1 << (bits - 1) else end for end in ends]
    else:
        ends = [end % (1 << bits) for end in ends]
    return min(ends), max(ends)
