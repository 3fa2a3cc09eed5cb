"""Scores of a folder of predicted masks against a folder of reference masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf import __version__
from liverseg_tf.data.dicom.segmentation import common_grid
from liverseg_tf.data.reading import is_segmentation_file
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.errors import ConfigError, GeometryWarning, warn
from liverseg_tf.evaluation.bootstrap import bootstrap_ratios
from liverseg_tf.evaluation.case_scores import (
    FURTHER,
    OVERLAPS,
    REGIONS,
    SCENARIOS,
    TOLERANCES_MM,
    CaseScores,
    dice,
    score_case,
)
from liverseg_tf.evaluation.lesions import SIZES
from liverseg_tf.evaluation.lits import lits_scores, lits_terms
from liverseg_tf.evaluation.pairs import find_pairs
from liverseg_tf.files import csv_cell
from liverseg_tf.labels import LIVER_CLASSES, ClassSet
from liverseg_tf.ownership import write_text
from liverseg_tf.strict_json import to_json
from liverseg_tf.wording import counted

RULES: dict[str, str] = {
    "classes": "The liver includes its tumours. Lesions are components of tumour voxels connected by faces.",
    "lits": "The LiTS challenge's keys and rules: 9001 means a missing surface, RVD is (reference - prediction) / "
    "prediction. A reference without lesions, on which the challenge's program fails, has only false positives.",
    "overlap": "Outside lits, lesion_dice and its like compare all tumour voxels of a case. Dice and Jaccard are 1 "
    "where both masks are empty and 0 where one is.",
    "distances": "Outside lits, distances and surface Dice are null where a mask is empty; 'missing' counts those. "
    "Surface voxels have a neighbour by face or edge outside the mask. HD95 is the larger of the two directions' 95th "
    "percentiles; surface Dice counts surface voxels within tolerance. Lengths and volumes use the mask's "
    "affine, a sheared one's too.",
    "detection": "Sizes go by equivalent diameter: small under 10 mm, large over 20 mm. A reference lesion is a true "
    "positive if a predicted voxel lies in it (overlap_above_0), or if, matched and merged as in the challenge, its "
    "intersection over union is above 0.5 (overlap_above_0.5). False positives have the predicted lesion's size.",
    "errors": "Volume and burden errors are prediction - reference. Standard deviations divide by n - 1.",
    "ci95": "Percentile bootstrap over patients; null where fewer than two patients have the figure.",
}

_LENGTHS = ("assd_mm", "rmsd_mm", "msd_mm", "hd95_mm", *(f"surface_dice_{t}mm" for t in TOLERANCES_MM))
_VOLUMES = ("volume_truth_ml", "volume_prediction_ml", "volume_error_ml")
# Endings of figures that an identity affine makes unreliable, of any region.
_METRIC_ENDINGS = tuple(f"_{field}" for field in _LENGTHS + _VOLUMES)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases. All figures are plain Python numbers, None where undefined.

    Attributes:
        lits: the LiTS challenge's scores, with the keys of its `scores.txt`.
        lits_ci95: confidence interval (lower, upper) of each, or None.
        summary: per figure of the cases: mean, standard deviation, median, interval of the mean, n, missing.
        dice_global: Dice over all voxels of all cases, per region, with its interval.
        surface_dice, hd95: the summary's entries for these, by region.
        detection: per overlap and lesion size: counts, precision, recall, F1 and their intervals.
        volume_agreement: per region, Bland and Altman's bias and limits of agreement in ml.
        tumour_burden: root mean square error and largest absolute error.
        scenarios: mean Dice and IoU loss over slices with liver only, liver with lesion, and neither.
        cases, slices, lesions: rows.
        settings: what was compared, and how.

    For masks of another organ, keys have its name instead of the liver's, further structures have their own figures,
    and `lits` is empty, because the challenge is about livers. Figures of lesions are left out if there is no such
    class.

    Examples:
        >>> scores = evaluate("site/references", "site/predictions", resamples=10)
        >>> round(scores.lits["liver_dice_per_case"], 3), len(scores.cases)
        (0.965, 20)
    """

    lits: dict[str, float]
    lits_ci95: dict[str, list[float] | None]
    summary: dict[str, dict[str, Any]]
    dice_global: dict[str, dict[str, Any]]
    surface_dice: dict[str, dict[str, dict[str, Any]]]
    hd95: dict[str, dict[str, Any]]
    detection: dict[str, dict[str, dict[str, Any]]]
    volume_agreement: dict[str, dict[str, Any]]
    tumour_burden: dict[str, Any]
    scenarios: dict[str, dict[str, Any]]
    cases: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    lesions: list[dict[str, Any]]
    settings: dict[str, Any]

    @property
    def inputs(self) -> list[str]:
        """The files that were read."""
        read = [row.get(name) for row in self.cases for name in ("truth", "prediction")]
        return [path for path in (*read, self.settings.get("patients_file")) if path]

    def to_dict(self) -> dict[str, Any]:
        """All scores as dictionaries, lists and numbers, for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """`to_dict` as JSON text, without NaN."""
        return to_json(self.to_dict(), indent=1) + "\n"

    def save_json(self, path: str | Path, overwrite: bool = False) -> None:
        """Write `to_json` to a file.

        Args:
            path: file to write; earlier scores are replaced if they were not changed since.
            overwrite: also replace any other file, except the masks that were read.

        Raises:
            OutputError: if it can't or must not be written.
        """
        write_text(path, self.to_json(), "scores", inputs=self.inputs, overwrite=overwrite)

    def save_csv(self, path: str | Path, rows: str = "cases", overwrite: bool = False) -> None:
        """Write a table of rows to a CSV file; an undefined figure is an empty cell.

        Args:
            path: the file.
            rows: `cases`, `slices` or `lesions`.
            overwrite: as `save_json`.

        Raises:
            ConfigError: for other rows.
            OutputError: if it can't or must not be written.
        """
        if rows not in ("cases", "slices", "lesions"):
            raise ConfigError(f"rows: expected cases, slices or lesions. Received: {rows!r}")
        table = [{name: _cell(value) for name, value in row.items()} for row in getattr(self, rows)]
        text = io.StringIO(newline="")
        if table:  # without lesions there are no lesion rows
            writer = csv.DictWriter(text, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        write_text(path, text.getvalue(), "table", inputs=self.inputs, overwrite=overwrite)

    def save_figure(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the overview figure (see `figure.plot_evaluation`); the suffix chooses the format.

        Raises:
            ConfigError: for a suffix that matplotlib doesn't know.
            OutputError: if it can't or must not be written.
        """
        from liverseg_tf.evaluation.figure import save_evaluation_figure

        save_evaluation_figure(self, path, overwrite)

    @property
    def regions(self) -> list[str]:
        """Organ, lesion and further structures that have figures, as the figures' names begin."""
        return [name.removesuffix("_dice") for name in self.summary if name.endswith("_dice") and "surface" not in name]

    @property
    def organ_regions(self) -> list[str]:
        """The organ, and its lesion if it has one."""
        return self.regions[: 2 if self.detection else 1]

    def _figures(self) -> list[str]:
        if not self.lits:
            return [f"{region} Dice per case {self.summary[f'{region}_dice']['mean']:.3f}" for region in self.regions]
        return [
            f"liver Dice per case {self.lits['liver_dice_per_case']:.3f}",
            f"lesion Dice per case {self.lits['lesion_dice_per_case']:.3f}",
            f"lesion recall {self.lits['lesion_recall']:.3f}, precision {self.lits['lesion_precision']:.3f}",
        ]

    def __repr__(self) -> str:
        return (
            f"Evaluation({counted(len(self.cases), 'case')}, {counted(self.settings['patients'], 'patient')}: "
            f"{', '.join(self._figures())})"
        )


def evaluate(
    truth: str | Path,
    prediction: str | Path,
    *,
    patients: str | Path | None = None,
    exclude_identity: bool = False,
    classes: ClassSet | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Score predicted masks by the LiTS challenge's metrics and others.

    Args:
        truth: folder of reference masks, or one file; values 0 background, 1 liver, 2 tumour.
        prediction: folder of predicted masks, paired by case number (see `find_pairs`), or one file.
        patients: CSV file with the columns `id,patient`; intervals resample patients. By default a case is a patient.
        exclude_identity: leave cases with an identity affine out of means over mm and ml. They are always marked in
            their row, and the challenge's own scores always include them.
        classes: classes of the masks; by default those stored in the predicted masks, else liver and tumour.
        resamples: number of bootstrap resamples, at least 1.
        seed: seed of the bootstrap, at least 0.
        progress: called with the number of cases done, their total, and the name of the next step.

    Returns:
        The scores. Nothing is returned or written unless every pair could be scored.

    Raises:
        InputFileError: for a missing path or a file that is no mask.
        CaseError: for a missing prediction, or two masks of one case.
        GeometryError: for a pair of masks on different grids.
        LabelError: for values that are no class.
        ConfigError: for fewer than one resample.

    Warns:
        DataWarning: for predictions without a reference.
        GeometryWarning: for cases with an identity affine.

    Examples:
        >>> scores = evaluate(truth="LiTS", prediction="LiTS", resamples=10)  # against itself
        >>> scores.to_dict()["lits"]["liver_dice_per_case"]
        1.0
    """
    if resamples < 1:
        raise ConfigError(f"resamples: expected at least 1. Received: {resamples}")
    pairs = find_pairs(truth, prediction, patients)
    cases = []
    for done, pair in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs), pair.prediction.name)
        loaded = load_pair(pair.truth, pair.prediction, classes)
        classes = loaded[1].classes  # all masks of a run have the same classes
        scores = score_case(*loaded, pair.case)
        row = {"case": pair.case, "patient": pair.patient, "truth": str(pair.truth), "prediction": str(pair.prediction)}
        cases.append(replace(scores, row=row | scores.row))
    if progress is not None:
        progress(len(pairs), len(pairs), "intervals")
    classes = cases[0].classes
    settings = {
        "liverseg_tf": __version__,
        "truth": str(truth),
        "prediction": str(prediction),
        "patients_file": None if patients is None else str(patients),
        "exclude_identity": exclude_identity,
        "classes": list(classes.names),
        "lesion": classes.lesion,
        "resamples": resamples,
        "seed": seed,
    }
    return _evaluation_of(cases, [pair.patient for pair in pairs], settings)


def load_pair(
    truth: Path, prediction: Path, classes: ClassSet | None = None, like: CTVolume | None = None
) -> tuple[MaskVolume, MaskVolume]:
    """Two masks on one grid: a DICOM SEG, which leaves empty slices out, on that of their CT `like` or of the other.

    Their classes are `classes`, or those stored in the prediction.
    """
    if like is not None:
        found = MaskVolume.load(prediction, classes=classes, like=like)
        return MaskVolume.load(truth, classes=found.classes, like=like), found
    if is_segmentation_file(truth):
        other = MaskVolume.load(prediction)
        if is_segmentation_file(prediction):  # neither has the CT's grid: use the smallest grid that contains both
            own = MaskVolume.load(truth).geometry
            shape, affine = common_grid((own.shape, own.affine), (other.geometry.shape, other.geometry.affine))
            other = MaskVolume.load(prediction, like=MaskVolume(np.zeros(shape, np.uint8), Geometry(shape, affine)))
        return MaskVolume.load(truth, like=other), other
    if not is_segmentation_file(prediction):
        found = MaskVolume.load(prediction, classes=classes)
        return MaskVolume.load(truth, classes=found.classes), found
    reference = MaskVolume.load(truth)
    return reference, MaskVolume.load(prediction, like=reference)


def _evaluation_of(cases: Sequence[CaseScores], patients: Sequence[str], settings: dict[str, Any]) -> Evaluation:
    """Combine the scores of cases.

    Args:
        cases: at least one.
        patients: patient of each case.
        settings: `exclude_identity`, `resamples` and `seed` as in `evaluate`; kept as `Evaluation.settings`.
    """
    identity = [case.row["case"] for case in cases if case.row["identity_affine"]]
    if identity:
        warn(
            f"{len(identity)} of {counted(len(cases), 'case')} {'has' if len(identity) == 1 else 'have'} an identity "
            "affine: mm and ml are unreliable there (case "
            f"{', '.join(map(str, identity[:10]))}{', ...' if len(identity) > 10 else ''}); "
            f"{'it is' if len(identity) == 1 else 'they are'} "
            f"{'left out of' if settings['exclude_identity'] else 'part of'} means over mm and ml",
            GeometryWarning,
        )
    figures = {name: _values(cases, name, settings["exclude_identity"]) for name in _summary_fields(cases[0])}
    terms = _terms(cases, figures)
    stacked = np.array(list(terms.values()), float)  # (figures, cases, 2)
    bounds = bootstrap_ratios(stacked[..., 0].T, stacked[..., 1].T, patients, settings["resamples"], settings["seed"])
    intervals = {
        name: None if np.isnan(pair).any() else pair.tolist() for name, pair in zip(terms, bounds, strict=True)
    }
    lits = lits_scores([case.lits for case in cases])
    lits_ci95 = {name: intervals.get(f"lits {name}") for name in lits}
    if lits_ci95["RMSE_Tumorburden"]:
        lits_ci95["RMSE_Tumorburden"] = np.sqrt(lits_ci95["RMSE_Tumorburden"]).tolist()

    voxels = {region: np.sum([case.voxels[region] for case in cases], axis=0).tolist() for region in REGIONS}
    summary = {name: _summary(values, intervals[name]) for name, values in figures.items()}
    evaluation = Evaluation(
        lits=lits,
        lits_ci95=lits_ci95,
        summary=summary,
        dice_global={
            region: {"dice": dice(*voxels[region]), "ci95": intervals[f"{region} dice_global"]} for region in REGIONS
        },
        surface_dice={
            region: {f"{t}mm": summary[f"{region}_surface_dice_{t}mm"] for t in TOLERANCES_MM} for region in REGIONS
        },
        hd95={region: summary[f"{region}_hd95_mm"] for region in REGIONS},
        detection={
            overlap: {size: _detection(cases, overlap, size, intervals) for size in ("all", *SIZES)}
            for overlap in OVERLAPS
        },
        volume_agreement={region: _agreement(figures[f"{region}_volume_error_ml"]) for region in REGIONS},
        tumour_burden=_burden(figures["tumour_burden_error"]),
        scenarios=_scenarios(cases),
        cases=[case.row for case in cases],
        slices=[row for case in cases for row in case.slices],
        lesions=[row for case in cases for row in case.lesions],
        settings={
            "cases": len(cases),
            "patients": len(set(patients)),
            **settings,
            "identity_affine_cases": identity,
            "rules": RULES,
        },
    )
    return _named(evaluation, cases[0].classes)


def _named(evaluation: Evaluation, classes: ClassSet) -> Evaluation:
    """The evaluation with the names of its own classes; without LiTS's scores if the organ is not the liver."""
    if classes == LIVER_CLASSES:
        return evaluation
    further = {f"{FURTHER}{c.index}_": f"{c.name}_" for c in classes.further}

    def name_of(key: Any) -> Any:
        start = next((prefix for prefix in further if isinstance(key, str) and key.startswith(prefix)), None)
        if start:
            return further[start] + key.removeprefix(start)
        return classes.named(key) if isinstance(key, str) else key

    def is_there(key: Any) -> bool:
        return classes.lesion is not None or not isinstance(key, str) or not ("lesion" in key or "tumour" in key)

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            there = {k: v for k, v in value.items() if is_there(k)}
            return {name_of(k): classes.named(v) if k == "scenario" else renamed(v) for k, v in there.items()}
        return [renamed(v) for v in value] if isinstance(value, list) else value

    found = {f.name: renamed(getattr(evaluation, f.name)) for f in fields(evaluation) if f.name != "settings"}
    if not classes.is_liver or classes.lesion is None:
        found |= {"lits": {}, "lits_ci95": {}}
    if classes.lesion is None:
        found |= {"detection": {}, "tumour_burden": {}, "lesions": []}
    rules = {name: classes.named(text) for name, text in RULES.items() if found["lits"] or name != "lits"}
    return Evaluation(**found, settings=evaluation.settings | {"rules": rules})


def _summary_fields(case: CaseScores) -> list[str]:
    starts = ("liver_", "lesion_", "tumour_burden_", "lesions_", FURTHER)
    return [name for name in case.row if name.startswith(starts)]


def _values(cases: Sequence[CaseScores], name: str, exclude_identity: bool) -> np.ndarray:
    """One figure of all cases, (cases,) float64, NaN where undefined or left out."""
    left_out = exclude_identity and name.endswith(_METRIC_ENDINGS)
    values = [None if left_out and case.row["identity_affine"] else case.row[name] for case in cases]
    return np.array(values, float)


def _terms(cases: Sequence[CaseScores], fields: dict[str, np.ndarray]) -> dict[str, list[tuple[float, float]]]:
    """Numerator and denominator of every figure that gets an interval, one pair per case."""
    terms = {
        name: [(0.0, 0.0) if np.isnan(value) else (value, 1.0) for value in values] for name, values in fields.items()
    }
    lits = [lits_terms(case.lits) for case in cases]
    terms |= {f"lits {name}": [case[name] for case in lits] for name in lits[0]}
    for region in REGIONS:
        voxels = [case.voxels[region] for case in cases]
        terms[f"{region} dice_global"] = [(2 * shared, truth + found) for truth, found, shared in voxels]
    for overlap in OVERLAPS:
        for size in ("all", *SIZES):
            counts = [case.counts[overlap][size] for case in cases]
            terms[f"{overlap} {size} precision"] = [(tp, tp + fp) for tp, _, fp in counts]
            terms[f"{overlap} {size} recall"] = [(tp, tp + fn) for tp, fn, _ in counts]
            terms[f"{overlap} {size} f1"] = [(2 * tp, 2 * tp + fn + fp) for tp, fn, fp in counts]
    return terms


def _summary(values: np.ndarray, interval: list[float] | None) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    return {
        "mean": float(known.mean()) if known.size else None,
        "std": float(known.std(ddof=1)) if known.size > 1 else None,
        "median": float(np.median(known)) if known.size else None,
        "ci95": interval,
        "n": int(known.size),
        "missing": int(values.size - known.size),
    }


def _detection(
    cases: Sequence[CaseScores], overlap: str, size: str, intervals: dict[str, list[float] | None]
) -> dict[str, Any]:
    tp, fn, fp = (sum(case.counts[overlap][size][i] for case in cases) for i in range(3))
    row: dict[str, Any] = {"true_positives": tp, "false_negatives": fn, "false_positives": fp}
    for name, numerator, denominator in (
        ("precision", tp, tp + fp),
        ("recall", tp, tp + fn),
        ("f1", 2 * tp, 2 * tp + fn + fp),
    ):
        row[name] = numerator / denominator if denominator else None
        row[f"{name}_ci95"] = intervals[f"{overlap} {size} {name}"]
    return row


def _agreement(errors_ml: np.ndarray) -> dict[str, Any]:
    known = errors_ml[~np.isnan(errors_ml)]
    bias = float(known.mean()) if known.size else None
    deviation = float(known.std(ddof=1)) if known.size > 1 else None
    limits = None if bias is None or deviation is None else [bias - 1.96 * deviation, bias + 1.96 * deviation]
    return {
        "bias_ml": bias,
        "std_ml": deviation,
        "limits_of_agreement_ml": limits,
        "mean_absolute_error_ml": float(np.abs(known).mean()) if known.size else None,
        "n": int(known.size),
    }


def _burden(errors: np.ndarray) -> dict[str, Any]:
    known = errors[~np.isnan(errors)]
    return {
        "rmse": float(np.sqrt(np.square(known).mean())) if known.size else None,
        "max_absolute_error": float(np.abs(known).max()) if known.size else None,
        "n": int(known.size),
        "missing": int(errors.size - known.size),
    }


def _scenarios(cases: Sequence[CaseScores]) -> dict[str, dict[str, Any]]:
    losses = ("liver_dice_loss", "liver_iou_loss", "lesion_dice_loss", "lesion_iou_loss")
    rows = [row for case in cases for row in case.slices]
    result = {}
    for scenario in SCENARIOS:
        table = np.array([[row[loss] for loss in losses] for row in rows if row["scenario"] == scenario])
        means = table.mean(axis=0).tolist() if len(table) else [None] * len(losses)
        result[scenario] = {"slices": len(table), **dict(zip(losses, means, strict=True))}
    return result


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else csv_cell(value)
