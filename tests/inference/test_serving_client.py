"""The client against a real endpoint on loopback: a SavedModel behind TensorFlow Serving's own stubs."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.errors import ConfigError, ServerError
from liverseg_tf.inference.postprocessing import PostProcessing
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.runtimes import Runtime
from liverseg_tf.inference.serving_client import ServingClient

pytestmark = pytest.mark.slow

pytest.importorskip("tensorflow_serving")


class Endpoint:
    """A server process: URLs by scheme, and how it is told to misbehave."""

    def __init__(self, folder):
        command = [sys.executable, Path(__file__).parents[1] / "serving_endpoint.py", folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)
        ports = json.loads(self.process.stdout.readline())
        self.urls = {"grpc": f"grpc://127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['rest']}"}

    def behave(self, **behaviour):
        self.process.stdin.write(json.dumps(behaviour) + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def endpoint(savedmodel):
    endpoint = Endpoint(savedmodel.parent)
    yield endpoint
    endpoint.kill()


@pytest.fixture
def misbehaving(endpoint):
    """Set the endpoint's behaviour for one test; gives its URLs."""

    def start(**behaviour):
        endpoint.behave(**behaviour)
        return endpoint.urls

    yield start
    endpoint.behave()


@pytest.fixture
def shared_server(endpoint):
    return endpoint.urls


@pytest.mark.parametrize("compact", [None, True, False])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_gives_what_keras_gives(shared_server, keras_runtime, body_hu, scheme, compact):
    hu = body_hu((11, 48, 40))  # more than one request
    client = ServingClient(shared_server[scheme], compact=compact)
    assert isinstance(client, Runtime)
    assert client.config == keras_runtime.config
    labels = client.labels(hu)
    assert labels.dtype == np.uint8
    assert (labels == keras_runtime.labels(hu)).mean() > 0.9999
    probabilities = client.probabilities(hu)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities, keras_runtime.probabilities(hu), atol=1e-4)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_fractions_of_hu_are_kept(shared_server, keras_runtime, body_hu, scheme):
    hu = body_hu((2, 40, 40)) + np.float32(0.3)
    assert (ServingClient(shared_server[scheme]).labels(hu) == keras_runtime.labels(hu)).mean() > 0.999


def test_replies_stay_below_grpcs_default(shared_server, keras_runtime, body_hu):
    """A client that never heard of larger messages gets them all: 20 slices of 512 x 512, and their probabilities."""
    hu = body_hu((20, 512, 512))
    client = ServingClient(shared_server["grpc"])
    sizes = []
    predict = client._transport._stub.Predict

    def watched(request, timeout):
        reply = predict(request, timeout=timeout)
        sizes.append(reply.ByteSize())
        return reply

    client._transport._stub.Predict = watched
    labels = client.labels(hu)
    assert (labels[::7] == keras_runtime.labels(hu[::7])).mean() > 0.9999
    client.probabilities(hu[:2])
    assert len(sizes) == 3 + 1 + 2  # labels, configuration, probabilities
    assert max(sizes) < 4 * 1024**2


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_predictor_puts_volumes_together_as_from_keras(
    shared_server, small_model_file, phantom_folder, tmp_path, scheme
):
    path = sorted(phantom_folder.glob("volume-*"))[0]
    served = Predictor(ServingClient(shared_server[scheme])).predict(path)
    local = Predictor(small_model_file, postprocessing=PostProcessing(smoothing_mm=0)).predict(path)
    assert np.array_equal(served.labels, local.labels)
    assert served.statistics().to_dict() == local.statistics().to_dict()
    served.save(tmp_path / "mask.nii.gz")
    assert np.allclose(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(path).affine)


def test_several_requests_are_in_flight(misbehaving, body_hu):
    urls = misbehaving(delay_s=0.5)
    hu = body_hu((32, 33, 33))  # four requests
    client = ServingClient(urls["grpc"], in_flight=4)
    client.labels(hu[:1])
    start = time.monotonic()
    together = client.labels(hu)
    seconds = time.monotonic() - start
    one_by_one = ServingClient(urls["grpc"], in_flight=1)
    start = time.monotonic()
    assert np.array_equal(one_by_one.labels(hu), together)
    assert seconds < 0.75 * (time.monotonic() - start)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_busy_is_tried_again(misbehaving, keras_runtime, body_hu, scheme):
    urls = misbehaving(busy=2)
    hu = body_hu((1, 40, 40))
    assert np.array_equal(ServingClient(urls[scheme]).labels(hu), keras_runtime.labels(hu))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_busy_for_good_is_an_error(misbehaving, body_hu, scheme):
    urls = misbehaving(busy=100)
    with pytest.raises(ServerError, match=r"busy .*2 tries"):
        ServingClient(urls[scheme], retries=1).labels(body_hu((1, 40, 40)))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_too_slow_is_an_error_and_not_tried_again(misbehaving, body_hu, scheme):
    urls = misbehaving(delay_s=2)
    start = time.monotonic()
    with pytest.raises(ServerError, match="no reply within 0.5 s"):
        ServingClient(urls[scheme], timeout_s=0.5).labels(body_hu((40, 40, 40)))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_killed_in_the_middle_leaves_no_mask(savedmodel, phantom_folder, tmp_path, scheme):
    mortal = Endpoint(savedmodel.parent)
    mortal.behave(die_after=3)  # configuration and two requests of four slices
    path = sorted(phantom_folder.glob("volume-*"))[0]
    predictor = Predictor(ServingClient(mortal.urls[scheme], retries=1), batch_size=4)
    with pytest.raises(ServerError, match="can't be reached|broke off"):
        predictor.predict(path).save(tmp_path / "mask.nii.gz")
    assert mortal.process.wait(10) == 1
    mortal.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_refusals_are_told_and_not_tried_again(shared_server, body_hu, scheme):
    hu = body_hu((1, 40, 40))
    with pytest.raises(ServerError, match="Servable not found"):
        ServingClient(shared_server[scheme] + "/kidney").labels(hu)
    with pytest.raises(ServerError, match="Servable not found"):
        ServingClient(shared_server[scheme] + "/liverseg/versions/77").labels(hu)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_version_and_label_can_be_named(shared_server, keras_runtime, body_hu, scheme):
    hu = body_hu((1, 40, 40))
    expected = keras_runtime.labels(hu)
    for which in ("/liverseg", "/liverseg/versions/1", "/liverseg/labels/stable", "/v1/models/liverseg"):
        assert np.array_equal(ServingClient(shared_server[scheme] + which).labels(hu), expected)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there_is_an_error(body_hu, scheme):
    with socket.socket() as taken:  # bound and never listening: nobody else can take the port meanwhile
        taken.bind(("127.0.0.1", 0))
        client = ServingClient(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}", retries=1)
        with pytest.raises(ServerError, match="is the server running"):
            client.labels(body_hu((1, 40, 40)))


def answering(content: bytes):
    """A server that answers every connection with the same bytes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                while len(body) < length:
                    body += connection.recv(65536)
                connection.sendall(content)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    "content, told",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nnot JSON, not at all", "as JSON"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"outputs": [[1]]', "as JSON"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"outputs": [[1]]}', "shape"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"outputs": [[1', "broke off"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "401"),
        (b"SSH-2.0-OpenSSH\r\n", "broke off"),
    ],
)
def test_strange_answers_are_errors(body_hu, content, told):
    with answering(content) as server:
        client = ServingClient(f"http://127.0.0.1:{server.getsockname()[1]}", retries=0, compact=False)
        with pytest.raises(ServerError, match=told):
            client.labels(body_hu((1, 8, 8)))


def reply(text: str, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{more}\r\n{text}".encode()


def outputs(values) -> bytes:
    return reply(json.dumps({"outputs": values}))


def png(*sizes) -> bytes:
    """Images of a header alone."""
    start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    encoded = [base64.b64encode(start + struct.pack(">II", *size)).decode() for size in sizes]
    return outputs([{"b64": text} for text in encoded])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (reply('{"outputs": ' + "[" * 100_000), "as JSON"),
        (reply("[" * 100_000, "500 Oops"), "HTTP 500"),
        (reply('{"outputs": {"labels": ' + "[" * 40 + "]" * 40 + "}}"), "shape"),
        (outputs([[["a", "b"], ["c", "d"]]]), "numbers"),
        (outputs([[[None, 1], [1, 1]]]), "numbers"),
        (outputs([[[True, True], [True, True]]]), "numbers"),
        (outputs([[[1.7, 1], [1, 1]]]), "class indices from 0 to 2, got 1.0 to 1.7"),
        (outputs([[[3, 1], [1, 1]]]), "class indices from 0 to 2, got 1 to 3"),
        (outputs([[[-1, 1], [1, 1]]]), "class indices from 0 to 2, got -1 to 1"),
        (outputs([[[float("nan"), 1], [1, 1]]]), "class indices"),
        (outputs([[[10**30, 1], [1, 1]]]), "numbers"),
        (outputs([[[1, 1], [1]]]), "as JSON"),
        (outputs([[1, 1], [1, 1]]), "shape"),
        (outputs([{}, "x"]), "as JSON"),
        (outputs([{"b64": 3}]), "as JSON"),
        (outputs(["a", 3]), "as JSON"),
        (reply('{"outputs": null}'), "as JSON"),
        (reply("[]"), "as JSON"),
    ],
)
def test_labels_are_checked(answered, content, told):
    with pytest.raises(ServerError, match=told):
        answered(content, compact=False).labels(np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    "content", [png((60000, 60000)), png((2, 2), (2, 2)), png(), png((2, 3)), outputs([{"b64": "AAAA"}]), outputs([3])]
)
def test_png_labels_are_checked_before_they_are_unpacked(answered, content, monkeypatch):
    import tensorflow as tf

    client = answered(content)
    monkeypatch.setattr(tf.io, "decode_png", lambda *a, **k: pytest.fail("was unpacked"))
    with pytest.raises(ServerError, match="labels as PNG"):
        client.labels(np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([-5, 3, 3], "from 0 to 1, got -5 to 3"),
        ([-0.2, 0.6, 0.6], "from 0 to 1"),
        ([0, 0, 1.2], "from 0 to 1"),
        ([float("nan"), 0, 1], "from 0 to 1"),
        ([0.2, 0.2, 0.2], "sums of 0.6"),
        ([0.5, 0.5, 0.5], "sums of 1.5"),
        ([0, 1], "shape"),
    ],
)
def test_probabilities_are_checked(answered, values, told):
    with pytest.raises(ServerError, match=told):
        answered(outputs([[[values]]])).probabilities(np.zeros((1, 1, 1), np.float32))
    good = answered(outputs([[[[0.1001, 0.2, 0.7]]]])).probabilities(np.zeros((1, 1, 1), np.float32))
    assert good.dtype == np.float32


@pytest.fixture
def answered(small_config):
    """Function of the bytes that a server answers with: a client of it that knows the model's configuration."""
    servers = []

    def make(content, login="", **options):
        servers.append(answering(content))
        client = ServingClient(f"http://{login}127.0.0.1:{servers[-1].getsockname()[1]}", retries=0, **options)
        client.__dict__["config"] = small_config
        return client

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(answered, status):
    with answering(outputs([[[1]]])) as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere.getsockname()[1]}/x\r\n"
        client = answered(reply("", status, location), "anna:sec%40ret@", compact=False)
        with pytest.raises(ServerError, match=f"HTTP {status[:3]}.*not followed") as caught:
            client.labels(np.zeros((1, 1, 1), np.float32))
    assert "sec" not in str(caught.value)


def test_passwords_are_sent_and_told_nowhere():
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(reply("no", "401 Unauthorized"))

        threading.Thread(target=serve, daemon=True).start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        client = ServingClient(f"http://anna:s%40cret@{host}", retries=0)
        with pytest.raises(ServerError, match=f"http://{host}: the server refused: HTTP 401"):
            client.config  # noqa: B018
    assert base64.b64encode(b"anna:s@cret") in seen[0]
    assert "cret" not in client.url
    for url in (
        "grpc://anna:secret@host:8500",
        "http://anna:secret@host",
        "http://anna:sec/ret@host:1",
        "x://:secret@h",
    ):
        with pytest.raises(ConfigError, match="Received") as caught:
            ServingClient(url)
        assert "ret@" not in str(caught.value)


def test_grpc_replies_that_declare_more_than_they_hold(monkeypatch, small_config):
    from tensorflow_serving.apis import predict_pb2

    client = ServingClient("grpc://127.0.0.1:1")
    client.__dict__["config"] = small_config
    answer = predict_pb2.PredictResponse()
    answer.outputs["labels"].dtype = 4
    answer.outputs["labels"].int_val.append(1)
    for _ in range(4):
        answer.outputs["labels"].tensor_shape.dim.add(size=1 << 12)
    client._transport._stub.Predict = lambda request, timeout: answer
    with pytest.raises(ServerError, match="281474976710656 values"):
        client.labels(np.zeros((1, 2, 2), np.float32))


def test_compact_requests_are_smaller(body_hu):
    """What the PNG signature is for: the same two slices, as REST takes them, both ways."""
    from liverseg_tf.inference import serving_client as client

    hu = body_hu((2, 512, 512))
    plain = len(json.dumps(client._to_json(hu)))
    png = len(json.dumps(client._to_json(client._png(hu))))
    assert png < plain / 4


@pytest.mark.parametrize(
    "url",
    ["localhost:8500", "ftp://a:1", "grpc://host", "http://h:1/m/versions/x", "http://h:1/m/stable", "grpc://h:99999"],
)
def test_bad_urls_are_named(url):
    with pytest.raises(ConfigError, match="Received"):
        ServingClient(url)


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="timeout_s"):
        ServingClient("http://localhost:1", timeout_s=0)
