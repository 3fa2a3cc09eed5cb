"""Cross-validate the shipped model's recipe: its first stage, for folds of patients, slices without liver among them.

    python cross_validate.py slices.npz -o FOLDER [--folds 3] [--steps 500]

Every patient is predicted by the network that did not see him. Dice is of liver with tumours, over a patient's slices.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from prepare import DARK, OPEN
from train import STAGES, Trainer, dice, probabilities

from liverseg_tf.files import write_text


def folds_of(patients: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of each slice; a patient's slices are in one fold."""
    names, index = np.unique(patients, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[index] % folds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for checkpoints and the result")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="of each fold's training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    with np.load(options.data) as file:
        data = dict(file)
    fold_of_slice = folds_of(data["patient"], options.folds, options.seed)
    rows = []
    for fold in range(options.folds):
        keras.utils.set_random_seed(options.seed + fold)
        train, test = ({k: v[mask] for k, v in data.items()} for mask in (fold_of_slice != fold, fold_of_slice == fold))
        train["labels"] = np.where(train["labels"] == DARK, OPEN, train["labels"])
        trainer = Trainer(replace(STAGES[0], steps=options.steps), options.output / f"fold-{fold}")
        trainer.start_from(None)
        trainer.run(train, options.seed + fold, options.steps, lambda trainer: None)
        liver = probabilities(trainer.average, trainer.stage.size, test["hu"].astype(np.float32)).argmax(-1) > 0
        for patient in np.unique(test["patient"]):
            of_patient = test["patient"] == patient
            truth, found = test["labels"][of_patient] > 0, liver[of_patient]
            row = {"patient": str(patient), "fold": fold, "slices": len(truth)}
            rows.append(row | ({"dice": dice(found, truth)} if truth.any() else {"false_share": float(found.mean())}))
    known = np.array([row["dice"] for row in rows if "dice" in row])
    false = np.array([row["false_share"] for row in rows if "false_share" in row])
    summary = {
        "patients_with_liver": len(known),
        "dice": {
            "mean": known.mean(),
            "deviation": known.std(ddof=1),
            "median": np.median(known),
            "least": known.min(),
        },
        "dice_below_0.8": int((known < 0.8).sum()),
        "patients_without_liver": len(false),
        "without_any_false_liver": int((false == 0).sum()),
        "mean_false_share_of_pixels": false.mean(),
    }
    write_text(
        options.output / "cross_validation.json", json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n"
    )
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
