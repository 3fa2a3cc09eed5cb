"""Training images per second plain, with XLA and with bfloat16 convolutions; time of the pipeline beside the step.

Run: python benchmarks/training.py [--size 128] [--batch 16] [--steps 4] [--repeats 2]

A ResNet34 U-Net is trained by `Trainer` on batches of phantoms that are held in memory; the variants run in turns in
one process, and the best of each counts. Compiling and the first steps are timed separately.
Then the same batches come through the pipeline of a training (cached slices, augmentation), alone and with the step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.augmentation import Augmentation
from liverseg_tf.data.cases import find_cases
from liverseg_tf.data.phantom import write_phantoms
from liverseg_tf.data.slices import training_batches
from liverseg_tf.models.losses import build_loss
from liverseg_tf.models.saving import build_model
from liverseg_tf.training.loop import Trainer, phases
from liverseg_tf.training.recipes import get_recipe
from liverseg_tf.training.train import bfloat16_convolutions


def make_trainer(size: int, steps: int, xla: bool) -> Trainer:
    """A trainer of a fresh network, at the beginning of its full phase."""
    recipe = replace(get_recipe("default"), image_size=size)
    model = build_model(ModelConfig(image_size=size))
    trainer = Trainer(model, recipe, build_loss(recipe.loss, 3, recipe.class_weights), xla=xla)
    trainer.start_phase(phases(recipe, pretrained=False)[-1], steps)
    return trainer


def train(name: str, trainer: Trainer, batches: Iterator, steps: int) -> None:
    with bfloat16_convolutions(name == "bfloat16"):
        trainer.train_epoch(batches, steps)


def take(batches: Iterator, steps: int) -> None:
    for _ in range(steps):
        next(batches)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="rows and columns in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="slices a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of each variant (default: %(default)s)")
    args = parser.parse_args()
    images = args.steps * args.batch
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(folder, 4, seed=1, shape=(256, 256, 24))
        pipeline = iter(
            training_batches(
                find_cases(folder), args.size, args.batch, 1000, cache="memory", augmentation=Augmentation()
            )
        )
        batches = itertools.cycle([next(pipeline) for _ in range(args.steps)])
        trainers = {name: make_trainer(args.size, args.steps, name == "XLA") for name in ("plain", "XLA", "bfloat16")}
        for name, trainer in trainers.items():
            print(f"{name + ', first step':34}{seconds(lambda n=name, t=trainer: train(n, t, batches, 1)):10.1f} s")
        best = dict.fromkeys(trainers, 0.0)
        cpu = dict.fromkeys(trainers, float("inf"))
        for _ in range(args.repeats):
            for name, trainer in trainers.items():
                begun = time.process_time()
                taken = seconds(lambda n=name, t=trainer: train(n, t, batches, args.steps))
                cpu[name] = min(cpu[name], (time.process_time() - begun) / images)
                best[name] = max(best[name], images / taken)
        for name, rate in best.items():
            print(
                f"{name + ', step alone':34}{rate:10.1f} images/s{rate / best['plain']:8.2f}"
                f"{cpu[name]:10.3f} s of CPU an image"
            )
        # what was prefetched beforehand would come at no cost
        take(pipeline, 4)
        rate = images / seconds(lambda: take(pipeline, args.steps))
        print(f"{'pipeline alone, augmentation':34}{rate:10.1f} images/s")
        fastest = max(best, key=best.get)
        taken = seconds(lambda: train(fastest, trainers[fastest], pipeline, args.steps))
        print(
            f"{fastest + ', pipeline and step':34}{images / taken:10.1f} images/s{images / taken / best['plain']:8.2f}"
        )


if __name__ == "__main__":
    main()
