"""Conformal intervals for volumes, and probabilities for lesions: arithmetic on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liverseg_tf.config import Config
from liverseg_tf.errors import ConfigError

# Added to volumes before the logarithm, so that 0 ml has one and a few voxels have little effect.
OFFSET_ML = 0.5
COVERAGE = 0.9
# Weight of the prior that features say nothing: standardised features, so one number is enough for all.
_RIDGE = 3.0
# A residual of nothing still has a logarithm.
_LEAST_RESIDUAL = 0.01
# Local scales are used only if they shorten intervals by at least this much.
_LEAST_GAIN = 0.1


@dataclass(frozen=True)
class VolumeInterval(Config):
    """Conformal intervals of a volume: jackknife+ over scaled log-ratios (Barber 2021, Lei 2018).

    The truth's logarithm is taken to lie `center` from the prediction's, give or take a residual that is scaled by
    exp(features @ weights). Each case's residual comes from a centre that was found without it.

    Attributes:
        feature_names: what scales residuals; none where that did not help.
        feature_means, feature_sds, weights: of the scale.
        centres, residuals: one for each case; a case's centre was found without it.
        coverage: promised, 0 to 1.
    """

    feature_names: tuple[str, ...]
    feature_means: tuple[float, ...]
    feature_sds: tuple[float, ...]
    weights: tuple[float, ...]
    centers: tuple[float, ...]
    residuals: tuple[float, ...]
    coverage: float = COVERAGE

    def __post_init__(self) -> None:
        _check(self.feature_names, self.feature_means, self.feature_sds, self.weights)
        _check_finite("centers and residuals", (*self.centers, *self.residuals, self.coverage))
        if not self.centers or len(self.centers) != len(self.residuals) or not 0.5 <= self.coverage < 1:
            raise ConfigError(
                "expected as many centers as residuals, at least one, and a coverage from 0.5 to below 1. "
                f"Received: {len(self.centers)}, {len(self.residuals)}, {self.coverage}"
            )

    @classmethod
    def fit(
        cls,
        predicted_ml: np.ndarray,
        truth_ml: np.ndarray,
        features: dict[str, np.ndarray],
        coverage: float = COVERAGE,
    ) -> VolumeInterval:
        """Fit to cases.

        Args:
            predicted_ml, truth_ml: (N,) volumes.
            features: by name, (N,) values that may tell how wrong a case is; those that hardly vary are left out.
            coverage: promised, 0 to 1.
        """
        log_ratio = _log(truth_ml) - _log(predicted_ml)
        useful = {name: np.asarray(v, np.float64) for name, v in features.items() if np.std(v) > 1e-9}
        plain, width = cls._fit(log_ratio, {}, coverage)
        scaled, scaled_width = cls._fit(log_ratio, useful, coverage)
        return scaled if scaled_width < (1 - _LEAST_GAIN) * width else plain

    @classmethod
    def _fit(
        cls, log_ratio: np.ndarray, features: dict[str, np.ndarray], coverage: float
    ) -> tuple[VolumeInterval, float]:
        """The intervals, and how wide they are for cases that had no part in their own scale."""
        count = len(log_ratio)
        centers = np.array([np.median(np.delete(log_ratio, i)) for i in range(count)])
        residuals = np.abs(log_ratio - centers)
        values = np.stack(list(features.values()), axis=1) if features else np.zeros((count, 0))
        means, sds = values.mean(axis=0), values.std(axis=0)
        standard = (values - means) / np.where(sds > 0, sds, 1)
        # without the case itself here too: a scale that has seen its residual would make it look smaller
        logs = np.log(residuals + _LEAST_RESIDUAL)
        alone = np.array(
            [_scale(standard[i], ridge(np.delete(standard, i, 0), np.delete(logs, i))) for i in range(count)]
        )
        found = cls(
            tuple(features),
            tuple(means.tolist()),
            tuple(sds.tolist()),
            tuple(ridge(standard, logs).tolist()),
            tuple(centers.tolist()),
            tuple((residuals / alone).tolist()),
            coverage,
        )
        rank = min(int(np.ceil(coverage * (count + 1))), count)
        return found, float(np.sort(residuals / alone)[rank - 1] * alone.mean())

    def interval_ml(self, predicted_ml: float, features: dict[str, float]) -> tuple[float, float]:
        """Lowest and highest volume in ml that the truth is promised to lie between."""
        reach = np.array(self.residuals) * self.scale(features)
        centers = np.array(self.centers)
        count = len(centers)
        # the k-th smallest: jackknife+'s quantiles over the cases and the one to come
        rank = int(np.ceil(self.coverage * (count + 1)))
        low = np.sort(centers - reach)[max(count - rank, 0)]
        high = np.sort(centers + reach)[min(rank - 1, count - 1)]
        log = float(_log(np.array(predicted_ml)))
        return max(0.0, float(np.exp(log + low) - OFFSET_ML)), max(0.0, float(np.exp(log + high) - OFFSET_ML))

    def scale(self, features: dict[str, float]) -> float:
        """How far residuals are scaled: 1 for a case like most."""
        values = np.array([features[name] for name in self.feature_names])
        standard = (values - np.array(self.feature_means)) / np.where(
            np.array(self.feature_sds) > 0, self.feature_sds, 1
        )
        return _scale(standard, np.array(self.weights))


@dataclass(frozen=True)
class LesionProbability(Config):
    """Probability that a predicted lesion is one: logistic regression with a ridge (Platt 1999).

    Attributes:
        feature_names, feature_means, feature_sds, weights: of the regression, in standardised features.
        intercept: its constant.
        lesion_count: of so many lesions it was learned: no probability is closer to 0 or 1 than one in so many.
    """

    feature_names: tuple[str, ...]
    feature_means: tuple[float, ...]
    feature_sds: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    lesion_count: int

    def __post_init__(self) -> None:
        _check(self.feature_names, self.feature_means, self.feature_sds, self.weights)
        _check_finite("intercept", (self.intercept,))
        if self.lesion_count < 1:
            raise ConfigError(f"lesion_count: expected 1 or more. Received: {self.lesion_count}")

    @classmethod
    def fit(cls, features: dict[str, np.ndarray], is_lesion: np.ndarray) -> LesionProbability:
        """Fit to lesions.

        Args:
            features: by name, (N,) values.
            is_lesion: (N,) bool: whether the reference has a lesion there.
        """
        values = np.stack(list(features.values()), axis=1).astype(np.float64)
        means, sds = values.mean(axis=0), values.std(axis=0)
        design = np.column_stack([np.ones(len(values)), (values - means) / np.where(sds > 0, sds, 1)])
        # targets a little off 0 and 1, as Platt has them: few lesions must not give certainty
        positive, negative = int(is_lesion.sum()), int((~is_lesion).sum())
        target = np.where(is_lesion, (positive + 1) / (positive + 2), 1 / (negative + 2))
        ridge = np.diag([1e-6] + [_RIDGE] * values.shape[1])
        weights = np.zeros(design.shape[1])
        for _ in range(50):
            chance = _sigmoid(design @ weights)
            slope = design.T @ (chance - target) + ridge @ weights
            curve = design.T @ (design * (chance * (1 - chance) + 1e-9)[:, None]) + ridge
            step = np.linalg.solve(curve, slope)
            weights = weights - step
            if np.abs(step).max() < 1e-8:
                break
        return cls(
            tuple(features),
            tuple(means.tolist()),
            tuple(sds.tolist()),
            tuple(weights[1:].tolist()),
            float(weights[0]),
            len(values),
        )

    def __call__(self, features: dict[str, float]) -> float:
        values = np.array([features[name] for name in self.feature_names])
        standard = (values - np.array(self.feature_means)) / np.where(
            np.array(self.feature_sds) > 0, self.feature_sds, 1
        )
        chance = float(_sigmoid(np.array(self.intercept + standard @ np.array(self.weights))))
        least = 1 / (self.lesion_count + 2)
        return min(max(chance, least), 1 - least)


def first_fifth(order: np.ndarray, errors: np.ndarray) -> float:
    """Part of all error that the first fifth of cases holds, if they are looked at in this order; 0.2 is chance.

    Example:
        >>> first_fifth(np.array([3, 0, 1, 2, 4]), np.array([1.0, 1, 1, 6, 1]))
        0.6
    """
    count = int(np.ceil(len(order) / 5))
    total = float(errors.sum())
    return float(errors[order[:count]].sum() / total) if total else 0.2


def _check(names: tuple[str, ...], *columns: tuple[float, ...]) -> None:
    if any(len(column) != len(names) for column in columns):
        raise ConfigError(f"expected a mean, a deviation and a weight for each of {len(names)} features")
    _check_finite("means, deviations and weights", sum(columns, ()))


def _check_finite(what: str, values: tuple[float, ...]) -> None:
    if not np.isfinite(values).all():
        raise ConfigError(f"{what}: expected finite numbers. Received: {values}"[:300])


def _log(volume_ml: np.ndarray) -> np.ndarray:
    return np.log(np.asarray(volume_ml, np.float64) + OFFSET_ML)


def standardized(
    features: dict[str, float], names: tuple[str, ...], means: tuple[float, ...], sds: tuple[float, ...]
) -> np.ndarray:
    """The named features as numbers of standard deviations from their means."""
    values = np.array([features[name] for name in names], np.float64)
    return (values - np.array(means)) / np.where(np.array(sds) > 1e-9, np.array(sds), 1.0)


def ridge(standard: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of standardised features for a target, its mean apart."""
    centered = target - target.mean()
    return np.linalg.solve(standard.T @ standard + _RIDGE * np.eye(standard.shape[1]), standard.T @ centered)


def _scale(standard: np.ndarray, weights: np.ndarray) -> float:
    # no case is taken for more than five times as sure or unsure as another
    return float(np.exp(np.clip(standard @ weights, -1.6, 1.6)))


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -40, 40)))
