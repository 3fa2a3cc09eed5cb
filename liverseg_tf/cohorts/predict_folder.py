"""`predict_folder`: CTs in, masks and what else is wanted of them out, and a manifest that tells what was done."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from liverseg_tf.calibration.calibrate import Calibration
from liverseg_tf.data.dicom.formats import PRODUCTS, SEGMENTATION_TYPES, parse_formats
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
from liverseg_tf.labels import LIVER_CLASSES
from liverseg_tf.ownership import refuse_inputs

Row = dict[str, Any]


def predict_folder(  # long, for each option is a choice of its own and stands here alone
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    model: Any = None,
    *,
    formats: str | Sequence[str] | None = None,
    segmentation_type: str = "BINARY",
    lesion_segments: bool = False,
    series: str | None = None,
    allow_gaps: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    preview: bool = False,
    calibration: str | Path | Calibration | None = None,
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "embedded",
    ray_options: Mapping[str, Any] | None = None,
    on_start: Callable[[int, int], None] | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
    on_done: Callable[[Row], None] | None = None,
    **predictor_options: Any,
) -> list[Row]:
    """Segment CTs and write their masks: all that `liverseg predict` does.

    One input and an output ending in .nii, .nii.gz or .dcm: that file. Otherwise `output` is a folder, in which
    `volume-7.nii.gz` gives `segmentation-7.nii.gz`, `x.nii.gz` gives `x_seg.nii.gz`, a DICOM series is named after its
    folder, and `manifest.jsonl` grows by a line a volume. Outputs are checked before the first volume is segmented. A
    volume that fails becomes an error row and the rest go on; a volume's files appear together, or none of them.

    Never written over: inputs, whatever the options; without `overwrite` also files that this library did not make, and
    those of it that somebody has changed since.

    Args:
        inputs: volumes, or folders that are searched recursively (masks are passed over): NIfTI, NRRD, MetaImage,
            DICOM, .zip archives of DICOM; paths or URLs (`s3://`, `gs://`).
        output: file or folder, path or URL; a folder is made if missing.
        model: as `Predictor` takes it, by default the shipped one; or a `Predictor`.
        formats: some of `nifti`, `seg`, `sr`, `rtstruct`, `pdf`, as a sequence or separated by commas; by default
            `nifti`, and `seg` too of DICOM series. What is written as DICOM is read again, and kept only if it
            agrees with the mask.
        segmentation_type: of DICOM SEG: `BINARY` or `LABELMAP`.
        lesion_segments: one segment a lesion in DICOM SEG.
        series: UID of the one DICOM series that is meant.
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
        ray_options: for `ray` alone: `address`, `workers` and the other fields of `RayOptions`.
        on_start: called once with the number of volumes, and of those among them that an earlier run has done.
        progress: called with the `Job`, its slices done and their total; not with `ray`.
        on_done: called with each new row, once it is in the manifest.
        predictor_options: `runtime`, `extent`, `batch_size`, `postprocessing`, `variations`, `max_bytes` of the
            `Predictor` that is made.

    Returns:
        A row for each volume, in their order: `input`, `output`, `status` ("done" or "error"), `seconds`, `statistics`,
        `warnings`, or `error`; `uncertainty`, `preview`, `calibrated` and `objects` where they were asked for.

    Raises:
        InputFileError: if an input is missing or a folder holds no CT.
        OutputError: if two inputs share an output, or an output may not be written; nothing is written then.
        ConfigError: for an unknown format or engine, or options that don't go together.
        ModelError, ServerError, MissingDependencyError: if the model, its server or a package can't be used.

    Examples:
        >>> rows = predict_folder("scans/", "masks/", resume=True, uncertainty=True)  # doctest: +SKIP
        >>> [row["error"] for row in rows if row["status"] == "error"]  # doctest: +SKIP
        []
        >>> rows[0]["statistics"]["liver_volume_ml"], rows[0]["uncertainty"]["liver_range_ml"]  # doctest: +SKIP
        (1544.0, [1522.3, 1571.9])
    """
    if isinstance(model, Predictor) and predictor_options:
        raise ConfigError(f"{', '.join(predictor_options)}: expected with a model's path; this predictor has its own")
    if segmentation_type not in SEGMENTATION_TYPES:
        raise ConfigError(
            f"segmentation_type: expected {' or '.join(SEGMENTATION_TYPES)}. Received: {segmentation_type!r}"
        )
    ray_options = ray_options or {}
    check_engine(engine, ray_options)
    chosen = _formats(formats, output)
    objects = tuple(name for name in chosen if name != "nifti")
    ending = ".nii.gz" if "nifti" in chosen else PRODUCTS[chosen[0]][0]
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    jobs = plan(inputs, output, overwrite, resume, series=series, allow_gaps=allow_gaps, ending=ending)
    predictor = model if isinstance(model, Predictor) else Predictor(model, **predictor_options)
    if objects and predictor.config.classes != LIVER_CLASSES:
        if formats is not None:
            raise ConfigError(
                f"formats: DICOM objects tell of livers and their tumours; expected nifti alone for "
                f"{', '.join(predictor.config.class_names[1:])}. Received: {', '.join(objects)}"
            )
        objects = ()
    of_objects: dict[str, Any] = {"segmentation_type": segmentation_type, "lesion_segments": lesion_segments}
    calibrated = Calibration.load(calibration) if isinstance(calibration, (str, Path)) else calibration
    if calibrated is not None:
        if predictor.config.classes != LIVER_CLASSES:
            raise ConfigError(
                f"calibration: is of livers; got a model of {', '.join(predictor.config.class_names[1:])}"
            )
        calibrated.warn_if_of_another(predictor.sha256)
        if calibrated.with_uncertainty and not uncertainty:
            raise ConfigError("calibration: was made with uncertainty; expected uncertainty=True too")
    settings = {
        "model": predictor.config.to_dict(),
        "runtime": predictor.runtime_names,
        "extent": predictor.extent,
        "postprocessing": _postprocessing_setting(predictor.postprocessing),
        "variations": _variations_setting(predictor.variations),
        "probabilities": probabilities,
        "uncertainty": uncertainty,
        "preview": preview,
        "formats": chosen,
        **of_objects,
        **({} if calibrated is None else {"calibration": calibrated.to_dict()}),
    }
    extra = partial(
        _extra,
        uncertainty=uncertainty,
        preview=preview,
        calibration=calibrated,
        formats=objects,
        is_default=formats is None,
        **of_objects,
    )
    sources = [job.source for job in jobs]
    with ExitStack() as stack:
        manifest, finished = None, {}
        if jobs[0].target != location(output):  # a folder
            where = join(location(output), MANIFEST)
            name = _model_name(model, predictor, resume)
            manifest = stack.enter_context(RunManifest(where, name, settings, predictor.sha256, overwrite))
            refuse_inputs([manifest.where], sources)
            finished = manifest.finished(jobs) if resume else {}
        todo = [job for job in jobs if job.target not in finished]
        products = {"": "mask"} if resume else {}
        products |= dict.fromkeys(predictor.config.class_names[1:], "probabilities") if probabilities else {}
        products |= {UNCERTAINTY: "uncertainty"} if uncertainty else {}
        products |= {PREVIEW: "figure"} if preview else {}
        of_dicom = products | dict(PRODUCTS[name] for name in objects if PRODUCTS[name][0] != ending)
        check_outputs([job for job in todo if not job.is_dicom], products, overwrite, sources)
        check_outputs([job for job in todo if job.is_dicom], of_dicom, overwrite, sources)
        if manifest is not None:
            manifest.write(finished.values())
        if on_start is not None:
            on_start(len(jobs), len(finished))

        def tell(row: Row) -> None:
            if manifest is not None:
                manifest.add(row)
            if on_done is not None:
                on_done(row)

        rows = predict_files(
            predictor,
            jobs,
            probabilities=probabilities,
            overwrite=overwrite,
            finished=finished,
            extra=extra,
            progress=progress,
            on_done=tell,
            engine=engine,
            **ray_options,
        )
        if manifest is not None:
            manifest.write(rows)
    return rows


def _formats(formats: str | Sequence[str] | None, output: str | Path) -> tuple[str, ...]:
    """What to write: what is asked for, else what the output's name says, else NIfTI, and SEG of DICOM."""
    if formats is not None:
        return parse_formats(formats if isinstance(formats, str) else ",".join(formats))
    if str(output).lower().endswith(".dcm"):
        return ("seg",)
    return ("nifti",) if is_nifti_name(output) else ("nifti", "seg")


def _postprocessing_setting(postprocessing: PostProcessing | None) -> bool | dict[str, Any]:
    """As the manifest has it: whether there is one, and all of it where it isn't the default."""
    return postprocessing is not None if postprocessing in (None, PostProcessing()) else asdict(postprocessing)


def _variations_setting(variations: TestTimeAugmentation | None) -> int | dict[str, Any] | None:
    """As the manifest has it: how many, and all of it where they aren't the default's."""
    if variations is None:
        return None
    return variations.count if variations == TestTimeAugmentation(count=variations.count) else variations.to_dict()


def _model_name(model: Any, predictor: Predictor, resume: bool) -> str:
    """What the manifest calls the model. A server's has no digest: there `resume` goes by this name."""
    urls = [runtime.url for runtime in predictor.runtimes if isinstance(runtime, ServingClient)]
    if resume and predictor.sha256 is None and len(urls) < len(predictor.runtimes):
        raise ConfigError("resume=True: expected a model that can be told from others, got a runtime without files")
    return ", ".join(urls) or (str(model) if isinstance(model, (str, os.PathLike)) else predictor.name)


def _extra(
    predictor: Predictor,
    prediction: Prediction,
    target: Path,
    *,
    uncertainty: bool,
    preview: bool,
    calibration: Calibration | None,
    **objects: Any,
) -> Row:
    """Everything that is written beside the mask."""
    row = _uncertainty(predictor, prediction, target) if uncertainty else {}
    if preview:
        row |= _preview(prediction, target)
    if calibration is not None:
        found = measure(MaskVolume(prediction.labels, prediction.volume.geometry), prediction.volume)
        row["calibrated"] = calibration.judge(found, row.get("uncertainty"))
    return row | _objects(predictor, prediction, target, **objects)


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


def _objects(
    predictor, prediction, target, *, formats: tuple[str, ...], is_default: bool, segmentation_type: str, **options
) -> dict:
    """DICOM objects of a prediction; by default of a DICOM series that can have them."""
    if not formats or (is_default and prediction.volume.series is None and is_nifti_name(target)):
        return {}
    from liverseg_tf.dicom_objects.findings import Findings
    from liverseg_tf.dicom_objects.objects import write_objects

    may_lack = is_nifti_name(target) and is_default
    try:
        findings = Findings(prediction.canonical_labels, prediction.volume, predictor.name, predictor.sha256)
    except OutputError as error:
        if not may_lack:
            raise
        warn(
            f"no DICOM was written: {error}",
            DataWarning,
        )
        return {}
    if not prediction.canonical_labels.any() and is_nifti_name(target):
        warn(
            f"{prediction.volume.name}: no liver was found, so no DICOM object was written",
            DataWarning,
        )
        return {}
    paths = {name: product(target, PRODUCTS[name][0]) for name in formats}
    return {"objects": write_objects(findings, paths, segmentation_type=segmentation_type, **options)}
