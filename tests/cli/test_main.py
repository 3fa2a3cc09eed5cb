"""The command line as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from liverseg_tf.cli.main import COMMANDS, build_parser, main
from liverseg_tf.errors import ConfigError
from liverseg_tf.ownership import read_signed_line
from tests.data.test_volume import stored_as


def test_every_command_has_help(capsys):
    for name in COMMANDS:
        assert main([name.replace("_", "-"), "--help"]) == 0
        assert "usage: liverseg" in capsys.readouterr().out


def test_wrong_usage_is_status_2(capsys):
    for arguments in ([], ["nonsense"], ["predict"], ["train", "x"]):
        assert main(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_unknown_option_shows_the_commands_usage(capsys):
    assert main(["predict", "ct.nii", "-o", "out", "--treshold", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: liverseg predict ")
    assert captured.err.endswith("liverseg predict: error: unrecognized arguments: --treshold 1\n")
    assert captured.out == ""


def test_a_bare_call_shows_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for name in COMMANDS:
        assert f"\n    {name.replace('_', '-')} " in captured.err


@pytest.mark.slow
def test_ctrl_c_ends_as_killed_by_sigint(tmp_path):
    """As a shell needs it to stop its loop; with one line, and no half file left behind."""
    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, signal, sys\n"
        "from liverseg_tf.cli.main import main\n"
        "os.fsync = lambda file: os.killpg(0, signal.SIGINT)\n"  # in the middle of a file, to all, as a terminal does
        "sys.exit(main(['phantom', sys.argv[1], '--cases', '1', '--shape', '32', '32', '8']))\n"
    )
    folder = tmp_path / "phantoms"
    loop = f"for n in 1 2 3; do '{sys.executable}' '{script}' '{folder}'; echo went on; done"
    done = subprocess.run(
        ["bash", "-c", loop],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        # where the tests run in the background it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert done.stderr.strip() == "liverseg: stopped"
    assert list(folder.iterdir()) == []


def test_colors_are_left_out_if_asked(tmp_path):
    code = "import sys; from liverseg_tf.cli.main import main; sys.exit(main(['info']))"
    for no_color, expected in (("1", False), ("", True)):
        environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": no_color}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
        assert bool(re.search(r"\x1b\[[0-9;]*[34]8;", done.stdout)) == expected


def test_errors_are_one_line_and_status_1(capsys, tmp_path):
    assert main(["train", str(tmp_path / "missing"), "-o", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("liverseg: error: ")
    assert "there is none; check the path" in lines[0]


def test_debug_shows_the_traceback(tmp_path):
    from liverseg_tf.errors import InputFileError

    with pytest.raises(InputFileError):
        main(["train", str(tmp_path / "missing"), "-o", "run", "--debug"])


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["windows"]) == 12
    assert [c["name"] for c in found["classes"]] == ["background", "liver", "tumour"]


@pytest.mark.slow
def test_predict_a_folder(capsys, tmp_path, write_nifti, small_model_file):
    hu = np.random.default_rng(0).integers(-1000, 500, (40, 36, 3)).astype(np.int16)
    array, affine = stored_as(hu, (2, 2, 4), "LPS")
    # spaces, other alphabets and a leading dash work
    folder = tmp_path / "-Ordner mit Ümläuten"
    write_nifti(folder / "volume-7.nii.gz", array, affine)
    write_nifti(folder / "ct scan.nii", array, affine)
    output = tmp_path / "out"
    status = main(["predict", str(folder), "-o", str(output), "--model", str(small_model_file), "--json"])
    captured = capsys.readouterr()
    assert status == 0
    rows = json.loads(captured.out)["volumes"]
    assert {r["output"].rsplit("/", 1)[-1] for r in rows} == {"segmentation-7.nii.gz", "ct scan_seg.nii.gz"}
    lines = (output / "manifest.jsonl").read_text().splitlines()
    first, *lines = (read_signed_line(line, "manifest") for line in lines)
    assert lines == rows
    assert first["versions"]["liverseg_tf"]
    assert "medical device" in first["note"]
    (folder / "volume-8.nii").write_text("no CT")
    assert main(["predict", str(folder), "-o", str(output), "--model", str(small_model_file), "--statistics"]) == 1
    captured = capsys.readouterr()
    assert "volume-8.nii: expected a NIfTI file" in captured.err
    assert captured.out.count(" ml, tumour ") == 2


@pytest.mark.slow
def test_phantom_train_and_evaluate(capsys, tmp_path):
    assert main(["phantom", str(tmp_path / "ct"), "--cases", "3", "--shape", "64", "64", "12", "--json"]) == 0
    capsys.readouterr()
    run = ["train", str(tmp_path / "ct"), "-o", str(tmp_path / "run"), "--epochs", "1", "--steps-per-epoch", "1"]
    small = ["--backbone", "tiny", "--image-size", "32", "--batch-size", "2", "--no-xla"]
    assert main([*run, *small, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["best"]["epoch"] == 1
    lines = [line for line in captured.err.splitlines() if line.startswith("epoch ")]
    assert lines and "(by case: liver" in lines[0] and max(map(len, lines)) <= 100
    arguments = ["evaluate", "--truth", str(tmp_path / "ct"), "--prediction", str(tmp_path / "ct"), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["lits"]["liver_dice_per_case"] == 1


def test_train_hands_the_encoder_on(monkeypatch, tmp_path):
    given = {}

    def train(cases, output, recipe, **options):
        given.update(options)
        raise ConfigError("seen")

    assert main(["phantom", str(tmp_path / "ct"), "--cases", "2", "--shape", "32", "32", "8"]) == 0
    monkeypatch.setattr("liverseg_tf.training.train.train", train)
    run = ["train", str(tmp_path / "ct"), "-o", str(tmp_path / "run"), "--encoder-weights", "imagenet"]
    assert main([*run, "--backbone", "efficientnet_lite0"]) != 0
    assert (given["options"].backbone, given["options"].encoder_weights) == ("efficientnet_lite0", "imagenet")
    assert main(run) != 0
    assert given["options"].backbone is None  # the recipe's
    assert main([*run, "--backbone", "alexnet"]) == 2


def test_the_parser_knows_all_commands_of_the_interface():
    choices = next(a for a in build_parser()._actions if a.dest == "command").choices
    assert {"demo", "phantom", "train", "find-lr", "predict", "evaluate", "info"} <= set(choices)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab", reason="needs the extra [completion]")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "find-lr" in script and "--no-postprocessing" in script
