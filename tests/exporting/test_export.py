"""`export` as a user calls it: where files go, what is refused, and the comparison with Keras."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.data.cases import Case
from liverseg_tf.errors import ConfigError, DataWarning, ModelError, OutputError
from liverseg_tf.exporting import parity
from liverseg_tf.exporting.samples import UNKNOWN, Sample, samples
from liverseg_tf.exporting.tflite import convert
from liverseg_tf.exporting.timing import Measured
from liverseg_tf.labels import LIVER_CLASSES
from liverseg_tf.models.saving import build_model
from tests.documented_fields import keys_of, stale, undocumented

pytestmark = pytest.mark.slow


@pytest.fixture
def large_case(body_hu, write_nifti, tmp_path):
    """One case of 512 x 512 x 4 with liver and a tumour."""
    hu = np.moveaxis(body_hu((4, 512, 512)), 0, 2).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[200:300, 100:250, 1:] = 1
    labels[220:240, 120:160, 2] = 2
    write_nifti(tmp_path / "cases" / "segmentation-1.nii.gz", labels)
    return Case(
        1, "1", write_nifti(tmp_path / "cases" / "volume-1.nii.gz", hu), tmp_path / "cases" / "segmentation-1.nii.gz"
    )


def test_names_of_files(small_model_file, tflite_files):
    for precision, path in tflite_files.items():  # of exports into folders named "liver"
        assert path.is_file() and path.name == f"liver-{precision}.tflite" and path.with_suffix(".json").is_file()


def test_replaces_its_own_and_nothing_else(small_model_file, tmp_path, monkeypatch):
    made = []

    def convert_once(*arguments):  # a conversion takes seconds, and all of them would be of one model
        if not made:
            made.append(convert(*arguments))
        return made[0]

    monkeypatch.setattr("liverseg_tf.exporting.export.convert", convert_once)
    target = tmp_path / "a.tflite"
    target.write_text("mine")
    with pytest.raises(OutputError, match=r"a\.tflite"):
        ls.export(small_model_file, target, "tflite")
    assert target.read_text() == "mine"
    target.unlink()
    (tmp_path / "a.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"a\.json"):
        ls.export(small_model_file, target, "tflite")
    (tmp_path / "a.json").unlink()
    first = ls.export(small_model_file, target, "tflite", "float16")
    assert ls.export(small_model_file, target, "tflite", "float16").path == first.path == target
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["a.json", "a.tflite"]
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text() + " ")
    with pytest.raises(OutputError, match=r"a\.json: exists and was changed"):
        ls.export(small_model_file, target, "tflite", "float16")
    ls.export(small_model_file, target, "tflite", "float16", overwrite=True)


def test_mixed_precision_is_exported_in_float32(small_config, tmp_path, body_hu):
    import keras

    from liverseg_tf.inference.runtimes import KerasRuntime, open_runtime

    keras.utils.set_random_seed(1)
    mixed = build_model(small_config, precision="mixed_float16")
    path = ls.export(mixed, tmp_path / "liver", "tflite").path
    plain = build_model(small_config)
    plain.set_weights(mixed.get_weights())
    hu = body_hu((1, 64, 64))
    exported = open_runtime(path).probabilities(hu)
    assert np.allclose(exported, KerasRuntime(plain).probabilities(hu), atol=1e-4)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"format": "onnx"}, "onnx"),
        ({"precision": "int4"}, "int4"),
        ({"precision": "int8"}, "tflite"),
        ({"format": "tflite", "calibration": "cases"}, "calibration"),
    ],
)
def test_bad_options_are_named(small_model_file, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        ls.export(small_model_file, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="nothing"):
        ls.export(tmp_path / "nothing", tmp_path / "out")


def test_check_compares_all_of_one_model(small_model, small_model_file, large_case, tmp_path, capsys):
    out = tmp_path / "liver"
    ls.export(small_model_file, out)
    cases = str(large_case.volume.parent)
    status = main(["export", str(small_model_file), "-o", str(out), "--format", "tflite", "--check", cases, "--json"])
    result = json.loads(capsys.readouterr().out)
    rows = result["parity"]["rows"]
    runtimes = ["keras float32", "savedmodel float32", "tflite float32"]
    assert [(r["size"], r["runtime"]) for r in rows] == [(s, r) for s in ("512x512", "476x290") for r in runtimes]
    assert status == (1 if result["parity"]["failures"] else 0)
    assert result["parity"]["failures"] == []
    stored = json.loads(Path(result["manifest"]).read_text())
    heading = "Exported models"
    assert not undocumented(result, heading) and not undocumented(stored, heading)
    assert not stale(keys_of(stored), heading)
    weights_mb = small_model.count_params() * 4 / 1e6
    for row in rows:
        assert row["slices"] == 4
        assert row["agreement"] > 0.9999
        assert row["largest_difference"] < 1e-3
        assert 0 <= row["dice_truth"]["tumour"] <= 1
        assert row["milliseconds_a_slice"] > 0
        assert row["megabytes"] > weights_mb
        assert row["peak_memory_mb"] > 10


def test_floors_are_floors(monkeypatch, tmp_path, large_case):
    """Artefacts that are made up to be slightly or badly off, as `measure` would give them."""
    truth = np.zeros((2, 512, 512), np.uint8)
    truth[0, :100, :100], truth[:, 200:210, 200:220] = 1, 2
    off = {"keras": 0, "good": 1, "bad": 300}

    def measured(path, slices):
        labels = truth.copy()
        labels[0, 0, : off[path.name]] = 0
        labels = {"512x512": labels}
        probabilities = {"512x512": np.eye(3, dtype=np.float32)[labels["512x512"]]}
        return labels, probabilities, Measured({"512x512": 1.0}, None)

    monkeypatch.setattr(parity, "measure", measured)
    monkeypatch.setattr(parity, "samples", lambda *a: [Sample(np.zeros(truth.shape, np.float32), truth)])
    for name in off:
        (tmp_path / name).touch()

    def failures(name, runtime):
        artefacts = {"keras float32": tmp_path / "keras", runtime: tmp_path / name}
        return parity.check_parity(artefacts, LIVER_CLASSES, None, sizes=[(512, 512)]).failures

    assert failures("good", "tflite float32") == ()
    assert [("voxels" in f, "liver" in f) for f in failures("bad", "savedmodel float32")] == [
        (True, False),
        (False, True),
    ]
    assert len(failures("bad", "tflite int8")) == 0  # 100 of 10,000 voxels of liver: within 0.01


def test_samples_show_the_rarest_class_first(large_case):
    (sample,) = samples([large_case], 2, None, (0, 0, 0))
    assert sample.hu.shape == (2, 512, 512)
    assert (sample.labels == 2).any()


def test_samples_without_masks_are_unknown_and_said_so(large_case):
    with pytest.warns(DataWarning, match="tumour"):
        (sample,) = samples([Case(1, "1", large_case.volume)], 3, None, (0, 0, 0))
    assert (sample.labels == UNKNOWN).all()
