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
            default `nifti`, and for DICOM series `seg` too. What is written as DICOM is read again, and kept only if it
            agrees with the mask.
        segmentation_type: of DICOM SEG: `BINARY` or `LABELMAP`.
        lesion_segments: one segment a lesion in DICOM SEG.
        series: UID of the DICOM series to take.
        allow_gaps: resample DICOM series with missing slices or uneven steps.
        probabilities: write each class's probabilities too: `x_seg_liver.nii.gz`, `x_seg_tumour.nii.gz`.
        uncertainty: segment varied copies too (`measure_uncertainty`, 8 times as long): the entropy as
            `x_seg_uncertainty.nii.gz`, and the range of volumes in the row.
        preview: draw each result on one picture that fits a slide: `x_seg_preview.png`.
        calibration: of `calibrate`, or its file: intervals of volumes and lesions' probabilities in the row. Without it
            there are none.
        resume: keep what an earlier run, perhaps a killed one, did with the same model and settings in this folder.
        overwrite: replace files of others too, never an input.
        engine: `embedded`, in this process; or `ray`, by workers on this machine or a cluster.
        ray_options: only for `ray`: `address`, `workers` and the other fields of `RayOptions`.
        on_start: called once with the number of volumes, and of those among them that an earlier run has done.
        progress: called with the `Job`, its slices done and their total; not with `ray`.
        on_done: called with each new row, once it is in the manifest.
        batch_size: of the `Predictor` that is made, as all that follow; slices at a time.
        postprocessing: 3-D clean-up; None for none.
        variations: test-time augmentation over so many copies.
        runtime: what runs a model that was exported in several ways.
        extent: segment only the slices that can hold the liver.
        second_look: a second model that must confirm each tumour; see `Predictor`.
        max_bytes: most bytes that a volume may take.

    Raises:
        ConfigError: for an unknown segmentation type.
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
