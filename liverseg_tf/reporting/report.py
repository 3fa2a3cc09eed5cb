"""`report`: one self-contained page about one CT, with pictures to scroll through."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_voxels
from liverseg_tf.errors import ConfigError, ModelError, OutputError
from liverseg_tf.evaluation.case_scores import score_case
from liverseg_tf.evaluation.measure import measure
from liverseg_tf.evaluation.surface import class_box
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.keyword_options import takes_options, with_changes
from liverseg_tf.labels import TUMOUR
from liverseg_tf.native_logs import without_log_lines
from liverseg_tf.native_memory import give_back_memory
from liverseg_tf.ownership import claim, write_text
from liverseg_tf.reporting.options import Progress, ReportChanges, ReportOptions
from liverseg_tf.reporting.page import ReportContent, build_page
from liverseg_tf.strict_json import to_json
from liverseg_tf.windows import window_name
from liverseg_tf.wording import readable

if TYPE_CHECKING:
    from liverseg_tf.explanation.explain import Explanation
    from liverseg_tf.explanation.uncertainty import Uncertainty


@takes_options(ReportOptions)
def report(
    source: Any,
    output: str | Path,
    model: Any = None,
    truth: str | Path | MaskVolume | None = None,
    *,
    options: ReportOptions | None = None,
    **changes: Unpack[ReportChanges],
) -> Path:
    """Segment a CT and write one page about it: slices to scroll through, overlays, lesions, figures.

    The page needs no network and nothing beside it; it opens from disk in any browser of 2023 or later. It holds no
    text from the file's header.

    Args:
        source: a NIfTI file, a nibabel image, a `CTVolume`, or a `Prediction`.
        output: the page, ending in .html or .htm.
        model: as `Predictor` takes it, or a `Predictor`; by default the shipped one. With a `Prediction`, the model
            that made it.
        truth: a reference mask on the same grid: scores and a further overlay.
        options: what the page shows; see `ReportOptions`.
        changes: fields of `ReportOptions` as keywords, such as `explanations=False`; they override `options`.

    Returns:
        The page's path.

    Raises:
        LiverSegError: for a volume, mask, model or output that can't be used.

    Examples:
        >>> report("LiTS/volume-0.nii.gz", "page.html", model="run", explanations=False)
        PosixPath('page.html')
    """
    options = with_changes(options, ReportOptions, changes, "report")
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{output}: expected a page's name ending in .html")
    inputs = [path for given in (source, truth) if (path := _path_of(given))]
    claim(output, "page", inputs=inputs, overwrite=options.overwrite)
    if model is None and isinstance(source, Prediction) and source.model_name not in (None, "shipped"):
        raise ConfigError(f"this prediction was made by {source.model_name}: give that model too (model=)")
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    tell = options.progress or (lambda done, total, what: None)

    def telling(what: str) -> Callable[[int, int], None]:
        return lambda done, total: tell(done, total, what)

    volume = source.volume if isinstance(source, Prediction) else predictor.read(source, in_memory=False)
    reference = _reference(truth, volume, predictor)
    prediction = source if isinstance(source, Prediction) else predictor.predict(volume, progress=telling("predicting"))
    predictor.release()
    tell(0, 1, "measuring")  # before the heatmaps, which load TensorFlow
    mask = MaskVolume(prediction.labels, volume.geometry, classes=prediction.classes)
    scores = score_case(reference, mask) if reference is not None else None
    measured = measure(mask, volume)
    del mask
    notes: list[str] = []
    explanation = _explained(prediction, predictor, options, notes, tell) if options.explanations else None
    uncertain = _varied(prediction, predictor, telling("uncertainty")) if options.uncertainty else None
    about_model = _model_facts(predictor), _model_card(predictor)
    # networks are gone before anything is drawn
    del predictor, model
    give_back_memory()
    content = ReportContent(prediction, measured, reference, scores, explanation, uncertain, *about_model, notes)
    give_back_memory()
    page = build_page(content, options.title or _title(volume), options.safe_colors, telling("pictures"), options.plan)
    tell(0, 1, "writing the page")
    write_text(output, page, "page", inputs=inputs, overwrite=options.overwrite)
    tell(1, 1, "writing the page")
    return output


def _reference(truth: str | Path | MaskVolume | None, volume: CTVolume, predictor: Predictor) -> MaskVolume | None:
    """The reference mask, once it is known to lie on the CT's grid."""
    if truth is None:
        return None
    classes = predictor.config.classes
    reference = truth if isinstance(truth, MaskVolume) else MaskVolume.load(truth, classes=classes, like=volume)
    check_same_voxels(volume.geometry, reference.geometry, (volume.name, reference.path or "truth"))
    return reference


def _varied(prediction: Prediction, predictor: Predictor, progress: Callable[[int, int], None]) -> Uncertainty:
    from liverseg_tf.explanation.uncertainty import measure_uncertainty

    return measure_uncertainty(prediction, predictor, progress=progress)


def _explained(
    prediction: Prediction,
    predictor: Predictor,
    options: ReportOptions,
    notes: list[str],
    tell: Progress,
) -> Explanation | None:
    if prediction.classes.lesion is None or class_box(prediction.canonical_labels, TUMOUR) is None:
        return None
    predictor.release()  # before TensorFlow takes its part
    give_back_memory()
    with without_log_lines():  # TensorFlow's, which only a page with heatmaps loads
        from liverseg_tf.explanation.explain import explain
    try:
        found = explain(
            prediction,
            model=predictor,
            method=options.method,
            layer=options.layer,
            most_lesions=options.most_lesions,
            randomized_models=2,
            whole_curves=False,
            progress=tell,
        )
    except ModelError as error:
        notes.append(f"No heatmaps: {error}")
        return None
    if found.left_out:
        notes.append(f"Heatmaps were made for the {len(found.regions)} largest lesions.")
    return found


def _model_facts(predictor: Predictor) -> list[tuple[str, str]]:
    config = predictor.config
    windows = map(window_name, config.channels.windows)
    facts = [
        ("Model", predictor.name),
        ("Network", f"U-Net, {config.backbone}, {config.image_size} x {config.image_size}"),
        ("Channels", ", ".join([*windows, *["histogram"] * config.channels.histogram])),
        ("Classes", ", ".join(map(readable, config.class_names))),
    ]
    if len(predictor.runtimes) > 1:
        facts.append(("Ensemble of", str(len(predictor.runtimes))))
    if isinstance(predictor.second_look, (str, os.PathLike)):
        facts.append(("Tumours confirmed by", Path(predictor.second_look).name))
    return facts


def _model_card(predictor: Predictor) -> str | None:
    """The text beside the model's files, else what the export wrote into them."""
    for folder in predictor.folders:
        try:
            # without the lines that are for model hubs
            return re.sub(r"\A---\n.*?\n---\n+", "", (folder / "model_card.md").read_text("utf-8"), flags=re.DOTALL)
        except (OSError, UnicodeDecodeError):
            continue
    card = getattr(predictor.runtimes[0], "card", None)
    return to_json(card, indent=2, ensure_ascii=False) if card else None


def _title(volume: CTVolume) -> str:
    return volume.path.name if volume.path else "CT volume"


def _path_of(given: Any) -> str | Path | None:
    given = getattr(given, "volume", given)
    return given if isinstance(given, (str, Path)) else getattr(given, "path", None)
