"""DICOMweb: a study from an archive and objects back to it, against Orthanc where it is installed."""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dicomweb_client")

from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.dicom.web import TOKEN_VARIABLE, fetch_series, send_objects  # noqa: E402
from liverseg_tf.data.volume import CTVolume, MaskVolume  # noqa: E402
from liverseg_tf.errors import ConfigError, InputFileError, OutputError, ServerError  # noqa: E402
from tests.dicom_objects.conftest import make_findings  # noqa: E402, F401
from tests.documented_fields import undocumented  # noqa: E402

PLUGIN = next((p for p in (Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),) if p.exists()), None)
ORTHANC = shutil.which("Orthanc")


@pytest.fixture
def own_object(make_series):
    """A folder with one object of ours among a CT."""
    folder = make_series("out")
    data = pydicom.dcmread(folder / "IM000")
    data.Manufacturer = "liverseg_tf"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    data.SeriesInstanceUID = "1.2.3.4"
    data.save_as(folder / "own.dcm")
    return folder


@pytest.fixture
def answering():
    """Start a server that answers everything with one status and body; returns its URL and the requests it saw."""
    servers = []

    def start(status, answer=b"[]"):
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                seen.append((self.path, self.headers.get("Authorization")))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b"{}" if self.command == "POST" else answer
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/dicom-web", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_credentials_in_urls_and_open_networks_are_refused(own_object, tmp_path):
    with pytest.raises(ConfigError, match="without a password") as caught:
        send_objects([own_object], "https://user:hush@host/dicom-web")
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected https://"):
        fetch_series("http://pacs.example/dicom-web", "1.2", tmp_path / "x")
    with pytest.raises(ConfigError, match="expected the URL"):
        fetch_series("ftp://pacs.example", "1.2", tmp_path / "x")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [(401, b"{}", "answered 401; check ~/.netrc"), (500, b"{}", "answered 500"), (200, b"<html>", "can't be read")],
)
def test_answers_that_are_none(answering, tmp_path, status, body, words):
    url, _ = answering(status, body)
    with pytest.raises(ServerError, match=words):
        fetch_series(url, "1.2.3", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_the_archive_does_not_list_was_not_sent(answering, own_object, monkeypatch):
    url, seen = answering(200)
    monkeypatch.setenv(TOKEN_VARIABLE, "abc")
    with pytest.raises(ServerError, match="took own.dcm but does not list it"):
        send_objects([own_object], url)
    assert {authorization for _, authorization in seen} == {"Bearer abc"}
    with pytest.raises(InputFileError, match="holds no CT series of study 9.9"):
        fetch_series(url, "9.9", own_object / "x")


def test_nobody_is_there(own_object, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["send", str(own_object), "--to", f"http://127.0.0.1:{port}/dicom-web"]) == 1
    assert "can't be reached" in capsys.readouterr().err


def test_only_our_objects_are_sent(make_series):
    with pytest.raises(InputFileError, match="expected DICOM objects of this library"):
        send_objects([make_series("ct")], "http://localhost:1/dicom-web")


@pytest.fixture
def orthanc(tmp_path, monkeypatch):
    """An archive on the loopback that wants a password, which ~/.netrc has."""
    if ORTHANC is None or PLUGIN is None:
        pytest.skip("Orthanc and its DICOMweb plugin (Debian: orthanc orthanc-dicomweb) are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"tester": "hush"},
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login tester password hush\n")
    monkeypatch.setenv("NETRC", str(netrc))
    process = subprocess.Popen(
        [ORTHANC, str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with pytest.MonkeyPatch.context(), socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            pytest.skip("Orthanc did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_study_in_and_objects_back_with_orthanc(orthanc, make_series, own_object, tmp_path, hu, monkeypatch):
    folder = make_series("ct")
    for path in folder.iterdir():
        request = urllib.request.Request(f"{orthanc}/instances", path.read_bytes(), method="POST")
        request.add_header("Authorization", "Basic dGVzdGVyOmh1c2g=")
        urllib.request.urlopen(request, timeout=10).read()
    study = str(pydicom.dcmread(folder / "IM000").StudyInstanceUID)
    (fetched,) = fetch_series(f"{orthanc}/dicom-web", study, tmp_path / "in")
    volume = CTVolume.load(fetched, hu_range=None)
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), hu)
    with pytest.raises(OutputError, match="exists already"):
        fetch_series(f"{orthanc}/dicom-web", study, tmp_path / "in")
    rows = send_objects([own_object], f"{orthanc}/dicom-web")
    assert not undocumented({"sent": rows}, "Other commands")
    assert [row["instance"] for row in rows] == ["1.2.3.4.5"]
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ServerError, match="answered 401"):
        send_objects([own_object], f"{orthanc}/dicom-web")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_masks_come_back_from_orthanc_to_the_voxel(orthanc, make_findings, tmp_path, kind):  # noqa: F811
    from liverseg_tf.data.dicom.formats import PRODUCTS
    from liverseg_tf.dicom_objects.objects import write_dicom_objects
    from liverseg_tf.dicom_objects.proof import prove

    found = make_findings()
    rows = write_dicom_objects(found.labels, found.volume, tmp_path / "out", PRODUCTS, segmentation_type=kind)
    sent = send_objects([tmp_path / "out"], f"{orthanc}/dicom-web")
    assert sorted(row["modality"] for row in sent) == ["DOC", "OT", "RTSTRUCT", "SEG", "SR"]
    for row in sent:
        (folder,) = fetch_series(f"{orthanc}/dicom-web", row["study"], tmp_path / "back", row["series"])
        (path,) = folder.iterdir()
        if row["modality"] == "SEG":
            np.testing.assert_array_equal(MaskVolume.load(path, like=found.volume).labels, found.labels)
        if row["modality"] == "OT":
            np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, pydicom.dcmread(row["file"]).pixel_array)
        if row["modality"] != "DOC":
            assert prove(path, found) == next(r["read_again"] for r in rows if r["output"] == row["file"])
