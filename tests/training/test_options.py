"""What a training can't be asked for, and files that are in its way: nothing is begun."""

import pytest

import liverseg_tf as ls
from liverseg_tf.errors import ConfigError, OutputError
from tests.training.runs import RECIPE, options


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "nonsense"}, "unknown recipe 'nonsense': expected one of report, default"),
        ({"split": "voxels"}, "split: expected 'patients' or 'slices'"),
        ({"epochs": 0}, "at least one epoch"),
        ({"image_size": 100}, "multiple of 32"),
        ({"steps_per_epoch": -1}, "at least 1"),
        ({"folds": 2, "split": "slices"}, "folds choose"),
        ({"backbone": "nonsense"}, "backbone: expected one of resnet18.* Received: 'nonsense'"),
        ({"from_model": "shipped", "backbone": "resnet18"}, "brings its encoder: .* Received: resnet18"),
        ({"from_model": "shipped", "encoder_weights": "imagenet"}, "brings its encoder: .* Received: imagenet"),
        ({"precision": "half"}, "precision: expected one of float32"),
        ({"precision": "bfloat16", "xla": True}, "XLA can't compile bfloat16"),
    ],
)
def test_options_that_cant_be_met(cases, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        ls.train(cases, tmp_path / "r", **{"recipe": RECIPE, **changes})
    assert not (tmp_path / "r").exists()


def test_a_folder_with_files_is_not_touched(cases, tmp_path):
    (tmp_path / "thesis.docx").write_text("important")
    with pytest.raises(OutputError, match="expected no folder or an empty one"):
        ls.train(cases, tmp_path, RECIPE, **options())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]
