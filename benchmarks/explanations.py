"""Measure explanations: which methods' maps are supported, and how uncertainty relates to error.

    python benchmarks/explanations.py MODEL DIR --methods integrated-gradients gradcam:bottleneck segxrescam:decoder1
    python benchmarks/explanations.py MODEL --phantoms 20 -o explanations.json
    python benchmarks/explanations.py MODEL --phantoms 20 --uncertainty

Each lesion is tested on its largest slice, as `liverseg explain` does; all methods share its random maps. DIR holds
volumes with masks in LiTS layout; without one, phantoms are made in memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from liverseg_tf.data.cases import find_cases, with_masks
from liverseg_tf.data.phantom import make_phantom
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import LiverSegWarning
from liverseg_tf.explanation.explain import _compared, _explained
from liverseg_tf.explanation.faithfulness import (
    LEAST_BEATEN,
    LEAST_IN_LIVER,
    MOST_RANK_CORRELATION,
    RANDOM_MAPS,
    SliceTest,
    randomized_model,
    without_region,
)
from liverseg_tf.explanation.layers import LAYERS
from liverseg_tf.explanation.methods import make_explainer
from liverseg_tf.explanation.options import DEFAULT_METHOD, METHODS
from liverseg_tf.explanation.regions import find_regions
from liverseg_tf.explanation.uncertainty import expected_calibration_error, measure_uncertainty
from liverseg_tf.files import write_text
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.runtimes import keras_runtime
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.labels import LIVER, TUMOUR

log = logging.getLogger("explanations")
BODY_HU = -300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder or .keras file")
    parser.add_argument("folders", nargs="*", metavar="DIR", help="volumes and masks")
    parser.add_argument("--phantoms", type=int, default=0, metavar="N", help="phantom patients, where no DIR is given")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 40), help="of a phantom")
    parser.add_argument("--seed", type=int, default=1000, help="of the first phantom")
    parser.add_argument("--regions", choices=("prediction", "truth"), default="prediction")
    parser.add_argument("--smallest-mm", type=float, default=5.0, help="leave smaller regions out (equivalent ball)")
    parser.add_argument("--most-lesions", type=int, default=5, help="of a case, the largest")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD[:LAYER]",
        default=[DEFAULT_METHOD],
        help=f"of {', '.join(METHODS)}, and {', '.join(LAYERS)}",
    )
    parser.add_argument("--random-maps", type=int, default=RANDOM_MAPS)
    parser.add_argument("--randomized-models", type=int, default=3)
    parser.add_argument("--uncertainty", action="store_true", help="measure calibration instead")
    parser.add_argument("-o", "--output", metavar="FILE.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore", LiverSegWarning)
    predictor = Predictor(args.model)
    result = _calibration(args, predictor) if args.uncertainty else _explanations(args, predictor)
    print(json.dumps(result["summary"], indent=2))
    if args.output:
        write_text(args.output, json.dumps(result, indent=2) + "\n")


def _cases(args: argparse.Namespace) -> Iterator[tuple[str, CTVolume, np.ndarray]]:
    if args.folders:
        for case in with_masks(find_cases(*args.folders)):
            yield str(case.id), CTVolume.load(case.volume), MaskVolume.load(case.segmentation).labels
    for seed in range(args.seed, args.seed + (0 if args.folders else args.phantoms)):
        phantom = make_phantom(seed, tuple(args.shape))
        yield f"phantom-{seed}", CTVolume.from_array(phantom.hu, phantom.spacing_mm), phantom.labels


def _explanations(args: argparse.Namespace, predictor: Predictor) -> dict:
    runtime = keras_runtime(predictor.runtimes[0])
    drawn = [randomized_model(runtime.model.network, seed) for seed in range(args.randomized_models)]
    models = [runtime.model, *(replace(runtime.model, network=network) for network in drawn)]
    explainers = {name: [make_explainer(one, *name.split(":")) for one in models] for name in args.methods}
    rows = []
    for case, volume, truth in _cases(args):
        labels = truth if args.regions == "truth" else predictor.predict(volume).canonical_labels
        for region in find_regions(labels, volume.geometry)[: args.most_lesions]:
            mm3 = 1000 * np.count_nonzero(region.mask) * volume.voxel_volume_ml
            if mm3 < np.pi / 6 * args.smallest_mm**3:
                continue
            index = region.largest_slice
            hu, inside = volume.slices(index, index + 1)[0], region.mask[..., index - region.first_slice]
            filled = without_region(hu, labels[..., index], inside, TUMOUR)
            test = SliceTest(runtime.probabilities, hu, filled, TUMOUR, inside, args.random_maps)
            for method, (own, *others) in explainers.items():
                found = _explained(own, volume, labels, region, all_slices=False)
                (found,) = _compared([found], iter(others), volume, labels, lambda *step: None)
                curves = test.curves(found.slice_map(index), inside)
                probability, fall_inside = test.counterfactual(inside)
                found = replace(found, curves=curves, filled_probability=probability, fall_inside=fall_inside)
                row = {"case": case, "diameter_mm": round(float(np.cbrt(6 * mm3 / np.pi)), 1), "method": method}
                rows.append(row | found.to_dict())
                log.info("%s %s, %s: %s", case, region.name, method, found.words)
    summary = {method: _summary([r for r in rows if r["method"] == method]) for method in explainers if rows}
    return {"summary": summary, "rows": rows}


def _summary(rows: list[dict]) -> dict:
    curves = [row["deletion_insertion"] for row in rows]
    beaten = [min(c["deletion_beats_share"], c["insertion_beats_share"]) >= LEAST_BEATEN for c in curves]
    return {
        "lesions": len(rows),
        "supported": sum(row["verdict"] == "supported" for row in rows),
        "beat_random": sum(beaten),
        "rank_correlation_low": sum(row["randomized_rank_correlation"] < MOST_RANK_CORRELATION for row in rows),
        "heat_in_liver": sum(row["heat_in_liver"] > LEAST_IN_LIVER for row in rows),
        "mean_rank_correlation": float(np.mean([row["randomized_rank_correlation"] for row in rows])),
        "mean_fall_in_region": float(np.mean([row["fall_in_region_share"] for row in rows])),
        "mean_heat_in_liver": float(np.mean([row["heat_in_liver"] for row in rows])),
    }


def _calibration(args: argparse.Namespace, predictor: Predictor) -> dict:
    rows = []
    for name, volume, truth in _cases(args):
        found = measure_uncertainty(volume, predictor, TestTimeAugmentation())
        wrong = predictor.predict(volume).canonical_labels != truth
        near = truth >= LIVER
        sure = found.entropy.astype(float) / 255
        ml = volume.voxel_volume_ml
        probabilities = np.concatenate(
            [predictor.runtimes[0].probabilities(volume.slices(i, i + 1)) for i in range(volume.shape[2])]
        )
        body = np.moveaxis(volume.hu, 2, 0) > BODY_HU
        row = {
            "case": name,
            "calibration_error": expected_calibration_error(probabilities[body], np.moveaxis(truth, 2, 0)[body]),
            "entropy_where_wrong": float(sure[wrong].mean()) if wrong.any() else None,
            "entropy_where_right_in_liver": float(sure[near & ~wrong].mean()) if (near & ~wrong).any() else None,
        }
        for what, mask, ends in (
            ("liver", truth >= LIVER, found.liver_range_ml),
            ("tumour", truth == TUMOUR, found.tumour_range_ml),
        ):
            true_ml = np.count_nonzero(mask) * ml
            covered = bool(ends[0] <= true_ml <= ends[1])
            row[what] = {"truth_ml": true_ml, "range_ml": ends, "covered": covered}
        rows.append(row)
        log.info("%s", json.dumps(row))
    known = [r for r in rows if r["entropy_where_wrong"] is not None and r["entropy_where_right_in_liver"] is not None]
    summary = {
        "cases": len(rows),
        "liver_range_covers": sum(r["liver"]["covered"] for r in rows),
        "tumour_range_covers": sum(r["tumour"]["covered"] for r in rows),
        "calibration_error": float(np.mean([r["calibration_error"] for r in rows])),
        "entropy_where_wrong": float(np.mean([r["entropy_where_wrong"] for r in known])),
        "entropy_where_right_in_liver": float(np.mean([r["entropy_where_right_in_liver"] for r in known])),
    }
    return {"summary": summary, "rows": rows}


if __name__ == "__main__":
    main()
