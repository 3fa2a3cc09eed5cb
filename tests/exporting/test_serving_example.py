"""The example's model configuration, read as TensorFlow Serving reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from liverseg_tf.inference.serving_client import DEFAULT_MODEL, SLICES_A_REQUEST

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "serving"


def test_model_configuration_parses():
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2").ModelServerConfig()
    text_format.Parse((FOLDER / "models.config").read_text(), config)
    (model,) = config.model_config_list.config
    assert model.name == DEFAULT_MODEL
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_batches_are_the_clients():
    text = (FOLDER / "batching.config").read_text()
    assert f"max_batch_size {{ value: {SLICES_A_REQUEST} }}" in text
    assert "pad_variable_length_inputs: false" in text
