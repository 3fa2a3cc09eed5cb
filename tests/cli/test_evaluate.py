from __future__ import annotations

import argparse
import json

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.cli.evaluate import add_parser
from liverseg_tf.errors import OutputError


@pytest.fixture
def folders(tmp_path):
    labels = np.zeros((12, 12, 8), np.uint8)
    labels[1:11, 1:11, 1:7] = 1
    labels[3:8, 3:6, 3:6] = 2
    for folder, shift in (("truth", 0), ("pred", 1)):
        (tmp_path / folder).mkdir()
        for case in (1, 2):
            image = nib.Nifti1Image(np.roll(labels, shift, axis=0), np.diag([-0.8, -0.8, 2.0, 1]))
            nib.save(image, tmp_path / folder / f"segmentation-{case}.nii.gz")
    return tmp_path


def run(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["evaluate", *map(str, words)])
    return args.run(args)


def test_json_alone_on_stdout(folders, capsys):
    code = run("--truth", folders / "truth", "--prediction", folders / "pred", "--json", "--resamples", 20)
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["lits"]["lesion_recall"] == 1
    assert [row["case"] for row in printed["cases"]] == [1, 2]


def test_tables_and_files(folders, capsys, tmp_path):
    out = tmp_path / "out"
    code = run(
        *("--truth", folders / "truth", "--prediction", folders / "pred", "--resamples", 20),
        *("-o", out / "scores.json", "--csv", out / "cases.csv", "--csv-slices", out / "slices.csv"),
        *("--csv-lesions", out / "lesions.csv", "--figure", out / "scores.png"),
    )
    printed = capsys.readouterr().out
    assert code == 0
    for text in ("lesion_dice_per_case", "MAXERROR_Tumorburden", "lesion_surface_dice_2mm", "> 0.5", "liver with"):
        assert text in printed
    assert sorted(p.name for p in out.iterdir()) == [
        "cases.csv",
        "lesions.csv",
        "scores.json",
        "scores.png",
        "slices.csv",
    ]
    assert json.loads((out / "scores.json").read_text())["lits"]["liver_dice"] > 0.8


def test_outputs_of_another_kind_are_refused_first(folders, tmp_path, capsys):
    mask = folders / "truth" / "segmentation-1.nii.gz"
    before = mask.read_bytes()
    groups = tmp_path / "groups.csv"
    groups.write_text("id,patient\n1,A\n")
    common = ("--truth", folders / "truth", "--prediction", folders / "pred")
    for option in ("-o", "--csv", "--csv-slices", "--csv-lesions", "--figure"):
        with pytest.raises(SystemExit) as stopped:
            run(*common, option, mask)
        assert stopped.value.code == 2
        assert "expected a name ending in ." in capsys.readouterr().err
    with pytest.raises(OutputError, match="patients"):
        run(*common, "--patients", groups, "--csv", groups)
    assert mask.read_bytes() == before
    assert groups.read_text().startswith("id,patient")


def test_both_folders_are_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--truth", "somewhere")
    assert stopped.value.code == 2
