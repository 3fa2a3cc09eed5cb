"""Sites drawn at random: cases whose predictions err as a known law has it. For tests and benchmarks of intervals."""

from __future__ import annotations

import numpy as np

from liverseg_tf.calibration.calibrate import CalibrationCase


def draw_cases(
    rng: np.random.Generator, count: int, bias: float = 0.1, thickness_matters: bool = True
) -> list[CalibrationCase]:
    """Cases of one site.

    Args:
        rng: draws them.
        count: how many.
        bias: logarithm by which volumes are predicted too small.
        thickness_matters: whether errors grow with the thickness of slices.
    """
    cases = []
    for number in range(count):
        slice_mm = float(rng.choice([1.0, 2.5, 5.0]))
        spread = (0.1 * slice_mm if thickness_matters else 0.3) * rng.standard_t(4)
        true_liver, true_tumour = float(rng.lognormal(7.3, 0.25)), float(rng.lognormal(2.5, 1.3))
        tumour = max(0.0, (true_tumour + 0.5) * np.exp(-bias + spread) - 0.5)
        liver = true_liver * np.exp(-0.02 + 0.03 * rng.standard_normal())
        features = {
            "log_tumour_ml": float(np.log(tumour + 0.5)),
            "slice_mm": slice_mm,
            "log_lesions": float(np.log1p(rng.poisson(3))),
        }
        lesions, truth = [], []
        for _ in range(int(rng.poisson(3))):
            log_ml = float(rng.normal(0, 1.5))
            lesions.append({"log_ml": log_ml, "depth_mm": float(rng.uniform(0, 30)), "sphericity": 0.8})
            truth.append(bool(rng.random() < 1 / (1 + np.exp(-1.5 * log_ml))))
        cases.append(
            CalibrationCase(
                str(number), float(liver), tumour, true_liver, true_tumour, features, tuple(lesions), tuple(truth)
            )
        )
    return cases
