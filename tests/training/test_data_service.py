"""Training batches made by a tf.data service: a dispatcher and two workers."""

import socket

import numpy as np
import pytest
import tensorflow as tf

import liverseg_tf as ls
from liverseg_tf.data.slices import training_batches
from liverseg_tf.errors import ConfigError, ServerError
from liverseg_tf.training import train as run
from liverseg_tf.training.feeding import through_service
from tests.training import worker

pytestmark = pytest.mark.slow

service = tf.data.experimental.service
_RUNNING = []  # they end with the process: stopped earlier, they would first finish the epochs that they are making


@pytest.fixture(scope="module")
def servers():
    dispatcher = service.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    workers = [service.WorkerServer(service.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    _RUNNING.extend([*workers, dispatcher])
    return dispatcher, workers


def test_the_service_makes_the_same_slices(phantom_folder, servers):
    cases = ls.find_cases(phantom_folder)[:2]  # 24 slices: 6 batches an epoch
    options = {"with_index": True, "cache": "memory"}
    served, plain = {}, {}
    remote = through_service(training_batches(cases, 32, 4, 6, **options), servers[0].target)
    for batches, slices in ((remote.take(18), served), (training_batches(cases, 32, 4, 6, **options).take(6), plain)):
        for channels, labels, info in batches:
            for place in range(4):
                key = int(info["case"][place]), int(info["slice"][place])
                slices.setdefault(key, []).append((channels[place].numpy(), labels[place].numpy()))
    assert len(plain) == 24
    assert set(served) == set(plain)
    assert {len(found) for found in served.values()} <= {2, 3, 4}  # 3 epochs; the last of them is cut
    for key, found in served.items():
        for channels, labels in found:
            np.testing.assert_array_equal(channels, plain[key][0][0])
            np.testing.assert_array_equal(labels, plain[key][0][1])


def test_a_training_is_fed_by_the_service(phantom_folder, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build_model", run.build_model)  # undone afterwards
    _, workers = servers
    before = [server._num_tasks() for server in workers]
    result = worker.train_small(
        phantom_folder, tmp_path / "run", tmp_path / "weights.npz", data_service=servers[0].target, data_shards=2
    )
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert np.isfinite(result.history[-1]["loss"])
    # one job a shard
    assert [server._num_tasks() - n for server, n in zip(workers, before, strict=True)] == [2, 2]


def test_a_service_that_does_not_answer_is_told_at_once(phantom_folder, tmp_path):
    cases = ls.find_cases(phantom_folder)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="nothing answers .*start one"):
            ls.train(cases, tmp_path / "r", data_service=f"grpc://127.0.0.1:{closed.getsockname()[1]}")
    for address in ("localhost:5050", "grpc://localhost", "http://localhost:5050", "grpc://localhost:99999"):
        with pytest.raises(ConfigError, match="expected the dispatcher as grpc://host:port"):
            ls.train(cases, tmp_path / "r", data_service=address)
    assert not (tmp_path / "r").exists()
