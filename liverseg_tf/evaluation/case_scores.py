"""Scores of one case: a predicted mask against a reference mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import Geometry, MaskVolume
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.lesions import (
    SIZES,
    LesionMatch,
    LesionMeasures,
    label_lesions,
    match_lesions,
    measure_lesions,
    size_class,
)
from liverseg_tf.evaluation.lits import MIN_OVERLAP, LitsCase, ObjectScores, challenge_detections, object_scores
from liverseg_tf.evaluation.surface import SurfaceDistances, bounding_box, enclosing_box, surface_distances
from liverseg_tf.labels import BACKGROUND, LIVER, LIVER_CLASSES, TUMOUR, ClassSet

TOLERANCES_MM = (1, 2, 3)
REGIONS = ("liver", "lesion")
# Before a further structure's index, in the names of its figures.
FURTHER = "class"
OVERLAPS = {"overlap_above_0": 0.0, "overlap_above_0.5": MIN_OVERLAP}
SCENARIOS = ("liver_only", "liver_with_lesion", "neither")

Counts = tuple[int, int, int]  # voxels of reference, prediction, both


@dataclass(frozen=True)
class CaseScores:
    """All scores of one case. "liver" means the masks' organ, and "lesion" its lesions.

    Attributes:
        row: the case's values by name; None if undefined.
        slices: one row per slice, from the lowest.
        lesions: one row per reference lesion and per predicted lesion. `number` is the one that all other commands
            print; `lesion` is the challenge's, to compare with its own program.
        counts: per overlap and size (`all` among them): true positives, false negatives, false positives.
        voxels: per region: voxels of reference, prediction, both.
        lits: the case's part in the challenge's scores.
        classes: what the masks hold; a further structure's figures begin with `class3_`, its index.
    """

    row: dict[str, Any]
    slices: list[dict[str, Any]]
    lesions: list[dict[str, Any]]
    counts: dict[str, dict[str, Counts]]
    voxels: dict[str, Counts]
    lits: LitsCase
    classes: ClassSet = LIVER_CLASSES


def dice(truth: float, prediction: float, shared: float) -> float:
    """2 |A and B| / (|A| + |B|) from sizes; 1 if both are empty."""
    return 2 * shared / (truth + prediction) if truth + prediction else 1.0


def jaccard(truth: float, prediction: float, shared: float) -> float:
    """|A and B| / |A or B| from sizes; 1 if both are empty."""
    return shared / (truth + prediction - shared) if truth + prediction else 1.0


def score_case(truth: MaskVolume, prediction: MaskVolume, case: int | str = 0) -> CaseScores:
    """Score a predicted mask against a reference mask on the same grid.

    Args:
        truth: the reference.
        prediction: the mask to score, of the same shape and affine.
        case: number or name of the case, for the rows.

    Examples:
        >>> labels = np.zeros((4, 4, 4), np.uint8)
        >>> labels[1:3, 1:3, 1:3] = 1
        >>> mask = MaskVolume(labels, Geometry(labels.shape, np.diag([2.0, 2.0, 2.0, 1.0])))
        >>> score_case(mask, mask).row["liver_volume_truth_ml"]
        0.064
    """
    geometry, steps_mm, voxel_ml = truth.geometry, truth.geometry.steps_mm, truth.voxel_volume_ml
    # From here on only the box around both masks is used; it is much smaller than the volume.
    boxes = [box for box in (bounding_box(m.organ_labels != BACKGROUND) for m in (truth, prediction)) if box]
    box = enclosing_box(boxes) if boxes else (slice(0, 1),) * 3
    labels = [np.ascontiguousarray(m.organ_labels[box]) for m in (truth, prediction)]

    per_slice, distances = {}, {}
    for region, lowest in zip(REGIONS, (LIVER, TUMOUR), strict=True):  # one after the other, to save memory
        truth_mask, prediction_mask = (m >= lowest for m in labels)
        per_slice[region] = _slice_counts(truth_mask, prediction_mask)
        distances[region] = surface_distances(truth_mask, prediction_mask, steps_mm)
    voxels: dict[str, Counts] = {name: tuple(found.sum(axis=1).tolist()) for name, found in per_slice.items()}

    numbered = [_lesions_numbered_as_in_file(mask == TUMOUR, geometry) for mask in labels]
    numbers = [_numbers_by_size(mask, lesions) for mask, lesions in zip(labels, numbered, strict=True)]
    match = match_lesions(*numbered)
    measures = [measure_lesions(lesions, voxel_ml) for lesions in numbered]
    detected = {name: _detected(match, overlap) for name, overlap in OVERLAPS.items()}
    counts = {name: _count_by_size(measures, found) for name, found in detected.items()}

    lits = _lits_case(numbered, match, measures, steps_mm, distances["liver"], voxels, bool((labels[1] == LIVER).any()))
    row = {
        "case": case,
        "spacing_mm": [round(s, 6) for s in truth.spacing_mm],
        "identity_affine": geometry.is_identity_affine,
        **_region_row("liver", voxels["liver"], distances["liver"], voxel_ml),
        **_region_row("lesion", voxels["lesion"], distances["lesion"], voxel_ml),
        **_burden_row(voxels),
        **_further_rows(truth, prediction),
        "lesions_truth": len(match.truth_voxels),
        "lesions_prediction": len(match.prediction_voxels),
        **{f"lesions_detected_{name}": counts[name]["all"][0] for name in OVERLAPS},
        **{f"lesions_false_positive_{name}": counts[name]["all"][2] for name in OVERLAPS},
    }
    return CaseScores(
        row,
        _slice_rows(case, per_slice, box[2].start, truth.shape[2]),
        _lesion_rows(case, measures, numbers, detected, geometry, [s.start for s in box]),
        counts,
        voxels,
        lits,
        truth.classes,
    )


def _slice_counts(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    # (3, slices): voxels of the reference, of the prediction, of both
    return np.stack([np.count_nonzero(mask, axis=(0, 1)) for mask in (truth, prediction, truth & prediction)])


def _lesions_numbered_as_in_file(tumour: np.ndarray, geometry: Geometry) -> np.ndarray:
    # The challenge's matching depends on the numbers, so lesions are numbered in the order of the file's voxels, not in
    # that of the canonical view.
    lesions, _ = label_lesions(np.ascontiguousarray(geometry.to_file(tumour)))
    return geometry.to_canonical(lesions)


def _numbers_by_size(labels: np.ndarray, lesions: np.ndarray) -> list[int]:
    """Number of each lesion in all other results, for lesions numbered in the file's order."""
    by_size, box = numbered_lesions(labels)
    numbers = np.zeros(int(lesions.max()) + 1, int)
    if box is not None:
        numbers[lesions[box]] = by_size
    return numbers[1:].tolist()


def _detected(match: LesionMatch, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Which reference lesions are found, and which predicted lesions find one: two bool arrays."""
    if not overlap:
        found = match.overlap > 0
        return np.any(found, axis=0), np.any(found, axis=1)
    groups = match.detected_groups(overlap)
    return np.isin(match.truth_group, groups), np.isin(match.prediction_group, groups)


def _count_by_size(measures: list[LesionMeasures], found: tuple[np.ndarray, np.ndarray]) -> dict[str, Counts]:
    sizes = [np.array([size_class(d) for d in m.diameter_mm], str) for m in measures]
    counts = {}
    for size in ("all", *SIZES):
        truth, prediction = ((s == size) | (size == "all") for s in sizes)
        counts[size] = (
            int(np.count_nonzero(found[0] & truth)),
            int(np.count_nonzero(~found[0] & truth)),
            int(np.count_nonzero(~found[1] & prediction)),
        )
    return counts


def _lits_case(
    numbered: list[np.ndarray],
    match: LesionMatch,
    measures: list[LesionMeasures],
    steps_mm: np.ndarray,
    liver_distances: SurfaceDistances | None,
    voxels: dict[str, Counts],
    liver_predicted: bool,
) -> LitsCase:
    detections = {overlap: challenge_detections(match, overlap) for overlap in OVERLAPS.values()}
    groups, count = detections[MIN_OVERLAP]
    return LitsCase(
        liver=object_scores(*voxels["liver"], liver_distances),
        liver_predicted=liver_predicted,
        # The program scores detected lesions only where its count of them is above 0.
        detected_lesions=tuple(
            _group_scores(numbered, measures, (match.truth_group == g, match.prediction_group == g), steps_mm)
            for g in groups
            if count > 0
        ),
        detections={overlap: number for overlap, (_, number) in detections.items()},
        lesions=(len(match.truth_voxels), len(match.prediction_voxels)),
        liver_voxels=voxels["liver"],
        lesion_voxels=voxels["lesion"],
    )


def _group_scores(
    numbered: list[np.ndarray],
    measures: list[LesionMeasures],
    selected: tuple[np.ndarray, np.ndarray],
    steps_mm: np.ndarray,
) -> ObjectScores:
    """Score the selected reference lesions, (G,) bool, as one object against the selected predicted ones, (P,) bool."""
    boxes = [m.boxes[i] for m, chosen in zip(measures, selected, strict=True) for i in np.flatnonzero(chosen)]
    box = enclosing_box(boxes)
    # a table over lesion numbers, background first
    truth, prediction = (
        np.append(False, chosen)[lesions[box]] for lesions, chosen in zip(numbered, selected, strict=True)
    )
    voxels = [int(np.count_nonzero(mask)) for mask in (truth, prediction, truth & prediction)]
    return object_scores(voxels[0], voxels[1], voxels[2], surface_distances(truth, prediction, steps_mm))


def _region_row(
    name: str, voxels: Counts, distances: SurfaceDistances | None, voxel_ml: float
) -> dict[str, float | None]:
    truth_ml, prediction_ml = (n * voxel_ml for n in voxels[:2])

    def measured(figure):
        return None if distances is None else figure(distances)

    return {
        f"{name}_dice": dice(*voxels),
        f"{name}_jaccard": jaccard(*voxels),
        f"{name}_voe": 1 - jaccard(*voxels),
        f"{name}_assd_mm": measured(SurfaceDistances.assd),
        f"{name}_rmsd_mm": measured(SurfaceDistances.rmsd),
        f"{name}_msd_mm": measured(SurfaceDistances.msd),
        f"{name}_hd95_mm": measured(SurfaceDistances.hd95),
        **{f"{name}_surface_dice_{t}mm": measured(lambda d, t=t: d.surface_dice(t)) for t in TOLERANCES_MM},
        f"{name}_volume_truth_ml": truth_ml,
        f"{name}_volume_prediction_ml": prediction_ml,
        f"{name}_volume_error_ml": prediction_ml - truth_ml,
        f"{name}_volume_error_percent": 100 * (voxels[1] - voxels[0]) / voxels[0] if voxels[0] else None,
    }


def _further_rows(truth: MaskVolume, prediction: MaskVolume) -> dict[str, float | None]:
    """Figures of structures that are neither organ nor lesion."""
    rows: dict[str, float | None] = {}
    for one in truth.classes.further:
        found = [mask.labels == one.index for mask in (truth, prediction)]
        boxes = [box for box in map(bounding_box, found) if box]
        box = enclosing_box(boxes) if boxes else (slice(0, 1),) * 3
        first, second = (np.ascontiguousarray(mask[box]) for mask in found)
        counts = int(first.sum()), int(second.sum()), int((first & second).sum())
        distances = surface_distances(first, second, truth.geometry.steps_mm)
        rows |= _region_row(f"{FURTHER}{one.index}", counts, distances, truth.voxel_volume_ml)
    return rows


def _burden_row(voxels: dict[str, Counts]) -> dict[str, float | None]:
    truth, prediction = (
        voxels["lesion"][side] / voxels["liver"][side] if voxels["liver"][side] else None for side in (0, 1)
    )
    return {
        "tumour_burden_truth": truth,
        "tumour_burden_prediction": prediction,
        "tumour_burden_error": None if truth is None or prediction is None else prediction - truth,
    }


def _slice_rows(case: int | str, per_slice: dict[str, np.ndarray], first: int, slices: int) -> list[dict[str, Any]]:
    whole = {name: np.zeros((3, slices), int) for name in REGIONS}
    for name, counts in per_slice.items():
        whole[name][:, first : first + counts.shape[1]] = counts
    rows = []
    for index in range(slices):
        liver, lesion = (whole[name][:, index].tolist() for name in REGIONS)
        rows.append(
            {
                "case": case,
                "slice_from_1": index + 1,
                "scenario": SCENARIOS[1] if lesion[0] else SCENARIOS[0] if liver[0] else SCENARIOS[2],
                "liver_dice_loss": 1 - dice(*liver),
                "liver_iou_loss": 1 - jaccard(*liver),
                "lesion_dice_loss": 1 - dice(*lesion),
                "lesion_iou_loss": 1 - jaccard(*lesion),
            }
        )
    return rows


def _lesion_rows(
    case: int | str,
    measures: list[LesionMeasures],
    numbers: list[list[int]],
    detected: dict[str, tuple[np.ndarray, np.ndarray]],
    geometry: Geometry,
    offset: list[int],
) -> list[dict[str, Any]]:
    rows = []
    for side, mask in enumerate(("truth", "prediction")):
        measure = measures[side]
        centers_mm = nib.affines.apply_affine(geometry.canonical_affine, measure.centroid + offset)
        for lesion in range(len(measure.voxels)):
            rows.append(
                {
                    "case": case,
                    "mask": mask,
                    "lesion": lesion + 1,
                    "number": numbers[side][lesion],
                    "volume_ml": float(measure.volume_ml[lesion]),
                    "diameter_mm": float(measure.diameter_mm[lesion]),
                    "size": size_class(measure.diameter_mm[lesion]),
                    "slice_from_1": int(measure.largest_slice[lesion]) + offset[2] + 1,
                    "center_mm": centers_mm[lesion].round(3).tolist(),
                    **{f"matched_{name}": bool(found[side][lesion]) for name, found in detected.items()},
                }
            )
    return rows
