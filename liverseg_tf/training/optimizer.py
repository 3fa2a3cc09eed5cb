"""AdamW with one-cycle rates and momentum, and a separate rate for each part of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from liverseg_tf.models.unet import is_encoder

# fastai's `fit_one_cycle` ends at a hundred-thousandth of the highest rate.
_END_FACTOR = 1e-5


def one_cycle(step: tf.Tensor, steps: int, warmup: float, start: float, top: float, end: float) -> tf.Tensor:
    """Cosine from `start` to `top` over the first `warmup` share of `steps`, then cosine to `end`.

    Smith, "Super-convergence" (2018, arXiv 1708.07120), with fastai's cosine annealing.

    Args:
        step: scalar tensor, 0 to steps - 1.
    """
    position = tf.cast(step, tf.float32) / max(1, steps - 1)
    rise = tf.clip_by_value(position / max(warmup, 1e-6), 0.0, 1.0)
    fall = tf.clip_by_value((position - warmup) / max(1 - warmup, 1e-6), 0.0, 1.0)

    def cosine(first, last, share):
        return first + (last - first) * (1 - tf.cos(math.pi * share)) / 2

    return tf.where(position < warmup, cosine(start, top, rise), cosine(top, end, fall))


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """`one_cycle` as a Keras learning-rate schedule."""

    def __init__(self, steps: int, top: float, warmup: float, start_factor: float):
        self.steps, self.top, self.warmup, self.start_factor = steps, top, warmup, start_factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return one_cycle(
            step, self.steps, self.warmup, self.top * self.start_factor, self.top, self.top * _END_FACTOR
        )  # fmt: skip

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps, "top": self.top, "warmup": self.warmup, "start_factor": self.start_factor}


class _Step(NamedTuple):
    """What all variables share in a step; `rates` has each factor's rate and the share of a weight that decays."""

    beta_1: tf.Tensor
    beta_2: tf.Tensor
    beta_1_power: tf.Tensor
    beta_2_power: tf.Tensor
    epsilon: tf.Tensor
    rates: dict[float, tuple[tf.Tensor, tf.Tensor]]


@keras.saving.register_keras_serializable("liverseg_tf")
class GroupedAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) with a rate factor for each variable.

    Adam normalises gradients, so scaling them would have no effect: the factor scales the step.
    Under a `tf.distribute` strategy the gradients are expected to be summed over the replicas already.

    Args:
        factors: rate factor of each trainable variable, in the order in which they are optimised.
        decayed: whether weight decay applies to each.
        decay: decoupled weight decay: each step subtracts decay * rate * weight.
        momentum: (highest, lowest) beta_1; it falls while the rate of a `OneCycle` schedule rises.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        factors: Sequence[float] = (),
        decayed: Sequence[bool] = (),
        decay: float = 0.01,
        momentum: tuple[float, float] = (0.95, 0.85),
        **kwargs,
    ):
        super().__init__(learning_rate, beta_1=momentum[0], **kwargs)
        self._cycled_momentum = tuple(momentum)
        self.factors, self.decayed, self.decay = tuple(factors), tuple(decayed), decay
        self._step: _Step | None = None

    @property
    def beta_1(self):
        schedule = self._learning_rate
        if not isinstance(schedule, OneCycle):
            return self._cycled_momentum[0]
        high, low = self._cycled_momentum
        return one_cycle(self.iterations, schedule.steps, schedule.warmup, high, low, high)

    @beta_1.setter
    def beta_1(self, value):
        pass  # set by Adam's constructor; the schedule overrides it

    def update_step(self, gradient, variable, learning_rate):
        """One operation a variable: Keras's own forty take a third of the time in which a step is traced."""
        index, step = self._get_variable_index(variable), self._step
        rate, decay = step.rates[self.factors[index]]
        if self.decayed[index] and self.decay:
            variable.assign_sub(variable * decay)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=step.beta_1_power,
            beta2_power=step.beta_2_power,
            lr=rate,
            beta1=step.beta_1,
            beta2=step.beta_2,
            epsilon=step.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        count = tf.cast(self.iterations + 1, tf.float32)
        beta_1, beta_2, epsilon = (tf.cast(value, tf.float32) for value in (self.beta_1, self.beta_2, self.epsilon))
        rates = {factor: learning_rate * factor for factor in self.factors}
        self._step = _Step(
            beta_1,
            beta_2,
            tf.pow(beta_1, count),
            tf.pow(beta_2, count),
            epsilon,
            {factor: (rate, rate * self.decay) for factor, rate in rates.items()},
        )
        try:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        finally:
            self._step = None

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars  # summing again would send them over the network twice

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self._cycled_momentum[0],
            "factors": self.factors,
            "decayed": self.decayed,
            "decay": self.decay,
            "momentum": self._cycled_momentum,
        }


def rate_factors(model: keras.Model, encoder_factors: tuple[float, float]) -> dict[str, float]:
    """Rate factor of each trainable variable, by its path.

    The encoder has two parts, as in fastai's ResNet: up to stride 8 (two stages), and from stride 16 on.

    Args:
        model: of `build_unet`.
        encoder_factors: of the encoder's first and second half, relative to the decoder's.
    """
    factors = {}
    for layer in model.layers:
        factor = 1.0
        if is_encoder(layer):
            late = model.input_shape[1] >= 16 * layer.output.shape[1]
            factor = encoder_factors[1 if late else 0]
        factors.update({v.path: factor for v in layer.trainable_variables})
    return factors


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay acts on a variable: kernels only, not BatchNorm's parameters nor biases."""
    return variable.path.rsplit("/", 1)[-1] not in ("gamma", "beta", "bias")
