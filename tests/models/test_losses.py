import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.errors import ConfigError
from liverseg_tf.models.losses import build_loss

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (2, 8, 8)).astype(np.uint8)
LOGITS = RNG.normal(0, 2, (2, 8, 8, 3)).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_cross_entropy(labels, logits, weights=(1, 1, 1)):
    p = np.take_along_axis(softmax(logits), labels[..., None].astype(int), -1)[..., 0]
    w = np.array(weights)[labels]
    return -(w * np.log(p)).sum() / w.sum()


def numpy_dice(labels, logits):
    p, t = softmax(logits), np.eye(3)[labels]
    values = [1 - (2 * (p[..., c] * t[..., c]).sum() + 1) / (p[..., c].sum() + t[..., c].sum() + 1) for c in (1, 2)]
    return np.mean(values)


def test_cross_entropy_dice_and_their_sum():
    ce, dice = numpy_cross_entropy(LABELS, LOGITS), numpy_dice(LABELS, LOGITS)
    np.testing.assert_allclose(build_loss("cross_entropy")(LABELS, LOGITS), ce, rtol=1e-5)
    np.testing.assert_allclose(build_loss("dice")(LABELS, LOGITS), dice, rtol=1e-5)
    np.testing.assert_allclose(build_loss("cross_entropy + 0.5*dice")(LABELS, LOGITS), ce + 0.5 * dice, rtol=1e-5)


def test_class_weights():
    loss = build_loss("cross_entropy", class_weights=(1, 2, 5))
    np.testing.assert_allclose(loss(LABELS, LOGITS), numpy_cross_entropy(LABELS, LOGITS, (1, 2, 5)), rtol=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "tversky", "cross_entropy+dice"])
def test_every_loss_is_low_when_right_and_high_when_wrong(name):
    loss = build_loss(name)
    right = tf.one_hot(LABELS, 3) * 20.0
    wrong = tf.one_hot((LABELS + 1) % 3, 3) * 20.0
    assert float(loss(LABELS, right)) < 0.01
    assert float(loss(LABELS, wrong)) > 0.3


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "tversky"])
def test_pixels_to_ignore_change_nothing(name):
    loss = build_loss(name, ignore_label=255)
    labels = LABELS.copy()
    labels[:, :3] = 255
    other = LOGITS.copy()
    other[:, :3] = RNG.normal(0, 9, other[:, :3].shape)
    np.testing.assert_allclose(loss(labels, LOGITS), loss(labels, other), rtol=1e-5)
    assert np.isfinite(loss(np.full_like(labels, 255), LOGITS))


def test_dice_costs_nothing_on_slices_without_the_class():
    empty = np.zeros((1, 8, 8), np.uint8)
    assert float(build_loss("dice")(empty, tf.one_hot(empty, 3) * 30.0)) < 1e-5
    assert float(build_loss("dice")(empty, tf.one_hot(empty + 2, 3) * 30.0)) > 0.4


@pytest.mark.parametrize("bad", ["entropy", "cross_entropy+", "x*dice"])
def test_unknown_losses(bad):
    with pytest.raises(ConfigError, match="loss"):
        build_loss(bad)
    with pytest.raises(ConfigError, match="class weights"):
        build_loss("dice", class_weights=(1, 2))


def test_tversky_weighs_what_is_missed_more_than_what_is_too_much():
    p, t = softmax(LOGITS), np.eye(3)[LABELS]
    shared, extra, missed = ((a * b).sum((0, 1, 2))[1:] for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
    expected = 1 - shared / (shared + 0.3 * extra + 0.7 * missed)
    np.testing.assert_allclose(build_loss("tversky")(LABELS, LOGITS), expected.mean(), rtol=1e-5)
