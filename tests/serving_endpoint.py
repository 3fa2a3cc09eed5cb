"""A small stand-in for TensorFlow Serving: its PredictionService and its REST predict call, on a real SavedModel.

A process with TensorFlow and tensorflow-serving-api, and nothing of this library: it refuses to import it. Prints
`{"grpc": port, "rest": port}` and serves until it is killed or its standard input ends. A JSON line on standard input
sets how it behaves from then on, and is answered by a line: `{"delay_s": S}` for each request, `{"busy": N}` refuses
the next N, `{"die_after": N}` exits in the middle of the request after N.

`python serving_endpoint.py FOLDER_OF_VERSIONS`
"""

import base64
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.modules["liverseg_tf"] = None  # importing it is now an error
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402


class RefusedError(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Models:
    """All versions of one model, and the misbehaviour that was asked for."""

    def __init__(self, folder):
        self.name, self.lock = folder.name, threading.Lock()
        self.versions = {int(p.name): tf.saved_model.load(str(p)) for p in folder.iterdir() if p.name.isdigit()}
        self.labels = {"stable": min(self.versions), "canary": max(self.versions)}
        self.behave()

    def behave(self, delay_s=0.0, busy=0, die_after=None):
        with self.lock:
            self.requests, self.delay_s, self.busy, self.die_after = 0, delay_s, busy, die_after

    def predict(self, name, version, label, signature, inputs):
        with self.lock:
            self.requests += 1
            number = self.requests
        if self.die_after is not None and number > self.die_after:
            os._exit(1)
        if number <= self.busy:
            raise RefusedError("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
        time.sleep(self.delay_s)
        if name != self.name:
            raise RefusedError("NOT_FOUND", f"Servable not found for request: Latest({name})")
        version = self.labels.get(label) if label else version or max(self.versions)
        if version not in self.versions:
            raise RefusedError("NOT_FOUND", f"Servable not found for request: Specific({name}, {version or label})")
        function = self.versions[version].signatures.get(signature)
        if function is None:
            raise RefusedError("INVALID_ARGUMENT", f"Serving signature name: {signature!r} not found in signature def")
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise RefusedError("INVALID_ARGUMENT", f"input size does not match signature: {set(inputs)} {set(specs)}")
        try:
            tensors = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
            return {key: value.numpy() for key, value in function(**tensors).items()}
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise RefusedError("INVALID_ARGUMENT", str(error)) from error


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models):
        self.models = models

    def Predict(self, request, context):  # noqa: N802
        spec = request.model_spec
        try:
            outputs = self.models.predict(
                spec.name,
                spec.version.value if spec.HasField("version") else None,
                spec.version_label,
                spec.signature_name or "serving_default",
                {key: tf.make_ndarray(value) for key, value in request.inputs.items()},
            )
        except RefusedError as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        reply = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            if not request.output_filter or key in request.output_filter:
                reply.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return reply


def rest_handler(models):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                path, _, verb = self.path.partition(":")
                parts = path.strip("/").split("/")
                if parts[:2] != ["v1", "models"] or verb != "predict":
                    raise RefusedError("INVALID_ARGUMENT", f"Malformed request: POST {self.path}")
                which = dict(zip(parts[3::2], parts[4::2], strict=True))
                request = json.loads(body)
                inputs = {key: decoded(value) for key, value in request["inputs"].items()}
                outputs = models.predict(
                    parts[2],
                    int(which["versions"]) if "versions" in which else None,
                    which.get("labels"),
                    request.get("signature_name", "serving_default"),
                    inputs,
                )
                self.answer(200, {"outputs": as_json(outputs)})
            except RefusedError as error:
                status = {"UNAVAILABLE": 503, "NOT_FOUND": 404}.get(error.code, 400)
                self.answer(status, {"error": str(error)})

        def answer(self, status, content):
            content = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    return Handler


def decoded(value):
    """JSON to an array, where {"b64": ...} is binary."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([base64.b64decode(item["b64"]) for item in value], object)
    return np.array(value)


def as_json(outputs):
    """As TensorFlow Serving writes the column format: one output without its name, `*_bytes` in base64."""

    def column(name, values):
        if values.dtype != object:
            return values.tolist()
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(value).decode()} for value in values]
        return [value.decode() for value in values]

    columns = {name: column(name, values) for name, values in outputs.items()}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def main():
    models = Models(Path(sys.argv[1]))
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(models), server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    rest = ThreadingHTTPServer(("127.0.0.1", 0), rest_handler(models))
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    answer = {"grpc": grpc_port, "rest": rest.server_port}
    while True:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        models.behave(**json.loads(line))


if __name__ == "__main__":
    main()
