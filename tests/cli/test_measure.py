"""`liverseg measure` as a user calls it."""

import csv
import json

import numpy as np
import pytest

from liverseg_tf.cli.main import main


@pytest.fixture
def folder(tmp_path, write_nifti):
    labels = np.zeros((40, 40, 20), np.uint8)
    labels[5:35, 5:35, 3:17] = 1
    labels[15:20, 15:20, 8:11] = 2
    write_nifti(tmp_path / "masks" / "segmentation-7.nii.gz", labels, np.diag([-3, -3, 3, 1]))
    write_nifti(tmp_path / "masks" / "segmentation-8.nii.gz", labels[..., 8:], np.diag([-3, -3, 3, 1]))
    write_nifti(tmp_path / "cts" / "volume-7.nii.gz", np.int16(100 - 60 * (labels == 2)), np.diag([-3, -3, 3, 1]))
    write_nifti(tmp_path / "cts" / "volume-8.nii.gz", np.zeros((40, 40, 12), np.int16), np.diag([-3, -3, 3, 1]))
    return tmp_path


def test_a_folder_gives_two_tables_and_marks_lower_bounds(folder, capsys):
    out = folder / "out.csv"
    assert main(["measure", str(folder / "masks"), str(folder / "cts"), "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "lower bound" in text and "> " in text
    cases = list(csv.DictReader(out.open(newline="")))
    lesions = list(csv.DictReader((folder / "out_lesions.csv").open(newline="")))
    assert [row["volume_is_lower_bound"] for row in cases] == ["False", "True"]
    assert float(lesions[0]["hu_mean"]) == 40 and float(lesions[0]["contrast_hu"]) == -60


def test_json_holds_flags_in_words(folder, capsys):
    assert main(["measure", str(folder / "masks" / "segmentation-8.nii.gz"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert list(found["flags"]) == ["cut_by_field_of_view"] and found["lesions"][0]["long_axis_mm"] > 15


def test_a_broken_mask_is_an_error_row_and_the_rest_go_on(folder, capsys):
    (folder / "masks" / "segmentation-9.nii.gz").write_bytes(b"nothing")
    assert main(["measure", str(folder / "masks"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["measurements"]) == 2 and "segmentation-9" in found["errors"][0]["error"]


def test_inputs_and_others_files_are_left_alone(folder, capsys):
    mine = folder / "notes.json"
    mine.write_text("{}")
    assert main(["measure", str(folder / "masks"), "-o", str(mine)]) == 1
    assert mine.read_text() == "{}" and "was not made by this library" in capsys.readouterr().err


def test_a_mask_without_its_ct_is_named(folder, capsys):
    (folder / "cts" / "volume-8.nii.gz").unlink()
    assert main(["measure", str(folder / "masks"), str(folder / "cts")]) == 1
    assert "no CT for segmentation-8" in capsys.readouterr().err
