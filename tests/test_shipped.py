"""Names of shipped models."""

import pytest

from liverseg_tf import shipped
from liverseg_tf.errors import ModelError


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
