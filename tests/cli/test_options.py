"""Names of outputs: no folder is made under what was meant as a file of another format."""

from __future__ import annotations

import argparse

import pytest

from liverseg_tf.cli.main import main
from liverseg_tf.cli.options import output_name


@pytest.mark.parametrize(
    ("command", "name", "told"),
    [
        (["predict", "ct.nii", "-o"], "out.nrrd", "expected a name ending in .nii or .nii.gz or a folder"),
        (["predict", "ct.nii", "-o"], "out.png", "for a folder of that name write"),
        (["predict", "ct.nii", "-o"], "s3://bucket/out.nii.zip", "expected a name ending in .nii"),
        (["report", "ct.nii", "-o"], "x.pdf", "expected a name ending in .html or .htm"),
        (["report", "ct.nii", "-o"], "x", "expected a name ending in .html or .htm"),
        (["explain", "ct.nii", "-o"], "x.png", "expected a folder"),
        (["export", "run", "-o"], "model.onnx", "expected a name ending in .tflite or a folder"),
        (["train", "ct", "-o"], "run.keras", "expected a folder"),
        (["find-lr", "ct", "-o"], "lr.png", "expected a folder"),
        (["slices", "ct", "-o"], "slices.zip", "expected a folder"),
        (["demo", "-o"], "demo.html", "expected a folder"),
        (["phantom"], "ct.nii.gz", "expected a folder"),
        (["evaluate", "--truth", "a", "--prediction", "b", "-o"], "x.txt", "expected a name ending in .json"),
        (["evaluate", "--truth", "a", "--prediction", "b", "--csv"], "x.xlsx", "expected a name ending in .csv"),
        (["evaluate", "--truth", "a", "--prediction", "b", "--figure"], "x.gif", ".png or .pdf or .svg"),
    ],
)
def test_a_name_of_another_format_is_wrong_usage(capsys, tmp_path, monkeypatch, command, name, told):
    monkeypatch.chdir(tmp_path)
    assert main([*command, name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: liverseg {command[0]} ")
    assert f"{name}: " in error and told in error
    assert list(tmp_path.iterdir()) == []


def test_folders_are_what_they_are_called(tmp_path):
    kind = output_name(".nii", ".nii.gz", folder=True)
    (tmp_path / "there.png").mkdir()
    for name in ("masks", "a.NII", "x.nii.gz", "run.v2", "2024.10.01", "new.png/", "..", str(tmp_path / "there.png")):
        assert kind(name) == name
    for name in ("masks.nrrd", "x.gz", "x.h5"):
        with pytest.raises(argparse.ArgumentTypeError, match="or a folder"):
            kind(name)
    with pytest.raises(argparse.ArgumentTypeError, match="ending in .html$"):
        output_name(".html")("new/")
