"""Train the shipped model: a ResNet34 U-Net on real slices with synthetic and weakly labelled tumours.

    python prepare.py --slices MSD_SLICES --negatives NEGATIVES --patients patients.csv -o slices.npz
    python train.py slices.npz -o RUN [--report FOLDER ...]

Four stages: 128 px from random weights, then the same weights three times at 256 px. Run again to go on where it
stopped. Real tumours hide in the liver's label. In the first stage dark liver is left open: the loss asks for liver or
tumour there. After it the network, which so far knows synthetic tumours only, is asked about the dark regions: those
that it finds too become tumour, all others stay open. Volumes named by --report are measured and never influence
anything.
"""

from __future__ import annotations

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
from prepare import DARK, LIVER, OPEN
from scipy import ndimage

from liverseg_tf.channels import CTChannels, SquareResize
from liverseg_tf.config import ChannelsConfig, ModelConfig
from liverseg_tf.data.augmentation import Augmentation
from liverseg_tf.data.cases import find_cases
from liverseg_tf.data.lesion_synthesis import LesionSynthesis
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.saving import save_model
from liverseg_tf.models.unet import build_unet

log = logging.getLogger("train")
TUMOUR = 2
RIM_PIXELS = 4
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
# At 1.5 mm and the noise of these slices smaller or fainter lesions could not be told from noise.
LESIONS = LesionSynthesis(
    diameter_mm=(5.0, 80.0), hypodense_hu=(15.0, 80.0), necrosis_probability=0.4, necrosis_hu=(10.0, 60.0)
)
# Radiologists outline a tumour with the pale halo of its dark core, and with its calcifications.
HALO_LESIONS = replace(
    LESIONS,
    diameter_mm=(5.0, 100.0),
    hypodense_hu=(8.0, 80.0),
    necrosis_probability=0.6,
    necrosis_hu=(15.0, 80.0),
    necrosis_share=(0.3, 0.85),
    calcified_probability=0.12,
)


@dataclass(frozen=True)
class Stage:
    """One stretch of training at one size, with one cosine of the learning rate."""

    name: str
    size: int
    steps: int
    batch: int
    rate: float
    dark: str  # what dark liver counts as: "open", or "agreed" (tumour where the last stage's network says so too)
    synthesis: float = 0.7
    warmup: int = 100
    lesions: LesionSynthesis = LESIONS
    seed: int = 0  # added to the run's: stages with the same see the same augmentations


STAGES = (
    Stage("coarse", 128, 1100, 16, 1.5e-3, "open"),
    Stage("fine", 256, 950, 8, 6e-4, "agreed", synthesis=0.6),
    Stage("long", 256, 1500, 8, 6e-4, "agreed", synthesis=0.6),
    Stage("halo", 256, 3200, 8, 6e-4, "agreed", synthesis=0.6, lesions=HALO_LESIONS, seed=10),
)


def held_out(patients: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which slices belong to the patients kept for selection, bool; a patient of very many slices is never kept."""
    names, counts = np.unique(patients, return_counts=True)
    names = names[counts < 0.05 * len(patients)]
    chosen = np.random.default_rng(seed).permutation(names)[: round(fraction * len(names))]
    return np.isin(patients, chosen)


def shrink_labels(labels, size: int):
    """Average each code's share and keep the largest; whole factors only."""
    factor = labels.shape[1] // size
    if factor == 1:
        return labels
    codes = tf.constant([0, LIVER, TUMOUR, OPEN], tf.uint8)
    shares = tf.nn.avg_pool2d(tf.cast(labels[..., None] == codes, tf.float32), factor, factor, "VALID")
    return tf.gather(codes, tf.argmax(shares, -1))


def batches(data: dict, stage: Stage, seed: int, first_step: int) -> tf.data.Dataset:
    """Batches of (channels, labels); each a function of the seed and its step alone."""
    hu, labels = tf.constant(data["hu"]), tf.constant(data["labels"])
    spacing_mm = tf.constant(data["spacing_mm"])
    count, channels, resize = (
        len(data["hu"]),
        CTChannels.from_channels_config(CHANNELS),
        SquareResize(stage.size),
    )
    lesions = replace(stage.lesions, probability=stage.synthesis)
    per_epoch = count // stage.batch

    def batch(step):
        step = tf.cast(step, tf.int32)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed=[seed, step // per_epoch])
        index = order[(step % per_epoch) * stage.batch :][: stage.batch]
        x, y = tf.cast(tf.gather(hu, index), tf.float32), tf.gather(labels, index)
        x, y = lesions(x, y, [seed + 1, step], tf.gather(spacing_mm, index))
        x, y = AUGMENTATION(x, y, [seed + 2, step])
        x, y = (
            tf.ensure_shape(x, [stage.batch, 256, 256]),
            tf.ensure_shape(y, [stage.batch, 256, 256]),
        )
        return resize(channels(x)), shrink_labels(y, stage.size)

    return tf.data.Dataset.range(first_step, stage.steps).map(batch, num_parallel_calls=2).prefetch(3)


def loss_of(logits, labels):
    """Cross entropy plus soft Dice of liver with tumour and of tumour alone; open pixels may be either."""
    log_p = tf.nn.log_softmax(logits)
    p = tf.exp(log_p)
    is_open = tf.cast(labels == OPEN, tf.float32)
    truth = tf.one_hot(tf.cast(labels, tf.int32), 3)  # all 0 where open
    foreground = tf.reduce_logsumexp(log_p[..., 1:], -1)
    entropy = -tf.reduce_mean(tf.reduce_sum(truth * log_p, -1) + is_open * foreground)

    def dice(a, b):
        return (2.0 * tf.reduce_sum(a * b) + 50.0) / (tf.reduce_sum(a) + tf.reduce_sum(b) + 50.0)

    organ = dice(p[..., 1] + p[..., 2], truth[..., 1] + truth[..., 2] + is_open)
    tumour = dice(p[..., 2] * (1.0 - is_open), truth[..., 2])
    return entropy + 0.5 * (1.0 - organ) + 0.5 * (1.0 - tumour)


def probabilities(model, size: int, hu: np.ndarray, chunk: int = 8) -> np.ndarray:
    """(N, H, W) HU -> (N, H, W, 3) float32."""
    config = ModelConfig(image_size=size, channels=CHANNELS)
    predict = tf.function(SliceFunction(model, config).probabilities, reduce_retracing=True)
    parts = [predict(tf.constant(hu[i : i + chunk], tf.float32)).numpy() for i in range(0, len(hu), chunk)]
    return np.concatenate(parts)


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    total = int(a.sum()) + int(b.sum())
    return round(2.0 * int((a & b).sum()) / total, 4) if total else None


def selection_scores(model, size: int, data: dict) -> dict:
    """Measure on held-out patients: liver, synthetic tumours, dark regions found, clear liver called tumour."""
    codes = data["labels"]
    plain = np.where(codes >= DARK, OPEN, codes).astype(np.uint8)
    hu, truth = replace(LESIONS, probability=1.0)(data["hu"], plain, (99, 0), data["spacing_mm"])
    hu, truth = hu.numpy(), truth.numpy()
    label = probabilities(model, size, hu).argmax(-1)
    real = probabilities(model, size, data["hu"].astype(np.float32)).argmax(-1)
    known = truth != OPEN
    return {
        "liver": dice(real > 0, codes > 0),
        "synthetic_tumour": dice((label == TUMOUR) & known, truth == TUMOUR),
        "dark_found": round(float((real[codes == DARK] == TUMOUR).mean()), 4),
        "clear_liver_called_tumour": round(float((real[codes == LIVER] == TUMOUR).mean()), 5),
        "false_liver_share_without_liver": round(float((real[~(codes > 0).any((1, 2))] > 0).mean()), 6),
    }


def report_scores(model, size: int, folders: list[str], every: int = 1) -> dict:
    """Liver and tumour Dice of whole volumes, from the largest component of liver with tumour."""
    scores = {}
    for case in find_cases(*folders) if folders else []:
        if case.segmentation is None:
            continue
        started = time.time()
        hu = np.moveaxis(CTVolume.load(case.volume).hu, 2, 0)[::every]
        truth = np.moveaxis(MaskVolume.load(case.segmentation).labels, 2, 0)[::every]
        label = probabilities(model, size, np.ascontiguousarray(hu)).argmax(-1)
        regions, number = ndimage.label(label > 0)
        if number > 1:
            label[regions != np.bincount(regions.ravel())[1:].argmax() + 1] = 0
        scores[str(case.id)] = {
            "liver": dice(label > 0, truth > 0),
            "tumour": dice(label == TUMOUR, truth == TUMOUR),
            "tumour_pixels": [
                int((label == TUMOUR).sum()),
                int((truth == TUMOUR).sum()),
            ],
            "seconds": round(time.time() - started, 1),
        }
    return scores


class Trainer:
    """One stage: weights, their moving average, optimiser and step, kept on disk."""

    def __init__(self, stage: Stage, folder: Path, ema: float = 0.99):
        self.stage, self.decay = stage, ema
        self.model = build_unet(image_size=stage.size, channels=CHANNELS.count)
        self.average = build_unet(image_size=stage.size, channels=CHANNELS.count)
        self.optimizer = keras.optimizers.AdamW(stage.rate, weight_decay=0.02, global_clipnorm=5.0)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.optimizer.build(self.model.trainable_variables)
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.checkpoint = tf.train.Checkpoint(
            model=self.model,
            average=self.average,
            optimizer=self.optimizer,
            step=self.step,
        )
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(folder / stage.name), max_to_keep=1)

    def start_from(self, average: keras.Model | None) -> None:
        if self.manager.latest_checkpoint:
            self.checkpoint.restore(self.manager.latest_checkpoint).assert_existing_objects_matched()
            log.info("%s: going on from step %d", self.stage.name, int(self.step))
            return
        if average is not None:
            self.model.set_weights(average.get_weights())
        self.average.set_weights(self.model.get_weights())

    @tf.function
    def train_step(self, x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(self.model(x, training=True), y)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss

    @tf.function
    def update_average(self, decay):
        for a, w in zip(self.average.variables, self.model.variables, strict=True):
            if w.dtype.startswith("float"):
                a.assign(decay * a + (1.0 - decay) * w)

    def learning_rate(self, step: int) -> float:
        stage = self.stage
        if step < stage.warmup:
            return stage.rate * (step + 1) / stage.warmup
        progress = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
        return stage.rate * max(0.5 * (1.0 + np.cos(np.pi * progress)), 0.005)

    def run(self, data: dict, seed: int, measure_every: int, measure: Callable[[Trainer], None]) -> None:
        """Train to the stage's end; save and measure on the way and there."""
        stage, started, losses = self.stage, time.time(), []
        for step, (x, y) in enumerate(batches(data, stage, seed, int(self.step)), start=int(self.step)):
            self.optimizer.learning_rate.assign(self.learning_rate(step))
            losses.append(float(self.train_step(x, y)))
            if step % 5 == 4:
                self.update_average(tf.constant(min(self.decay**2, 1.0 - 5.0 / (step + 10.0)), tf.float32))
            self.step.assign(step + 1)
            if step % 25 == 24:
                rate = 25 * stage.batch / (time.time() - started)
                log.info("%s %d/%d loss %.4f, %.1f images/s", stage.name, step + 1, stage.steps, np.mean(losses), rate)
                started, losses = time.time(), []
            if (step + 1) % measure_every == 0 or step + 1 == stage.steps:
                self.manager.save()
                measure(self)
                started = time.time()


def agreed_labels(model, size: int, data: dict) -> np.ndarray:
    """Open and dark liver becomes tumour where the network finds one, and stays open elsewhere.

    A dark region counts whole once a tenth of it is found: synthetic tumours taught the network to tell tumours from
    fissures and vessels, but not how large they grow. What is somewhat dark around it (open, within RIM_PIXELS) is its
    rim, which annotators count in. Clear liver in which the network finds tumour is left open.
    """
    codes = data["labels"]
    finds = probabilities(model, size, data["hu"].astype(np.float32))[..., TUMOUR]
    within_slices = np.zeros((3, 3, 3), bool)
    within_slices[1] = True
    regions, number = ndimage.label(codes == DARK, within_slices)
    found = np.asarray(ndimage.mean(finds, regions, np.arange(1, number + 1))) > 0.1
    agreed = np.concatenate([[False], found])[regions]
    labels = np.where((codes >= DARK) | ((codes == LIVER) & (finds > 0.5)), OPEN, codes).astype(np.uint8)
    tumour = agreed | ((codes >= DARK) & (finds > 0.5))
    # grows through dark and open liver only
    tumour = ndimage.binary_dilation(tumour, within_slices, iterations=RIM_PIXELS, mask=tumour | (labels == OPEN))
    labels[tumour] = TUMOUR
    log.info(
        "dark regions: %d of %d agreed (%.0f %% of their pixels); %.1f %% of the liver is tumour, %.1f %% open",
        int(found.sum()),
        number,
        100.0 * agreed.sum() / max((codes == DARK).sum(), 1),
        100.0 * (labels == TUMOUR).sum() / max((codes > 0).sum(), 1),
        100.0 * (labels == OPEN).sum() / max((codes > 0).sum(), 1),
    )
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help="folder for checkpoints, log and model",
    )
    parser.add_argument(
        "--report",
        nargs="*",
        default=[],
        help="folders of labelled volumes to measure, not to learn",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=len(STAGES), help="steps of each stage")
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.1,
        help="share of patients kept for selection",
    )
    parser.add_argument("--measure-every", type=int, default=250, help="steps between measurements")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of convolutions",
    )
    parser.add_argument(
        "--evaluate",
        metavar="WEIGHTS",
        help="only measure these weights on every slice",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.evaluate:
        model = keras.models.load_model(options.evaluate, compile=False)
        print(json.dumps(report_scores(model, model.input_shape[1], options.report), indent=2))
        return
    if options.precision == "bfloat16":
        # oneDNN's bfloat16 convolutions, 1.6 times as fast at 256 px on a CPU that has them; weights stay float32.
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    keras.utils.set_random_seed(options.seed)
    with np.load(options.data) as file:
        data = dict(file)
    kept = held_out(data["patient"], options.hold_out, options.seed)
    train, selection = ({k: v[m] for k, v in data.items()} for m in (~kept, kept))
    log.info(
        "%d slices to train on, %d of held-out patients",
        len(train["hu"]),
        len(selection["hu"]),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    history = options.output / "history.jsonl"

    average, size = None, 0
    for stage, steps in zip(STAGES, options.steps or [s.steps for s in STAGES], strict=True):
        stage = replace(stage, steps=steps)
        done = options.output / f"{stage.name}.keras"
        if done.exists():
            average, size = keras.models.load_model(done, compile=False), stage.size
            continue
        if stage.dark == "agreed":
            cache = options.output / f"agreed_{stage.name}.npy"
            if not cache.exists():
                np.save(cache, agreed_labels(average, size, train))
            labels = np.load(cache)
        else:
            labels = np.where(train["labels"] == DARK, OPEN, train["labels"])
        stage_data = {**train, "labels": labels}
        trainer = Trainer(stage, options.output)
        trainer.start_from(average)

        def measure(trainer):
            entry = {
                "stage": trainer.stage.name,
                "step": int(trainer.step),
                "selection": selection_scores(trainer.average, trainer.stage.size, selection),
                "report": report_scores(trainer.average, trainer.stage.size, options.report, every=4),
            }
            log.info("%s", json.dumps(entry))
            with history.open("a") as file:
                file.write(json.dumps(entry) + "\n")

        trainer.run(stage_data, options.seed + stage.seed, options.measure_every, measure)
        average, size = trainer.average, stage.size
        config = ModelConfig(image_size=stage.size, channels=CHANNELS)
        save_model(average, config, done)
        log.info("%s", done)


if __name__ == "__main__":
    main()
