"""`report`: one self-contained page about one CT, with pictures to scroll through."""

from __future__ import annotations

import html
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_grid
from liverseg_tf.drawing import liver_window
from liverseg_tf.errors import ConfigError, ModelError, OutputError
from liverseg_tf.evaluation.case_scores import CaseScores, score_case
from liverseg_tf.evaluation.statistics import MaskStatistics, statistics
from liverseg_tf.hounsfield import AIR_HU, HIGHEST_HU
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.labels import CLASSES, TUMOUR
from liverseg_tf.ownership import claim, write_text
from liverseg_tf.provenance import SOFTWARE, versions
from liverseg_tf.reporting.page_data import (
    PICTURE_BYTES,
    Grid,
    encode_full_slices,
    encode_labels,
    encode_layers,
    packed_bytes,
)
from liverseg_tf.strict_json import to_json
from liverseg_tf.windows import resolve_window, window_name

if TYPE_CHECKING:
    from liverseg_tf.explanation.explain import Explanation, RegionExplanation
    from liverseg_tf.explanation.uncertainty import Uncertainty

logger = logging.getLogger(__name__)

SIGNATURE = '<meta name="generator" content="liverseg_tf'
# After the measured one; windows of the head have no place here
_OFFERED_WINDOWS = ("liver", "custom", "abdomen_soft", "mediastinum", "lungs", "spine_soft", "spine_bone")

# Key, name, letter; heat that is not supported is off until asked for
_HEAT_LAYERS = (("heatmap", "Heatmap", "h", True), ("heatmap-unsupported", "Unsupported heat", "k", False))

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """What a page tells.

    Attributes:
        prediction: the predicted mask with its CT.
        statistics: of the predicted mask.
        truth: reference mask on the same grid, or None.
        scores: of the prediction against the reference, or None.
        explanation: maps of the lesions, or None.
        uncertainty: or None.
        model: facts about the model, in order.
        model_card: its text, or None.
        notes: what was left out, and why.
    """

    prediction: Prediction
    statistics: MaskStatistics
    truth: MaskVolume | None = None
    scores: CaseScores | None = None
    explanation: Explanation | None = None
    uncertainty: Uncertainty | None = None
    model: Sequence[tuple[str, str]] = ()
    model_card: str | None = None
    notes: Sequence[str] = ()


def report(
    source: Any,
    output: str | Path,
    model: Any = None,
    truth: str | Path | MaskVolume | None = None,
    *,
    title: str | None = None,
    explanations: bool = True,
    uncertainty: bool = False,
    method: str = "integrated-gradients",
    layer: str = "bottleneck",
    most_lesions: int = 10,
    safe_colors: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Segment a CT and write one page about it: slices to scroll through, overlays, lesions, figures.

    The page needs no network and nothing beside it; it opens from disk in any browser of 2023 or later. It holds no
    text from the file's header.

    Args:
        source: a NIfTI file, a nibabel image, a `CTVolume`, or a `Prediction`.
        output: the page, ending in .html or .htm.
        model: as `Predictor` takes it, or a `Predictor`; by default the shipped one. With a `Prediction`, the model
            that made it.
        truth: a reference mask on the same grid: scores and a further overlay.
        title: heading; by default the file's name.
        explanations: add heatmaps and their verdicts, if the network can be looked into. Heat that is not supported
            is not shown until asked for.
        uncertainty: add test-time variation: takes about eight times as long as predicting.
        method, layer: of the heatmaps; see `explain`.
        most_lesions: explain at most so many, the largest.
        safe_colors: begin with color-blind-safe colors; the page can switch.
        overwrite: replace a file that this library did not make.
        progress: called with steps done, their number, and what is being done.

    Returns:
        The page's path.

    Raises:
        LiverSegError: for a volume, mask, model or output that can't be used.

    Examples:
        >>> report("volume-7.nii.gz", "volume-7.html", truth="segmentation-7.nii.gz")  # doctest: +SKIP
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{output}: expected a page's name ending in .html")
    inputs = [path for given in (source, truth) if (path := _path_of(given))]
    claim(output, "page", inputs=inputs, overwrite=overwrite)
    report_progress = progress or (lambda done, total, what: None)
    reference = truth if truth is None or isinstance(truth, MaskVolume) else MaskVolume.load(truth)
    if model is None and isinstance(source, Prediction) and source.model_name not in (None, "shipped"):
        raise ConfigError(f"this prediction was made by {source.model_name}: give that model too (model=)")
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    volume = source.volume if isinstance(source, Prediction) else predictor.read(source)
    if reference is not None:
        check_same_grid(volume.geometry, reference.geometry, (volume.name, reference.path or "truth"))
    if isinstance(source, Prediction):
        prediction = source
    else:
        prediction = predictor.predict(volume, progress=lambda done, total: report_progress(done, total, "predicting"))
    notes: list[str] = []
    explanation = uncertain = None
    if explanations:
        explanation = _explained(prediction, predictor, method, layer, most_lesions, notes, report_progress)
    if uncertainty:
        from liverseg_tf.explanation.uncertainty import measure_uncertainty

        uncertain = measure_uncertainty(
            prediction, predictor, progress=lambda done, total: report_progress(done, total, "uncertainty")
        )
    report_progress(0, 1, "writing the page")
    mask = MaskVolume(prediction.labels, volume.geometry)
    scores = score_case(reference, mask) if reference is not None else None
    content = ReportContent(
        prediction,
        statistics(mask, volume),
        reference,
        scores,
        explanation,
        uncertain,
        _model_facts(predictor),
        _model_card(predictor),
        notes,
    )
    page = build_page(content, title or _title(volume), safe_colors)
    write_text(output, page, "page", inputs=inputs, overwrite=overwrite)
    report_progress(1, 1, "writing the page")
    return output


def build_page(content: ReportContent, title: str, safe_colors: bool = True) -> str:
    """The page's text.

    Args:
        content: what it tells.
        title: heading.
        safe_colors: begin with color-blind-safe colors.

    Returns:
        HTML, below 25 MB for a CT of 512 x 512 x 400.
    """
    volume, labels = content.prediction.volume, content.prediction.canonical_labels
    masks = {"mask": labels}
    layers = [_layer("mask", "Mask", "m", "labels", 0.6)]
    if content.truth is not None:
        masks["truth"] = content.truth.labels
        layers.append(_layer("truth", "Truth (dotted)", "t", "labels", 0.8))
    strengths, tables = {}, {}
    if content.explanation is not None:
        for key, name, letter, supported in _HEAT_LAYERS:
            regions = [r for r in content.explanation.regions if (r.verdict == "supported") == supported]
            if regions:
                strengths[key] = _heat(volume.shape, regions)
                layers.append(_layer(key, name, letter, "strength", 0.7, on=supported))
                tables[key] = _color_table("inferno")
    if content.uncertainty is not None:
        strengths["uncertainty"] = content.uncertainty.entropy
        layers.append(_layer("uncertainty", "Uncertainty", "u", "strength", 0.7, on=False))
        tables["uncertainty"] = _color_table("cool")
    grid, blobs = encode_layers(volume, masks, strengths)
    full: list[int] = []
    if grid.factor > 1:
        wanted = _slices_with_lesions(list(masks.values()))
        full, blobs["full-hu"] = encode_full_slices(volume, grid, wanted, PICTURE_BYTES - packed_bytes(blobs))
        for key, mask in masks.items():
            blobs[f"full-{key}"] = encode_labels(mask[..., full], 1)
    lesions = [_place(volume, labels, one.slice, one.center_mm) for one in content.statistics.lesions]
    data = {
        "grid": {
            "shape": grid.shape,
            "spacing_mm": [round(s, 6) for s in grid.spacing_mm],
            "factor": grid.factor,
            "step_hu": grid.step_hu,
        },
        "lowest_hu": AIR_HU,
        "full_slices": full,
        "layers": layers,
        "tables": tables,
        "lesions": lesions,
        "start": lesions[0] if lesions else _start(labels),
        "windows": _windows(liver_window(volume, labels)),
        "classes": [{"name": c.name, "color": c.color, "safe_color": c.safe_color} for c in CLASSES],
        "safe_colors": safe_colors,
    }
    sections = [
        _findings(content),
        _scores(content.scores, content.truth, volume) if content.scores and content.truth else "",
        _what_is_shown(content, grid, full),
        _model_section(content),
    ]
    return _fill(
        title=html.escape(title),
        style=_asset("style.css"),
        script=_asset("viewer.js"),
        caveat=f'<p class="caution">{html.escape(content.explanation.settings["can_show"])}</p>'
        if content.explanation and content.explanation.regions
        else "",
        sections="\n".join(part for part in sections if part),
        footer=html.escape(SOFTWARE),
        data=_json(data),
        blobs="\n".join(f'<script type="text/plain" id="blob-{k}">{text}</script>' for k, text in blobs.items()),
    )


# --- Parts of the page ---


def _findings(content: ReportContent) -> str:
    found = content.statistics
    burden = "" if found.tumour_burden is None else f" ({100 * found.tumour_burden:.1f} % of the liver)"
    rows = [
        ("Liver with tumours", f"{found.liver_volume_ml:.0f} ml{_over_variations(content, 'liver_range_ml', 0)}"),
        ("Tumours", f"{found.tumour_volume_ml:.1f} ml{burden}{_over_variations(content, 'tumour_range_ml', 1)}"),
        ("Lesions", str(found.lesion_count)),
        ("Mean HU of liver / tumours", f"{_number(found.liver_mean_hu, 0)} / {_number(found.tumour_mean_hu, 0)}"),
    ]
    caution = ""
    if found.identity_affine:
        caution = (
            '<p class="caution">The file says 1x1x1 mm without direction, as LiTS 28 to 47 do: millimetres and '
            "millilitres are unreliable, and so is which side is which.</p>"
        )
    if found.liver_slices is None:
        caution += '<p class="caution">No liver was found.</p>'
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in content.notes)
    return (
        f'<section aria-labelledby="findings"><h2 id="findings">Findings</h2>{caution}'
        f"{_pairs_table(rows)}{_lesion_table(content)}{notes}</section>"
    )


def _lesion_table(content: ReportContent) -> str:
    if not content.statistics.lesions:
        return '<p id="no-lesions">No tumour was found.</p>'
    tests = {}
    if content.explanation is not None:
        tests = {e.region.lesion: e for e in content.explanation.regions}
    scored = content.scores.lesions if content.scores else ()
    matched = {row["number"] for row in scored if row["mask"] == "prediction" and row["matched_overlap_above_0"]}
    heads = ["Lesion", "ml", "Diameter (mm)", "Slice", "Where", "Mean HU"]
    heads += ["Heatmap"] * bool(tests) + ["In the reference"] * bool(content.scores)
    body = []
    for index, lesion in enumerate(content.statistics.lesions):
        cells = [
            f'<td><button type="button" data-lesion="{index}" aria-label="Go to lesion {lesion.number}">'
            f"{lesion.number}</button></td>",
            f'<td class="number">{lesion.volume_ml:.2f}</td>',
            f'<td class="number">{lesion.diameter_mm:.0f}</td>',
            f'<td class="number">{lesion.slice}</td>',
            f'<td class="words">{html.escape(lesion.place)}</td>',
            f'<td class="number">{_number(lesion.mean_hu, 0)}</td>',
        ]
        if tests:
            found = tests.get(lesion.number)
            cells.append(f'<td class="words">{html.escape(found.words if found else "none")}</td>')
        if content.scores:
            cells.append(f"<td>{'yes' if lesion.number in matched else 'no (false alarm)'}</td>")
        body.append(f'<tr data-lesion="{index}">{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return (
        '<p class="note">Lesions, the largest first; a click goes there. Slices count from the feet.</p>'
        '<div class="table" tabindex="0" role="region" aria-label="Lesions"><table id="lesions">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _scores(scores: CaseScores, truth: MaskVolume, volume: CTVolume) -> str:
    row = scores.row
    rows = [
        ("Dice of the liver / of tumours", f"{row['liver_dice']:.3f} / {row['lesion_dice']:.3f}"),
        ("IoU of the liver / of tumours", f"{row['liver_jaccard']:.3f} / {row['lesion_jaccard']:.3f}"),
        ("95 % Hausdorff distance", f"{_number(row['liver_hd95_mm'], 1)} / {_number(row['lesion_hd95_mm'], 1)} mm"),
        ("Mean surface distance", f"{_number(row['liver_assd_mm'], 1)} / {_number(row['lesion_assd_mm'], 1)} mm"),
        (
            "Volume in the reference",
            f"{row['liver_volume_truth_ml']:.0f} / {row['lesion_volume_truth_ml']:.1f} ml",
        ),
        ("Volume error", f"{row['liver_volume_error_ml']:+.0f} / {row['lesion_volume_error_ml']:+.1f} ml"),
        (
            "Reference lesions touched / matched (IoU above 0.5)",
            f"{row['lesions_detected_overlap_above_0']} / {row['lesions_detected_overlap_above_0.5']} "
            f"of {row['lesions_truth']}",
        ),
        ("Lesions that touch none of the reference", str(row["lesions_false_positive_overlap_above_0"])),
    ]
    missed = [r for r in scores.lesions if r["mask"] == "truth" and not r["matched_overlap_above_0"]]
    parts = []
    for lesion in missed[:50]:
        place = "{row},{column},{slice}".format(
            **_place(volume, truth.labels, lesion["slice_from_1"], lesion["center_mm"])
        )
        parts.append(
            f'<tr><td><button type="button" data-place="{place}" aria-label="Go to missed lesion {lesion["number"]}">'
            f'go</button></td><td class="number">{lesion["volume_ml"]:.2f}</td>'
            f'<td class="number">{lesion["diameter_mm"]:.0f}</td><td class="number">{lesion["slice_from_1"]}</td></tr>'
        )
    table = ""
    if parts:
        table = (
            '<div class="table" tabindex="0" role="region" aria-label="Missed lesions"><table id="missed">'
            "<caption>Reference lesions that were missed</caption><thead><tr>"
            '<th></th><th scope="col">ml</th><th scope="col">Diameter (mm)</th><th scope="col">Slice</th></tr></thead>'
            f"<tbody>{''.join(parts)}</tbody></table></div>"
        )
    return (
        '<section aria-labelledby="scores"><h2 id="scores">Against the reference</h2>'
        '<p class="note">Liver means liver with tumours, as the LiTS challenge scores it. '
        "Two figures: liver / tumours.</p>"
        f"{_pairs_table(rows)}{table}</section>"
    )


def _what_is_shown(content: ReportContent, grid: Grid, full: list[int]) -> str:
    rows, columns, slices = grid.shape
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    text = [
        f"The volume has {rows} x {columns} pixels on {slices} slices, {spacing} mm (row, column, slice). "
        "Slices face the reader: the patient's right is on the left.",
    ]
    if grid.factor == 1:
        text.append(
            "Every slice is shown at full resolution"
            + ("." if grid.step_hu == 1 else f", with HU rounded to steps of {grid.step_hu}.")
        )
    else:
        coarse_rows, coarse_columns = grid.coarse_shape
        text.append(
            f"To keep this file small, slices are shown at {coarse_rows} x {coarse_columns} pixels, each the mean of "
            f"{grid.factor} x {grid.factor}, with HU rounded to steps of {grid.step_hu}."
        )
        if full:
            text.append(f"At full resolution: slices {_ranges([i + 1 for i in sorted(full)])}.")
    text.append(f"HU below {AIR_HU:.0f} or above {HIGHEST_HU:.0f} are shown as these.")
    text.append("Mask: what the model found, after 3-D clean-up: filled thinly, with its outline.")
    if content.truth is not None:
        text.append("Truth: the reference mask, its outline dotted.")
    if content.explanation is not None and content.explanation.regions:
        settings = content.explanation.settings
        where, needed = f" at the layer {settings['layer']}" if settings["layer"] else "", settings["needed"]
        text.append(
            f"Heatmap: {settings['method']}{where}: which places raise the network's tumour score within each lesion, "
            "on the lesion's largest slice; brighter is more, scaled to that slice, air left out. It is supported if "
            f"it beats {100 * needed['share_beaten']:.0f} % of at least {needed['random_maps']} random maps over the "
            "body on deletion (taking out what it marks) and on insertion (leaving that alone in), if its rank "
            "correlation with maps of networks whose decoder was drawn anew is below "
            f"{needed['rank_correlation_below']}, and if more than {100 * needed['heat_in_liver_above']:.0f} % of its "
            "heat is within the liver. Heat that is not supported is off until it is asked for. Filled: the "
            "probability of tumour in the lesion, once the lesion alone has the HU of the liver around it."
        )
    if content.uncertainty is not None:
        count = content.uncertainty.variations.count
        text.append(
            f"Uncertainty: entropy of the mean of {count} predictions on the volume slightly shifted, turned, scaled "
            "and changed in HU. Volumes over variations are the smallest and the largest of these: they say how far "
            "the result depends on what should not matter, not how far it is from the truth, which often lies outside. "
            "They are of the network alone: the volumes themselves come after 3-D clean-up and may lie outside too."
        )
    body = "".join(f"<p>{html.escape(t)}</p>" for t in text)
    return f'<section aria-labelledby="shown"><h2 id="shown">What is shown</h2>{body}</section>'


def _model_section(content: ReportContent) -> str:
    card = ""
    if content.model_card:
        card = f"<details><summary>Model card</summary><pre>{html.escape(content.model_card)}</pre></details>"
    installed = [(name, version) for name, version in versions().items() if version]
    return (
        '<section aria-labelledby="model"><h2 id="model">Model and versions</h2><div class="columns">'
        f"{_pairs_table(content.model)}{_pairs_table(installed)}</div>{card}</section>"
    )


def _pairs_table(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f'<div class="table"><table>{body}</table></div>'


# --- Values ---


def _explained(
    prediction: Prediction,
    predictor: Predictor,
    method: str,
    layer: str,
    most_lesions: int,
    notes: list[str],
    progress: Progress,
) -> Explanation | None:
    from liverseg_tf.explanation.explain import explain

    if not (prediction.canonical_labels == TUMOUR).any():
        return None
    try:
        found = explain(
            prediction,
            model=predictor,
            method=method,
            layer=layer,
            most_lesions=most_lesions,
            randomized_models=2,
            progress=progress,
        )
    except ModelError as error:
        notes.append(f"No heatmaps: {error}")
        return None
    if found.left_out:
        notes.append(f"Heatmaps were made for the {len(found.regions)} largest lesions.")
    return found


def _model_facts(predictor: Predictor) -> list[tuple[str, str]]:
    config = predictor.config
    windows = map(window_name, config.channels.windows)
    facts = [
        ("Model", predictor.name),
        ("Network", f"U-Net, {config.backbone}, {config.image_size} x {config.image_size}"),
        ("Channels", ", ".join([*windows, *["histogram"] * config.channels.histogram])),
        ("Classes", ", ".join(config.class_names)),
    ]
    if len(predictor.runtimes) > 1:
        facts.append(("Ensemble of", str(len(predictor.runtimes))))
    return facts


def _model_card(predictor: Predictor) -> str | None:
    """The text beside the model's files, else what the export wrote into them."""
    for folder in predictor.folders:
        try:
            return (folder / "model_card.md").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    card = getattr(predictor.runtimes[0], "card", None)
    return to_json(card, indent=2, ensure_ascii=False) if card else None


def _title(volume: CTVolume) -> str:
    return volume.path.name if volume.path else "CT volume"


def _slices_with_lesions(masks: list[np.ndarray]) -> list[int]:
    """Slices that show tumour in any mask, those with most of it first."""
    area = sum(np.count_nonzero(mask == TUMOUR, axis=(0, 1)) for mask in masks)
    order = np.argsort(-area, kind="stable")
    return [int(i) for i in order if area[i]]


def _heat(shape: tuple[int, int, int], regions: Sequence[RegionExplanation]) -> np.ndarray:
    """(rows, columns, slices) float16: the highest of these regions' maps."""
    heat = np.zeros(shape, np.float16)
    for one in regions:
        part = heat[..., one.region.slices.start : one.region.slices.stop]
        np.maximum(part, np.moveaxis(one.maps, 0, 2), out=part)
    return heat


def _layer(key: str, name: str, letter: str, kind: str, opacity: float, on: bool = True) -> dict[str, Any]:
    return {"key": key, "name": name, "letter": letter, "kind": kind, "opacity": opacity, "on": on}


def _color_table(name: str) -> list[list[int]]:
    """64 colors of a matplotlib color map."""
    from matplotlib import colormaps

    return np.rint(colormaps[name](np.linspace(0, 1, 64))[:, :3] * 255).astype(int).tolist()


def _windows(measured: tuple[int, int]) -> list[dict[str, Any]]:
    offered = [("this liver", measured), *((name, resolve_window(name)) for name in _OFFERED_WINDOWS)]
    return [{"name": name, "width": width, "level": level} for name, (width, level) in offered]


def _place(volume: CTVolume, labels: np.ndarray, number: int, center_mm: Sequence[float]) -> dict[str, int]:
    """Where to look at a lesion, counted from 0: on its slice `number`, the tumour's pixel nearest to its center."""
    row, column, _ = _canonical_index(volume, center_mm)
    pixels = np.argwhere(labels[..., number - 1] == TUMOUR)
    row, column = pixels[((pixels - (row, column)) ** 2).sum(axis=1).argmin()].tolist()
    return {"slice": number - 1, "row": row, "column": column}


def _path_of(given: Any) -> str | Path | None:
    given = getattr(given, "volume", given)
    return given if isinstance(given, (str, Path)) else getattr(given, "path", None)


def _canonical_index(volume: CTVolume, point_mm: Sequence[float]) -> tuple[int, int, int]:
    to_index = np.linalg.inv(volume.geometry.canonical_affine)
    index = np.rint(nib.affines.apply_affine(to_index, point_mm)).astype(int)
    row, column, number = np.clip(index, 0, np.array(volume.shape) - 1).tolist()
    return row, column, number


def _start(labels: np.ndarray) -> dict[str, int]:
    from liverseg_tf.drawing import best_slice

    rows, columns, slices = labels.shape
    return {"slice": best_slice(labels, slices), "row": rows // 2, "column": columns // 2}


def _over_variations(content: ReportContent, name: str, digits: int) -> str:
    if content.uncertainty is None:
        return ""
    low, high = getattr(content.uncertainty, name)
    return f", {low:.{digits}f} to {high:.{digits}f} ml over variations of the scan"


def _number(value: float | None, digits: int) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 -> "1 to 3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in parts)


def _json(value: Any) -> str:
    # "</script>" in a text must not end the element it stands in
    return to_json(value, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return importlib.resources.files("liverseg_tf.reporting").joinpath("viewer", name).read_text("utf-8").strip()


def _fill(**values: str) -> str:
    from liverseg_tf import __version__

    template = _asset("page.html").replace("<title>", f'{SIGNATURE} {__version__}">\n<title>', 1)
    parts = template.split("{{")
    page = [parts[0]]
    for part in parts[1:]:
        name, rest = part.split("}}", 1)
        page += [values[name], rest]
    return "".join(page) + "\n"
