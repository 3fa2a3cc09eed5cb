"""`summarize`: a whole archive on one page and in one CSV: distributions, outliers, flags, what failed."""

from __future__ import annotations

import csv
import html
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from liverseg_tf.data.nifti import stem
from liverseg_tf.errors import CaseError, InputFileError, LiverSegError, OutputError
from liverseg_tf.evaluation.measure import FLAGS, SMALLEST_LIVER_ML, measure
from liverseg_tf.evaluation.pairs import masks_in
from liverseg_tf.files import csv_cell
from liverseg_tf.inference.run_manifest import MANIFEST, read_rows
from liverseg_tf.labels import LIVER_CLASSES, ClassSet
from liverseg_tf.ownership import claim, write_text
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE, SOFTWARE
from liverseg_tf.reporting.assets import asset, fill, script_data
from liverseg_tf.wording import counted, readable

# What has a distribution: column, words, and whether it is spread over magnitudes.
FIGURES = (
    ("liver_volume_ml", "Liver (ml)", True),
    ("tumour_volume_ml", "Tumours (ml)", True),
    ("tumour_burden", "Burden", True),
    ("lesion_count", "Lesions", True),
    ("liver_mean_hu", "Liver (HU)", False),
    ("seconds", "Seconds", True),
)
# So many robust standard deviations from the median, and a case is an outlier.
_OUTLIER = 4.0
_BINS = 24

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Summary:
    """A cohort.

    Attributes:
        rows: one for each case, in their order: `case`, `status` ("done" or "error"), the figures of `FIGURES` (None
            where unknown), `flags`, `outlier_in`, `warnings`, `error`, `mask`, `report`.
        folder: where they lie.
        classes: of the masks; of another organ, "liver" and "tumour" in rows stand for it and its lesions, and what is
            written has its names.

    Examples:
        >>> summarize("site/references").save("cohort.html")
        (PosixPath('cohort.html'), PosixPath('cohort.csv'))
    """

    rows: tuple[dict[str, Any], ...]
    folder: Path
    classes: ClassSet = LIVER_CLASSES

    @property
    def figures(self) -> list[tuple[str, str, bool]]:
        """`FIGURES` that these masks have: of an organ without lesions those of the organ alone."""
        has_lesion = self.classes.lesion is not None
        return [one for one in FIGURES if has_lesion or not one[0].startswith(("tumour", "lesion"))]

    def named_rows(self) -> list[dict[str, Any]]:
        """The rows under the names of the masks' classes."""
        left_out = {name for name, *_ in FIGURES} - {name for name, *_ in self.figures}
        named = self.classes.named
        return [
            {
                named(key): [named(v) for v in value] if key in ("flags", "outlier_in") else value
                for key, value in row.items()
                if key not in left_out
            }
            for row in self.rows
        ]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of cases that failed."""
        return [row for row in self.rows if row["status"] != "done"]

    def distribution(self, name: str) -> dict[str, float] | None:
        """Count, least, quartiles and largest of a figure; None if no case has it."""
        values = _values(self.rows, name)
        if not len(values):
            return None
        low, first, median, third, high = np.percentile(values, (0, 25, 50, 75, 100)).tolist()
        return {"count": len(values), "least": low, "q1": first, "median": median, "q3": third, "largest": high}

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        flagged = [flag for row in self.rows for flag in row["flags"]]
        return {
            "cases": len(self.rows),
            "failed": len(self.failed),
            "flags": {self.classes.named(flag): flagged.count(flag) for flag in dict.fromkeys(flagged)},
            "outliers": sum(bool(row["outlier_in"]) for row in self.rows),
            "distributions": {self.classes.named(name): self.distribution(name) for name, *_ in self.figures},
            "rows": self.named_rows(),
            "note": NOT_A_MEDICAL_DEVICE,
        }

    def to_csv(self) -> str:
        """CSV with a row for each case."""
        text = io.StringIO()
        rows = self.named_rows()
        names = list(rows[0])
        writer = csv.DictWriter(text, names, lineterminator="\r\n")
        writer.writeheader()
        for row in rows:
            cells = {k: " ".join(v) if isinstance(v, (list, tuple)) else v for k, v in row.items()}
            writer.writerow({name: csv_cell(value) for name, value in cells.items()})
        return text.getvalue()

    def save(self, page: str | Path, *, overwrite: bool = False) -> tuple[Path, Path]:
        """Write the page, and the CSV of the same name beside it.

        Returns:
            Both paths.

        Raises:
            OutputError: for another ending than .html, or if a file may not or can't be written.
        """
        page = Path(page)
        if page.suffix.lower() not in (".html", ".htm"):
            raise OutputError(f"{page}: expected a page's name ending in .html")
        table = page.with_suffix(".csv")
        inputs = [self.folder / MANIFEST]
        for path in (page, table):
            claim(path, "summary", inputs=inputs, overwrite=overwrite)
        write_text(table, self.to_csv(), "summary", inputs=inputs, overwrite=overwrite)
        write_text(page, build_page(self, page.parent), "summary", inputs=inputs, overwrite=overwrite)
        return page, table


def summarize(
    folder: str | Path,
    *,
    flags: bool = False,
    classes: ClassSet | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Summarise what `predict` wrote into a folder, or any folder of masks.

    Args:
        folder: with a `manifest.jsonl`, whose rows have the figures; masks without a row are measured.
        flags: measure every mask, also those with a row: flags such as a liver cut by the field of view need it.
        classes: what the values of masks without a row are, where they don't tell it; by default liver and tumour.
        progress: called with masks done, their number, and the mask's name.

    Returns:
        A `Summary`, whose `save` writes the page.

    Raises:
        InputFileError: if there is no such folder.
        CaseError: if it holds neither a manifest nor a mask, or masks of several organs.

    Examples:
        >>> found = summarize("site/references", flags=True)
        >>> round(found.distribution("liver_volume_ml")["median"]), len(found.failed)
        (432, 0)
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputFileError(f"{folder}: expected a folder of masks, there is none; check the path")
    manifest = folder / MANIFEST
    known = read_rows(manifest) if manifest.is_file() else []
    organs: list[ClassSet] = []
    rows = [_row_of_manifest(folder, row, organs) for row in known]
    listed = {row["mask"] for row in rows}
    try:
        masks = list(masks_in(folder).values())
    except CaseError:
        if not rows:
            raise
        masks = []
    others = [path for path in masks if path.name not in listed]
    to_measure = [path for path in masks if flags and path.name in listed] + others
    by_mask = {row["mask"]: row for row in rows if row["status"] == "done"}
    for done, path in enumerate(to_measure):
        if progress is not None:
            progress(done, len(to_measure), path.name)
        row = by_mask.get(path.name)
        if row is None:
            row = _empty(path.name)
            rows.append(row)
        _measure(row, path, classes, organs)
    if len(set(organs)) > 1:
        named = ", ".join(sorted({one.organ for one in organs}))
        raise CaseError(
            f"{folder}: expected masks of one organ, got {named}; put each organ's into a folder of its own"
        )
    for row in rows:
        row["report"] = _report_of(folder, row)
    _mark_outliers(rows)
    return Summary(tuple(rows), folder, organs[0] if organs else LIVER_CLASSES)


def _empty(name: str) -> dict[str, Any]:
    figures = dict.fromkeys((name for name, *_ in FIGURES), None)
    row: dict[str, Any] = {"case": name, "status": "done", **figures}
    return row | {"flags": [], "outlier_in": [], "warnings": [], "error": "", "mask": name, "report": ""}


def _row_of_manifest(folder: Path, given: dict[str, Any], organs: list[ClassSet]) -> dict[str, Any]:
    mask = Path(str(given.get("output", ""))).name
    row = _empty(mask)
    row["case"] = Path(str(given.get("input", mask))).name or mask
    row["status"] = str(given.get("status", "error"))
    row["error"], row["warnings"] = str(given.get("error") or ""), [str(w) for w in given.get("warnings") or ()]
    row["seconds"] = given.get("seconds")
    statistics = given.get("statistics") or {}
    organ = _organ_of(statistics)
    for name, *_ in FIGURES[:-1]:
        row[name] = statistics.get(organ.named(name))
    if row["status"] == "done":
        organs.append(organ)
        liver = row["liver_volume_ml"]
        if not liver:
            row["flags"].append("no_liver")
        elif organ.is_liver and liver < SMALLEST_LIVER_ML:
            row["flags"].append("small_liver")
        if statistics.get("identity_affine"):
            row["flags"].append("identity_affine")
    return row


def _organ_of(statistics: dict[str, Any]) -> ClassSet:
    """The organ and its lesion by the names of a row's figures, as `MaskStatistics.to_dict` gives them."""
    organ = next((k.removesuffix("_slices_from_1") for k in statistics if k.endswith("_slices_from_1")), None)
    if organ is None or organ == LIVER_CLASSES.organ:
        return LIVER_CLASSES
    lesion = next((k.removesuffix("_burden") for k in statistics if k.endswith("_burden")), None)
    return ClassSet.of(organ, lesion)


def _measure(row: dict[str, Any], path: Path, classes: ClassSet | None, organs: list[ClassSet]) -> None:
    try:
        found = measure(path, classes=classes)
    except LiverSegError as error:
        row["status"], row["error"] = "error", str(error)
        return
    organ = found.statistics.classes
    # further structures play no part here, and a manifest's rows don't tell them
    organs.append(LIVER_CLASSES if organ.is_liver else ClassSet.of(organ.organ, organ.lesion))
    for name in ("liver_volume_ml", "tumour_volume_ml", "tumour_burden", "lesion_count"):
        row[name] = getattr(found.statistics, name)
    row["flags"] = list(found.flags)


def _report_of(folder: Path, row: dict[str, Any]) -> str:
    """A report's page beside the mask, named after it or its CT; "" if there is none."""
    for name in (row["mask"], row["case"]):
        page = stem(Path(name)) + ".html"
        if name and (folder / page).is_file():
            return page
    return ""


def _values(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    found = [row[name] for row in rows if row["status"] == "done" and isinstance(row[name], (int, float))]
    return np.array(found, np.float64)


def _mark_outliers(rows: Sequence[dict[str, Any]]) -> None:
    """By the median and the median deviation, of logarithms where figures are spread over magnitudes."""
    for name, _, is_log in FIGURES:
        values = _values(rows, name)
        values = values[values > 0] if is_log else values
        if len(values) < 8:
            continue
        scaled = np.log(values) if is_log else values
        median = float(np.median(scaled))
        deviation = 1.4826 * float(np.median(np.abs(scaled - median)))
        for row in rows:
            value = row[name]
            if row["status"] != "done" or not isinstance(value, (int, float)) or (is_log and value <= 0):
                continue
            distance = abs((np.log(value) if is_log else value) - median)
            if distance > max(_OUTLIER * deviation, 1e-6):
                row["outlier_in"].append(name)


# --- The page ---


def build_page(found: Summary, beside: Path) -> str:
    """The page's text: figures as drawings, and a table that holds as many rows in the browser as are seen.

    Args:
        found: the cohort.
        beside: the folder that the page will lie in; links to reports go from there.
    """
    figures = [(name, found.classes.heading(words), is_log) for name, words, is_log in found.figures]
    columns = ["case", "status", *(name for name, *_ in figures), "flags", "outlier_in", "error", "report"]
    table: dict[str, list[Any]] = {name: [row[name] for row in found.rows] for name in columns}
    for name, *_ in figures:
        table[name] = [round(v, 4) if isinstance(v, float) else v for v in table[name]]
    up = os.path.relpath(found.folder, beside or ".")
    table["report"] = [quote(f"{up}/{name}".replace(os.sep, "/")) if name else "" for name in table["report"]]
    words = {name: heading for name, heading, _ in figures}
    table["flags"] = [", ".join(readable(found.classes.named(flag)) for flag in flags) for flags in table["flags"]]
    table["outlier_in"] = [
        ", ".join(words.get(name, readable(name)) for name in names) for names in table["outlier_in"]
    ]
    data = {"columns": table, "words": words}
    values = {
        "title": html.escape(counted(len(found.rows), "case")),
        "style": asset("liverseg_tf.reporting", "style.css") + "\n" + asset("liverseg_tf.cohorts", "summary.css"),
        "overview": _overview(found),
        "distributions": "".join(_histogram(found.rows, *figure) for figure in figures)
        or '<p class="note">No figure has two different values.</p>',
        "footer": html.escape(SOFTWARE),
        "data": script_data(data),
        "script": asset("liverseg_tf.cohorts", "summary.js"),
    }
    return fill("liverseg_tf.cohorts", "summary.html", values)


def _overview(found: Summary) -> str:
    content = found.to_dict()
    rows = [("Cases", str(content["cases"])), ("Failed", str(content["failed"]))]
    rows.append(("Outliers", str(content["outliers"])))
    words = {found.classes.named(flag): found.classes.words(text) for flag, text in FLAGS.items()}
    rows += [(words[flag], str(count)) for flag, count in content["flags"].items()]
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="number">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="table"><table id="overview">{body}</table></div>'


def _histogram(rows: Sequence[dict[str, Any]], name: str, words: str, is_log: bool) -> str:
    """One figure's distribution as a drawing; zeros, which have no logarithm, are counted in words."""
    values = _values(rows, name)
    # what is counted has a bar for each number, and 0 is one of them
    whole = name == "lesion_count" and len(values) > 0 and np.ptp(values) < 2 * _BINS
    is_log = is_log and not whole
    shown = values[values > 0] if is_log else values
    if len(shown) < 2 or shown.min() == shown.max():
        return ""
    scaled = np.log10(shown) if is_log else shown
    bins = (
        np.arange(scaled.min() - 0.5, scaled.max() + 1) if whole else np.linspace(scaled.min(), scaled.max(), _BINS + 1)
    )
    counts, edges = np.histogram(scaled, bins)
    wide, high, left, bottom = 300, 130, 6, 20
    step = (wide - 2 * left) / len(counts)
    bars = "".join(
        f'<rect x="{left + i * step:.1f}" y="{high - bottom - (high - bottom - 8) * count / counts.max():.1f}" '
        f'width="{step - 1:.1f}" height="{(high - bottom - 8) * count / counts.max():.1f}"/>'
        for i, count in enumerate(counts.tolist())
        if count
    )
    ends = [10**e if is_log else e for e in (edges[0], (edges[0] + edges[-1]) / 2, edges[-1])]
    if whole:
        ends = [scaled.min(), (scaled.min() + scaled.max()) / 2, scaled.max()]
    ticks = "".join(
        f'<text x="{x}" y="{high - 5}" text-anchor="{anchor}">{_short(end)}</text>'
        for x, end, anchor in zip((left, wide / 2, wide - left), ends, ("start", "middle", "end"), strict=True)
    )
    zeros = len(values) - len(shown)
    note = f", {counted(zeros, 'case')} at 0" if zeros else ""
    median = float(np.median(values))
    return (
        f"<figure><figcaption>{html.escape(words)}: median {_short(median)}{note}{', logarithmic' if is_log else ''}"
        f'</figcaption><svg viewBox="0 0 {wide} {high}" role="img" aria-label="Distribution of {html.escape(words)}">'
        f"{bars}{ticks}</svg></figure>"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
