"""The example's model configuration, read as TensorFlow Serving reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format

from liverseg_tf.inference.serving_client import SERVED_NAME, SLICES_A_REQUEST

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "serving"


def parsed(text):
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2").ModelServerConfig()
    text_format.Parse(text, config)
    (model,) = config.model_config_list.config
    return model


def test_the_server_starts_after_the_one_export_that_is_listed():
    """A version that is asked for and missing keeps the server from starting."""
    model = parsed((FOLDER / "models.config").read_text())
    assert model.name == SERVED_NAME
    listed = re.findall(r"^liverseg export run/ -o models/(\S+)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert model.base_path == f"/models/{listed[0]}"
    assert list(model.model_version_policy.specific.versions) == list(range(1, len(listed) + 1))
    assert dict(model.version_labels) == {"stable": 1}
    compose = (FOLDER / "compose.yaml").read_text()
    assert f"/v1/models/{model.name}/labels/stable " in compose


def test_the_second_version_that_the_readme_adds_parses():
    text = (FOLDER / "models.config").read_text()
    versions, label = re.findall(r"`(versions: 2|version_labels \{[^`]*\})`", (FOLDER / "README.md").read_text())
    text = text.replace("versions: 1", f"versions: 1 {versions}").replace(
        "version_labels", f"{label} version_labels", 1
    )
    model = parsed(text)
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


def test_batches_are_the_clients():
    text = (FOLDER / "batching.config").read_text()
    assert f"max_batch_size {{ value: {SLICES_A_REQUEST} }}" in text
    assert "pad_variable_length_inputs: false" in text
