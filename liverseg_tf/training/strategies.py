"""Where a training runs: on one device, on all GPUs of a machine, or on several machines."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from liverseg_tf.errors import ConfigError, TrainingError
from liverseg_tf.training.options import STRATEGIES

_EXAMPLE = """TF_CONFIG='{"cluster": {"worker": ["a:12345", "b:12345"]}, "task": {"type": "worker", "index": 0}}' for \
worker 0 on hosts a and b"""


def create_strategy(name: str) -> tf.distribute.Strategy | None:
    """Make the strategy of a name in `STRATEGIES`.

    "multiworker" waits for all workers of TF_CONFIG, and must be made before TensorFlow runs its first operation.

    Args:
        name: "one" for one device, "mirrored" for all GPUs of this machine, "multiworker" for the hosts of TF_CONFIG.

    Returns:
        A strategy, or None for one device.

    Raises:
        ConfigError: for an unknown name, no GPU to mirror over, or a TF_CONFIG that is missing or wrong.
        TrainingError: if the cluster can't be formed.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy: expected one of {', '.join(STRATEGIES)}. Received: {name!r}")
    if name == "one":
        return None
    if name == "mirrored":
        if not tf.config.list_physical_devices("GPU"):
            raise ConfigError("strategy mirrored: expected GPUs, TensorFlow sees none; see 'liverseg info --devices'")
        return tf.distribute.MirroredStrategy()
    _check_tf_config()
    try:
        with _signals_at_work():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ConfigError(
            "strategy multiworker: expected to be made before TensorFlow's first operation; "
            f"call train(strategy='multiworker') at the beginning of the program ({_line(error)})"
        ) from error
    except tf.errors.OpError as error:
        raise TrainingError(
            "the workers of TF_CONFIG could not be joined: expected each of its addresses to be free on its host and "
            f"reachable from the others; check ports and firewalls, and restart all workers ({_line(error)})"
        ) from error


def worker_index(strategy: tf.distribute.Strategy | None) -> tuple[int, int]:
    """Index of this worker, 0 for the chief, and the number of workers."""
    resolver = strategy.cluster_resolver if strategy is not None else None
    jobs = resolver.cluster_spec().as_dict() if resolver is not None else None
    if resolver is None or not jobs:
        return 0, 1
    tasks = [(job, index) for job in ("chief", "worker") for index in range(len(jobs.get(job, ())))]
    return tasks.index((resolver.task_type, resolver.task_id)), len(tasks)


def gather(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Collect every worker's `values` on all workers; returns when all have called it.

    Args:
        values: of the same shape and dtype (float64, int64) on all workers.

    Returns:
        (workers, *values.shape), in the order of the workers.
    """
    _, workers = worker_index(strategy)

    @tf.function(autograph=False)
    def together(values):
        return strategy.run(lambda: tf.distribute.get_replica_context().all_gather(values[None], axis=0))

    replicas = strategy.experimental_local_results(together(tf.constant(values)))[0].numpy()
    return replicas[:: len(replicas) // workers]  # all replicas of a worker have the same values


def explain_lost_worker(error: tf.errors.OpError) -> TrainingError | None:
    """An error that says that another worker has ended, if `error` means that."""
    if "Collective ops is aborted" not in str(error):
        return None
    return TrainingError(
        "another worker of TF_CONFIG has ended or does not answer, so this one ends too: expected all to go on; "
        f"see the other workers' messages, and start all of them again with resume=True ({_line(error)})"
    )


@contextmanager
def _signals_at_work() -> Iterator[None]:
    """Let Ctrl-C end the process while TensorFlow's C++ code waits, and restore the handler of SIGTERM afterwards."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    try:
        if before.get(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(error: Exception) -> str:
    """The most informative line of an error."""
    lines = str(error).splitlines()
    line = next((one for one in lines if "aborted by" in one), lines[0] if lines else type(error).__name__)
    return line[:200]


def _check_tf_config() -> None:
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        raise ConfigError(f"strategy multiworker: expected the workers in TF_CONFIG, it is not set; set {_EXAMPLE}")

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"TF_CONFIG: {what}; set {_EXAMPLE}. Received: {text[:300]}")

    try:
        config = json.loads(text)
    except ValueError as error:
        raise wrong(f"expected JSON ({error})") from None
    cluster, task = (config.get(key) if isinstance(config, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise wrong("expected the objects 'cluster' and 'task'")
    if not set(cluster) <= {"chief", "worker"} or not cluster:
        raise wrong("cluster: expected the jobs 'worker' and perhaps 'chief', no others")
    for job, addresses in cluster.items():
        if not isinstance(addresses, list) or not addresses or not all(map(_is_address, addresses)):
            raise wrong(f"cluster, {job}: expected a list of 'host:port'")
    if len(cluster.get("chief", "1")) != 1:
        raise wrong("cluster, chief: expected one address")
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster or type(index) is not int or not 0 <= index < len(cluster[kind]):
        raise wrong("task: expected a 'type' and an 'index' (from 0) that the cluster has")


def _is_address(value) -> bool:
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536
