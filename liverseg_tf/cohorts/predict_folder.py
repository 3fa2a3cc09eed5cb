"""`predict_folder`: segments CTs, writes masks and further results, and keeps a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from liverseg_tf.calibration.calibrate import Calibration
from liverseg_tf.cohorts.options import PREDICTOR_OPTIONS, PredictChanges, PredictOptions
from liverseg_tf.data.dicom.formats import PRODUCTS, parse_formats
from liverseg_tf.data.nifti import is_nifti_name
from liverseg_tf.data.remote import join, location
from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.errors import ConfigError, DataWarning, OutputError, warn
from liverseg_tf.evaluation.measure import measure
from liverseg_tf.inference.jobs import PREVIEW, UNCERTAINTY, Job, check_outputs, entropy_path, plan, product
from liverseg_tf.inference.postprocessing import PostProcessing
from liverseg_tf.inference.predict_files import check_engine, predict_files
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.inference.run_manifest import MANIFEST, RunManifest
from liverseg_tf.inference.serving_client import ServingClient
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.keyword_options import takes_options, with_changes
from liverseg_tf.labels import LIVER_CLASSES
from liverseg_tf.ownership import refuse_inputs

Row = dict[str, Any]


@takes_options(PredictOptions)
def predict_folder(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    model: Any = None,
    *,
    options: PredictOptions | None = None,
    **changes: Unpack[PredictChanges],
) -> list[Row]:
    """Segment CTs and write their masks, with all options of `liverseg predict`.

    One input and an output ending in .nii, .nii.gz or .dcm: that file. Otherwise `output` is a folder, in which
    `volume-7.nii.gz` gives `segmentation-7.nii.gz`, `x.nii.gz` gives `x_seg.nii.gz`, a DICOM series is named after its
    folder, and `manifest.jsonl` gets a line for each volume. Outputs are checked before the first volume is segmented.
    A volume that fails gives an error row, and the others continue; a volume's files are all written, or none of them.

    Inputs are never replaced. Files that this library did not make, or that were changed since, are replaced only with
    `overwrite`.

    Args:
        inputs: volumes, or folders that are searched recursively (masks are skipped): NIfTI, NRRD, MetaImage,
            DICOM, .zip archives of DICOM; paths or URLs (`s3://`, `gs://`).
        output: file or folder, path or URL; a folder is made if missing.
        model: as `Predictor` takes it, by default the shipped one; or a `Predictor` with its own options.
        options: what is written and how; see `PredictOptions`.
        changes: fields of `PredictOptions` as keywords, such as `resume=True`; they override `options`.

    Returns:
        A row for each volume, in their order: `input`, `output`, `status` ("done" or "error"), `seconds`, `statistics`,
        `warnings`, or `error`; `uncertainty`, `preview`, `calibrated` and `objects` where they were asked for.

    Raises:
        InputFileError: if an input is missing or a folder holds no CT.
        OutputError: if two inputs share an output, or an output may not be written; nothing is written then.
        ConfigError: for an unknown format or engine, or options that don't go together.
        ModelError, ServerError, MissingDependencyError: if the model, its server or a package can't be used.

    Examples:
        >>> rows = predict_folder("LiTS", "masks", model="run", resume=True)
        >>> [(row["output"], row["status"]) for row in rows]
        [('masks/segmentation-0.nii.gz', 'done'), ('masks/segmentation-1.nii.gz', 'done')]
        >>> rows[0]["statistics"]["liver_volume_ml"] > 0
        True
    """
    options = with_changes(options, PredictOptions, changes, "predict_folder")
    if isinstance(model, Predictor):
        _check_predictor_options(options, changes)
    check_engine(options.engine, options.ray_options or {})
    formats = _formats(options.formats, output)
    jobs = plan(
        [inputs] if isinstance(inputs, (str, Path)) else inputs,
        output,
        options.overwrite,
        options.resume,
        series=options.series,
        allow_gaps=options.allow_gaps,
        ending=_ending(formats),
    )
    predictor = model if isinstance(model, Predictor) else _new_predictor(model, options)
    extras = _extras(options, formats, predictor)
    with ExitStack() as stack:
        manifest, finished = None, {}
        if jobs[0].target != location(output):  # a folder
            settings = _settings(options, formats, predictor, extras)
            manifest = stack.enter_context(_manifest(output, model, predictor, options, settings))
            refuse_inputs([manifest.where], [job.source for job in jobs])
            finished = manifest.finished(jobs) if options.resume else {}
        _check_products(jobs, finished, formats, options, extras, predictor)
        if manifest is not None:
            manifest.write(finished.values())
        if options.on_start is not None:
            options.on_start(len(jobs), len(finished))

        def tell(row: Row) -> None:
            if manifest is not None:
                manifest.add(row)
            if options.on_done is not None:
                options.on_done(row)

        rows = predict_files(
            predictor,
            jobs,
            probabilities=options.probabilities,
            overwrite=options.overwrite,
            finished=finished,
            extra=extras,
            progress=options.progress,
            on_done=tell,
            engine=options.engine,
            **(options.ray_options or {}),
        )
        if manifest is not None:
            manifest.write(rows)
    return rows


def _check_predictor_options(options: PredictOptions, changes: Mapping[str, Any]) -> None:
    """Refuse options that can't be applied to an existing `Predictor`."""
    default = PredictOptions()
    given = [n for n in PREDICTOR_OPTIONS if n in changes or getattr(options, n) != getattr(default, n)]
    if given:
        raise ConfigError(f"{', '.join(given)}: expected with a model's path; this predictor has its own")


def _new_predictor(model: Any, options: PredictOptions) -> Predictor:
    return Predictor(model, **{name: getattr(options, name) for name in PREDICTOR_OPTIONS})


def _formats(formats: str | Sequence[str] | None, output: str | Path) -> tuple[str, ...]:
    """Formats to write: as asked for, else by the output's name, else NIfTI, and for DICOM also SEG."""
    if formats is not None:
        return parse_formats(formats if isinstance(formats, str) else ",".join(formats))
    if str(output).lower().endswith(".dcm"):
        return ("seg",)
    return ("nifti",) if is_nifti_name(output) else ("nifti", "seg")


def _ending(formats: Sequence[str]) -> str:
    """Ending of the name of a volume's main output: the mask, or the DICOM object in its place."""
    return ".nii.gz" if "nifti" in formats else PRODUCTS[formats[0]][0]


def _objects(formats: Sequence[str], options: PredictOptions, predictor: Predictor) -> tuple[str, ...]:
    """Formats of DICOM objects to write, which support only the liver."""
    objects = tuple(name for name in formats if name != "nifti")
    if not objects or predictor.config.classes == LIVER_CLASSES:
        return objects
    if options.formats is not None or "nifti" not in formats:
        raise ConfigError(
            f"formats: DICOM objects support only livers and their tumours; expected nifti alone for "
            f"{', '.join(predictor.config.class_names[1:])}. Received: {', '.join(objects)}"
        )
    return ()


def _calibration(options: PredictOptions, predictor: Predictor) -> Calibration | None:
    """The calibration, after a check that it fits the model and the options."""
    given = options.calibration
    calibration = Calibration.load(given) if isinstance(given, (str, Path)) else given
    if calibration is None:
        return None
    if predictor.config.classes != calibration.classes:
        of, model = (", ".join(one.class_names[1:]) for one in (calibration, predictor.config))
        raise ConfigError(f"calibration: is of {of}; got a model of {model}; calibrate that model")
    calibration.warn_if_of_another(predictor.sha256)
    if calibration.with_uncertainty and not options.uncertainty:
        raise ConfigError("calibration: was made with uncertainty; expected uncertainty=True too")
    return calibration


def _settings(options: PredictOptions, formats: Sequence[str], predictor: Predictor, extras: _Extras) -> dict[str, Any]:
    """The run's settings in the manifest. `resume` continues only a run with the same settings."""
    return {
        "model": predictor.config.to_dict(),
        "runtime": predictor.runtime_names,
        "extent": predictor.extent,
        "second_look": str(predictor.second_look) if isinstance(predictor.second_look, (str, os.PathLike)) else None,
        "postprocessing": _postprocessing_setting(predictor.postprocessing),
        "variations": _variations_setting(predictor.variations),
        "probabilities": options.probabilities,
        "uncertainty": options.uncertainty,
        "preview": options.preview,
        "formats": formats,
        "segmentation_type": options.segmentation_type,
        "lesion_segments": options.lesion_segments,
        **({} if extras.calibration is None else {"calibration": extras.calibration.to_dict()}),
    }


def _extras(options: PredictOptions, formats: Sequence[str], predictor: Predictor) -> _Extras:
    return _Extras(
        options.uncertainty,
        options.preview,
        _calibration(options, predictor),
        _objects(formats, options, predictor),
        options.formats is None,
        options.segmentation_type,
        options.lesion_segments,
    )


def _manifest(
    output: str | Path, model: Any, predictor: Predictor, options: PredictOptions, settings: dict[str, Any]
) -> RunManifest:
    name = _model_name(model, predictor, options.resume)
    return RunManifest(join(location(output), MANIFEST), name, settings, predictor.sha256, options.overwrite)


def _check_products(
    jobs: Sequence[Job],
    finished: Mapping[str | Path, Row],
    formats: Sequence[str],
    options: PredictOptions,
    extras: _Extras,
    predictor: Predictor,
) -> None:
    """Check that all outputs that are still to be written may be written."""
    products = {"": "mask"} if options.resume else {}
    products |= dict.fromkeys(predictor.config.class_names[1:], "probabilities") if options.probabilities else {}
    products |= {UNCERTAINTY: "uncertainty"} if extras.uncertainty else {}
    products |= {PREVIEW: "figure"} if extras.preview else {}
    # the name of an object that is written instead of the mask is checked by `plan`
    beside = [name for name in extras.object_formats if PRODUCTS[name][0] != _ending(formats)]
    of_dicom = products | dict(PRODUCTS[name] for name in beside)
    sources = [job.source for job in jobs]
    todo = [job for job in jobs if job.target not in finished]
    check_outputs([job for job in todo if not job.is_dicom], products, options.overwrite, sources)
    check_outputs([job for job in todo if job.is_dicom], of_dicom, options.overwrite, sources)


def _postprocessing_setting(postprocessing: PostProcessing | None) -> bool | dict[str, Any]:
    """For the manifest: whether there is post-processing; all its fields if it is not the default."""
    return postprocessing is not None if postprocessing in (None, PostProcessing()) else asdict(postprocessing)


def _variations_setting(variations: TestTimeAugmentation | None) -> int | dict[str, Any] | None:
    """For the manifest: the number of copies; all fields if they are not the default."""
    if variations is None:
        return None
    return variations.count if variations == TestTimeAugmentation(count=variations.count) else variations.to_dict()


def _model_name(model: Any, predictor: Predictor, resume: bool) -> str:
    """The model's name in the manifest. A server's model has no digest, so `resume` compares this name."""
    urls = [runtime.url for runtime in predictor.runtimes if isinstance(runtime, ServingClient)]
    if resume and predictor.sha256 is None and len(urls) < len(predictor.runtimes):
        raise ConfigError("resume=True: expected a model that can be identified, got a runtime without files")
    return ", ".join(urls) or (str(model) if isinstance(model, (str, os.PathLike)) else predictor.name)


@dataclass(frozen=True)
class _Extras:
    """Everything that is written beside a mask. It is sent to Ray's workers, so it contains no function of the caller.

    Attributes:
        uncertainty, preview, calibration, segmentation_type, lesion_segments: as `PredictOptions` has them.
        object_formats: of DICOM objects.
        are_defaults: `object_formats` were not asked for, so a DICOM object that can't be written is no error.
    """

    uncertainty: bool
    preview: bool
    calibration: Calibration | None
    object_formats: tuple[str, ...]
    are_defaults: bool
    segmentation_type: str
    lesion_segments: bool

    def __call__(self, predictor: Predictor, prediction: Prediction, target: Path) -> Row:
        """Write the files beside `target`; returns the fields for the volume's row."""
        row = _uncertainty(predictor, prediction, target) if self.uncertainty else {}
        if self.preview:
            row |= _preview(prediction, target)
        if self.calibration is not None:
            mask = MaskVolume(prediction.labels, prediction.volume.geometry, classes=prediction.classes)
            found = measure(mask, prediction.volume)
            row["calibrated"] = self.calibration.judge(found, row.get("uncertainty"))
        return row | self._objects(predictor, prediction, target)

    def _objects(self, predictor: Predictor, prediction: Prediction, target: Path) -> Row:
        """Write the DICOM objects of a prediction; by default only if the DICOM series allows it."""
        beside_mask = is_nifti_name(target)
        may_lack = beside_mask and self.are_defaults
        if not self.object_formats or (may_lack and prediction.volume.series is None):
            return {}
        from liverseg_tf.dicom_objects.findings import Findings
        from liverseg_tf.dicom_objects.objects import write_objects

        try:
            findings = Findings(prediction.canonical_labels, prediction.volume, predictor.name, predictor.sha256)
        except OutputError as error:
            if not may_lack:
                raise
            warn(f"no DICOM was written: {error}", DataWarning)
            return {}
        if beside_mask and not prediction.canonical_labels.any():
            warn(f"{prediction.volume.name}: no liver was found, so no DICOM object was written", DataWarning)
            return {}
        written = write_objects(
            findings,
            {name: product(target, PRODUCTS[name][0]) for name in self.object_formats},
            segmentation_type=self.segmentation_type,
            lesion_segments=self.lesion_segments,
        )
        return {"objects": written}


def _uncertainty(predictor: Predictor, prediction: Prediction, target: Path) -> Row:
    from liverseg_tf.explanation.uncertainty import measure_uncertainty

    found = measure_uncertainty(prediction, predictor)
    path = entropy_path(target)
    found.save(path)
    return {"uncertainty": {"entropy": str(path), **found.to_dict()}}


def _preview(prediction: Prediction, target: Path) -> Row:
    from liverseg_tf.data.volume import MaskVolume
    from liverseg_tf.drawing import save_figure
    from liverseg_tf.reporting.preview import preview

    mask = MaskVolume(prediction.labels, prediction.volume.geometry, classes=prediction.classes)
    path = product(target, PREVIEW)
    save_figure(preview(prediction.volume, mask, prediction.statistics()), path)
    return {"preview": str(path)}
