"""The training's loss, on any Keras backend."""

from __future__ import annotations

from keras import ops

OPEN = 254  # as prepare.py's: liver or tumour


def loss_of(logits, labels, missed: float):
    """Cross entropy, soft Dice of liver with tumour, soft Tversky of tumour; open pixels may be either.

    Args:
        logits: (B, H, W, 3) float32.
        labels: (B, H, W) integer: 0, 1, 2, OPEN.
        missed: weight of missed tumour in the Tversky term, in [0, 1]; false tumour has the rest.
    """
    log_p = ops.log_softmax(logits)
    p = ops.exp(log_p)
    is_open = ops.cast(ops.equal(labels, OPEN), "float32")
    # all 0 where open
    truth = ops.stack([ops.cast(ops.equal(labels, code), "float32") for code in range(3)], -1)
    foreground = ops.logsumexp(log_p[..., 1:], -1)
    entropy = -ops.mean(ops.sum(truth * log_p, -1) + is_open * foreground)
    organ, organ_truth = p[..., 1] + p[..., 2], truth[..., 1] + truth[..., 2] + is_open
    dice = (2.0 * ops.sum(organ * organ_truth) + 50.0) / (ops.sum(organ) + ops.sum(organ_truth) + 50.0)
    tumour, tumour_truth = p[..., 2] * (1.0 - is_open), truth[..., 2]
    both = ops.sum(tumour * tumour_truth)
    false, lost = ops.sum(tumour) - both, ops.sum(tumour_truth) - both
    tversky = (both + 25.0) / (both + (1.0 - missed) * false + missed * lost + 25.0)
    return entropy + 0.5 * (1.0 - dice) + 0.5 * (1.0 - tversky)
