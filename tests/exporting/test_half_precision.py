"""SavedModels stored in half precision, and Keras models rebuilt from SavedModels."""

import numpy as np
import pytest

from liverseg_tf.errors import ModelError
from liverseg_tf.exporting.export import export
from liverseg_tf.inference.runtimes import KerasRuntime, open_runtime
from liverseg_tf.models.saving import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hu():
    return np.random.default_rng(0).normal(0, 200, (2, 40, 36)).astype(np.float32)


def test_half_the_size_and_nearly_the_same_probabilities(small_model, hu, tmp_path):
    sizes = {}
    for precision in ("float32", "float16"):
        exported = export(small_model, tmp_path / precision, "savedmodel", precision)
        sizes[precision] = exported.megabytes
        found = open_runtime(exported.path).probabilities(hu)
        np.testing.assert_allclose(found, KerasRuntime(small_model).probabilities(hu), atol=0.02)
        again = load_model(tmp_path / precision)  # the folder of all versions
        assert again.liverseg_config == small_model.liverseg_config
        np.testing.assert_allclose(KerasRuntime(again).probabilities(hu), found, atol=1e-5)
    assert sizes["float16"] < 0.55 * sizes["float32"]


def test_a_changed_savedmodel_gives_no_keras_model(small_model, tmp_path):
    folder = export(small_model, tmp_path / "m", "savedmodel", "float16").path
    variables = next((folder / "variables").glob("*.data*"))
    variables.write_bytes(variables.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is not the file that was exported"):
        load_model(folder)
