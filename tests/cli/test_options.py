"""Names of outputs: no folder is made under what was meant as a file of another format."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from liverseg_tf.cli.main import build_parser, main
from liverseg_tf.cli.options import as_flags, flags_of, output_name


@pytest.mark.parametrize(
    ("command", "name", "told"),
    [
        (["predict", "ct.nii", "-o"], "out.nrrd", "expected a name ending in .nii or .nii.gz or .dcm or a folder"),
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


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("replace it with overwrite=True", "replace it with --overwrite"),
        ("(xla=False, precision='float32')", "(--no-xla, --precision float32)"),
        ("lower batch_size= or image_size=", "lower --batch-size or --image-size"),
        ("raise max_bytes= or LIVERSEG_MAX_BYTES", "raise --max-bytes or LIVERSEG_MAX_BYTES"),
        ("give that model too (from_model=)", "give that model too (--from)"),
        ("spacing_mm=(row, column, slice)", "spacing_mm=(row, column, slice)"),
        ("a=b is 1x=2, other='x' and xla='", "a=b is 1x=2, other='x' and xla='"),
        ("/data/overwrite/x=1.nii: no CT", "/data/overwrite/x=1.nii: no CT"),
    ],
)
def test_messages_name_flags_on_the_command_line(message, told):
    parser = argparse.ArgumentParser()
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction)
    parser.add_argument("--from", dest="from_model")
    for name in ("--overwrite", "--precision", "--batch-size", "--image-size", "--max-bytes"):
        parser.add_argument(name)
    assert as_flags(message, flags_of(parser)) == told


def test_every_option_says_what_it_does_and_its_default():
    commands = next(a for a in build_parser()._actions if a.dest == "command").choices
    silent = [
        f"{name} {action.dest}"
        for name, command in commands.items()
        for action in command._actions
        if not action.help
        or (action.nargs != 0 and action.default and f"default: {action.default}" not in action.help % vars(action))
    ]
    # these print theirs in other words: 128 128 40, a description, 10 for 10.0
    assert silent == ["phantom shape", "predict second_look", "explain radius"]


def test_the_library_names_no_flags():
    """Its errors name arguments, `overwrite=True`; flags are the command line's words for them."""
    command_line = build_parser()
    commands = next(a for a in command_line._actions if a.dest == "command").choices.values()
    flags = {flag for command in commands for flag in flags_of(command).values()} - {"--help"}
    package = Path(main.__code__.co_filename).parents[1]
    named = {
        f"{path.relative_to(package)}: {flag}"
        for path in package.rglob("*.py")
        if "cli" not in path.relative_to(package).parts
        for flag in re.findall(r"(?<![\w=-])--[a-z][a-z-]+", path.read_text("utf-8"))
        if flag in flags
    }
    # the one advises `liverseg info`, the other runs `liverseg predict`
    runs = {"inference/benchmark.py: --model", "inference/benchmark.py: --runtime"}
    assert named == {"training/strategies.py: --devices"} | runs
