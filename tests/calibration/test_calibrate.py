"""`calibrate` from cases to a file and back, and what `predict` does with it."""

import json
import warnings

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.calibration.calibrate import Calibration, calibrate, fit
from liverseg_tf.calibration.simulated_sites import draw_cases
from liverseg_tf.errors import CaseError, ConfigError, DataWarning
from liverseg_tf.evaluation.measure import measure


@pytest.fixture(scope="module")
def calibration():
    return fit(draw_cases(np.random.default_rng(0), 60), with_ct=False, model="net", model_sha256="ab" * 32)


def mask(tumour=6):
    labels = np.zeros((40, 40, 30), np.uint8)
    labels[5:35, 5:35, 3:27] = 1
    labels[10 : 10 + tumour, 10:16, 10:16] = 2
    return labels


def test_what_was_measured_by_leaving_one_out_is_what_was_promised(calibration):
    quality = calibration.quality
    assert 0.8 <= quality.liver_coverage <= 1 and 0.8 <= quality.tumour_coverage <= 1
    assert quality.lesion_brier < 0.95 * quality.lesion_brier_of_mean
    assert quality.error_in_first_fifth > 0.25  # thick slices tell, and are looked at first


def test_a_file_comes_back_as_it_was(calibration, tmp_path):
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration


def test_a_prediction_is_judged(calibration):
    found = calibration.judge(measure(mask(), spacing_mm=(3, 3, 3)))
    low, high = found["tumour_interval_ml"]
    assert low < 6**3 * 27 / 1000 < high and found["coverage"] == 0.9 and found["cases"] == 60
    assert [one["number"] for one in found["lesions"]] == [1] and 0 < found["lesions"][0]["probability"] < 1
    thick = calibration.judge(measure(mask(), spacing_mm=(3, 3, 5)))
    assert thick["review_score"] > found["review_score"]


def test_fewer_than_twenty_cases_are_refused_with_the_reason(tmp_path):
    with pytest.raises(CaseError, match="at least 20 labelled cases, got 19: by fewer"):
        fit(draw_cases(np.random.default_rng(0), 19), with_ct=False)
    with pytest.raises(ConfigError, match="cts, predictions"):
        calibrate(tmp_path)


def test_another_model_is_told(calibration):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration.warn_if_of_another("ab" * 32)
    for other in (None, "cd" * 32):
        with pytest.warns(DataWarning, match="promise nothing"):
            calibration.warn_if_of_another(other)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda c: c.pop("liver"),
        lambda c: c.update(format=2),
        lambda c: c.update(extra=1),
        lambda c: c["tumour"].update(coverage="0.9"),
        lambda c: c["tumour"]["centers"].pop(),
        lambda c: c.update(review_feature_names=["os.system", *c["review_feature_names"][1:]]),
        lambda c: c["lesion"].update(intercept=float("nan")),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(calibration, tmp_path, break_it):
    content = json.loads(calibration.to_json())
    break_it(content)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"c\.json"):
        Calibration.load(path)


def test_folders_of_masks_and_the_manifest_that_lies_beside_them(tmp_path, write_nifti, capsys):
    from liverseg_tf.cli.main import main

    rng = np.random.default_rng(5)
    for case in range(20):
        write_nifti(tmp_path / "truth" / f"segmentation-{case}.nii.gz", mask(6), np.diag([-3, -3, 3, 1]))
        predicted = mask(int(rng.integers(3, 8)))
        if case % 3 == 0:
            predicted[25:28, 25:28, 20:22] = 2  # no lesion is there
        write_nifti(tmp_path / "pred" / f"segmentation-{case}.nii.gz", predicted, np.diag([-3, -3, 3, 1]))
    (tmp_path / "pred" / "manifest.jsonl").write_text(json.dumps({"model": "net", "model_sha256": "12" * 32}) + "\n")
    out = tmp_path / "c.json"
    arguments = ["calibrate", str(tmp_path / "truth"), "--predictions", str(tmp_path / "pred"), "-o", str(out)]
    assert main(arguments) == 0
    assert "90 % promised" in capsys.readouterr().out
    found = ls.Calibration.load(out)
    assert found.model_sha256 == "12" * 32 and found.case_count == 20 and found.lesion_count == 27
    both = mask(6)
    both[25:28, 25:28, 20:22] = 2
    like_true, like_false = found.judge(measure(both, spacing_mm=(3, 3, 3)))["lesions"]
    assert like_false["probability"] < 0.4 < 0.8 < like_true["probability"]
    out.write_text("{}")
    assert main(arguments) == 1 and "was changed since" in capsys.readouterr().err
