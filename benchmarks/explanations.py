"""Measure explanations: which method and stage beats random regions, and whether uncertainty is calibrated.

    python benchmarks/explanations.py MODEL --phantoms 20 -o explanations.json
    python benchmarks/explanations.py MODEL DIR --regions truth --methods gradcam layercam --layers bottleneck decoder1
    python benchmarks/explanations.py MODEL --phantoms 20 --uncertainty

Each lesion is tested on its largest slice, as `liverseg explain` does. DIR holds volumes with masks in LiTS layout;
without one, phantoms are made in memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from liverseg_tf.data.cases import find_cases, with_masks
from liverseg_tf.data.phantom import make_phantom
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import LiverSegWarning
from liverseg_tf.explanation.faithfulness import deletion_insertion, randomized_model, rank_correlation
from liverseg_tf.explanation.regions import find_regions
from liverseg_tf.explanation.seg_grad_cam import LAYERS, METHODS, SegGradCam
from liverseg_tf.explanation.uncertainty import expected_calibration_error, measure_uncertainty
from liverseg_tf.files import write_text
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.test_time_augmentation import Variations
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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["gradcam"])
    parser.add_argument("--layers", nargs="+", default=["bottleneck"], help=f"of {', '.join(LAYERS)}")
    parser.add_argument("--random-maps", type=int, default=10)
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
    runtime = predictor.runtimes[0]
    network = runtime.slice_function.model
    randomized = [randomized_model(network, seed) for seed in range(args.randomized_models)]
    combinations = [(method, layer) for method in args.methods for layer in args.layers]
    cams = {key: [SegGradCam(m, runtime.config, *key) for m in (network, *randomized)] for key in combinations}
    rows = []
    for name, volume, truth in _cases(args):
        labels = truth if args.regions == "truth" else predictor.predict(volume).canonical_labels
        for region in find_regions(labels, volume.geometry)[: args.most_lesions]:
            mm3 = 1000 * np.count_nonzero(region.mask) * volume.voxel_volume_ml
            if mm3 < np.pi / 6 * args.smallest_mm**3:
                continue
            index = region.largest_slice
            hu, inside = volume.slices(index, index + 1), region.mask[None, ..., index - region.first_slice]
            domain, body = labels[..., index] >= LIVER, hu[0] > BODY_HU
            for method, layer in combinations:
                own, *others = (cam.enlarge(cam(hu, inside, TUMOUR), *hu.shape[1:])[0] for cam in cams[method, layer])
                cam = cams[method, layer][0]
                grid = tuple(int(n) for n in network.get_layer(cam.layer).output.shape[1:3])
                curves = deletion_insertion(
                    runtime.probabilities, hu[0], own, inside[0], domain, TUMOUR, grid, random_maps=args.random_maps
                )
                row = {
                    "case": name,
                    "region": region.name,
                    "diameter_mm": round(float(np.cbrt(6 * mm3 / np.pi)), 1),
                    "method": method,
                    "layer": layer,
                    "probability": float(curves.deletion[0]),
                    **curves.to_dict(),
                    "beats_random": curves.beats_random and bool(own.any()),
                    "rank_correlation": float(np.mean([abs(rank_correlation(own, o, body)) for o in others])),
                }
                rows.append(row)
                log.info(
                    "%(case)s %(region)s %(diameter_mm)s mm, %(method)s %(layer)s: deletion %(deletion_area).3f "
                    "(random %(deletion_area_random_mean).3f), insertion %(insertion_area).3f "
                    "(random %(insertion_area_random_mean).3f), beats %(beats_random)s, rho %(rank_correlation).2f",
                    row,
                )
    summary = {}
    for method, layer in combinations:
        own = [r for r in rows if (r["method"], r["layer"]) == (method, layer)]
        if own:
            summary[f"{method} {layer}"] = {
                "lesions": len(own),
                "beat_random": sum(r["beats_random"] for r in own),
                **{
                    key: float(np.mean([r[key] for r in own]))
                    for key in (
                        "deletion_area",
                        "deletion_area_random_mean",
                        "insertion_area",
                        "insertion_area_random_mean",
                        "rank_correlation",
                    )
                },
            }
    return {"summary": summary, "rows": rows}


def _calibration(args: argparse.Namespace, predictor: Predictor) -> dict:
    rows = []
    for name, volume, truth in _cases(args):
        found = measure_uncertainty(volume, predictor, Variations())
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
