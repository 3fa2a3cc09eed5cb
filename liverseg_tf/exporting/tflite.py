"""TFLite files with builtin operators only: raw HU in, labels out."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError, first_line
from liverseg_tf.exporting.formats import EXPORT_PRECISIONS
from liverseg_tf.inference.slice_function import SliceFunction

# In every file: identifies the files of this library.
DESCRIPTION = b"liverseg_tf"
TFLITE_SIZE = 512

_log = logging.getLogger(__name__)


def convert(
    model: keras.Model,
    config: ModelConfig,
    precision: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    size: int = TFLITE_SIZE,
) -> bytes:
    """Convert a network with its preprocessing and postprocessing to a TFLite flatbuffer of builtin operators.

    The network is converted separately, so that only the network is quantised: HU to channels, resizing, softmax and
    argmax stay float32 and are joined to it afterwards. The one signature is `serving_default`: `hu`
    (1, size, size) float32 -> `labels` (1, size, size) uint8 and `probabilities` (1, size, size, classes) float32.
    The tensors between the parts are named `channels` and `logits`; `TFLiteRuntime` extracts the network there.

    Args:
        model: channels in, logits out.
        config: how its input is prepared.
        precision: `"float32"`, `"float16"` (weights) or `"int8"` (weights and activations of the network).
        calibration: for int8, the network's inputs (S, S, C) float32 to take the activations' ranges from.
        size: rows and columns of the slices, in pixels.

    Returns:
        The file's content.

    Raises:
        ConfigError: for an unknown precision, or int8 without calibration.
        ModelError: if an operation has no builtin operator.
    """
    if precision not in EXPORT_PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(EXPORT_PRECISIONS)}. Received: {precision!r}")
    if precision == "int8" and calibration is None:
        raise ConfigError("int8 needs slices to calibrate on")
    function = SliceFunction(model, config, portable=True)
    network_shape = (1, config.image_size, config.image_size)
    hu = tf.TensorSpec((1, size, size), tf.float32)
    channels = tf.TensorSpec((*network_shape, config.channels.count), tf.float32)
    logits = tf.TensorSpec((*network_shape, len(config.class_names)), tf.float32)

    def outputs(values):
        probabilities = function.from_logits(values, size, size)
        return function.most_probable(probabilities), probabilities

    parts = [
        _convert_part(function.network_input, hu),
        _convert_part(lambda values: model(values, training=False), channels, precision, calibration),
        _convert_part(outputs, logits),
    ]
    return _join(parts, ["hu", "channels", "logits", ("labels", "probabilities")])


def operators(content: bytes) -> dict[str, int]:
    """Count a TFLite file's operators by name, over all its signatures.

    Args:
        content: the file's content.

    Returns:
        For example `{"CONV_2D": 96, "ADD": 400}`, most frequent first. Operators that are not builtin are named
        `custom:<name>`.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = _read(content)
    counts: Counter[str] = Counter()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = code.customCode.decode() if code.customCode else ""
            counts[f"custom:{custom}" if names[builtin] == "CUSTOM" else names[builtin]] += 1
    return dict(counts.most_common())


def check_builtin_only(content: bytes) -> None:
    """Check that a TFLite file has builtin operators only.

    Raises:
        ModelError: naming the other operators.
    """
    custom = [name for name in operators(content) if name.startswith("custom:")]
    if custom:
        raise ModelError(f"expected TFLite builtin operators only, got {', '.join(custom)}")


def _convert_part(
    function: Callable, spec: tf.TensorSpec, precision: str = "float32", calibration: Iterable[np.ndarray] | None = None
):
    """One function of one tensor as a flatbuffer model object."""
    concrete = tf.function(function, [spec], autograph=False).get_concrete_function()
    with _quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        elif precision == "int8" and calibration is not None:
            converter.representative_dataset = lambda: ([np.asarray(x, np.float32)[None]] for x in calibration)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        try:
            content = converter.convert()
        except Exception as error:
            raise ModelError(
                f"the model could not be converted to TFLite builtin operators ({first_line:.200})"
            ) from error
    return _read(content)


def _read(content: bytes):
    from tensorflow.lite.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def _join(parts: Sequence, names: Sequence) -> bytes:
    """Join flatbuffer models in sequence: the output of each is the input of the next.

    Args:
        parts: models with one input each; all except the last have one output. They are changed.
        names: names of the tensors before, between and after the parts; a tuple after the last one.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    whole = schema.ModelT()
    whole.version, whole.description = 3, DESCRIPTION.decode()
    whole.operatorCodes, whole.buffers = [], [schema.BufferT()]  # buffer 0 is empty by the format's rules
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators, graph.outputs = "main", [], [], []
    whole.subgraphs = [graph]
    for part, input_name in zip(parts, names, strict=False):
        source, *branches = part.subgraphs
        codes, buffers, graphs = len(whole.operatorCodes), len(whole.buffers), len(whole.subgraphs) - 1
        whole.operatorCodes += part.operatorCodes
        whole.buffers += part.buffers
        for branch in part.subgraphs:
            for tensor in branch.tensors:
                tensor.buffer = tensor.buffer and tensor.buffer + buffers
            for operator in branch.operators:
                operator.opcodeIndex += codes
                _shift_branches(operator.builtinOptions, graphs)
        whole.subgraphs += branches
        places = {-1: -1}  # -1 stands for an optional input that is left out
        if graph.outputs:
            places[source.inputs[0]] = graph.outputs[0]
        for index, tensor in enumerate(source.tensors):
            if index not in places:
                places[index] = len(graph.tensors)
                graph.tensors.append(tensor)
        for operator in source.operators:
            operator.inputs = [places[i] for i in operator.inputs]
            operator.outputs = [places[i] for i in operator.outputs]
        graph.operators += source.operators
        graph.inputs = graph.inputs or [places[source.inputs[0]]]
        graph.outputs = [places[i] for i in source.outputs]
        graph.tensors[places[source.inputs[0]]].name = input_name
    for index, name in zip(graph.outputs, names[-1], strict=True):
        graph.tensors[index].name = name
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [_tensor_map(schema, names[0], graph.inputs[0])]
    signature.outputs = [_tensor_map(schema, *pair) for pair in zip(names[-1], graph.outputs, strict=True)]
    whole.signatureDefs = [signature]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(whole))


def _shift_branches(options, by: int) -> None:
    """Renumber the subgraphs that a conditional or a loop runs."""
    for name in ("thenSubgraphIndex", "elseSubgraphIndex", "condSubgraphIndex", "bodySubgraphIndex"):
        if hasattr(options, name):
            setattr(options, name, getattr(options, name) + by)


def _tensor_map(schema, name: str, index: int):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


@contextlib.contextmanager
def _quiet():
    """Send the converter's messages, which it writes to the process's stderr, to the debug log."""
    level = tf.get_logger().level
    with tempfile.TemporaryFile() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stderr = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        tf.get_logger().setLevel(logging.ERROR)
        try:
            yield
        finally:
            tf.get_logger().setLevel(level)
            os.dup2(stderr, 2)
            os.close(stderr)
            chatter.seek(0)
            _log.debug("%s", chatter.read().decode("utf-8", "replace"))
