"""What can run a slice function: a Keras model, a SavedModel, a TFLite file. All give the same masks."""

from __future__ import annotations

import os
import tempfile
import threading
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import GeometryError, ModelError, first_line
from liverseg_tf.inference.allowed_operations import check_operations, check_tflite_operators
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, looks_like_savedmodel, version_folder
from liverseg_tf.models.saving import config_of, load_model, restore_weights
from liverseg_tf.native_logs import without_log_lines


@runtime_checkable
class Runtime(Protocol):
    """Raw HU slices in, labels or probabilities of the same size out.

    `Predictor` puts volumes together from any of them; a slice's result doesn't depend on its batch.

    Attributes:
        config: what the model expects, and the names of its classes.
        is_remote: computes on another machine, which sends labels rather than probabilities.
        slices_at_once: the fewest slices a call should bring, so that nothing waits.
    """

    config: ModelConfig
    is_remote: bool
    slices_at_once: int

    def labels(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) float32 HU, any B, H and W -> (B, H, W) uint8 class indices."""

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) float32 HU, any B, H and W -> (B, H, W, classes) float32, sum 1 over the last axis."""


class _LocalRuntime(ABC):
    """What the runtimes of this process share: slices are looked at before anything computes with them."""

    config: ModelConfig
    is_remote = False
    slices_at_once = 1

    def labels(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) HU -> (B, H, W) uint8 class indices; none for none.

        Raises:
            GeometryError: for another number of axes, or slices without pixels.
        """
        hu = _slices(hu)
        return self._labels_of(hu) if len(hu) else np.zeros(hu.shape, np.uint8)

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) HU -> (B, H, W, classes) float32; none for none.

        Raises:
            GeometryError: for another number of axes, or slices without pixels.
        """
        hu = _slices(hu)
        classes = len(self.config.class_names)
        return self._probabilities_of(hu) if len(hu) else np.zeros((*hu.shape, classes), np.float32)

    @abstractmethod
    def _labels_of(self, hu: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray: ...


def _slices(hu: np.ndarray) -> np.ndarray:
    hu = np.asarray(hu, np.float32)
    if hu.ndim != 3 or 0 in hu.shape[1:]:
        raise GeometryError(f"hu: expected slices (batch, rows, columns) that have pixels, got shape {hu.shape}")
    return hu


class KerasRuntime(_LocalRuntime):
    """Runs a Keras model of this library.

    Args:
        model: channels in, logits out, as `load_model` gives it.
        config: how its input is prepared; by default the model's own.

    Raises:
        ModelError: if neither the model nor the caller says how its input is prepared.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> runtime = KerasRuntime(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> runtime.labels(np.zeros((2, 40, 36), np.float32)).shape
        (2, 40, 36)
    """

    def __init__(self, model: keras.Model, config: ModelConfig | None = None):
        config = config_of(model, config)
        self.config = config
        self.slice_function = SliceFunction(model, config)
        signature = [tf.TensorSpec((None, None, None), tf.float32, "hu")]
        self._labels = tf.function(self.slice_function.labels, signature)
        self._probabilities = tf.function(self.slice_function.probabilities, signature)

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        return self._labels(tf.convert_to_tensor(hu, tf.float32)).numpy()

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        return self._probabilities(tf.convert_to_tensor(hu, tf.float32)).numpy()


class SavedModelRuntime(_LocalRuntime):
    """Runs a SavedModel that `export` wrote, after its files and its operations have been checked.

    Args:
        path: the folder of one version, or of all versions of a model: the newest is taken.

    Raises:
        ModelError: if it is missing, cut, not one of this library's, or has operations that are not allowed.
    """

    def __init__(self, path: str | os.PathLike):
        folder = version_folder(Path(path))
        manifest = Manifest.load(folder / SAVEDMODEL_MANIFEST)
        manifest.check_files(folder)
        graph = check_operations(folder)
        self.config, self.card, self.path = manifest.config, manifest.card, folder
        try:
            self._model = _load_graph(graph)
            restore_weights(self._model.weights, folder)
            self._signatures = {name: self._model.signatures[name] for name in ("serving_default", "probabilities")}
        except Exception as error:  # TensorFlow raises many kinds for a broken graph
            raise ModelError(f"{folder}: expected a SavedModel that can be loaded ({first_line(error)})") from error
        classes = self._signatures["probabilities"].structured_outputs["probabilities"].shape[-1]
        if classes != len(self.config.class_names):
            raise ModelError(f"{folder}: gives {classes} classes, its configuration names {self.config.class_names}")

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        return self._signatures["serving_default"](hu=tf.convert_to_tensor(hu, tf.float32))["labels"].numpy()

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        return self._signatures["probabilities"](hu=tf.convert_to_tensor(hu, tf.float32))["probabilities"].numpy()


class TFLiteRuntime(_LocalRuntime):
    """Runs a TFLite file that `export` wrote.

    Slices of the file's own size go through the file as it is. For other sizes only the network is the file's:
    padding and scaling a slice to the file's size beforehand, as a device without TensorFlow does, would give slightly
    other masks; `SliceFunction` around the network gives the same as every other runtime.

    Args:
        path: the `.tflite` file; its JSON lies beside it.

    Raises:
        ModelError: if it is missing, cut, or not one of this library's.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"{path}: expected a .tflite file; there is no such file")
        with path.open("rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise ModelError(f"{path}: expected a TFLite file, its content is something else")
        manifest = Manifest.load(path.with_suffix(".json"))
        if path.name not in manifest.sha256:
            raise ModelError(
                f"{path.with_suffix('.json')}: belongs to {', '.join(manifest.sha256)}, not to {path.name}; "
                "keep the names that the export gave"
            )
        manifest.check_files(path.parent)
        self.config, self.card, self.path = manifest.config, manifest.card, path
        # what this process may use, which in a container is less than what the machine has
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._lock = threading.Lock()  # an interpreter works for one thread at a time
        # read, not mapped by its path: only then is the content verified, and a cut file crashes the process otherwise
        self._whole = self._signature_runner(path.read_bytes())
        outputs = self._whole.get_output_details()
        self.slice_shape = tuple(int(n) for n in self._whole.get_input_details()["hu"]["shape"][1:])
        if not {"labels", "probabilities"} <= set(outputs):
            raise ModelError(f"{path}: expected the outputs labels and probabilities, got {', '.join(outputs)}")
        if outputs["probabilities"]["shape"][-1] != len(self.config.class_names):
            raise ModelError(
                f"{path}: its number of classes is not that of its configuration: {self.config.class_names}"
            )

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        if hu.shape[1:] == self.slice_shape:
            return self._run_whole(hu, "labels")
        return self._probabilities_of(hu).argmax(-1).astype(np.uint8)

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        if hu.shape[1:] == self.slice_shape:
            return self._run_whole(hu, "probabilities")
        channels = self._around.network_input(tf.convert_to_tensor(hu, tf.float32)).numpy()
        with self._lock:
            logits = [self._network(channels=slice_channels[None])["logits"] for slice_channels in channels]
        return self._around.from_logits(np.concatenate(logits), *hu.shape[1:]).numpy()

    def _run_whole(self, hu, output):
        with self._lock:
            return np.concatenate([self._whole(hu=slice_hu[None])[output] for slice_hu in hu])

    @cached_property
    def _around(self) -> SliceFunction:
        return SliceFunction(None, self.config)

    @cached_property
    def _network(self):
        return self._signature_runner(_network_of(self.path.read_bytes()))

    def _signature_runner(self, content: bytes):
        try:
            check_tflite_operators(content)
            with without_log_lines():  # it tells which delegate it takes
                interpreter = _interpreter_class()(model_content=content, num_threads=self._threads)
                interpreter.allocate_tensors()
                return interpreter.get_signature_runner("serving_default")
        except (ModelError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.path}: expected a TFLite file that can be run ({first_line(error)})") from error


def open_runtime(model: str | os.PathLike | keras.Model | Runtime) -> Runtime:
    """Open whatever can run a slice function.

    Args:
        model: a run folder, a `.keras` file, a SavedModel (its folder, or the one of all its versions: the newest is
            taken), a `.tflite` file, a Keras model that `load_model` gave, or a runtime, which is passed through.

    Raises:
        ModelError: if it is missing, truncated, or something else.
    """
    if isinstance(model, keras.Model):
        return KerasRuntime(model)
    if not isinstance(model, (str, os.PathLike)):
        if isinstance(model, Runtime):
            return model
        raise ModelError(f"expected a path or a model, got {type(model).__name__}")
    path = Path(model)
    if path.suffix == ".tflite":
        return TFLiteRuntime(path)
    if path.is_dir() and not (path / "model.keras").is_file() and looks_like_savedmodel(path):
        return SavedModelRuntime(path)
    return KerasRuntime(load_model(path))


def keras_runtime(runtime: Runtime) -> KerasRuntime | None:
    """The runtime with a network whose layers can be looked at: itself, or rebuilt from a SavedModel's weights.

    None for what keeps no such network: a TFLite file, a server.
    """
    if isinstance(runtime, SavedModelRuntime):
        return KerasRuntime(load_model(runtime.path))
    return runtime if isinstance(runtime, KerasRuntime) else None


def _load_graph(content: bytes):
    """Load the very bytes that were checked, alone in a folder: no asset, no checkpoint, no other file is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "saved_model.pb").write_bytes(content)
        return tf.saved_model.load(folder, options=tf.saved_model.LoadOptions(experimental_skip_checkpoint=True))


def _interpreter_class():
    """LiteRT's interpreter where it is installed, else the one that TensorFlow still brings."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite.python.interpreter import Interpreter
    return Interpreter


def _network_of(content: bytes) -> bytes:
    """Cut the network, from `channels` to `logits`, out of a TFLite file."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    names = [tensor.name for tensor in graph.tensors]
    ends = [names.index(name) for name in (b"channels", b"logits")]
    needed, kept = {ends[1]}, []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            kept.append(operator)
            needed.update(i for i in operator.inputs if i != ends[0])
    graph.operators, graph.inputs, graph.outputs = kept[::-1], ends[:1], ends[1:]
    signature.outputs = signature.outputs[:1]
    for entry, name, index in zip((*signature.inputs, *signature.outputs), ("channels", "logits"), ends, strict=True):
        entry.name, entry.tensorIndex = name, index
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
