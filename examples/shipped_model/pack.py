"""Carry a training to a machine with a GPU and JAX, where neither TensorFlow nor this package is needed.

    python pack.py pack slices.npz gpu.npz --recipe lite0 --start imagenet [--fold 0]
    KERAS_BACKEND=jax python train_jax.py gpu.npz -o RUN --minutes 9         # on the GPU; again to continue
    python pack.py unpack gpu.npz RUN/average.npz model.keras                # here

gpu.npz has the network and its weights, the slices (HU clipped to 0..255; the windows show no lower values), their
labels, and as many copies with synthetic tumours, cysts and pasted contents of hollow organs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from prepare import TUMOUR
from train import CHANNELS, CYSTS, FOLDS, LESIONS, RECIPES, Trainer, folds_of, paste_beside_liver

from liverseg_tf.config import ModelConfig
from liverseg_tf.files import atomic_write
from liverseg_tf.models.saving import build_model, save_model


def drawn(data: dict, recipe, seed: int, chunk: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Copies of all slices with lesions, cysts and distractors; as many as a batch of the recipe would have."""
    lesions, cysts = replace(LESIONS, probability=recipe.synthesis), replace(CYSTS, probability=recipe.cysts)
    hu, labels = [], []
    for start in range(0, len(data["hu"]), chunk):
        part = slice(start, start + chunk)
        x, y, mm = tf.constant(data["hu"][part], tf.float32), data["labels"][part], data["spacing_mm"][part]
        x, y = lesions(x, y, [seed, start], mm)
        x, _ = cysts(x, y, [seed + 1, start], mm)
        x = paste_beside_liver(x, y, [seed + 2, start], recipe.distractors)
        hu.append(x.numpy())
        labels.append(y.numpy())
    return np.concatenate(hu), np.concatenate(labels)


def pack(options) -> None:
    keras.utils.set_random_seed(options.seed)
    with np.load(options.data) as file:
        data = dict(file)
    chosen = folds_of(data) != options.fold
    data = {key: value[chosen] for key, value in data.items()}
    recipe = RECIPES[options.recipe]
    trainer = Trainer(recipe, options.output.parent / "no checkpoint")
    trainer.start_from(options.start)
    network = build_model(trainer.config, precision=options.precision)
    copies = [(data["hu"], data["labels"])] + [
        drawn(data, recipe, 10 * k + options.seed) for k in range(options.copies)
    ]
    hu = np.stack([np.clip(np.round(x), 0, 255).astype(np.uint8) for x, _ in copies])
    content = {
        "network": network.to_json(),
        "recipe": json.dumps(asdict(recipe)),
        "windows": np.array([(level - width / 2, width) for width, level in CHANNELS.windows], np.float32),
        "hu": hu,
        "labels": np.stack([y for _, y in copies]),
        "group": np.where((data["labels"] == TUMOUR).any((1, 2)), 0, np.where(data["labels"].any((1, 2)), 1, 2)),
    }
    content |= {f"weight_{i}": w.astype(np.float16) for i, w in enumerate(trainer.model.get_weights())}
    with atomic_write(options.output) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.0f} MB, {hu.shape[1]} slices, {len(hu)} times each")


def unpack(options) -> None:
    with np.load(options.packed) as file:
        recipe = json.loads(str(file["recipe"]))
    with np.load(options.weights) as file:
        weights = [file[f"weight_{i}"] for i in range(len(file.files))]
    config = ModelConfig(image_size=recipe["size"], channels=CHANNELS, backbone=recipe["backbone"])
    model = build_model(config)
    model.set_weights(weights)
    save_model(model, config, options.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("pack")
    command.add_argument("data", help="the file that prepare.py wrote")
    command.add_argument("output", type=Path)
    command.add_argument("--recipe", choices=sorted(RECIPES), required=True)
    command.add_argument("--start", help="as train.py's")
    command.add_argument("--fold", type=int, choices=range(FOLDS))
    command.add_argument("--copies", type=int, default=2, help="with drawn lesions, of every slice")
    command.add_argument("--precision", default="mixed_bfloat16", help="Keras dtype policy of the network")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=pack)
    command = commands.add_parser("unpack")
    command.add_argument("packed")
    command.add_argument("weights")
    command.add_argument("output")
    command.set_defaults(run=unpack)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
