"""The picture of one explanation: slice, map, curves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.drawing import (
    CURVE_COLORS,
    class_legend,
    contours,
    liver_window,
    new_figure,
    overlay,
    scale_bar,
    show_slice,
    slice_aspect,
    window_title,
)
from liverseg_tf.explanation.faithfulness import DeletionInsertion
from liverseg_tf.labels import CLASSES, LabelClass
from liverseg_tf.wording import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from liverseg_tf.explanation.explain import RegionExplanation

HEAT_COLORS = "inferno"


def explanation_figure(
    volume: CTVolume,
    labels: np.ndarray,
    explained: RegionExplanation,
    safe_colors: bool = True,
    classes: Sequence[LabelClass] = CLASSES,
) -> Figure:
    """Draw a region's largest slice: the CT with the mask, the map over it, and the curves if it was tested.

    Args:
        volume: the CT.
        labels: (rows, columns, slices) integer, of `classes`.
        explained: the region and its maps.
        classes: what the labels are.
        safe_colors: use the colour-blind-safe colours.
    """
    index = explained.region.largest_slice
    hu, plane = volume.slices(index, index + 1)[0], labels[..., index]
    aspect = slice_aspect(volume.spacing_mm)
    figure, axes = new_figure(1, 2 + 2 * (explained.curves is not None), hu.shape[0] * aspect / hu.shape[1])
    window = liver_window(volume, labels)
    show_slice(axes[0], hu, window, aspect, f"{window_title(window)}\nslice {index + 1} of {volume.shape[2]}")
    overlay(axes[0], plane, aspect, safe_colors, alpha=0.15, classes=classes)
    scale_bar(axes[0], volume.spacing_mm[1])
    name = readable(f"{explained.region.name}, class {explained.region.class_name}")
    show_slice(axes[1], hu, window, aspect, f"what raises the score\n{name}")
    heat = explained.slice_map(index)
    # the weaker, the more transparent, so that the CT stays readable
    drawn = axes[1].imshow(heat, cmap=HEAT_COLORS, vmin=0, vmax=1, alpha=0.75 * heat, aspect=aspect)
    contours(axes[1], plane, aspect, safe_colors, classes=classes)
    drawn_bar = figure.colorbar(drawn, ax=axes[1], shrink=0.7, ticks=[0, 0.5, 1])
    if drawn_bar.solids is not None:
        drawn_bar.solids.set_alpha(1)
    if explained.curves is not None:
        _curves(axes[2], explained.curves, "deletion")
        _curves(axes[3], explained.curves, "insertion")
    figure.suptitle(textwrap.fill(explained.words, 110 if explained.curves is None else 170), fontsize="medium")
    class_legend(figure, safe_colors, classes=classes)
    return figure


def _curves(axis: Axes, curves: DeletionInsertion, kind: str) -> None:
    own, random = getattr(curves, kind), getattr(curves, f"random_{kind}")
    areas = getattr(curves, f"random_{kind}_areas")
    axis.plot(curves.fractions, random.T, color="0.8", linewidth=0.8)
    if not np.isnan(random).any():
        axis.plot(curves.fractions, random.mean(axis=0), color="0.4", label=f"random, area {areas.mean():.3f}")
    axis.plot(
        curves.fractions, own, color=CURVE_COLORS[1], marker="o", markersize=3,
        label=f"this map, area {getattr(curves, f'{kind}_area'):.3f}",
    )  # fmt: skip
    better = "lower" if kind == "deletion" else "higher"
    axis.set(title=f"{kind}: {better} is better", xlabel="share of the body", ylabel="probability in the region")
    axis.set_ylim(-0.02, max(1.02 * float(max(own.max(), np.nanmax(random))), 0.05))
    axis.legend(fontsize="medium", loc="upper right" if kind == "deletion" else "lower right")  # where no curve runs
    axis.grid(alpha=0.3)
