"""`explain`: a map for each lesion of a volume, with the results of its tests."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import nibabel as nib
import numpy as np

from liverseg_tf import channels_numpy
from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_voxels
from liverseg_tf.errors import DataWarning, GeometryError, ModelError, OutputError, warn
from liverseg_tf.explanation.faithfulness import (
    LEAST_BEATEN,
    LEAST_IN_LIVER,
    MOST_RANK_CORRELATION,
    DeletionInsertion,
    SliceTest,
    body_of,
    randomized_model,
    rank_correlation,
    share_within,
    without_region,
)
from liverseg_tf.explanation.methods import Explainer, make_explainer
from liverseg_tf.explanation.options import RANDOM_MAPS, ExplainChanges, ExplainOptions, Progress
from liverseg_tf.explanation.regions import Region, check_request, find_regions, targets_of
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.inference.runtimes import KerasRuntime, Runtime, TFLiteRuntime, keras_runtime
from liverseg_tf.keyword_options import takes_options, with_changes
from liverseg_tf.labels import LIVER, LIVER_CLASSES, ClassSet
from liverseg_tf.models.model import Model
from liverseg_tf.native_memory import give_back_memory
from liverseg_tf.ownership import claim, is_ours, save_image, sign, write_text
from liverseg_tf.strict_json import to_json
from liverseg_tf.wording import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

SUMMARY = "explanation.json"
# One randomised network is enough where its rank correlation differs by so much from the limit.
_CLEAR_BY = 0.2
CAN_SHOW = (
    "A heatmap shows which parts of the slice led to the network's finding; it cannot show whether that is right, "
    "because maps of false positives pass the same tests, nor what the finding is."
)


@dataclass(frozen=True, eq=False)
class RegionExplanation:
    """The map of one region and the results of its tests.

    Attributes:
        region: what is explained.
        maps: (slices of the region, rows, columns) float16 in [0, 1]; 1 is the highest value on the tested slice, the
            region's largest, and air is 0. Slices without a map are 0.
        heat_in_liver: share of the tested slice's heat that lies within the liver, its tumours, and the region; 0
            without heat.
        curves: deletion and insertion on the tested slice; None if not tested.
        randomized_correlation: mean absolute rank correlation with the maps of randomised networks; None if not tested.
        filled_probability: mean probability of the class in the region, after filling the region, and nothing else,
            with the HU around it; None if not tested.
        fall_inside: share of the falls of that probability over the whole slice that lies in the region; None if not
            tested.
        classes: what the labels are.
    """

    region: Region
    maps: np.ndarray = field(repr=False)
    heat_in_liver: float
    curves: DeletionInsertion | None = None
    randomized_correlation: float | None = None
    filled_probability: float | None = None
    fall_inside: float | None = None
    classes: ClassSet = LIVER_CLASSES

    @property
    def reasons(self) -> list[str]:
        """The failed tests in words; empty if all passed or none was run."""
        if self.curves is None:
            return []
        curves, few = self.curves, len(self.curves.random_deletion) < RANDOM_MAPS
        found = []
        if not self.slice_map(self.region.largest_slice).any():
            found.append("no heat")
        if few:
            found.append(f"fewer than {RANDOM_MAPS} random maps")
        if min(curves.deletion_beats, curves.insertion_beats) < LEAST_BEATEN:
            found.append(f"beats less than {LEAST_BEATEN:.0%} of random maps".replace("%", " %"))
        if self.randomized_correlation is not None and self.randomized_correlation >= MOST_RANK_CORRELATION:
            found.append("looks like maps of randomised networks")
        if self.heat_in_liver <= LEAST_IN_LIVER:
            found.append(self.classes.words("most of the heat is outside the liver"))
        return found

    @property
    def verdict(self) -> str:
        """ "supported", "not supported" or "not tested"."""
        if self.curves is None:
            return "not tested"
        return "not supported" if self.reasons else "supported"

    @property
    def words(self) -> str:
        """The verdict, the failed tests and the numbers in one line, the same wherever it is shown."""
        share = f"{100 * self.heat_in_liver:.0f} % of the heat within the {readable(self.classes.organ)}"
        if self.curves is None:
            return f"{self.verdict}: {share}"
        against = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        curves = self.curves
        return (
            f"{self.verdict}{against}: beats {100 * curves.deletion_beats:.0f} % (deletion) and "
            f"{100 * curves.insertion_beats:.0f} % (insertion) of {len(curves.random_deletion)} random maps, {share}, "
            f"rank correlation {self.randomized_correlation:.2f}; filled: probability {curves.deletion[0]:.2f} to "
            f"{self.filled_probability:.2f}, {100 * (self.fall_inside or 0):.0f} % of the fall within it"
        )

    def heatmap(self, shape: tuple[int, int, int]) -> np.ndarray:
        """The map in a whole volume: (rows, columns, slices) float32 in [0, 1], 0 off the region's slices."""
        volume = np.zeros(shape, np.float32)
        volume[..., self.region.first_slice : self.region.slices.stop] = np.moveaxis(self.maps, 0, 2)
        return volume

    def slice_map(self, index: int) -> np.ndarray:
        """(rows, columns) float32 map of the slice `index`, from inferior."""
        return self.maps[index - self.region.first_slice].astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures; slices counted from 1."""
        return {
            "region": self.region.name,
            "class": self.region.class_name,
            "voxels": int(np.count_nonzero(self.region.mask)),
            "slices_from_1": [self.region.slices.start + 1, self.region.slices.stop],
            "tested_slice_from_1": self.region.largest_slice + 1,
            "verdict": self.verdict,
            "reasons": self.reasons,
            self.classes.named("heat_in_liver"): self.heat_in_liver,
            "heat_in_region": self._share_inside(),
            "randomized_rank_correlation": self.randomized_correlation,
            "probability": None if self.curves is None else float(self.curves.deletion[0]),
            "probability_filled": self.filled_probability,
            "fall_in_region_share": self.fall_inside,
            "deletion_insertion": self.curves.to_dict() if self.curves else None,
        }

    def _share_inside(self) -> float:
        """Share of the tested slice's heat that lies in the region itself."""
        index = self.region.largest_slice
        return share_within(self.slice_map(index), self.region.mask[..., index - self.region.first_slice])


@dataclass(eq=False)
class Explanation:
    """Maps of a volume's regions.

    Attributes:
        volume: the CT.
        labels: (rows, columns, slices) uint8, the mask whose regions are explained.
        regions: one `RegionExplanation` for each, the largest lesion first.
        left_out: how many smaller lesions were not explained.
        settings: the request's settings.
        mask_path: the file that the regions come from, if one was given.
        classes: what the labels are.
    """

    volume: CTVolume
    labels: np.ndarray = field(repr=False)
    regions: list[RegionExplanation]
    left_out: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    mask_path: Path | None = None
    classes: ClassSet = LIVER_CLASSES

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        tested = [r for r in self.regions if r.curves is not None]
        return {
            "settings": self.settings,
            "regions": [r.to_dict() for r in self.regions],
            "left_out": self.left_out,
            "supported": sum(r.verdict == "supported" for r in tested),
            "tested": len(tested),
        }

    def figure(self, region: int = 0, safe_colors: bool = True) -> Figure:
        """Draw a region's largest slice, its map and its curves."""
        from liverseg_tf.explanation.figure import explanation_figure

        return explanation_figure(self.volume, self.labels, self.regions[region], safe_colors, self.classes.classes)

    def image(self, region: int = 0) -> nib.Nifti1Image:
        """A region's map as a nibabel image in the input's grid: uint8, scaled to 0..1 by its header."""
        image = self.volume.image_like(np.rint(self.regions[region].heatmap(self.volume.shape) * 255).astype(np.uint8))
        image.header.set_slope_inter(1 / 255, 0)
        return sign(image, "heatmap")

    def save(self, folder: str | Path, overwrite: bool = False, safe_colors: bool = True) -> list[Path]:
        """Write each region's map (`<region>_heatmap.nii.gz`), its figure (`<region>.png`), and `explanation.json`.

        Args:
            folder: made if missing.
            overwrite: replace files that this library did not make.
            safe_colors: use the colour-blind-safe colours.

        Returns:
            The files.

        Raises:
            OutputError: if one can't or must not be written.
        """
        from liverseg_tf.drawing import save_figure

        folder = Path(folder)
        inputs = [path for path in (self.volume.path, self.mask_path) if path]
        options: dict[str, Any] = {"inputs": inputs, "overwrite": overwrite}
        names = [r.region.name for r in self.regions]
        maps = [folder / f"{name}_heatmap.nii.gz" for name in names]
        figures = [folder / f"{name}.png" for name in names]
        _claim_all(folder, maps, figures, **options)
        for index, (path, figure) in enumerate(zip(maps, figures, strict=True)):
            save_image(self.image(index), path, "heatmap", **options)
            save_figure(self.figure(index, safe_colors), figure, **options)
        earlier = _regions_of(folder / SUMMARY)
        text = to_json({"made_by": "liverseg_tf", **self.to_dict()}, indent=2) + "\n"
        write_text(folder / SUMMARY, text, "explanation", **options)
        for name in earlier - set(names):  # left by an earlier explanation with more regions
            for path, kind in ((folder / f"{name}_heatmap.nii.gz", "heatmap"), (folder / f"{name}.png", "figure")):
                if is_ours(path, kind):
                    path.unlink()
        return [*maps, *figures, folder / SUMMARY]


@takes_options(ExplainOptions)
def explain(
    source: Any,
    output: str | Path | None = None,
    model: Any = None,
    target: str | None = None,
    lesion: int | None = None,
    point: Sequence[float] | None = None,
    *,
    mask: str | Path | MaskVolume | np.ndarray | None = None,
    options: ExplainOptions | None = None,
    **changes: Unpack[ExplainChanges],
) -> Explanation:
    """Show which pixels led the network to a lesion, to the liver, or to its output at a point.

    Each map is made on the region's largest slice, and tested there: it is "supported" if it has heat, most of it
    within the liver; if it beats 95 % of at least 20 random maps over the body, on deletion and on insertion; and if it
    differs from maps of networks with a re-initialised decoder. Otherwise it is "not supported" (docs/explanations.md).

    Args:
        source: a NIfTI file, a nibabel image, a `CTVolume`, or a `Prediction` that `Predictor` gave.
        output: folder for heatmaps (NIfTI, in the input's grid), figures (PNG) and the results as JSON; or None.
        model: a run folder, a `.keras` file, a SavedModel or a Keras model of this library, or a `Predictor` of one;
            by default the shipped one. For an ensemble the first member is explained.
        target: "tumour", the default, explains each lesion by itself, "all-tumour" all together, "liver" the liver; for
            another organ the names of its model's classes.
        lesion: only this one, counted from 1, the largest first.
        point: voxel (x, y, z) of the file, from 0: its surroundings are explained, independent of the prediction.
        mask: take the regions from this mask instead of the model's own prediction.
        options: how maps are made and tested; see `ExplainOptions`.
        changes: fields of `ExplainOptions` as keywords, such as `method="layercam"`; they override `options`.

    Returns:
        The `Explanation`; without regions if the mask has none.

    Raises:
        LiverSegError: for a volume, model, option or output that can't be used.

    Warns:
        DataWarning: if there is nothing to explain.

    Examples:
        >>> found = explain("LiTS/volume-0.nii.gz", model="run", target="liver", faithfulness=False)
        >>> [one.region.name for one in found.regions]
        ['liver']
    """
    options = with_changes(options, ExplainOptions, changes, "explain")
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    opened = ((own, keras_runtime(own)) for own in predictor.runtimes)
    own, runtime = next(((own, found) for own, found in opened if found is not None), (None, None))
    if own is None or runtime is None:
        raise ModelError(
            "explanations look inside the network: they need a run folder, a .keras file or a SavedModel as the model"
        )
    explainer = make_explainer(runtime.model, options.method, options.layer)
    if output is not None:
        _claim_all(Path(output), overwrite=options.overwrite)
    report = options.progress or (lambda done, total, what: None)
    if not isinstance(source, Prediction):
        source = predictor.read(source, in_memory=False)
    volume = source.volume if isinstance(source, Prediction) else source
    classes = runtime.config.classes
    target = targets_of(classes)[0] if target is None else target
    check_request(volume.geometry, target, lesion, point, options.radius_mm, classes)
    labels = _labels(source, volume, mask, predictor, report)
    found = find_regions(labels, volume.geometry, target, lesion, point, options.radius_mm, classes)
    if not found:
        warn(
            f"{volume.name}: no {target.removeprefix('all-')} was found, nothing to explain; "
            "name a point, or another target",
            DataWarning,
        )
    chosen = found[: options.most_lesions]
    predictor.release()  # until the curves
    give_back_memory()
    organ = classes.organ_part(labels)
    explained = []
    for done, region in enumerate(chosen):
        report(done, len(chosen), region.name)
        one = _explained(explainer, volume, organ, region, options.all_slices)
        explained.append(replace(one, classes=classes))
    layer, network = explainer.layer, runtime.model.network.name
    if options.faithfulness and explained:
        give_back_memory()  # what the maps took
        others = _others(own, runtime.model, explainer, options)
        explained = _compared(explained, others, volume, organ, report)
        del explainer, runtime, others  # the curves take memory of their own
        give_back_memory()
        # by what made the mask: an int8 file takes a third of the network's time, for the same curves
        explained = _tested(explained, own, volume, organ, options, report)
    settings = {
        "target": target,
        "lesion": lesion,
        "point": None if point is None else [float(v) for v in point],
        "radius_mm": options.radius_mm if point is not None else None,
        "regions_from": "mask" if mask is not None else "prediction",
        "layer": layer,
        "network": network,
        **_settings_of(options),
    }
    mask_path = Path(mask) if isinstance(mask, (str, Path)) else getattr(mask, "path", None)
    explanation = Explanation(volume, labels, explained, len(found) - len(chosen), settings, mask_path, classes)
    if output is not None:
        report(len(chosen), len(chosen), "writing")
        explanation.save(output, options.overwrite, options.safe_colors)
    return explanation


def _settings_of(options: ExplainOptions) -> dict[str, Any]:
    """What of the options maps and verdicts depend on, and what a verdict needs."""
    return {
        "method": options.method,
        "random_maps": options.random_maps,
        "randomized_models": options.randomized_models,
        "needed": {
            "random_maps": RANDOM_MAPS,
            "share_beaten": LEAST_BEATEN,
            "rank_correlation_below": MOST_RANK_CORRELATION,
            "heat_in_liver_above": LEAST_IN_LIVER,
        },
        "can_show": CAN_SHOW,
        "seed": options.seed,
    }


def _regions_of(summary: Path) -> set[str]:
    """Names of the regions that an earlier explanation in this folder wrote."""
    try:
        content = json.loads(summary.read_text("utf-8"))
        if content["made_by"] != "liverseg_tf":
            return set()
        return {row["region"] for row in content["regions"] if re.fullmatch(r"lesion-\d+|\w[\w .-]*", row["region"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _claim_all(folder: Path, maps: Sequence[Path] = (), figures: Sequence[Path] = (), **options) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder for explanations, got a file; name another output")
    for paths, kind in ((maps, "heatmap"), (figures, "figure"), ([folder / SUMMARY], "explanation")):
        for path in paths:
            claim(path, kind, **options)


def _labels(source, volume: CTVolume, mask, predictor: Predictor, report: Progress) -> np.ndarray:
    if mask is None:
        if isinstance(source, Prediction):
            return source.canonical_labels
        prediction = predictor.predict(volume, progress=lambda done, total: report(done, total, "predicting"))
        return prediction.canonical_labels
    if isinstance(mask, np.ndarray):
        if mask.shape != volume.shape:
            raise GeometryError(f"{volume.name}: expected a mask of shape {volume.shape}, got {mask.shape}")
        mask = MaskVolume(volume.geometry.to_file(mask), volume.geometry, classes=predictor.config.classes)
    elif not isinstance(mask, MaskVolume):
        mask = MaskVolume.load(mask, classes=predictor.config.classes, like=volume)
    check_same_voxels(volume.geometry, mask.geometry, (volume.name, mask.path or "mask"))
    return mask.labels


def _explained(
    explainer: Explainer, volume: CTVolume, labels: np.ndarray, region: Region, all_slices: bool
) -> RegionExplanation:
    """A region's maps without air, the highest value of its largest slice 1."""
    maps = np.zeros((len(region.slices), *volume.shape[:2]), np.float16)
    tested = region.largest_slice
    for index in [tested, *(i for i in region.slices if all_slices and i != tested)]:
        heat = _slice_map(explainer, volume, labels, region, index)
        if index == tested:
            highest = float(heat.max()) or 1.0
            liver = (labels[..., index] >= LIVER) | _on_slice(region, index)
            share = share_within(heat, liver)
        maps[index - region.first_slice] = np.minimum(heat / highest, 1)
    return RegionExplanation(region, maps, share)


def _slice_map(explainer: Explainer, volume: CTVolume, labels: np.ndarray, region: Region, index: int) -> np.ndarray:
    hu, inside = volume.slices(index, index + 1)[0], _on_slice(region, index)
    filled = without_region(hu, labels[..., index], inside, region.label)
    return explainer.slice_map(hu, inside, region.label, filled) * (body_of(hu) | inside)


def _on_slice(region: Region, index: int) -> np.ndarray:
    return region.mask[..., index - region.first_slice]


def _others(own: Runtime, model: Model, explainer: Explainer, options: ExplainOptions) -> Iterator[Explainer]:
    """Explainers of re-initialised networks."""
    seeds = range(options.seed, options.seed + options.randomized_models)
    if not isinstance(own, KerasRuntime):  # rebuilt from a file for the maps, which are made by now
        return _randomized(model, seeds, explainer)
    # the caller's network keeps its weights
    make = functools.partial(make_explainer, method=options.method, layer=options.layer)
    return _randomized_copies(model, seeds, make)


def _randomized(model: Model, seeds: Iterable[int], explainer: Explainer) -> Iterator[Explainer]:
    """The explainer itself, while its network gets other weights: no copy, and nothing to be traced."""
    for seed in seeds:
        randomized_model(model.network, seed, into=model.network)
        yield explainer


def _randomized_copies(model: Model, seeds: Iterable[int], make: Callable[[Model], Explainer]) -> Iterator[Explainer]:
    """The explainer of a re-initialised copy, again and again with other weights: one trace, and one copy in memory."""
    explainer = copy = None
    for seed in seeds:
        if copy is None:
            copy = randomized_model(model.network, seed)
            explainer = make(replace(model, network=copy))
        else:
            randomized_model(model.network, seed, into=copy)
        if explainer is not None:
            yield explainer


def _compared(
    explained: list[RegionExplanation],
    others: Iterator[Explainer],
    volume: CTVolume,
    labels: np.ndarray,
    report: Progress,
) -> list[RegionExplanation]:
    """Rank correlations with maps of randomised networks: of further ones where the first leaves it open."""
    correlations: list[list[float]] = [[] for _ in explained]
    for number in itertools.count(1):
        unclear = [
            i
            for i, known in enumerate(correlations)
            if not known or abs(np.mean(known) - MOST_RANK_CORRELATION) < _CLEAR_BY
        ]
        other = next(others, None) if unclear else None
        if other is None:
            break
        for i in unclear:
            report(i, len(explained), f"randomised network {number}")
            one = explained[i]
            index = one.region.largest_slice
            again = _slice_map(other, volume, labels, one.region, index)
            body = body_of(volume.slices(index, index + 1)[0]) | _on_slice(one.region, index)
            correlations[i].append(abs(rank_correlation(one.slice_map(index), again, body)))
    return [
        replace(one, randomized_correlation=float(np.mean(found)))
        for one, found in zip(explained, correlations, strict=True)
    ]


def _tested(
    explained: list[RegionExplanation],
    runtime: Runtime,
    volume: CTVolume,
    labels: np.ndarray,
    options: ExplainOptions,
    report: Progress,
) -> list[RegionExplanation]:
    """Deletion and insertion; regions with the same largest slice share its random maps."""
    tested, probabilities = list(explained), _probabilities_of(runtime)
    for done, index in enumerate(sorted({one.region.largest_slice for one in explained})):
        report(done, len(explained), f"testing slice {index + 1}")
        own = [i for i, one in enumerate(explained) if one.region.largest_slice == index]
        masks = [_on_slice(explained[i].region, index) for i in own]
        label = explained[own[0]].region.label
        hu, plane = volume.slices(index, index + 1)[0], labels[..., index]
        watched = np.logical_or.reduce(masks)
        filled = without_region(hu, plane, watched, label)
        test = SliceTest(
            probabilities,
            hu,
            filled,
            label,
            watched,
            options.random_maps,
            options.seed,
            options.whole_curves,
        )
        for i, mask in zip(own, masks, strict=True):
            curves = test.curves(explained[i].slice_map(index), mask)
            filled_probability, fall_inside = test.counterfactual(mask)
            tested[i] = replace(
                explained[i], curves=curves, filled_probability=filled_probability, fall_inside=fall_inside
            )
    return tested


def _probabilities_of(runtime: Runtime) -> Callable[[np.ndarray], np.ndarray]:
    """`runtime.probabilities`; of a TFLite file by one interpreter of its network, which takes half of the memory."""
    if not isinstance(runtime, TFLiteRuntime):
        return runtime.probabilities

    def of_slice(hu: np.ndarray) -> np.ndarray:
        return np.moveaxis(channels_numpy.restore(runtime.at_network_size(hu[None])[0], *hu.shape), 0, -1)

    return lambda hu: np.stack([of_slice(one) for one in hu])
