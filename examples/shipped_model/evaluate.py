"""Score models on the patients of one fold, on real labels, slice by slice and without any clean-up.

    python evaluate.py slices.npz --fold 0 --model MODEL [--model MODEL ...]

Prints each score with its 95 % interval (bootstrap over patients), and the sensitivity by size of the lesions in the
slices. Several models given as A+B are judged as one with the mean of their weights.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scores import counts_by_patient, lesions_in_slices, sensitivity, with_intervals
from train import FOLDS, folds_of, mean_weights, probabilities

import liverseg_tf as ls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    parser.add_argument(
        "--model", action="append", required=True, help=".keras file or SavedModel, or some joined by +"
    )
    options = parser.parse_args()
    with np.load(options.data) as file:
        data = dict(file)
    chosen = folds_of(data) == options.fold
    data = {key: value[chosen] for key, value in data.items()}
    for name in options.model:
        models = [ls.load_model(part) for part in name.split("+")]
        model = mean_weights(models)
        p = probabilities(model, model.input_shape[1], data["hu"].astype(np.float32))
        print(name)
        print(json.dumps(with_intervals(counts_by_patient(p.argmax(-1), data)), indent=1))
        true_lesions, false_lesions = lesions_in_slices(p[..., 2], data)
        patients = len(np.unique(data["patient"]))
        for allowed in (0.5, 1.0, 2.0):
            result = sensitivity(true_lesions, false_lesions, patients, allowed)
            print(f"at {allowed:g} false lesions a patient:", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
