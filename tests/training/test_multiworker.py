"""Training on several workers: TF_CONFIG, equality with one worker, and a worker that is killed."""

import json
import socket
import time

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.errors import CaseError, ConfigError, LiverSegError
from liverseg_tf.training import train as run
from liverseg_tf.training.feeding import patient_shards
from liverseg_tf.training.strategies import create_strategy
from tests.processes import Fork
from tests.training import worker
from tests.training.worker import RECIPE

pytestmark = pytest.mark.slow

EXAMPLE = 'TF_CONFIG=\'{"cluster": {"worker": ["a:12345", "b:12345"]}, "task": {"type": "worker", "index": 0}}\''


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    finally:
        for s in sockets:
            s.close()


def start_workers(arguments):
    """Start a process with arguments of `train_small` each, as a launcher does."""
    addresses = free_addresses(len(arguments))
    workers = []
    for index, values in enumerate(arguments):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(Fork(worker.main, values, environment={"TF_CONFIG": json.dumps(config)}))
    return workers


def ends(process, seconds=200):
    """Exit status and stderr of a worker; it fails here rather than hang."""
    ended = process.end(seconds)
    return ended.status, ended.errors


def test_two_workers_reach_one_workers_weights_though_one_was_killed(phantom_folder, tmp_path, monkeypatch):
    data, output = str(phantom_folder), tmp_path / "run"
    weights = [str(tmp_path / f"weights-{name}.npz") for name in ("0", "1", "one")]
    arguments = [{"data": data, "output": str(output), "weights": path} for path in weights[:2]]

    first = [arguments[0], {**arguments[1], "output": str(tmp_path / "elsewhere"), "dies_in_epoch": 1}]
    survivor, killed = start_workers(first)
    assert ends(killed)[0] == -9
    since = time.monotonic()
    status, errors = ends(survivor)
    assert time.monotonic() - since < 60
    assert status == 1, errors[-2000:]
    assert errors.splitlines()[-1].startswith("TrainingError: another worker of TF_CONFIG has ended")
    assert not (tmp_path / "elsewhere").exists()  # the chief alone writes
    assert len(json.loads((output / "run.json").read_text())["history"]) == 1

    processes = start_workers([{**values, "resume": True} for values in arguments])
    # meanwhile the same batches, not interrupted, on one worker
    monkeypatch.setattr(run, "build_model", run.build_model)  # undone afterwards
    one = worker.train_small(phantom_folder, tmp_path / "one", weights[2], data_shards=2)
    for process in processes:
        status, errors = ends(process)
        assert status == 0, errors[-2000:]
    about = json.loads((output / "run.json").read_text())
    assert about["finished"] is True
    assert about["settings"]["replicas"] == 2
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in one.output.iterdir())
    for mine, theirs in zip(one.history, about["history"], strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_case_liver_dice"):  # summed over both workers
            assert theirs[name] == pytest.approx(mine[name], abs=1e-4), name
    arrays = [list(np.load(path).values()) for path in weights]
    for zero, other, alone in zip(*arrays, strict=True):
        np.testing.assert_array_equal(zero, other)
        np.testing.assert_allclose(zero, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "it is not set"),
        ("{", "expected JSON"),
        ("[]", "expected the objects 'cluster' and 'task'"),
        ({"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}, "expected the jobs 'worker'"),
        ({"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}, "list of 'host:port'"),
        ({"cluster": {"worker": ["a:1", "b:99999"]}, "task": {"type": "worker", "index": 0}}, "list of 'host:port'"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}, "'index' .from 0. that the cluster"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}, "task: expected"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}, "task: expected"),
        ({"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}, "one address"),
    ],
)
def test_a_wrong_tf_config_is_told_with_an_example(config, words, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ConfigError, match=words) as caught:
        create_strategy("multiworker")
    assert EXAMPLE in str(caught.value)


def test_a_cluster_after_tensorflows_first_operation_is_an_error(monkeypatch):
    import tensorflow as tf

    tf.constant(0)
    config = {"cluster": {"worker": free_addresses(2)}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ConfigError, match="at the beginning of the program"):
        create_strategy("multiworker")
    with pytest.raises(ConfigError, match="strategy: expected one of one, mirrored, multiworker"):
        create_strategy("several")


def test_the_command_says_that_tf_config_is_missing(phantom_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert main(["train", str(phantom_folder), "-o", str(tmp_path / "run"), "--strategy", "multiworker"]) == 1
    assert EXAMPLE in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shards_hold_each_patient_once_and_about_as_much(write_nifti, tmp_path):
    slices = (2, 9, 3, 8, 5, 5)
    for number, count in enumerate(slices):
        for name in ("volume", "segmentation"):
            write_nifti(tmp_path / f"{name}-{number}.nii", np.zeros((4, 4, count), np.int16))
    (tmp_path / "patients.csv").write_text("id,patient\n0,A\n2,A\n")
    cases = ls.find_cases(tmp_path, patients=tmp_path / "patients.csv")
    shards = patient_shards(cases, 2)
    assert sorted(case.id for shard in shards for case in shard) == [0, 1, 2, 3, 4, 5]
    assert {c.patient for c in shards[0]}.isdisjoint({c.patient for c in shards[1]})
    assert sorted(sum(slices[case.id] for case in shard) for shard in shards) in ([14, 18], [15, 17], [16, 16])
    with pytest.raises(CaseError, match="at least one patient .* for each of 6 data shards, got 5"):
        patient_shards(cases, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_shards": 3}, "batch size: expected a multiple of 3 data shards. Received: 4"),
        ({"data_shards": 0}, "data shards: expected a multiple of 1"),
        ({"strategy": "several"}, "expected one of one, mirrored, multiworker"),
    ],
)
def test_options_that_cant_be_met(phantom_folder, tmp_path, changes, words):
    with pytest.raises(LiverSegError, match=words):
        ls.train(ls.find_cases(phantom_folder), tmp_path / "r", RECIPE, **changes)
    assert not (tmp_path / "r").exists()
