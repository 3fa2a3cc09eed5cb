"""`export`: a trained model as a SavedModel or a TFLite file."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.cases import Case
from liverseg_tf.errors import ConfigError, LiverSegError, OutputError
from liverseg_tf.exporting.card import model_card
from liverseg_tf.exporting.formats import EXPORT_PRECISIONS, FORMATS
from liverseg_tf.exporting.parity import REFERENCE, Parity, check_parity, megabytes
from liverseg_tf.exporting.samples import samples
from liverseg_tf.exporting.savedmodel import has_warmup_requests, write_savedmodel
from liverseg_tf.exporting.tflite import check_builtin_only, convert
from liverseg_tf.files import sha256_of
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest, version_folders
from liverseg_tf.models.model import Model
from liverseg_tf.models.saving import build_model, open_model, save_model, weights_sha256
from liverseg_tf.ownership import claim, owned_write, write_text

CALIBRATION_SLICES = 128
_PHANTOM_SHAPE = (256, 256, 32)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: folder of the SavedModel's version, or the `.tflite` file.
        manifest: JSON file with the configuration and the model card.
        megabytes: size of the model on disk, in MB.
        warmup: whether a SavedModel has warm-up requests for TensorFlow Serving; None for TFLite.
        parity: comparison with the Keras model, if asked for.
    """

    path: Path
    manifest: Path
    megabytes: float
    warmup: bool | None = None
    parity: Parity | None = None


def export(
    model: str | Path | Model | keras.Model,
    output: str | Path,
    format: str = FORMATS[0],
    precision: str = EXPORT_PRECISIONS[0],
    calibration: str | Path | Sequence[Case] | None = None,
    check: bool | str | Path | Sequence[Case] = False,
    progress: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a trained model as a SavedModel or TFLite file that takes raw HU and returns labels.

    Args:
        model: a run folder, a `.keras` file, a shipped model's name ("shipped" for the default one), a `Model`, or a
            Keras model of this library.
        output: a folder. A SavedModel is written as its next version, `<output>/<number>/`; TensorFlow Serving uses the
            folder's name as the model's name. A TFLite file is written as `<output>/<folder's name>-<precision>.tflite`
            with a `.json` beside it, or as `output` itself if that ends in `.tflite`.
        format: `"savedmodel"` or `"tflite"`.
        precision: `"float32"`; `"float16"`, which halves the size on disk; or for TFLite `"int8"`, which quantises the
            whole network.
        calibration: cases with tumours, or a folder of them, that give the value ranges for int8; by default phantoms.
        check: compare the masks with those of the Keras model, and of all exports of the same weights in the output
            folder; True for phantoms, or cases, or a folder of cases.
        progress: called with the name of each step.
        overwrite: also replace a TFLite file or JSON file that this library did not write, or that was changed since.

    Returns:
        Paths and size of the exported model, and the comparison if `check` was given.

    Raises:
        ModelError: if the model can't be read or converted.
        ConfigError: for an unknown format or precision, or a precision that the format does not have.
        OutputError: if a file can't be written, or must not be replaced.

    Examples:
        >>> export("run", "liver.tflite", format="tflite").path
        PosixPath('liver.tflite')
    """
    say = progress or _log.info
    _check_options(format, precision, calibration)
    output = Path(output)
    given = Model.of(model) if isinstance(model, (Model, keras.Model)) else open_model(model)
    opened = _in_float32(given)
    network, config = opened.network, opened.config
    card = model_card(opened, format, precision)
    if format == "savedmodel":
        if output.suffix in (".tflite", ".keras") or output.is_file():
            raise OutputError(f"{output}: expected a folder to put a version of the SavedModel into")
        say("writing the SavedModel")
        path = write_savedmodel(network, config, output, card, precision)
        exported = Exported(path, path / SAVEDMODEL_MANIFEST, megabytes(path), has_warmup_requests())
    else:
        path = output if output.suffix == ".tflite" else output / f"{output.resolve().name}-{precision}.tflite"
        inputs = [opened.source] if opened.source else []
        for written in (path, path.with_suffix(".json")):
            claim(written, "tflite", inputs=inputs, overwrite=overwrite)
        say(f"converting to TFLite {precision}")
        slices = _calibration_slices(opened, calibration) if precision == "int8" else None
        content = convert(network, config, precision, slices)
        check_builtin_only(content)
        manifest = _write_tflite(path, content, config, card, inputs, overwrite)
        exported = Exported(path, manifest, megabytes(path))
    if check is False or check is None:
        return exported
    say("comparing with the Keras model")
    parity = _compare(opened, path.parent, None if check is True else check)
    return Exported(exported.path, exported.manifest, exported.megabytes, exported.warmup, parity)


def _check_options(format: str, precision: str, calibration) -> None:
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}. Received: {format!r}")
    if precision not in EXPORT_PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(EXPORT_PRECISIONS)}. Received: {precision!r}")
    if format == "savedmodel" and precision == "int8":
        raise ConfigError("a SavedModel is stored in float32 or float16; int8 is for format 'tflite'")
    if calibration is not None and precision != "int8":
        raise ConfigError(f"calibration is for precision 'int8' alone. Received: {precision!r}")


def _in_float32(model: Model) -> Model:
    """The same network computing in float32, if it was trained in mixed precision."""
    if all(layer.compute_dtype == "float32" for layer in model.network.layers):
        return model
    plain = build_model(model.config)
    plain.set_weights(model.network.get_weights())
    return replace(model, network=plain)


def _calibration_slices(model: Model, source) -> list[np.ndarray]:
    function, config = SliceFunction(model.network, model.config), model.config
    drawn = samples(source, CALIBRATION_SLICES, config.hu_range, _PHANTOM_SHAPE, config.classes)
    return list(itertools.chain.from_iterable(function.network_input(sample.hu).numpy() for sample in drawn))


def _write_tflite(
    path: Path, content: bytes, config: ModelConfig, card: dict, inputs: list[Path], overwrite: bool
) -> Path:
    with owned_write(path, "tflite", inputs=inputs, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
        sha256 = sha256_of(temporary)
    manifest = path.with_suffix(".json")
    text = Manifest(config, card, {path.name: sha256}).to_json()
    write_text(manifest, text, "tflite", inputs=inputs, overwrite=overwrite)
    return manifest


def _compare(model: Model, folder: Path, cases) -> Parity:
    with tempfile.TemporaryDirectory(prefix="liverseg-") as temporary:
        reference = Path(temporary, "model.keras")
        save_model(model.network, model.config, reference)
        artefacts = {REFERENCE: reference, **dict(_artefacts_of(weights_sha256(model.network), folder))}
        return check_parity(artefacts, model.config.classes, model.config.hu_range, cases)


def _artefacts_of(weights: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the exported models in a folder that have these weights; of SavedModels the newest version."""
    places = [(p, p / SAVEDMODEL_MANIFEST) for p in version_folders(folder)[-1:]]
    places += [(p, p.with_suffix(".json")) for p in sorted(folder.glob("*.tflite"))]
    for path, manifest in places:
        try:
            card = Manifest.load(manifest).card
        except LiverSegError:
            continue
        if card.get("weights_sha256") == weights:
            yield f"{card.get('format')} {card.get('precision')}", path
