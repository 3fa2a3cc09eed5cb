"""Full disks, folders that can't be written, several threads, many volumes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import resource
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.errors import LiverSegError, OutputError
from liverseg_tf.files import write_text
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.predict_files import predict_files
from liverseg_tf.inference.run_manifest import RunManifest
from liverseg_tf.models.saving import save_model
from tests.processes import Fork

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@contextlib.contextmanager
def full_disk(most_bytes=6000):
    """No file can become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def predictor(small_model):
    return ls.Predictor(small_model, postprocessing=None)


@pytest.fixture(scope="module")
def prediction(predictor):
    hu = np.random.default_rng(0).normal(0, 300, (96, 96, 12))
    return predictor.predict(hu, spacing_mm=(2, 2, 4), probabilities=True)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SLOW = [pytest.param(what, marks=pytest.mark.slow) for what in ("tflite", "savedmodel")]


@pytest.mark.parametrize("what", ["mask", "probabilities", "text", "model", "phantoms", *SLOW])
def test_a_full_disk_is_told_and_leaves_the_old_result(what, prediction, small_model, small_config, tmp_path):
    def write(folder):
        if what == "mask":
            prediction.save(folder / "mask.nii.gz")
        elif what == "probabilities":
            prediction.save_probabilities(folder / "mask.nii")
        elif what == "text":
            write_text(folder / "scores.json", "1234567890" * 1000)
        elif what == "model":
            save_model(small_model, small_config, folder / "model.keras")
        elif what == "tflite":
            ls.export(small_model, folder / "m.tflite", "tflite")
        elif what == "savedmodel":
            ls.export(small_model, folder / "serving")
        else:
            ls.write_phantoms(folder, cases=1, shape=(64, 64, 8))

    if what not in ("tflite", "savedmodel"):  # these two take long
        write(tmp_path)
        assert tree(tmp_path)
    before = tree(tmp_path)
    told = r"could not be written \(.*check the folder's rights and free space"
    with pytest.raises(OutputError, match=told), full_disk():
        write(tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("words", ["predict {ct} -o", "evaluate --truth {ct} --prediction {ct} -o"])
def test_folders_that_cannot_be_written(words, small_model, monkeypatch, capsys, tmp_path, write_nifti):
    import liverseg_tf.inference.predictor as module

    runtime = ls.Predictor(small_model).runtimes[0]
    monkeypatch.setattr(module, "open_runtime", lambda model: runtime)
    ct = write_nifti(tmp_path / "ct.nii", np.zeros((8, 8, 2), np.uint8))
    words = words.split()
    name = "mask.nii.gz" if words[0] == "predict" else "scores.json"
    target = Path("/proc/liverseg") / name  # not even root can write there
    if not Path("/proc").is_dir():
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / name
    more = ["--model", "x"] if words[0] == "predict" else []
    assert main([w.format(ct=ct) for w in words] + [str(target), *more]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert "could not be written" in line
    assert str(target) in line


def test_one_predictor_for_several_threads(predictor):
    volumes = [np.random.default_rng(i).normal(0, 300, (40 + i, 36, 4)) for i in range(12)]
    expected = [predictor.predict(hu, spacing_mm=(2, 2, 4)).canonical_labels for hu in volumes]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda hu: predictor.predict(hu, spacing_mm=(2, 2, 4)).canonical_labels, volumes)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        MemoryError("Unable to allocate 9 TiB"),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(error, small_config, tmp_path, write_nifti):
    class Greedy:
        config = small_config
        is_remote, slices_at_once = False, 1

        def labels(self, hu):
            raise error

        probabilities = labels

    predictor = ls.Predictor(Greedy())
    hu = np.zeros((32, 30, 5), np.int16)
    told = "volume: 32 x 30 x 5 voxels, 5 slices at a time, need more memory than is available; take a smaller "
    told += "batch_size="
    with pytest.raises(LiverSegError, match=told):
        predictor.predict(hu, spacing_mm=(2, 2, 4))
    path = write_nifti(tmp_path / "ct.nii", hu)
    (row,) = predict_files(predictor, plan([path], tmp_path / "out"), probabilities=True)
    assert "more memory than is available with probabilities" in row["error"]
    assert not (tmp_path / "out").exists()


def many_volumes(model, folder):
    warnings.simplefilter("ignore")
    held = []

    def on_done(row):
        assert row["status"] == "done", row
        if len(held) in (9, 49):  # collecting takes long where TensorFlow is loaded
            gc.collect()
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)

    predict_files(ls.Predictor(model, postprocessing=None), plan([folder], folder / "out"), on_done=on_done)
    assert len(held) == 50
    assert held[-1] - held[9] < 40, held  # forty volumes' HU and channels would take 80 MB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_volumes(small_model_file, tmp_path, write_nifti):
    hu = np.kron(np.random.default_rng(0).normal(0, 300, (8, 8, 2)), np.ones((32, 32, 1))).astype(np.int16)
    for number in range(50):
        write_nifti(tmp_path / f"volume-{number}.nii", hu + number)
    # in a process of its own: what earlier tests left in this one comes and goes by more than that
    done = Fork(many_volumes, small_model_file, tmp_path).end()
    assert done.status == 0, done.errors[-2000:]


def test_a_killed_run_goes_on_where_it_stopped(predictor, tmp_path, write_nifti):
    hu = np.random.default_rng(0).normal(0, 300, (32, 32, 2)).astype(np.int16)
    for number in (1, 2, 3):
        write_nifti(tmp_path / "data" / f"volume-{number}.nii", hu)
    jobs, where, settings = plan([tmp_path / "data"], tmp_path / "out"), tmp_path / "out" / "m.jsonl", {"a": (1, 2)}
    manifest = RunManifest(where, "x", settings)
    assert manifest.finished(jobs) == {}
    manifest.write()
    predict_files(predictor, jobs[:2], on_done=manifest.add)
    with where.open("a") as file:
        file.write('{"input": "cut in the mid')
    finished = manifest.finished(jobs)
    assert list(finished) == [job.target for job in jobs[:2]]
    times = {target: target.stat().st_mtime_ns for target in finished}
    again = predict_files(predictor, jobs, finished=finished)
    assert [row["output"] for row in again] == [str(job.target) for job in jobs]
    assert {target: target.stat().st_mtime_ns for target in finished} == times
    # what another model or other settings gave, what is gone, replaced or older than its volume, is made again
    assert RunManifest(where, "y", settings).finished(jobs) == {}
    assert RunManifest(where, "x", {"a": (1, 3)}).finished(jobs) == {}
    jobs[0].target.unlink()
    os.utime(jobs[1].source, (2**31, 2**31))
    assert manifest.finished(jobs) == {}
    for text in ("", '{"volumes": [3]}', "[[]]\n[3]\n"):
        where.write_text(text)
        assert manifest.finished(jobs) == {}


def test_results_of_nifti_2_files(predictor, tmp_path):
    hu = np.random.default_rng(0).normal(0, 300, (32, 32, 2)).astype(np.int16)
    nib.save(nib.Nifti2Image(hu, np.diag([-1, -1, 2, 1])), tmp_path / "ct.nii")
    predictor.predict(tmp_path / "ct.nii").save(tmp_path / "mask.nii.gz")
    assert isinstance(nib.load(tmp_path / "mask.nii.gz"), nib.Nifti2Image)
    assert ls.MaskVolume.load(tmp_path / "mask.nii.gz").labels.shape == (32, 32, 2)
