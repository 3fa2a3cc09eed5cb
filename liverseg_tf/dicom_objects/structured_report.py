"""DICOM SR: the measurements as a TID 1500 report that refers to the segments of a SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liverseg_tf import __version__
from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.dicom_objects.segmentation import MANUFACTURER
from liverseg_tf.errors import OutputError


def write_report(findings: Findings, path: Path, segmentation: Path) -> None:
    """Write a Comprehensive 3D SR (TID 1500) with one measurement group for the liver and one for each lesion.

    Each group has volume and mean HU; lesions have long axis, short axis and the largest 3-D diameter too. Groups have
    the tracking UIDs of the SEG.

    Args:
        findings: with at least one voxel of liver.
        path: written to as it is; `write_objects` claims and proves.
        segmentation: the SEG file that the groups refer to, with a segment for each lesion.

    Raises:
        OutputError: for an empty mask.
    """
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    if findings.slices.stop == findings.slices.start:
        raise OutputError(f"{findings.volume.name}: no liver was found; there is nothing to report")
    with quiet():
        sources = findings.source_datasets(findings.slices)
        seg = pydicom.dcmread(segmentation)
        device = hd.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=hd.UID(), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=MANUFACTURER
            ),
        )
        groups = [_group(findings, seg, None), *(_group(findings, seg, lesion) for lesion in findings.lesions)]
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=device),
            procedure_reported=codes.SCT.ComputedTomography,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
            referenced_images=sources,
        )
        report = hd.sr.Comprehensive3DSR(
            evidence=[*sources, seg],
            content=content,
            series_instance_uid=hd.UID(),
            series_number=9002,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
        report.SeriesDescription = "Liver and lesion measurements (research only)"
        report.ManufacturerModelName, report.SoftwareVersions = MANUFACTURER, __version__
        report.save_as(path, enforce_file_format=True)


def _group(findings: Findings, seg: Any, lesion: Any) -> Any:
    """The measurement group of the liver (None) or of a lesion."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    found = findings.statistics
    if lesion is None:
        uid, name, kind = findings.liver_tracking_uid, "Liver", codes.SCT.Liver
        category, segment = codes.SCT.AnatomicalStructure, 1
        volume_ml, mean_hu = found.liver_volume_ml, found.liver_mean_hu
    else:
        uid, name, kind = lesion.tracking_uid, lesion.tracking_id, codes.SCT.Lesion
        category = codes.SCT.MorphologicallyAbnormalStructure
        segment = next(int(s.SegmentNumber) for s in seg.SegmentSequence if s.get("TrackingUID") == uid)
        volume_ml, mean_hu = lesion.statistics.volume_ml, lesion.statistics.mean_hu
    measurements = [hd.sr.Measurement(codes.SCT.Volume, _number(volume_ml * 1000), codes.UCUM.CubicMillimeter)]
    if lesion is not None:
        axes = lesion.axes
        measurements += [
            hd.sr.Measurement(code, _number(value), codes.UCUM.Millimeter)
            for code, value in (
                (codes.SCT.LongAxis, axes.long_axis_mm),
                (codes.SCT.ShortAxis, axes.short_axis_mm),
                (codes.IBSI.Maximum3DDiameterOfAMesh, axes.largest_diameter_mm),
            )
        ]
    if mean_hu is not None:
        measurements.append(
            hd.sr.Measurement(
                codes.DCM.AttenuationCoefficient, _number(mean_hu), codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
            )
        )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=name),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=segment,
            source_series=hd.sr.SourceSeriesForSegmentation(findings.series.uid),
        ),
        finding_type=kind,
        finding_category=category,
        finding_sites=None if lesion is None else [hd.sr.FindingSite(codes.SCT.Liver)],
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=MANUFACTURER, version=__version__, parameters=[f"weights_sha256={findings.model_sha256 or 'unknown'}"]
        ),
        measurements=measurements,
    )


def _number(value: float) -> float:
    return float(f"{value:.8g}")
