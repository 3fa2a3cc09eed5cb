"""The peer of `benchmarks/training.py --peer`: a ResNet34 U-Net in PyTorch, without this library and TensorFlow.

Started by that script with the Python of another environment. It reads lines `float32 STEPS` or `bfloat16 STEPS` and
answers each with a line of JSON: wall and CPU seconds of those training steps; `profile STEPS`: seconds of each kind of
operation in float32 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import segmentation_models_pytorch as smp
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, required=True, help="rows and columns in pixels")
    parser.add_argument("--batch", type=int, required=True, help="slices a batch")
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(args.batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (args.batch, args.size, args.size))
    networks = {}
    for precision in ("float32", "bfloat16"):
        network = smp.Unet("resnet34", encoder_weights=None, classes=3).to(memory_format=torch.channels_last)
        networks[precision] = network.train(), torch.optim.AdamW(network.parameters(), lr=1e-4)
    weights = sum(p.numel() for p in network.parameters())
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "weights": weights}), flush=True)

    def train(precision: str, steps: int) -> None:
        network, optimizer = networks[precision]
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits = network(images)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    for line in sys.stdin:
        what, steps = line.split()
        if what == "profile":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                train("float32", int(steps))
            answer = {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            train(what, int(steps))
            answer = [time.perf_counter() - wall, time.process_time() - cpu]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
