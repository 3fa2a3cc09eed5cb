"""Confidence intervals by resampling patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_ratios(
    numerators: np.ndarray,
    denominators: np.ndarray,
    patients: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> np.ndarray:
    """Percentile bootstrap of ratios of sums over cases, resampling whole patients (Efron and Tibshirani 1993).

    A mean over cases is such a ratio (values over ones); so are a global Dice, a precision, a recall and an F1.

    Args:
        numerators: (cases, M) float.
        denominators: (cases, M) float; where a resample's sum is 0 the ratio is undefined and left out.
        patients: (cases,) patient of each case; all cases of a patient are drawn together.
        resamples: number of resamples, at least 1.
        seed: the same seed gives the same interval.
        confidence: part of the resamples inside the interval, above 0 and below 1.

    Returns:
        (M, 2) float64, lower and upper bound; NaN if fewer than two patients have the figure.

    Examples:
        >>> values = np.array([[0.8], [0.9], [1.0]])
        >>> low, high = bootstrap_ratios(values, np.ones_like(values), ["a", "b", "c"])[0]
        >>> bool(0.8 <= low < 0.9 < high <= 1.0)
        True
    """
    names, index = np.unique(np.asarray(patients, str), return_inverse=True)
    sums = [np.zeros((len(names), numerators.shape[1])) for _ in range(2)]
    for total, terms in zip(sums, (numerators, denominators), strict=True):
        np.add.at(total, index, terms)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    bounds = np.full((numerators.shape[1], 2), np.nan)
    usable = np.count_nonzero(sums[1], axis=0) >= 2
    if usable.any():
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = (draws @ sums[0][:, usable]) / (draws @ sums[1][:, usable])
        tail = 50 * (1 - confidence)
        bounds[usable] = np.nanpercentile(ratios, [tail, 100 - tail], axis=0).T
    return bounds
