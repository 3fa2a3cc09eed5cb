"""A client for TensorFlow Serving with the interface of a runtime."""

from __future__ import annotations

import base64
import http.client
import json
import math
import random
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ServerError, first_line, require, without_secrets
from liverseg_tf.hounsfield import PNG_OFFSET_HU
from liverseg_tf.strict_json import to_json

SERVED_NAME = "liverseg"
# gRPC's default limit of a reply, less a little for names and shapes.
REPLY_BYTES = 4 * 1024**2 - 4096
# The largest batch in the batching configuration of `examples/serving`.
SLICES_A_REQUEST = 8
# A single slice of probabilities may exceed REPLY_BYTES; a larger reply than this is refused.
_LARGEST_REPLY_BYTES = 256 * 1024**2
_FIRST_WAIT_S = 0.25
# Rounding errors of float32, and of decimal numbers with few digits, are smaller.
_PROBABILITY_TOLERANCE = 1e-3


class ServingClient:
    """Runs slices on a TensorFlow Serving server; a `Runtime`, so `Predictor(ServingClient(...))` segments volumes.

    Slices are grouped into requests whose replies stay below gRPC's 4 MB; several requests are sent at a time. A
    request is repeated only after a temporary failure: the server is not reachable, or says that it is busy (gRPC
    UNAVAILABLE; HTTP 429, 502, 503). Any other failure ends the whole call; partial results are not returned.

    Args:
        url: `grpc://host:8500`, `grpcs://`, `http://host:8501` or `https://` (HTTP also with `user:password@host`,
            which is sent as basic authentication and never shown; redirects aren't followed), followed by `/<model>` if
            it is not the default, and by `/versions/<number>` or `/labels/<label>` if it is not the newest.
        timeout_s: seconds to wait for the reply to one attempt.
        retries: how often a request is repeated, after 0.25, 0.5, 1, ... seconds.
        in_flight: number of simultaneous requests.
        compact: send integer HU as PNG and receive labels as PNG; by default only over HTTP, whose alternative is a
            list of decimal numbers. Fractional HU and probabilities are always sent as numbers.

    Raises:
        ConfigError: for any other URL, or options out of range.
        MissingDependencyError: for gRPC without the package `tensorflow-serving-api`.

    Examples:
        >>> client = ServingClient("http://localhost:8501/liverseg/labels/stable", timeout_s=30)
        >>> Predictor(client).predict("volume-7.nii.gz").save("segmentation-7.nii.gz")  # doctest: +SKIP
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        in_flight: int = 4,
        compact: bool | None = None,
    ):
        if timeout_s <= 0 or retries < 0 or in_flight < 1:
            raise ConfigError(
                "a client needs timeout_s above 0, retries of at least 0 and in_flight of at least 1. "
                f"Received: {timeout_s}, {retries}, {in_flight}"
            )
        scheme, address, model, version, login = _parse_url(url)
        url = without_secrets(url)  # shown in errors, logs and manifests
        self.url, self.retries, self.in_flight = url, retries, in_flight
        self.compact = scheme in ("http", "https") if compact is None else compact
        self.slices_at_once = SLICES_A_REQUEST * in_flight
        if scheme in ("grpc", "grpcs"):
            self._transport: _Transport = _Grpc(url, address, scheme == "grpcs", model, version, timeout_s)
        else:
            self._transport = _Rest(url, f"{scheme}://{address}", model, version, timeout_s, login)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration, requested from the server once."""
        reply = self._call("describe", {"name": np.array([b""], object)}, "json", threading.Event())
        try:
            (text,) = reply
            return ModelConfig.from_json(text.decode("utf-8"), self.url)
        except Exception as error:
            raise ServerError(f"{self.url}: does not serve a model of this library ({error})") from None

    def labels(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) HU -> (B, H, W) uint8 class indices.

        Raises:
            ServerError: if the server can't be reached, refuses, is too slow, or returns an unexpected reply.
        """
        hu = np.asarray(hu, np.float32)
        slices = min(SLICES_A_REQUEST, max(1, REPLY_BYTES // _pixels(hu)))
        if self.compact and _is_int16(hu):
            return self._run(hu, slices, self._labels_by_png)
        return self._run(hu, slices, self._labels_by_array)

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) HU -> (B, H, W, classes) float32.

        Raises:
            ServerError: as `labels`.
        """
        hu = np.asarray(hu, np.float32)
        bytes_a_slice = _pixels(hu) * len(self.config.class_names) * 4
        slices = min(SLICES_A_REQUEST, max(1, REPLY_BYTES // bytes_a_slice))
        return self._run(hu, slices, self._probabilities)

    def _run(self, hu: np.ndarray, slices: int, request: Callable) -> np.ndarray:
        parts = [hu[i : i + slices] for i in range(0, len(hu), slices)]
        stop = threading.Event()  # one failed request cancels those that wait
        failures: list[ServerError] = []

        def guarded(part):
            try:
                return request(part, stop)
            except ServerError as error:
                failures.append(error)
                stop.set()

        with ThreadPoolExecutor(self.in_flight) as pool:
            try:
                results = list(pool.map(guarded, parts))
            finally:
                stop.set()
        if failures:
            raise failures[0]
        return np.concatenate(results)

    def _labels_by_array(self, hu, stop):
        labels = self._call("serving_default", {"hu": hu}, "labels", stop)
        return self._checked(labels, hu.shape, np.uint8)

    def _labels_by_png(self, hu, stop):
        import tensorflow as tf

        replies = self._call("compact", {"png": _png(hu)}, "labels_bytes", stop)
        try:
            sizes = {_png_size(reply) for reply in replies}
            if len(replies) != len(hu) or sizes != {hu.shape[1:]}:  # a small PNG can declare gigabytes of pixels
                raise ValueError(f"{len(replies)} of (rows, columns) {sorted(sizes)[:3]} for {hu.shape}")
            labels = np.stack([tf.io.decode_png(reply, channels=1).numpy()[..., 0] for reply in replies])
        except (tf.errors.InvalidArgumentError, ValueError, TypeError, struct.error) as error:
            raise ServerError(f"{self.url}: expected labels as PNG, got something else ({first_line(error)})") from None
        return self._checked(labels, hu.shape, np.uint8)

    def _probabilities(self, hu, stop):
        values = self._call("probabilities", {"hu": hu}, "probabilities", stop)
        return self._checked(values, (*hu.shape, len(self.config.class_names)), np.float32)

    def _checked(self, values: Any, shape: tuple[int, ...], dtype) -> np.ndarray:
        """Check a reply and return it as an array: replies are not trusted more than files."""
        values = np.asarray(values)
        if values.shape != shape:
            raise ServerError(f"{self.url}: expected an answer of shape {shape}, got {values.shape}")
        if values.dtype.kind not in "iuf":
            raise ServerError(f"{self.url}: expected numbers, got values of {values.dtype}")
        if not values.size:
            return values.astype(dtype)
        low, high, classes = values.min(), values.max(), len(self.config.class_names)
        if dtype == np.uint8 and not (low >= 0 and high < classes and (np.floor(values) == values).all()):
            raise ServerError(f"{self.url}: expected class indices from 0 to {classes - 1}, got {low} to {high}")
        if dtype == np.float32:
            if not (low >= 0 and high <= 1 + _PROBABILITY_TOLERANCE):  # also false for NaN
                raise ServerError(f"{self.url}: expected probabilities from 0 to 1, got {low} to {high}")
            sums = values.sum(-1, dtype=np.float64)
            if np.abs(sums - 1).max() > _PROBABILITY_TOLERANCE:
                raise ServerError(
                    f"{self.url}: expected probabilities of sum 1, got sums of {sums.min():.4g} to {sums.max():.4g}"
                )
        return values.astype(dtype)

    def _call(self, signature: str, inputs: dict[str, np.ndarray], output: str, stop: threading.Event) -> Any:
        """Send one request, and repeat it after temporary failures."""
        wait_s = _FIRST_WAIT_S
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise ServerError(f"{self.url}: stopped because another request failed")
            try:
                return self._transport.predict(signature, inputs, output)
            except _BusyError as error:
                if attempt == self.retries:
                    tries = f" in {attempt + 1} tries" if attempt else ""
                    raise ServerError(f"{self.url}: {error}{tries}; is the server running at this address?") from None
                # random, so that many clients don't return at the same moment
                stop.wait(wait_s * random.uniform(0.75, 1.25))
                wait_s *= 2
        raise AssertionError("unreachable")


class _BusyError(Exception):
    """The server is unreachable or busy at the moment: worth another attempt."""


class _Transport(Protocol):
    def predict(self, signature: str, inputs: dict[str, np.ndarray], output: str) -> Any:
        """One attempt: an array, or a list of bytes. Raises `_BusyError`, or `ServerError` if repeating can't help."""


class _Grpc:
    def __init__(
        self, url: str, address: str, secure: bool, model: str, version: tuple[str, str] | None, timeout_s: float
    ):
        grpc = require("grpc", "serving", "a grpc:// server")
        apis = require("tensorflow_serving.apis.prediction_service_pb2_grpc", "serving", "a grpc:// server")
        options = [("grpc.max_receive_message_length", _LARGEST_REPLY_BYTES), ("grpc.max_send_message_length", -1)]
        if secure:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
        else:
            channel = grpc.insecure_channel(address, options)
        self._stub = apis.PredictionServiceStub(channel)
        self._url, self._model, self._version, self._timeout_s = url, model, version, timeout_s

    def predict(self, signature, inputs, output):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, signature
        if self._version and self._version[0] == "versions":
            request.model_spec.version.value = int(self._version[1])
        elif self._version:
            request.model_spec.version_label = self._version[1]
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values.tolist() if values.dtype == object else values))
        request.output_filter.append(output)
        try:
            reply = self._stub.Predict(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code, details = error.code(), first_line(error.details())
            if code == grpc.StatusCode.UNAVAILABLE:
                raise _BusyError(f"the server can't be reached or is busy ({details})") from None
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerError(_too_slow(self._url, self._timeout_s)) from None
            raise ServerError(f"{self._url}: the server refused: {code.name}: {details}") from None
        try:
            tensor = reply.outputs[output]
            # a reply of one value and a shape is expanded to the shape, so a short reply can declare terabytes
            count = math.prod(dimension.size for dimension in tensor.tensor_shape.dim)
            if not 0 <= count <= _LARGEST_REPLY_BYTES // 4:
                raise ValueError(f"{count} values")
            values = tf.make_ndarray(tensor)
        except (TypeError, ValueError) as error:
            raise ServerError(f"{self._url}: expected the output {output!r}, got something else ({error})") from None
        return values.tolist() if values.dtype == object else values


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Doesn't follow redirects: following one would send the CT, and a password, to another address."""

    def redirect_request(self, *arguments):
        return None


class _Rest:
    def __init__(
        self,
        url: str,
        base: str,
        model: str,
        version: tuple[str, str] | None,
        timeout_s: float,
        login: str | None = None,
    ):
        middle = "".join(f"/{part}" for part in version or ())
        self._endpoint = f"{base}/v1/models/{model}{middle}:predict"
        self._url, self._timeout_s = url, timeout_s
        self._headers = {"Content-Type": "application/json"}
        if login is not None:
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode("ascii")
        self._opener = urllib.request.build_opener(_NoRedirects)

    def predict(self, signature, inputs, output):
        body = {"signature_name": signature, "inputs": {name: _to_json(values) for name, values in inputs.items()}}
        request = urllib.request.Request(self._endpoint, to_json(body).encode(), self._headers, method="POST")
        try:
            content = self._read(request)
        except urllib.error.HTTPError as error:
            with error:
                details = _error_text(error)
            if 300 <= error.code < 400:
                raise ServerError(
                    f"{self._url}: the server redirects (HTTP {error.code}), which is not followed: a CT goes "
                    "only where it was meant to; name the address that answers"
                ) from None
            if error.code in (429, 502, 503):
                raise _BusyError(f"the server is busy (HTTP {error.code}: {details})") from None
            raise ServerError(f"{self._url}: the server refused: HTTP {error.code}: {details}") from None
        except TimeoutError:
            raise ServerError(_too_slow(self._url, self._timeout_s)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise ServerError(_too_slow(self._url, self._timeout_s)) from None
            raise _BusyError(f"the server can't be reached or broke off ({first_line(reason)})") from None
        try:
            # with a single output TensorFlow Serving leaves out its name
            values = json.loads(content)["outputs"]
            values = values[output] if isinstance(values, dict) else values
            return _from_json(values, output)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ServerError(
                f"{self._url}: expected the output {output!r} as JSON, got something else ({first_line(error)})"
            ) from None

    def _read(self, request) -> bytes:
        """Read the whole reply within the time-out; a socket's own time-out restarts with every byte."""
        deadline = time.monotonic() + self._timeout_s
        content = bytearray()
        with self._opener.open(request, timeout=self._timeout_s) as reply:
            while block := reply.read1(1 << 20):
                content += block
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(content) > _LARGEST_REPLY_BYTES:
                    raise ServerError(f"{self._url}: the reply is larger than {_LARGEST_REPLY_BYTES >> 20} MiB")
            if reply.length:  # fewer bytes than announced
                raise http.client.IncompleteRead(bytes(content[:0]), reply.length)
        return bytes(content)


def _parse_url(url: str) -> tuple[str, str, str, tuple[str, str] | None, str | None]:
    """Scheme, host:port, model, ("versions" | "labels", which) or None, and user:password or None."""
    expected = "expected grpc://host:port or http://host:port, followed by /<model> if it is not /liverseg"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # an invalid port or IPv6 address
        raise ConfigError(f"server: {expected}. Received: {url!r}") from None
    if parts.scheme not in ("grpc", "grpcs", "http", "https") or not parts.hostname or port is None:
        raise ConfigError(f"server: {expected}. Received: {url!r}")
    names = [name for name in parts.path.split("/") if name]
    if names[:2] == ["v1", "models"]:
        names = names[2:]
    model, version = (names or [SERVED_NAME])[0], tuple(names[1:]) or None
    if version and (
        len(version) != 2
        or version[0] not in ("versions", "labels")
        or (version[0] == "versions" and not version[1].isdecimal())
    ):
        raise ConfigError(f"server: {expected}, and /versions/<number> or /labels/<label> after it. Received: {url!r}")
    login = None
    if parts.username is not None:
        if parts.scheme in ("grpc", "grpcs"):
            raise ConfigError(f"server: gRPC takes no user and password in the URL. Received: {url!r}")
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return parts.scheme, parts.netloc.rpartition("@")[2], model, version, login


def _pixels(hu: np.ndarray) -> int:
    if hu.ndim != 3:
        raise ConfigError(f"expected HU of shape (slices, rows, columns). Received: {hu.shape}")
    return max(1, hu.shape[1] * hu.shape[2])


def _is_int16(hu: np.ndarray) -> bool:
    low, high = -PNG_OFFSET_HU, PNG_OFFSET_HU - 1
    return bool(hu.size) and bool(((hu >= low) & (hu <= high) & (np.floor(hu) == hu)).all())


def _png(hu: np.ndarray) -> np.ndarray:
    """(B, H, W) whole HU of int16's range -> (B,) objects, each the bytes of a 16-bit PNG."""
    import tensorflow as tf

    shifted = (hu + PNG_OFFSET_HU).astype(np.uint16)[..., None]
    return np.array([tf.io.encode_png(image, compression=1).numpy() for image in shifted], object)


def _png_size(content: bytes) -> tuple[int, int]:
    """Rows and columns that a PNG declares.

    Raises:
        ValueError, TypeError: if it is not a PNG.
    """
    if not isinstance(content, bytes) or content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise ValueError("no PNG")
    columns, rows = struct.unpack(">II", content[16:24])
    return rows, columns


def _to_json(values: np.ndarray) -> list:
    if values.dtype == object:
        return [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
    return values.tolist()


def _from_json(values: Any, output: str) -> Any:
    if not isinstance(values, list):
        raise TypeError(f"{type(values).__name__} for {output}")
    if values and isinstance(values[0], dict):
        return [base64.b64decode(value["b64"], validate=True) for value in values]
    if values and isinstance(values[0], str):
        return [value.encode("utf-8") for value in values]
    return np.asarray(values)  # ValueError for lists of unequal lengths


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        return first_line(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return first_line(text or error.reason)


def _too_slow(url: str, timeout_s: float) -> str:
    return f"{url}: no reply within {timeout_s:g} s; allow more time, or send less at a time"
