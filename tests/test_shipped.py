"""Names of shipped models, and their cards."""

import json
from pathlib import Path

import pytest

from liverseg_tf import shipped
from liverseg_tf.errors import ModelError

MODELS = Path(__file__).resolve().parents[1] / "savedmodels"


@pytest.fixture
def two_models(tmp_path, monkeypatch):
    for name in (shipped.DEFAULT_MODEL, "small"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_card.md").write_text("")
    monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def test_a_shipped_models_name_is_its_folder(two_models):
    assert shipped.locate_model("shipped") == shipped.locate_model(None) == two_models / shipped.DEFAULT_MODEL
    assert shipped.locate_model("small") == two_models / "small"
    assert shipped.locate_model("run/") == "run/"


def test_a_path_that_exists_comes_before_a_shipped_name(two_models, tmp_path):
    (tmp_path / "small").mkdir()
    assert shipped.locate_model("small") == "small"


def test_an_installation_without_models_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path / "none")
    with pytest.raises(ModelError, match="ships no model 'liverseg-resnet34'.*liverseg train"):
        shipped.locate_model("shipped")


@pytest.mark.parametrize("name", ["liverseg-lite0", "liverseg-resnet34"])
def test_a_cards_front_matter_tells_the_figures_of_its_tables(name):
    _, front, body = (MODELS / name / "model_card.md").read_text("utf-8").split("---\n", 2)
    fields = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert fields["license"] == "cc-by-sa-4.0" and "CC BY-SA 4.0" in body
    assert {"liver", "u-net"} <= set(fields["tags"]) and fields["library_name"] == "keras"
    (index,) = fields["model-index"]
    assert index["name"] == name and f"# {name}\n" in body
    values = [metric["value"] for result in index["results"] for metric in result["metrics"]]
    assert len(values) >= 4
    for value in values:
        assert f" {value:.3f} " in body, value
