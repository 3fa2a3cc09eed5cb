"""What a set of cases holds: a row for each, with HU range, voxel counts and volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from liverseg_tf.data.cases import Case
from liverseg_tf.labels import CLASSES, LIVER, TUMOUR


def describe_cases(cases: Iterable[Case], progress: Callable[[Case, int], None] | None = None) -> list[dict[str, Any]]:
    """Look into each case, one at a time.

    Args:
        cases: with or without masks.
        progress: called with each case and how many are done.

    Returns:
        A row for each case: `case`, `patient`, `shape` (rows, columns, slices), `spacing_mm` along them, `orientation`
        as stored, `identity_affine` (mm and ml are then unreliable), `hu_min` and `hu_max` as stored, unclipped; with
        a mask `<class>_voxels` for each class, `liver_slices`, `tumour_slices`, and `liver_ml` (with tumours) and
        `tumour_ml`; without one these are None.

    Raises:
        LiverSegError: for a file that can't be used, or a mask on another grid.

    Examples:
        >>> row = describe_cases(find_cases("LiTS"))[0]
        >>> row["shape"], row["spacing_mm"], row["hu_max"]
        ((64, 64, 12), (6.357, 6.357, 21.244), 443.0)
    """
    rows = []
    for done, case in enumerate(cases, 1):
        rows.append(_describe(case))
        if progress is not None:
            progress(case, done)
    return rows


def format_cases(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of `describe_cases`' rows as text, with right-aligned columns.

    Examples:
        >>> print(format_cases([{"case": 7, "hu_min": -1024.0}]))
        case  hu_min
           7   -1024
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_text(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def _describe(case: Case) -> dict[str, Any]:
    volume = case.load_volume(hu_range=None)
    lowest, highest = zip(
        *((part.min(), part.max()) for part in (volume.slices(i, i + 1) for i in range(volume.shape[2]))), strict=True
    )
    row: dict[str, Any] = {
        "case": case.id,
        "patient": case.patient,
        "shape": volume.shape,
        "spacing_mm": tuple(round(s, 3) for s in volume.spacing_mm),
        "orientation": volume.geometry.axis_codes,
        "identity_affine": volume.geometry.is_identity_affine,
        "hu_min": float(min(lowest)),
        "hu_max": float(max(highest)),
    }
    labels = None
    if case.segmentation is not None:
        labels = case.load_mask(volume).labels
    counts = None if labels is None else np.bincount(labels.ravel(), minlength=len(CLASSES))
    row |= {f"{c.name}_voxels": None if counts is None else int(counts[c.index]) for c in CLASSES}
    ml = volume.voxel_volume_ml
    for name, lowest_label in (("liver", LIVER), ("tumour", TUMOUR)):
        row[f"{name}_slices"] = None if labels is None else int((labels >= lowest_label).any(axis=(0, 1)).sum())
    for name, lowest_label in (("liver", LIVER), ("tumour", TUMOUR)):
        row[f"{name}_ml"] = None if counts is None else round(float(counts[lowest_label:].sum()) * ml, 2)
    return row


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " x ".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
