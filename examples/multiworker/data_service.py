"""Start a server of a tf.data service; it needs TensorFlow alone.

Run: python data_service.py dispatcher --port 5050                        # once
     python data_service.py worker --dispatcher host:5050 [--port 5051]   # on each host that is to make batches

Then: liverseg train ... --data-service grpc://host:5050
"""

from __future__ import annotations

import argparse
import os
import socket

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # batches are made on CPUs

import tensorflow as tf

service = tf.data.experimental.service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("dispatcher", "worker"))
    parser.add_argument("--port", type=int, default=0, help="default: 5050 for the dispatcher, any for a worker")
    parser.add_argument("--dispatcher", default="localhost:5050", help="host:port (default: %(default)s)")
    parser.add_argument("--host", default=socket.gethostname(), help="how trainers reach this worker (%(default)s)")
    args = parser.parse_args()
    if args.kind == "dispatcher":
        server = service.DispatchServer(service.DispatcherConfig(port=args.port or 5050))
    else:
        server = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=args.dispatcher, worker_address=f"{args.host}:%port%", port=args.port
            )
        )
    server.join()


if __name__ == "__main__":
    main()
