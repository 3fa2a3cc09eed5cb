"""Score models on the patients of one fold, on real labels, slice by slice and without any clean-up.

    python evaluate.py slices.npz --fold 0 --model NAME=MODEL [--model NAME=MODEL ...] -o quality.json

Writes each score with its 95 % interval (bootstrap over patients), and the sensitivity by size of the lesions in the
slices at some numbers of false lesions per patient; prints both as tables. `--leave-out` shows the effect of one
patient.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scores import counts_by_patient, lesions_in_slices, sensitivity, with_intervals
from tables import score_table, sensitivity_table
from train import FOLDS, folds_of, probabilities

import liverseg_tf as ls
from liverseg_tf.files import write_text

FALSE_LESIONS = (0.25, 0.5, 1.0, 2.0, 4.0)


def quality_of(model, data: dict) -> dict:
    """Scores and sensitivity of a network on slices, as JSON takes them."""
    patients = len(np.unique(data["patient"]))
    p = probabilities(model, model.input_shape[1], data["hu"].astype(np.float32))
    true_lesions, false_lesions = lesions_in_slices(p[..., 2], data)
    found = {f"{allowed:g}": sensitivity(true_lesions, false_lesions, patients, allowed) for allowed in FALSE_LESIONS}
    return {"scores": with_intervals(counts_by_patient(p.argmax(-1), data)), "sensitivity": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="PATIENT", help="patients of the fold")
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH of a .keras file or SavedModel")
    parser.add_argument("-o", "--output", required=True, help="JSON file to write")
    options = parser.parse_args()
    with np.load(options.data) as file:
        data = dict(file)
    chosen = (folds_of(data) == options.fold) & ~np.isin(data["patient"].astype(str), options.leave_out)
    data = {key: value[chosen] for key, value in data.items()}
    quality = {"fold": options.fold, "patients": len(np.unique(data["patient"])), "slices": int(chosen.sum())}
    quality["models"] = {}
    for name, path in (text.split("=", 1) for text in options.model):
        quality["models"][name] = quality_of(ls.load_model(path), data)
    write_text(options.output, json.dumps(quality, indent=1) + "\n")
    print(score_table(quality), sensitivity_table(quality), sep="\n")


if __name__ == "__main__":
    main()
