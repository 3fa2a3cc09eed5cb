"""A cohort on Ray: the same masks as one process gives, and nothing lost or done twice whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.errors import ConfigError, LiverSegError, MissingDependencyError, ServerError
from liverseg_tf.inference.jobs import Job, plan
from liverseg_tf.inference.predict_files import predict_files
from liverseg_tf.ownership import read_signed_line
from tests.documented_fields import keys_of, undocumented

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")

# Runs in every Python of the cluster: a volume that kills who reads it, and a node that is slow.
_ACCIDENTS = """
import os, signal, sys, time
def _accident(event, arguments):
    if event == "open" and str(arguments[0]).startswith({data!r}) and "volume-" in str(arguments[0]):
        if "volume-13." in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("LIVERSEG_TEST_SLOW"):
            os.close(os.open({slow_was_here!r}, os.O_CREAT | os.O_WRONLY))
            time.sleep(1)
        time.sleep(0.2)
sys.addaudithook(_accident)
"""


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="needs the extra [ray]")


@pytest.fixture
def data(tmp_path, phantom_folder):
    """Fourteen volumes: the phantoms by other numbers, and one that is none."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(14):
        shutil.copy(phantom_folder / f"volume-{number % 6}.nii.gz", folder / f"volume-{number}.nii.gz")
    (folder / "volume-7.nii.gz").write_text("no CT")
    return folder


@pytest.fixture
def cluster(ray, data, tmp_path, monkeypatch):
    """A head without CPUs, two nodes, and a slow one."""
    from ray.cluster_utils import Cluster

    (tmp_path / "site").mkdir()
    accidents = _ACCIDENTS.format(data=str(data), slow_was_here=str(tmp_path / "slow"))
    (tmp_path / "site" / "sitecustomize.py").write_text(accidents)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    settings = {"object_store_memory": 80 * 1024**2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **settings})
    try:
        cluster.nodes = [cluster.add_node(num_cpus=1, **settings) for _ in range(2)]
        monkeypatch.setenv("LIVERSEG_TEST_SLOW", "1")
        cluster.nodes.append(cluster.add_node(num_cpus=1, **settings))
        monkeypatch.delenv("LIVERSEG_TEST_SLOW")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_labels_are_those_of_one_process_and_a_volume_that_hangs_is_given_up(
    ray, tmp_path, phantom_folder, small_model_file
):
    def hang(predictor, prediction, path):
        if "segmentation-5" in path.name:
            time.sleep(600)
        return {}

    jobs = plan([phantom_folder], tmp_path / "ray")
    threads = os.cpu_count() or 1  # as many as TensorFlow takes in this process
    predictor = ls.Predictor(small_model_file, batch_size=4)
    limits = {"attempts": 1, "timeout_s": 15}
    rows = predict_files(predictor, jobs, engine="ray", workers=1, threads=threads, extra=hang, **limits)
    assert not ray.is_initialized()
    expected = predict_files(predictor, plan([phantom_folder], tmp_path / "one"))
    found = set()
    for one, other in zip(rows[:5], expected[:5], strict=True):
        assert one["statistics"] == other["statistics"] and one["warnings"] == other["warnings"]
        labels = ls.MaskVolume.load(other["output"]).labels
        np.testing.assert_array_equal(ls.MaskVolume.load(one["output"]).labels, labels)
        found.update(np.unique(labels).tolist())
    assert len(found) > 1  # else it would pass for nothing
    assert "volume-5.nii.gz: crashed the worker once (took more than 15 s)" in rows[5]["error"]


@pytest.mark.slow
def test_a_cohort_of_dicom_series_gives_the_objects_of_one_process(ray, tmp_path, tflite_file):
    pytest.importorskip("highdicom")
    from liverseg_tf.data.dicom.writing import write_series

    for number, broken in ((1, False), (2, False), (3, True)):
        phantom = ls.make_phantom(number, (48, 48, 8))
        folder = tmp_path / "studies" / f"patient{number}"
        folder.mkdir(parents=True)
        hu = np.asarray(phantom.geometry.to_file(phantom.hu), np.int16)
        written = write_series(hu, phantom.geometry.affine, folder, seed=number)
        if broken:
            written[4].unlink()
    options = {"formats": "nifti,seg", "postprocessing": None}
    on_ray = {"engine": "ray", "ray_options": {"workers": 1, "threads": os.cpu_count() or 1}}
    rows = ls.predict_folder(tmp_path / "studies", tmp_path / "ray", tflite_file, **options, **on_ray)
    expected = ls.predict_folder(tmp_path / "studies", tmp_path / "one", tflite_file, **options)
    assert [Path(row["output"]).name for row in rows] == ["patient1_seg.nii.gz", "patient2_seg.nii.gz"]
    for row, other in zip(rows, expected, strict=True):
        assert row["status"] == "done" and row["series"] == other["series"]
        assert [one["read_again"] for one in row["objects"]] == [one["read_again"] for one in other["objects"]]
        labels = ls.MaskVolume.load(row["output"]).labels
        np.testing.assert_array_equal(labels, ls.MaskVolume.load(other["output"]).labels)
        ct = ls.CTVolume.load(row["input"])
        np.testing.assert_array_equal(ls.MaskVolume.load(row["objects"][0]["output"], like=ct).labels, labels)


@pytest.mark.slow
def test_every_volume_ends_once_whatever_dies(ray, cluster, data, tmp_path, tflite_file, capsys):
    expected = predict_files(ls.Predictor(tflite_file), plan([data / "volume-1.nii.gz"], tmp_path / "one"))[0]
    output, caused = tmp_path / "out", []
    command = ["predict", str(data), "-o", str(output), "--model", str(tflite_file)]
    on_ray = ["--engine", "ray", "--address", cluster.address, "--workers", "3", "--threads", "1"]
    accidents = threading.Thread(target=_cause_accidents, args=(cluster, output, caused), daemon=True)
    accidents.start()
    assert main([*command, *on_ray, "--json"]) == 1
    accidents.join(60)
    assert caused == ["worker killed", "node killed"]
    assert (tmp_path / "slow").exists()  # the slow node had its share

    told = json.loads(capsys.readouterr().out)["volumes"]
    assert [Path(row["input"]).name for row in told] == [job.source.name for job in plan([data], output)]
    manifest = [read_signed_line(line, "manifest") for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert manifest[1:] == told and len(told) == 14
    assert {"worker", "attempts"} <= keys_of(told)
    assert not undocumented(told, "Manifest of `predict`", "Statistics of a mask")
    status = {Path(row["input"]).name: row for row in told}
    crashed, broken = status.pop("volume-13.nii.gz"), status.pop("volume-7.nii.gz")
    assert "volume-13.nii.gz: crashed the worker 3 times" in crashed["error"] and crashed["attempts"] == 3
    assert "is no gzip file" in broken["error"]  # its own error, also if its worker died of what it read ahead
    assert {row["status"] for row in status.values()} == {"done"}
    assert any(row.get("attempts") for row in status.values())  # what the dead worker and the dead node had in hand
    names = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
    assert names == sorted(["manifest.jsonl", *(Path(row["output"]).name for row in status.values())])
    for name in ("volume-1.nii.gz", "volume-13.nii.gz"):
        assert (output / name.replace("volume", "segmentation")).exists() == (name in status)
    mask = ls.MaskVolume.load(status["volume-1.nii.gz"]["output"]).labels
    np.testing.assert_array_equal(mask, ls.MaskVolume.load(expected["output"]).labels)

    # a second call does what is missing or has failed, and no more
    (output / "segmentation-0.nii.gz").unlink()
    shutil.copy(data / "volume-1.nii.gz", data / "volume-7.nii.gz")
    (data / "volume-13.nii.gz").unlink()
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    assert main([*command, *on_ray, "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["volumes"]
    assert [row["status"] for row in again] == ["done"] * 13
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list(output.glob("seg*.nii.gz"))) == 13  # what a killed worker staged is hidden, and goes later


def _cause_accidents(cluster, output: Path, caused: list[str]) -> None:
    """When the first masks are there, kill a worker at work; then, a few masks later, a whole node at work."""
    masks = "seg*.nii.gz"
    _wait_for(lambda: len(list(output.glob(masks))) >= 2)
    os.kill(_wait_for(lambda: [pid for node in cluster.nodes[:2] for pid in _workers_of(node)])[0], signal.SIGKILL)
    caused.append("worker killed")
    _wait_for(lambda: len(list(output.glob(masks))) >= 4)
    node = _wait_for(lambda: [node for node in cluster.nodes[:2] if _workers_of(node)])[0]
    cluster.remove_node(node, allow_graceful=False)
    caused.append("node killed")


def _wait_for(condition):
    end = time.monotonic() + 90
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def _workers_of(node) -> list[int]:
    """Processes of a node that predict at this moment; Ray names them by what they do."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for children in Path(f"/proc/{raylet.process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"predict" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_what_cannot_work_is_said_at_once(ray, tmp_path, small_model, small_model_file, phantom_folder):
    jobs = plan([phantom_folder], tmp_path / "out")
    predictor = ls.Predictor(small_model_file)
    with pytest.raises(ConfigError, match="made from a model's path"):
        predict_files(ls.Predictor(small_model), jobs, engine="ray")
    with pytest.raises(ConfigError, match="is in this process"):
        predict_files(predictor, [Job("memory://a/ct.nii", "memory://b/ct_seg.nii.gz")], engine="ray")
    with pytest.raises(ServerError, match="ray start --head"):
        predict_files(predictor, jobs, engine="ray", address="127.0.0.1:9")
    with pytest.raises(ConfigError, match="at least 1"):
        predict_files(predictor, jobs, engine="ray", workers=0)
    assert predict_files(predictor, [], engine="ray") == []


def test_options_that_do_not_fit(monkeypatch, tmp_path, small_model_file, phantom_folder, capsys):
    predictor, jobs = ls.Predictor(small_model_file), plan([phantom_folder], tmp_path / "out")
    with pytest.raises(ConfigError, match="expected one of embedded, ray"):
        predict_files(predictor, jobs, engine="spark")
    with pytest.raises(ConfigError, match="engine='ray'"):
        predict_files(predictor, jobs, workers=2)
    command = ["predict", str(phantom_folder), "-o", str(tmp_path / "out"), "--engine", "ray"]
    assert main([*command, "--server", "http://localhost:1/x"]) == 1
    assert "--server and --engine ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"liverseg_tf\[ray\]"):
        predict_files(predictor, jobs, engine="ray")
    assert issubclass(MissingDependencyError, LiverSegError)
