"""DICOM SEG: liver and lesions as segments over the images they were found in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf import __version__
from liverseg_tf.data.dicom.formats import SEGMENTATION_TYPES
from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import ConfigError, OutputError
from liverseg_tf.labels import BACKGROUND, CLASSES, LIVER, TUMOUR

MANUFACTURER = "liverseg_tf"
# one bit a pixel needs an array with a plane a segment while it is made
_MOST_BYTES = 2 * 1024**3


def write_segmentation(
    findings: Findings, path: Path, segmentation_type: str = "BINARY", *, lesion_segments: bool = False
) -> None:
    """Write a DICOM SEG.

    Segment 1 is the liver, its lesions included, as the organ's code means; in a LABELMAP, where segments can't
    overlap, it is the liver without them. Segment 2 is all lesions; or 2 and on are one lesion each, the largest
    first. A mask without lesions has the liver alone.

    Args:
        findings: with at least one voxel of liver.
        path: written to as it is; `write_objects` claims and proves.
        segmentation_type: `BINARY`, which every viewer reads, or the smaller `LABELMAP`.
        lesion_segments: one segment a lesion.

    Raises:
        ConfigError: for another type.
        OutputError: for an empty mask, or one with too many lesions for segments of their own.
    """
    import highdicom as hd

    if segmentation_type not in SEGMENTATION_TYPES:
        expected = ", ".join(SEGMENTATION_TYPES)
        raise ConfigError(f"segmentation type: expected one of {expected}. Received: {segmentation_type!r}")
    slices = findings.slices
    if slices.stop == slices.start:
        raise OutputError(f"{findings.volume.name}: no liver was found; a DICOM segmentation can't be empty")
    with quiet():
        sources = findings.source_datasets(slices)
        multiframe = findings.series.images[0].frame is not None
        content = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=_pixels(findings, slices, segmentation_type, lesion_segments, multiframe),
            segmentation_type=segmentation_type,
            segment_descriptions=_descriptions(findings, segmentation_type, lesion_segments),
            series_instance_uid=hd.UID(),
            series_number=9001,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number=(findings.model_sha256 or "unknown")[:16],
            content_description="Liver and lesions, automatic; for research only",
            content_label="LIVER",
            series_description="Liver and lesions (research only)",
            omit_empty_frames=True,
        )
        content.save_as(path, enforce_file_format=True)


def algorithm(findings: Findings) -> Any:
    """Who did it: this software, its version, the model and the digest of its weights."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    parameters = {"model": findings.model or "unknown", "weights_sha256": findings.model_sha256 or "unknown"}
    return hd.AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        source=MANUFACTURER,
        parameters=parameters,
    )


def _descriptions(findings: Findings, segmentation_type: str, lesion_segments: bool) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    def described(number: int, label: str, category: Any, kind: Any, index: int, uid: str | None, **more: Any) -> Any:
        return hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm(findings),
            tracking_uid=uid,
            tracking_id=label if uid else None,
            display_color=hd.color.CIELabColor.from_rgb(*CLASSES[index].color),
            **more,
        )

    name = "Liver" if segmentation_type == "BINARY" else "Liver without lesions"
    anatomy = codes.SCT.AnatomicalStructure
    found = [described(1, name, anatomy, codes.SCT.Liver, LIVER, findings.liver_tracking_uid)]
    if not findings.lesions:
        return found
    # no histology is known, so a lesion is not called a tumour
    lesion = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, TUMOUR
    region = [codes.SCT.Liver]
    if not lesion_segments:
        uid = findings.lesions[0].tracking_uid if len(findings.lesions) == 1 else None
        return [*found, described(2, "Lesions" if uid is None else "Lesion 1", *lesion, uid, anatomic_regions=region)]
    for number, one in enumerate(findings.lesions, 2):
        found.append(described(number, one.tracking_id, *lesion, one.tracking_uid, anatomic_regions=region))
    return found


def _pixels(
    findings: Findings, slices: slice, segmentation_type: str, lesion_segments: bool, multiframe: bool
) -> np.ndarray:
    """(frames, rows, columns) of segment numbers, or with an axis of segments where they overlap."""
    count = len(findings.lesions) if lesion_segments else min(1, len(findings.lesions))
    if multiframe:
        slices = slice(0, len(findings.series.places))
    frames = findings.frames(slices)
    needed = frames.size * (count + 1)
    if segmentation_type == "BINARY" and needed > _MOST_BYTES:
        raise OutputError(
            f"{findings.volume.name}: {count} lesions as segments of their own need {needed} bytes of memory; take "
            "lesion_segments=False, or segmentation_type='LABELMAP'"
        )
    numbers = findings.lesion_frames(slices) if lesion_segments else frames == TUMOUR
    if segmentation_type == "LABELMAP":
        pixels = (frames != BACKGROUND).astype(np.uint8 if count < 255 else np.uint16)
        pixels[numbers > 0] += numbers[numbers > 0].astype(pixels.dtype)
    else:
        pixels = np.zeros((*frames.shape, count + 1), np.uint8)
        pixels[..., 0] = frames != BACKGROUND
        for number in range(1, count + 1):
            pixels[..., number] = numbers == number
    if multiframe:  # in the order of the file's frames, which need not be that of the positions
        order = np.argsort([place[0].frame or 0 for place in findings.series.places])
        pixels = pixels[order]
    return pixels
