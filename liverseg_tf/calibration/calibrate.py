"""`calibrate`: estimates errors of a model's volumes and lesions from a site's own labelled cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.calibration.conformal import (
    COVERAGE,
    LesionProbability,
    VolumeInterval,
    first_fifth,
    ridge,
    standardized,
)
from liverseg_tf.config import Config
from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_voxels
from liverseg_tf.errors import CaseError, ConfigError, DataWarning, warn
from liverseg_tf.evaluation.evaluate import load_pair
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.measure import Measurement, find_masks, measure
from liverseg_tf.evaluation.pairs import find_pairs
from liverseg_tf.labels import BACKGROUND, CLASS_NAMES, LIVER_CLASSES, TUMOUR, ClassSet
from liverseg_tf.ownership import claim, write_text

FORMAT = 1
FEWEST_CASES = 20
# Least numbers of true and of false findings from which probabilities are estimated.
FEWEST_LESIONS = 5

Progress = Callable[[int, int, str], None]
Features = dict[str, float]


@dataclass(frozen=True)
class CalibrationCase:
    """One labelled case: prediction and reference.

    Attributes:
        name: of the case.
        liver_ml, tumour_ml: predicted volumes.
        true_liver_ml, true_tumour_ml: of the reference.
        features: by name, features that may predict the case's error.
        lesion_features, lesion_is_one: of each predicted lesion, and whether the reference has one there.
        classes: of its masks; of another organ, "liver" and "tumour" stand for it and its lesions.
    """

    name: str
    liver_ml: float
    tumour_ml: float
    true_liver_ml: float
    true_tumour_ml: float
    features: Features
    lesion_features: tuple[Features, ...] = ()
    lesion_is_one: tuple[bool, ...] = ()
    classes: ClassSet = LIVER_CLASSES


@dataclass(frozen=True)
class Quality(Config):
    """Quality by leave-one-out: each case is tested with a calibration by the others.

    Attributes:
        liver_coverage, tumour_coverage: share of the cases whose true volume is in the interval, 0 to 1.
        liver_width, tumour_width: median of the interval's upper end over its lower end, after adding 0.5 ml to both.
        lesion_brier: mean square of probability minus truth; 0.25 for a coin toss. None without probabilities.
        lesion_brier_of_mean: the same for one probability for all.
        error_in_first_fifth: part of all error (logarithms of volume ratios) in the fifth of cases to look at first;
            chance gives 0.2.
    """

    liver_coverage: float
    tumour_coverage: float
    liver_width: float
    tumour_width: float
    lesion_brier: float | None
    lesion_brier_of_mean: float | None
    error_in_first_fifth: float


@dataclass(frozen=True)
class Calibration(Config):
    """The result of `calibrate`, for `predict_folder(calibration=FILE)`.

    Attributes:
        model, model_sha256: name and digest of the model that predicted the cases; None if unknown.
        case_count: number of cases.
        lesion_count: number of predicted lesions in them.
        with_ct: whether HU are among the features.
        with_uncertainty: whether the results of `measure_uncertainty` are among the features.
        liver, tumour: intervals of their volumes.
        lesion: probabilities of predicted lesions, or None with fewer than 5 true or 5 false ones.
        review_feature_names, review_means, review_sds, review_weights: of the linear score by which cases are reviewed,
            the most doubtful first.
        quality: measured by leaving one case out.
        format: of the file.
        class_names, lesion_is_2: of the masks, as `ClassSet` has them; of another organ, "liver" and "tumour" stand for
            it and its lesions.

    Raises:
        ConfigError: for a file of another format, or figures that don't fit together.

    Examples:
        >>> found = calibrate("site/references", predictions="site/predictions")
        >>> low, high = found.judge(measure("site/predictions/segmentation-3.nii.gz"))["liver_interval_ml"]
        >>> round(low), round(high)
        (424, 440)
    """

    model: str | None
    model_sha256: str | None
    case_count: int
    lesion_count: int
    with_ct: bool
    with_uncertainty: bool
    liver: VolumeInterval
    tumour: VolumeInterval
    lesion: LesionProbability | None
    review_feature_names: tuple[str, ...]
    review_means: tuple[float, ...]
    review_sds: tuple[float, ...]
    review_weights: tuple[float, ...]
    quality: Quality
    format: int = FORMAT
    class_names: tuple[str, ...] = CLASS_NAMES
    lesion_is_2: bool = True

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(
                f"format: expected a calibration of format {FORMAT}; calibrate again. Received: {self.format}"
            )
        sizes = {len(self.review_feature_names), *map(len, (self.review_means, self.review_sds, self.review_weights))}
        if len(sizes) > 1 or not np.isfinite((*self.review_means, *self.review_sds, *self.review_weights)).all():
            raise ConfigError("review: expected a finite mean, deviation and weight for each feature")
        known = set(_case_names(True, True))
        named = (*self.liver.feature_names, *self.tumour.feature_names, *self.review_feature_names)
        unknown = sorted({*named} - known)
        unknown += sorted(set(self.lesion.feature_names) - set(_lesion_names(True))) if self.lesion else []
        if unknown:
            raise ConfigError(f"expected features that this version knows. Received: {unknown[0]!r}")
        self.classes  # noqa: B018 - checks the names

    @property
    def classes(self) -> ClassSet:
        """The classes of the masks."""
        return ClassSet(self.class_names, self.lesion_is_2)

    def save(self, path: str | Path, *, inputs: Sequence[str | Path] = (), overwrite: bool = False) -> None:
        """Write it as JSON.

        Raises:
            OutputError: as `write_text`.
        """
        write_text(path, self.to_json(), "calibration", inputs=inputs, overwrite=overwrite)

    def warn_if_of_another(self, model_sha256: str | None) -> None:
        """Warn if a model is not the calibrated one, or can't be identified.

        Warns:
            DataWarning: then the intervals are not valid.
        """
        if self.model_sha256 is None or model_sha256 != self.model_sha256:
            warn(
                f"calibration: expected the model that was calibrated ({_short(self.model_sha256)}), got "
                f"{_short(model_sha256)}: its intervals promise nothing of this one; calibrate this model",
                DataWarning,
            )

    def judge(self, found: Measurement, uncertainty: dict[str, Any] | None = None) -> dict[str, Any]:
        """Intervals and probabilities of one prediction.

        Args:
            found: `measure` of the predicted mask, with its CT if `with_ct`.
            uncertainty: of `measure_uncertainty`, as a dictionary, if `with_uncertainty`.

        Returns:
            For JSON: the promised coverage, both intervals in ml, each lesion's probability, the score to review by.

        Raises:
            ConfigError: without `uncertainty` where it is needed.
        """
        if self.with_uncertainty and uncertainty is None:
            raise ConfigError("uncertainty: this calibration needs it; predict with uncertainty=True")
        features = case_features(found, self.with_ct, uncertainty if self.with_uncertainty else None)
        statistics = found.statistics
        lesions: list[dict[str, Any]] = []
        if self.lesion is not None:
            for one in found.lesions:
                chance = self.lesion(lesion_features(one, self.with_ct))
                lesions.append({"number": one.statistics.number, "probability": round(chance, 3)})
        named = self.classes.named
        intervals = {"liver": self.liver.interval_ml(statistics.liver_volume_ml, features)}
        if self.classes.lesion is not None:
            intervals["tumour"] = self.tumour.interval_ml(statistics.tumour_volume_ml, features)
        return {
            "coverage": self.liver.coverage,
            **{named(f"{name}_interval_ml"): _rounded(ends) for name, ends in intervals.items()},
            "lesions": lesions,
            "review_score": round(self._review(features), 4),
            "cases": self.case_count,
        }

    def _review(self, features: Features) -> float:
        values = standardized(features, self.review_feature_names, self.review_means, self.review_sds)
        return float(values @ np.array(self.review_weights))


def calibrate(
    references: str | Path,
    cts: str | Path | None = None,
    *,
    predictions: str | Path | None = None,
    model: Any = None,
    coverage: float = COVERAGE,
    classes: ClassSet | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Compute prediction intervals from 20 to 100 labelled cases that were not used in training.

    Args:
        references: folder of the site's own masks.
        cts: folder of their CTs, paired by number or name. They are segmented, unless `predictions` is given.
        predictions: folder of masks that the model predicted of these cases; its `manifest.jsonl` says which model,
            and what uncertainty was measured.
        model: as `Predictor` takes it, where CTs are segmented.
        coverage: of the intervals, 0.5 to below 1: the share of future cases, similar to these, whose true volume is in
            the interval.
        classes: classes of the masks; by default those stored in the predictions, else liver and tumour.
        output: JSON file to write.
        overwrite: replace a file that this library did not make.
        progress: called with the number of cases done, their total, and the current step.

    Returns:
        A `Calibration`.

    Raises:
        ConfigError: with neither CTs nor predictions, or another coverage.
        CaseError: with fewer than 20 cases, or cases that can't be paired.
        LiverSegError: for files that can't be used.

    Examples:
        >>> found = calibrate("site/references", predictions="site/predictions", output="calibration.json")
        >>> found.case_count, found.quality.liver_coverage
        (20, 1.0)
    """
    if cts is None and predictions is None:
        raise ConfigError("cts, predictions: expected one of them at least, got none")
    if not 0.5 <= coverage < 1:
        raise ConfigError(f"coverage: expected 0.5 to below 1, as 0.9. Received: {coverage}")
    inputs = [path for path in (references, cts, predictions) if path is not None]
    if output is not None:
        claim(output, "calibration", overwrite=overwrite)
    tell = progress or (lambda done, total, what: None)
    cases, name, sha256 = [], None, None
    if predictions is not None:
        pairs = [(pair.truth, pair.prediction) for pair in find_pairs(references, predictions)]
        name, sha256, uncertain = _manifest(Path(predictions))
        scans = {one.mask: one for one in find_masks(references, cts)} if cts is not None else {}
        _check_count(len(pairs))
        # used only if all cases have it
        uncertain = uncertain if all(p.name in uncertain for _, p in pairs) else {}
        for done, (truth, predicted) in enumerate(pairs):
            tell(done, len(pairs), predicted.name)
            scan = scans.get(truth)
            ct = None if scan is None or scan.ct is None else CTVolume.load(scan.ct, series=scan.series)
            cases.append(labelled_case(*load_pair(truth, predicted, classes, ct), ct, uncertain.get(predicted.name)))
    else:
        from liverseg_tf.inference.predictor import Predictor

        found_masks = find_masks(references, cts)
        _check_count(len(found_masks))
        predictor = model if isinstance(model, Predictor) else Predictor(model)
        name, sha256 = predictor.name, predictor.sha256
        classes = classes or predictor.config.classes
        for done, (truth, path, series) in enumerate(found_masks):
            assert path is not None  # of find_masks with CTs
            tell(done, len(found_masks), path.name)
            volume = CTVolume.load(path, series=series)
            reference = MaskVolume.load(truth, classes=classes, like=volume)
            check_same_voxels(volume.geometry, reference.geometry, (path, truth))
            predicted_mask = MaskVolume(predictor.predict(volume).labels, volume.geometry, classes=classes)
            cases.append(labelled_case(reference, predicted_mask, volume))
    tell(len(cases), len(cases), "fitting")
    found = fit(cases, cts is not None, coverage, name, sha256)
    if output is not None:
        found.save(output, inputs=inputs, overwrite=overwrite)
    return found


def labelled_case(
    truth: MaskVolume, predicted: MaskVolume, ct: CTVolume | None = None, uncertainty: dict[str, Any] | None = None
) -> CalibrationCase:
    """One case from its masks.

    Raises:
        GeometryError: if they lie on different grids.
        ConfigError: if they are of different organs.
    """
    if truth.classes != predicted.classes:
        names = [", ".join(one.classes.names[1:]) for one in (truth, predicted)]
        raise ConfigError(f"{predicted.path or 'prediction'}: expected a mask of {names[0]}, got one of {names[1]}")
    check_same_voxels(truth.geometry, predicted.geometry, (truth.path or "reference", predicted.path or "prediction"))
    found = measure(predicted, ct)
    numbered, box = numbered_lesions(predicted.organ_labels)
    organ = truth.organ_labels
    touched: set[int] = set()
    if box is not None:
        touched = set(np.unique(numbered[organ[box] == TUMOUR]).tolist())
    voxel_ml = truth.voxel_volume_ml
    return CalibrationCase(
        found.case,
        found.statistics.liver_volume_ml,
        found.statistics.tumour_volume_ml,
        float(np.count_nonzero(organ != BACKGROUND) * voxel_ml),
        float(np.count_nonzero(organ == TUMOUR) * voxel_ml),
        case_features(found, ct is not None, uncertainty),
        tuple(lesion_features(one, ct is not None) for one in found.lesions),
        tuple(one.statistics.number in touched for one in found.lesions),
        predicted.classes,
    )


def fit(
    cases: Sequence[CalibrationCase],
    with_ct: bool,
    coverage: float = COVERAGE,
    model: str | None = None,
    model_sha256: str | None = None,
) -> Calibration:
    """Fit to cases, and measure by leaving one out at a time.

    Raises:
        CaseError: with fewer than 20, or of several organs.
    """
    _check_count(len(cases))
    organs = {case.classes for case in cases}
    if len(organs) > 1:
        raise CaseError(
            f"expected cases of one organ, got {', '.join(sorted(c.organ for c in organs))}; calibrate each"
        )
    names = list(cases[0].features)
    table = np.array([[case.features[name] for name in names] for case in cases])
    sizes = np.array([(c.liver_ml, c.true_liver_ml, c.tumour_ml, c.true_tumour_ml) for c in cases])
    liver, tumour = _intervals(names, table, sizes, coverage)
    means, sds, weights = _review_weights(table, sizes)
    lesion = _lesions(cases)
    return Calibration(
        model,
        model_sha256,
        len(cases),
        sum(len(case.lesion_is_one) for case in cases),
        with_ct,
        "disagreement" in names,
        liver,
        tumour,
        lesion,
        tuple(names),
        tuple(means.tolist()),
        tuple(sds.tolist()),
        tuple(weights.tolist()),
        _quality(cases, names, table, sizes, coverage),
        class_names=cases[0].classes.names,
        lesion_is_2=cases[0].classes.lesion_is_2,
    )


def case_features(found: Measurement, with_ct: bool, uncertainty: dict[str, Any] | None = None) -> Features:
    """Features that may predict a case's error."""
    statistics = found.statistics
    values = {
        "log_tumour_ml": float(np.log(statistics.tumour_volume_ml + 0.5)),
        "slice_mm": statistics.spacing_mm[2],
        "log_lesions": float(np.log1p(statistics.lesion_count)),
    }
    if with_ct:
        liver, tumour = statistics.liver_mean_hu or 0.0, statistics.tumour_mean_hu
        values |= {"liver_hu": liver, "contrast_hu": 0.0 if tumour is None else tumour - liver}
    if uncertainty is not None:
        what = "liver" if statistics.classes.lesion is None else "tumour"
        low, high = uncertainty[statistics.classes.named(f"{what}_range_ml")]
        values["disagreement"] = float(np.log((high + 0.5) / (low + 0.5)))
    return values


def lesion_features(one: Any, with_ct: bool) -> Features:
    """What may tell whether a lesion is one; of `LesionMeasurement`."""
    values = {
        "log_ml": float(np.log(one.statistics.volume_ml + 0.01)),
        "depth_mm": one.distance_to_surface_mm or 0.0,
        "sphericity": one.sphericity or 0.5,
    }
    return values | ({"contrast_hu": one.contrast_hu or 0.0} if with_ct else {})


def _case_names(with_ct: bool, with_uncertainty: bool) -> list[str]:
    names = ["log_tumour_ml", "slice_mm", "log_lesions"]
    return names + ["liver_hu", "contrast_hu"] * with_ct + ["disagreement"] * with_uncertainty


def _lesion_names(with_ct: bool) -> list[str]:
    return ["log_ml", "depth_mm", "sphericity"] + ["contrast_hu"] * with_ct


def _check_count(count: int) -> None:
    if count < FEWEST_CASES:
        raise CaseError(
            f"expected at least {FEWEST_CASES} labelled cases, got {count}: by fewer, an interval that holds in 9 of "
            "10 can't be distinguished from one that does not; label more"
        )


def _intervals(
    names: list[str], table: np.ndarray, sizes: np.ndarray, coverage: float
) -> tuple[VolumeInterval, VolumeInterval]:
    features = {name: table[:, i] for i, name in enumerate(names)}
    return (
        VolumeInterval.fit(sizes[:, 0], sizes[:, 1], features, coverage),
        VolumeInterval.fit(sizes[:, 2], sizes[:, 3], features, coverage),
    )


def _errors(sizes: np.ndarray) -> np.ndarray:
    """(N,): how wrong each case is: both volumes' ratios, as logarithms."""
    logs = np.log(sizes + 0.5)
    return np.abs(logs[:, 0] - logs[:, 1]) + np.abs(logs[:, 2] - logs[:, 3])


def _review_weights(table: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    means, sds = table.mean(axis=0), table.std(axis=0)
    standard = (table - means) / np.where(sds > 1e-9, sds, 1)
    return means, sds, ridge(standard, np.log(_errors(sizes) + 0.01))


def _lesions(cases: Sequence[CalibrationCase]) -> LesionProbability | None:
    rows = [features for case in cases for features in case.lesion_features]
    truth = np.array([is_one for case in cases for is_one in case.lesion_is_one], bool)
    if min(truth.sum(), (~truth).sum()) < FEWEST_LESIONS:
        return None
    return LesionProbability.fit({name: np.array([row[name] for row in rows]) for name in rows[0]}, truth)


def _quality(
    cases: Sequence[CalibrationCase], names: list[str], table: np.ndarray, sizes: np.ndarray, coverage: float
) -> Quality:
    inside = np.zeros((len(cases), 2), bool)
    width = np.zeros((len(cases), 2))
    score = np.zeros(len(cases))
    squares: list[float] = []
    plain: list[float] = []
    for i, case in enumerate(cases):
        rest = np.arange(len(cases)) != i
        features = case.features
        for column, interval in enumerate(_intervals(names, table[rest], sizes[rest], coverage)):
            low, high = interval.interval_ml(sizes[i, 2 * column], features)
            inside[i, column] = low <= sizes[i, 2 * column + 1] <= high
            width[i, column] = (high + 0.5) / (low + 0.5)
        means, sds, weights = _review_weights(table[rest], sizes[rest])
        score[i] = (table[i] - means) / np.where(sds > 1e-9, sds, 1) @ weights
        others = [other for other in cases if other is not case]
        known = [is_one for other in others for is_one in other.lesion_is_one]
        lesion = _lesions(others) if case.lesion_features else None
        if lesion is not None:
            for row, is_one in zip(case.lesion_features, case.lesion_is_one, strict=True):
                squares.append((lesion(row) - is_one) ** 2)
                plain.append((float(np.mean(known)) - is_one) ** 2)
    return Quality(
        round(float(inside[:, 0].mean()), 4),
        round(float(inside[:, 1].mean()), 4),
        round(float(np.median(width[:, 0])), 4),
        round(float(np.median(width[:, 1])), 4),
        round(float(np.mean(squares)), 4) if squares else None,
        round(float(np.mean(plain)), 4) if plain else None,
        round(first_fifth(np.argsort(-score, kind="stable"), _errors(sizes)), 4),
    )


def _manifest(folder: Path) -> tuple[str | None, str | None, dict[str, dict[str, Any]]]:
    """Model, its digest, and uncertainty by the masks' names, of the run that wrote a folder; nothing if none did."""
    try:  # signed or not: a manifest made by hand also names the model
        first, *lines = (json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines() if line)
        rows = {Path(row["output"]).name: row["uncertainty"] for row in lines if row.get("uncertainty")}
        return first["model"], first["model_sha256"], rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None, {}


def _rounded(ends: tuple[float, float]) -> list[float]:
    return [round(end, 3) for end in ends]


def _short(sha256: str | None) -> str:
    return "unknown" if sha256 is None else f"SHA-256 {sha256[:12]}"
