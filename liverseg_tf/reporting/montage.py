"""A contact sheet of a volume's most informative slices."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.drawing import (
    MEASURED,
    class_legend,
    contours,
    liver_window,
    new_figure,
    scale_bar,
    show_image,
    slice_aspect,
    window_title,
)
from liverseg_tf.errors import ConfigError
from liverseg_tf.evaluation.lesions import label_lesions
from liverseg_tf.hounsfield import BODY_HU
from liverseg_tf.labels import CLASSES, LIVER, TUMOUR
from liverseg_tf.reporting.figures import mask_array
from liverseg_tf.windows import window_bounds

_MARGIN_MM = 8


def montage(
    volume: CTVolume,
    labels: MaskVolume | np.ndarray | None = None,
    truth: MaskVolume | np.ndarray | None = None,
    *,
    count: int = 12,
    columns: int = 4,
    window: str | tuple[float, float] = MEASURED,
    safe_colors: bool = True,
) -> Figure:
    """Draw a volume's most informative slices with the outlines of its masks.

    Args:
        volume: the CT.
        labels: class indices on the same grid, drawn as solid contours.
        truth: the reference, drawn dashed.
        count: at most so many slices (see `informative_slices`).
        columns: pictures in a row.
        window: preset's name, (width, level) in HU, or "measured": centred on the liver of the masks (`liver_window`).
        safe_colors: use the colour-blind-safe colours.

    Returns:
        A matplotlib figure; it needs no display.

    Raises:
        GeometryError: for a mask of another shape.
        ConfigError: for an unknown window, or a count below 1.

    Examples:
        >>> volume = CTVolume.from_array(np.zeros((32, 32, 8), np.int16), spacing_mm=(1, 1, 2))
        >>> len(montage(volume, count=4).axes)
        4
    """
    if count < 1 or columns < 1:
        raise ConfigError(
            f"montage: expected at least one slice and column. Received: count={count}, columns={columns}"
        )
    masks = [mask_array(mask, volume) for mask in (labels, truth)]
    seen = np.maximum.reduce([m for m in masks if m is not None]) if any(m is not None for m in masks) else None
    indices = informative_slices(seen, volume.shape[2], count)
    if window == MEASURED:
        window = liver_window(volume, seen)
    hu = [volume.slices(i, i + 1)[0] for i in indices]
    rows_cut, columns_cut = body_box(np.max(hu, axis=0), volume.spacing_mm)
    aspect = slice_aspect(volume.spacing_mm)
    columns = min(columns, len(indices))
    height, width = rows_cut.stop - rows_cut.start, columns_cut.stop - columns_cut.start
    figure, axes = new_figure(-(-len(indices) // columns), columns, height * aspect / width, panel_inches=3.2)
    axes = np.ravel(axes)
    for axis, index, image in zip(axes, indices, hu, strict=False):
        show_image(
            axis,
            image[rows_cut, columns_cut],
            window_bounds(window),
            aspect,
        )
        axis.set_title(f"slice {index + 1} of {volume.shape[2]}", fontsize="large")
        for mask, style in zip(masks, ("solid", "dashed"), strict=True):
            if mask is not None:
                contours(
                    axis,
                    mask[rows_cut, columns_cut, index],
                    aspect,
                    safe_colors,
                    linestyle=style,
                )
        scale_bar(axis, volume.spacing_mm[1])
    for axis in axes[len(indices) :]:
        axis.remove()
    if seen is not None:
        styles = [Line2D([], [], color="0.3", linestyle="dashed", label="reference")] if masks[1] is not None else []
        if styles and masks[0] is not None:
            styles.insert(0, Line2D([], [], color="0.3", label="prediction"))
        class_legend(figure, safe_colors, styles, [c for c in CLASSES if (seen == c.index).any()])
    figure.suptitle(f"{volume.path.name if volume.path else 'volume'}, {window_title(window)}\n{_why_these(seen)}")
    return figure


def informative_slices(labels: np.ndarray | None, slices: int, count: int) -> list[int]:
    """Choose slices: each lesion's largest, the biggest lesions first, for up to half; then where the gaps between
    them are widest. Without lesions they are spread evenly over the liver.

    Without a mask, or with an empty one, they are spread evenly over the volume.

    Args:
        labels: (rows, columns, slices) integer, or None.
        slices: number of slices of the volume.
        count: how many to choose, at least 1.

    Returns:
        Ascending slice indices, at most `count`.

    Examples:
        >>> informative_slices(None, 10, 3)
        [1, 5, 8]
    """
    if labels is None or not (labels >= LIVER).any():
        return _spread(0, slices, min(count, slices))
    chosen: list[int] = []
    lesions, number = label_lesions(labels == TUMOUR)
    if number:
        inside = np.nonzero(lesions)
        # (lesions, slices): voxels of each lesion in each slice
        voxels = np.bincount((lesions[inside] - 1) * slices + inside[2], minlength=number * slices).reshape(
            number, slices
        )
        for lesion in np.argsort(-voxels.sum(axis=1), kind="stable"):
            # a lesion that a chosen slice shows nearly at its largest needs no slice of its own
            shown = bool((voxels[lesion][chosen] >= 0.8 * voxels[lesion].max()).any())
            if not shown and len(chosen) < max(1, count // 2):
                chosen.append(int(voxels[lesion].argmax()))
    extent = np.flatnonzero((labels >= LIVER).any(axis=(0, 1)))
    first, last = int(extent[0]), int(extent[-1])
    if not chosen:
        return _spread(first, last + 1, min(count, last + 1 - first))
    while len(chosen) < min(count, last + 1 - first):
        # as far as possible from what is shown: neighbours look alike
        taken = np.array([first - 1, last + 1, *chosen])
        away = np.abs(np.arange(first, last + 1)[:, None] - taken).min(axis=1)
        chosen.append(first + int(away.argmax()))
    return sorted(chosen)


def _why_these(labels: np.ndarray | None) -> str:
    if labels is None or not (labels >= LIVER).any():
        return "slices spread evenly over the CT"
    if not (labels == TUMOUR).any():
        return "slices spread evenly over the liver"
    return "where the largest lesions are largest, then slices between them over the liver"


def _spread(start: int, stop: int, count: int) -> list[int]:
    """`count` whole numbers in the middles of equal parts of [start, stop)."""
    return [int(start + (stop - start) * (2 * i + 1) / (2 * count)) for i in range(count)]


def body_box(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[slice, slice]:
    """Rows and columns of a slice (rows, columns) in HU that the body takes, with a margin of 8 mm."""
    body = hu > BODY_HU
    # a row or column belongs to the body if a twentieth of it does: the couch's wires don't
    box = []
    for axis in (0, 1):
        found = np.flatnonzero(body.mean(axis=1 - axis) > 0.05)
        margin = int(np.ceil(_MARGIN_MM / spacing_mm[axis]))
        if not len(found):
            return slice(0, hu.shape[0]), slice(0, hu.shape[1])
        box.append(slice(max(0, found[0] - margin), min(hu.shape[axis], found[-1] + 1 + margin)))
    return box[0], box[1]
