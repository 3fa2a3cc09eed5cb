"""Train the shipped models: U-Nets on real slices with real and synthetic tumours, and what looks like tumours.

    python prepare.py ... -o slices.npz
    python train.py slices.npz -o RUN --recipe NAME [--start WEIGHTS] [--fold 0]

The recipes stand in `RECIPES`. Run again to go on where it stopped. `--fold K` keeps one of five folds of patients for
scoring; the log and `history.jsonl` have the scores on them (see `scores.py`).
"""

from __future__ import annotations

import liverseg_tf as ls  # before TensorFlow, whose oneDNN it turns on

# isort: split
import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from loss import loss_of
from prepare import LIVER, OPEN, TUMOUR
from scores import counts_by_patient, scores_of

from liverseg_tf.channels import CTChannels, SquareResize
from liverseg_tf.config import ChannelsConfig, ModelConfig
from liverseg_tf.data.augmentation import Augmentation, smooth_noise
from liverseg_tf.data.lesion_synthesis import LesionSynthesis
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.saving import build_model, save_model

log = logging.getLogger("train")
FOLDS = 5
# All windows begin at 4 HU: the training slices hold nothing below 3.
CHANNELS = ChannelsConfig(windows=((100, 54), (160, 84), (250, 129)), histogram=False)
AUGMENTATION = Augmentation(
    rotation_degrees=15.0,
    scale=(0.75, 1.3),
    elastic=0.015,
    hu_shift=12.0,
    hu_scale=0.06,
    contrast=0.25,
    # The slices were subsampled, not averaged, so they are noisier than what the network will meet: blur often.
    noise_hu=6.0,
    blur_pixels=1.2,
    blur_probability=0.6,
)
# Pale ones above all, large ones with a pale halo: the real slices have few. None as dark as a cyst.
LESIONS = LesionSynthesis(
    diameter_mm=(5.0, 100.0),
    hypodense_hu=(8.0, 60.0),
    necrosis_probability=0.4,
    necrosis_hu=(10.0, 50.0),
    necrosis_share=(0.3, 0.85),
    calcified_probability=0.1,
    lowest_hu=20.0,
)
# Sharp, even, filled with water: liver, as the annotators of the real slices have it.
CYSTS = LesionSynthesis(
    diameter_mm=(5.0, 50.0),
    aspect=(0.75, 1.0),
    irregularity=0.15,
    edge_mm=(0.5, 1.5),
    hypodense_hu=(95.0, 130.0),
    hyperdense_probability=0.0,
    similarity=0.05,
    texture_hu=2.0,
    necrosis_probability=0.0,
    rim_probability=0.0,
    calcified_probability=0.0,
    lowest_hu=2.0,
)


@dataclass(frozen=True)
class Recipe:
    """One training: a network, a size, one cosine of the learning rate, and what a batch holds.

    Attributes:
        backbone: of `build_unet`.
        size: rows and columns.
        steps: of `batch` slices each.
        rate: largest learning rate.
        shares: of slices with tumour, of others with liver, and of slices without liver in a batch; None draws every
            slice equally often.
        synthesis: share of slices that get synthetic tumours.
        cysts: share of slices that get synthetic cysts.
        distractors: share of slices with the contents of hollow organs pasted beside the liver.
        real: the real tumours' labels; without them their pixels are open.
        missed: weight of a missed tumour pixel in the Tversky term, of 1; a false one has the rest.
    """

    backbone: str
    size: int
    steps: int
    batch: int
    rate: float
    shares: tuple[int, int, int] | None = (3, 3, 2)
    synthesis: float = 0.3
    cysts: float = 0.1
    distractors: float = 0.3
    real: bool = True
    missed: float = 0.6
    warmup: int = 100
    seed: int = 0


RECIPES = {
    "resnet34": Recipe("resnet34", 256, 700, 8, 2e-4, distractors=0.2, missed=0.7, warmup=50),
    "lite0-coarse": Recipe("efficientnet_lite0", 128, 500, 16, 1.2e-3, synthesis=0.2, distractors=0.2),
    "lite0": Recipe("efficientnet_lite0", 256, 700, 8, 6e-4, synthesis=0.2, distractors=0.2, missed=0.55, warmup=50),
}


def folds_of(data: dict, seed: int = 0) -> np.ndarray:
    """(N,) fold of each slice: a patient's slices in one, patients of each kind spread evenly over all."""
    tumour = (data["labels"] == TUMOUR).any((1, 2))
    fold = np.full(len(tumour), -1)
    rng = np.random.default_rng(seed)
    kinds = np.where(np.isin(data["patient"], data["patient"][tumour]), "tumour", data["known"])
    for kind in ("tumour", "labelled", "none", "unknown", "no liver"):
        patients = rng.permutation(np.unique(data["patient"][(kinds == kind) & (fold < 0)]))
        for number, patient in enumerate(patients):
            fold[data["patient"] == patient] = number % FOLDS
    return fold


def shrink_labels(labels, size: int):
    """Average each code's share and keep the largest; whole factors only."""
    factor = labels.shape[1] // size
    if factor == 1:
        return labels
    codes = tf.constant([0, LIVER, TUMOUR, OPEN], tf.uint8)
    shares = tf.nn.avg_pool2d(tf.cast(labels[..., None] == codes, tf.float32), factor, factor, "VALID")
    return tf.gather(codes, tf.argmax(shares, -1))


def paste_beside_liver(hu, labels, seed, probability: float):
    """Put what other slices hold outside their liver, or plain fluid, beside the liver of some: background stays so.

    Args:
        hu: (B, H, W) float32.
        labels: (B, H, W) uint8.
        seed: two integers.
        probability: share of slices.

    Returns:
        hu, changed where `labels` is 0.
    """
    seeds = iter(tf.unstack(tf.random.split(tf.convert_to_tensor(seed, tf.int32), num=8)))
    batch, side = hu.shape[0], hu.shape[1]

    def draw(low, high):
        return tf.random.stateless_uniform([batch, 1, 1], next(seeds), low, high)

    outside = labels == 0
    near = tf.nn.max_pool2d(tf.cast(~outside, tf.float32)[..., None], 25, 1, "SAME")[..., 0] > 0
    band = tf.reshape(near & outside & (hu > -150.0), [batch, -1])
    priority = tf.random.stateless_uniform(tf.shape(band), next(seeds)) * tf.cast(band, tf.float32)
    center = tf.argmax(priority, 1, output_type=tf.int32)
    cy, cx = (tf.cast(c, tf.float32)[:, None, None] for c in (center // side, center % side))
    grid = tf.range(side, dtype=tf.float32)
    dy, dx = grid[None, :, None] - cy, grid[None, None, :] - cx
    noise = smooth_noise(tf.shape(hu), 28, next(seeds))[..., 0]
    radius = draw(6.0, 32.0)
    depth = radius * (1.0 - 0.35 * (0.5 + 0.5 * noise)) - tf.sqrt(dy * dy + dx * dx)
    inside = tf.sigmoid(2.0 * depth) * tf.cast(outside, tf.float32)
    wanted = (draw(0.0, 1.0) < probability) & tf.reduce_any(band, 1)[:, None, None]
    other, other_outside = (tf.roll(t, 1, 0) for t in (hu, outside))
    fluid = draw(0.0, 60.0) + 6.0 * noise
    content = tf.where(other_outside & (draw(0.0, 1.0) < 0.5), other, fluid)
    return tf.where(wanted, hu + inside * (content - hu), hu)


def pick(groups: list, recipe: Recipe, step, seed: int):
    """The batch's slice numbers; each group of slices goes round in an order of its own."""
    counts = (
        [recipe.batch] if recipe.shares is None else [s * recipe.batch // sum(recipe.shares) for s in recipe.shares]
    )
    chosen = []
    for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
        size = group.shape[0]
        place = step * count + tf.range(count)
        rounds = tf.unique(place // size)[0]

        def order(turn, size=size, number=number):
            return tf.random.experimental.stateless_shuffle(tf.range(size), seed=[seed + 7 * number, turn])

        orders = tf.map_fn(order, rounds)
        chosen.append(tf.gather(group, tf.gather_nd(orders, tf.stack([place // size - rounds[0], place % size], 1))))
    return tf.concat(chosen, 0)


def batches(data: dict, recipe: Recipe, seed: int, first_step: int) -> tf.data.Dataset:
    """Batches of (channels, labels); each a function of the seed and its step alone."""
    codes = data["labels"] if recipe.real else np.where(data["labels"] == TUMOUR, np.uint8(OPEN), data["labels"])
    hu, labels, spacing_mm = tf.constant(data["hu"]), tf.constant(codes), tf.constant(data["spacing_mm"])
    channels, resize = CTChannels.from_channels_config(CHANNELS), SquareResize(recipe.size)
    lesions, cysts = replace(LESIONS, probability=recipe.synthesis), replace(CYSTS, probability=recipe.cysts)
    tumour, liver = (data["labels"] == TUMOUR).any((1, 2)), (data["labels"] > 0).any((1, 2))
    masks = [np.ones(len(liver), bool)] if recipe.shares is None else [tumour, liver & ~tumour, ~liver]
    groups = [tf.constant(np.flatnonzero(mask), tf.int32) for mask in masks]

    def batch(step):
        step = tf.cast(step, tf.int32)
        index = pick(groups, recipe, step, seed)
        index = tf.ensure_shape(index, [recipe.batch])
        x, y, mm = tf.cast(tf.gather(hu, index), tf.float32), tf.gather(labels, index), tf.gather(spacing_mm, index)
        if recipe.synthesis:
            x, y = lesions(x, y, [seed + 1, step], mm)
        if recipe.cysts:
            x, _ = cysts(x, y, [seed + 3, step], mm)
        if recipe.distractors:
            x = paste_beside_liver(x, y, [seed + 4, step], recipe.distractors)
        x, y = AUGMENTATION(x, y, [seed + 2, step])
        x, y = (tf.ensure_shape(t, [recipe.batch, 256, 256]) for t in (x, y))
        return resize(channels(x)), shrink_labels(y, recipe.size)

    return tf.data.Dataset.range(first_step, recipe.steps).map(batch, num_parallel_calls=2).prefetch(3)


def probabilities(model, size: int, hu: np.ndarray, chunk: int = 8) -> np.ndarray:
    """(N, H, W) HU -> (N, H, W, 3) float32."""
    config = ModelConfig(image_size=size, channels=CHANNELS)
    predict = tf.function(SliceFunction(model, config).probabilities, reduce_retracing=True)
    parts = [predict(tf.constant(hu[i : i + chunk], tf.float32)).numpy() for i in range(0, len(hu), chunk)]
    return np.concatenate(parts)


class Trainer:
    """Weights, their moving average, optimiser and step, kept on disk."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe = recipe
        self.config = ModelConfig(image_size=recipe.size, channels=CHANNELS, backbone=recipe.backbone)
        self.model, self.average = build_model(self.config), build_model(self.config)
        self.optimizer = keras.optimizers.AdamW(recipe.rate, weight_decay=0.02, global_clipnorm=5.0)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.optimizer.build(self.model.trainable_variables)
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64)
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer, "step": self.step}
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(folder / "checkpoint"), max_to_keep=1)

    def start_from(self, start: str | None) -> None:
        """Go on from the folder's checkpoint, or else begin with this model, or `imagenet`, or random weights."""
        if self.manager.latest_checkpoint:
            self.checkpoint.restore(self.manager.latest_checkpoint).assert_existing_objects_matched()
            log.info("going on from step %d", int(self.step))
            return
        if start == "imagenet":
            self.model.set_weights(build_model(self.config, encoder_weights="imagenet").get_weights())
        elif start:
            self.model.set_weights(ls.load_model(start).get_weights())
        self.average.set_weights(self.model.get_weights())

    @tf.function
    def train_step(self, x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(self.model(x, training=True), y, self.recipe.missed)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss

    @tf.function
    def update_average(self, decay):
        for a, w in zip(self.average.variables, self.model.variables, strict=True):
            if w.dtype.startswith("float"):
                a.assign(decay * a + (1.0 - decay) * w)

    def learning_rate(self, step: int) -> float:
        recipe = self.recipe
        if step < recipe.warmup:
            return recipe.rate * (step + 1) / recipe.warmup
        progress = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
        return recipe.rate * max(0.5 * (1.0 + np.cos(np.pi * progress)), 0.005)

    def run(self, data: dict, seed: int, measure_every: int, measure: Callable[[Trainer], None]) -> None:
        """Train to the end; save every 50 steps, measure on the way and at the end."""
        recipe, started, losses = self.recipe, time.time(), []
        for step, (x, y) in enumerate(batches(data, recipe, seed, int(self.step)), start=int(self.step)):
            self.optimizer.learning_rate.assign(self.learning_rate(step))
            losses.append(float(self.train_step(x, y)))
            if step % 5 == 4:
                # the last fifth of a short training, the last 250 steps of a long one
                self.update_average(tf.constant(min(0.98, 1.0 - 25.0 / (step + 30.0)), tf.float32))
            self.step.assign(step + 1)
            if step % 25 == 24:
                rate = 25 * recipe.batch / (time.time() - started)
                log.info("%d/%d loss %.4f, %.1f images/s", step + 1, recipe.steps, np.mean(losses), rate)
                started, losses = time.time(), []
            if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
                self.manager.save()
            if (step + 1) % measure_every == 0 or step + 1 == recipe.steps:
                measure(self)
                started = time.time()


def use_bfloat16() -> None:
    """oneDNN's bfloat16 convolutions, 1.6 times as fast at 256 px on a CPU that has them; weights stay float32."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})


def score(model, size: int, data: dict) -> dict:
    """Score a network on slices, its labels as they come, without any clean-up."""
    found = probabilities(model, size, data["hu"].astype(np.float32)).argmax(-1)
    return {key: round(value, 4) for key, value in scores_of(counts_by_patient(found, data)).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for checkpoints, log and model")
    parser.add_argument("--recipe", choices=sorted(RECIPES), required=True)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--start", help="'imagenet', or the model to go on from: .keras file or SavedModel")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="keep these patients for scoring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-every", type=int, default=300, help="steps between measurements")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of convolutions")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.precision == "bfloat16":
        use_bfloat16()
    keras.utils.set_random_seed(options.seed)
    with np.load(options.data) as file:
        data = dict(file)
    fold = folds_of(data)
    train = {key: value[fold != options.fold] for key, value in data.items()}
    kept = {key: value[fold == options.fold] for key, value in data.items()}
    recipe = RECIPES[options.recipe]
    recipe = replace(recipe, steps=options.steps or recipe.steps)
    log.info("%s; %d slices to train on, %d kept", recipe, len(train["hu"]), len(kept["hu"]))
    options.output.mkdir(parents=True, exist_ok=True)

    def measure(trainer):
        entry = {"step": int(trainer.step)} | (score(trainer.average, recipe.size, kept) if len(kept["hu"]) else {})
        log.info("%s", json.dumps(entry))
        with (options.output / "history.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    trainer = Trainer(recipe, options.output)
    trainer.start_from(options.start)
    if not int(trainer.step):
        measure(trainer)
    trainer.run(train, options.seed + recipe.seed, options.measure_every, measure)
    save_model(trainer.average, trainer.config, options.output / "model.keras")
    log.info("%s", options.output / "model.keras")


if __name__ == "__main__":
    main()
