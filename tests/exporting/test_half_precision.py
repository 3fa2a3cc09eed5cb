"""SavedModels stored in half precision, and Keras models rebuilt from SavedModels."""

import keras
import numpy as np
import pytest

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ModelError
from liverseg_tf.exporting.export import export
from liverseg_tf.inference.runtimes import KerasRuntime, open_runtime
from liverseg_tf.models import tiny
from liverseg_tf.models.model import Model
from liverseg_tf.models.saving import build_model, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hu():
    return np.random.default_rng(0).normal(0, 200, (2, 40, 36)).astype(np.float32)


@pytest.fixture
def model(monkeypatch):
    """Of which the weights are most, not the graph: few wide layers."""
    monkeypatch.setattr(tiny, "_FILTERS", (16, 32, 128, 512, 512))
    keras.utils.set_random_seed(3)
    return build_model(ModelConfig(image_size=32, backbone="tiny"))


def test_half_the_size_and_nearly_the_same_probabilities(model, hu, tmp_path):
    sizes, expected = {}, KerasRuntime(model).probabilities(hu)
    for precision in ("float32", "float16"):
        exported = export(model, tmp_path / precision, "savedmodel", precision)
        sizes[precision] = exported.megabytes
        found = open_runtime(exported.path).probabilities(hu)
        np.testing.assert_allclose(found, expected, atol=0.02)
        again = load_model(tmp_path / precision)  # the folder of all versions
        assert Model.of(again).config == Model.of(model).config
        np.testing.assert_allclose(KerasRuntime(again).probabilities(hu), found, atol=1e-5)
    assert sizes["float16"] < 0.55 * sizes["float32"]


def test_a_changed_savedmodel_gives_no_keras_model(small_model, tmp_path):
    folder = export(small_model, tmp_path / "m", "savedmodel", "float16").path
    variables = next((folder / "variables").glob("*.data*"))
    variables.write_bytes(variables.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is not the file that was exported"):
        load_model(folder)
