"""Score models on the patients of one fold, on real labels, slice by slice and without any clean-up.

    python evaluate.py slices.npz --fold 0 --model NAME=MODEL [--model NAME=MODEL ...] -o quality.md

Writes two tables in Markdown: each score with its 95 % interval (bootstrap over patients), and the sensitivity by size
of the lesions in the slices, at some numbers of false lesions a patient.
"""

from __future__ import annotations

import argparse

import numpy as np
from scores import SIZES_MM, counts_by_patient, lesions_in_slices, sensitivity, with_intervals
from train import FOLDS, folds_of, probabilities

import liverseg_tf as ls
from liverseg_tf.files import write_text

COLUMNS = {
    "liver Dice": "liver_dice",
    "tumour Dice": "tumour_dice",
    "a patient": "tumour_dice_patient",
    "precision": "tumour_precision",
    "recall": "tumour_recall",
    "false pixels a tumour-free slice": "false_tumour_per_free_slice",
    "a slice without liver": "false_tumour_per_negative",
}
FALSE_LESIONS = (0.25, 0.5, 1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH of a .keras file or SavedModel")
    parser.add_argument("-o", "--output", required=True, help="Markdown file to write")
    options = parser.parse_args()
    with np.load(options.data) as file:
        data = dict(file)
    chosen = folds_of(data) == options.fold
    data = {key: value[chosen] for key, value in data.items()}
    patients = len(np.unique(data["patient"]))

    table = ["| model | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    sizes = [f"{low:g} to {high:g} mm" if np.isfinite(high) else f"above {low:g} mm" for low, high in SIZES_MM]
    curve = [f"| model | false lesions a patient | {' | '.join(sizes)} |", "| --- " * (len(sizes) + 2) + "|"]
    for name, path in (text.split("=", 1) for text in options.model):
        model = ls.load_model(path)
        p = probabilities(model, model.input_shape[1], data["hu"].astype(np.float32))
        scores = with_intervals(counts_by_patient(p.argmax(-1), data))
        cells = []
        for key in COLUMNS.values():
            digits = 1 if key.startswith("false") else 3
            value, low, high = (f"{number:.{digits}f}" for number in scores[key])
            cells.append(f"{value} ({low} to {high})")
        table.append(f"| {name} | {' | '.join(cells)} |")
        true_lesions, false_lesions = lesions_in_slices(p[..., 2], data)
        for allowed in FALSE_LESIONS:
            found = sensitivity(true_lesions, false_lesions, patients, allowed)
            curve.append(f"| {name} | {allowed:g} | " + " | ".join(f"{a} of {b}" for a, b in found) + " |")
        print(table[-1], *curve[-len(FALSE_LESIONS) :], sep="\n", flush=True)
    write_text(options.output, "\n".join([*table, "", *curve]) + "\n")


if __name__ == "__main__":
    main()
