"""A training that failed blocks nothing."""

import pytest
import tensorflow as tf

import liverseg_tf as ls
import liverseg_tf.training.train as module
from liverseg_tf.errors import ModelError, OutputError, TrainingError
from tests.training.runs import RECIPE, options

pytestmark = pytest.mark.slow


def test_a_start_that_failed_blocks_nothing(cases, tmp_path, monkeypatch):
    """Each time the advice is taken: other weights, then a smaller batch, then once more without --resume."""
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(module, "build_model", lambda *_: (_ for _ in ()).throw(ModelError("no network")))
        with pytest.raises(ModelError, match="no network"):
            ls.train(cases, output, RECIPE, **options())
    assert not output.exists()

    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "memory")

    monkeypatch.setattr(module.Trainer, "start_phase", fail)
    for batch_size, resume in ((4, False), (2, False), (1, True), (2, False)):
        with pytest.raises(TrainingError, match=f"out of memory at batch size {batch_size}"):
            ls.train(cases, output, RECIPE, batch_size=batch_size, resume=resume, **options())
        assert {p.name for p in output.glob("[!.]*")} == {"run.json"}
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="got one with files; continue it"):
        ls.train(cases, output, RECIPE, **options())
