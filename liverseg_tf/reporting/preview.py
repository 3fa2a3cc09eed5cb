"""One picture of a result that fits a slide: slices, a 3-D view of the liver, volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from liverseg_tf.drawing import (
    class_color,
    class_legend,
    contours,
    liver_window,
    scale_bar,
    show_image,
    slice_aspect,
    window_title,
)
from liverseg_tf.evaluation.statistics import MaskStatistics
from liverseg_tf.reporting.montage import body_box, informative_slices
from liverseg_tf.reporting.surfaces import render_front, surfaces
from liverseg_tf.windows import window_bounds
from liverseg_tf.wording import counted, readable

if TYPE_CHECKING:
    from liverseg_tf.data.volume import CTVolume, MaskVolume

_SLICES = 6
_MOST_LESIONS_NAMED = 6


def preview(volume: CTVolume, mask: MaskVolume, found: MaskStatistics, safe_colors: bool = True) -> Figure:
    """Draw a result on 16 : 9: six slices with outlines, liver and lesions from the front, volumes.

    Args:
        volume: the CT.
        mask: on its grid.
        found: `statistics` of the mask.
        safe_colors: use the colour-blind-safe colours.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    labels = mask.labels
    window = liver_window(volume, labels)
    indices = informative_slices(labels, volume.shape[2], _SLICES)
    hu = [volume.slices(i, i + 1)[0] for i in indices]
    rows, columns = body_box(np.max(hu, axis=0), volume.spacing_mm)
    figure = Figure(figsize=(13.33, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 1, 1.05))
    aspect = slice_aspect(volume.spacing_mm)
    for place, (index, image) in enumerate(zip(indices, hu, strict=True)):
        axis = figure.add_subplot(grid[divmod(place, 3)])
        title = f"slice {index + 1} of {volume.shape[2]}"
        show_image(axis, image[rows, columns], window_bounds(window), aspect, title)
        contours(axis, labels[rows, columns, index], aspect, safe_colors, width=1.3, classes=mask.classes.classes)
        scale_bar(axis, volume.spacing_mm[1])
    solid = figure.add_subplot(grid[0, 3])
    colors = [class_color(c, safe_colors) for c in mask.classes.classes[1:]]
    solid.imshow(render_front(surfaces(mask), 480, 560, colors))
    solid.set(xticks=[], yticks=[])
    solid.set_title("anterior view")
    for letter, x, y in (("R", 0.03, 0.5), ("L", 0.97, 0.5), ("S", 0.5, 0.95), ("I", 0.5, 0.05)):
        halo = [withStroke(linewidth=2, foreground="black")]
        solid.text(x, y, letter, color="white", transform=solid.transAxes, ha="center", va="center", path_effects=halo)
    words = figure.add_subplot(grid[1, 3])
    words.axis("off")
    words.text(0.0, 0.98, "\n".join(_lines(found)), va="top", fontsize=13, linespacing=1.5, transform=words.transAxes)
    class_legend(figure, safe_colors, classes=[c for c in mask.classes.classes if (labels == c.index).any()])
    name = volume.path.name if volume.path else "volume"
    figure.suptitle(f"{name}, {window_title(window)}   (for research only)", fontsize=14)
    return figure


def _lines(found: MaskStatistics) -> list[str]:
    burden = "" if found.tumour_burden is None else f" ({100 * found.tumour_burden:.1f} %)"
    classes = found.classes
    lines = [f"{readable(classes.organ)} {found.liver_volume_ml:.0f} ml"]
    if classes.lesion is not None:
        tumours = "tumours" if classes.is_liver else readable(classes.lesion)
        if found.lesion_count:
            lines += [f"{tumours} {found.tumour_volume_ml:.1f} ml{burden}", counted(found.lesion_count, "lesion")]
        else:
            lines.append("no lesion found")
    lines += [f"{readable(name)} {ml:.1f} ml" for name, ml in found.further_volumes_ml.items()]
    for lesion in found.lesions[:_MOST_LESIONS_NAMED]:
        lines.append(f"  {lesion.number}: {lesion.volume_ml:.1f} ml, slice {lesion.slice}")
    if found.lesion_count > _MOST_LESIONS_NAMED:
        lines.append(f"  and {found.lesion_count - _MOST_LESIONS_NAMED} more")
    return lines
