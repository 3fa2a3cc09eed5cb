"""What a mask holds, gathered once for every DICOM object made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.data.dicom.series import DicomSeries
from liverseg_tf.data.dicom.writing import uid_of
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import OutputError, require
from liverseg_tf.evaluation.lesion_axes import LesionAxes, lesion_axes, numbered_lesions
from liverseg_tf.evaluation.statistics import LesionStatistics, MaskStatistics, statistics


@dataclass(frozen=True, eq=False)
class LesionFinding:
    """One lesion.

    Attributes:
        statistics, axes: its figures.
        tracking_uid: the same in every object, and in every run that finds the same voxels.
        tracking_id: its name in them.
    """

    statistics: LesionStatistics
    axes: LesionAxes
    tracking_uid: str
    tracking_id: str


def liver_tracking_uid(series_uid: str) -> str:
    """The tracking UID of a liver that is not known from another scan."""
    return uid_of("liver", series_uid)


def lesion_tracking_uid(series_uid: str, lesion: LesionStatistics) -> str:
    """The tracking UID of a lesion that is not known from another scan: computed from its series, place and volume."""
    return uid_of("lesion", series_uid, *lesion.center_mm, round(lesion.volume_ml, 6))


class Findings:
    """A mask on the grid of the DICOM series that its CT came from.

    Args:
        labels: (rows A->P, columns R->L, slices I->S) uint8 of 0, 1 and 2.
        volume: the CT, read from DICOM.
        model: what the mask was made with, as text.
        model_sha256: of its weights, or None.
        tracking: name and tracking UID of lesions that are known from another scan, by their numbers here.
        liver_uid: the liver's tracking UID where it is known from another scan.

    Raises:
        OutputError: if the CT is no DICOM series, has lost its UIDs, or was resampled.
    """

    def __init__(
        self,
        labels: np.ndarray,
        volume: CTVolume,
        model: str = "",
        model_sha256: str | None = None,
        tracking: Mapping[int, tuple[str, str]] | None = None,
        liver_uid: str | None = None,
    ):
        require("highdicom", "dicom", "writing DICOM")
        series = volume.series
        if series is None:
            raise OutputError(f"{volume.name}: is no DICOM series; a DICOM object needs one to belong to")
        if series.is_uneven:
            raise OutputError(
                f"{volume.name}: was resampled (allow_gaps=True), so its mask has no slices in the series; write NIfTI"
            )
        if not all((series.uid, series.study_uid, *(i.sop_instance_uid for i in series.images))):
            raise OutputError(
                f"{volume.name}: its files have lost their UIDs, so nothing can refer to them; write NIfTI"
            )
        self.series: DicomSeries = series
        self.labels, self.volume, self.model, self.model_sha256 = labels, volume, model, model_sha256
        self._tracking = tracking or {}
        self.liver_tracking_uid = liver_uid or liver_tracking_uid(series.uid)

    @cached_property
    def statistics(self) -> MaskStatistics:
        geometry = self.volume.geometry
        return statistics(MaskVolume(geometry.to_file(self.labels), geometry), self.volume)

    @cached_property
    def lesion_numbers(self) -> np.ndarray:
        """The lesions' numbers on the mask's grid, in the smallest type; memory for the box that holds them alone."""
        numbered, box = numbered_lesions(self.labels)
        whole = np.zeros(self.labels.shape, np.min_scalar_type(int(numbered.max(initial=0))))
        if box is not None:
            whole[box] = numbered
        return whole

    @cached_property
    def lesions(self) -> list[LesionFinding]:
        """The largest first."""
        found = []
        boxes = ndimage.find_objects(self.lesion_numbers)
        for lesion, box in zip(self.statistics.lesions, boxes, strict=True):
            rows, columns, slices = (s.start for s in box)
            inside = self.lesion_numbers[box] == lesion.number
            axes = lesion_axes(inside, self.volume.geometry, (rows, columns, slices))
            own = f"Lesion {lesion.number}", lesion_tracking_uid(self.series.uid, lesion)
            name, uid = self._tracking.get(lesion.number, own)
            found.append(LesionFinding(lesion, axes, uid, name))
        return found

    @cached_property
    def slices(self) -> slice:
        """Slices of the series, in its own order, from the first to the last that hold anything."""
        there = np.flatnonzero([plane.any() for plane in self.frames(slice(None))])
        return slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0)

    def frames(self, slices: slice) -> np.ndarray:
        """The mask as the series has it: (slices, rows, columns) uint8."""
        return self.volume.geometry.to_file(self.labels).transpose(2, 1, 0)[slices]

    def lesion_frames(self, slices: slice) -> np.ndarray:
        """The lesions' numbers as the series has them: (slices, rows, columns), in the smallest type."""
        return self.volume.geometry.to_file(self.lesion_numbers).transpose(2, 1, 0)[slices]

    def source_datasets(self, slices: slice) -> list[Any]:
        """Headers of the images at these slices, without pixels; of a multi-frame series its one file."""
        import pydicom

        images = [place[0] for place in self.series.places[slices]]
        files = {id(image.file): image.file for image in images}
        found = []
        with quiet():
            for file in files.values():
                with file.open() as stream:
                    data = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
                # private tags may hold names, and no object needs them
                data.remove_private_tags()
                found.append(data)
        return found
