import json
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_tf import windows as registry
from liverseg_tf.config import ChannelsConfig, ModelConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.training.recipes import RECIPES, Recipe
from liverseg_tf.windows import WINDOWS

windows = st.sampled_from(sorted(WINDOWS)) | st.tuples(st.floats(2, 4000), st.floats(-1000, 1000))
channels = st.builds(ChannelsConfig, st.lists(windows, min_size=1, max_size=4).map(tuple), st.booleans())
models = st.builds(
    ModelConfig,
    st.integers(1, 16).map(lambda n: 32 * n),
    st.sampled_from(["resnet18", "resnet34"]),
    st.lists(st.from_regex(r"\w[\w .-]{0,8}", fullmatch=True), min_size=2, max_size=4, unique=True).map(tuple),
    channels,
    st.none() | st.just((-1024.0, 3071.0)),
)


@settings(max_examples=30, deadline=None)
@given(models)
def test_json_and_back_is_the_identity(config):
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_json(name):
    assert Recipe.from_json(RECIPES[name].to_json()) == RECIPES[name]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected an object"),
        ('{"imagesize": 3}', "unknown field 'imagesize'"),
        ('{"image_size": "128"}', "field 'image_size': expected int"),
        ('{"image_size": true}', "field 'image_size': expected int"),
        ('{"image_size": 100}', "multiple of 32"),
        ('{"image_size": 1048576}', "from 32 to 4096"),
        ('{"class_names": ["background", "../../liver"]}', "class names: expected up to 64 letters"),
        ('{"channels": {"windows": ["spleen"]}}', "unknown CT window 'spleen'"),
        ('{"channels": {"windows": [[1, 40]]}}', "at least 2 HU"),
        ('{"channels": {"histogram_steps": 0}}', "1 to 1000 steps"),
        ('{"channels": {"histogram_tails": [0.1, 0.999]}}', "a tail before the first"),
        ('{"channels": {"histogram_tails": [0.001, 1.0]}}', "a tail before the first"),
        ('{"format": 3}', "update liverseg_tf"),
        ('{"hu_range": [5, 1]}', "lowest, highest"),
        ("[" * 100000, "expected JSON"),
    ],
)
def test_configurations_that_are_none(text, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_json(text)


def test_other_presets_change_no_stored_model(monkeypatch):
    stored = ModelConfig().to_json()
    named = '{"image_size": 64, "channels": {"windows": ["liver", "custom", [99, 3]], "histogram": true}}'
    monkeypatch.setattr(registry, "WINDOWS", MappingProxyType({"liver": (400, 0), "spleen": (100, 100)}))
    assert ChannelsConfig(("liver",)).windows == ((400, 0),)  # of a new model
    assert ModelConfig.from_json(stored).channels.windows == ((150, 30), (200, 60))
    old = ModelConfig.from_json(named)
    assert old.channels.windows == ((150, 30), (200, 60), (99, 3))
    assert (old.channels.histogram_steps, old.channels.histogram_tails) == (100, (0.001, 0.999))
    assert ModelConfig.from_json('{"channels": {"windows": ["spleen"]}}').channels.windows == ((100, 100),)


def test_a_configuration_stores_numbers_and_its_format():
    stored = json.loads(ModelConfig().to_json())
    assert stored["channels"] == {
        "windows": [[150, 30], [200, 60]],
        "histogram": True,
        "histogram_steps": 100,
        "histogram_tails": [0.001, 0.999],
    }
    assert stored["format"] == 2
    assert ModelConfig.from_dict({"format": 1}) == ModelConfig()


def test_a_missing_or_binary_file(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    for name in ("x.json", "none.json"):
        with pytest.raises(ConfigError, match=f"{name}: expected a readable JSON"):
            ModelConfig.load(tmp_path / name)
