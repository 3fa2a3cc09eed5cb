"""A training step on one worker and on two, bytes per step over the network, and throughput of a tf.data service.

Run: python benchmarks/multiworker.py [--size 128] [--batch 16] [--steps 4] [--repeats 3] [--service-size 128]

Two worker processes on this machine train a ResNet34 U-Net with `Trainer` on one global batch, and one worker trains it
alone. They run in turns; the best of each counts. Then slices of 512 x 512 phantoms go through the pipeline without a
cache, in this process, and from one and two service workers in separate processes. Bytes are counted at the loopback
device, in a separate network namespace if the system allows it (root).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def loopback_bytes() -> int:
    """Bytes sent over the loopback device of this network namespace."""
    with open("/proc/net/dev") as file:
        return next(int(line.split(":")[1].split()[8]) for line in file if line.strip().startswith("lo:"))


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def trainer_of(args: argparse.Namespace, strategy):
    import contextlib
    from dataclasses import replace

    import keras

    from liverseg_tf.config import ModelConfig
    from liverseg_tf.models.losses import build_loss
    from liverseg_tf.models.saving import build_model
    from liverseg_tf.training.loop import Trainer, phases
    from liverseg_tf.training.recipes import get_recipe

    recipe = replace(get_recipe("default"), image_size=args.size, batch_size=args.batch)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = build_model(ModelConfig(image_size=args.size))
    if strategy:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    trainer = Trainer(model, recipe, build_loss(recipe.loss), strategy)
    trainer.start_phase(phases(recipe, pretrained=False)[-1], args.steps)
    return trainer


def train_as_worker(args: argparse.Namespace) -> None:
    """One of the two workers; the first one prints."""
    from liverseg_tf.training.strategies import create_strategy, gather

    strategy = create_strategy("multiworker")
    import numpy as np
    import tensorflow as tf

    def batches(slices):
        channels = tf.random.stateless_uniform((slices, args.size, args.size, 3), (0, 1))
        labels = tf.cast(channels[..., 0] * 2.99, tf.uint8)
        while True:
            yield channels, labels

    def wait():
        gather(strategy, np.float64(0))

    one, two = trainer_of(args, None), trainer_of(args, strategy)
    whole, part = batches(args.batch), batches(args.batch // 2)
    print(f"weights: {sum(int(np.prod(v.shape)) for v in one.model.trainable_variables):,} trained", flush=True)
    if args.worker == 0:
        one.train_epoch(whole, 1)
    two.train_epoch(part, 1)
    operations = [
        op.type
        for graph in [two._run_step.get_concrete_function(next(part), tf.constant(0, tf.int64)).graph]
        for op in graph.get_operations()
    ]
    rows = {"one worker": [], "two workers": []}
    sent = []
    for _ in range(args.repeats):
        wait()
        if args.worker == 0:
            rows["one worker"].append(timed(lambda: one.train_epoch(whole, args.steps), args.steps))
        wait()
        before = loopback_bytes()
        rows["two workers"].append(timed(lambda: two.train_epoch(part, args.steps), args.steps))
        sent.append((loopback_bytes() - before) / args.steps)
    cpu = gather(strategy, np.float64(min(c for _, c in rows["two workers"])))
    if args.worker == 0:
        wall, alone = min(rows["one worker"])
        print(f"one worker, batch {args.batch}: {wall:.2f} s a step, {alone:.2f} s of CPU")
        wall, _ = min(rows["two workers"])
        print(f"two workers, {args.batch // 2} slices each: {wall:.2f} s a step, {cpu.sum():.2f} s of CPU together")
        print(f"sent by both together: {min(sent) / 1e6:.1f} MB a step")
        collectives = {kind: operations.count(kind) for kind in set(operations) if kind.startswith("Collective")}
        print(f"collective operations in the graph of a step: {collectives}", flush=True)
    wait()


def timed(function, steps: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def measure_service(args: argparse.Namespace) -> None:
    from liverseg_tf.data.augmentation import Augmentation
    from liverseg_tf.data.cases import find_cases
    from liverseg_tf.data.phantom import write_phantoms
    from liverseg_tf.data.slices import training_batches
    from liverseg_tf.training.feeding import through_service

    starter = os.path.join(os.path.dirname(__file__), "..", "examples", "multiworker", "data_service.py")
    slices = args.service_steps * args.batch
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(folder, 2, seed=1, shape=(512, 512, 64))

        def rate(workers: int) -> str:
            batches = training_batches(
                find_cases(folder), args.service_size, args.batch, 8, augmentation=Augmentation()
            )  # fmt: skip
            address = free_addresses(1)[0]
            processes = []
            if workers:
                port = address.split(":")[1]
                processes.append(subprocess.Popen([sys.executable, starter, "dispatcher", "--port", port]))
                for _ in range(workers):
                    command = [sys.executable, starter, "worker", "--dispatcher", address, "--host", "127.0.0.1"]
                    processes.append(subprocess.Popen(command))
                time.sleep(args.start_seconds)
                batches = through_service(batches, f"grpc://{address}")
            try:
                iterator = iter(batches)
                for _ in range(6):  # what is made beforehand would come at no cost
                    next(iterator)
                before = loopback_bytes()
                wall, cpu = timed(lambda: [next(iterator) for _ in range(args.service_steps)], 1)
                sent = loopback_bytes() - before
            finally:
                for process in processes:
                    process.kill()
            return (
                f"{slices / wall:.1f} slices/s, {1000 * cpu / slices:.1f} ms of this process's CPU a slice, "
                f"{sent / slices / 1e3:.0f} kB a slice sent ({13 * args.service_size**2 / 1e3:.0f} kB of values)"
            )

        for workers in (0, 1, 2):
            name = "in this process" if not workers else f"service, {workers} workers"
            print(f"pipeline to {args.service_size} px, {name}: {rate(workers)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="slices a global batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--service-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--service-steps", type=int, default=16, help="batches (default: %(default)s)")
    parser.add_argument("--start-seconds", type=float, default=30, help="for the service to start (%(default)s)")
    parser.add_argument("--only", choices=("steps", "service"), help="default: both")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--own-network", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return train_as_worker(args)
    if not args.own_network and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0:
        up = 'ip link set lo up && exec "$@"'
        command = ["unshare", "-n", "sh", "-c", up, "sh", sys.executable, *sys.argv, "--own-network"]
        sys.exit(subprocess.run(command).returncode)
    if args.only != "service":
        addresses = free_addresses(2)
        workers = []
        for index in (0, 1):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            workers.append(
                subprocess.Popen(
                    [sys.executable, *sys.argv, "--worker", str(index)],
                    env={**os.environ, "TF_CONFIG": json.dumps(config)},
                    stdout=None if index == 0 else subprocess.DEVNULL,
                )
            )
        statuses = [worker.wait() for worker in workers]
        if any(statuses):
            sys.exit("a worker failed")
    if args.only != "steps":
        measure_service(args)
    return None


if __name__ == "__main__":
    main()
