import keras
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.models.unet import BATCH_NORM_MOMENTUM, build_unet, is_encoder
from liverseg_tf.training.recipes import get_recipe


def test_float32_logits_and_momentum_for_short_runs(small_model):
    assert small_model.output_shape == (None, 32, 32, 3)
    norms = [layer for layer in small_model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert {layer.momentum for layer in norms} == {BATCH_NORM_MOMENTUM}
    logits = small_model(np.random.default_rng(0).random((2, 32, 32, 3), np.float32)).numpy()
    assert logits.dtype == np.float32
    assert not np.allclose(logits.sum(-1), 1)


def test_batch_normalization_is_one_operation(small_model):
    training = tf.function(lambda x: small_model(x, training=True), [tf.TensorSpec((2, 32, 32, 3))])
    kinds = [operation.type for operation in training.get_concrete_function().graph.get_operations()]
    norms = [layer for layer in small_model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert kinds.count("FusedBatchNormV3") == len(norms)


def test_mixed_precision_computes_in_float16_and_gives_float32():
    model = build_unet(32, "resnet18", precision="mixed_float16")
    assert "float16" in {layer.compute_dtype for layer in model.layers}
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_all_of_the_recipes_own_network_learns():
    """Trainings in other tests are of `tiny`."""
    model = build_unet(32, get_recipe("default").backbone)
    assert any("stage4_unit3_conv2" in variable.path for variable in model.trainable_variables)  # ResNet34
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(model(np.random.default_rng(0).random((2, 32, 32, 3), np.float32), training=True) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), variable.path


@pytest.mark.parametrize(
    ("backbone", "encoder"),
    [("resnet18", {"conv0", "relu1", "stage4_unit2_conv2"}), ("tiny", {"conv0", "bn4", "relu4"})],
)
def test_encoder_and_decoder_are_told_apart(backbone, encoder):
    names = {True: [], False: []}
    for layer in build_unet(32, backbone).layers:
        names[is_encoder(layer)].append(layer.name)
    assert encoder <= set(names[True])
    assert {"decoder_stage0a_conv", "final_conv", "logits"} <= set(names[False])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "densenet121"}, "unknown backbone 'densenet121': expected one of resnet18"),
        ({"image_size": 100}, "multiple of 32"),
        ({"encoder_weights": "imagenet", "channels": 2}, "three channels"),
        ({"encoder_weights": "imagenet", "backbone": "tiny"}, "no ImageNet weights for the backbone 'tiny'"),
    ],
)
def test_options_that_cant_be_met(options, words):
    with pytest.raises(ConfigError, match=words):
        build_unet(**options)


def test_imagenet_weights_without_a_network_say_what_to_do(monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route to host")))
    with pytest.raises(ModelError, match=r"ImageNet weights of resnet18 could not be .*encoder_weights='none'"):
        build_unet(32, "resnet18", encoder_weights="imagenet")


@pytest.mark.slow
def test_encoder_weights_from_a_file(small_model, small_model_file, tmp_path):
    model = build_unet(32, "tiny", encoder_weights=small_model_file)
    np.testing.assert_array_equal(
        model.get_layer("conv0").get_weights()[0], small_model.get_layer("conv0").get_weights()[0]
    )
    ours, theirs = (m.get_layer("final_conv").get_weights()[0] for m in (model, small_model))
    assert not np.array_equal(ours, theirs)
    with pytest.raises(ModelError, match="no such file"):
        build_unet(32, "tiny", encoder_weights=tmp_path / "none.keras")
    with pytest.raises(ModelError, match="does not fit"):
        build_unet(32, "resnet18", encoder_weights=small_model_file)
