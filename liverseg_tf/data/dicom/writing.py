"""Writing a CT as a DICOM series: phantoms, for tests and to try viewers on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.errors import GeometryError, require

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# DICOM's own root for UIDs made of UUIDs
_UUID_ROOT = "2.25"
_NAMESPACE = uuid.UUID("6f1c3d0e-5f0b-5c33-9f0a-0f2f7a7d0c11")


def uid_of(*parts: object) -> str:
    """A UID that is always the same for the same parts.

    Examples:
        >>> uid_of("case", 7) == uid_of("case", 7)
        True
    """
    return f"{_UUID_ROOT}.{uuid.uuid5(_NAMESPACE, chr(10).join(map(str, parts))).int}"


def write_series(
    hu: np.ndarray,
    affine: np.ndarray,
    folder: Path,
    *,
    patient: str = "PHANTOM",
    description: str = "Phantom",
    series_number: int = 1,
    seed: object = 0,
) -> list[Path]:
    """Write a volume as CT images, a file a slice, uncompressed.

    Args:
        hu: (columns, rows, slices), whole numbers within int16, HU.
        affine: (4, 4), those indices to mm in RAS+ coordinates; columns and rows perpendicular, slices may be sheared.
        folder: exists.
        patient: PatientName and PatientID.
        description: SeriesDescription.
        series_number: SeriesNumber.
        seed: same seed, same UIDs.

    Returns:
        The files, in the order of the slices.

    Raises:
        GeometryError: for columns and rows that aren't perpendicular, which DICOM can't express.
        MissingDependencyError: if pydicom is missing.
    """
    require("pydicom", "dicom", "writing DICOM")
    paths = []
    for index, data in enumerate(series_datasets(hu, affine, patient, description, series_number, seed)):
        path = folder / f"IM{index + 1:04d}.dcm"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def series_datasets(
    hu: np.ndarray, affine: np.ndarray, patient: str, description: str, series_number: int, seed: object
) -> Iterator[Any]:
    """The data sets of `write_series`, slice by slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    to_patient = _LPS_TO_RAS @ np.asarray(affine, np.float64)
    column_mm, row_mm, _ = (float(np.linalg.norm(to_patient[:3, axis])) for axis in range(3))
    along_row, along_column = to_patient[:3, 0] / column_mm, to_patient[:3, 1] / row_mm
    if abs(along_row @ along_column) > 1e-4:
        raise GeometryError("affine: expected columns and rows at a right angle; DICOM has no other slices")
    thickness = abs(float(np.cross(along_row, along_column) @ to_patient[:3, 2]))
    uids = {name: uid_of("phantom", seed, name) for name in ("study", "series", "frame")}
    for index in range(hu.shape[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(uid_of("phantom", seed, "image", index))
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.StudyDate = data.ContentDate = "20000101"
        data.StudyTime = data.ContentTime = "120000"
        data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
        data.Modality, data.Manufacturer, data.SeriesDescription = "CT", "liverseg_tf phantom", description
        data.PatientName = data.PatientID = patient
        data.PatientBirthDate = data.PatientSex = data.PositionReferenceIndicator = data.PatientPosition = ""
        data.StudyInstanceUID, data.SeriesInstanceUID = uids["study"], uids["series"]
        data.FrameOfReferenceUID = uids["frame"]
        data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = series_number, index + 1, 1
        data.PatientPosition = "HFS" if to_patient[2, 2] > 0 else "FFS"
        data.KVP, data.SliceThickness = "120", _decimal(thickness)
        data.ImagePositionPatient = [_decimal(v) for v in to_patient[:3, 3] + index * to_patient[:3, 2]]
        data.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
        data.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
        data.Rows, data.Columns, data.SamplesPerPixel = hu.shape[1], hu.shape[0], 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "1", "0", "HU"
        data.PixelData = np.ascontiguousarray(hu[:, :, index].T, "<i2").tobytes()
        yield data


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters, as exact as fits."""
    for digits in range(15, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return text
