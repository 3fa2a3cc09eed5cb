"""Volumes and masks behind URLs: a memory file system, and an S3 server on loopback."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.data import remote
from liverseg_tf.errors import InputFileError, LiverSegError, MissingDependencyError, OutputError
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.predict_files import predict_files
from liverseg_tf.ownership import read_signed_line

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec", reason="needs the extra [cloud]")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


@pytest.fixture(scope="module")
def s3():
    """A bucket of a server on loopback, and what its users need to know."""
    pytest.importorskip("s3fs", reason="needs the extra [cloud]")
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    import fsspec

    with pytest.MonkeyPatch.context() as patch:
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("archive")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield fsspec.filesystem("s3")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


def _fill(system, folder, phantom_folder):
    for number in (0, 1):
        system.put_file(str(phantom_folder / f"volume-{number}.nii.gz"), f"{folder}/p{number}/volume-{number}.nii.gz")
        system.put_file(str(phantom_folder / f"segmentation-{number}.nii.gz"), f"{folder}/segmentation-{number}.nii.gz")
    system.pipe_file(f"{folder}/volume-2.nii.gz", b"no CT")


def test_where_things_lie():
    assert remote.is_url("s3://bucket/x") and not remote.is_url("/data/x") and not remote.is_url("file:///data/x")
    assert str(remote.location("file:///data/ct.nii")) == "/data/ct.nii"
    assert remote.join(remote.location("s3://bucket/a/"), "x.nii") == "s3://bucket/a/x.nii"


def test_a_folder_in_memory_gives_the_masks_of_local_files(memory, small_predictor, tmp_path, phantom_folder):
    _fill(memory, "/in/ct", phantom_folder)
    jobs = plan(["memory://in/ct/"], "memory://out/masks")
    assert [(job.source, job.target) for job in jobs] == [
        ("memory://in/ct/p0/volume-0.nii.gz", "memory://out/masks/segmentation-0.nii.gz"),
        ("memory://in/ct/p1/volume-1.nii.gz", "memory://out/masks/segmentation-1.nii.gz"),
        ("memory://in/ct/volume-2.nii.gz", "memory://out/masks/segmentation-2.nii.gz"),
    ]
    rows = predict_files(small_predictor, jobs, probabilities=True)
    assert [row["status"] for row in rows] == ["done", "done", "error"]
    assert rows[2]["error"].startswith("memory://in/ct/volume-2.nii.gz: ")
    names = sorted(name.rsplit("/", 1)[1] for name in memory.find("/out"))
    assert names == sorted(f"segmentation-{n}{kind}.nii.gz" for n in (0, 1) for kind in ("", "_liver", "_tumour"))
    expected = predict_files(small_predictor, plan([phantom_folder / "volume-0.nii.gz"], tmp_path))[0]
    assert rows[0]["statistics"] == expected["statistics"] and rows[0]["output"] == jobs[0].target
    assert not [w for row in rows for w in row["warnings"] if "liverseg-" in w]  # no name of a temporary folder
    memory.get_file("/out/masks/segmentation-0.nii.gz", str(tmp_path / "got.nii.gz"))
    np.testing.assert_array_equal(
        ls.MaskVolume.load(tmp_path / "got.nii.gz").labels, ls.MaskVolume.load(expected["output"]).labels
    )


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_nothing_of_others_is_written_over(memory, phantom_folder, tmp_path, write_nifti, name):
    _fill(memory, "/in", phantom_folder)
    by_others = write_nifti(tmp_path / name, np.zeros((4, 4, 4), np.uint8))
    memory.put_file(str(by_others), "/out/segmentation-0.nii.gz")
    with pytest.raises(OutputError, match="memory://out/segmentation-0.nii.gz: exists and was not made by"):
        plan(["memory://in"], "memory://out")
    assert len(plan(["memory://in"], "memory://out", overwrite=True)) == 3
    url = "memory://in/p0/volume-0.nii.gz"
    with pytest.raises(OutputError, match="is an input"):
        plan([url], url, overwrite=True)


def test_an_upload_that_fails_leaves_nothing(memory, monkeypatch, tmp_path):
    (tmp_path / "x").write_bytes(b"whole")
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "mv", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OutputError, match="memory://out/x: could not be written .*no space left"):
            remote.store(tmp_path / "x", "memory://out/x")
    assert memory.find("/out") == []
    remote.store(tmp_path / "x", "memory://out/x")
    assert [memory.cat_file(name) for name in memory.find("/out")] == [b"whole"]


@pytest.mark.slow
def test_the_command_from_bucket_to_bucket_and_on(s3, phantom_folder, small_model_file, capsys):
    _fill(s3, "archive/ct", phantom_folder)
    s3.put_file(str(phantom_folder / "volume-3.nii.gz"), "archive/ct2/volume-3.nii.gz")  # another folder
    command = ["predict", "s3://archive/ct", "-o", "s3://archive/out", "--model", str(small_model_file), "--json"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "s3://archive/ct/volume-2.nii.gz: " in captured.err
    rows = json.loads(captured.out)["volumes"]
    assert [row["status"] for row in rows] == ["done", "done", "error"]
    objects = {f"archive/out/{name}" for name in ("manifest.jsonl", "segmentation-0.nii.gz", "segmentation-1.nii.gz")}
    assert set(s3.find("archive/out", refresh=True)) == objects
    lines = [read_signed_line(line, "manifest") for line in s3.cat_file("archive/out/manifest.jsonl").splitlines()]
    assert lines[1:] == rows and lines[0]["model"] == str(small_model_file)

    made = {name: s3.info(name, refresh=True)["ETag"] for name in objects if name.endswith(".gz")}
    written = s3.info("archive/out/segmentation-0.nii.gz")["LastModified"]
    s3.put_file(str(phantom_folder / "volume-2.nii.gz"), "archive/ct/volume-2.nii.gz")
    assert main([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)["volumes"]
    assert again[:2] == rows[:2] and again[2]["status"] == "done"
    s3.invalidate_cache()
    assert {name: s3.info(name)["ETag"] for name in made} == made
    assert s3.info("archive/out/segmentation-0.nii.gz")["LastModified"] == written


def test_a_signed_address_is_read_and_its_signature_told_nowhere(small_predictor, tmp_path, phantom_folder):
    pytest.importorskip("aiohttp", reason="needs the extra [cloud]")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(phantom_folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        secrets = "X-Amz-Signature=hush1&se=2030&sig=hu%2Fsh2&token=hush3"
        (row,) = ls.predict_folder(f"{address}/volume-0.nii.gz?{secrets}", tmp_path / "out", model=small_predictor)
        with pytest.raises(InputFileError, match="missing.nii.gz") as caught:
            plan([f"{address}/missing.nii.gz?{secrets}"], tmp_path)
        server.shutdown()
    assert row["status"] == "done" and row["output"].endswith("segmentation-0.nii.gz")
    assert row["input"] == f"{address}/volume-0.nii.gz?X-Amz-Signature=***&se=2030&sig=***&token=***"
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"segmentation-0.nii.gz", "manifest.jsonl"}
    assert "hu" not in str(caught.value).split("?", 1)[1] and "sh2" not in str(caught.value)
    assert "hush" not in (tmp_path / "out" / "manifest.jsonl").read_text()


def test_what_is_missing_is_named(s3, small_predictor, tmp_path, phantom_folder, monkeypatch):
    for url, text in {
        "s3://archive/nothing": "s3://archive/nothing: expected CTs .* no such folder",
        "s3://no-bucket/ct": "s3://no-bucket/ct: could not be listed: no such file, folder or bucket",
        "nope://host/ct": "nope://host/ct: expected a path, s3://",
    }.items():
        with pytest.raises(InputFileError, match=text):
            plan([url], tmp_path)
    ct = phantom_folder / "volume-0.nii.gz"
    with pytest.raises(LiverSegError, match="s3://no-bucket/out: could not be listed"):
        plan([ct], "s3://no-bucket/out")
    with pytest.raises(OutputError, match="s3://no-bucket/x.nii: could not be written"):
        remote.store(ct, "s3://no-bucket/x.nii")
    s3.put_file(str(ct), "archive/gone/volume-0.nii.gz")
    jobs = plan(["s3://archive/gone/volume-0.nii.gz"], tmp_path)
    s3.rm_file("archive/gone/volume-0.nii.gz")
    (row,) = predict_files(small_predictor, jobs)
    assert "s3://archive/gone/volume-0.nii.gz: could not be read: no such file" in row["error"]


def test_a_missing_package_names_the_extra(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fsspec.core", None)
        patch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(MissingDependencyError, match=r"liverseg_tf\[cloud\]"):
            remote.listing("s3://bucket/ct")
    pytest.importorskip("fsspec", reason="needs the extra [cloud]")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"gs://bucket/ct: .*liverseg_tf\[cloud\]"):
        remote.listing("gs://bucket/ct")


@pytest.mark.slow
def test_local_paths_load_no_fsspec(tmp_path, phantom_folder):
    code = (
        "import sys; from liverseg_tf.inference.jobs import plan; "
        f"assert plan([{str(phantom_folder)!r}], 'file://{tmp_path}/out'); assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
