import zipfile

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.config import ChannelsConfig, ModelConfig
from liverseg_tf.errors import ModelError
from liverseg_tf.models.model import Model
from liverseg_tf.models.saving import CONFIG_ENTRY, load_config, load_model, open_model, save_model


def test_a_model_comes_back_with_its_configuration(small_model, small_model_file, small_config):
    again = load_model(small_model_file)
    assert Model.of(again).config == small_config
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(again(x), small_model(x), atol=1e-5)
    assert load_config(small_model_file) == small_config


def _rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


def test_files_that_are_no_model(small_model_file, tmp_path):
    content = small_model_file.read_bytes()
    cases = {
        "text.keras": (lambda p: p.write_text("hello"), "expected a .keras model file"),
        "empty.keras": (lambda p: p.touch(), "expected a .keras model file"),
        "cut.keras": (lambda p: p.write_bytes(content[: len(content) // 2]), "expected a .keras model file"),
        "bare.keras": (
            lambda p: _rewritten(small_model_file, p, lambda n, c: None if n == CONFIG_ENTRY else c),
            "a model that this library saved",
        ),
        "path.keras": (
            lambda p: _rewritten(small_model_file, p, lambda n, c: c) and zipfile.ZipFile(p, "a").writestr("../x", "y"),
            "outside the archive",
        ),
        "config.keras": (
            lambda p: _rewritten(
                small_model_file, p, lambda n, c: b'{"image_size": "big"}' if n == CONFIG_ENTRY else c
            ),
            "field 'image_size': expected int",
        ),
        "other.keras": (
            lambda p: _rewritten(
                small_model_file, p, lambda n, c: c.replace(b'"tiny"', b'"resnet18"') if n == CONFIG_ENTRY else c
            ),
            "weights of unet_resnet18",
        ),
        "weights.keras": (
            lambda p: _rewritten(small_model_file, p, lambda n, c: c[:999] if n == "model.weights.h5" else c),
            "weights of unet_tiny",
        ),
    }
    for name, (make, words) in cases.items():
        make(tmp_path / name)
        with pytest.raises(ModelError, match=words) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "missing.keras")
    with pytest.raises(ModelError, match="a run folder holds model.keras"):
        load_model(tmp_path)


def test_other_channels_are_refused(small_model, tmp_path):
    config = ModelConfig(32, "tiny", channels=ChannelsConfig(("liver",), False))
    save_model(small_model, config, tmp_path / "m.keras")
    with pytest.raises(ModelError, match="weights of unet_tiny"):
        load_model(tmp_path / "m.keras")


@pytest.mark.slow
def test_a_model_knows_its_configuration_its_card_and_where_it_comes_from(small_model_file, small_config, savedmodel):
    model = open_model(small_model_file)
    assert (model.config, model.card, model.source) == (small_config, None, small_model_file)
    assert Model.of(model) is model
    exported = open_model(savedmodel)
    assert exported.card["format"] == "savedmodel" and exported.source == savedmodel


@pytest.mark.slow
def test_a_model_is_taken_wherever_one_is(small_model_file, small_config, tmp_path, body_hu):
    import keras

    network = keras.models.clone_model(load_model(small_model_file))  # a Keras model of anybody, without configuration
    with pytest.raises(ModelError, match=r"expected one of load_model, or Model\(network, config\)"):
        ls.Predictor(network)
    network.set_weights(load_model(small_model_file).get_weights())
    volume = ls.CTVolume.from_array(body_hu((4, 40, 40)).transpose(1, 2, 0), (1, 1, 1))
    predictor, known = ls.Predictor(ls.Model(network, small_config)), ls.Predictor(open_model(small_model_file))
    assert (predictor.name, known.name) == ("given in memory", small_model_file.name)
    assert known.folders == [small_model_file.parent] and predictor.sha256 == known.sha256
    expected = ls.Predictor(small_model_file).predict(volume).canonical_labels
    np.testing.assert_array_equal(predictor.predict(volume).canonical_labels, expected)
    path = ls.export(ls.Model(network, small_config), tmp_path / "liver").path
    assert load_config(path) == small_config
