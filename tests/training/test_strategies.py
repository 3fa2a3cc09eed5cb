"""Training on several devices of one machine."""

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.training.recipes import Recipe
from tests.processes import Fork

pytestmark = pytest.mark.slow


RECIPE = Recipe(
    name="t",
    image_size=64,
    batch_size=8,
    backbone="tiny",
    epochs=1,
    augmentation=False,
    loss="cross_entropy",
    frozen_epochs=0,
    learning_rate=3e-4,
    epsilon=1e-3,
)


def train_on_one_and_two(data, output):
    """Prints the largest difference of trained weights, and of BatchNorm's statistics."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    cases, weights = ls.find_cases(data), []
    for name, strategy in (("one", None), ("two", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))):
        options = {"steps_per_epoch": 2, "xla": False, "precision": "float32", "strategy": strategy}
        model = ls.train(cases, output / name, RECIPE, **options).model()
        groups = (model.trainable_variables, model.non_trainable_variables)
        weights.append([[v.numpy() for v in group] for group in groups])
    for group in zip(*weights, strict=True):
        print("difference", max(float(np.abs(a - b).max()) for a, b in zip(*group, strict=True)))  # noqa: T201


def test_two_devices_reach_one_devices_weights(cases, tmp_path):
    """In a process of its own: logical devices must be made before TensorFlow starts.

    BatchNorm's statistics are those of the global batch. At 32 px the bottleneck holds one pixel a slice, and rounding
    grows tenfold a step; at 64 px it does not.
    """
    ended = Fork(train_on_one_and_two, cases[0].volume.parent, tmp_path).end(500)
    assert ended.status == 0, ended.errors[-2000:]
    trained, statistics = (float(part) for part in ended.output.split("difference")[1:])
    assert trained < 1e-4
    assert statistics < 1e-3  # moving variances: sums of squares in another order
