"""`liverseg predict`: what it may write over, and what a run leaves that fails or goes on."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
import liverseg_tf.explanation.uncertainty as uncertainty
import liverseg_tf.inference.predictor as predictor_module
from liverseg_tf.cli.main import main
from liverseg_tf.ownership import is_ours, read_signed_line

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


class Threshold:
    """A runtime without a network: bright is liver, brighter is tumour."""

    config = ls.ModelConfig(image_size=32, backbone="resnet18")
    is_remote, slices_at_once = False, 1

    def labels(self, hu):
        return ((hu > 0).astype(np.uint8) + (hu > 100)).astype(np.uint8)

    def probabilities(self, hu):
        return np.eye(3, dtype=np.float32)[self.labels(hu)]


@pytest.fixture
def predict(monkeypatch, capsys, tmp_path):
    """Run the command with a model file of any content; returns status, stderr and the volumes' rows."""
    model = tmp_path / "model.keras"
    model.write_text("first")
    monkeypatch.setattr(predictor_module, "open_runtime", lambda path: Threshold())

    def run(*words):
        status = main([*map(str, ("predict", *words, "--model", model, "--no-postprocessing"))])
        return status, capsys.readouterr().err

    run.model = model
    return run


@pytest.fixture
def scans(tmp_path, write_nifti):
    hu = np.random.default_rng(0).normal(0, 100, (16, 14, 3)).astype(np.int16)
    return [write_nifti(tmp_path / "ct" / f"volume-{number}.nii.gz", hu + number) for number in (1, 2)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("option", "ending"),
    [("--probabilities", "liver"), ("--probabilities", "tumour"), ("--uncertainty", "uncertainty"), ("--json", "")],
)
@pytest.mark.parametrize("linked", [False, True])
def test_no_product_of_one_input_is_another_input(predict, tmp_path, write_nifti, option, ending, linked):
    hu = np.random.default_rng(0).normal(0, 100, (16, 14, 3)).astype(np.int16)
    first = write_nifti(tmp_path / "ct" / "b.nii.gz", hu)
    product = first.with_name(f"b_seg_{ending}.nii.gz" if ending else "b_seg.nii.gz")
    second = write_nifti(first.with_name("other.nii.gz") if linked else product, hu)
    if linked:
        product.hardlink_to(second)
    before = contents(tmp_path)
    status, errors = predict(first, second, "-o", tmp_path / "ct", option, "--overwrite")
    assert status == 1 and "is an input and is never written over" in errors
    assert contents(tmp_path) == before


def test_a_manifest_of_others_is_kept(predict, scans, tmp_path):
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.parent.mkdir()
    manifest.write_text('{"mine": 1}\n')
    status, errors = predict(*scans, "-o", tmp_path / "out")
    assert status == 1 and "manifest.jsonl: exists and was not made by this library" in errors
    assert contents(tmp_path / "out") == {"manifest.jsonl": b'{"mine": 1}\n'}
    assert predict(*scans, "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert predict(*scans, "-o", tmp_path / "out")[0] == 0  # ours now
    manifest.write_text(manifest.read_text() + "a note\n")
    status, errors = predict(*scans, "-o", tmp_path / "out")
    assert status == 1 and "was changed since" in errors and manifest.read_text().endswith("a note\n")


def test_a_corrected_mask_is_kept_and_the_others_are_not_made_twice(predict, scans, tmp_path):
    output = tmp_path / "out"
    assert predict(*scans, "-o", output)[0] == 0
    mask = nib.load(output / "segmentation-1.nii.gz")
    labels = np.array(mask.dataobj)
    labels[3, 3, 1] = 2 - labels[3, 3, 1]
    labels[4, 3, 1] = 0
    nib.save(nib.Nifti1Image(labels, mask.affine, mask.header), output / "segmentation-1.nii.gz")
    before = contents(output)
    for more in ([], ["--probabilities"]):
        status, errors = predict(*scans, "-o", output, *more)
        assert status == 1 and "segmentation-1.nii.gz: exists and was changed since" in errors
        assert contents(output) == before
    (output / "segmentation-2.nii.gz").unlink()
    assert predict(*scans, "-o", output, "--resume")[0] == 0  # its row is still there
    assert contents(output)["segmentation-1.nii.gz"] == before["segmentation-1.nii.gz"]
    assert is_ours(output / "segmentation-2.nii.gz", "mask")
    # what can't be kept is asked for before the first volume
    predict.model.write_text("second")
    (output / "segmentation-2.nii.gz").unlink()
    status, errors = predict(*scans, "-o", output, "--resume")
    assert status == 1 and "was changed since" in errors and not (output / "segmentation-2.nii.gz").exists()
    assert predict(*scans, "-o", output, "--overwrite")[0] == 0
    assert is_ours(output / "segmentation-1.nii.gz", "mask")


def test_resume_keeps_no_mask_of_a_model_that_was_overwritten(predict, scans, tmp_path, monkeypatch):
    output = tmp_path / "out"
    made = []
    real = predictor_module.Predictor.predict

    def noted(self, source, **options):
        made.append(source.name)
        return real(self, source, **options)

    monkeypatch.setattr(predictor_module.Predictor, "predict", noted)
    for content, times, expected in (
        ("first", None, 2),
        ("first", None, 0),
        ("second", (0, 0), 2),  # whatever the time of the file
    ):
        predict.model.write_text(content)
        if times:
            os.utime(predict.model, times)
        made.clear()
        assert predict(*scans, "-o", output, "--resume")[0] == 0
        assert len(made) == expected
    first = read_signed_line((output / "manifest.jsonl").read_text().splitlines()[0], "manifest")
    assert len(first["model_sha256"]) == 64
    # the same model by another path is the same model
    moved = shutil.copy(predict.model, tmp_path / "copy.keras")
    made.clear()
    words = ["predict", *map(str, scans), "-o", str(output), "--resume", "--no-postprocessing", "--model", str(moved)]
    assert main(words) == 0 and not made


def test_a_failing_uncertainty_leaves_no_mask(predict, scans, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ls.errors.LiverSegError("too uncertain")

    monkeypatch.setattr(uncertainty, "measure_uncertainty", fail)
    status, errors = predict(*scans, "-o", tmp_path / "out", "--uncertainty", "--probabilities")
    assert status == 1 and "too uncertain" in errors
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["manifest.jsonl"]
    # nor does it cost an earlier mask
    monkeypatch.undo()
    monkeypatch.setattr(predictor_module, "open_runtime", lambda path: Threshold())
    assert predict(*scans, "-o", tmp_path / "out")[0] == 0
    before = contents(tmp_path / "out")
    monkeypatch.setattr(uncertainty, "measure_uncertainty", fail)
    assert predict(*scans, "-o", tmp_path / "out", "--uncertainty")[0] == 1
    after = contents(tmp_path / "out")
    assert set(before) == set(after)
    assert all(after[name] == before[name] for name in before if name.endswith(".gz"))


def test_names_as_long_as_the_file_system_allows(predict, scans, tmp_path):
    name = "m" * 244 + ".nii.gz"
    assert len(name) == 251
    assert predict(scans[0], "-o", tmp_path / name)[0] == 0
    assert is_ours(tmp_path / name, "mask")
    status, errors = predict(scans[0], "-o", tmp_path / ("m" * 300 + ".nii.gz"))
    assert status == 1 and "File name too long" in errors and "unexpectedly" not in errors


@pytest.mark.slow
def test_a_preview_lies_beside_the_mask_and_only_ours_is_replaced(predict, scans, tmp_path):
    from PIL import Image

    arguments = (scans[0], "-o", tmp_path / "out", "--preview")
    assert predict(*arguments)[0] == 0
    picture = tmp_path / "out" / "segmentation-1_preview.png"
    width, height = Image.open(picture).size
    assert width / height == pytest.approx(16 / 9, rel=0.01) and width >= 1500
    assert predict(*arguments)[0] == 0  # our own is replaced
    picture.write_bytes(b"mine")
    before = contents(tmp_path / "out")
    status, errors = predict(*arguments)
    assert status == 1 and "_preview.png" in errors
    assert contents(tmp_path / "out") == before
