"""How often the true volume is in a calibrated interval, for random sites with one future case each.

Run: python benchmarks/calibration.py [--draws 1000] [--cases 20 30 60 100] [--seed 0]

Each draw is a site with its own bias and its own spread of errors (Student's t, so there are outliers). At half of the
sites the spread depends on slice thickness. The intervals are made for a coverage of 90 %.
"""

from __future__ import annotations

import argparse

import numpy as np

from liverseg_tf.calibration.conformal import VolumeInterval
from liverseg_tf.calibration.simulated_sites import draw_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--cases", type=int, nargs="+", default=[20, 30, 60, 100])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| cases | liver in interval | tumour in interval | tumour's ends apart (median) | scaled |")
    print("| --- | --- | --- | --- | --- |")
    for count in args.cases:
        rng = np.random.default_rng([args.seed, count])
        inside, widths, scaled = [], [], 0
        for draw in range(args.draws):
            *known, new = draw_cases(rng, count + 1, bias=float(rng.normal(0, 0.3)), thickness_matters=draw % 2 == 0)
            features = {name: np.array([c.features[name] for c in known]) for name in new.features}
            row = []
            for what in ("liver", "tumour"):
                predicted, truth = (np.array([getattr(c, f"{t}{what}_ml") for c in known]) for t in ("", "true_"))
                found = VolumeInterval.fit(predicted, truth, features)
                low, high = found.interval_ml(getattr(new, f"{what}_ml"), new.features)
                row.append(low <= getattr(new, f"true_{what}_ml") <= high)
            inside.append(row)
            widths.append((high + 0.5) / (low + 0.5))
            scaled += bool(found.feature_names)
        liver, tumour = 100 * np.mean(inside, axis=0)
        share = 100 * scaled / args.draws
        print(
            f"| {count} | {liver:.1f} % | {tumour:.1f} % | {np.median(widths):.2f} times | {share:.0f} % |", flush=True
        )


if __name__ == "__main__":
    main()
