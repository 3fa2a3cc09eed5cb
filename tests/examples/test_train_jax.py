"""The GPU path takes the same steps as the TensorFlow path, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.slow

pytest.importorskip("jax")
FOLDER = Path(__file__).resolve().parents[2] / "examples" / "shipped_model"
RECIPE = {"size": 32, "batch": 4, "steps": 4, "rate": 1e-3, "shares": [2, 1, 1], "warmup": 2, "missed": 0.6}


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)  # before a BatchNorm a bias only drifts
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))


def in_jax(code: str, *arguments) -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(FOLDER)}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    model, rng = network(), np.random.default_rng(0)
    labels = np.zeros((2, 8, 64, 64), np.uint8)
    labels[:, :6, 16:48, 16:48], labels[:, :3, 24:36, 24:36], labels[:, 5, 40:48, 40:48] = 1, 2, 254
    path = tmp_path_factory.mktemp("packed") / "gpu.npz"
    np.savez(
        path,
        network=model.to_json(),
        recipe=json.dumps(RECIPE),
        windows=np.array([(4, 100), (4, 160), (4, 250)], np.float32),
        hu=rng.integers(0, 200, labels.shape).astype(np.uint8),
        labels=labels,
        group=np.array([0, 0, 0, 1, 1, 1, 2, 2]),
        **{f"weight_{i}": w.astype(np.float16) for i, w in enumerate(model.get_weights())},
    )
    return path


def test_steps_are_those_of_the_tensorflow_path_and_go_on_after_a_stop(packed, tmp_path, monkeypatch):
    code = """
import sys, jax, numpy as np, train_jax
from pathlib import Path
trainer = train_jax.JaxTrainer(np.load(sys.argv[1]), None)
batches = [trainer.batch(jax.random.key(k)) for k in range(3)]
losses = [trainer.train_step(x, y) for x, y in batches]
trainer.save(Path(sys.argv[2]))
np.savez(sys.argv[2] + "/seen.npz", x=[x for x, _ in batches], y=[y for _, y in batches], loss=losses)
stopped = Path(sys.argv[2], "stopped")
stopped.mkdir()
trainer = train_jax.JaxTrainer(np.load(sys.argv[1]), None)
trainer.train_step(*batches[0])
trainer.save(stopped)
trainer = train_jax.JaxTrainer(np.load(sys.argv[1]), None)
trainer.resume(stopped)
for batch in batches[1:]:
    trainer.train_step(*batch)
trainer.save(stopped)
"""
    in_jax(code, packed, tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("train.build_model", lambda config, **_: network())
    from train import Recipe, Trainer

    trainer = Trainer(Recipe("resnet18", **{k: v for k, v in RECIPE.items() if k != "shares"}), tmp_path / "run")
    trainer.model.set_weights([w.astype(np.float16).astype(np.float32) for w in trainer.model.get_weights()])
    with np.load(tmp_path / "seen.npz") as seen:
        assert seen["x"].shape == (3, 4, 32, 32, 3) and 0 <= seen["x"].min() < seen["x"].max() <= 1
        assert set(np.unique(seen["y"])) <= {0, 1, 2, 254} and 2 in seen["y"]
        for step in range(3):
            trainer.optimizer.learning_rate.assign(trainer.learning_rate(step))
            loss = float(trainer.train_step(tf.constant(seen["x"][step]), tf.constant(seen["y"][step])))
            assert loss == pytest.approx(float(seen["loss"][step]), abs=1e-4)
    with np.load(tmp_path / "state.npz") as state, np.load(tmp_path / "stopped" / "state.npz") as stopped:
        for name in state.files:
            np.testing.assert_allclose(state[name], stopped[name], atol=1e-6)
        for index, variable in enumerate(trainer.model.trainable_variables):
            np.testing.assert_allclose(state[f"0_{index}"], variable.numpy(), atol=2e-4)
