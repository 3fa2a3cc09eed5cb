"""DICOM SEG: liver and lesions as segments over the images they were found in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf import __version__
from liverseg_tf.data.dicom.formats import SEGMENTATION_TYPES
from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import ConfigError, OutputError
from liverseg_tf.labels import CLASSES, LIVER, TUMOUR

MANUFACTURER = "liverseg_tf"


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
        lesion_segments: one segment for each lesion.

    Raises:
        ConfigError: for another type.
        OutputError: for an empty mask.
    """
    if segmentation_type not in SEGMENTATION_TYPES:
        expected = ", ".join(SEGMENTATION_TYPES)
        raise ConfigError(f"segmentation type: expected one of {expected}. Received: {segmentation_type!r}")
    slices = findings.slices
    if slices.stop == slices.start:
        raise OutputError(f"{findings.volume.name}: no liver was found; a DICOM segmentation can't be empty")
    with quiet(), tempfile.TemporaryFile() as pixels:
        content = _without_pixels(findings, slices, segmentation_type, lesion_segments)
        for block in _pixel_bytes(content, findings, lesion_segments):
            pixels.write(block)
        if pixels.tell() % 2:
            pixels.write(b"\0")
        pixels.seek(0)
        content.Rows, content.Columns = findings.series.shape
        content.PixelData = pixels  # copied into the file piece by piece
        content.save_as(path, enforce_file_format=True)


def _without_pixels(findings: Findings, slices: slice, segmentation_type: str, lesion_segments: bool) -> Any:
    """The segmentation with its descriptions, references and frames, each frame of a single pixel.

    With whole frames highdicom takes several times their memory.
    """
    import highdicom as hd

    sources = findings.source_datasets(slices)
    if findings.series.images[0].frame is None:
        order = list(range(len(findings.series.places)))[slices]
    else:  # the file's frames, which need not be in the order of the positions
        order = np.argsort([place[0].frame or 0 for place in findings.series.places]).tolist()
    for source in sources:
        source.Rows = source.Columns = 1
    descriptions = _descriptions(findings, segmentation_type, lesion_segments)
    there = np.zeros((len(order), 1, 1, len(descriptions)), np.uint8)
    for frame, place in enumerate(order):
        found = np.unique(_plane(findings, place, lesion_segments))
        found = found[found > 0].astype(int)
        there[frame, 0, 0, found - 1] = 1
        there[frame, 0, 0, 0] |= len(found) > 0  # a lesion is liver too
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=there if segmentation_type == "BINARY" else there[..., 0],
        segmentation_type=segmentation_type,
        segment_descriptions=descriptions,
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


def _pixel_bytes(content: Any, findings: Findings, lesion_segments: bool) -> Iterator[bytes]:
    """Pixel data of the frames that a segmentation lists, in their order."""
    places = {
        (image.sop_instance_uid, image.frame): number
        for number, images in enumerate(findings.series.places)
        for image in images
    }
    binary = content.SegmentationType == "BINARY"
    kind = np.dtype("<u1" if content.BitsAllocated <= 8 else "<u2")
    waiting: list[np.ndarray] = []
    for frame in content.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = source.get("ReferencedFrameNumber")
        key = (str(source.ReferencedSOPInstanceUID), None if number is None else int(number) - 1)
        plane = _plane(findings, places[key], lesion_segments)
        if not binary:
            yield plane.astype(kind).tobytes()
            continue
        owner = frame if "SegmentIdentificationSequence" in frame else content.SharedFunctionalGroupsSequence[0]
        segment = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        waiting.append((plane > 0 if segment == 1 else plane == segment).ravel())
        if len(waiting) == 8:  # frames follow one another bit by bit, and eight of them fill whole bytes
            yield np.packbits(np.concatenate(waiting), bitorder="little").tobytes()
            waiting = []
    if waiting:
        yield np.packbits(np.concatenate(waiting), bitorder="little").tobytes()


def _plane(findings: Findings, place: int, lesion_segments: bool) -> np.ndarray:
    """(rows, columns) of segment numbers on one slice of the series; a lesion's number replaces the liver's.

    Without segments for each lesion these are the mask's own values.
    """
    plane = findings.frames(slice(place, place + 1))[0]
    if not lesion_segments:
        return plane
    numbers = findings.lesion_frames(slice(place, place + 1))[0]
    return np.where(numbers > 0, numbers.astype(np.uint16) + 1, plane)


def algorithm(findings: Findings) -> Any:
    """AlgorithmIdentification: this software, its version, the model and the SHA-256 of its weights."""
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
        only = findings.lesions[0] if len(findings.lesions) == 1 else None
        name, uid = ("Lesions", None) if only is None else (only.tracking_id, only.tracking_uid)
        return [*found, described(2, name, *lesion, uid, anatomic_regions=region)]
    for number, one in enumerate(findings.lesions, 2):
        found.append(described(number, one.tracking_id, *lesion, one.tracking_uid, anatomic_regions=region))
    return found
