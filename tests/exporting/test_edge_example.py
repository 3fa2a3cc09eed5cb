"""The edge script, in a process that can't import TensorFlow or this library."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.phantom import make_phantom
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.shipped import shipped_model

pytestmark = pytest.mark.slow

pytest.importorskip("ai_edge_litert")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "edge" / "segment.py"
BARE = """
import runpy, sys
for name in ("tensorflow", "keras", "liverseg_tf", "scipy", "segmentation_models"):
    sys.modules[name] = None
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


def run(*arguments):
    command = [sys.executable, "-c", BARE, SCRIPT, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def test_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 90


def test_gives_the_files_mask_at_512_and_nearly_the_predictors(tflite_files, body_hu, write_nifti, tmp_path):
    hu = np.moveaxis(body_hu((3, 512, 512)), 0, 2).astype(np.int16)
    ct = write_nifti(tmp_path / "ct.nii.gz", hu)
    done = run(tflite_files["float16"], ct, tmp_path / "mask.nii.gz", "--threads", 1)
    assert done.returncode == 0, done.stderr
    mask = nib.load(tmp_path / "mask.nii.gz")
    predictor = Predictor(tflite_files["float16"], postprocessing=None)
    volume = predictor.read(ct)
    whole = np.moveaxis(predictor.runtimes[0].labels(volume.slices(0, 3)), 0, 2)  # the file as it is
    labels = np.asarray(mask.dataobj)
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(labels, volume.geometry.to_file(whole))
    # the predictor computes channels itself: they differ by 1e-7, and a label may where two classes are nearly alike
    assert (labels == predictor.predict(ct).labels).mean() > 0.9999
    assert "ml" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct.nii.gz", "mask.nii.gz"]


def test_other_sizes_and_orientations_come_back_in_their_own_grid(tmp_path):
    """With a trained network: an untrained one goes by the last digits of its input."""
    model = next(shipped_model("liverseg-lite0").glob("*.tflite"))
    phantom = make_phantom(1, (96, 96, 8))
    affine = phantom.geometry.affine
    image = nib.Nifti1Image(phantom.geometry.to_file(phantom.hu)[:, :70].astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("PIR"))
    masks = []
    for name, ct in (("ct", image), ("turned", image.as_reoriented(turn))):
        nib.save(ct, tmp_path / f"{name}.nii")
        done = run(model, tmp_path / f"{name}.nii", tmp_path / f"{name}_mask.nii.gz")
        assert done.returncode == 0, done.stderr
        masks.append(nib.load(tmp_path / f"{name}_mask.nii.gz"))
        assert masks[-1].shape == ct.shape
        assert np.allclose(masks[-1].affine, ct.affine)
    assert np.array_equal(masks[0].as_reoriented(turn).dataobj, masks[1].dataobj)
    expected = Predictor(model, postprocessing=None).predict(tmp_path / "ct.nii").labels
    # padding and scaling come before the windows here
    assert (np.asarray(masks[0].dataobj) == expected).mean() > 0.97 and (expected > 0).mean() > 0.04


def test_an_existing_file_is_not_written_over(tflite_files, tmp_path):
    (tmp_path / "mask.nii").write_text("mine")
    done = run(tflite_files["float32"], tmp_path / "ct.nii", tmp_path / "mask.nii")
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert (tmp_path / "mask.nii").read_text() == "mine"


def test_what_cannot_be_used_is_one_line(write_nifti, tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    model, mask = next(shipped_model().glob("*.tflite")), tmp_path / "mask.nii.gz"
    ct = write_nifti(tmp_path / "ct.nii.gz", np.zeros((8, 9, 2), np.int16))
    flat = write_nifti(tmp_path / "flat.nii", np.zeros((8, 9), np.int16))
    (tmp_path / "text.nii.gz").write_text("no CT")
    (tmp_path / "cut.nii.gz").write_bytes(ct.read_bytes()[:-40])
    (tmp_path / "cut.tflite").write_bytes(model.read_bytes()[:1000])
    for arguments, told in (
        ((tmp_path / "none.tflite", ct, mask), "none.tflite: there is no such file"),
        ((tmp_path / "cut.tflite", ct, mask), ""),
        ((model, tmp_path / "none.nii", mask), "none.nii"),
        ((model, tmp_path / "text.nii.gz", mask), "text.nii.gz"),
        ((model, tmp_path / "cut.nii.gz", mask), ""),
        ((model, flat, mask), "three axes"),
        ((model, ct, tmp_path / "mask.png"), "name ending in .nii"),
        ((model, ct, tmp_path / "no folder" / "mask.nii"), "no folder"),
    ):
        monkeypatch.setattr("sys.argv", ["segment.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 1
        assert line.startswith("segment.py: error: ") and told in line
    assert not list(tmp_path.glob("*mask*"))
