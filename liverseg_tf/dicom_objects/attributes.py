"""What every new DICOM object has: patient and study of its CT, a series of its own, and who made it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from liverseg_tf import __version__

_COPIED = [
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
]
_ALWAYS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def new_object(source: Any, sop_class: str, modality: str, series_number: int, description: str) -> Any:
    """A data set to fill: the patient's and the study's attributes of `source`, and nothing else of it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    if source.get("SpecificCharacterSet"):
        data.SpecificCharacterSet = source.SpecificCharacterSet
    for name in _COPIED:
        if name in source:
            data[name] = source[name]
        elif name in _ALWAYS:
            setattr(data, name, "")
    now = datetime.now()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, generate_uid()
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = generate_uid(), series_number, 1
    data.Modality, data.SeriesDescription = modality, description
    data.Manufacturer = data.ManufacturerModelName = "liverseg_tf"
    data.SoftwareVersions = __version__
    data.ContentDate = data.SeriesDate = data.InstanceCreationDate = now.strftime("%Y%m%d")
    data.ContentTime = data.SeriesTime = data.InstanceCreationTime = now.strftime("%H%M%S")
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data
