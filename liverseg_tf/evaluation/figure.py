"""The overview figure of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from liverseg_tf.drawing import save_figure
from liverseg_tf.errors import ConfigError
from liverseg_tf.evaluation.lesions import SIZES
from liverseg_tf.labels import CLASSES, LIVER, TUMOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from liverseg_tf.evaluation.evaluate import Evaluation

_ORGAN, _LESION = (tuple(c / 255 for c in CLASSES[index].safe_color) for index in (LIVER, TUMOUR))
_MOST_CASES_NAMED = 20
# With fewer cases, limits of agreement and intervals are meaningless.
_FEWEST_FOR_INTERVALS = 5


def plot_evaluation(evaluation: Evaluation) -> Figure:
    """Draw Dice per case, predicted against true volume, Bland and Altman's plot, and lesion detection by size.

    Args:
        evaluation: result of `evaluate`.

    Returns:
        A matplotlib figure; it needs no display and does not change pyplot's state.

    Examples:
        >>> figure = plot_evaluation(evaluate("site/references", "site/predictions", resamples=10))
        >>> len(figure.axes)
        6
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 14), layout="constrained")
    grid = figure.add_gridspec(3, 2)
    _plot_dice(figure.add_subplot(grid[0, 0]), evaluation)
    if evaluation.detection:
        _plot_detection(figure.add_subplot(grid[0, 1]), evaluation)
    for row, region in enumerate(evaluation.organ_regions, start=1):
        _plot_volumes(figure.add_subplot(grid[row, 0]), evaluation, region)
        _plot_bland_altman(figure.add_subplot(grid[row, 1]), evaluation, region)
    settings = evaluation.settings
    figure.suptitle(
        f"{_counted(settings['cases'], 'case')}, {_counted(settings['patients'], 'patient')}\n"
        f"prediction {settings['prediction']}, reference {settings['truth']}, liverseg_tf {settings['liverseg_tf']}",
        fontsize="medium",
    )
    return figure


def check_figure_name(path: str | Path) -> None:
    """Check that a figure can be written under this name.

    Raises:
        ConfigError: for a suffix that matplotlib doesn't know.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix.lower().lstrip(".") not in known:
        raise ConfigError(f"{path}: expected a figure's name ending in one of {', '.join('.' + k for k in known)}")


def save_evaluation_figure(evaluation: Evaluation, path: str | Path, overwrite: bool = False) -> None:
    """Write `plot_evaluation` to a file, whole or not at all.

    Raises:
        ConfigError: as `check_figure_name`.
        OutputError: if it can't or must not be written.
    """
    check_figure_name(path)
    save_figure(plot_evaluation(evaluation), path, inputs=evaluation.inputs, overwrite=overwrite)


def _color(region: str) -> tuple[float, ...]:
    return _LESION if region == "lesion" else _ORGAN


def _plot_dice(axes: Axes, evaluation: Evaluation) -> None:
    names = [str(row["case"]) for row in evaluation.cases]
    places = np.arange(len(names))
    for region, marker in zip(evaluation.organ_regions, "os", strict=False):
        values = [row[f"{region}_dice"] for row in evaluation.cases]
        empty = [
            place for place, row in zip(places, evaluation.cases, strict=True) if not row[f"{region}_volume_truth_ml"]
        ]
        if len(empty) < len(names):
            axes.plot(places, values, marker, color=_color(region), label=f"{region}, mean {np.mean(values):.3f}")
            axes.axhline(np.mean(values), color=_color(region), linewidth=1, linestyle="--")
        if empty:  # their Dice is 1 if none is found, else 0
            label = f"no {region} in the reference"
            axes.plot(empty, [values[i] for i in empty], marker, color=_color(region), mfc="white", label=label)
    few = len(names) <= _MOST_CASES_NAMED
    axes.set_xticks(places if few else [], names if few else [])
    axes.set(
        xlabel="case" if few else "cases in the table's order", ylabel="Dice", ylim=(-0.03, 1.03), title="Dice per case"
    )
    _legend_below(axes)


def _plot_volumes(axes: Axes, evaluation: Evaluation, region: str) -> None:
    truth, prediction = _volumes(evaluation, region)
    longest = max(truth.max(initial=0), prediction.max(initial=0), 1e-3) * 1.05
    axes.plot([0, longest], [0, longest], color="gray", linewidth=1)
    axes.plot(truth, prediction, "o", color=_color(region))
    axes.set(xlabel="reference volume (ml)", ylabel="predicted volume (ml)", title=f"Volume of {region}")
    axes.set(xlim=(-0.02 * longest, longest), ylim=(-0.02 * longest, longest), aspect="equal")


def _plot_bland_altman(axes: Axes, evaluation: Evaluation, region: str) -> None:
    truth, prediction = _volumes(evaluation, region)
    agreement = evaluation.volume_agreement[region]
    axes.plot((truth + prediction) / 2, prediction - truth, "o", color=_color(region))
    axes.axhline(0, color="gray", linewidth=1)
    if agreement["bias_ml"] is not None:
        axes.axhline(agreement["bias_ml"], color=_color(region), label=f"bias {_ml(agreement['bias_ml'])} ml")
    if agreement["limits_of_agreement_ml"] is not None and np.count_nonzero(truth) >= _FEWEST_FOR_INTERVALS:
        low, high = agreement["limits_of_agreement_ml"]
        axes.axhline(low, color=_color(region), linestyle="--", label=f"95 % limits {_ml(low)} to {_ml(high)} ml")
        axes.axhline(high, color=_color(region), linestyle="--")
    axes.margins(y=0.25)
    axes.set(xlabel="mean of both volumes (ml)", ylabel="predicted - reference (ml)", title=f"Agreement on {region}")
    if axes.get_legend_handles_labels()[0]:
        _legend_below(axes)


def _plot_detection(axes: Axes, evaluation: Evaluation) -> None:
    places = np.arange(len(SIZES))
    enough = evaluation.settings["patients"] >= _FEWEST_FOR_INTERVALS
    for offset, (overlap, label, shade) in enumerate(
        (("overlap_above_0", "any overlap", 0.5), ("overlap_above_0.5", "overlap above 0.5", 1.0))
    ):
        rows = [evaluation.detection[overlap][size] for size in SIZES]
        values = np.array([np.nan if row["f1"] is None else row["f1"] for row in rows])
        at = places + 0.4 * offset - 0.2
        axes.bar(at, np.nan_to_num(values), 0.36, color=_LESION, alpha=shade, label=label)
        for place, value, row in zip(at, values, rows, strict=True):
            interval = row["f1_ci95"]
            if interval is not None and enough:
                axes.vlines(place, *interval, color="black", linewidth=1)
            if row["true_positives"] + row["false_negatives"]:
                axes.text(place, 1.03, f"{value:.2f}", ha="center", va="bottom", fontsize="medium")
    counts = [evaluation.detection["overlap_above_0"][size] for size in SIZES]
    for place, row in zip(places, counts, strict=True):
        if not row["true_positives"] + row["false_negatives"]:
            text = f"no reference,\n{row['false_positives']} false"
            axes.text(
                float(place),
                0.05,
                text,
                ha="center",
                va="bottom",
                fontsize="medium",
                bbox={"fc": "white", "ec": "none"},
            )
    sizes = ("small\n< 10 mm", "medium\n10 to 20 mm", "large\n> 20 mm")
    axes.set_xticks(
        places,
        [
            f"{s}\n{_counted(c['true_positives'] + c['false_negatives'], 'lesion')}"
            for s, c in zip(sizes, counts, strict=True)
        ],
    )
    axes.set(ylim=(0, 1.15), ylabel="F1 (95 % interval)" if enough else "F1", title="Lesion detection by size")
    _legend_below(axes, -0.24)


def _legend_below(axes: Axes, height: float = -0.14) -> None:
    """Position below the axis, where there are no points."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, height), fontsize="medium", frameon=False, ncols=2)


def _ml(volume: float) -> str:
    return f"{volume:.3g}".replace("-", "\N{MINUS SIGN}")  # as the axes write it


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _volumes(evaluation: Evaluation, region: str) -> tuple[np.ndarray, np.ndarray]:
    rows = evaluation.cases
    if evaluation.settings["exclude_identity"]:
        rows = [row for row in rows if not row["identity_affine"]]
    truth, prediction = (
        np.array([row[f"{region}_volume_{side}_ml"] for row in rows], float) for side in ("truth", "prediction")
    )
    return truth, prediction
