"""Content of the report page: numbers, texts and pictures of one CT, laid out by `page.html.j2`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.drawing import areas_of, liver_window
from liverseg_tf.evaluation.case_scores import CaseScores
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.measure import FLAGS, LesionMeasurement, Measurement
from liverseg_tf.hounsfield import AIR_HU, HIGHEST_HU
from liverseg_tf.inference.predictor import Prediction
from liverseg_tf.labels import TUMOUR, ClassSet, LabelClass
from liverseg_tf.provenance import SOFTWARE, versions
from liverseg_tf.reporting.assets import asset, script_data
from liverseg_tf.reporting.page_data import (
    PICTURE_BYTES,
    SLICES_A_LINE,
    Grid,
    Slices,
    encode_full_slices,
    encode_labels,
    encode_layers,
    encode_numbers,
    packed_bytes,
    slices_of,
)
from liverseg_tf.reporting.plan import encode_plan
from liverseg_tf.reporting.surfaces import encode_surfaces, surfaces
from liverseg_tf.windows import resolve_window
from liverseg_tf.wording import counted, readable

if TYPE_CHECKING:
    from liverseg_tf.explanation.explain import Explanation, RegionExplanation
    from liverseg_tf.explanation.uncertainty import Uncertainty

SIGNATURE = '<meta name="generator" content="liverseg_tf'
# After the measured window; those of the head are left out
_OFFERED_WINDOWS = ("liver", "custom", "abdomen_soft", "mediastinum", "lungs", "spine_soft", "spine_bone")
# Key, name, letter, shown at first
_HEAT_LAYERS = (("heatmap", "Heatmap", "h", True), ("heatmap-unsupported", "Unsupported heat", "k", False))
# In their order: each uses those before it.
_SCRIPTS = ("three.min.js", "solid.js", "plan.js", "voxels.js", "viewer.js")
_VIEWS = (
    ("axial", "Axial", "from inferior"),
    ("coronal", "Coronal", "from anterior"),
    ("sagittal", "Sagittal", "from the patient's right"),
)
# A portal-venous liver measures about 90 to 130 HU, an unenhanced one 50 to 65.
_PORTAL_VENOUS_HU = (75.0, 160.0)
# Below this size the model misses most reference lesions, and most of its findings are false positives.
_SMALL_FINDING_MM = 10.0


@dataclass(frozen=True, eq=False)
class ReportContent:
    """The content of a page.

    Attributes:
        prediction: the predicted mask with its CT.
        measured: the predicted mask, measured on its CT.
        truth: reference mask on the same grid, or None.
        scores: of the prediction against the reference, or None.
        explanation: maps of the lesions, or None.
        uncertainty: or None.
        model: facts about the model, in order.
        model_card: its text, or None.
        notes: omitted parts, with reasons.
    """

    prediction: Prediction
    measured: Measurement
    truth: MaskVolume | None = None
    scores: CaseScores | None = None
    explanation: Explanation | None = None
    uncertainty: Uncertainty | None = None
    model: Sequence[tuple[str, str]] = ()
    model_card: str | None = None
    notes: Sequence[str] = ()


def build_page(
    content: ReportContent,
    title: str,
    safe_colors: bool = True,
    progress: Callable[[int, int], None] | None = None,
    plan: bool = False,
) -> str:
    """The page's text.

    Args:
        content: its content.
        title: heading.
        safe_colors: start with the colour-blind-safe colours.
        progress: called with steps done and their number.
        plan: add a resection tool.

    Returns:
        HTML, below 25 MB for a CT of 512 x 512 x 600.
    """
    from markupsafe import Markup

    from liverseg_tf import __version__

    tell = progress or (lambda done, total: None)
    volume, labels = content.prediction.volume, content.prediction.canonical_labels
    tell(0, 3)
    layers, masks, strengths, tables = _layers(content)
    classes = content.prediction.classes
    mask = MaskVolume(content.prediction.labels, volume.geometry, classes=classes)
    grid, blobs = encode_layers(volume, masks, strengths)
    tell(1, 3)
    blobs["lesions"] = encode_numbers(*numbered_lesions(mask.organ_labels), labels.shape, grid.factor)
    solid, blobs["surfaces"] = encode_surfaces(surfaces(mask))
    resection = None
    if plan:
        resection, text = encode_plan(mask)
        if resection is not None:
            blobs["plan"] = text
    tell(2, 3)
    full = _add_full_slices(blobs, volume, masks, grid) if grid.factor > 1 else []
    tell(3, 3)
    lesions = [_lesion_place(volume, labels, one) for one in content.measured.lesions]
    data = {
        "grid": _grid_facts(grid),
        "lowest_hu": AIR_HU,
        "slices_a_line": SLICES_A_LINE,
        "full_slices": full,
        "layers": layers,
        "tables": tables,
        "lesions": lesions,
        "surfaces": solid,
        "plan": resection,
        "start": lesions[0] if lesions else _start(labels),
        "windows": _windows(liver_window(volume, labels), classes.words("this liver")),
        "classes": [_class_facts(c, masks) for c in classes.classes],
        "safe_colors": safe_colors,
    }
    return _template().render(
        title=title,
        named=classes.words,
        organ=readable(classes.organ),
        has_lesion=classes.lesion is not None,
        signature=Markup(f'{SIGNATURE} {__version__}">'),
        style=Markup(asset("liverseg_tf.reporting", "style.css")),
        scripts=[Markup(asset("liverseg_tf.reporting", name)) for name in _SCRIPTS],
        plan=resection is not None,
        views=_VIEWS,
        surfaces=solid,
        shown=_what_is_shown(content, grid, full),
        where=_where_lesions_lie(classes) if content.measured.lesions else "",
        **_texts(content),
        footer=SOFTWARE,
        data=Markup(script_data(data)),
        blobs=[(name, Markup(text)) for name, text in blobs.items()],
    )


# --- Words and figures ---


def _texts(content: ReportContent) -> dict[str, Any]:
    """What the template writes about the findings, the scores and the model."""
    volume, explanation = content.prediction.volume, content.explanation
    return {
        "caveat": explanation.settings["can_show"] if explanation is not None and explanation.regions else "",
        "quality": _quality(content),
        "findings": _findings(content),
        "notes": content.notes,
        "lesions": _lesion_rows(content),
        "liver_found": content.measured.statistics.liver_slices is not None,
        "scores": _scores(content.scores) if content.scores else [],
        "missed": _missed(content.scores, content.truth, volume) if content.scores and content.truth else [],
        "model": content.model,
        "versions": [(name, version) for name, version in versions().items() if version],
        "model_card": content.model_card,
    }


def _quality(content: ReportContent) -> list[str]:
    """What makes the result doubtful, in words."""
    found = content.measured
    classes = found.statistics.classes
    notes = [_sentence(classes.words(FLAGS[name])) + "." for name in found.flags]
    doubt = content.prediction.volume.doubt
    if doubt:
        notes.append(f"The intensities don't look like HU: {doubt}.")
    hu = found.statistics.liver_mean_hu
    if hu is not None and not doubt and classes.is_liver:
        low, high = _PORTAL_VENOUS_HU
        if hu < low:
            notes.append(
                f"The liver measures {hu:.0f} HU: no portal-venous phase, or a fatty liver. The model learned from "
                "portal-venous CT; lesions may be missed."
            )
        elif hu > high:
            notes.append(f"The liver measures {hu:.0f} HU, more than in a portal-venous phase: look at the phase.")
    small = sum(one.axes.long_axis_mm < _SMALL_FINDING_MM for one in found.lesions)
    if small:
        which = counted(small, "finding is", "findings are")
        notes.append(
            f"{which} shorter than {_SMALL_FINDING_MM:.0f} mm: "
            f"{'near the size below which findings are dropped, and ' if classes.is_liver else ''}"
            "where the model errs most."
        )
    return notes


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _findings(content: ReportContent) -> list[tuple[str, str]]:
    found = content.measured.statistics
    least = "at least " if content.measured.volume_is_lower_bound else ""
    burden = (
        ""
        if found.tumour_burden is None
        else f" ({100 * found.tumour_burden:.1f} % of the {readable(found.classes.organ)})"
    )
    named = found.classes.words
    if found.classes.lesion is None:
        organ = f"{least}{found.liver_volume_ml:.0f} ml{_over_variations(content, 'liver_range_ml', 0)}"
        return [
            (_sentence(readable(found.classes.organ)), organ),
            ("Mean HU", _number(found.liver_mean_hu, 0)),
            *((_sentence(readable(name)), f"{ml:.1f} ml") for name, ml in found.further_volumes_ml.items()),
        ]
    further = [(_sentence(readable(name)), f"{ml:.1f} ml") for name, ml in found.further_volumes_ml.items()]
    return [
        (
            _sentence(named("liver with tumours" if found.lesion_count else "liver")),
            f"{least}{found.liver_volume_ml:.0f} ml{_over_variations(content, 'liver_range_ml', 0)}",
        ),
        (
            "Tumours" if found.classes.is_liver else _sentence(named("tumour")),
            (f"{found.tumour_volume_ml:.1f} ml{burden}" if found.lesion_count else "none found")
            + _over_variations(content, "tumour_range_ml", 1),
        ),
        *([("Lesions", str(found.lesion_count))] if found.lesion_count else []),
        (named("Mean HU of liver / tumours"), f"{_number(found.liver_mean_hu, 0)} / {_number(found.tumour_mean_hu, 0)}")
        if found.lesion_count
        else (named("Mean HU of the liver"), _number(found.liver_mean_hu, 0)),
        *further,
    ]


def _lesion_rows(content: ReportContent) -> list[dict[str, Any]]:
    tests = {}
    if content.explanation is not None:
        tests = {e.region.lesion: e for e in content.explanation.regions}
    scored = content.scores.lesions if content.scores else ()
    matched = {row["number"] for row in scored if row["mask"] == "prediction" and row["matched_overlap_above_0"]}
    rows = []
    for one in content.measured.lesions:
        lesion, heat = one.statistics, tests.get(one.statistics.number)
        depth = one.distance_to_surface_mm
        rows.append(
            {
                "number": lesion.number,
                "axes": f"{one.axes.long_axis_mm:.0f} x {one.axes.short_axis_mm:.0f}",
                "ml": f"{lesion.volume_ml:.2f}",
                "slice": lesion.slice,
                "hu": _number(lesion.mean_hu, 0),
                "place": lesion.place
                + ("" if depth is None else "; at the surface" if depth < 1 else f"; {depth:.0f} mm deep"),
                "heat": {"verdict": heat.verdict, "words": heat.words} if heat else None,
                "matched": lesion.number in matched if content.scores else None,
            }
        )
    return rows


def _scores(scores: CaseScores) -> list[tuple[str, str]]:
    row, named = scores.row, scores.classes.words
    if scores.classes.lesion is None:
        return [
            ("Dice", f"{row['liver_dice']:.3f}"),
            ("IoU", f"{row['liver_jaccard']:.3f}"),
            ("95 % Hausdorff distance", f"{_number(row['liver_hd95_mm'], 1)} mm"),
            ("Mean surface distance", f"{_number(row['liver_assd_mm'], 1)} mm"),
            ("Volume in the reference", f"{row['liver_volume_truth_ml']:.0f} ml"),
            ("Volume error", f"{row['liver_volume_error_ml']:+.0f} ml"),
        ]
    return [
        (named("Dice of the liver / of tumours"), f"{row['liver_dice']:.3f} / {row['lesion_dice']:.3f}"),
        (named("IoU of the liver / of tumours"), f"{row['liver_jaccard']:.3f} / {row['lesion_jaccard']:.3f}"),
        ("95 % Hausdorff distance", f"{_number(row['liver_hd95_mm'], 1)} / {_number(row['lesion_hd95_mm'], 1)} mm"),
        ("Mean surface distance", f"{_number(row['liver_assd_mm'], 1)} / {_number(row['lesion_assd_mm'], 1)} mm"),
        (
            "Volume in the reference",
            f"{row['liver_volume_truth_ml']:.0f} / {row['lesion_volume_truth_ml']:.1f} ml",
        ),
        ("Volume error", f"{row['liver_volume_error_ml']:+.0f} / {row['lesion_volume_error_ml']:+.1f} ml"),
        (
            "Reference lesions found: any overlap / IoU above 0.5",
            f"{row['lesions_detected_overlap_above_0']} / {row['lesions_detected_overlap_above_0.5']} "
            f"of {row['lesions_truth']}",
        ),
        ("False-positive lesions (no overlap with the reference)", str(row["lesions_false_positive_overlap_above_0"])),
    ]


def _missed(scores: CaseScores, truth: MaskVolume, volume: CTVolume) -> list[dict[str, Any]]:
    missed = [r for r in scores.lesions if r["mask"] == "truth" and not r["matched_overlap_above_0"]]
    rows = []
    for lesion in missed[:50]:
        place = _place(volume, truth.labels, lesion["slice_from_1"], lesion["center_mm"])
        rows.append(
            {
                "number": lesion["number"],
                "place": "{row},{column},{slice}".format(**place),
                "ml": f"{lesion['volume_ml']:.2f}",
                "diameter_mm": f"{lesion['diameter_mm']:.0f}",
                "slice": lesion["slice_from_1"],
            }
        )
    return rows


def _where_lesions_lie(classes: ClassSet) -> str:
    words = classes.words("Where a lesion lies: thirds of the liver's extent, then the distance in mm from its centre.")
    if classes.is_liver:
        words += (
            " No lobe is named: the border between them runs from the gallbladder to the inferior vena cava, which the "
            "model doesn't mark."
        )
    return words


def _what_is_shown(content: ReportContent, grid: Grid, full: list[int]) -> list[str]:
    rows, columns, slices = grid.shape
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    text = [
        f"The volume has {rows} x {columns} pixels on {counted(slices, 'slice')}, {spacing} mm (row, column, slice). "
        "Slices are in radiological orientation: the patient's right is on the left.",
    ]
    if grid.factor == 1:
        text.append(
            "Every slice is shown at full resolution"
            + ("." if grid.step_hu == 1 else f", HU exact to within {grid.step_hu // 2}.")
        )
    else:
        coarse_rows, coarse_columns = grid.coarse_shape
        text.append(
            f"To keep this file small, slices are shown at {coarse_rows} x {coarse_columns} pixels, each the mean of "
            f"{grid.factor} x {grid.factor}{'' if grid.step_hu == 1 else f', HU exact to within {grid.step_hu // 2}'}."
        )
        if full:
            text.append(f"At full resolution: slices {_ranges([i + 1 for i in sorted(full)])}.")
    text.append(f"HU below {AIR_HU:.0f} or above {HIGHEST_HU:.0f} are clipped to this range.")
    text.append(
        "Mask: the outline of what the model found, after 3-D post-processing. Axes: the "
        "longest diameter in an axial slice, and the longest perpendicular to it (RECIST 1.1); both are drawn there."
    )
    if content.truth is not None:
        text.append("Truth: the reference mask, its outline dotted.")
    if content.explanation is not None and content.explanation.regions:
        settings = content.explanation.settings
        where, needed = f" at the layer {settings['layer']}" if settings["layer"] else "", settings["needed"]
        text.append(
            f"Heatmap: {settings['method']}{where}: which pixels raise the network's tumour score within each lesion, "
            "on the lesion's largest slice; brighter is more, scaled to that slice, air left out. It is supported if "
            f"it beats {100 * needed['share_beaten']:.0f} % of at least {needed['random_maps']} random maps over the "
            "body on deletion (removing what it marks) and on insertion (restoring only that), if its rank "
            "correlation with maps of networks with a re-initialised decoder is below "
            f"{needed['rank_correlation_below']}, and if more than {100 * needed['heat_in_liver_above']:.0f} % of its "
            "heat is within the liver. Unsupported heat is hidden at first. Filled: the "
            "probability of tumour in the lesion, once the lesion alone has the HU of the liver around it."
        )
    if content.uncertainty is not None:
        count = content.uncertainty.variations.count
        text.append(
            f"Uncertainty: entropy of the mean of {count} predictions by test-time augmentation: the volume is "
            "slightly shifted, rotated, scaled and changed in HU. Volumes over variations: the smallest and the "
            "largest of these. They show how much the "
            "result depends on irrelevant changes, not how far it is from the truth, which often lies outside them. "
            "They are measured before 3-D post-processing, so the final volume may lie outside them too."
        )
    return text


# --- Pictures ---


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {
        "shape": grid.shape,
        "spacing_mm": [round(s, 6) for s in grid.spacing_mm],
        "factor": grid.factor,
        "step_hu": grid.step_hu,
    }


def _class_facts(one: LabelClass, masks: dict[str, np.ndarray]) -> dict[str, Any]:
    is_drawn = any((mask == one.index).any() for mask in masks.values())
    return {"name": readable(one.name), "color": one.color, "safe_color": one.safe_color, "is_drawn": is_drawn}


def _add_full_slices(blobs: dict[str, str], volume: CTVolume, masks: dict[str, np.ndarray], grid: Grid) -> list[int]:
    """Add slices with lesions at full resolution, as many as the page has room for: their indices."""
    wanted = _slices_with_lesions(list(masks.values()))
    full, blobs["full-hu"] = encode_full_slices(volume, grid, wanted, PICTURE_BYTES - packed_bytes(blobs))
    for key, shown in masks.items():
        blobs[f"full-{key}"] = encode_labels(shown[..., full], 1, slices_a_line=1)
    return full


def _layers(
    content: ReportContent,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, Slices], dict[str, list[list[int]]]]:
    """What can be laid over the CT: descriptions, masks, strengths, and colour tables of these."""
    layers, masks = [_layer("mask", "Mask", "m", "labels", 0.0)], {"mask": content.prediction.canonical_labels}
    strengths: dict[str, Slices] = {}
    tables: dict[str, list[list[int]]] = {}
    if content.truth is not None:
        masks["truth"] = content.truth.labels
        layers.append(_layer("truth", "Truth (dotted)", "t", "labels", 0.0))
    if content.explanation is not None:
        for key, name, letter, supported in _HEAT_LAYERS:
            regions = [r for r in content.explanation.regions if (r.verdict == "supported") == supported]
            if regions:
                strengths[key] = functools.partial(_heat, content.prediction.volume.shape[:2], regions)
                layers.append(_layer(key, name, letter, "strength", 0.7, on=supported))
                tables[key] = _color_table("inferno")
    if content.uncertainty is not None:
        strengths["uncertainty"] = slices_of(content.uncertainty.entropy)
        layers.append(_layer("uncertainty", "Uncertainty", "u", "strength", 0.7, on=False))
        tables["uncertainty"] = _color_table("cool")
    return layers, masks, strengths, tables


def _lesion_place(volume: CTVolume, labels: np.ndarray, lesion: LesionMeasurement) -> dict[str, Any]:
    """A lesion's position on the page, and the end points of its diameters, in voxels from 0."""
    found, to_index = lesion.statistics, np.linalg.inv(volume.geometry.canonical_affine)

    def ends(line: Any) -> list[list[float]]:
        return nib.affines.apply_affine(to_index, np.array(line))[:, :2].round(2).tolist()

    axes = lesion.axes
    return {
        **_place(volume, labels, found.slice, found.center_mm),
        "slices": [found.slices[0] - 1, found.slices[1] - 1],
        "axes": {"slice": axes.slice, "long": ends(axes.long_axis_ends_mm), "short": ends(axes.short_axis_ends_mm)},
    }


def _slices_with_lesions(masks: list[np.ndarray]) -> list[int]:
    """Slices that show tumour in any mask, those with most of it first."""
    area = np.sum([areas_of(mask, TUMOUR) for mask in masks], axis=0)
    order = np.argsort(-area, kind="stable")
    return [int(i) for i in order if area[i]]


def _heat(plane: tuple[int, int], regions: Sequence[RegionExplanation], first: int, last: int) -> np.ndarray:
    """(rows, columns, slices) float16 of the slices from `first` up to `last`: the highest of these regions' maps."""
    heat = np.zeros((*plane, last - first), np.float16)
    for one in regions:
        start = one.region.first_slice
        for index in range(max(first, start), min(last, one.region.slices.stop)):
            np.maximum(heat[..., index - first], one.maps[index - start], out=heat[..., index - first])
    return heat


def _layer(key: str, name: str, letter: str, kind: str, opacity: float, on: bool = True) -> dict[str, Any]:
    return {"key": key, "name": name, "letter": letter, "kind": kind, "opacity": opacity, "on": on}


def _color_table(name: str) -> list[list[int]]:
    """64 colours of a matplotlib colour map."""
    from matplotlib import colormaps

    return np.rint(colormaps[name](np.linspace(0, 1, 64))[:, :3] * 255).astype(int).tolist()


def _windows(measured: tuple[int, int], own: str) -> list[dict[str, Any]]:
    offered = [(own, measured), *((name, resolve_window(name)) for name in _OFFERED_WINDOWS)]
    return [{"name": name, "width": width, "level": level} for name, (width, level) in offered]


def _place(volume: CTVolume, labels: np.ndarray, number: int, center_mm: Sequence[float]) -> dict[str, int]:
    """Where to look at a lesion, counted from 0: on its slice `number`, the tumour's pixel nearest to its centre."""
    row, column, _ = _canonical_index(volume, center_mm)
    pixels = np.argwhere(labels[..., number - 1] == TUMOUR)
    row, column = pixels[((pixels - (row, column)) ** 2).sum(axis=1).argmin()].tolist()
    return {"slice": number - 1, "row": row, "column": column}


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


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("liverseg_tf.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2")
