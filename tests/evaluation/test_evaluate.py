from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.errors import CaseError, ConfigError, GeometryWarning, InputFileError, LabelError, OutputError
from tests.legibility import illegible


def test_scores_of_two_folders(folders):
    scores = ls.evaluate(truth=folders[0], prediction=folders[1], resamples=100).to_dict()
    assert [row["case"] for row in scores["cases"]] == [1, 2, 10]
    assert scores["lits"]["lesion_recall"] == scores["lits"]["lesion_precision"] == pytest.approx(4 / 6)
    assert scores["lits"]["lesion_dice_per_case"] == pytest.approx((2 * 2 * 48 / 163 + 1) / 3)
    half = scores["detection"]["overlap_above_0.5"]
    assert half["all"]["f1"] == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))
    assert (half["all"]["true_positives"], half["all"]["false_positives"]) == (4, 2)
    assert half["all"]["precision"] == half["all"]["recall"] == pytest.approx(4 / 6)
    assert half["large"]["f1"] is None and half["large"]["f1_ci95"] is None
    assert scores["detection"]["overlap_above_0"]["small"]["true_positives"] == 4
    dice = scores["summary"]["lesion_dice"]
    values = [2 * 48 / 163, 1, 2 * 48 / 163]
    assert dice["mean"] == pytest.approx(np.mean(values))
    assert dice["median"] == pytest.approx(2 * 48 / 163)
    assert dice["std"] == pytest.approx(np.std(values, ddof=1))
    assert dice["ci95"][0] < dice["mean"] < dice["ci95"][1]
    assert scores["surface_dice"]["liver"]["1mm"]["mean"] == 1
    assert scores["hd95"]["liver"]["mean"] == 0
    assert scores["volume_agreement"]["lesion"]["bias_ml"] == pytest.approx(2 / 3 * 19 * 1.6 / 1000)
    assert scores["scenarios"]["liver_with_lesion"]["slices"] == 3 * 4
    assert scores["scenarios"]["neither"]["lesion_dice_loss"] == 0
    assert len(scores["slices"]) == 3 * 12
    assert scores["settings"]["rules"]["lits"]


def test_the_interval_of_the_burden_is_one_of_its_root_mean_square(folders):
    """Case 2 is perfect and 1 and 10 are alike, so what is drawn lies between no error and theirs."""
    scores = ls.evaluate(*folders, resamples=400)
    errors = [abs(row["tumour_burden_error"]) for row in scores.cases]
    assert errors == pytest.approx([errors[0], 0, errors[0]]) and errors[0] > 0
    assert scores.lits["RMSE_Tumorburden"] == pytest.approx(errors[0] * (2 / 3) ** 0.5)
    assert scores.lits_ci95["RMSE_Tumorburden"] == pytest.approx([0, errors[0]])


def test_json_round_trip(folders, tmp_path):
    scores = ls.evaluate(*folders, resamples=50)
    scores.save_json(tmp_path / "out" / "scores.json")
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == json.loads(json.dumps(scores.to_dict()))


def test_csv_tables(folders, tmp_path):
    scores = ls.evaluate(*folders, resamples=50)
    for rows, count in (("cases", 3), ("slices", 36), ("lesions", 12)):
        scores.save_csv(tmp_path / f"{rows}.csv", rows)
        with (tmp_path / f"{rows}.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == count
        assert table[-1]["case"] == "10"
    with pytest.raises(ConfigError, match="rows"):
        scores.save_csv(tmp_path / "x.csv", "voxels")


def test_undefined_figures_are_null_with_a_count_and_9001_in_lits(tmp_path, write_mask, liver_pair):
    truth, prediction = liver_pair
    for case, predicted in ((1, prediction), (2, np.where(prediction == 2, 1, prediction)), (3, np.zeros_like(truth))):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii.gz", truth)
        write_mask(tmp_path / "pred" / f"segmentation-{case}.nii.gz", predicted)
    scores = ls.evaluate(tmp_path / "truth", tmp_path / "pred", resamples=50)
    assert scores.hd95["lesion"]["missing"] == 2 and scores.hd95["lesion"]["n"] == 1
    assert scores.hd95["lesion"]["ci95"] is None  # one patient has the figure
    assert scores.hd95["liver"]["missing"] == 1 and scores.hd95["liver"]["mean"] == 0
    assert scores.lits["liver_assd"] == pytest.approx(9001 / 3)
    assert scores.cases[2]["liver_hd95_mm"] is None
    assert scores.tumour_burden["missing"] == 1
    json.loads(scores.to_json())  # no NaN


def test_a_reference_without_lesions_is_scored(tmp_path, write_mask, liver_pair):
    liver = np.where(liver_pair[0], 1, 0)
    write_mask(tmp_path / "truth" / "segmentation-1.nii.gz", liver)
    write_mask(tmp_path / "pred" / "segmentation-1.nii.gz", liver_pair[1])
    scores = ls.evaluate(tmp_path / "truth", tmp_path / "pred", resamples=10)
    assert scores.lits["lesion_precision"] == 0
    assert scores.detection["overlap_above_0"]["all"]["recall"] is None
    assert scores.summary["lesion_volume_error_percent"]["mean"] is None


def test_identity_affines_are_marked_and_can_be_left_out(tmp_path, write_mask, liver_pair):
    truth, prediction = liver_pair
    for case, affine in ((1, None), (28, np.eye(4))):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii.gz", truth, affine)
        write_mask(tmp_path / "pred" / f"segmentation-{case}.nii.gz", prediction, affine)
    folders = tmp_path / "truth", tmp_path / "pred"
    with pytest.warns(GeometryWarning, match=r"1 of 2 cases has an identity affine.*case 28.*part of"):
        kept = ls.evaluate(*folders, resamples=10)
    assert [row["identity_affine"] for row in kept.cases] == [False, True]
    assert kept.settings["identity_affine_cases"] == [28]
    assert kept.summary["lesion_msd_mm"]["n"] == 2
    with pytest.warns(GeometryWarning, match="left out"):
        left_out = ls.evaluate(*folders, resamples=10, exclude_identity=True)
    assert left_out.summary["lesion_msd_mm"]["n"] == left_out.volume_agreement["lesion"]["n"] == 1
    assert left_out.summary["lesion_dice"]["n"] == 2
    assert left_out.lits == kept.lits


def test_patients_narrow_what_is_resampled(folders, tmp_path):
    (tmp_path / "groups.csv").write_text("id,patient\n1,A\n2,A\n10,A\n")
    scores = ls.evaluate(*folders, patients=tmp_path / "groups.csv", resamples=10)
    assert scores.settings["patients"] == 1
    assert scores.summary["liver_dice"]["ci95"] is None


def test_errors_name_the_case_and_nothing_is_half_scored(folders, write_mask, liver_pair):
    truth, prediction = folders
    wrong = liver_pair[1].copy()
    wrong[0, 0, 0] = 7
    write_mask(prediction / "volume-10_seg.nii.gz", wrong)
    with pytest.raises(LabelError, match=r"volume-10_seg.*7 \(1 voxel\)"):
        ls.evaluate(truth, prediction)
    (prediction / "volume-10_seg.nii.gz").write_text("this is no mask")
    with pytest.raises(InputFileError, match="volume-10_seg"):
        ls.evaluate(truth, prediction)
    (prediction / "volume-10_seg.nii.gz").unlink()
    with pytest.raises(CaseError, match="segmentation-10"):
        ls.evaluate(truth, prediction)
    with pytest.raises(ConfigError, match="resamples"):
        ls.evaluate(truth, prediction, resamples=0)


def test_progress_counts_cases(folders):
    seen = []
    ls.evaluate(*folders, resamples=10, progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert seen[0][2] == "volume-1_seg.nii.gz"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_figure_is_written(folders, tmp_path, suffix):
    scores = ls.evaluate(*folders, resamples=10)
    scores.save_figure(tmp_path / f"scores.{suffix}")
    assert (tmp_path / f"scores.{suffix}").stat().st_size > 10_000
    with pytest.raises(ConfigError, match=r"\.png"):
        scores.save_figure(tmp_path / "scores.docx")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        scores.save_figure(tmp_path / "file" / "scores.png")


def test_figure_shows_every_case_and_size(folders):
    from liverseg_tf.evaluation.figure import plot_evaluation

    scores = ls.evaluate(*folders, resamples=10)
    figure = plot_evaluation(scores)
    assert illegible(figure) == []
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "Dice per case",
        "Lesion detection by size",
        "Volume of liver",
        "Agreement on liver",
        "Volume of lesion",
        "Agreement on lesion",
    ]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "10"]
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in figure.axes[1].patches)
    middles = [(low[0] + high[1]) / 2 for low, high in zip(bars[::2], bars[1::2], strict=True)]
    assert middles == pytest.approx(list(figure.axes[1].get_xticks()))  # a pair about each size
    assert all(low[1] <= high[0] for low, high in zip(bars, bars[1:], strict=False))  # none hides another
    assert "6 lesions" in figure.axes[1].get_xticklabels()[0].get_text()
    none = "no reference,\n0 false"
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.67", "0.67", none, none]
    assert all(text.get_position()[1] > 1 for text in figure.axes[1].texts[:2])  # above any bar
    for region, (volumes, agreement) in (("liver", figure.axes[2:4]), ("lesion", figure.axes[4:])):
        truth, prediction = (
            np.array([row[f"{region}_volume_{side}_ml"] for row in scores.cases]) for side in ("truth", "prediction")
        )
        np.testing.assert_allclose(volumes.lines[1].get_xydata(), np.stack([truth, prediction], 1))
        points, *lines = agreement.lines
        np.testing.assert_allclose(points.get_xydata(), np.stack([(truth + prediction) / 2, prediction - truth], 1))
        found = scores.volume_agreement[region]
        expected = [0, found["bias_ml"]]  # limits of agreement are for 5 cases and more
        assert [line.get_ydata()[0] for line in lines] == pytest.approx(expected)


def test_figure_of_few_cases_draws_no_intervals_and_says_what_has_no_reference(folders):
    from liverseg_tf.evaluation.figure import plot_evaluation

    scores = ls.evaluate(*folders, resamples=10)
    assert len(scores.cases) < 5
    for counts in scores.detection.values():
        counts["large"] = {
            **counts["large"],
            "true_positives": 0,
            "false_negatives": 0,
            "false_positives": 6,
            "f1": 0.0,
        }
    figure = plot_evaluation(scores)
    dice, detection, _, agreement = figure.axes[:4]
    assert not detection.collections  # lines of intervals
    assert "no reference,\n6 false" in [t.get_text() for t in detection.texts]
    assert "0.00" not in [t.get_text() for t in detection.texts if t.get_position()[0] > 1.5]
    assert [line.get_linestyle() for line in agreement.lines].count("--") == 0
    figure.draw_without_rendering()
    for axes in (dice, detection, agreement):  # no legend covers a point
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0
    scores.settings["patients"] = 5
    assert plot_evaluation(scores).axes[1].collections


REAL_DATA = os.environ.get("LIVERSEG_REAL_DATA")


@pytest.mark.skipif(not REAL_DATA, reason="needs LIVERSEG_REAL_DATA, the folder beside reference/lits_scoring")
def test_agrees_with_the_challenge_s_own_program():
    folder = Path(REAL_DATA).parent / "reference" / "lits_scoring"
    expected = dict(line.split(": ") for line in (folder / "scores.txt").read_text().splitlines() if line.strip())
    scores = ls.evaluate(truth=folder / "ref", prediction=folder / "res", resamples=10)
    assert {name: f"{value:.3f}" for name, value in scores.lits.items()} == expected


def test_figure_marks_cases_without_lesion_in_the_reference(tmp_path, write_mask, liver_pair):
    """Their Dice of 1 says only that nothing was found."""
    from liverseg_tf.evaluation.figure import plot_evaluation

    truth, prediction = liver_pair
    for case, labels in ((1, truth), (2, np.minimum(truth, 1))):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii.gz", labels)
        write_mask(tmp_path / "pred" / f"volume-{case}_seg.nii.gz", np.minimum(prediction, labels))
    dice = plot_evaluation(ls.evaluate(tmp_path / "truth", tmp_path / "pred", resamples=10)).axes[0]
    [hollow] = [line for line in dice.lines if line.get_label() == "no lesion in the reference"]
    assert list(hollow.get_xdata()) == [1] and list(hollow.get_ydata()) == [1]


def test_figure_of_cases_that_all_are_without_lesion_has_no_mean_and_no_limits(tmp_path, write_mask, liver_pair):
    from liverseg_tf.evaluation.figure import plot_evaluation

    truth, prediction = liver_pair
    for case in range(1, 6):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii", np.minimum(truth, 1))
        found = prediction if case == 1 else np.minimum(prediction, 1)
        write_mask(tmp_path / "prediction" / f"segmentation-{case}.nii", found)
    dice, *_, agreement = plot_evaluation(ls.evaluate(tmp_path / "truth", tmp_path / "prediction", resamples=10)).axes
    legend = [text.get_text() for text in dice.get_legend().get_texts()]
    assert "no lesion in the reference" in legend and not any(text.startswith("lesion, mean") for text in legend)
    assert [text.get_text()[:4] for text in agreement.get_legend().get_texts()] == ["bias"]
