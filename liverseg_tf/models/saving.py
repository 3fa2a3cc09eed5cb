"""Keras model files that carry their configuration."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError, first_line
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, looks_like_savedmodel, version_folder
from liverseg_tf.models.model import Model
from liverseg_tf.models.unet import build_unet
from liverseg_tf.ownership import owned_write
from liverseg_tf.shipped import locate_model

CONFIG_ENTRY = "liverseg_config.json"
# A .keras file of the largest backbone is below 300 MB; a larger file is not a model of this library.
_LARGEST_BYTES = 2 * 1024**3
_LARGEST_CONFIG_BYTES = 1 << 20


def save_model(model: keras.Model, config: ModelConfig, path: str | Path, overwrite: bool = False) -> None:
    """Write a `.keras` file with `config` inside; whole or not at all.

    Args:
        model: the network.
        config: how the network's input is prepared.
        path: file to write; an existing file is replaced if this library wrote it and it was not changed since.
        overwrite: also replace any other file.

    Raises:
        OutputError: if the file can't be written, or must not be replaced.

    Examples:
        >>> config = ModelConfig(image_size=32, backbone="tiny")
        >>> save_model(build_model(config), config, "model.keras")
        >>> load_model("model.keras").output_shape
        (None, 32, 32, 3)
    """
    with owned_write(path, "model", overwrite=overwrite) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CONFIG_ENTRY, config.to_json())


def load_model(path: str | Path, precision: str = "float32") -> keras.Model:
    """Load a Keras model of this library.

    Args:
        path: as `open_model` takes it.
        precision: Keras dtype policy of the layers.

    Returns:
        A Keras model: channels (B, S, S, C) float32 in, logits (B, S, S, classes) float32 out. All functions of this
        library that take a model accept it.

    Raises:
        ModelError: as `open_model`.

    Examples:
        >>> load_model("liverseg-lite0").input_shape
        (None, 256, 256, 3)
    """
    return open_model(path, precision).to_keras()


def open_model(path: str | Path, precision: str = "float32") -> Model:
    """Load a model of this library, with its configuration and model card.

    The network is rebuilt from its configuration, and only its weights are read from the file. So a file can bring
    neither code nor layers of its own.

    Args:
        path: a `.keras` file, a run folder that `train` wrote, a SavedModel that `export` wrote, or a shipped model's
            name; "shipped" for the default one.
        precision: Keras dtype policy of the layers.

    Returns:
        The network, its configuration, its card, and `path`.

    Raises:
        ModelError: if the model is missing, truncated, no model, of another architecture, or from another program.
    """
    source = Path(locate_model(path))
    savedmodel = _savedmodel(source)
    path = savedmodel or model_file(source)
    config, card = _described(path)
    network = _build(config, precision=precision)
    try:
        if savedmodel:
            restore_weights(network.weights, savedmodel)
        else:
            network.load_weights(path)
    except Exception as error:
        raise ModelError(
            f"{path}: expected the weights of {network.name} at {config.image_size} px, but they can't be loaded "
            f"({first_line(error)}); is the file complete?"
        ) from error
    return Model(network, config, card, source)


def _savedmodel(path: str | Path) -> Path | None:
    """The version folder at `path`, if it is a SavedModel."""
    path = Path(path)
    if path.is_dir() and not (path / "model.keras").is_file() and looks_like_savedmodel(path):
        return version_folder(path)
    return None


def restore_weights(variables: Sequence, folder: Path) -> None:
    """Read a network's weights from a SavedModel's variables, without running the SavedModel.

    Args:
        variables: variables of Keras or of TensorFlow, in the order of Keras's weights.
        folder: folder of the SavedModel.

    Raises:
        ModelError: if the file has other variables, or declares more bytes than it holds.
    """
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    names = [f"weights/{index}/.ATTRIBUTES/VARIABLE_VALUE" for index in range(len(variables))]
    wrong = [n for n, v in zip(names, variables, strict=True) if n not in shapes or tuple(shapes[n]) != tuple(v.shape)]
    declared = 0 if wrong else sum(math.prod(shapes[name]) * dtypes[name].size for name in names)
    held = sum(path.stat().st_size for path in (folder / "variables").glob("variables.data-*"))
    if wrong or declared > held:
        what = f"{wrong[0].partition('/.')[0]} of another shape or none" if wrong else f"{declared} bytes in {held}"
        raise ModelError(f"{folder}: expected the weights of its network, got {what}")
    for name, variable in zip(names, variables, strict=True):
        variable.assign(reader.get_tensor(name).astype(tf.as_dtype(variable.dtype).as_numpy_dtype))


def build_model(config: ModelConfig, encoder_weights: str | Path = "none", precision: str = "float32") -> keras.Model:
    """Build the network that a configuration describes; `Model.of` finds the configuration again."""
    return Model(_build(config, encoder_weights, precision), config).to_keras()


def _build(config: ModelConfig, encoder_weights: str | Path = "none", precision: str = "float32") -> keras.Model:
    try:
        return build_unet(
            config.image_size,
            config.backbone,
            len(config.class_names),
            config.channels.count,
            encoder_weights,
            precision,
        )
    except ConfigError as error:
        raise ModelError(f"the model's configuration can't be built: {error}") from error


def load_config(path: str | Path) -> ModelConfig:
    """Read the configuration of what `load_model` takes, without loading the network.

    Raises:
        ModelError: as `load_model`.
    """
    source = Path(locate_model(path))
    return _described(_savedmodel(source) or model_file(source))[0]


def _described(path: Path) -> tuple[ModelConfig, Mapping[str, Any] | None]:
    """Configuration and card of a SavedModel's version folder, or of a `.keras` file, which has no card."""
    if path.is_dir():
        manifest = Manifest.load(path / SAVEDMODEL_MANIFEST)
        manifest.check_files(path)
        return manifest.config, manifest.card
    return _config_in(path), None


def _config_in(path: Path) -> ModelConfig:
    """Configuration of a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if sum(entry.file_size for entry in entries.values()) > _LARGEST_BYTES:
                raise ModelError(f"{path}: unpacks to more than {_LARGEST_BYTES >> 30} GiB; that is no model")
            if any(name.startswith(("/", "\\")) or ".." in Path(name).parts for name in entries):
                raise ModelError(f"{path}: holds entries that point outside the archive; that is no model")
            if CONFIG_ENTRY not in entries:
                raise ModelError(
                    f"{path}: is an archive without {CONFIG_ENTRY}: expected a model that this library saved"
                )
            if entries[CONFIG_ENTRY].file_size > _LARGEST_CONFIG_BYTES:
                raise ModelError(f"{path}: its {CONFIG_ENTRY} is larger than a megabyte; that is no model")
            return ModelConfig.from_json(archive.read(CONFIG_ENTRY).decode("utf-8"), f"{path}: {CONFIG_ENTRY}")
    except ModelError:
        raise
    except ConfigError as error:
        raise ModelError(str(error)) from None
    except Exception as error:  # zipfile raises many kinds for a broken or encrypted archive
        raise ModelError(
            f"{path}: expected a .keras model file, got something else or a part of one ({error})"
        ) from None


def model_file(path: str | Path) -> Path:
    """The `.keras` file at `path`: the file itself, or the one in a run folder.

    Raises:
        ModelError: if there is no such file.
    """
    path = Path(path)
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        what = "a run folder holds model.keras, this one does not" if path.is_dir() else "there is no such file"
        raise ModelError(f"{path}: expected a .keras file or a run folder ({what})")
    return file


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over a model's weights: the same for all artefacts of one training."""
    digest = hashlib.sha256()
    for values in model.get_weights():
        digest.update(values.tobytes())
    return digest.hexdigest()
