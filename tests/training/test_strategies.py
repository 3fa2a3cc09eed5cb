"""Training on several devices of one machine."""

import numpy as np
import pytest

from tests.processes import Fork
from tests.training.worker import train_small

pytestmark = pytest.mark.slow


def train_on_one_and_two(data, output):
    """Leaves the weights of each training as `one.npz` and `two.npz`."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for name, strategy in (("one", None), ("two", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))):
        train_small(data, output / name, output / f"{name}.npz", strategy=strategy)


def test_two_devices_reach_one_devices_weights(phantom_folder, tmp_path):
    """In a process of its own: logical devices must be made before TensorFlow starts.

    BatchNorm's statistics, which are among the weights, are those of the global batch.
    """
    ended = Fork(train_on_one_and_two, phantom_folder, tmp_path).end(500)
    assert ended.status == 0, ended.errors[-2000:]
    one, two = (list(np.load(tmp_path / f"{name}.npz").values()) for name in ("one", "two"))
    assert len(one) > 10
    for alone, shared in zip(one, two, strict=True):
        np.testing.assert_allclose(alone, shared, atol=1e-4)
