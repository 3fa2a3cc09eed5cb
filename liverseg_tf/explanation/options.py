"""`ExplainOptions`: how maps are made and tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from liverseg_tf.errors import ConfigError

RANDOM_MAPS = 20  # the smallest number for a verdict
DEFAULT_METHOD = "integrated-gradients"  # the method that passes the tests most often: docs/explanations.md
CAM_METHODS = ("gradcam", "gradcam++", "layercam", "scorecam", "hirescam", "segxrescam")
METHODS = (DEFAULT_METHOD, "occlusion", *CAM_METHODS)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ExplainOptions:
    """Options of `explain`.

    Attributes:
        method: "integrated-gradients" (`IntegratedGradients`), "occlusion" (`Occlusion`), or "gradcam", "gradcam++",
            "layercam", "scorecam", "hirescam", "segxrescam" (`SegGradCam`).
        layer: "bottleneck", "decoder0" to "decoder4", or a layer's name; ignored by integrated gradients and
            occlusion.
        all_slices: make maps of all slices of a region, not only of the tested one.
        radius_mm: radius of the explained surroundings of `point`, in mm, above 0.
        faithfulness: test the maps.
        random_maps: random maps to compare each with, at least 2; a verdict needs 20.
        whole_curves: False measures each random map's curves only until it is certain which area is larger: the
            same verdict in a third of the time, but curves with gaps.
        randomized_models: largest number of re-initialised networks to compare with, at least 1; further ones are
            used where the first one's rank correlation is near the limit.
        most_lesions: largest number of lesions to explain, the largest first; at least 1.
        seed: of the random maps and networks.
        overwrite: replace files that this library did not make.
        safe_colors: use the colour-blind-safe colours in figures.
        progress: called with regions done, their number, and what is being done.

    Raises:
        ConfigError: for a number below the least.

    Examples:
        >>> ExplainOptions(method="occlusion").random_maps
        20
    """

    method: str = DEFAULT_METHOD
    layer: str = "bottleneck"
    all_slices: bool = False
    radius_mm: float = 10.0
    faithfulness: bool = True
    random_maps: int = RANDOM_MAPS
    whole_curves: bool = True
    randomized_models: int = 3
    most_lesions: int = 20
    seed: int = 0
    overwrite: bool = False
    safe_colors: bool = True
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.most_lesions < 1 or self.random_maps < 2 or self.randomized_models < 1:
            raise ConfigError(
                "explain: expected at least 1 lesion, 2 random maps and 1 randomised model. Received: "
                f"most_lesions={self.most_lesions}, random_maps={self.random_maps}, "
                f"randomized_models={self.randomized_models}"
            )


class ExplainChanges(TypedDict, total=False):
    """The fields of `ExplainOptions` as keywords of `explain`."""

    method: str
    layer: str
    all_slices: bool
    radius_mm: float
    faithfulness: bool
    random_maps: int
    whole_curves: bool
    randomized_models: int
    most_lesions: int
    seed: int
    overwrite: bool
    safe_colors: bool
    progress: Progress | None
