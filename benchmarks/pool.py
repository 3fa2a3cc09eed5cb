"""How near many volumes come to the networks' own rate: `predict_files` on copies of a CT against the networks alone.

    python benchmarks/pool.py CT [--copies 20] [--rounds 2] [--model M] [-o FILE.json]

By turns in one process: the networks alone on slices of the CT in memory, a part of the copies, and so on; the networks
alone come first and last. Their seconds a slice, times the slices that the copies took, over the seconds of the
copies, is the share. Reading, restoring, post-processing, measuring and writing are the rest. On a machine that others
use trust the share of CPU, which counts what is done beside the networks; the share of wall also counts waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import liverseg_tf as ls
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.predict_files import predict_files


class Counted:
    """A runtime that counts the slices it is given."""

    def __init__(self, runtime):
        self._runtime, self.slices = runtime, 0

    def __getattr__(self, name):
        return getattr(self._runtime, name)

    def at_network_size(self, hu: np.ndarray) -> np.ndarray:
        self.slices += len(hu)
        return self._runtime.at_network_size(hu)

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        self.slices += len(hu)
        return self._runtime.probabilities(hu)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="parts that the copies are divided into")
    parser.add_argument("--model", help="default: the shipped one")
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    predictor = ls.Predictor(args.model)
    networks = {"first": Counted(predictor.runtimes[0])}
    predictor.runtimes = [networks["first"]]
    if predictor._second_runtime is not None:
        networks["second look"] = predictor._second_runtime = Counted(predictor._second_runtime)
    volume = predictor.read(args.ct)
    batch = predictor.batch_slices(volume)
    middle = volume.shape[2] // 2
    slices = volume.slices(max(middle - 2 * batch, 0), middle + 2 * batch)
    alone = {name: np.zeros(3) for name in networks}  # slices, seconds of wall, seconds of CPU
    pool = np.zeros(2)
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        counted = dict.fromkeys(networks, 0)
        networks_alone(networks, slices, batch, alone, warm_up=True)
        for part in np.array_split(np.arange(args.copies), args.rounds):
            ct = Path(folder, f"ct-{part[0]}")
            ct.mkdir()
            for number in part:
                os.symlink(Path(args.ct).resolve(), ct / f"volume-{number}{''.join(Path(args.ct).suffixes)}")
            for network in networks.values():
                network.slices = 0
            began = np.array([time.perf_counter(), time.process_time()])
            rows = predict_files(predictor, plan([ct], Path(folder, "out")))
            pool += np.array([time.perf_counter(), time.process_time()]) - began
            if any(row["status"] != "done" for row in rows):
                raise SystemExit(f"failed: {rows}")
            for name, network in networks.items():
                counted[name] += network.slices
            networks_alone(networks, slices, batch, alone)
    row = {"ct": Path(args.ct).name, "copies": args.copies, "load": round(os.getloadavg()[0], 1)}
    for index, clock in enumerate(("wall", "CPU")):
        a_slice = {name: found[1 + index] / found[0] for name, found in alone.items()}
        share = sum(a_slice[name] * counted[name] for name in networks) / pool[index]
        row[clock] = {
            "seconds a volume": round(pool[index] / args.copies, 2),
            "ms a slice alone": {name: round(1000 * seconds, 1) for name, seconds in a_slice.items()},
            "share of the networks' own rate": round(share, 3),
        }
    row["slices a volume"] = {name: count / args.copies for name, count in counted.items()}
    print(json.dumps(row, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(row, indent=2) + "\n")
    return 0


def networks_alone(networks, slices: np.ndarray, batch: int, alone, warm_up: bool = False) -> None:
    """Add slices and seconds of each network to `alone`; both are called as `Predictor` calls them."""
    for name, network in networks.items():
        function = network.at_network_size if name == "first" else network.probabilities
        for turn in range(1 + warm_up):
            began = np.array([time.perf_counter(), time.process_time()])
            for first in range(0, len(slices), batch):
                function(slices[first : first + batch])
            seconds = np.array([time.perf_counter(), time.process_time()]) - began
            if turn == warm_up:
                alone[name] += [len(slices), *seconds]


if __name__ == "__main__":
    sys.exit(main())
