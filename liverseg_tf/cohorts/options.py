"""`PredictOptions`: the outputs of each CT, the engine, and the predictor's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from liverseg_tf.data.dicom.formats import SEGMENTATION_TYPES
from liverseg_tf.errors import ConfigError
from liverseg_tf.inference.choice import ENGINES, RUNTIMES
from liverseg_tf.inference.postprocessing import DEFAULT, PostProcessing

if TYPE_CHECKING:
    from liverseg_tf.calibration.calibrate import Calibration
    from liverseg_tf.inference.jobs import Job
    from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation

PREDICTOR_OPTIONS = ("batch_size", "postprocessing", "variations", "runtime", "extent", "second_look", "max_bytes")


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict_folder`.

    Attributes:
        formats: some of `nifti`, `seg`, `sr`, `rtstruct`, `pdf`, `sc`, as a sequence or separated by commas; by
            default `nifti`, and also `seg` for DICOM series. DICOM objects are read back and kept only if they agree
            with the mask.
        segmentation_type: type of the DICOM SEG: `BINARY` or `LABELMAP`.
        lesion_segments: store each lesion as its own segment in the DICOM SEG.
        series: UID of the DICOM series to read; None: all that can be segmented.
        allow_gaps: resample DICOM series with missing slices or uneven steps.
        probabilities: also write each class's probabilities: `x_seg_liver.nii.gz`, `x_seg_tumour.nii.gz`.
        uncertainty: also segment 8 varied copies (`measure_uncertainty`; takes about 8 times as long): writes the
            entropy as `x_seg_uncertainty.nii.gz`, and the range of volumes into the row.
        preview: draw each result on one picture that fits a slide: `x_seg_preview.png`.
        calibration: result of `calibrate`, or its file: adds prediction intervals of volumes and probabilities of
            lesions to the row.
        resume: keep the results of an earlier run in this folder, also a killed one, with the same model and settings.
        overwrite: also replace files that this library did not write, or that were changed since; never an input.
        engine: `embedded` (in this process), or `ray` (by workers on this machine or a cluster).
        ray_options: only for `ray`: `address`, `workers` and the other fields of `RayOptions`.
        on_start: called once with the number of volumes, and the number that an earlier run has done.
        progress: called with the `Job`, its slices done and their total; not with `ray`.
        on_done: called with each new row, after it was added to the manifest.
        batch_size: slices per batch; None: depends on their size. This and the following are options of `Predictor`.
        postprocessing: 3-D post-processing; None for none.
        variations: test-time augmentation: average this many copies.
        runtime: runtime of a model that was exported in several formats; "auto" takes the fastest.
        extent: segment only slices that can hold the liver, at most 3.25 mm apart.
        second_look: a second model that must confirm each tumour; None for none; see `Predictor`.
        max_bytes: memory limit of a volume in bytes; None: LIVERSEG_MAX_BYTES, else 8 GiB.

    Raises:
        ConfigError: for an unknown segmentation type.

    Examples:
        >>> PredictOptions(formats="nifti,seg", resume=True).engine
        'embedded'
    """

    formats: str | Sequence[str] | None = None
    segmentation_type: str = SEGMENTATION_TYPES[0]
    lesion_segments: bool = False
    series: str | None = None
    allow_gaps: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    preview: bool = False
    calibration: str | Path | Calibration | None = None
    resume: bool = False
    overwrite: bool = False
    engine: str = ENGINES[0]
    ray_options: Mapping[str, Any] | None = None
    on_start: Callable[[int, int], None] | None = None
    progress: Callable[[Job, int, int], None] | None = None
    on_done: Callable[[dict[str, Any]], None] | None = None
    batch_size: int | None = None
    postprocessing: PostProcessing | None = DEFAULT
    variations: int | TestTimeAugmentation | None = None
    runtime: str = RUNTIMES[0]
    extent: bool = True
    second_look: str | Path | None = "auto"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.segmentation_type not in SEGMENTATION_TYPES:
            raise ConfigError(
                f"segmentation_type: expected {' or '.join(SEGMENTATION_TYPES)}. Received: {self.segmentation_type!r}"
            )


class PredictChanges(TypedDict, total=False):
    """The fields of `PredictOptions` as keywords of `predict_folder`."""

    formats: str | Sequence[str] | None
    segmentation_type: str
    lesion_segments: bool
    series: str | None
    allow_gaps: bool
    probabilities: bool
    uncertainty: bool
    preview: bool
    calibration: str | Path | Calibration | None
    resume: bool
    overwrite: bool
    engine: str
    ray_options: Mapping[str, Any] | None
    on_start: Callable[[int, int], None] | None
    progress: Callable[[Job, int, int], None] | None
    on_done: Callable[[dict[str, Any]], None] | None
    batch_size: int | None
    postprocessing: PostProcessing | None
    variations: int | TestTimeAugmentation | None
    runtime: str
    extent: bool
    second_look: str | Path | None
    max_bytes: int | None
