"""Train on two workers of this machine: what a launcher does on several, in forty lines.

Run: python two_processes.py DIR... -o RUN [options of 'liverseg train']
     python two_processes.py --phantoms -o RUN --epochs 2 --image-size 64     # no data needed

TF_CONFIG tells each worker the addresses of both. When one dies, the other ends with an error, and both are started
again: with --resume they continue from the last epoch's checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile

WORKERS, TRIES = 2, 3


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def train_once(arguments: list[str]) -> bool:
    """Start all workers and wait for all of them; True if each is done."""
    addresses = free_addresses(WORKERS)
    processes = []
    for index in range(WORKERS):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                ["liverseg", "train", *arguments, "--strategy", "multiworker", "--resume"],
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
            )
        )
    print("workers:", *(process.pid for process in processes), file=sys.stderr)
    statuses = [process.wait() for process in processes]
    return not any(statuses)


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        if "--phantoms" in arguments:
            arguments = [a for a in arguments if a != "--phantoms"]
            subprocess.run(["liverseg", "phantom", folder, "--cases", "6", "--seed", "1"], check=True)
            arguments = [folder, *arguments]
        for attempt in range(1, TRIES + 1):
            if train_once(arguments):
                return 0
            print(f"attempt {attempt} of {TRIES}: a worker failed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
