"""`ReportOptions`: what a page shows and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from liverseg_tf.explanation.options import DEFAULT_METHOD

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ReportOptions:
    """Options of `report`.

    Attributes:
        title: heading; by default the file's name.
        explanations: add heatmaps and their verdicts, if the model's layers are accessible. Unsupported heat is
            hidden at first.
        uncertainty: add the uncertainty by test-time augmentation; takes about eight times as long as predicting.
        method: of the heatmaps; see `ExplainOptions`.
        layer: of the heatmaps; see `ExplainOptions`.
        most_lesions: largest number of lesions with a heatmap, the largest lesions first.
        safe_colors: start with the colour-blind-safe colours; the page can switch.
        plan: let the reader try a resection: a plane, or a sphere around a lesion. Not for planning treatment.
        overwrite: replace a file that this library did not make.
        progress: called with steps done, their number, and what is being done.

    Examples:
        >>> ReportOptions(title="Phantom", plan=True).most_lesions
        3
    """

    title: str | None = None
    explanations: bool = True
    uncertainty: bool = False
    method: str = DEFAULT_METHOD
    layer: str = "bottleneck"
    most_lesions: int = 3
    safe_colors: bool = True
    plan: bool = False
    overwrite: bool = False
    progress: Progress | None = None


class ReportChanges(TypedDict, total=False):
    """The fields of `ReportOptions` as keywords of `report`."""

    title: str | None
    explanations: bool
    uncertainty: bool
    method: str
    layer: str
    most_lesions: int
    safe_colors: bool
    plan: bool
    overwrite: bool
    progress: Progress | None
