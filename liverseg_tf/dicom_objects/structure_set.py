"""DICOM RTSTRUCT: liver and lesions as contours along the edges of their pixels, for planning systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from liverseg_tf import __version__
from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.dicom_objects.attributes import new_object
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import OutputError
from liverseg_tf.labels import BACKGROUND, CLASSES, LIVER, TUMOUR


def write_structure_set(findings: Findings, path: Path) -> None:
    """Write an RTSTRUCT: ROI 1 is the liver, its lesions included; 2 and on are one lesion each, the largest first.

    Contours run along pixel edges, so areas are those of the pixels. A zero-width cut joins a hole to its outline.

    Raises:
        OutputError: for an empty mask.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import RTStructureSetStorage

    slices = findings.slices
    if slices.stop == slices.start:
        raise OutputError(f"{findings.volume.name}: no liver was found; a structure set can't be empty")
    with quiet():
        sources = findings.source_datasets(slices)
        data = new_object(sources[0], RTStructureSetStorage, "RTSTRUCT", 9003, "Liver and lesions (research only)")
        data.StructureSetLabel, data.StructureSetDate, data.StructureSetTime = (
            "LIVER",
            data.ContentDate,
            data.ContentTime,
        )
        del data.ContentDate, data.ContentTime
        data.OperatorsName = ""
        data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources, findings)]
        rois = [("Liver", LIVER), *((one.tracking_id, TUMOUR) for one in findings.lesions)]
        data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
        for number, (name, index) in enumerate(rois, 1):
            roi, contours, observation = Dataset(), Dataset(), Dataset()
            roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "AUTOMATIC"
            roi.ReferencedFrameOfReferenceUID = findings.series.frame_of_reference_uid
            roi.ROIGenerationDescription = f"liverseg_tf {__version__}"
            contours.ROIDisplayColor, contours.ReferencedROINumber = list(CLASSES[index].color), number
            contours.ContourSequence = _contours(number, slices, findings)
            observation.ObservationNumber = observation.ReferencedROINumber = number
            observation.RTROIInterpretedType = "ORGAN" if index == LIVER else ""
            observation.ROIInterpreter = ""
            data.StructureSetROISequence.append(roi)
            data.ROIContourSequence.append(contours)
            data.RTROIObservationsSequence.append(observation)
        data.save_as(path, enforce_file_format=True)


def _frame_of_reference(sources: list[Any], findings: Findings) -> Any:
    from pydicom.dataset import Dataset

    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = findings.series.frame_of_reference_uid
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = findings.series.study_uid
    series.SeriesInstanceUID = findings.series.uid
    series.ContourImageSequence = [_reference(data.SOPClassUID, data.SOPInstanceUID, None) for data in sources]
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(sop_class: str, sop_instance: str, frame: int | None) -> Any:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, sop_instance
    if frame is not None:
        image.ReferencedFrameNumber = frame + 1
    return image


def _contours(roi: int, slices: slice, findings: Findings) -> list[Any]:
    """Contours of one ROI, slice by slice."""
    from pydicom.dataset import Dataset

    row_mm, column_mm = findings.series.images[0].spacing_mm
    along_row, along_column = findings.series.orientation[:3], findings.series.orientation[3:]
    frames = findings.frames(slices) if roi == 1 else findings.lesion_frames(slices)
    found = []
    for place, frame in zip(findings.series.places[slices], frames, strict=True):
        image = place[0]
        mask = frame != BACKGROUND if roi == 1 else frame == roi - 1
        if not mask.any():
            continue
        for corners in outlines(mask):
            points = (
                image.position_mm
                + np.outer((corners[:, 1] - 0.5) * column_mm, along_row)
                + np.outer((corners[:, 0] - 0.5) * row_mm, along_column)
            )
            contour = Dataset()
            contour.ContourImageSequence = [_reference(image.sop_class_uid, image.sop_instance_uid, image.frame)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
            found.append(contour)
    return found


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the pixels of a mask, one a component (by edges); holes are joined to them.

    Args:
        mask: (rows, columns) bool.

    Returns:
        Arrays (corners, 2) of pixel corners, (row, column); pixel (0, 0) reaches from corner (0, 0) to (1, 1).

    Example:
        >>> outlines(np.array([[True, True]]))[0].tolist()
        [[0, 0], [0, 2], [1, 2], [1, 0]]
    """
    numbered, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        loops = [loop + [s.start for s in box] for loop in _loops(numbered[box] == number)]
        areas = [_signed_area(loop) for loop in loops]
        outer = loops.pop(int(np.argmax(areas)))
        for hole in sorted(loops, key=lambda loop: loop[:, 1].min()):
            at, start = np.unravel_index(
                np.square(outer[:, None] - hole[None]).sum(axis=2).argmin(), (len(outer), len(hole))
            )
            hole = np.roll(hole, -start, axis=0)
            outer = np.concatenate([outer[: at + 1], hole, hole[:1], outer[at:]])
        found.append(outer)
    return found


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed walks along the edges of a mask's pixels, the mask on the right hand; straight runs have no corners."""
    padded = np.pad(mask, 1)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # (neighbour that is outside, from corner, to corner) of a pixel, walked clockwise
    for (row, column), start, stop in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        outside = mask & ~padded[1 + row : 1 + row + mask.shape[0], 1 + column : 1 + column + mask.shape[1]]
        for r, c in np.argwhere(outside).tolist():
            edges.setdefault((r + start[0], c + start[1]), []).append((r + stop[0], c + stop[1]))
    loops = []
    while edges:
        first = next(iter(edges))
        walk, here, before = [], first, None
        while True:
            nexts = edges[here]
            # where two pixels touch at a corner, turn to the right: stay on the same pixel
            choice = 0
            if len(nexts) > 1 and before is not None:
                turn = (here[0] - before[0], here[1] - before[1])
                right = (here[0] + turn[1], here[1] - turn[0])
                choice = nexts.index(right) if right in nexts else 0
            step = nexts.pop(choice)
            if not nexts:
                del edges[here]
            walk.append(here)
            before, here = here, step
            if here == first:
                break
        points = np.array(walk)
        bends = np.any(np.roll(points, -1, axis=0) - points != points - np.roll(points, 1, axis=0), axis=1)
        loops.append(points[bends])
    return loops


def _signed_area(loop: np.ndarray) -> float:
    """Area of a polygon (N, 2) of (row, column), above 0 if it is walked clockwise as seen on the screen."""
    rows, columns = loop[:, 0].astype(float), loop[:, 1].astype(float)
    return float((columns * np.roll(rows, -1) - np.roll(columns, -1) * rows).sum()) / 2
