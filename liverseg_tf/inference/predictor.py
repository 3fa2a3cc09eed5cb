"""`Predictor` segments whole volumes and gives a `Prediction` for each."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.nifti import stem
from liverseg_tf.data.volume import CTVolume, grid_in_words
from liverseg_tf.errors import ConfigError, DataWarning, GeometryError, LiverSegError, ModelError, warn
from liverseg_tf.evaluation.measure import SMALLEST_LIVER_ML
from liverseg_tf.files import sha256_of
from liverseg_tf.inference.choice import choose
from liverseg_tf.inference.extent import slice_step
from liverseg_tf.inference.postprocessing import DEFAULT, OTHER_ORGANS, PostProcessing, SliceSmoother
from liverseg_tf.inference.runtimes import Box, Runtime, TFLiteRuntime, keras_runtime, open_keras, open_runtime
from liverseg_tf.inference.second_look import look_again
from liverseg_tf.inference.segment import LabelScoring, NetworkScoring, Scoring, Segmenter
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.labels import LIVER_CLASSES, ClassSet
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, folds_of, version_folder
from liverseg_tf.models.model import Model
from liverseg_tf.ownership import save_image, sign
from liverseg_tf.shipped import DEFAULT_MODEL, SECOND_LOOK_MODEL, locate_model, shipped_models

if TYPE_CHECKING:
    import keras

    from liverseg_tf.data.dicom.series import DicomSeries
    from liverseg_tf.evaluation.statistics import MaskStatistics

# Pixels of a batch: enough to keep two cores busy, in little memory.
_PIXELS_A_BATCH = 4 * 512 * 512
# A single slice larger than this takes gigabytes.
_MOST_PIXELS_A_SLICE = 4096 * 4096

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Prediction:
    """A predicted mask.

    Attributes:
        volume: the CT.
        canonical_labels: (rows A->P, columns R->L, slices I->S) uint8 class indices.
        class_names: the classes' names by index.
        probabilities: for each class except the background (rows, columns, slices) uint8, the network's probability
            times 255, before post-processing; empty unless requested.
        seconds: time taken, reading included.
        model_name: the `Predictor`'s model, as text; None if unknown.
        lesion_is_2: see `ClassSet`.

    Examples:
        >>> volume = CTVolume.from_array(np.zeros((20, 20, 10)), spacing_mm=(2.0, 2.0, 5.0))
        >>> prediction = Prediction(volume, np.ones((20, 20, 10), np.uint8), ("background", "liver", "tumour"))
        >>> prediction.statistics().liver_volume_ml
        80.0
    """

    volume: CTVolume
    canonical_labels: np.ndarray
    class_names: tuple[str, ...]
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    model_name: str | None = None
    lesion_is_2: bool = True

    def __repr__(self) -> str:
        voxels = np.bincount(self.canonical_labels.ravel(), minlength=len(self.class_names))
        volumes = ", ".join(
            f"{name} {count * self.volume.voxel_volume_ml:.1f}"
            for name, count in list(zip(self.class_names, voxels, strict=True))[1:]
        )
        return (
            f"Prediction({self.volume.name}: {grid_in_words(self.volume.shape, self.volume.spacing_mm)}, "
            f"ml by class: {volumes}, by {self.model_name or 'a model'} in {self.seconds:.1f} s)"
        )

    @property
    def labels(self) -> np.ndarray:
        """uint8 class indices in the input's own voxel grid, (x, y, z) as its file has them."""
        return self.volume.geometry.to_file(self.canonical_labels)

    @cached_property
    def image(self) -> nib.Nifti1Image:
        """The mask as a nibabel image with the input's grid, orientation, affine and header."""
        return sign(self.volume.image_like(self.canonical_labels), "mask", self._comment)

    def statistics(self) -> MaskStatistics:
        """Volumes in ml, lesions, burden; see `liverseg_tf.statistics`."""
        from liverseg_tf.data.volume import MaskVolume
        from liverseg_tf.evaluation.statistics import statistics

        return statistics(MaskVolume(self.labels, self.volume.geometry, classes=self.classes), self.volume)

    @property
    def classes(self) -> ClassSet:
        """The classes of the labels."""
        return ClassSet(self.class_names, self.lesion_is_2)

    @property
    def _comment(self) -> str:
        """The class names for the mask's header; empty for liver and tumour."""
        return "" if self.classes == LIVER_CLASSES else self.classes.to_json()

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the mask as .nii or .nii.gz. After an error there is no partial file.

        Args:
            path: replaced if it is an earlier result of this library.
            overwrite: replace any other file too, but never the input.

        Raises:
            OutputError: if it must not or can't be written.
        """
        # not `image`, whose result stays in memory
        image = self.volume.image_like(self.canonical_labels)
        save_image(image, path, "mask", comment=self._comment, inputs=self._inputs, overwrite=overwrite)

    def save_probabilities(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Write one NIfTI file for each class beside `path`: `x.nii.gz` gives `x_liver.nii.gz` and `x_tumour.nii.gz`.

        Values are stored as uint8 and scaled to 0..1 by the header.

        Returns:
            The files.
        """
        if not self.probabilities:
            raise ConfigError("no probabilities were kept: predict with probabilities=True")
        written = []
        for name, values in self.probabilities.items():
            target = side_product(Path(path), name)
            image = self.volume.image_like(values)
            image.header.set_slope_inter(1 / 255, 0)
            save_image(image, target, "probabilities", inputs=self._inputs, overwrite=overwrite)
            written.append(target)
        return written

    @property
    def _inputs(self) -> list[Path]:
        return self.volume.files


class Predictor:
    """Segments whole CT volumes.

    Args:
        model: a run folder, a `.keras` file, a SavedModel folder, a `.tflite` file, a Keras model of this library, a
            `Model`, a `Runtime`, or a list of these, whose probabilities are averaged. By default the shipped model.
        batch_size: slices in a batch, by default as many as fit a fixed number of pixels; at most 8 while the liver is
            being located.
        postprocessing: 3-D post-processing; None for none. By default `PostProcessing()` for a liver, and only
            smoothing and hole filling for other organs.
        runtime: the runtime for a model that was exported in several formats: `auto`, `tflite`, `savedmodel` or
            `keras`; see `choose`.
        extent: locate the liver first, and segment only slices that can hold it, at most 3.25 mm apart; those between
            get interpolated probabilities (`Segmenter`). False for all slices. All slices are always segmented for
            test-time augmentation, and with servers and SavedModels; the liver is not located first for
            probabilities, nor without the post-processing that keeps the largest component; nothing is interpolated
            without smoothing.
        variations: test-time augmentation: the number of slightly shifted, rotated, scaled and brightened copies, the
            unchanged one included, whose probabilities are averaged; or a `TestTimeAugmentation`. Inference takes that
            many times as long. By default none.
        second_look: a second model that must confirm each tumour (`look_again`); None for none. With `auto` it is
            `liverseg-lite0` for the default model, and none for any other.
        max_bytes: the largest volume to read, in bytes; see `CTVolume.load`.

    Raises:
        ModelError: if the model does not exist, or models that work together have different classes.

    Examples:
        >>> prediction = Predictor("run").predict("LiTS/volume-0.nii.gz")
        >>> prediction.labels.shape, prediction.labels.dtype
        ((64, 64, 12), dtype('uint8'))
        >>> prediction.save("segmentation-0.nii.gz")
    """

    def __init__(
        self,
        model: str | Path | Model | keras.Model | Runtime | Sequence | None = None,
        *,
        batch_size: int | None = None,
        postprocessing: PostProcessing | None = DEFAULT,
        variations: int | TestTimeAugmentation | None = None,
        runtime: str = "auto",
        extent: bool = True,
        second_look: str | Path | keras.Model | Runtime | None = "auto",
        max_bytes: int | None = None,
    ):
        self._model, self.runtime, self.extent = model, runtime, extent
        self.variations = TestTimeAugmentation(count=variations) if isinstance(variations, int) else variations
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch size: expected at least 1. Received: {batch_size}")
        if postprocessing is not None and not isinstance(postprocessing, PostProcessing):
            raise ConfigError(f"postprocessing: expected PostProcessing(), or None for none. Got: {postprocessing!r}")
        models = list(model) if isinstance(model, (list, tuple)) else folds_of(locate_model(model))
        self.runtimes = [self._open(locate_model(m)) for m in models]
        self.config: ModelConfig = self.runtimes[0].config
        self.second_look = self._second_model() if second_look == "auto" else second_look
        self._second_runtime = None if self.second_look is None else self._open(locate_model(self.second_look))
        for other in [*self.runtimes[1:], *([self._second_runtime] if self._second_runtime else [])]:
            if other.config.classes != self.config.classes:
                raise ModelError(
                    f"models that work together need the same classes: expected {self.config.class_names}, "
                    f"got {other.config.class_names}"
                )
        if postprocessing is DEFAULT and not self.config.classes.is_liver:
            postprocessing = OTHER_ORGANS
        self.batch_size, self.postprocessing, self.max_bytes = batch_size, postprocessing, max_bytes

    def _second_model(self) -> str | None:
        """The shipped model that looks again at what the default model found; None for any other model."""
        model, found = self._model, shipped_models()
        if SECOND_LOOK_MODEL not in found or isinstance(model, (list, tuple)):
            return None
        return SECOND_LOOK_MODEL if locate_model(model) == found.get(DEFAULT_MODEL) else None

    def _open(self, model) -> Runtime:
        if isinstance(model, (str, os.PathLike)):
            choice = choose(model, self.runtime)
            _log.info("%s runs as %s: %s", model, choice.runtime, choice.reason)
            if self.runtime == "keras":
                return open_keras(choice.path)
            runtime = open_runtime(choice.path)
            if isinstance(runtime, TFLiteRuntime):
                runtime.weights = choice.weights
            return runtime
        if self.runtime != "auto":
            raise ConfigError(f"runtime={self.runtime!r}: expected with a model's path, got {type(model).__name__}")
        return open_runtime(model)

    @property
    def runtime_names(self) -> str:
        """The runtimes of the models: `tflite`, `savedmodel`, `keras`, or the class name of another runtime."""
        return ", ".join(getattr(runtime, "name", type(runtime).__name__) for runtime in self.runtimes)

    def __repr__(self) -> str:
        variations = f"{self.variations.count} variations" if self.variations else "no variations"
        return (
            f"Predictor({self.name}: {', '.join(type(runtime).__name__ for runtime in self.runtimes)}, "
            f"{self.config.image_size} x {self.config.image_size}, classes {', '.join(self.config.class_names)}; "
            f"{'with' if self.postprocessing else 'no'} post-processing, {variations}, "
            f"{'a' if self.second_look else 'no'} second look)"
        )

    @property
    def name(self) -> str:
        """The model's file or folder, "shipped", or "given in memory"; all names for several models."""
        models = self._model if isinstance(self._model, (list, tuple)) else [self._model]
        paths = [_path_of(m) for m in models if m is not None]
        return ", ".join("given in memory" if path is None else Path(path).name for path in paths) or "shipped"

    @cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the models' files, or of the weights in memory; it changes with any change to them.

        None for a server or another runtime whose files are not accessible.
        """
        models = self._model if isinstance(self._model, (list, tuple)) else folds_of(locate_model(self._model))
        digests = [_model_digest(model, runtime) for model, runtime in zip(models, self.runtimes, strict=True)]
        if self._second_runtime is not None:
            digests.append(_model_digest(self.second_look, self._second_runtime))
        known = [digest for digest in digests if digest is not None]
        return hashlib.sha256("".join(known).encode()).hexdigest() if len(known) == len(digests) else None

    @property
    def folders(self) -> list[Path]:
        """Folders of the first model: its own and its parent; empty for a model in memory."""
        first = self._model[0] if isinstance(self._model, (list, tuple)) else self._model
        path = _path_of(locate_model(first))
        if path is None:
            return []
        return [Path(path), Path(path).absolute().parent] if Path(path).is_dir() else [Path(path).absolute().parent]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model's path instead of its weights: the other process opens the model itself."""
        models = self._model if isinstance(self._model, (list, tuple)) else [self._model]
        if not all(model is None or isinstance(model, (str, os.PathLike)) for model in models):
            raise ConfigError("a predictor for other processes must be made from a model's path; save the model")
        by_name = {None, "shipped", *shipped_models()}  # the other process has the shipped models too

        def absolute(m):
            return (
                os.path.abspath(m)
                if isinstance(m, (str, os.PathLike)) and (m not in by_name or Path(m).exists())
                else m
            )

        paths = [absolute(m) for m in models]
        made = partial(
            Predictor,
            batch_size=self.batch_size,
            postprocessing=self.postprocessing,
            variations=self.variations,
            runtime=self.runtime,
            extent=self.extent,
            second_look=absolute(self.second_look),
            max_bytes=self.max_bytes,
        )
        return made, (paths if isinstance(self._model, (list, tuple)) else paths[0],)

    def predict(
        self,
        source: str | Path | nib.spatialimages.SpatialImage | np.ndarray | CTVolume,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment one volume.

        Args:
            source: a file or folder as `CTVolume.load` takes it, a nibabel image, a `CTVolume`, or HU (rows A->P,
                columns R->L, slices I->S) with `spacing_mm` (row, column, slice).
            probabilities: also keep each class's probabilities.
            progress: called with the number of slices done and their total.

        Raises:
            LiverSegError: for a volume that can't be used (see `CTVolume`), or too little memory.

        Warns:
            DataWarning: if less than 200 ml of liver is found.
        """
        start = time.perf_counter()
        volume = self.read(source, spacing_mm)
        rows, columns, slices = volume.shape
        if rows * columns > _MOST_PIXELS_A_SLICE:
            raise GeometryError(
                f"{volume.name}: expected slices of at most {_MOST_PIXELS_A_SLICE} pixels, got {rows} x {columns}; "
                "is this a CT?"
            )
        batch = self.batch_slices(volume)
        try:
            labels, kept = self._segment(volume, batch, probabilities, progress)
        except Exception as error:
            # TensorFlow's error is recognised by name, because TensorFlow may not be loaded
            if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
                raise
            raise LiverSegError(
                f"{volume.name}: {rows} x {columns} x {slices} voxels, {batch} slices at a time, need more memory "
                f"than is available{' with probabilities' if probabilities else ''}; "
                f"{'take a smaller batch_size=' if batch > 1 else 'take a smaller volume'}, "
                "close other programs, or leave the GPU out with CUDA_VISIBLE_DEVICES=-1"
            ) from error
        liver_ml = np.count_nonzero(np.moveaxis(labels, 2, 0)) * volume.voxel_volume_ml
        if self.config.classes.is_liver and liver_ml < SMALLEST_LIVER_ML:
            warn(
                f"{volume.name}: only {liver_ml:.0f} ml of liver found (expected {SMALLEST_LIVER_ML:.0f} ml and more); "
                "is the liver in the field, and is this a CT in HU?",
                DataWarning,
            )
        seconds = time.perf_counter() - start
        lesion_is_2 = self.config.lesion_is_2
        return Prediction(volume, labels, self.config.class_names, kept, seconds, self.name, lesion_is_2)

    def _segment(self, volume: CTVolume, batch: int, probabilities: bool, progress: Progress | None):
        names, count = self.config.class_names, volume.shape[2]
        kept = {name: np.zeros(volume.shape, np.uint8) for name in names[1:]} if probabilities else {}
        sigma = self._smoothing_slices(volume)
        scoring = self._scoring(volume, needs_probabilities=probabilities or bool(sigma))
        selects = self.extent and isinstance(scoring, NetworkScoring)
        step = slice_step(volume.spacing_mm[2]) if selects and sigma else 1
        segmenter = Segmenter(volume, scoring, batch, partial(SliceSmoother, sigma) if sigma else None, step)

        def keep(index: int, scores: np.ndarray) -> None:
            for name, values in zip(names[1:], scoring.probabilities(scores)[1:], strict=True):
                kept[name][..., index] = np.rint(values * 255)

        def tell(done: int) -> None:
            if progress is not None and (done % batch == 0 or done == count):
                progress(done, count)

        if self.postprocessing is not None or self._second_runtime is not None:
            _load_meanwhile("scipy.ndimage")
        keeps_one_piece = self.postprocessing is not None and self.postprocessing.largest_liver
        if selects and keeps_one_piece and not kept:
            labels = segmenter.liver_slices(tell)
        else:
            labels = segmenter.all_slices(tell, keep if kept else None)
        if self._second_runtime is not None:
            second = partial(_mean_probabilities, [self._second_runtime])
            labels = look_again(labels, volume, second, self.config.classes, batch, step)
        if self.postprocessing is not None:
            labels = self.postprocessing(labels, volume.spacing_mm, volume.voxel_volume_ml, self.config.classes)
        return labels, kept

    def _scoring(self, volume: CTVolume, needs_probabilities: bool) -> Scoring:
        """The way slices are scored: at the network's size if all models support that and share one size."""
        if variations := self.variations:

            def varied(hu: np.ndarray) -> np.ndarray:
                found = variations.probabilities(self.network_probabilities, hu, volume.spacing_mm)
                return reduce(np.add, found) / variations.count

            return Scoring(varied)
        if (scoring := _scoring_at_network_size(self.runtimes, volume.shape[:2])) is not None:
            return scoring
        if needs_probabilities or len(self.runtimes) > 1:
            return Scoring(self.network_probabilities)
        return LabelScoring(self.runtimes[0].labels)

    def network_probabilities(self, hu: np.ndarray) -> np.ndarray:
        """(B, rows, columns) HU -> (B, rows, columns, classes) float32, the mean of all models."""
        return _mean_probabilities(self.runtimes, hu)

    def _smoothing_slices(self, volume: CTVolume) -> float:
        """Standard deviation of the smoothing from slice to slice, in slices; 0 for none."""
        smoothing_mm = self.postprocessing.smoothing_mm if self.postprocessing is not None else 0.0
        if smoothing_mm <= 0 or volume.shape[2] == 1 or any(r.is_remote for r in self.runtimes):
            return 0.0
        return smoothing_mm / volume.spacing_mm[2]

    def batch_slices(self, volume: CTVolume) -> int:
        """The number of slices in a batch for this volume."""
        rows, columns, slices = volume.shape
        # enough for the several requests that a server works on at a time
        at_once = max(runtime.slices_at_once for runtime in self.runtimes)
        # small slices are enlarged to the network's input
        pixels = max(rows * columns, *(runtime.config.image_size**2 for runtime in self.runtimes))
        return min(slices, self.batch_size or max(at_once, _PIXELS_A_BATCH // pixels))

    def release(self) -> None:
        """Give back memory that the models can do without until the next slice, which takes a little longer then."""
        for runtime in [*self.runtimes, *([self._second_runtime] if self._second_runtime else [])]:
            if isinstance(runtime, TFLiteRuntime):
                runtime.release()

    def read(
        self,
        source: Any,
        spacing_mm: tuple[float, float, float] | None = None,
        *,
        series: str | DicomSeries | None = None,
        allow_gaps: bool = False,
        in_memory: bool = True,
    ) -> CTVolume:
        """Read a volume as `predict` does; `series`, `allow_gaps` and `in_memory` as in `CTVolume.load`."""
        if isinstance(source, CTVolume):
            return source
        if isinstance(source, (str, Path)):
            return CTVolume.load(
                source,
                hu_range=self.config.hu_range,
                max_bytes=self.max_bytes,
                series=series,
                allow_gaps=allow_gaps,
                in_memory=in_memory,
            )
        if isinstance(source, nib.spatialimages.SpatialImage):
            return CTVolume.from_image(source, hu_range=self.config.hu_range)
        if spacing_mm is None:
            raise ConfigError("an HU array needs its spacing: give spacing_mm=(row, column, slice)")
        return CTVolume.from_array(np.asarray(source), spacing_mm, hu_range=self.config.hu_range)


def _load_meanwhile(module: str) -> None:
    """Import a module that is needed later, in another thread: at first the network leaves time for that."""
    if module not in sys.modules:
        threading.Thread(target=importlib.import_module, args=(module,), name="liverseg-import").start()


def side_product(target: Path, name: str) -> Path:
    """Path of a class's probabilities: `x_liver.nii.gz` for the mask `x.nii.gz`."""
    return target.with_name(f"{stem(target)}_{name}{target.name[len(stem(target)) :]}")


def _path_of(model: Any) -> str | os.PathLike | None:
    """Where a model's files lie, if it has any: of a `Model` where it was loaded from."""
    if isinstance(model, Model):
        return model.source
    return model if isinstance(model, (str, os.PathLike)) else None


def _scoring_at_network_size(runtimes: Sequence[Runtime], size: tuple[int, int]) -> NetworkScoring | None:
    """None if a model can't return its network's own output, or the models' network sizes differ."""
    found = [getattr(runtime, "scores", getattr(runtime, "at_network_size", None)) for runtime in runtimes]
    scores = [score for score in found if score is not None]
    if len(scores) < len(runtimes) or len({runtime.config.image_size for runtime in runtimes}) > 1:
        return None
    see_parts = all(getattr(runtime, "sees_parts", False) for runtime in runtimes)

    def mean(hu: np.ndarray, box: Box | None = None) -> Iterable[np.ndarray]:
        found = [score(hu, box) if box else score(hu) for score in scores]
        return found[0] if len(found) == 1 else (reduce(np.add, each) / len(each) for each in zip(*found, strict=True))

    return NetworkScoring(mean, size, mean if see_parts else None)


def _mean_probabilities(runtimes: Sequence[Runtime], hu: np.ndarray) -> np.ndarray:
    """(B, rows, columns) HU -> (B, rows, columns, classes) float32, the mean of all models."""
    scoring = _scoring_at_network_size(runtimes, (hu.shape[1], hu.shape[2]))
    if scoring is None:
        return reduce(np.add, (runtime.probabilities(hu) for runtime in runtimes)) / len(runtimes)
    return np.stack([np.moveaxis(scoring.probabilities(scores), 0, -1) for scores in scoring.score(hu)])


def _model_digest(model, runtime: Runtime) -> str | None:
    model = locate_model(model)
    if isinstance(runtime, TFLiteRuntime):
        return sha256_of(runtime.path)
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.is_file():
            return sha256_of(path)
        if (path / "model.keras").is_file():
            return sha256_of(path / "model.keras")
        if path.is_dir():
            return sha256_of(version_folder(path) / SAVEDMODEL_MANIFEST)  # holds the digests of all other files
        return None
    if (network := keras_runtime(runtime)) is None:
        return None
    from liverseg_tf.models.saving import weights_sha256

    return weights_sha256(network.model.network)
