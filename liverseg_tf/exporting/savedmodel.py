"""SavedModels for TensorFlow Serving: raw HU in, labels out, nothing but TensorFlow needed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import OutputError
from liverseg_tf.files import sha256_of
from liverseg_tf.hounsfield import AIR_HU, PNG_OFFSET_HU
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, version_folders

WARMUP_REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")
# Batch sizes and slice size that the server runs once before it takes requests.
WARMUP_BATCHES = (1, 8)
WARMUP_SIZE = 512


class _HalfStored(tf.Module):
    """A network whose kernels are stored in float16 and computed with in float32; half the size on disk.

    Args:
        model: in float32; its own variables are not stored.
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        # BatchNorm's parameters and biases are small, and variances don't fit float16's range
        self.weights = [
            tf.Variable(v.value if len(v.shape) < 2 else tf.cast(v.value, tf.float16), trainable=False)
            for v in model.weights
        ]
        places = {id(v): i for i, v in enumerate(model.weights)}
        trainable, rest = (
            [places[id(v)] for v in group] for group in (model.trainable_variables, model.non_trainable_variables)
        )

        def call(channels, training=False):
            values = [tf.cast(weight, tf.float32) for weight in self.weights]
            groups = ([values[i] for i in group] for group in (trainable, rest))
            return model.stateless_call(*groups, channels, training=False)[0]

        self._call = call

    def __call__(self, channels, training=False):
        return self._call(channels)


def write_savedmodel(
    model: keras.Model,
    config: ModelConfig,
    folder: str | Path,
    card: dict[str, Any],
    precision: str = "float32",
) -> Path:
    """Write the next version of a model; existing versions are not changed.

    Signatures, each for any batch, rows and columns:

    - `serving_default`: `hu` (B, H, W) float32 -> `labels` (B, H, W) uint8
    - `probabilities`: `hu` (B, H, W) float32 -> `probabilities` (B, H, W, classes) float32
    - `compact`: `png` (B,) string, 16-bit greyscale PNG of HU + 32768, equal sizes -> `labels_bytes` (B,) string,
      8-bit greyscale PNG of the labels. For REST, where arrays are lists of decimal numbers.
    - `describe`: `name` (B,) string, of any value -> `json` (B,) string, the model's configuration

    Args:
        model: channels in, logits out.
        config: how the network's input is prepared.
        folder: folder of all versions; made if missing.
        card: model card, put into `assets.extra/` with the configuration.
        precision: "float32", or "float16" to store kernels in half precision.

    Returns:
        The folder of the new version.

    Raises:
        OutputError: if the model can't be written.
    """
    folder = Path(folder)
    temporary = (
        folder / f".{uuid.uuid4().hex[:8]}.partial"
    )  # not a number, so a server that watches the folder ignores it
    # in the order of Keras's weights, by which `load_model` finds them
    if precision == "float16":
        module = network = _HalfStored(model)
    else:
        module, network = tf.Module(), model
        module.weights = [variable.value for variable in model.weights]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(module, str(temporary), signatures=_signatures(SliceFunction(network, config)))
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        sha256 = {p.relative_to(temporary).as_posix(): sha256_of(p) for p in files}
        manifest = temporary / SAVEDMODEL_MANIFEST
        manifest.parent.mkdir()
        manifest.write_text(Manifest(config, card, sha256).to_json(), "utf-8")
        _write_warmup_requests(temporary / WARMUP_REQUESTS, model_name=folder.name)
        return _rename_to_next_version(temporary, folder)
    except (OSError, tf.errors.OpError) as error:
        # TensorFlow's end in "<file>; No space left on device"
        reason = getattr(error, "strerror", None) or getattr(error, "message", str(error)).rsplit("; ", 1)[-1]
        raise OutputError(
            f"{folder}: could not be written ({reason}); check the folder's rights and free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _signatures(function: SliceFunction) -> dict[str, Any]:
    hu_spec = tf.TensorSpec((None, None, None), tf.float32, "hu")
    # The network is traced and stored once, for the three signatures that need it. AutoGraph has nothing to convert.
    scores = tf.function(function.probabilities, [hu_spec], autograph=False)

    @tf.function(input_signature=[hu_spec], autograph=False)
    def serving_default(hu):
        return {"labels": function.most_probable(scores(hu))}

    @tf.function(input_signature=[hu_spec], autograph=False)
    def probabilities(hu):
        return {"probabilities": scores(hu)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "png")], autograph=False)
    def compact(png):
        def decode(content):
            image = tf.io.decode_png(content, channels=1, dtype=tf.uint16)[..., 0]
            return tf.cast(image, tf.int32) - PNG_OFFSET_HU

        hu = tf.map_fn(decode, png, fn_output_signature=tf.TensorSpec((None, None), tf.int32))
        labels = function.most_probable(scores(tf.cast(hu, tf.float32)))
        return {"labels_bytes": tf.map_fn(tf.io.encode_png, labels[..., None], fn_output_signature=tf.string)}

    config_json = function.config.to_json()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "name")], autograph=False)
    def describe(name):
        return {"json": tf.fill(tf.shape(name), config_json)}

    functions = (serving_default, probabilities, compact, describe)
    return {f.__name__: f.get_concrete_function() for f in functions}


def _rename_to_next_version(temporary: Path, folder: Path) -> Path:
    version = max((int(p.name) for p in version_folders(folder)), default=0) + 1
    while True:
        target = folder / str(version)
        if not target.exists():
            try:
                os.rename(temporary, target)  # fails if another export has taken the number meanwhile
                return target
            except OSError:
                if not target.exists():
                    raise
        version += 1


def has_warmup_requests() -> bool:
    """Tell whether the package that writes warm-up requests is installed."""
    try:
        import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401
    except ImportError:
        return False
    return True


def _write_warmup_requests(
    path: Path, model_name: str, batches: Sequence[int] = WARMUP_BATCHES, size: int = WARMUP_SIZE
) -> None:
    """Write the requests that TensorFlow Serving runs to warm a version up, as PredictionLog records."""
    if not has_warmup_requests():
        return
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    png = tf.io.encode_png(tf.fill((size, size, 1), tf.constant(int(AIR_HU) + PNG_OFFSET_HU, tf.uint16))).numpy()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in ("serving_default", "probabilities", "compact"):
            for batch in batches:
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = model_name, signature
                if signature == "compact":
                    request.inputs["png"].CopyFrom(tf.make_tensor_proto([png] * batch))
                else:
                    hu = request.inputs["hu"]
                    hu.CopyFrom(tf.make_tensor_proto(AIR_HU, shape=()))
                    # one value and a shape mean that value everywhere: the file stays small
                    hu.tensor_shape.CopyFrom(tf.TensorShape((batch, size, size)).as_proto())
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())
