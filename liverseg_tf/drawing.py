"""Drawing primitives of explanations and reports: grey-scale windows, outlines, legends, patient's sides.

Pictures are in radiological orientation: the patient's right is on the left, anterior is up. Every figure is a
separate `matplotlib.figure.Figure`: no pyplot, no global state, no display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from liverseg_tf.labels import BACKGROUND, CLASSES, LIVER, TUMOUR, LabelClass, color_mask
from liverseg_tf.ownership import owned_write
from liverseg_tf.provenance import SOFTWARE
from liverseg_tf.windows import resolve_window, window_bounds, window_name
from liverseg_tf.wording import readable

if TYPE_CHECKING:
    from liverseg_tf.data.volume import CTVolume

# Okabe and Ito: distinguishable with any colour vision
CURVE_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)


# Name of the window with width `MEASURED_WIDTH_HU`, centred on the liver of the mask.
MEASURED = "measured"
# Shows enhanced vessels (200 HU) beside a portal-venous liver (110 HU), and fat beside an unenhanced one (55 HU).
MEASURED_WIDTH_HU = 240
# Where no liver was measured: between an unenhanced and a portal-venous one.
_UNMEASURED = (300, 80)
_MOST_SLICES_MEASURED = 24
_FEWEST_VOXELS_MEASURED = 50
_SCALE_BARS_MM = (200, 100, 50, 20, 10, 5, 2, 1)


def liver_window(volume: CTVolume, labels: np.ndarray | None) -> tuple[int, int]:
    """A window centred on the liver of this CT, so that neither a bright nor a dark liver is saturated.

    Args:
        volume: the CT.
        labels: (rows, columns, slices) class indices; for None, or fewer than 50 voxels of liver, a fixed window is
            returned.

    Returns:
        (width, level) in HU: the level is the median of the liver without its tumours, rounded to 5 HU.

    Examples:
        >>> from liverseg_tf.data.volume import CTVolume
        >>> labels = np.ones((8, 8, 4), np.uint8)
        >>> liver_window(CTVolume.from_array(np.full((8, 8, 4), 108), (1, 1, 1)), labels)
        (240, 110)
    """
    if labels is None:
        return _UNMEASURED
    inside = np.flatnonzero(areas_of(labels, LIVER))
    chosen = inside[np.linspace(0, len(inside) - 1, min(len(inside), _MOST_SLICES_MEASURED)).astype(int)]
    parts = [volume.slices(i, i + 1)[0][labels[..., i] == LIVER] for i in chosen.tolist()]
    return _window_around(np.concatenate(parts) if parts else np.zeros(0))


def chosen_window(window: str | tuple[float, float], hu: np.ndarray, labels: np.ndarray) -> str | tuple[float, float]:
    """The window itself; for `MEASURED` the window centred on the liver (HU and labels have one shape)."""
    return _window_around(hu[labels == LIVER]) if window == MEASURED else window


def _window_around(liver_hu: np.ndarray) -> tuple[int, int]:
    if liver_hu.size < _FEWEST_VOXELS_MEASURED:
        return _UNMEASURED
    return MEASURED_WIDTH_HU, int(5 * round(float(np.median(liver_hu)) / 5))


def save_figure(
    figure: Figure, path: str | Path, dpi: int = 120, *, inputs: Iterable[str | Path] = (), overwrite: bool = False
) -> None:
    """Write a figure atomically; PNG files contain this library's version.

    Args:
        figure: a matplotlib figure.
        path: file to write; the suffix chooses the format.
        dpi: dots per inch.
        inputs, overwrite: as `ownership.claim`.

    Raises:
        OutputError: if the file can't be written, or must not be replaced.
    """
    metadata = {"Software": SOFTWARE} if Path(path).suffix.lower() == ".png" else None
    with owned_write(path, "figure", inputs=inputs, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=metadata)


def new_figure(
    rows: int,
    columns: int,
    ratio: float,
    panel_inches: float = 3.4,
    picture: bool = True,
    share_rows: bool = True,
) -> tuple[Figure, Any]:
    """Make a figure with its own canvas, and its axes; `ratio` is a panel's height over its width."""
    height = panel_inches * ratio if share_rows or rows == 1 else panel_inches * (ratio + 0.6) / rows
    figure = Figure(figsize=(panel_inches * columns, rows * height + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    options = {} if share_rows else {"height_ratios": [ratio] + [0.6] * (rows - 1)}
    axes = figure.subplots(rows, columns, gridspec_kw=options)
    if picture:
        for axis in np.ravel(axes):
            axis.title.set_fontsize("medium")
    return figure, axes


def show_image(
    axis: Axes,
    image: np.ndarray,
    limits: tuple[float, float],
    aspect: float,
    title: str = "",
    letters: bool = True,
) -> None:
    """Draw a picture in grey (or RGB) without ticks, with R, L, A, P at its edges."""
    axis.imshow(
        image,
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        aspect=aspect,
        interpolation="nearest",
    )
    axis.set(xticks=[], yticks=[])
    axis.set_title(title)
    if letters:
        for letter, x, y in (
            ("R", 0.02, 0.5),
            ("L", 0.98, 0.5),
            ("A", 0.5, 0.98),
            ("P", 0.5, 0.02),
        ):
            axis.text(
                x,
                y,
                letter,
                color="white",
                fontsize="medium",
                path_effects=[withStroke(linewidth=2, foreground="black")],
                transform=axis.transAxes,
                ha={0.02: "left", 0.98: "right"}.get(x, "center"),
                va={0.98: "top", 0.02: "bottom"}.get(y, "center"),
            )


def scale_bar(axis: Axes, pixel_mm: float) -> None:
    """Draw a bar of a round length, up to a third of the picture's width, into the lower left corner.

    Args:
        axis: axis with a picture of `show_image`.
        pixel_mm: width of a pixel in mm.
    """
    first, last = axis.get_xlim()
    columns = abs(last - first)
    length_mm = next((mm for mm in _SCALE_BARS_MM if mm <= columns * pixel_mm / 3), _SCALE_BARS_MM[-1])
    share = length_mm / (columns * pixel_mm)
    halo = [withStroke(linewidth=4, foreground="black")]
    axis.plot(
        [0.03, 0.03 + share], [0.035] * 2, color="white", linewidth=2, transform=axis.transAxes, path_effects=halo
    )
    halo = [withStroke(linewidth=2, foreground="black")]
    axis.text(
        0.03, 0.06, f"{length_mm} mm", color="white", fontsize="medium", transform=axis.transAxes, path_effects=halo
    )  # fmt: skip


def show_slice(
    axis: Axes,
    hu: np.ndarray,
    window: str | tuple[float, float] | None,
    aspect: float,
    title: str = "",
) -> None:
    """Draw HU in a window; None means the slice's full range."""
    limits = (float(hu.min()), max(float(hu.max()), float(hu.min()) + 1)) if window is None else window_bounds(window)
    show_image(axis, hu, limits, aspect, title)


def overlay(
    axis: Axes,
    labels: np.ndarray,
    aspect: float,
    safe_colors: bool = True,
    alpha: float = 0.35,
    classes: Sequence[LabelClass] = CLASSES,
) -> None:
    """Draw classes over a picture with a transparent fill and a contour; the background is not covered."""
    colored = np.dstack(
        [
            color_mask(labels, safe_colors, classes) / 255.0,
            np.where(labels == BACKGROUND, 0.0, alpha),
        ]
    )
    axis.imshow(colored, aspect=aspect, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    contours(axis, labels, aspect, safe_colors, classes=classes)


def contours(
    axis: Axes,
    labels: np.ndarray,
    aspect: float,
    safe_colors: bool = True,
    linestyle: str = "solid",
    width: float = 1.0,
    classes: Sequence[LabelClass] = CLASSES,
) -> None:
    """Draw the outlines of the organ (its tumours included), of the tumours, and of further structures."""
    organ = (LIVER, np.isin(labels, (LIVER, TUMOUR)))
    for label, region in (organ, *((c.index, labels == c.index) for c in classes[TUMOUR:])):
        if region.any():
            # a border of 0 closes outlines at the picture's edge
            padded = np.pad(region.astype(np.float32), 1)
            rows, columns = (np.arange(-1, n + 1) for n in region.shape)
            color = class_color(classes[label], safe_colors)
            axis.contour(
                columns,
                rows,
                padded,
                [0.5],
                colors=[color],
                linewidths=width,
                linestyles=linestyle,
            )
    axis.set_xlim(-0.5, labels.shape[1] - 0.5)
    axis.set_ylim(labels.shape[0] - 0.5, -0.5)
    axis.set_aspect(aspect)


def class_legend(
    figure: Figure, safe_colors: bool = True, extra: Sequence[Any] = (), classes: Sequence[LabelClass] = CLASSES
) -> None:
    """Draw a legend of the classes under the figure."""
    drawn = [c for c in classes if c.index != BACKGROUND]
    handles = [Patch(facecolor=class_color(c, safe_colors), edgecolor="0.4", label=readable(c.name)) for c in drawn]
    figure.legend(
        handles=[*handles, *extra],
        loc="outside lower center",
        ncols=len(handles) + len(extra),
        frameon=False,
    )


def class_color(label_class: LabelClass, safe_colors: bool = True) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class."""
    red, green, blue = label_class.safe_color if safe_colors else label_class.color
    return red / 255, green / 255, blue / 255


def slice_aspect(spacing_mm: Sequence[float]) -> float:
    """Height over width of a pixel of an axial slice."""
    return float(spacing_mm[0]) / float(spacing_mm[1])


def window_title(window: str | tuple[float, float] | None) -> str:
    """Name and HU of a window, for a title."""
    if window is None:
        return "image"
    width, level = resolve_window(window)
    name = window if isinstance(window, str) else window_name(window)
    return f"{'window' if '/' in name else f'{name} window,'} W {width:g} L {level:g} HU"


def best_slice(labels: np.ndarray | None, slices: int) -> int:
    """The slice with most tumour, else most liver, else the middle one."""
    if labels is not None:
        for label in (TUMOUR, LIVER):
            areas = areas_of(labels, label)
            if areas.any():
                return int(areas.argmax())
    return slices // 2


def areas_of(labels: np.ndarray, label: int) -> np.ndarray:
    """A class's pixels in each slice of (rows, columns, slices): (slices,) int; needs no array of that size."""
    return np.array([np.count_nonzero(labels[..., i] == label) for i in range(labels.shape[2])])
