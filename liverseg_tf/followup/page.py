"""The page of a comparison: two scans side by side, one place in both, and the state of each lesion."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from liverseg_tf.data.volume import CTVolume, Geometry
from liverseg_tf.evaluation.measure import FLAGS
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.hounsfield import AIR_HU
from liverseg_tf.labels import BACKGROUND
from liverseg_tf.provenance import SOFTWARE
from liverseg_tf.reporting.assets import asset, fill, script_data
from liverseg_tf.reporting.page_data import SLICES_A_LINE, VOLUME_BYTES, encode_layers
from liverseg_tf.windows import resolve_window

if TYPE_CHECKING:
    from liverseg_tf.followup.compare import Comparison, Scan

# Margin around the liver in the displayed part of each CT.
_MARGIN_MM = 25.0
# Spacing of the lattice by which the page maps positions, with linear interpolation.
_LATTICE_MM = 15.0
_WINDOWS = ("custom", "abdomen_soft", "mediastinum", "lungs", "spine_bone")
_CURVES = ("#7fb4d8", "#ffe36e", "#e98a8a", "#8fd694", "#c6a0e8", "#f0b35f", "#6fd3cf", "#d8d8d8")


def build_page(found: Comparison, title: str) -> str:
    """The page's text.

    Args:
        found: the comparison; the scans are shown only if all of them have CTs.
        title: heading.

    Returns:
        HTML that needs no network, below 25 MB.
    """
    with_pictures = all(scan.ct is not None for scan in found.scans)
    scans: list[dict[str, Any]] = []
    blobs: dict[str, str] = {}
    if with_pictures:
        budget = VOLUME_BYTES // len(found.scans)
        for number, scan in enumerate(found.scans):
            shown, texts = _shown(found, number, scan, budget)
            scans.append(shown)
            blobs |= {f"{key}-{number}": text for key, text in texts.items()}
    lesions = [{"id": track.id, "place": _place(found, track)} for track in found.lesions]
    data = {
        "scans": scans,
        "slices_a_line": SLICES_A_LINE,
        "lesions": lesions,
        "organ": found.classes.words("liver"),
        "start": lesions[0]["place"] if lesions else _middle(found.scans[0]),
        "lowest_hu": AIR_HU,
        "colors": [c.safe_color for c in found.classes.classes],
        "windows": _windows(found),
    }
    sections = [_scans(found), _lesions(found), _growth(found) if len(found.scans) > 2 else "", _method(found)]
    values = {
        "title": html.escape(title),
        "style": asset("liverseg_tf.reporting", "style.css") + "\n" + asset("liverseg_tf.followup", "style.css"),
        "viewer": asset("liverseg_tf.followup", "viewer.html") if with_pictures else "",
        "sections": "\n".join(filter(None, sections)),
        "footer": html.escape(SOFTWARE),
        "data": script_data(data),
        "blobs": "\n".join(f'<script type="text/plain" id="blob-{k}">{text}</script>' for k, text in blobs.items()),
        "script": asset("liverseg_tf.reporting", "voxels.js") + "\n" + asset("liverseg_tf.followup", "viewer.js"),
    }
    return fill("liverseg_tf.followup", "page.html", values)


def _windows(found: Comparison) -> list[dict[str, Any]]:
    """The CT windows; the first is centred on the HU of the first scan's liver."""
    from liverseg_tf.drawing import liver_window

    first = found.scans[0]
    own = liver_window(first.ct, first.mask.labels) if first.ct is not None else resolve_window("liver")
    measured = found.classes.words("liver, measured")
    named = [(measured, *own), *((name, *resolve_window(name)) for name in _WINDOWS)]
    return [{"name": name, "width": width, "level": level} for name, width, level in named]


# --- Pictures ---


def _shown(found: Comparison, number: int, scan: Scan, budget: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Description of a scan's picture for the page, and its encoded layers."""
    assert scan.ct is not None
    box = bounding_box(scan.mask.organ_labels != BACKGROUND)
    assert box is not None
    margin = np.ceil(_MARGIN_MM / np.diag(scan.mask.geometry.steps_mm)).astype(int)
    part = tuple(
        slice(max(0, b.start - m), min(n, b.stop + m)) for b, m, n in zip(box, margin, scan.mask.shape, strict=True)
    )
    first = np.array([p.start for p in part])
    hu = np.moveaxis(scan.ct.slices(part[2].start, part[2].stop), 0, 2)[part[:2]]
    affine = scan.mask.geometry.canonical_affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    cropped = CTVolume(np.ascontiguousarray(hu), Geometry(shape, affine))
    grid, texts = encode_layers(cropped, {"mask": scan.mask.labels[part]}, {}, budget)
    factor = np.array([grid.factor, grid.factor, 1])
    # the centre of a coarse pixel is between the centres of its pixels
    to_mm = affine.copy()
    to_mm[:3, :3] = affine[:3, :3] * factor
    to_mm[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    rows, columns = grid.coarse_shape
    shown = {
        "name": scan.name if scan.day is None else f"{scan.name}, day {scan.day:g}",
        "shape": (rows, columns, hu.shape[2]),
        "spacing_mm": [float(s * f) for s, f in zip(scan.mask.spacing_mm, factor, strict=True)],
        "step_hu": grid.step_hu,
        "first_slice": int(first[2]),
        "slices": scan.mask.shape[2],
        "to_mm": to_mm.round(5).tolist(),
        "to_index": np.linalg.inv(to_mm).round(7).tolist(),
        "residual_mm": None if scan.registration is None else round(scan.registration.residual_mm, 2),
        "marks": _marks(found, number, np.linalg.inv(to_mm), int(first[2])),
    }
    if scan.registration is not None:
        shown |= {
            "forth": _lattice(affine, hu.shape, scan.to_first),
            "back": _lattice(found.scans[0].mask.geometry.canonical_affine, found.scans[0].mask.shape, scan.from_first),
        }
    return shown, texts


def _lattice(affine: np.ndarray, shape: Sequence[int], mapping: Any) -> dict[str, Any]:
    """Displacements by `mapping` on an even lattice around a grid."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    corners_mm = corners @ affine[:3, :3].T + affine[:3, 3]
    origin = corners_mm.min(axis=0)
    count = (np.ceil(np.ptp(corners_mm, axis=0) / _LATTICE_MM) + 1).astype(int)
    places = np.indices(count).reshape(3, -1).T * _LATTICE_MM + origin
    moved = mapping(places) - places
    return {
        "origin": origin.round(3).tolist(),
        "step": _LATTICE_MM,
        "shape": count.tolist(),
        "values": moved.round(2).ravel().tolist(),
    }


def _marks(found: Comparison, number: int, to_index: np.ndarray, first_slice: int) -> list[dict[str, Any]]:
    """Ids to write beside lesions of a scan."""
    measured = {one.statistics.number: one.statistics for one in found.scans[number].measurement.lesions}
    marks = []
    for track in found.lesions:
        for lesion in track.sightings[number].numbers:
            one = measured[lesion]
            row, column, _ = to_index[:3, :3] @ one.center_mm + to_index[:3, 3]
            marks.append(
                {
                    "id": str(track.id),
                    "row": round(float(row), 1),
                    "column": round(float(column), 1),
                    "slices": [one.slices[0] - 1 - first_slice, one.slices[1] - 1 - first_slice],
                }
            )
    return marks


def _place(found: Comparison, track: Any) -> list[float]:
    """Position of a lesion in the first scan's coordinates, from the first scan that shows it."""
    for scan, one in zip(found.scans, track.sightings, strict=True):
        if one.center_mm is not None:
            return scan.to_first(np.array([one.center_mm]))[0].round(2).tolist()
    raise AssertionError("a lesion that no scan shows")


def _middle(scan: Scan) -> list[float]:
    affine = scan.mask.geometry.canonical_affine
    index = np.argwhere(scan.mask.organ_labels != BACKGROUND).mean(axis=0)
    return (affine[:3, :3] @ index + affine[:3, 3]).round(2).tolist()


# --- Figures ---


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], attributes: Sequence[str] = ()) -> str:
    """A table; cells are HTML."""
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    body = "".join(
        f"<tr{attribute}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for row, attribute in zip(rows, attributes or [""] * len(rows), strict=True)
    )
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{name}"><table id="{name.lower()}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None, digits: int = 1, sign: str = "") -> str:
    return "&ndash;" if value is None else f"{value:{sign}.{digits}f}"


def _percent(change: float | None) -> str:
    return "" if change is None else f" ({100 * change:+.0f} %)"


def _change(row: dict[str, Any], since: str) -> str:
    change, limit = row[f"volume_change_from_{since}"], row[f"volume_change_limit_from_{since}"]
    if change is None or not limit:
        return _percent(change)
    text = f"{100 * change:+.0f} &plusmn; {100 * limit:.{0 if limit >= 0.01 else 1}f} %"
    return f" ({text}: within limit)" if row[f"volume_trend_from_{since}"] == "within limit" else f" ({text})"


def _count(lesions: int, specks: int) -> str:
    plural = "speck" if specks == 1 else "specks"
    return f"{lesions - specks} and {specks} {plural}" if specks else str(lesions)


def _scans(found: Comparison) -> str:
    rows = []
    for number, (scan, response) in enumerate(zip(found.scans, found.responses, strict=True), start=1):
        statistics, fit = scan.measurement.statistics, scan.registration
        at_least = "&ge; " if scan.measurement.volume_is_lower_bound else ""
        rows.append(
            [
                str(number),
                html.escape(scan.name),
                "" if scan.day is None else f"{scan.day:g}",
                f"{at_least}{statistics.liver_volume_ml:.0f}",
                f"{at_least}{statistics.tumour_volume_ml:.1f}",
                _count(statistics.lesion_count, len(scan.specks)),
                _number(response.sum_mm) + _percent(response.change_from_baseline),
                html.escape(response.category or ""),
                html.escape(response.reason),
                _number(None if fit is None else fit.residual_mm),
                html.escape(found.classes.words("; ".join(FLAGS[flag] for flag in scan.measurement.flags))),
            ]
        )
    heads = [
        "Scan",
        "Name",
        "Day",
        *map(found.classes.heading, ("Liver (ml)", "Tumours (ml)")),
        "Lesions",
        "Sum (mm)",
        "Response",
        "Why",
    ]
    heads += ["Residual (mm)", "Flags"]
    return (
        f'<section aria-labelledby="h-scans"><h2 id="h-scans">Scans</h2>{_table("Scans", heads, rows)}'
        '<p class="note">Sum: long axes of at most two targets (*) of 10 mm or more, as RECIST 1.1 counts in one '
        "organ; in brackets from the first scan. Specks: fewer than 8 voxels beside a lesion, counted with it.</p>"
        "</section>"
    )


def _lesions(found: Comparison) -> str:
    if not found.lesions:
        return '<section><h2>Lesions</h2><p id="no-lesions">No scan shows a lesion.</p></section>'
    rows, attributes = [], []
    for index, track in enumerate(found.lesions):
        star = "*" if track.is_target else ""
        button = f'<button type="button" aria-label="Go to lesion {track.id}">{track.id}{star}</button>'
        for number, row in enumerate(track.to_dict()["sightings"], start=1):
            if row["event"] == "absent":
                continue
            what = row["event"] if row["merged_into"] is None else f"merged into {row['merged_into']}"
            volume, axis = row["volume_ml"], row["long_axis_mm"]
            rows.append(
                [
                    button,
                    str(number),
                    what,
                    _number(volume, 2) + _change(row, "previous"),
                    _number(axis) + _percent(row["long_axis_change_from_previous"]),
                    _number(row["short_axis_mm"]),
                    "" if row["confidence"] is None else f"{row['confidence']:.2f}",
                ]
            )
            attributes.append(f' data-lesion="{index}"')
    heads = ["Lesion", "Scan", "What", "ml", "Long axis (mm)", "Short axis (mm)", "Confidence"]
    return (
        '<section aria-labelledby="h-lesions"><h2 id="h-lesions">Lesions</h2>'
        '<p class="note">A click shows the lesion in both scans. *: target. In brackets: since the previous scan; '
        "&plusmn;: change that voxels alone can make (95 %); a smaller change shows no growth. Errors of the "
        "segmentation are not included.</p>"
        f"{_table('Changes', heads, rows, attributes)}</section>"
    )


def _growth(found: Comparison) -> str:
    """Volumes over time as a drawing; the largest lesions alone have a curve."""
    wide, high, left, bottom = 640, 260, 52, 34
    days = [scan.day for scan in found.scans]
    at = [float(n) for n in range(len(days))] if None in days else [float(day or 0) for day in days]
    volumes = {t.id: [one.volume_ml for one in t.sightings] for t in found.lesions}
    ranked = sorted(volumes, key=lambda i: -max((v or 0.0) for v in volumes[i]))[: len(_CURVES)]
    curves = {"all": [s.measurement.statistics.tumour_volume_ml for s in found.scans]} | {
        f"lesion {i}": volumes[i] for i in sorted(ranked)
    }
    top = max((v or 0.0) for values in curves.values() for v in values) or 1.0

    def x(time: float) -> float:
        return left + (wide - left - 12) * (time - at[0]) / (at[-1] - at[0])

    def y(volume: float) -> float:
        return high - bottom - (high - bottom - 12) * volume / top

    colors = dict(zip(curves, ("#ffffff", *_CURVES), strict=False))
    parts = [
        f'<line class="axis" x1="{left}" x2="{wide - 12}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        for v in (0, top / 2, top)
    ]
    labels = [str(n + 1) for n in range(len(at))] if None in days else [f"{day:g}" for day in at]
    parts += [
        f'<text x="{x(time):.1f}" y="{high - 12}" text-anchor="middle">{label}</text>'
        for time, label in zip(at, labels, strict=True)
    ]
    for name, values in curves.items():
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(at, values, strict=True) if v is not None)
        parts.append(f'<polyline fill="none" stroke="{colors[name]}" stroke-width="2" points="{points}"/>')
    legend = "".join(f'<span style="--color: {colors[name]}">{name}</span>' for name in curves)
    along = "scan" if None in days else "days since the first scan"
    return (
        '<section aria-labelledby="h-growth"><h2 id="h-growth">Growth</h2>'
        f'<svg id="growth" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" '
        f'aria-label="Tumour volume in ml over time">{"".join(parts)}</svg>'
        f'<p id="growth-legend">{legend}</p><p class="note">Tumour volume in ml over {along}; the values are in the '
        "table above.</p></section>"
    )


def _method(found: Comparison) -> str:
    text = [
        "Each later scan is registered to the first: by the surface of the liver, then by a B-spline within the liver. "
        "The pictures are not resampled, only cropped around the liver; the registration links positions, and is not "
        "valid outside the liver.",
        "Volumes and axes are measured on each scan's own mask. Confidence: share of repetitions with the same link "
        "when lesions are shifted by the registration's residual.",
    ]
    body = "".join(f"<p>{html.escape(found.classes.words(t))}</p>" for t in text)
    return f'<section aria-labelledby="h-how"><h2 id="h-how">How it was made</h2>{body}</section>'
