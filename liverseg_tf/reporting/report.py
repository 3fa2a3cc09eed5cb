"""`report`: one self-contained page about one CT, with pictures to scroll through."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_grid
from liverseg_tf.errors import ConfigError, ModelError, OutputError
from liverseg_tf.evaluation.case_scores import score_case
from liverseg_tf.evaluation.measure import measure
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.labels import TUMOUR
from liverseg_tf.ownership import claim, write_text
from liverseg_tf.reporting.page import ReportContent, build_page
from liverseg_tf.strict_json import to_json
from liverseg_tf.windows import window_name

if TYPE_CHECKING:
    from liverseg_tf.explanation.explain import Explanation

Progress = Callable[[int, int, str], None]


def report(
    source: Any,
    output: str | Path,
    model: Any = None,
    truth: str | Path | MaskVolume | None = None,
    *,
    title: str | None = None,
    explanations: bool = True,
    uncertainty: bool = False,
    method: str = "integrated-gradients",
    layer: str = "bottleneck",
    most_lesions: int = 3,
    safe_colors: bool = True,
    plan: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
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
        title: heading; by default the file's name.
        explanations: add heatmaps and their verdicts, if the network can be looked into. Heat that is not supported
            is not shown until asked for.
        uncertainty: add test-time variation: takes about eight times as long as predicting.
        method, layer: of the heatmaps; see `explain`.
        most_lesions: explain at most so many, the largest.
        safe_colors: begin with colors that any color vision tells apart; the page can switch.
        plan: let the reader try a resection: a plane, or a ball around a lesion. Not for planning treatment.
        overwrite: replace a file that this library did not make.
        progress: called with steps done, their number, and what is being done.

    Returns:
        The page's path.

    Raises:
        LiverSegError: for a volume, mask, model or output that can't be used.

    Examples:
        >>> report("volume-7.nii.gz", "volume-7.html", truth="segmentation-7.nii.gz")  # doctest: +SKIP
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{output}: expected a page's name ending in .html")
    inputs = [path for given in (source, truth) if (path := _path_of(given))]
    claim(output, "page", inputs=inputs, overwrite=overwrite)
    report_progress = progress or (lambda done, total, what: None)
    if model is None and isinstance(source, Prediction) and source.model_name not in (None, "shipped"):
        raise ConfigError(f"this prediction was made by {source.model_name}: give that model too (model=)")
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    classes = predictor.config.classes
    volume = source.volume if isinstance(source, Prediction) else predictor.read(source)
    reference = truth
    if reference is not None and not isinstance(reference, MaskVolume):
        reference = MaskVolume.load(reference, classes=classes, like=volume)
    if reference is not None:
        check_same_grid(volume.geometry, reference.geometry, (volume.name, reference.path or "truth"))
    if isinstance(source, Prediction):
        prediction = source
    else:
        prediction = predictor.predict(volume, progress=lambda done, total: report_progress(done, total, "predicting"))
    notes: list[str] = []
    explanation = uncertain = None
    if explanations:
        explanation = _explained(prediction, predictor, method, layer, most_lesions, notes, report_progress)
    if uncertainty:
        from liverseg_tf.explanation.uncertainty import measure_uncertainty

        uncertain = measure_uncertainty(
            prediction, predictor, progress=lambda done, total: report_progress(done, total, "uncertainty")
        )
    report_progress(0, 1, "measuring")
    mask = MaskVolume(prediction.labels, volume.geometry, classes=classes)
    scores = score_case(reference, mask) if reference is not None else None
    content = ReportContent(
        prediction,
        measure(mask, volume),
        reference,
        scores,
        explanation,
        uncertain,
        _model_facts(predictor),
        _model_card(predictor),
        notes,
    )
    page = build_page(
        content,
        title or _title(volume),
        safe_colors,
        lambda done, total: report_progress(done, total, "pictures"),
        plan,
    )
    report_progress(0, 1, "writing the page")
    write_text(output, page, "page", inputs=inputs, overwrite=overwrite)
    report_progress(1, 1, "writing the page")
    return output


def _explained(
    prediction: Prediction,
    predictor: Predictor,
    method: str,
    layer: str,
    most_lesions: int,
    notes: list[str],
    progress: Progress,
) -> Explanation | None:
    from liverseg_tf.explanation.explain import explain

    if prediction.classes.lesion is None or not (prediction.canonical_labels == TUMOUR).any():
        return None
    try:
        found = explain(
            prediction,
            model=predictor,
            method=method,
            layer=layer,
            most_lesions=most_lesions,
            randomized_models=2,
            progress=progress,
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
        ("Classes", ", ".join(config.class_names)),
    ]
    if len(predictor.runtimes) > 1:
        facts.append(("Ensemble of", str(len(predictor.runtimes))))
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
