"""Train what pack.py packed, on a GPU (or a CPU) with JAX; needs keras, jax and numpy alone.

    KERAS_BACKEND=jax python train_jax.py gpu.npz -o RUN [--minutes 9] [--steps N]

Run again to go on. RUN/average.npz holds the moving average of the weights, for `pack.py unpack`. The recipe, its
steps, rate and shares come with the file; slices are turned, scaled, bent, moved, made denser, blurred and noisy here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from loss import loss_of  # noqa: E402


def augment(hu, labels, key):
    """Vary one slice: (H, W) float32 HU and uint8 labels. The amounts are those of train.py's AUGMENTATION."""
    side, keys = hu.shape[0], jax.random.split(key, 8)

    def draw(index, low, high, shape=()):
        return jax.random.uniform(keys[index], shape, minval=low, maxval=high)

    turn, grow, apart, up, across = draw(0, -1.0, 1.0, (5,))
    angle, scale = turn * np.pi / 12.0, jnp.exp(0.28 * grow - 0.01)
    stretch = jnp.sqrt(1.0 + 0.06 * apart)
    bend = jax.image.resize(draw(1, -1.0, 1.0, (2, 6, 6)), (2, side, side), "linear") * 0.015 * side
    y, x = jnp.meshgrid(jnp.arange(side) - (side - 1) / 2, jnp.arange(side) - (side - 1) / 2, indexing="ij")
    y, x = y - 0.08 * side * up, x - 0.08 * side * across
    rows = (jnp.cos(angle) * y + jnp.sin(angle) * x) / (scale * stretch) + (side - 1) / 2 + bend[0]
    columns = (jnp.cos(angle) * x - jnp.sin(angle) * y) * stretch / scale + (side - 1) / 2 + bend[1]
    hu = jax.scipy.ndimage.map_coordinates(hu, [rows, columns], order=1, cval=0.0)
    labels = jax.scipy.ndimage.map_coordinates(labels, [rows, columns], order=0, cval=0)

    contrast, gain, shift = draw(2, -1.0, 1.0, (3,)) * jnp.array([0.25, 0.06, 12.0])
    hu = hu + contrast * jax.nn.relu(hu - 40.0)
    hu = (1.0 + gain) * hu + shift
    sigma = draw(3, 0.05, 1.2)
    taps = jax.nn.softmax(-0.5 * (jnp.arange(-3, 4) / sigma) ** 2)
    blurred = sum(tap * jnp.roll(hu, i - 3, 0) for i, tap in enumerate(taps))
    blurred = sum(tap * jnp.roll(blurred, i - 3, 1) for i, tap in enumerate(taps))
    hu = jnp.where(draw(4, 0.0, 1.0) < 0.6, blurred, hu)
    return hu + draw(5, 0.0, 6.0) * jax.random.normal(keys[6], hu.shape), labels


def shrink(channels, labels, size: int):
    """Mean pooling of (B, H, W, C) channels, and of labels the code in the middle of each cell."""
    factor = labels.shape[1] // size
    if factor == 1:
        return channels, labels
    batch, _, _, count = channels.shape
    channels = channels.reshape(batch, size, factor, size, factor, count).mean((2, 4))
    return channels, labels[:, factor // 2 :: factor, factor // 2 :: factor]


class JaxTrainer:
    """Weights, optimiser, their moving average, and a jitted step of batch, augmentation, loss and update."""

    def __init__(self, file, steps: int | None):
        self.recipe = recipe = json.loads(str(file["recipe"]))
        self.steps = steps or recipe["steps"]
        self.model = keras.models.model_from_json(str(file["network"]))
        self.model.set_weights([file[f"weight_{i}"].astype(np.float32) for i in range(len(self.model.weights))])
        self.optimizer = keras.optimizers.AdamW(recipe["rate"], weight_decay=0.02, global_clipnorm=5.0)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.optimizer.build(self.model.trainable_variables)
        model = self.model
        values = [
            [jnp.asarray(v.value) for v in group]
            for group in (model.trainable_variables, model.non_trainable_variables, self.optimizer.variables)
        ]
        self.state = (*values, [jnp.copy(v) for v in values[0] + values[1]])
        self.step = 0
        self.data = [jnp.asarray(file[key]) for key in ("hu", "labels", "windows")]
        shares = recipe["shares"] or (1,)
        groups = [
            np.flatnonzero(file["group"] == g) if recipe["shares"] else np.arange(len(file["group"]))
            for g in range(len(shares))
        ]
        self.groups = [
            (jnp.asarray(g), recipe["batch"] * s // sum(shares)) for g, s in zip(groups, shares, strict=True)
        ]

    def batch(self, key):
        """Draw slices in the recipe's shares, plain or drawn copies; (B, S, S, C) channels and (B, S, S) labels."""
        hu, labels, windows = self.data
        keys = jax.random.split(key, len(self.groups) + 2)
        index = [jax.random.choice(k, g, (n,)) for k, (g, n) in zip(keys[2:], self.groups, strict=True)]
        index = jnp.concatenate(index)
        copy = jax.random.randint(keys[0], index.shape, 0, hu.shape[0])
        x, y = hu[copy, index].astype(jnp.float32), labels[copy, index]
        x, y = jax.vmap(augment)(x, y, jax.random.split(keys[1], len(index)))
        x = jnp.clip((x[..., None] - windows[:, 0]) / windows[:, 1], 0.0, 1.0)
        return shrink(x, y, self.recipe["size"])

    @partial(jax.jit, static_argnums=0)
    def update(self, state, x, y, rate, decay):
        """One step on one batch; returns the new state and the loss."""
        trained, fixed, moments, average = state

        def loss(trained):
            logits, new = self.model.stateless_call(trained, fixed, x, training=True)
            return loss_of(logits, y, self.recipe["missed"]), new

        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        where = [v.path for v in self.optimizer.variables].index(self.optimizer._learning_rate.path)
        moments = [rate if i == where else m for i, m in enumerate(moments)]
        trained, moments = self.optimizer.stateless_apply(moments, gradients, trained)
        average = [
            decay * a + (1.0 - decay) * w if jnp.issubdtype(w.dtype, jnp.floating) else w
            for a, w in zip(average, [*trained, *fixed], strict=True)
        ]
        return (trained, fixed, moments, average), value

    def rate(self) -> float:
        """Warm-up and cosine, as train.py's."""
        recipe, warmup = self.recipe, self.recipe["warmup"]
        if self.step < warmup:
            return recipe["rate"] * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(self.steps - warmup, 1)
        return recipe["rate"] * max(0.5 * (1.0 + np.cos(np.pi * progress)), 0.005)

    def train_step(self, x, y) -> float:
        decay = min(0.996, 1.0 - 5.0 / (self.step + 6.0))
        self.state, loss = self.update(self.state, x, y, jnp.float32(self.rate()), jnp.float32(decay))
        self.step += 1
        return loss

    def save(self, folder: Path) -> None:
        """Write the state to go on from and the average, each whole or not at all."""
        flat = {f"{i}_{j}": v for i, part in enumerate(self.state) for j, v in enumerate(part)}
        by_path = {v.path: i for i, v in enumerate(self.model.trainable_variables + self.model.non_trainable_variables)}
        average = {f"weight_{i}": self.state[3][by_path[v.path]] for i, v in enumerate(self.model.weights)}
        for name, content in (("state.npz", flat | {"step": self.step}), ("average.npz", average)):
            with (folder / "part.npz").open("wb") as file:
                np.savez(file, **{key: np.asarray(value) for key, value in content.items()})
            (folder / "part.npz").replace(folder / name)

    def resume(self, folder: Path) -> None:
        if not (folder / "state.npz").exists():
            return
        with np.load(folder / "state.npz") as file:
            self.step = int(file["step"])
            self.state = tuple(
                [jnp.asarray(file[f"{i}_{j}"]) for j in range(len(part))] for i, part in enumerate(self.state)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", help="the file that pack.py wrote")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop and save after this time")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.time()
    options.output.mkdir(parents=True, exist_ok=True)
    with np.load(options.packed) as file:
        trainer = JaxTrainer(file, options.steps)
    trainer.resume(options.output)
    batch = jax.jit(trainer.batch)
    key, losses, saved = jax.random.key(options.seed), [], time.time()
    while trainer.step < trainer.steps and time.time() - started < 60.0 * options.minutes:
        losses.append(trainer.train_step(*batch(jax.random.fold_in(key, trainer.step))))
        if trainer.step % 50 == 0:
            print(
                f"{trainer.step}/{trainer.steps} loss {np.mean(losses):.4f}, {time.time() - started:.0f} s", flush=True
            )
            losses = []
        if time.time() - saved > 60.0:
            trainer.save(options.output)
            saved = time.time()
    trainer.save(options.output)
    print(f"{trainer.step}/{trainer.steps} steps, {options.output / 'average.npz'}")


if __name__ == "__main__":
    main()
