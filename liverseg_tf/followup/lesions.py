"""Links lesions of a later scan to those of earlier scans: kept, split, merged, new, vanished."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage, optimize, spatial

# Number of points that represent a lesion.
_MOST_POINTS = 300
_DRAWS = 40
# A part that merged into another lesion overlaps it by at least this share.
_SHARE_OF_PART = 0.6
# Two lesions with a smaller overlap, and centres further apart than the radii, are not linked.
_LEAST_SHARE = 0.1

# A lesion of fewer voxels, so near to a larger one along (rows, columns, slices), is a speck of that one's mask.
_SPECK_VOXELS = 8
_SPECK_REACH = (2, 2, 1)


@dataclass(frozen=True, eq=False)
class Cloud:
    """One lesion as points in the first scan's RAS+ mm.

    Attributes:
        points_mm: (N, 3) float64, evenly drawn from its voxels.
        volume_ml: of the lesion.
        half_voxel_mm: half the size of the region that a point represents.
    """

    points_mm: np.ndarray
    volume_ml: float
    half_voxel_mm: float
    tree: spatial.KDTree = field(repr=False)

    @classmethod
    def of(cls, points_mm: np.ndarray, volume_ml: float, half_voxel_mm: float) -> Cloud:
        """Make a cloud from the positions of all its voxels."""
        # random, not every n-th: voxels come in rows
        order = np.random.default_rng(0).permutation(len(points_mm))[:_MOST_POINTS]
        drawn = np.asarray(points_mm, np.float64)[np.sort(order)]
        spread_mm = (1000 * volume_ml / len(drawn)) ** (1 / 3) / 2
        return cls(drawn, volume_ml, max(half_voxel_mm, spread_mm), spatial.KDTree(drawn))

    @property
    def center_mm(self) -> np.ndarray:
        """(3,) centre of mass."""
        return self.points_mm.mean(axis=0)

    @property
    def radius_mm(self) -> float:
        """Of the ball of the same volume."""
        return float(np.cbrt(3000 * self.volume_ml / (4 * np.pi)))

    def share_in(self, other: Cloud, shift_mm: np.ndarray | float = 0.0) -> float:
        """Share of this lesion, shifted, that overlaps another, 0 to 1."""
        near, _ = other.tree.query(self.points_mm + shift_mm, distance_upper_bound=1.8 * other.half_voxel_mm)
        return float(np.isfinite(near).mean())


def find_fragments(numbered: np.ndarray) -> dict[int, int]:
    """Specks of a mask that belong to a larger lesion beside them: no lesions of their own.

    A speck has fewer than 8 voxels, so no shape; at most one voxel within the slice lies between it and the lesion, and
    no slice. The edge of any segmentation has such specks; as new lesions they would mean progression.

    Args:
        numbered: (rows, columns, slices) int, each lesion's voxels as its number, 0 outside lesions.

    Returns:
        For each speck's number that of its lesion; of several the one with the most voxels beside it.

    Example:
        >>> lesions = np.zeros((1, 20, 1), int)
        >>> lesions[0, :9], lesions[0, 10], lesions[0, 14] = 1, 2, 3
        >>> find_fragments(lesions)
        {2: 1}
    """
    if not numbered.size:
        return {}
    sizes = np.bincount(numbered.ravel())
    found = {}
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        if box is None or sizes[number] >= _SPECK_VOXELS:
            continue
        wide = tuple(slice(max(0, b.start - r), b.stop + r) for b, r in zip(box, _SPECK_REACH, strict=True))
        near = ndimage.binary_dilation(numbered[wide] == number, np.ones([2 * r + 1 for r in _SPECK_REACH]))
        beside = np.bincount(numbered[wide][near], minlength=len(sizes))
        beside[sizes < _SPECK_VOXELS] = beside[0] = 0
        if beside.any():
            found[number] = int(beside.argmax())
    return found


@dataclass(frozen=True)
class Link:
    """A link between an earlier lesion and the lesion that it is, or is a part of, now.

    Attributes:
        before, now: their indices.
        share: the larger part of one that lies in the other, 0 to 1.
        distance_mm: between their centres after registration.
        confidence: 0 to 1: share of repetitions with the same link when lesions are shifted by the registration's
            error.
    """

    before: int
    now: int
    share: float
    distance_mm: float
    confidence: float


def link_lesions(before: list[Cloud], now: list[Cloud], error_mm: float) -> list[Link]:
    """Link lesions one to one where possible, then parts of lesions that split or merged.

    Lesions are matched by overlap and distance of their centres, relative to their size and the registration's error.
    An unmatched lesion joins one that is already linked only if most of it is inside that one.

    Args:
        before, now: lesions in one space.
        error_mm: the registration's error (its residual).

    Returns:
        Links, sorted; a lesion in none of them is new, or has vanished.
    """
    if not before or not now:
        return []
    pairs, shares, distances = _links(before, now, error_mm, np.zeros((len(now), 3)))
    rng = np.random.default_rng(0)
    again = np.zeros(shares.shape)
    for _ in range(_DRAWS):
        # the surfaces' mean distance is the error in one direction; the other two are assumed to be equal
        shift_mm = rng.normal(0, max(error_mm, 0.5), (len(now), 3))
        for pair in _links(before, now, error_mm, shift_mm)[0]:
            again[pair] += 1
    again /= _DRAWS
    return [
        Link(b, n, round(float(shares[b, n]), 3), round(float(distances[b, n]), 2), round(float(again[b, n]), 2))
        for b, n in sorted(pairs)
    ]


def _links(
    before: list[Cloud], now: list[Cloud], error_mm: float, shift_mm: np.ndarray
) -> tuple[set[tuple[int, int]], np.ndarray, np.ndarray]:
    """Pairs, and for each the share and the centres' distance."""
    part_before, part_now = np.zeros((len(before), len(now))), np.zeros((len(before), len(now)))
    distance = np.empty_like(part_now)
    reach = np.empty_like(part_now)
    for i, first in enumerate(before):
        for j, second in enumerate(now):
            distance[i, j] = np.linalg.norm(second.center_mm + shift_mm[j] - first.center_mm)
            reach[i, j] = max(first.radius_mm, second.radius_mm) + 2 * error_mm
            if distance[i, j] < 3 * (first.radius_mm + second.radius_mm) + 2 * error_mm:
                part_before[i, j] = first.share_in(second, -shift_mm[j])
                part_now[i, j] = second.share_in(first, shift_mm[j])
    share = np.maximum(part_before, part_now)
    # small lesions that don't overlap may still be the same if their centres are close enough
    score = share + 0.5 * (1 - distance / reach).clip(0)
    possible = (share >= _LEAST_SHARE) | (distance < reach)
    rows, columns = optimize.linear_sum_assignment(-np.where(possible, score, 0.0))
    pairs = {(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if possible[i, j] and score[i, j] > 0.05}
    kept, found = {i for i, _ in pairs}, {j for _, j in pairs}
    for j in set(range(len(now))) - found:
        i = int(part_now[:, j].argmax())
        if part_now[i, j] >= _SHARE_OF_PART and i in kept:
            pairs.add((i, j))
    for i in set(range(len(before))) - kept:
        j = int(part_before[i].argmax())
        if part_before[i, j] >= _SHARE_OF_PART and j in found:
            pairs.add((i, j))
    return pairs, share, distance
