"""First-order and shape radiomics of a lesion, by pictologics, which complies with the IBSI's reference values."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np

from liverseg_tf.errors import MissingDependencyError, require


def load_radiomics() -> Any:
    """`pictologics.features`; the first call on a machine compiles for a minute or two.

    Raises:
        MissingDependencyError: before Python 3.12, or without the extra `[radiomics]`.
    """
    if sys.version_info < (3, 12):
        raise MissingDependencyError(
            "radiomics needs Python 3.12 or later (pictologics has no release for older ones), got "
            f"{sys.version_info[0]}.{sys.version_info[1]}; every other figure of a measurement comes without it"
        )
    # else the import also compiles textures and filters, which are not used
    os.environ.setdefault("PICTOLOGICS_DISABLE_WARMUP", "1")
    return require("pictologics.features", "radiomics", "radiomics")


def radiomics_of(
    lesion: np.ndarray, hu: np.ndarray | None, spacing_mm: tuple[float, float, float] | None
) -> dict[str, float | None]:
    """IBSI's intensity-based statistics and morphology of one lesion, without resampling of its voxels.

    Args:
        lesion: (I, J, K) bool, at least one voxel.
        hu: (I, J, K) HU, or None without a CT.
        spacing_mm: spacing of the grid, or None if its axes are not at right angles (then shape is undefined).

    Returns:
        By IBSI's names and codes, as `sphericity_QCFX`; lengths in mm, areas in mm2, volumes in mm3, intensities in HU.
        A value is None if it is undefined: intensities without a CT, axes of one voxel. All names are always present.

    Raises:
        MissingDependencyError: as `load_radiomics`.
    """
    features = load_radiomics()
    from pictologics.loader import Image

    names = (*features.INTENSITY_FEATURE_NAMES, *features.MORPHOLOGY_FEATURE_NAMES)
    found: dict[str, Any] = {}
    if hu is not None:
        found |= features.calculate_intensity_features(hu[lesion].astype(np.float64))
    if spacing_mm is not None:
        origin = (0.0, 0.0, 0.0)
        # the mesh must be closed for a lesion at the array's border too
        mask = Image(np.pad(lesion, 1).astype(np.uint8), spacing_mm, origin)
        image = None if hu is None else Image(np.pad(hu, 1).astype(np.float64), spacing_mm, origin)
        found |= features.calculate_morphology_features(mask, image)
    values = {name: float(found.get(name, math.nan)) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
