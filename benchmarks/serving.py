"""Bytes and time per slice over the network: gRPC and REST, arrays and PNG, on one CT.

    python benchmarks/serving.py FOLDER_OF_VERSIONS CT.nii.gz [--every N]

`tests/serving_endpoint.py`, on loopback, replaces TensorFlow Serving. The bytes are those of the real protocol, and the
computation is the same; Python's JSON is slower than the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="SavedModel, the folder of its versions")
    parser.add_argument("ct", help="NIfTI file of whole HU")
    parser.add_argument("--every", type=int, default=4, help="take every n-th slice")
    args = parser.parse_args()

    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.inference.serving_client import ServingClient

    volume = CTVolume.load(args.ct)
    hu = np.concatenate([volume.slices(i, i + 1) for i in range(0, volume.shape[2], args.every)])
    command = [sys.executable, ROOT / "tests" / "exporting" / "serving_endpoint.py", args.folder]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        ports = json.loads(server.stdout.readline())
        name = Path(args.folder).resolve().name
        first = None
        for scheme, port in (("grpc", ports["grpc"]), ("http", ports["rest"])):
            for compact in (False, True):
                client = ServingClient(f"{scheme}://127.0.0.1:{port}/{name}", compact=compact, timeout_s=300)
                client.labels(hu[:1])
                start, before = time.perf_counter(), loopback_bytes()
                labels = client.labels(hu)
                seconds = time.perf_counter() - start
                first = labels if first is None else first
                kilobytes = (loopback_bytes() - before) / len(hu) / 1000
                same = "same mask" if np.array_equal(labels, first) else "ANOTHER MASK"
                kind = "PNG" if compact else "arrays"
                print(
                    f"{scheme} {kind:7}{kilobytes:9.0f} kB/slice both ways"
                    f"{1e3 * seconds / len(hu):9.1f} ms/slice  {same}"
                )
    finally:
        server.kill()
        server.communicate()
    return 0


def loopback_bytes() -> int:
    """Bytes that Linux's loopback device has sent, in both directions of a connection."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    sys.exit(main())
