"""TFLite files: operators, precision, and that their masks are Keras's."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.channels import SquareResize
from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.exporting.tflite import EXPORT_PRECISIONS, check_builtin_only, convert, operators
from liverseg_tf.inference.runtimes import TFLiteRuntime
from liverseg_tf.inference.slice_function import SliceFunction

pytestmark = pytest.mark.slow


def test_only_builtin_operators(tflite_files, small_model):
    convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in small_model.layers)
    for path in tflite_files.values():
        content = path.read_bytes()
        check_builtin_only(content)
        assert operators(content)["CONV_2D"] == convolutions


def test_other_operators_are_named():
    function = tf.function(tf.linalg.inv, [tf.TensorSpec((4, 4), tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    with pytest.raises(ModelError, match="FlexMatrixInverse"):
        check_builtin_only(converter.convert())


@pytest.mark.parametrize(
    "precision, least_agreement, most_difference",
    [("float32", 0.9999, 1e-4), ("float16", 0.995, 0.02), ("int8", 0.8, 0.3)],
)
@pytest.mark.parametrize("shape", [(1, 512, 512), (2, 476, 290)])
def test_masks_are_those_of_keras(
    tflite_files, keras_runtime, body_hu, shape, precision, least_agreement, most_difference
):
    hu, runtime = body_hu(shape), TFLiteRuntime(tflite_files[precision])
    labels, expected = runtime.labels(hu), keras_runtime.labels(hu)
    assert labels.dtype == np.uint8
    assert len(np.unique(expected)) > 1  # else any file would pass
    assert (labels == expected).mean() >= least_agreement
    probabilities = runtime.probabilities(hu)
    assert np.abs(probabilities - keras_runtime.probabilities(hu)).max() <= most_difference
    assert np.array_equal(probabilities.argmax(-1), labels)


def test_signature_is_the_documented_one(tflite_files):
    interpreter = tf.lite.Interpreter(str(tflite_files["int8"]))
    runner = interpreter.get_signature_runner("serving_default")
    hu, labels = runner.get_input_details()["hu"], runner.get_output_details()["labels"]
    assert (tuple(hu["shape"]), hu["dtype"]) == ((1, 512, 512), np.float32)
    assert (tuple(labels["shape"]), labels["dtype"]) == ((1, 512, 512), np.uint8)


def test_int8_is_the_network_alone(tflite_files):
    details = tf.lite.Interpreter(str(tflite_files["int8"])).get_tensor_details()
    types = {d["name"]: d["dtype"] for d in details}
    assert {types[name] for name in ("hu", "channels", "logits", "probabilities")} == {np.float32}
    network = [d for d in details if d["shape"].size == 4 and d["shape"][0] == 3 and d["shape"][1] == 3]
    assert network
    assert {d["dtype"] for d in network} == {np.int8}  # convolution kernels
    assert all(len(d["quantization_parameters"]["scales"]) == d["shape"][0] for d in network)  # per channel


def test_float16_and_int8_are_smaller_and_weights_stand_in_the_file_once(small_config):
    """Of a network that is all weights: two wide convolutions."""
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for filters in (256, 1024):
        x = keras.layers.Conv2D(filters, 3, 8 if filters == 256 else 2, "same")(x)
    model = keras.Model(inputs, keras.layers.UpSampling2D(16)(keras.layers.Conv2D(3, 1)(x)))
    slices = list(np.random.default_rng(0).random((2, 32, 32, 3), np.float32))
    size = {p: len(convert(model, small_config, p, slices if p == "int8" else None)) for p in EXPORT_PRECISIONS}
    assert size["float32"] < 1.03 * model.count_params() * 4 + 200_000
    assert size["float16"] < 0.55 * size["float32"]
    assert size["int8"] < 0.3 * size["float32"]


def test_json_lies_beside_it(tflite_files, small_config):
    content = json.loads(tflite_files["float16"].with_suffix(".json").read_text())
    assert content["config"]["image_size"] == small_config.image_size
    assert content["card"]["precision"] == "float16"
    assert list(content["sha256"]) == [tflite_files["float16"].name]


def test_runs_without_litert_on_tensorflows_own_interpreter(tflite_files, body_hu, monkeypatch):
    hu = body_hu((1, 64, 40))
    expected = TFLiteRuntime(tflite_files["float32"]).labels(hu)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert (TFLiteRuntime(tflite_files["float32"]).labels(hu) == expected).mean() > 0.999


@pytest.mark.parametrize("size", [96, 160, 192, 224, 320, 384, 480])
def test_every_network_size_has_its_resize_in_tflite(size):
    layer = SquareResize(size)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(layer, [tf.TensorSpec((1, 512, 512, 2), tf.float32)]).get_concrete_function()]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    image = np.random.default_rng(size).random((1, 512, 512, 2)).astype(np.float32)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, layer(image), atol=1e-6)


def test_a_network_whose_size_does_not_divide_512(body_hu):
    """The whole way but the network's weights."""
    config = ModelConfig(image_size=96, class_names=("background", "liver", "tumour", "vessel"))

    def network(channels, training=False):
        return 9 * tf.concat([channels, 1 - tf.reduce_max(channels, -1, keepdims=True)], -1)

    content = convert(network, config)
    check_builtin_only(content)
    hu = body_hu((1, 512, 512))
    found = tf.lite.Interpreter(model_content=content).get_signature_runner("serving_default")(hu=hu)
    expected = tf.function(SliceFunction(network, config).probabilities, [tf.TensorSpec((None, None, None))])(hu)
    assert np.abs(found["probabilities"] - expected).max() < 1e-4
    assert (found["labels"] == np.argmax(expected, -1)).mean() > 0.9999
    assert len(np.unique(found["labels"])) > 1


def test_bad_options_are_named(small_model, small_config):
    with pytest.raises(ConfigError, match="int4"):
        convert(small_model, small_config, "int4")
    with pytest.raises(ConfigError, match="calibrate"):
        convert(small_model, small_config, "int8")
