"""Chooses which of a model's artefacts runs on this machine. Loads no heavy package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.models.artefacts import (
    SAVEDMODEL_MANIFEST,
    Manifest,
    looks_like_savedmodel,
    version_folder,
    version_folders,
)

RUNTIMES = ("auto", "keras", "savedmodel", "tflite")
# Who predicts many volumes: this process, or Ray's workers.
ENGINES = ("embedded", "ray")
_GPU = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Choice:
    """The chosen runtime and file.

    Attributes:
        runtime: `keras`, `savedmodel` or `tflite`.
        path: the file or folder that the runtime opens.
        reason: why it was chosen, in words.
        weights: for a TFLite file, the SavedModel with the same weights beside it, or None.
    """

    runtime: str
    path: Path
    reason: str
    weights: Path | None = None


def choose(model: str | os.PathLike, runtime: str = "auto") -> Choice:
    """Choose the runtime of a model.

    A folder that `export` filled may hold a SavedModel and TFLite files. `auto` takes the int8 file on a CPU, where it
    took a quarter of the time for masks of the same quality (`liverseg benchmark` measures it on any machine), and the
    SavedModel where there is a GPU. A model of a single kind runs as that kind.

    Args:
        model: path of a run folder, a `.keras` file, a SavedModel or the folder around it, or a `.tflite` file.
        runtime: one of `RUNTIMES`.

    Raises:
        ConfigError: for an unknown runtime.
        ModelError: if the model has no file for this runtime.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime: expected one of {', '.join(RUNTIMES)}. Received: {runtime!r}")
    path = Path(model)
    if path.suffix == ".tflite":
        return _only("tflite", path, runtime)
    if not path.is_dir() or (path / "model.keras").is_file() or not looks_like_savedmodel(path):
        return _only("keras", path, runtime)
    if runtime == "keras":
        return Choice("keras", path, "asked for: the network is rebuilt from the SavedModel's weights")
    if runtime == "savedmodel":
        return Choice("savedmodel", path, "asked for")
    files = _tflite_files(path)
    if runtime == "tflite":
        if not files:
            raise ModelError(f"{path}: has no .tflite file for runtime='tflite'; write one with liverseg export")
        return Choice("tflite", files[0], "asked for", _same_weights(files[0], path))
    small = [file for file in files if file.stem.endswith("-int8")]
    if not small:
        return Choice("savedmodel", path, "there is no int8 .tflite file beside it")
    weights = _same_weights(small[0], path)
    if weights is None:
        return Choice("savedmodel", path, f"{small[0].name} has other weights")
    if has_gpu():
        return Choice("savedmodel", path, "there is a GPU")
    if not has_litert():
        return Choice("savedmodel", path, "ai-edge-litert, which runs the faster .tflite file, can't be imported")
    return Choice("tflite", small[0], "the int8 file is the fastest on a CPU", weights)


def has_gpu() -> bool:
    """Whether an NVIDIA GPU may be used, without loading TensorFlow."""
    return _GPU.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def has_litert() -> bool:
    """Whether LiteRT's interpreter can be imported."""
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except Exception:  # a shared library that fails to load may raise any error
        return False
    return True


def _only(kind: str, path: Path, runtime: str) -> Choice:
    if runtime not in ("auto", kind):
        raise ModelError(f"{path}: runs as {kind}, not as {runtime}; liverseg export writes other kinds")
    return Choice(kind, path, "the only runtime for this kind of file")


def _tflite_files(folder: Path) -> list[Path]:
    """The TFLite files beside a model's versions, int8 first."""
    if not version_folders(folder):
        return []
    order = ("int8", "float16", "float32")
    ranks = {file: file.stem.rpartition("-")[2] for file in sorted(folder.glob("*.tflite"))}
    return sorted(ranks, key=lambda file: order.index(ranks[file]) if ranks[file] in order else len(order))


def _same_weights(file: Path, folder: Path) -> Path | None:
    """The newest SavedModel of a folder, if a TFLite file there has the same weights."""
    newest = version_folder(folder)
    manifests = (file.with_suffix(".json"), newest / SAVEDMODEL_MANIFEST)
    try:
        digests = {Manifest.load(path).card.get("weights_sha256") for path in manifests}
    except ModelError:
        return None
    return newest if len(digests) == 1 and None not in digests else None
