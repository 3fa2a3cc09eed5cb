"""`explain`: a map for each lesion of a volume, with the figures that tell how much it means."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_grid
from liverseg_tf.errors import ConfigError, DataWarning, GeometryError, ModelError, OutputError
from liverseg_tf.explanation.faithfulness import (
    MOST_RANK_CORRELATION,
    DeletionInsertion,
    deletion_insertion,
    randomized_model,
    rank_correlation,
)
from liverseg_tf.explanation.regions import Region, check_request, find_regions
from liverseg_tf.explanation.seg_grad_cam import SegGradCam
from liverseg_tf.files import atomic_write, write_text
from liverseg_tf.hounsfield import BODY_HU
from liverseg_tf.inference.predictor import Prediction, Predictor, check_output, describe
from liverseg_tf.inference.runtimes import KerasRuntime, keras_runtime
from liverseg_tf.labels import CLASSES, LIVER, TUMOUR
from liverseg_tf.strict_json import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

SUMMARY = "explanation.json"
# Between lung and fat: what is denser is the body or the couch

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class RegionExplanation:
    """The map of one region.

    Attributes:
        region: what is explained.
        maps: (slices of the region, rows, columns) float16 in [0, 1]; 1 is the region's highest value.
        curves: deletion and insertion on the region's largest slice; None if not tested.
        randomized_correlation: mean absolute rank correlation with the maps of randomised networks; None if not tested.
    """

    region: Region
    maps: np.ndarray
    curves: DeletionInsertion | None = None
    randomized_correlation: float | None = None

    @property
    def beats_random(self) -> bool | None:
        """True if the map marks something on the tested slice, and does better there than random maps."""
        if self.curves is None:
            return None
        return self.curves.beats_random and bool(self.slice_map(self.region.largest_slice).any())

    @property
    def means_little(self) -> bool | None:
        """True if the map does no better than a random one, or hardly depends on what the network learned."""
        if self.curves is None or self.randomized_correlation is None:
            return None
        return not self.beats_random or self.randomized_correlation >= MOST_RANK_CORRELATION

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
            "class": CLASSES[self.region.label].name,
            "voxels": int(np.count_nonzero(self.region.mask)),
            "slices_from_1": [self.region.slices.start + 1, self.region.slices.stop],
            "tested_slice_from_1": self.region.largest_slice + 1,
            "beats_random": self.beats_random,
            "map_in_region": self._share_inside(),
            "deletion_insertion": self.curves.to_dict() if self.curves else None,
            "randomized_rank_correlation": self.randomized_correlation,
            "means_little": self.means_little,
        }

    def _share_inside(self) -> float:
        """Share of the map's sum that lies in the region itself."""
        total = float(self.maps.sum(dtype=np.float64))
        return float(self.maps[np.moveaxis(self.region.mask, 2, 0)].sum(dtype=np.float64)) / total if total else 0.0


@dataclass(eq=False)
class Explanation:
    """Maps of a volume's regions.

    Attributes:
        volume: the CT.
        labels: (rows, columns, slices) uint8, the mask whose regions are explained.
        regions: one `RegionExplanation` for each, the largest lesion first.
        left_out: how many smaller lesions were not explained.
        settings: what was asked for.
    """

    volume: CTVolume
    labels: np.ndarray
    regions: list[RegionExplanation]
    left_out: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        tested = [r for r in self.regions if r.curves is not None]
        return {
            "settings": self.settings,
            "regions": [r.to_dict() for r in self.regions],
            "left_out": self.left_out,
            "beat_random": sum(r.beats_random for r in tested) if tested else None,
            "tested": len(tested),
        }

    def figure(self, region: int = 0, safe_colors: bool = False) -> Figure:
        """Draw a region's largest slice, its map and its curves."""
        from liverseg_tf.explanation.figure import explanation_figure

        return explanation_figure(self.volume, self.labels, self.regions[region], safe_colors)

    def image(self, region: int = 0) -> nib.Nifti1Image:
        """A region's map as a nibabel image in the input's grid: uint8, scaled to 0..1 by its header."""
        image = describe(
            self.volume.image_like(np.rint(self.regions[region].heatmap(self.volume.shape) * 255).astype(np.uint8))
        )
        image.header.set_slope_inter(1 / 255, 0)
        return image

    def save(self, folder: str | Path, overwrite: bool = False, safe_colors: bool = False) -> list[Path]:
        """Write each region's map (`<region>_heatmap.nii.gz`), its figure (`<region>.png`), and `explanation.json`.

        Args:
            folder: made if missing.
            overwrite: replace files that this library did not make.
            safe_colors: use the color-blind-safe colors.

        Returns:
            The files.

        Raises:
            OutputError: if one can't or must not be written.
        """
        from liverseg_tf.drawing import save_figure

        folder = Path(folder)
        names = [r.region.name for r in self.regions]
        maps = [folder / f"{name}_heatmap.nii.gz" for name in names]
        figures = [folder / f"{name}.png" for name in names]
        check_folder(folder, [*figures, folder / SUMMARY], overwrite)
        for path in maps:
            check_output(path, [self.volume.path] if self.volume.path else [], overwrite)
        for index, (path, figure) in enumerate(zip(maps, figures, strict=True)):
            with atomic_write(path) as temporary:
                nib.save(self.image(index), temporary)
            save_figure(self.figure(index, safe_colors), figure)
        earlier = _regions_of(folder / SUMMARY)
        write_text(folder / SUMMARY, to_json({"made_by": "liverseg_tf", **self.to_dict()}, indent=2) + "\n")
        for name in earlier - set(names):  # of an earlier explanation with more regions
            for path in (folder / f"{name}_heatmap.nii.gz", folder / f"{name}.png"):
                path.unlink(missing_ok=True)
        return [*maps, *figures, folder / SUMMARY]


def explain(
    source: Any,
    output: str | Path | None = None,
    model: Any = None,
    target: str = "tumour",
    lesion: int | None = None,
    point: Sequence[float] | None = None,
    *,
    mask: str | Path | MaskVolume | np.ndarray | None = None,
    method: str = "gradcam",
    layer: str = "bottleneck",
    radius_mm: float = 10.0,
    faithfulness: bool = True,
    random_maps: int = 10,
    randomized_models: int = 3,
    most_lesions: int = 20,
    seed: int = 0,
    overwrite: bool = False,
    safe_colors: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Show which places made the network see a lesion, the liver, or what it says about a point (Seg-Grad-CAM).

    The score that is explained is the sum of the class's logits over the region, slice by slice. Each map is tested:
    deletion and insertion curves against random regions of the same size within the liver (for the liver itself, within
    the body), and rank correlation with the maps of networks whose decoder was drawn anew (`Explanation.to_dict`). Go
    by each map's own figures: with the shipped model Grad-CAM at the bottleneck held up on real CT and often not on
    phantoms (docs/explanations.md).

    Args:
        source: a NIfTI file, a nibabel image, a `CTVolume`, or a `Prediction` that `Predictor` gave.
        output: folder for heatmaps (NIfTI, in the input's grid), figures (PNG) and figures' numbers (JSON); or None.
        model: a run folder, a `.keras` file, a SavedModel or a Keras model of this library, or a `Predictor` of one;
            by default the shipped one. Of an ensemble the first member is explained.
        target: "tumour" explains each lesion by itself, "all-tumour" all together, "liver" the liver.
        lesion: only this one, counted from 1, the largest first.
        point: voxel (x, y, z) of the file, from 0: its surroundings, whatever was predicted there.
        mask: take the regions from this mask instead of the model's own prediction.
        method: "gradcam", "gradcam++", "layercam" or "scorecam"; see `SegGradCam`.
        layer: "bottleneck", "decoder0" to "decoder4", or a layer's name.
        radius_mm: of the surroundings of `point`.
        faithfulness: test the maps.
        random_maps: random maps to compare each with.
        randomized_models: networks drawn anew to compare with.
        most_lesions: explain at most so many, the largest.
        seed: decides the random maps and networks.
        overwrite: replace files that this library did not make.
        safe_colors: use the color-blind-safe colors in figures.
        progress: called with regions done, their number, and what is being done.

    Returns:
        The `Explanation`; without regions if the mask has none.

    Raises:
        LiverSegError: for a volume, model, option or output that can't be used.

    Warns:
        DataWarning: if there is nothing to explain.

    Examples:
        >>> explanation = explain("volume-7.nii.gz", "explained/", model="run/")  # doctest: +SKIP
    """
    if most_lesions < 1 or random_maps < 2 or randomized_models < 1:
        raise ConfigError(
            "explain: expected at least 1 lesion, 2 random maps and 1 randomised model. Received: "
            f"most_lesions={most_lesions}, random_maps={random_maps}, randomized_models={randomized_models}"
        )
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    runtime = next((found for found in map(keras_runtime, predictor.runtimes) if found is not None), None)
    if runtime is None:
        raise ModelError(
            "explanations look inside the network: they need a run folder, a .keras file or a SavedModel as the model"
        )
    network = runtime.slice_function.model
    cam = SegGradCam(network, runtime.config, method, layer)
    if output is not None:
        check_folder(Path(output), [Path(output) / SUMMARY], overwrite)
    report = progress or (lambda done, total, what: None)
    if not isinstance(source, Prediction):
        source = predictor.read(source)
    volume = source.volume if isinstance(source, Prediction) else source
    check_request(volume.geometry, target, lesion, point, radius_mm)
    labels = _labels(source, volume, mask, predictor, report)
    found = find_regions(labels, volume.geometry, target, lesion, point, radius_mm)
    if not found:
        warnings.warn(
            f"{volume.name}: no {'tumour' if target != 'liver' else 'liver'} was found, nothing to explain; "
            "name a point, or another target",
            DataWarning,
            2,
        )
    chosen = found[:most_lesions]
    explained = []
    for done, region in enumerate(chosen):
        report(done, len(chosen), region.name)
        explained.append(RegionExplanation(region, _maps(cam, volume, region)))
    if faithfulness and explained:
        explained = _tested(explained, cam, runtime, volume, labels, random_maps, randomized_models, seed, report)
    settings = {
        "target": target,
        "lesion": lesion,
        "point": None if point is None else [float(v) for v in point],
        "radius_mm": radius_mm if point is not None else None,
        "regions_from": "mask" if mask is not None else "prediction",
        "method": method,
        "layer": cam.layer,
        "network": network.name,
        "random_maps": random_maps,
        "randomized_models": randomized_models,
        "most_rank_correlation": MOST_RANK_CORRELATION,
        "seed": seed,
    }
    explanation = Explanation(volume, labels, explained, len(found) - len(chosen), settings)
    if output is not None:
        report(len(chosen), len(chosen), "writing")
        explanation.save(output, overwrite, safe_colors)
    return explanation


def _regions_of(summary: Path) -> set[str]:
    """Names of the regions that an earlier explanation in this folder wrote."""
    try:
        content = json.loads(summary.read_text("utf-8"))
        if content["made_by"] != "liverseg_tf":
            return set()
        return {row["region"] for row in content["regions"] if re.fullmatch(r"lesion-\d+|[a-z]+", row["region"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def check_folder(folder: Path, files: Sequence[Path], overwrite: bool) -> None:
    """Check that files may be written into a folder: they are new, or an explanation of ours lies there.

    Raises:
        OutputError: if the folder is a file, or a file of somebody else would be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder for explanations, got a file; name another output")
    taken = [path for path in files if path.exists()]
    if taken and not overwrite:
        try:
            own = json.loads((folder / SUMMARY).read_text("utf-8")).get("made_by") == "liverseg_tf"
        except (OSError, ValueError, AttributeError):
            own = False
        if not own:
            raise OutputError(
                f"{taken[0]}: exists and was not made by this library; choose another output, or add --overwrite"
            )


def _labels(source, volume: CTVolume, mask, predictor: Predictor, report: Progress) -> np.ndarray:
    if mask is None:
        if isinstance(source, Prediction):
            return source.canonical_labels
        prediction = predictor.predict(volume, progress=lambda done, total: report(done, total, "predicting"))
        return prediction.canonical_labels
    if isinstance(mask, np.ndarray):
        if mask.shape != volume.shape:
            raise GeometryError(f"{volume.name}: expected a mask of shape {volume.shape}, got {mask.shape}")
        mask = MaskVolume(volume.geometry.to_file(mask), volume.geometry)
    elif not isinstance(mask, MaskVolume):
        mask = MaskVolume.load(mask)
    check_same_grid(volume.geometry, mask.geometry, (volume.name, mask.path or "mask"))
    return mask.labels


def _maps(cam: SegGradCam, volume: CTVolume, region: Region) -> np.ndarray:
    """(slices, rows, columns) float16 maps of a region, the highest value 1."""
    small = []
    for first in range(0, region.mask.shape[2], 16):
        last = min(first + 16, region.mask.shape[2])
        hu = volume.slices(region.first_slice + first, region.first_slice + last)
        small.append(cam(hu, np.moveaxis(region.mask[..., first:last], 2, 0), region.label))
    maps = cam.enlarge(np.concatenate(small), *volume.shape[:2])
    return (maps / max(float(maps.max()), np.finfo(np.float32).tiny)).astype(np.float16)


def _tested(
    explained: list[RegionExplanation],
    cam: SegGradCam,
    runtime: KerasRuntime,
    volume: CTVolume,
    labels: np.ndarray,
    random_maps: int,
    randomized_models: int,
    seed: int,
    report: Progress,
) -> list[RegionExplanation]:
    correlations = np.zeros((randomized_models, len(explained)))
    at = [one.region.largest_slice for one in explained]
    hu = [volume.slices(i, i + 1)[0] for i in at]
    masks = [one.region.mask[..., i - one.region.first_slice] for one, i in zip(explained, at, strict=True)]
    for number in range(randomized_models):
        report(number, randomized_models, "randomised networks")
        other = SegGradCam(randomized_model(cam.model, seed + number), runtime.config, cam.method, cam.layer)
        for i, one in enumerate(explained):
            small = other(hu[i][None], masks[i][None], one.region.label)
            again = other.enlarge(small, *hu[i].shape)[0]
            correlations[number, i] = abs(rank_correlation(one.slice_map(at[i]), again, hu[i] > BODY_HU))
    grid = tuple(int(n) for n in cam.model.get_layer(cam.layer).output.shape[1:3])
    tested = []
    for i, one in enumerate(explained):
        report(i, len(explained), f"testing {one.region.name}")
        plane = labels[..., at[i]]
        domain = plane >= LIVER if one.region.label == TUMOUR else hu[i] > BODY_HU
        curves = deletion_insertion(
            runtime.probabilities,
            hu[i],
            one.slice_map(at[i]),
            masks[i],
            domain,
            one.region.label,
            grid,
            random_maps=random_maps,
            seed=seed,
        )
        tested.append(RegionExplanation(one.region, one.maps, curves, float(correlations[:, i].mean())))
    return tested
