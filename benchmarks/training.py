"""Training images per second plain, with XLA and with bfloat16 convolutions; time of the pipeline beside the step.

Run: python benchmarks/training.py [--size 128] [--batch 16] [--steps 4] [--repeats 2] [--variants plain bfloat16]
         [--peer PYTHON] [--profile]

A ResNet34 U-Net is trained by `Trainer` on batches of phantoms that are held in memory; the variants run in turns in
one process, and the best of each counts. Compiling and the first steps are timed separately.
`--peer` names the Python of an environment with `torch` and `segmentation-models-pytorch`, where the same network is
trained in turns with ours: float32 and bfloat16 autocast, channels last, AdamW, cross entropy.
Then the same batches come through the pipeline of a training (cached slices, augmentation), alone and with the step.
`--profile` also tells which operations a step consists of, by their profilers' time.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

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


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    begun = time.process_time()
    return seconds(function), time.process_time() - begun


def operations(function: Callable[[], object]) -> dict[str, float]:
    """Seconds of each kind of operation that TensorFlow ran meanwhile."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space, found = xplane_pb2.XSpace(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, tf.profiler.experimental.ProfilerOptions(host_tracer_level=2)):
            function()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    for plane in space.planes:
        for event in itertools.chain.from_iterable(line.events for line in plane.lines):
            path, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if path and not path.endswith(":"):  # `A::B` is a function of TensorFlow's, not an operation
                found[kind] += event.duration_ps / 1e12
    return {kind: seconds for kind, seconds in found.items() if not kind.startswith(" ")}


def show_operations(name: str, found: dict[str, float], steps: int) -> None:
    """The eight longest kinds, and the others' sum."""
    whole, longest = sum(found.values()), sorted(found.items(), key=lambda item: -item[1])
    rest = "others", sum(seconds for _, seconds in longest[8:])
    print(f"{name}: {whole / steps:.2f} s in a step's operations")
    for kind, seconds in [*longest[:8], rest]:
        print(f"    {kind:40}{1000 * seconds / steps:8.0f} ms{100 * seconds / whole:6.1f} %")


class Peer:
    """PyTorch in a process of its own, which waits while ours trains."""

    def __init__(self, python: str, size: int, batch: int):
        script = str(Path(__file__).with_name("training_peer.py"))
        self._process = subprocess.Popen(
            [python, script, "--size", str(size), "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        self.facts = self._answer()

    def train(self, precision: str, steps: int) -> tuple[float, float]:
        """Wall and CPU seconds."""
        self._process.stdin.write(f"{precision} {steps}\n")
        self._process.stdin.flush()
        wall, cpu = self._answer()
        return wall, cpu

    def operations(self, steps: int) -> dict[str, float]:
        """Seconds of each kind of operation in float32 steps."""
        self._process.stdin.write(f"profile {steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"--peer: its Python ended with status {self._process.wait()}; is torch installed there?")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="rows and columns in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="slices a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of each variant (default: %(default)s)")
    variants = ("plain", "XLA", "bfloat16")
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants, help="of ours (default: all)")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with torch and segmentation-models-pytorch")
    parser.add_argument("--profile", action="store_true", help="time by operation of the first variant, and the peer")
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
        trainers = {name: make_trainer(args.size, args.steps, name == "XLA") for name in args.variants}
        peer = Peer(args.peer, args.size, args.batch) if args.peer else None
        # each takes a number of steps and gives wall and CPU seconds
        runs: dict[str, Callable[[int], tuple[float, float]]] = {
            name: lambda steps, n=name, t=trainer: timed(lambda: train(n, t, batches, steps))
            for name, trainer in trainers.items()
        }
        if peer is not None:
            print(f"weights: ours {trainers[args.variants[0]].model.count_params():,}, PyTorch: {peer.facts}")
            for precision in ("float32", "bfloat16"):
                runs[f"PyTorch {precision}"] = lambda steps, p=precision: peer.train(p, steps)
        for name, run in runs.items():
            print(f"{name + ', first step':34}{run(1)[0]:10.1f} s", flush=True)
        best = dict.fromkeys(runs, 0.0)
        cpu = dict.fromkeys(runs, float("inf"))
        for _ in range(args.repeats):
            for name, run in runs.items():
                wall, used = run(args.steps)
                cpu[name] = min(cpu[name], used / images)
                best[name] = max(best[name], images / wall)
        if args.profile:
            plain = args.variants[0]
            found = operations(lambda: train(plain, trainers[plain], batches, args.steps))
            show_operations(plain, found, args.steps)
            if peer is not None:
                show_operations("PyTorch float32", peer.operations(args.steps), args.steps)
        if peer is not None:
            peer.close()
        first = best[args.variants[0]]
        for name, rate in best.items():
            print(
                f"{name + ', step alone':34}{rate:10.1f} images/s{rate / first:8.2f}{cpu[name]:10.3f} s of CPU an image"
            )
        # what was prefetched beforehand would come at no cost
        take(pipeline, 4)
        rate = images / seconds(lambda: take(pipeline, args.steps))
        print(f"{'pipeline alone, augmentation':34}{rate:10.1f} images/s")
        fastest = max(trainers, key=best.get)
        taken = seconds(lambda: train(fastest, trainers[fastest], pipeline, args.steps))
        print(f"{fastest + ', pipeline and step':34}{images / taken:10.1f} images/s{images / taken / first:8.2f}")


if __name__ == "__main__":
    main()
