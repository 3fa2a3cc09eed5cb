from __future__ import annotations

import argparse
import csv
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
    assert sorted(p.name for p in out.glob("[!.]*")) == [
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
    with pytest.raises(OutputError, match="is an input"):
        run(*common, "--patients", groups, "--csv", groups, "--overwrite")
    assert mask.read_bytes() == before
    assert groups.read_text().startswith("id,patient")


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("-o", "s.json"),
        ("--csv", "c.csv"),
        ("--csv-slices", "c.csv"),
        ("--csv-lesions", "c.csv"),
        pytest.param("--figure", "f.png", marks=pytest.mark.slow),
        pytest.param("--figure", "f.pdf", marks=pytest.mark.slow),
    ],
)
def test_files_of_others_are_kept(folders, tmp_path, option, name):
    common = ("--truth", folders / "truth", "--prediction", folders / "pred", "--resamples", 5, option, tmp_path / name)
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="was not made by this library"):
        run(*common)
    assert (tmp_path / name).read_text() == "mine"
    assert run(*common, "--overwrite") == 0
    assert run(*common) == 0  # ours now
    written = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(written + b"\n")
    with pytest.raises(OutputError, match="was changed since"):
        run(*common)
    # a reference mask by another name
    (tmp_path / name).unlink()
    (tmp_path / name).hardlink_to(folders / "truth" / "segmentation-1.nii.gz")
    with pytest.raises(OutputError, match="is an input"):
        run(*common, "--overwrite")


def test_no_cell_of_a_table_is_a_formula(folders, tmp_path):
    groups = tmp_path / "groups.csv"
    groups.write_text('id,patient\n1,"=HYPERLINK(""http://example.org"")"\n2,@SUM(1)\n')
    table = tmp_path / "cases.csv"
    common = ("--truth", folders / "truth", "--prediction", folders / "pred", "--resamples", 5)
    run(*common, "--patients", groups, "--csv", table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == ['\'=HYPERLINK("http://example.org")', "'@SUM(1)"]
    assert all(float(row["liver_volume_error_ml"]) <= 0 for row in rows)  # numbers stay numbers, below 0 too
    assert not any(cell[:1] in ("=", "+", "@") for row in rows for cell in row.values())


def test_both_folders_are_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--truth", "somewhere")
    assert stopped.value.code == 2
