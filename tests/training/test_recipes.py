"""The recipes."""

from liverseg_tf.training.recipes import RECIPES


def test_recipe_report_is_the_originals():
    report = RECIPES["report"]
    assert (report.image_size, report.batch_size, report.frozen_epochs, report.epochs) == (128, 16, 1, 5)
    assert (report.every_volume, report.every_slice, report.order, report.clip_hu) == (3, 2, "name", False)
    assert (report.loss, report.weight_decay, report.encoder_weights) == ("cross_entropy", 0.1, "imagenet")


def test_the_kept_epoch_is_the_best_by_global_dice():
    """By the mean over cases a network that finds no tumour can be the best."""
    assert RECIPES["default"].best_by == "val_dice"
    assert RECIPES["report"].best_by == "val_loss"  # as the original
