"""Matplotlib figures of volumes, channels, batches, predictions and training.

Every function returns a `matplotlib.figure.Figure` of its own: no pyplot, no global state, no display, never `show`.
Pictures are in radiological orientation: the patient's right is on the left, anterior is up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.drawing import (
    CURVE_COLORS,
    MEASURED,
    best_slice,
    chosen_window,
    class_color,
    class_legend,
    contours,
    liver_window,
    new_figure,
    overlay,
    show_image,
    show_slice,
    slice_aspect,
    window_title,
)
from liverseg_tf.errors import ConfigError, GeometryError
from liverseg_tf.labels import (
    CLASSES,
    LIVER,
    TUMOUR,
    color_mask,
    to_labels,
)

_NOT_CURVES = {"epoch", "step", "seconds", "time", "epoch_seconds"}
_RATES = {"lr", "learning_rate"}
_CURVE_NAMES = {"loss": "training", "val_loss": "validation", "lr": "learning rate"}


def sample_figure(
    volume: CTVolume,
    mask: MaskVolume | np.ndarray | None = None,
    slice_index: int | None = None,
    window: str | tuple[float, float] = MEASURED,
    safe_colors: bool = True,
) -> Figure:
    """Draw one slice: original, windowed, mask, overlay.

    Args:
        volume: the CT.
        mask: class indices on the same grid, (rows, columns, slices) if an array; None leaves mask and overlay out.
        slice_index: slice, counted from inferior; by default the one with most tumour, else most liver, else middle.
        window: preset's name, (width, level) in HU, or "measured": centred on the mask's liver (`liver_window`).
        safe_colors: use the colour-blind-safe colours.

    Raises:
        GeometryError: for a mask of another shape, or a slice that is not there.
        ConfigError: for an unknown window.

    Examples:
        >>> volume = CTVolume.from_array(np.zeros((32, 32, 8), np.int16), spacing_mm=(1, 1, 2))
        >>> len(sample_figure(volume).axes)
        2
    """
    labels = mask_array(mask, volume)
    index = best_slice(labels, volume.shape[2]) if slice_index is None else check_slice(slice_index, volume)
    if window == MEASURED:
        window = liver_window(volume, labels)
    hu = volume.slices(index, index + 1)[0]
    aspect = slice_aspect(volume.spacing_mm)
    panels = 2 if labels is None else 4
    figure, axes = new_figure(1, panels, hu.shape[0] * aspect / hu.shape[1])
    show_slice(axes[0], hu, None, aspect, f"original, {hu.min():.0f} to {hu.max():.0f} HU")
    show_slice(axes[1], hu, window, aspect, window_title(window))
    if labels is not None:
        plane = labels[..., index]
        show_image(axes[2], color_mask(plane, safe_colors), (0, 255), aspect, letters=False)
        counts = np.bincount(plane.ravel(), minlength=len(CLASSES))
        axes[2].set_title(
            "mask: " + ", ".join(f"{n:,} {c.name}" for c, n in zip(CLASSES, counts, strict=True) if c.index)
        )
        show_slice(axes[3], hu, window, aspect, "overlay")
        overlay(axes[3], plane, aspect, safe_colors)
        class_legend(figure, safe_colors)
    axes[0].set_xlabel(f"{_name(volume)}, slice {index + 1} of {volume.shape[2]}", loc="left")
    return figure


def channels_figure(
    hu: np.ndarray,
    channels: Any = None,
    spacing_mm: Sequence[float] = (1.0, 1.0),
    bins: int = 120,
) -> Figure:
    """Draw a slice's channels as the network sees them, each over its histogram; HU and their histogram come first.

    Args:
        hu: (rows, columns) of real numbers, HU.
        channels: a `ChannelsConfig`; by default the liver window, the custom window and the histogram.
        spacing_mm: (row, column).
        bins: bars of each histogram.

    Raises:
        GeometryError: if `hu` is not 2-D.

    Examples:
        >>> figure = channels_figure(np.random.default_rng(0).normal(0, 100, (64, 64)))
    """
    from liverseg_tf.channels import CTChannels
    from liverseg_tf.config import ChannelsConfig

    hu = np.asarray(hu)
    if hu.ndim != 2:
        raise GeometryError(f"channels_figure: expected one slice (rows, columns), got an array of shape {hu.shape}")
    channels = channels or ChannelsConfig()
    values = CTChannels.from_channels_config(channels)(hu[None]).numpy()[0]
    aspect = slice_aspect(spacing_mm)
    figure, axes = new_figure(2, 1 + channels.count, hu.shape[0] * aspect / hu.shape[1], share_rows=False)
    show_slice(axes[0, 0], hu, None, aspect, "before\nHU")
    _histogram(axes[1, 0], hu, bins, "HU")
    for column, name in enumerate(channel_names(channels)):
        show_image(
            axes[0, column + 1],
            values[..., column],
            (0, 1),
            aspect,
            f"channel {column + 1}\n{name}",
        )
        _histogram(axes[1, column + 1], values[..., column], bins, "value, 0 to 1")
    return figure


def batch_figure(
    channels: np.ndarray,
    labels: np.ndarray,
    columns: int = 4,
    limit: int = 16,
    safe_colors: bool = True,
) -> Figure:
    """Draw a batch as the network gets it, with the labels laid over.

    Args:
        channels: (B, S, S, C) float in [0, 1]; the first three show as red, green and blue, fewer as grey.
        labels: (B, S, S) integer, 0 to 2.
        columns: pictures in a row.
        limit: at most so many pictures, from the batch's first.
        safe_colors: use the colour-blind-safe colours.

    Raises:
        GeometryError: if the shapes don't fit together.
        LabelError: for other labels.
        ConfigError: for fewer than one picture.

    Examples:
        >>> figure = batch_figure(np.zeros((2, 32, 32, 3)), np.zeros((2, 32, 32), np.uint8))
    """
    channels, labels = np.asarray(channels), np.asarray(labels)
    if channels.ndim != 4 or channels.shape[:3] != labels.shape or not len(channels):
        raise GeometryError(
            "batch_figure: expected channels (B, S, S, C) and labels (B, S, S), "
            f"got shapes {channels.shape} and {labels.shape}"
        )
    if columns < 1 or limit < 1:
        raise ConfigError(f"batch_figure: expected columns and limit of at least 1. Received: {columns}, {limit}")
    labels = to_labels(labels, "labels")
    count = min(limit, len(channels))
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, 2 * columns, channels.shape[1] / channels.shape[2], panel_inches=1.9)
    axes = np.asarray(axes).reshape(-1, 2)
    for i, (left, right) in enumerate(axes):
        if i >= count:
            left.remove(), right.remove()
            continue
        image = channels[i, ..., :3] if channels.shape[3] >= 3 else channels[i, ..., 0]
        show_image(left, image, (0, 1), 1.0, letters=i == 0)
        show_image(right, image[..., 0] if image.ndim == 3 else image, (0, 1), 1.0)
        overlay(right, labels[i], 1.0, safe_colors)
        present = [c.name for c in CLASSES if c.index and (labels[i] == c.index).any()]
        right.set_title(", ".join(present) or "neither")
    class_legend(figure, safe_colors)
    return figure


def prediction_figure(
    hu: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0),
    window: str | tuple[float, float] | None = MEASURED,
    title: str = "",
    safe_colors: bool = True,
) -> Figure:
    """Draw target against prediction for one slice or a few, with Dice and IoU of liver and tumour written on.

    Liver means liver with tumour, as LiTS scores it. Where neither mask has a class, its figures are given as a dash.

    Args:
        hu: (rows, columns) or (N, rows, columns) of real numbers: HU, or a channel with `window=None`.
        truth, prediction: the same shape, integer, 0 to 2.
        spacing_mm: (row, column).
        window: preset's name, (width, level) in HU, or "measured": centred on the target's liver; None shows each
            picture's own range.
        title: above it all.
        safe_colors: use the colour-blind-safe colours.

    Raises:
        GeometryError: if the shapes differ.
        LabelError: for other values in a mask.

    Examples:
        >>> mask = np.eye(32, dtype=np.uint8)
        >>> prediction_figure(np.zeros((32, 32)), mask, mask).axes[2].get_title().splitlines()[1]
        'liver: Dice 1.000, IoU 1.000'
    """
    hu, truth, prediction = (np.asarray(a) for a in (hu, truth, prediction))
    if hu.ndim not in (2, 3) or not hu.shape == truth.shape == prediction.shape:
        raise GeometryError(
            "prediction_figure: expected HU, truth and prediction of one shape, (rows, columns) or (N, rows, columns), "
            f"got {hu.shape}, {truth.shape} and {prediction.shape}"
        )
    truth, prediction = to_labels(truth, "truth"), to_labels(prediction, "prediction")
    hu, truth, prediction = (a.reshape(-1, *a.shape[-2:]) for a in (hu, truth, prediction))
    if window is not None:
        window = chosen_window(window, hu, truth if (truth == LIVER).any() else prediction)
    aspect = slice_aspect(spacing_mm)
    figure, axes = new_figure(len(hu), 4, hu.shape[1] * aspect / hu.shape[2])
    for row, image, true, predicted in zip(np.reshape(axes, (-1, 4)), hu, truth, prediction, strict=True):
        show_slice(row[0], image, window, aspect, window_title(window))
        show_slice(row[1], image, window, aspect, "target")
        overlay(row[1], true, aspect, safe_colors)
        show_slice(
            row[2],
            image,
            window,
            aspect,
            "prediction\n" + "\n".join(_overlap_lines(true, predicted)),
        )
        overlay(row[2], predicted, aspect, safe_colors)
        show_slice(row[3], image, window, aspect, "target dashed, prediction solid")
        contours(row[3], true, aspect, safe_colors, linestyle="dashed")
        contours(row[3], predicted, aspect, safe_colors)
    class_legend(figure, safe_colors)
    if title:
        figure.suptitle(title)
    return figure


def history_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw training curves: loss, validation Dice of liver and tumour, learning rate.

    Args:
        rows: one mapping for each epoch with the number under `epoch`. Drawn are `loss` and `val_loss`, the Dice of
            liver and tumour over validation cases (`val_case_<class>_dice`), and the learning rate; where these scores
            are missing, whatever other figures the rows hold. A change of a text under `phase` is marked by a line.
        title: above it all.

    Raises:
        ConfigError: if there is nothing to draw.

    Examples:
        >>> figure = history_figure([{"epoch": 1, "loss": 1.0, "val_loss": 1.2, "lr": 1e-3}])
    """
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if any(_is_number(r.get(n)) for r in rows)]
    names = [n for n in names if n not in _NOT_CURVES and not n.endswith("seconds")]
    if not names:
        raise ConfigError("history_figure: expected rows with figures such as loss and val_loss, got none")
    dice = [n for n in names if re.fullmatch(r"val_case_\w+_dice", n)]
    scores = dice or [n for n in names if not n.endswith("loss") and n not in _RATES]
    groups = {
        "loss": [n for n in names if n in ("loss", "val_loss")] or [n for n in names if n.endswith("loss")],
        "validation Dice" if dice else "score": scores,
        "learning rate": [n for n in names if n in _RATES],
    }
    groups = {name: members for name, members in groups.items() if members}
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    # 8 inches wide: at 100 dots per inch 800 pixels, in which 10 points stay legible
    figure = Figure(figsize=(8, 6 if len(groups) > 2 else 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(-(-len(groups) // 2), 2, height_ratios=(3, 2)[: -(-len(groups) // 2)])
    for index, (name, members) in enumerate(groups.items()):
        last = index == len(groups) - 1
        panel = figure.add_subplot(grid[index // 2, :] if last and not index % 2 else grid[index // 2, index % 2])
        _draw_curves(panel, rows, epochs, members)
        panel.set(title=name, xlabel="epoch")
        if name == "validation Dice":
            panel.set_ylim(0, 1)
    if title:
        figure.suptitle(title)
    return figure


def _draw_curves(panel: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int], members: Sequence[str]) -> None:
    for member, color in zip(members, itertools.cycle(CURVE_COLORS)):
        values = [row[member] if _is_number(row.get(member)) else np.nan for row in rows]
        label = _CURVE_NAMES.get(member) or re.sub(r"^val_case_(\w+)_dice$", r"\1", member).replace("_", " ")
        panel.plot(
            epochs,
            values,
            color=color,
            marker="o" if len(rows) < 30 else None,
            markersize=3,
            linewidth=1.8,
            label=label,
        )
    phases = [row.get("phase") for row in rows]
    for before, after, epoch in zip(phases, phases[1:], epochs[1:], strict=False):
        if before != after:
            panel.axvline(epoch - 0.5, color="0.4", linewidth=1, linestyle=":")
    drawn = np.concatenate([line.get_ydata() for line in panel.lines[: len(members)]])
    drawn = drawn[np.isfinite(drawn)]
    is_score = not set(members) & (_RATES | {"loss", "val_loss"})
    if not is_score and len(drawn) and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    if len(members) > 1 or is_score:
        panel.legend()


def learning_rate_figure(rates: Sequence[float], losses: Sequence[float], suggestion: float | None = None) -> Figure:
    """Draw a learning-rate range test: loss over rate, and the suggested rate.

    Args:
        rates: learning rates, above 0.
        losses: as many losses.
        suggestion: the rate to mark.

    Examples:
        >>> figure = learning_rate_figure([1e-5, 1e-4, 1e-3], [1.0, 0.7, 2.0], suggestion=1e-4)
    """
    figure, axis = new_figure(1, 1, 0.62, panel_inches=6, picture=False)
    axis.plot(rates, losses, color=CURVE_COLORS[0])
    axis.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        title="learning-rate range test"
        + (": the loss still falls at the end" if len(losses) and int(np.argmin(losses)) == len(losses) - 1 else ""),
    )
    if suggestion is not None:
        axis.axvline(suggestion, color=CURVE_COLORS[1], linestyle="--")
        at = int(np.abs(np.log(np.asarray(rates, float) / suggestion)).argmin())
        axis.plot(suggestion, losses[at], "o", color=CURVE_COLORS[1])
        axis.annotate(
            f"suggested {suggestion:.2g}", (suggestion, losses[at]), (8, 12), textcoords="offset points",
            color="#8f3f00", bbox={"fc": "white", "ec": "none", "pad": 1.5},
        )  # fmt: skip
    axis.grid(alpha=0.3)
    return figure


def counts_figure(
    counts: np.ndarray | Mapping[str, int],
    title: str = "pixels per class",
    safe_colors: bool = True,
) -> Figure:
    """Draw how many pixels or voxels each class has, on a logarithmic scale, with count and share written on.

    Args:
        counts: a mask of any shape (class indices), or a mapping from class names to counts.
        title: above it.
        safe_colors: use the colour-blind-safe colours.

    Raises:
        LabelError: if a mask holds other values.

    Examples:
        >>> [t.get_text() for t in counts_figure(np.array([0, 0, 0, 1])).axes[0].texts]
        ['3 (75.00 %)', '1 (25.00 %)', '0 (0.00 %)']
    """
    if isinstance(counts, Mapping):
        numbers = np.array([counts.get(c.name, 0) for c in CLASSES])
    else:
        numbers = np.bincount(to_labels(np.asarray(counts), "mask").ravel(), minlength=len(CLASSES))
    figure, axis = new_figure(1, 1, 0.45, panel_inches=6.5, picture=False)
    colors = [class_color(c, safe_colors) for c in CLASSES]
    bars = axis.barh(
        [c.name for c in CLASSES],
        np.maximum(numbers, 0.8),
        color=colors,
        edgecolor="0.3",
        linewidth=0.6,
    )
    share = numbers / max(numbers.sum(), 1)
    axis.bar_label(
        bars,
        [f"{n:,} ({s:.2%})".replace("%", " %") for n, s in zip(numbers, share, strict=True)],
        padding=4,
    )
    axis.set(xscale="log", title=title)
    axis.set_xlim(0.8, max(numbers.max(), 10) ** 1.35)
    axis.invert_yaxis()
    return figure


def channel_names(channels: Any) -> list[str]:
    """What each channel of a `ChannelsConfig` is."""
    return [window_title(w) for w in channels.windows] + ["histogram-scaled"] * channels.histogram


def mask_array(mask: MaskVolume | np.ndarray | None, volume: CTVolume) -> np.ndarray | None:
    """(rows, columns, slices) uint8 of a mask that must fit the volume.

    Raises:
        GeometryError: if it doesn't.
        LabelError: if it holds other values than classes.
    """
    if mask is None:
        return None
    labels = np.asarray(mask.labels if isinstance(mask, MaskVolume) else mask)
    if labels.shape != volume.shape:
        raise GeometryError(f"{_name(volume)}: expected a mask of shape {volume.shape}, got {labels.shape}")
    return to_labels(labels, "mask")


def check_slice(index: int, volume: CTVolume) -> int:
    """The index itself, if there is such a slice.

    Raises:
        GeometryError: if there is none.
    """
    if not 0 <= index < volume.shape[2]:
        raise GeometryError(f"{_name(volume)}: expected a slice from 0 to {volume.shape[2] - 1}, got {index}")
    return int(index)


def _name(volume: CTVolume) -> str:
    return volume.path.name if volume.path else "volume"


def _histogram(axis: Axes, values: np.ndarray, bins: int, label: str) -> None:
    finite = values[np.isfinite(values)]
    axis.hist(finite.ravel(), bins=bins, color=CURVE_COLORS[0], log=True)
    axis.set(xlabel=label, ylabel="pixels")
    axis.margins(x=0.01)


def _overlap_lines(truth: np.ndarray, prediction: np.ndarray) -> list[str]:
    from liverseg_tf.evaluation.case_scores import dice, jaccard

    lines = []
    for name, regions in (
        ("liver", (truth >= LIVER, prediction >= LIVER)),
        ("tumour", (truth == TUMOUR, prediction == TUMOUR)),
    ):
        sizes = [int(np.count_nonzero(r)) for r in (*regions, regions[0] & regions[1])]
        text = f"Dice {dice(*sizes):.3f}, IoU {jaccard(*sizes):.3f}" if sizes[0] + sizes[1] else "\N{EN DASH}"
        lines.append(f"{name}: {text}")
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
