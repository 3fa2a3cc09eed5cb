"""Slices to calibrate int8 on and to compare runtimes with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liverseg_tf.data.cases import Case, find_cases
from liverseg_tf.errors import DataWarning, warn
from liverseg_tf.labels import LIVER_CLASSES, ClassSet

PHANTOMS = 10
UNKNOWN = 255


@dataclass(frozen=True, eq=False)
class Sample:
    """Some slices of one case.

    Attributes:
        hu: (N, rows, columns) float32.
        labels: (N, rows, columns) uint8; `UNKNOWN` everywhere where the case has no mask, or is a phantom for the model
            of another organ.
    """

    hu: np.ndarray
    labels: np.ndarray


def samples(
    source: str | Path | Sequence[Case] | None,
    count: int,
    hu_range: tuple[float, float] | None,
    phantom_shape: tuple[int, int, int],
    classes: ClassSet = LIVER_CLASSES,
) -> Iterator[Sample]:
    """Choose about `count` slices from all cases: half of each case's show its rarest class, the others are spread.

    Args:
        source: a folder of cases, cases, or None for phantoms.
        count: total number of slices; each case gives at least one.
        hu_range: lowest and highest HU to clip to, or None.
        phantom_shape: (rows, columns, slices) of the phantoms, which show liver and tumour.
        classes: classes of the cases' masks.

    Raises:
        LiverSegError: for cases that can't be found or read.

    Warns:
        DataWarning: if no slice shows the last class.
    """
    source_given = source is not None
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        if source is None:
            from liverseg_tf.data.phantom import write_phantoms

            write_phantoms(folder, PHANTOMS, seed=0, shape=phantom_shape)
            source = folder
        cases = find_cases(source) if isinstance(source, (str, Path)) else list(source)
        truth_is_known = source_given or classes == LIVER_CLASSES
        in_masks = classes if source_given else LIVER_CLASSES
        rarest = len(in_masks) - 1
        shows_rarest = False
        for case, share in zip(cases, _shares(count, len(cases)), strict=True):
            if share == 0:
                continue
            volume = case.load_volume(hu_range=hu_range)
            mask = case.load_mask(volume, in_masks).labels if case.segmentation else None
            chosen = _choose(mask, volume.shape[2], share, rarest)
            hu = np.concatenate([volume.slices(i, i + 1) for i in chosen])
            labels = np.full(hu.shape, UNKNOWN, np.uint8)
            if mask is not None:
                shows_rarest |= bool((mask[..., chosen] == rarest).any())
                if truth_is_known:
                    labels = np.moveaxis(mask[..., chosen], 2, 0)
            yield Sample(hu, labels)
        if not shows_rarest:
            warn(
                f"none of the slices shows a {in_masks.names[rarest]} (label {rarest}): take cases with some"
                f"{', or none to use phantoms' if classes == LIVER_CLASSES else ''}",
                DataWarning,
            )


def _shares(count: int, cases: int) -> list[int]:
    """Divide `count` evenly among the cases; the first cases get the remainder."""
    return [count // cases + (i < count % cases) for i in range(cases)]


def _choose(mask: np.ndarray | None, slices: int, count: int, rarest: int) -> list[int]:
    """Indices of about `count` slices: half show the rarest class of the mask, the others are evenly spread."""
    rare: list[int] = []
    if mask is not None:
        for label in range(rarest, 0, -1):
            if (found := np.flatnonzero((mask == label).any((0, 1)))).size:
                rare = _spread(found, (count + 1) // 2)
                break
    others = np.setdiff1d(np.arange(slices), rare)
    return sorted(rare + _spread(others, count - len(rare)))


def _spread(values: np.ndarray, count: int) -> list[int]:
    """`count` of the values (or all, if there are fewer), at equal distances."""
    count = min(count, len(values))
    return values[np.linspace(0, len(values) - 1, count).round().astype(int)].tolist() if count else []
