"""Voxels of a DICOM series, decoded slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from liverseg_tf.data.dicom.headers import DicomImage, quiet
from liverseg_tf.data.dicom.series import STEP_TOLERANCE, DicomSeries
from liverseg_tf.data.nifti import max_bytes_limit
from liverseg_tf.data.temporary_slices import TemporarySlices
from liverseg_tf.errors import DataWarning, InputFileError, require, warn
from liverseg_tf.hounsfield import AIR_HU
from liverseg_tf.wording import counted

Slices = TypeVar("Slices", np.ndarray, TemporarySlices)

_NEVER_LESS = np.iinfo(np.int16)


def read_series(series: DicomSeries, max_bytes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode a series to HU; takes memory for the result and one slice.

    Equal duplicates of a slice are dropped; `doubts_about_series` reports them. Padding outside the scanner's
    circle becomes -1024. A series with gaps is resampled to even steps.

    Args:
        series: whole, or uneven (`DicomSeries.is_uneven`).
        max_bytes: most bytes that the voxels may take; see `max_bytes_limit`.

    Returns:
        (columns, rows, slices) int16 where all HU are whole numbers that fit, else float32; and the affine (4, 4)
        float64 to mm in RAS+ coordinates.

    Raises:
        InputFileError: if a slice can't be decoded, duplicates differ, or the limit is exceeded.

    Warns:
        DataWarning: for resampling.
    """
    _check_size(series, len(series.places), max_bytes)
    try:
        hu = _filled(series, np.empty((len(series.places), *series.shape), _dtype(series)))
    except MemoryError:
        raise InputFileError(
            f"{series.path}: {counted(len(series.places), 'slice')}: more memory needed than there is"
        ) from None
    affine = series.affine
    if series.is_uneven:
        hu, affine = _evened(hu, series, max_bytes)
    return hu.transpose(2, 1, 0), affine


def read_series_to_disk(series: DicomSeries, max_bytes: int | None = None) -> TemporarySlices:
    """What `read_series` gives for a series of even steps, in a temporary file; takes memory for a few slices.

    Raises:
        InputFileError: as `read_series`.
        OSError: if the temporary file can't be written.
    """
    _check_size(series, len(series.places), max_bytes)
    return _filled(series, TemporarySlices((series.shape[1], series.shape[0], len(series.places)), _dtype(series)))


def _dtype(series: DicomSeries) -> np.dtype:
    """int16 if all HU are whole numbers: where they don't fit after all, `_filled` changes it."""
    whole = all(float(i.slope).is_integer() and float(i.intercept).is_integer() for i in series.images)
    return np.dtype(np.int16 if whole else np.float32)


def _filled(series: DicomSeries, hu: Slices) -> Slices:
    """Decode the series into `hu`, slice by slice; what is returned may have another type."""
    whole = hu.dtype == np.int16
    place_of = {id(image): index for index, images in enumerate(series.places) for image in images}
    is_filled = np.zeros(len(series.places), bool)
    for image, pixels in _decoded(series):
        values = _to_hu(pixels, image, series, whole)
        if whole and hu.dtype == np.int16 and (values.min() < _NEVER_LESS.min or values.max() > _NEVER_LESS.max):
            hu = hu.astype(np.float32)
        index = place_of[id(image)]
        if not is_filled[index]:
            hu[index], is_filled[index] = values, True
        elif not np.array_equal(hu[index], values.astype(hu.dtype)):
            names = ", ".join(sorted(other.file.name for other in series.places[index]))
            raise InputFileError(
                f"{series.path}: {len(series.places[index])} different images lie at one place ({names}); several "
                "acquisitions or phases in one series? Export them as series of their own"
            )
    return hu


def _decoded(series: DicomSeries) -> Iterator[tuple[DicomImage, np.ndarray]]:
    """Each image's stored pixels (rows, columns), file by file."""
    pixels = require("pydicom.pixels", "dicom", "reading DICOM")
    by_file: dict[int, list[DicomImage]] = {}
    files = {}
    for image in series.images:
        key = id(image.file)
        files[key] = image.file
        by_file.setdefault(key, []).append(image)
    for key, images in by_file.items():
        name = f"{series.path}: {files[key].name}"
        try:
            with quiet(), files[key].open() as stream:
                if images[0].frame is None:
                    yield images[0], _checked(pixels.pixel_array(stream, raw=True, index=0), series)
                    continue
                images = sorted(images, key=lambda image: image.frame or 0)
                frames = pixels.iter_pixels(stream, raw=True, indices=[image.frame for image in images])
                for image, frame in zip(images, frames, strict=True):
                    yield image, _checked(frame, series)
        except InputFileError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            missing = "decod" in str(error) or "plugin" in str(error)
            advice = "is there a decoder for its transfer syntax? pip install 'liverseg_tf[dicom]'" if missing else ""
            raise InputFileError(
                f"{name}: its pixels can't be decoded ({type(error).__name__}, transfer syntax "
                f"{series.transfer_syntax}); {advice or 'is it damaged? Copy or export the series again'}"
            ) from None
        except Exception as error:  # decoders raise many kinds for damaged pixels
            raise InputFileError(
                f"{name}: its pixels can't be decoded ({type(error).__name__}); copy or export the series again"
            ) from None


def _checked(pixels: np.ndarray, series: DicomSeries) -> np.ndarray:
    if pixels.shape != series.shape:
        raise InputFileError(f"{series.path}: expected slices of {series.shape}, a file decodes to {pixels.shape}")
    return pixels


def _to_hu(pixels: np.ndarray, image: DicomImage, series: DicomSeries, whole: bool) -> np.ndarray:
    kind = np.dtype(f"{'i' if series.is_signed else 'u'}{pixels.dtype.itemsize}")
    stored = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(kind)
    outside = None
    if series.padding is not None:
        low, high = series.padding
        outside = (stored >= low) & (stored <= high)
    if whole:
        hu: np.ndarray = stored.astype(np.int64 if kind.itemsize > 2 else np.int32)
        if (image.slope, image.intercept) != (1.0, 0.0):
            hu *= int(image.slope)
            hu += int(image.intercept)
    else:
        hu = (stored.astype(np.float64) * image.slope + image.intercept).astype(np.float32)
    if outside is not None:
        hu[outside] = AIR_HU
    return hu


def _check_size(series: DicomSeries, slices: int, max_bytes: int | None) -> None:
    needed, limit = slices * series.shape[0] * series.shape[1] * 2, max_bytes_limit(max_bytes)
    if needed > limit:
        raise InputFileError(
            f"{series.path}: {slices} slices of {series.shape[0]} x {series.shape[1]} take {needed} bytes, the limit "
            f"is {limit}; if that is right, raise the limit with max_bytes= or LIVERSEG_MAX_BYTES"
        )


def _evened(hu: np.ndarray, series: DicomSeries, max_bytes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Slices at even steps from the first to the last, each interpolated between its two neighbours."""
    positions = series.positions_mm
    line = positions[-1] - positions[0]
    length = float(np.linalg.norm(line))
    along = (positions - positions[0]) @ line / length
    aside = np.linalg.norm(positions - positions[0] - np.outer(along, line) / length, axis=1).max()
    step = float(np.median(np.diff(along)))
    if aside > max(STEP_TOLERANCE * step, 0.1):
        raise InputFileError(
            f"{series.path}: its slices lie up to {aside:.1f} mm off one line and can't be resampled to even steps"
        )
    count = int(round(length / step)) + 1
    _check_size(series, count, max_bytes)
    step = length / (count - 1)
    even = np.empty((count, *hu.shape[1:]), hu.dtype)
    for index, at in enumerate(np.linspace(0, length, count)):
        upper = int(np.clip(np.searchsorted(along, at - 1e-6), 1, len(along) - 1))
        share = (at - along[upper - 1]) / (along[upper] - along[upper - 1])
        mixed = (1 - share) * hu[upper - 1].astype(np.float32) + share * hu[upper]
        even[index] = np.rint(mixed) if hu.dtype == np.int16 else mixed
    warn(
        f"{series.path}: has gaps or uneven steps; it was resampled to {count} slices {step:.2f} mm apart, and what "
        "lies in a gap is interpolated from its neighbours",
        DataWarning,
    )
    affine = series.affine
    affine[:3, 2] = np.array([-1.0, -1.0, 1.0]) * line / (count - 1)
    return even, affine
