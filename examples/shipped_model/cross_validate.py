"""Cross-validate candidates over patients, all with the same short schedule.

    python cross_validate.py slices.npz -o FOLDER [--candidates NAME ...] [--folds 0 1 2] [--steps 125]

Every patient, also without liver, is predicted by the network that was not trained on this patient. Run it again to
continue; the table uses the folds that are done. The interval is that of the mean over patients, by bootstrap.
"""

from __future__ import annotations

import liverseg_tf  # noqa: F401, before TensorFlow, whose oneDNN it turns on

# isort: split
import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from scores import counts_by_patient, with_intervals
from train import FOLDS, RECIPES, Trainer, folds_of, probabilities, use_bfloat16

from liverseg_tf.files import atomic_write, write_text

log = logging.getLogger("cross_validate")
LITE0 = replace(RECIPES["lite0-coarse"], steps=125, warmup=25)
PLAIN = {"shares": None, "cysts": 0.0, "distractors": 0.0, "missed": 0.5}
# name: recipe and weights to start from
CANDIDATES = {
    "synthetic": (replace(LITE0, **PLAIN, real=False, synthesis=0.6), "imagenet"),
    "real": (replace(LITE0, **PLAIN), "imagenet"),
    "negatives": (LITE0, "imagenet"),
    "resnet34": (replace(LITE0, backbone="resnet34"), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for checkpoints and the result")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=range(FOLDS))
    parser.add_argument("--steps", type=int, default=LITE0.steps, help="of each fold's training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    use_bfloat16()
    with np.load(options.data) as file:
        data = dict(file)
    fold_of_slice = folds_of(data)
    counted = {}
    for fold in options.folds:
        train, test = ({k: v[mask] for k, v in data.items()} for mask in (fold_of_slice != fold, fold_of_slice == fold))
        for name in options.candidates:
            folder = options.output / f"{name}-{fold}"
            recipe, start = CANDIDATES[name]
            if not (folder / "counts.npz").exists():
                keras.utils.set_random_seed(fold)
                trainer = Trainer(replace(recipe, steps=options.steps), folder)
                trainer.start_from(start)
                trainer.run(train, fold, options.steps, lambda trainer: None)
                found = probabilities(trainer.average, recipe.size, test["hu"].astype(np.float32)).argmax(-1)
                with atomic_write(folder / "counts.npz") as temporary, temporary.open("wb") as file:
                    np.savez(file, **counts_by_patient(found, test))
                keras.backend.clear_session()
            with np.load(folder / "counts.npz") as file:
                counted.setdefault(name, []).append(dict(file))
            counts = {key: np.concatenate([part[key] for part in counted[name]]) for key in counted[name][0]}
            log.info("%s, %d folds: %s", name, len(counted[name]), json.dumps(with_intervals(counts)))
    table = {
        name: {"folds": len(parts), "patients": sum(len(part["liver_sum"]) for part in parts)}
        | with_intervals({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        for name, parts in counted.items()
    }
    write_text(options.output / "cross_validation.json", json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
