"""Score slices against real labels: Dice, precision, recall, false tumour, intervals by bootstrap over patients."""

from __future__ import annotations

import numpy as np
from prepare import TUMOUR
from scipy import ndimage

SIZES_MM = ((5.0, 10.0), (10.0, 20.0), (20.0, float("inf")))
LEAST_CONFIDENCE = 0.1  # tumour with a lower probability is no finding


def counts_by_patient(found: np.ndarray, data: dict) -> dict[str, np.ndarray]:
    """Pixel counts of each patient, the sums from which every score follows.

    Args:
        found: (N, H, W) labels 0, 1, 2.
        data: the slices of `prepare.py`: `labels`, `known`, `patient`.

    Returns:
        arrays with one number per patient: `liver_both`, `liver_sum` (intersection and sum of sizes, all slices with
        liver), `tumour_both`, `tumour_found`, `tumour_true` (slices whose tumours are known), `free_slices`,
        `free_found` (tumour predicted in slices of liver known to be without tumour), `negative_slices`,
        `negative_found`, `negative_liver` (tumour, and liver or tumour, predicted in slices without liver).
    """
    labels, known = data["labels"], data["known"]
    without = known == "no liver"
    sure = (known == "labelled") | (known == "none")
    liver, true = labels > 0, labels == TUMOUR
    area = {"liver_both": (liver & (found > 0)).sum((1, 2)), "liver_sum": liver.sum((1, 2)) + (found > 0).sum((1, 2))}
    tumour = (found == TUMOUR).sum((1, 2))
    free = sure & ~true.any((1, 2))
    area |= {
        "tumour_both": (true & (found == TUMOUR)).sum((1, 2)) * sure,
        "tumour_found": tumour * sure,
        "tumour_true": true.sum((1, 2)) * sure,
        "free_slices": free,
        "free_found": tumour * free,
        "negative_slices": without,
        "negative_found": tumour * without,
        "negative_liver": (found > 0).sum((1, 2)) * without,
    }
    area["liver_both"], area["liver_sum"] = area["liver_both"] * ~without, area["liver_sum"] * ~without
    _, index = np.unique(data["patient"], return_inverse=True)
    return {key: np.bincount(index, value.astype(float)) for key, value in area.items()}


def scores_of(counts: dict[str, np.ndarray]) -> dict[str, float]:
    """What the table of candidates shows, from the counts of patients."""
    total = {key: value.sum() for key, value in counts.items()}
    with_liver, with_tumour = counts["liver_sum"] > 0, counts["tumour_true"] > 0
    sizes = counts["tumour_found"] + counts["tumour_true"]

    def ratio(a, b):
        return float(a / b) if b else float("nan")

    def mean(a, b, chosen):
        return float((a[chosen] / b[chosen]).mean()) if chosen.any() else float("nan")

    return {
        "liver_dice": mean(2.0 * counts["liver_both"], counts["liver_sum"], with_liver),
        "tumour_dice": ratio(2.0 * total["tumour_both"], sizes.sum()),
        "tumour_dice_patient": mean(2.0 * counts["tumour_both"], sizes, with_tumour),
        "tumour_precision": ratio(total["tumour_both"], total["tumour_found"]),
        "tumour_recall": ratio(total["tumour_both"], total["tumour_true"]),
        "false_tumour_per_free_slice": ratio(total["free_found"], total["free_slices"]),
        "false_tumour_per_negative": ratio(total["negative_found"], total["negative_slices"]),
        "false_liver_per_negative": ratio(total["negative_liver"], total["negative_slices"]),
    }


def with_intervals(counts: dict[str, np.ndarray], repeats: int = 2000, seed: int = 0) -> dict[str, list[float]]:
    """Each score with its 95 % interval, by bootstrap over patients: [score, low, high]."""
    patients, rng = len(counts["liver_sum"]), np.random.default_rng(seed)
    drawn = []
    for _ in range(repeats):
        chosen = rng.integers(patients, size=patients)
        drawn.append(scores_of({key: value[chosen] for key, value in counts.items()}))
    return {
        key: [round(x, 4) for x in (value, *np.nanpercentile([d[key] for d in drawn], (2.5, 97.5)))]
        for key, value in scores_of(counts).items()
    }


def lesions_in_slices(tumour: np.ndarray, data: dict) -> tuple[list[dict], list[dict]]:
    """True and found lesions of slices whose tumours are known, each slice by itself.

    Args:
        tumour: (N, H, W) probability of tumour in [0, 1].
        data: the slices of `prepare.py`.

    Returns:
        true lesions: `patient`, `diameter_mm` (of the disc of the same area), `confidence` (the largest probability of
        tumour in it); false ones, components of pixels above LEAST_CONFIDENCE that touch no true lesion: `patient`,
        `confidence`.
    """
    true_lesions, false_lesions = [], []
    for index in np.flatnonzero(np.isin(data["known"], ("labelled", "none", "no liver"))):
        truth, p, patient = data["labels"][index] == TUMOUR, tumour[index], str(data["patient"][index])
        regions, number = ndimage.label(truth)
        area_mm2 = np.bincount(regions.ravel(), minlength=number + 1)[1:] * np.prod(data["spacing_mm"][index])
        peaks = ndimage.maximum(p, regions, np.arange(1, number + 1)) if number else []
        true_lesions += [
            {"patient": patient, "diameter_mm": float(2.0 * np.sqrt(area / np.pi)), "confidence": float(peak)}
            for area, peak in zip(area_mm2, peaks, strict=True)
        ]
        found, number = ndimage.label(p > LEAST_CONFIDENCE)
        for number_of_found in set(range(1, number + 1)) - set(np.unique(found[truth])):
            false_lesions.append({"patient": patient, "confidence": float(p[found == number_of_found].max())})
    return true_lesions, false_lesions


def sensitivity(
    true_lesions: list[dict], false_lesions: list[dict], patients: int, allowed: float
) -> list[tuple[int, int]]:
    """Found and all true lesions of each of `SIZES_MM`, at the confidence with `allowed` false ones a patient."""
    ordered = sorted((lesion["confidence"] for lesion in false_lesions), reverse=True)
    kept = int(allowed * patients)
    threshold = ordered[kept] if kept < len(ordered) else LEAST_CONFIDENCE
    result = []
    for low, high in SIZES_MM:
        chosen = [lesion["confidence"] for lesion in true_lesions if low <= lesion["diameter_mm"] < high]
        result.append((sum(c > threshold for c in chosen), len(chosen)))
    return result
