"""Runtimes of the slice function: a Keras model, a SavedModel, a TFLite file. All give the same masks."""

from __future__ import annotations

import os
import queue
import struct
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from liverseg_tf import channels_numpy
from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import GeometryError, ModelError, first_line
from liverseg_tf.inference.allowed_operations import check_operations, check_tflite_operators
from liverseg_tf.inference.tflite_tables import TFLiteTables
from liverseg_tf.inference.threads import usable_threads
from liverseg_tf.labels import BACKGROUND
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, looks_like_savedmodel, version_folder
from liverseg_tf.models.model import Model
from liverseg_tf.native_logs import without_log_lines

if TYPE_CHECKING:  # TFLite files run without both
    import keras
    import tensorflow as tf

# Rows and columns of an image.
Box = tuple[slice, slice]
# Each interpreter keeps its own copy of the weights, tens of megabytes.
_MOST_INTERPRETERS = 4


@runtime_checkable
class Runtime(Protocol):
    """Raw HU slices in, labels or probabilities of the same size out.

    `Predictor` segments volumes with any runtime; a slice's result doesn't depend on its batch.

    Attributes:
        config: what the model expects, and the names of its classes.
        is_remote: whether it computes on another machine, which sends labels rather than probabilities.
        slices_at_once: the fewest slices in a call that keep all its workers busy.
    """

    config: ModelConfig
    is_remote: bool
    slices_at_once: int

    def labels(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) float32 HU, any B, H and W -> (B, H, W) uint8 class indices."""

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) float32 HU, any B, H and W -> (B, H, W, classes) float32, sum 1 over the last axis."""


class _LocalRuntime(ABC):
    """Base class of the runtimes in this process: checks the shape of slices."""

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
        model: a `Model`, or a Keras model, channels in, logits out, as `load_model` gives it.
        config: how a Keras model's input is prepared; by default the model's own.

    Raises:
        ModelError: if neither the model nor the caller says how its input is prepared.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> runtime = KerasRuntime(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> runtime.labels(np.zeros((2, 40, 36), np.float32)).shape
        (2, 40, 36)
    """

    name = "keras"

    def __init__(self, model: Model | keras.Model, config: ModelConfig | None = None):
        import tensorflow as tf

        from liverseg_tf.inference.slice_function import SliceFunction

        self.model = Model.of(model, config)
        self.config, self.card = self.model.config, self.model.card
        self.slice_function = SliceFunction(self.model.network, self.config)
        signature = [tf.TensorSpec((None, None, None), tf.float32, "hu")]
        self._labels = tf.function(self.slice_function.labels, signature, autograph=False)
        self._probabilities = tf.function(self.slice_function.probabilities, signature, autograph=False)
        self._at_network_size = tf.function(self.slice_function.at_network_size, signature, autograph=False)

    def at_network_size(self, hu: np.ndarray) -> np.ndarray:
        """As `TFLiteRuntime.at_network_size`."""
        return self._at_network_size(_tensor(_slices(hu))).numpy()

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        return self._labels(_tensor(hu)).numpy()

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        return self._probabilities(_tensor(hu)).numpy()


class SavedModelRuntime(_LocalRuntime):
    """Runs a SavedModel that `export` wrote, after its files and its operations have been checked.

    Args:
        path: a version's folder, or the folder of all versions of a model, of which the newest is taken.

    Raises:
        ModelError: if it is missing, truncated, not made by this library, or has operations that are not allowed.
    """

    name = "savedmodel"

    def __init__(self, path: str | os.PathLike):
        from liverseg_tf.models.saving import restore_weights

        folder = version_folder(Path(path))
        manifest = Manifest.load(folder / SAVEDMODEL_MANIFEST)
        manifest.check_files(folder)
        graph = check_operations(folder)
        self.config, self.card, self.path = manifest.config, manifest.card, folder
        try:
            self._model = _load_graph(graph)
            restore_weights(self._model.weights, folder)
            self._signatures = {name: self._model.signatures[name] for name in ("serving_default", "probabilities")}
        except Exception as error:  # TensorFlow raises many kinds of error for a broken graph
            raise ModelError(f"{folder}: expected a SavedModel that can be loaded ({first_line(error)})") from error
        classes = self._signatures["probabilities"].structured_outputs["probabilities"].shape[-1]
        if classes != len(self.config.class_names):
            raise ModelError(f"{folder}: returns {classes} classes, its configuration names {self.config.class_names}")

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        return self._signatures["serving_default"](hu=_tensor(hu))["labels"].numpy()

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        return self._signatures["probabilities"](hu=_tensor(hu))["probabilities"].numpy()


class TFLiteRuntime(_LocalRuntime):
    """Runs a TFLite file that `export` wrote, without TensorFlow where ai-edge-litert is installed.

    Slices of the file's own size are run by the whole file. For other sizes, and for `at_network_size`, only the
    network is taken from the file, and `liverseg_tf.channels_numpy` does the processing before and after it. Padding
    and scaling a slice to the file's size first, as on a device without Python, would give slightly different masks.

    Args:
        path: the `.tflite` file, with its JSON beside it.

    Attributes:
        weights: the SavedModel with the same weights, if there is one, for methods that need the network's layers.
        sees_parts: whether parts of slices can go through the network.

    Raises:
        ModelError: if it is missing, truncated, or not made by this library.
    """

    name = "tflite"

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
        self.weights: Path | None = None
        # an interpreter runs one slice at a time; several with one thread each are more efficient than one with several
        threads = usable_threads()
        self._workers = min(threads, _MOST_INTERPRETERS)
        self._change, self._opening = threading.Condition(), threading.Lock()
        self._threads = max(1, threads // self._workers)
        self.slices_at_once = 2 * self._workers
        # passed as bytes because only then is the content verified; a truncated file would crash the process otherwise
        content = path.read_bytes()
        with _told_as(path):
            check_tflite_operators(content)
            whole = self._interpreter(content)  # this verifies everything that is read below
            outputs = {entry["name"]: entry["shape"] for entry in whole.get_output_details()}
            if not {"labels", "probabilities"} <= set(outputs):
                raise ModelError(f"expected the outputs labels and probabilities, got {', '.join(outputs)}")
            if outputs["probabilities"][-1] != len(self.config.class_names):
                raise ModelError(f"its number of classes is not that of its configuration: {self.config.class_names}")
            self.slice_shape = tuple(int(n) for n in whole.get_input_details()[0]["shape"][1:])
            content, self._ends = _network_of(content)
            self._shape = (self.config.image_size,) * 2
            self._content, self._idle, self._closed = content, [], 0
            self._idle = [(self._shape, self._network_for(self._shape)) for _ in range(self._workers)]
            self.sees_parts = TFLiteTables(content).is_of_any_size()

    def release(self) -> None:
        """Close the interpreters that nobody uses, tens of megabytes each; the next slices open them again."""
        with self._change:
            self._closed += len(self._idle)
            self._idle.clear()
            self._change.notify_all()
        self.__dict__.pop("_whole_runners", None)

    def at_network_size(self, hu: np.ndarray) -> np.ndarray:
        """(B, H, W) HU -> (B, classes, S, S) float32 probabilities of the padded square, at the network's size.

        `channels_numpy.restore` and `restore_labels` bring them back to the slices' own size.
        """
        return np.stack(list(self.scores(hu)))

    def scores(self, hu: np.ndarray, box: Box | None = None) -> Iterator[np.ndarray]:
        """The same slice by slice: later slices are computed while earlier ones are used.

        Args:
            hu: (B, H, W) HU.
            box: rows and columns of the network's image, multiples of 32 in length; only these go through the network,
                background is what lies outside. Only if `sees_parts`.
        """
        return self._pool.map(partial(self._network, box=box), _slices(hu))

    def _labels_of(self, hu: np.ndarray) -> np.ndarray:
        if hu.shape[1:] == self.slice_shape:
            return self._run_whole(hu, "labels")
        return np.stack([channels_numpy.restore_labels(found, *hu.shape[1:]) for found in self.at_network_size(hu)])

    def _probabilities_of(self, hu: np.ndarray) -> np.ndarray:
        if hu.shape[1:] == self.slice_shape:
            return self._run_whole(hu, "probabilities")
        probabilities = np.empty((*hu.shape, len(self.config.class_names)), np.float32)
        for own, found in zip(probabilities, self.at_network_size(hu), strict=True):
            own[...] = np.moveaxis(channels_numpy.restore(found, *hu.shape[1:]), 0, -1)
        return probabilities

    def _network(self, hu: np.ndarray, box: Box | None = None) -> np.ndarray:
        size = self.config.image_size
        channels = channels_numpy.network_input(hu, self.config.channels, size, box)
        with self._one_interpreter(channels.shape[:2]) as interpreter:
            interpreter.set_tensor(self._ends[0], channels[None])
            interpreter.invoke()
            logits = interpreter.get_tensor(self._ends[1])[0]
        found = channels_numpy.softmax(logits)
        if box is None:
            return found
        probabilities = np.zeros((len(found), size, size), np.float32)
        probabilities[BACKGROUND] = 1
        probabilities[:, *box] = found
        return probabilities

    @contextmanager
    def _one_interpreter(self, shape: tuple[int, int]) -> Iterator[Any]:
        """An idle interpreter for images of this shape, or one that is opened now; waits if all are in use."""
        with self._change:
            self._change.wait_for(lambda: self._idle or self._closed)
            fitting = [place for place, (other, _) in enumerate(self._idle) if other == shape]
            interpreter = self._idle.pop(fitting[-1])[1] if fitting else None
            if interpreter is None:  # those for other shapes are closed: there is one shape at a time as a rule
                self._closed += len(self._idle) - 1
                self._idle.clear()
        try:
            if interpreter is None:
                with _told_as(self.path):
                    interpreter = self._network_for(shape)
            yield interpreter
        finally:
            with self._change:
                if interpreter is None:
                    self._closed += 1
                else:
                    self._idle.append((shape, interpreter))
                self._change.notify()

    def _network_for(self, shape: tuple[int, int]) -> Any:
        """Open the network for images of this shape."""
        with self._opening:
            if shape != self._shape:
                self._content = TFLiteTables(self._content).resized(self._shape, shape)
                self._shape = shape
            content = self._content
        interpreter = self._interpreter(content)
        if shape != (self.config.image_size,) * 2:
            interpreter.resize_tensor_input(self._ends[0], [1, *shape, self.config.channels.count])
        interpreter.allocate_tensors()
        return interpreter

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, "liverseg-network")

    def _run_whole(self, hu: np.ndarray, output: str) -> np.ndarray:
        return np.concatenate(list(self._pool.map(partial(self._whole, output), hu)))

    def _whole(self, output: str, hu: np.ndarray) -> np.ndarray:
        runner = self._whole_runners.get()
        try:
            return runner(hu=hu[None])[output]
        finally:
            self._whole_runners.put(runner)

    @cached_property
    def _whole_runners(self) -> queue.SimpleQueue:
        runners: queue.SimpleQueue = queue.SimpleQueue()
        with _told_as(self.path):
            interpreter = self._interpreter(self.path.read_bytes(), usable_threads())
            interpreter.allocate_tensors()
            runners.put(interpreter.get_signature_runner("serving_default"))
        return runners

    def _interpreter(self, content: bytes, threads: int | None = None) -> Any:
        return _interpreter_class()(model_content=content, num_threads=threads or self._threads)


@contextmanager
def _told_as(path: Path) -> Iterator[None]:
    """Turn LiteRT's errors into errors that name the file, and hide LiteRT's log lines."""
    try:
        with without_log_lines():  # LiteRT logs its choice of delegate
            yield
    except (ModelError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: expected a TFLite file that can be run ({first_line(error)})") from error


def _tensor(hu: np.ndarray) -> tf.Tensor:
    import tensorflow as tf

    return tf.convert_to_tensor(hu, tf.float32)


def open_runtime(model: str | os.PathLike | Model | keras.Model | Runtime) -> Runtime:
    """Open a model as a runtime.

    Args:
        model: a run folder, a `.keras` file, a SavedModel (a version's folder, or the folder of all versions, of which
            the newest is taken), a `.tflite` file, a `Model`, a Keras model from `load_model`, or a runtime, which is
            returned unchanged.

    Raises:
        ModelError: if it is missing, truncated, or not a model.
    """
    if isinstance(model, Model) or ("keras" in sys.modules and isinstance(model, sys.modules["keras"].Model)):
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
    return open_keras(path)


def keras_runtime(runtime: Runtime) -> KerasRuntime | None:
    """A runtime whose network's layers are accessible: the same one, or one rebuilt from a SavedModel's weights.

    None for a TFLite file without a SavedModel, and for a server.
    """
    if isinstance(runtime, SavedModelRuntime):
        return open_keras(runtime.path)
    if isinstance(runtime, TFLiteRuntime):
        return open_keras(runtime.weights) if runtime.weights else None
    return runtime if isinstance(runtime, KerasRuntime) else None


def open_keras(path: Path) -> KerasRuntime:
    """Open a run folder, a `.keras` file, or a SavedModel, whose network is rebuilt."""
    with without_log_lines():  # TensorFlow's
        from liverseg_tf.models.saving import open_model

    return KerasRuntime(open_model(path))


def _load_graph(content: bytes):
    """Load the checked bytes from a folder of their own, so that no asset, checkpoint or other file is read."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "saved_model.pb").write_bytes(content)
        return tf.saved_model.load(folder, options=tf.saved_model.LoadOptions(experimental_skip_checkpoint=True))


def _interpreter_class():
    """LiteRT's interpreter if it is installed, else TensorFlow's."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite.python.interpreter import Interpreter
    return Interpreter


def _network_of(content: bytes) -> tuple[bytes, tuple[int, int]]:
    """Cut the network, from `channels` to `logits`, out of a verified TFLite file.

    `export` writes the network's operators one after another. So the file's list of operators is shortened in place,
    and its inputs and outputs are replaced; nothing is moved, because Python would copy tens of megabytes of weights.

    Returns:
        The file, and the numbers of the tensors `channels` and `logits`.
    """
    tables = TFLiteTables(content)
    graph, names = tables.graph, tables.tensor_names()
    if not {b"channels", b"logits"} <= set(names):
        raise ModelError("expected tensors named channels and logits, it has none of these names")
    ends = (names.index(b"channels"), names.index(b"logits"))
    made_by = {tensor: index for index, outputs in enumerate(tables.outputs()) for tensor in outputs}
    first, last = made_by.get(ends[0], -1) + 1, made_by.get(ends[1], -1) + 1
    if not first < last:
        raise ModelError("expected a network between its tensors channels and logits")
    cut = bytearray(content)

    def field(table, slot: int) -> int:
        """Position of a table's offset to its vector, by the slots of the schema."""
        return table.Pos + table.Offset(slot)

    def vector(at: int) -> int:
        return at + struct.unpack_from("<I", cut, at)[0]

    # a vector is its length and its elements; elements that are tables are offsets from their own positions
    operators_at = field(graph, 10)
    start = vector(operators_at) + 4 * first
    struct.pack_into("<I", cut, start, last - first)
    struct.pack_into("<I", cut, operators_at, start - operators_at)
    for slot, end in zip((6, 8), ends, strict=True):  # the graph's inputs and outputs
        struct.pack_into("<Ii", cut, vector(field(graph, slot)), 1, end)
    # drop signatures: they name the whole file's ends
    struct.pack_into("<I", cut, vector(field(tables.model, 18)), 0)
    return bytes(cut), ends
