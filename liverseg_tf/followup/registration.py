"""Registration of two scans of one patient by their livers, independent of the contrast phase."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import GeometryError, LiverSegError, require
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.labels import BACKGROUND

# Spacing of the grid of the deformation, and of the knots of its B-spline with and without CTs.
_GRID_MM = 3.0
# Without CTs nothing is known about the inside, so the deformation is smoother.
_KNOTS_MM = {True: 45.0, False: 80.0}
_SAMPLED = 0.04
_STEPS = 15
_MARGIN_MM = 30.0
# The signed distance to the liver's surface is cut off here, so that a resected part has no influence.
_BAND_MM = 12.0
# Registered surfaces further apart than this have no counterpart.
_LARGEST_GAP_MM = 8.0
_POINTS = 3000
# Vessels and parenchyma in any phase; everything around the liver is left out.
_HU_BELOW, _HU_ABOVE = 80.0, 140.0
# Above this the livers don't match: another patient, a wrong affine, a mask without a liver.
LARGEST_RESIDUAL_MM = 4.0
LARGEST_SHARE_AWAY = 0.2
SMALLEST_SHARE_INSIDE = 0.85
# A liver with a larger distance, and a mirror image that fits this much better, is stored flipped.
_SURELY_RIGHT_MM = 1.5
_MIRRORED = 0.7
# Largest scaling of a liver along any axis between two scans.
_LARGEST_STRETCH = 1.25


class RegistrationError(LiverSegError):
    """Two scans whose livers could not be registered."""


@dataclass(frozen=True, eq=False)
class Registration:
    """A map from positions in a later scan to those in an earlier one, in RAS+ mm.

    Attributes:
        affine: (4, 4) float64: rotation, shift and stretch.
        displacement_mm: (I, J, K, 3) float32 on an even grid along the axes of RAS+: what is added after `affine`;
            beyond the grid, the value at its border.
        origin_mm: place of the grid's first point in the later scan.
        spacing_mm: of that grid.
        residual_mm: mean distance of the livers' surfaces afterwards, where they have a counterpart.
        share_away: share of the later liver's surface without counterpart: a cut surface after a resection.
        share_inside: part of the smaller liver that lies in the other afterwards.
        used_hu: whether the deformation was computed from the CTs, or from the masks alone.
    """

    affine: np.ndarray
    displacement_mm: np.ndarray
    origin_mm: np.ndarray
    spacing_mm: float
    residual_mm: float
    share_away: float
    share_inside: float
    used_hu: bool

    def __call__(self, places_mm: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in the later scan -> the same positions in the earlier one, mm."""
        places_mm = np.asarray(places_mm, np.float64)
        index = ((places_mm - self.origin_mm) / self.spacing_mm).T
        moved = _apply(self.affine, places_mm)
        for axis in range(3):
            moved[:, axis] += ndimage.map_coordinates(
                self.displacement_mm[..., axis], index, order=1, mode="nearest", output=np.float64
            )
        return moved

    def back(self, places_mm: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in the earlier scan -> the same in the later one, mm, by iteration to 0.01 mm."""
        places_mm = np.asarray(places_mm, np.float64)
        inverse = np.linalg.inv(self.affine)
        found = _apply(inverse, places_mm)
        for _ in range(30):
            step = (places_mm - self(found)) @ inverse[:3, :3].T
            found = found + step
            if np.abs(step).max(initial=0.0) < 0.01:
                break
        return found

    def to_dict(self) -> dict[str, Any]:
        """Quality of the registration and its linear part, for JSON."""
        grid = self.displacement_mm.reshape(-1, 3)
        return {
            "residual_mm": round(self.residual_mm, 3),
            "share_of_surface_without_counterpart": round(self.share_away, 4),
            "share_of_smaller_liver_inside": round(self.share_inside, 4),
            "affine_later_to_earlier_ras_mm": self.affine.round(6).tolist(),
            "largest_deformation_mm": round(float(np.linalg.norm(grid, axis=1).max(initial=0.0)), 2),
            "by": "CT and liver" if self.used_hu else "liver's shape",
        }


def register(
    earlier: MaskVolume, later: MaskVolume, earlier_ct: CTVolume | None = None, later_ct: CTVolume | None = None
) -> Registration:
    """Find the map from a later scan to an earlier one.

    First the livers' surfaces are aligned by rotation and translation, then also by a small scaling, both by robust
    least squares over signed distances, for which a resected lobe is an outlier. Then a B-spline (SimpleITK) models
    breathing, by mutual information of the CTs within the liver, so that contrast phases may differ; without CTs only
    the liver's shape is used.

    Args:
        earlier, later: masks of one patient, each on its own grid.
        earlier_ct, later_ct: their CTs, both or none.

    Raises:
        RegistrationError: if a mask holds no liver, or the livers don't match.
        GeometryError: for a CT on another grid than its mask.
        MissingDependencyError: without SimpleITK.
    """
    for mask, name in ((earlier, "earlier"), (later, "later")):
        if not (mask.organ_labels != BACKGROUND).any():
            organ = mask.classes.organ
            raise RegistrationError(f"{mask.path or f'{name} mask'}: expected a {organ} to register by, got none")
    fixed = _Liver(later, str(later.path or "later scan"))
    moving = _Liver(earlier, str(earlier.path or "earlier scan"))
    affine = _align(fixed, moving)
    _check(affine, None, fixed, moving, later, earlier)
    cts = None if earlier_ct is None or later_ct is None else (later_ct, earlier_ct)
    if _same(earlier, later, by_liver=cts is None) and np.allclose(affine, np.eye(4), atol=1e-3):
        field = np.zeros((2, 2, 2, 3), np.float32)
        return Registration(np.eye(4), field, fixed.origin_mm, _GRID_MM, 0.0, 0.0, 1.0, False)
    for ct, mask in zip(cts or (), (later, earlier), strict=False):
        if ct.shape != mask.shape:
            raise GeometryError(f"{ct.name}: expected the mask's shape {mask.shape}, got {ct.shape}")
    displacement = _deform(fixed, moving, affine, cts)
    figures = _check(affine, displacement, fixed, moving, later, earlier)
    return Registration(affine, displacement, fixed.origin_mm, _GRID_MM, *figures, cts is not None)


class _Liver:
    """A liver on an even grid along RAS+: its signed distance in mm, negative inside."""

    def __init__(self, mask: MaskVolume, name: str):
        from edt import edt

        organ = mask.organ_labels != BACKGROUND
        box = bounding_box(organ)
        assert box is not None
        # a step along an axis is at least this long in a sheared grid too
        steps = np.diag(mask.geometry.steps_mm)
        margin = np.ceil(_MARGIN_MM / steps).astype(int)
        # the liver may end at the file's border; beyond it, background is assumed
        inside = np.pad(organ[box], [(m, m) for m in margin])
        spacing = tuple(map(float, steps))
        signed = edt(~inside, anisotropy=spacing, parallel=1) - edt(inside, anisotropy=spacing, parallel=1)
        self.organ, self.name = mask.classes.organ, name
        self.first = np.array([b.start for b in box]) - margin
        self.affine = mask.geometry.canonical_affine
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in inside.shape], indexing="ij")).reshape(3, -1).T
        corners_mm = _apply(self.affine, corners + self.first)
        self.origin_mm = corners_mm.min(axis=0)
        self.shape = tuple(np.ceil(np.ptp(corners_mm, axis=0) / _GRID_MM).astype(int) + 1)
        self.signed_mm = self._from_middles(self.sample(signed, self.first, order=1, beyond=_MARGIN_MM))

    def _from_middles(self, signed_mm: np.ndarray) -> np.ndarray:
        """Distances between the centres of voxels -> distances to the surface, which lies midway between two."""
        normal = np.stack(np.gradient(signed_mm), axis=-1)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
        half = np.linalg.norm(normal @ self.affine[:3, :3].astype(np.float32), axis=-1) / 2
        far = np.abs(signed_mm) > 2 * half
        return np.where(far, signed_mm - np.sign(signed_mm) * half, signed_mm / 2).astype(np.float32)

    def sample(self, array: np.ndarray, first: np.ndarray, order: int, beyond: float) -> np.ndarray:
        """Resample an array of the file's canonical grid, which begins at voxel `first`, to the even grid."""
        to_index = np.linalg.inv(self.affine)
        matrix = to_index[:3, :3] * _GRID_MM
        offset = _apply(to_index, self.origin_mm[None])[0] - first
        return ndimage.affine_transform(
            array.astype(np.float32), matrix, offset, self.shape, order=order, mode="constant", cval=beyond
        )

    def at(self, places_mm: np.ndarray) -> np.ndarray:
        """Signed distance at positions (N, 3)."""
        index = ((places_mm - self.origin_mm) / _GRID_MM).T
        return ndimage.map_coordinates(self.signed_mm, index, order=1, mode="constant", cval=_MARGIN_MM)

    def mirrored(self, axis: int) -> _Liver:
        """The liver's mirror image along an axis of RAS+."""
        other = copy.copy(self)
        other.signed_mm = np.flip(self.signed_mm, axis)
        return other

    def places(self, index: np.ndarray) -> np.ndarray:
        return index * _GRID_MM + self.origin_mm

    def band(self, width_mm: float, most: int = _POINTS) -> np.ndarray:
        """Evenly drawn positions (N, 3) near the surface."""
        index = np.argwhere(np.abs(self.signed_mm) < width_mm)
        return self.places(index[:: max(1, len(index) // most)])


def _align(fixed: _Liver, moving: _Liver) -> np.ndarray:
    """(4, 4) from the later scan to the earlier: rotation and translation, then also scaling and shear.

    Raises:
        RegistrationError: if the later liver fits far better as its own mirror image.
    """
    whole, off_mm = _fit_matrix(fixed, moving)
    if off_mm > _SURELY_RIGHT_MM:
        for axis, words in enumerate(("left and right", "front and back", "head and feet")):
            _, mirrored_mm = _fit_matrix(fixed.mirrored(axis), moving, stretch=False)
            if mirrored_mm < _MIRRORED * off_mm:
                raise RegistrationError(
                    f"{fixed.name}: its {fixed.organ} could not be registered to that of {moving.name} "
                    f"({off_mm:.1f} mm off), but its mirror image could ({mirrored_mm:.1f} mm): {words} are "
                    "exchanged in one of the files; correct its affine"
                )
    return whole


def _fit_matrix(fixed: _Liver, moving: _Liver, stretch: bool = True) -> tuple[np.ndarray, float]:
    """(4, 4), and the mean distance of the surfaces after rotation and translation alone, in mm."""
    centre = np.mean(fixed.places(np.argwhere(fixed.signed_mm < 0)), axis=0)
    target = np.mean(moving.places(np.argwhere(moving.signed_mm < 0)), axis=0)
    near, far = fixed.band(6.0), moving.band(6.0)
    near_mm, far_mm = fixed.at(near), moving.at(far)

    def matrix(values: np.ndarray) -> np.ndarray:
        linear = Rotation.from_rotvec(values[:3]).as_matrix()
        if len(values) > 6:
            stretch = np.array([[values[6], values[9], values[10]], [values[9], values[7], values[11]], [0, 0, 0]])
            stretch[2] = values[10], values[11], values[8]
            linear = linear @ (np.eye(3) + stretch)
        whole = np.eye(4)
        whole[:3, :3] = linear
        whole[:3, 3] = centre + values[3:6] - linear @ centre
        return whole

    def misfit(values: np.ndarray, width_mm: float) -> np.ndarray:
        def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return first.clip(-width_mm, width_mm) - second.clip(-width_mm, width_mm)

        whole = matrix(values)
        back = np.linalg.inv(whole)
        # both directions, or one liver could shrink into the other; the later surface has more weight, as parts
        # resected since have no counterpart
        parts = [
            between(moving.at(_apply(whole, near)), near_mm),
            0.5 * between(fixed.at(_apply(back, far)), far_mm),
        ]
        if len(values) > 6:
            # scaling by 10 % costs as much as a distance of 1 mm everywhere
            parts.append(values[6:] * 10 * np.sqrt(len(near)) / np.sqrt(6))
        return np.concatenate(parts)

    def solve(start: np.ndarray, width_mm: float, steps: int) -> optimize.OptimizeResult:
        scale = np.r_[np.full(3, 0.02), np.full(3, 1.0), np.full(len(start) - 6, 0.02)]
        return optimize.least_squares(
            misfit, start, loss="soft_l1", f_scale=2.0, x_scale=scale, diff_step=1e-3, max_nfev=steps, args=(width_mm,)
        )

    # the scanner's own coordinates, and centres aligned: the better start is used
    starts = [np.zeros(6), np.r_[np.zeros(3), target - centre]][0 if stretch else 1 :]
    found = min((solve(start, _MARGIN_MM, 30) for start in starts), key=lambda one: one.cost)
    found = solve(found.x, _BAND_MM, 30)
    off_mm = float(np.abs(misfit(found.x, _BAND_MM)[: len(near)]).mean())
    if stretch:
        found = solve(np.r_[found.x, np.zeros(6)], _BAND_MM, 30)
    return matrix(found.x), off_mm


def _deform(fixed: _Liver, moving: _Liver, affine: np.ndarray, cts: tuple[CTVolume, CTVolume] | None) -> np.ndarray:
    """(I, J, K, 3) float32 displacement that is added after `affine`, on the later scan's even grid."""
    sitk = require("SimpleITK", "compare", "registration of two scans")
    pictures = [_picture(sitk, liver, ct) for liver, ct in zip((fixed, moving), cts or (None, None), strict=True)]
    # parts that were resected or cut by the field of view have no counterpart and must have no influence
    grid = fixed.places(np.indices(fixed.shape).reshape(3, -1).T)
    counterpart = moving.at(_apply(affine, grid)).reshape(fixed.shape).clip(-_BAND_MM, _BAND_MM)
    paired = np.abs(counterpart - fixed.signed_mm.clip(-_BAND_MM, _BAND_MM)) < _LARGEST_GAP_MM
    near = sitk.GetImageFromArray(((fixed.signed_mm < _BAND_MM) & paired).astype(np.uint8).transpose(2, 1, 0))
    near.CopyInformation(pictures[0])
    linear = sitk.AffineTransform(affine[:3, :3].ravel().tolist(), affine[:3, 3].tolist())
    size_mm = np.array(fixed.shape) * _GRID_MM
    mesh = np.maximum(1, np.round(size_mm / _KNOTS_MM[bool(cts)])).astype(int).tolist()
    spline = sitk.BSplineTransformInitializer(pictures[0], mesh, 3)
    method = sitk.ImageRegistrationMethod()
    if cts:
        method.SetMetricAsMattesMutualInformation(32)
    else:
        method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(near)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMovingInitialTransform(linear)
    method.SetInitialTransform(spline, inPlace=True)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([_GRID_MM, _GRID_MM / 2])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetOptimizerAsLBFGSB(1e-5, _STEPS, 5, 2 * _STEPS, 1e7)
    method.SetNumberOfThreads(1)  # several threads would change the order of sums
    try:
        method.Execute(pictures[0], pictures[1])
    except RuntimeError as error:
        raise RegistrationError(f"registration: SimpleITK failed ({str(error).strip().splitlines()[-1]})") from None
    field = sitk.TransformToDisplacementField(
        spline, sitk.sitkVectorFloat64, pictures[0].GetSize(), pictures[0].GetOrigin(), pictures[0].GetSpacing()
    )
    before = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)
    # the spline comes before the affine, so its displacement is rotated and scaled by it
    return (before @ affine[:3, :3].T).astype(np.float32)


def _picture(sitk: Any, liver: _Liver, ct: CTVolume | None) -> Any:
    """The image to register: the liver's HU on a dark background; without a CT, the distance to its surface."""
    if ct is None:
        values = liver.signed_mm.clip(-_BAND_MM, _BAND_MM)
    else:
        smooth = [0.5 * _GRID_MM / s for s in ct.spacing_mm]
        low = np.maximum(liver.first, 0)
        # as much of the CT as the grid covers
        count = [int(np.ceil(n * _GRID_MM / s)) + 2 for n, s in zip(_along(liver), ct.spacing_mm, strict=True)]
        high = np.minimum(low + count, ct.shape)
        part = np.moveaxis(ct.slices(int(low[2]), int(high[2])), 0, 2)[low[0] : high[0], low[1] : high[1]]
        hu = liver.sample(ndimage.gaussian_filter(part, [min(s, 4.0) for s in smooth]), low, 1, -1000.0)
        inside = liver.signed_mm < 0
        level = float(np.median(hu[inside]))
        hu = hu.clip(level - _HU_BELOW, level + _HU_ABOVE)
        # the background darkens gradually, so that its gradient also acts at a distance
        ground = level - _HU_BELOW - 4 * liver.signed_mm.clip(0, _BAND_MM)
        share = (liver.signed_mm / _GRID_MM + 0.5).clip(0, 1)
        values = hu * (1 - share) + ground * share
    picture = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0), np.float32))
    picture.SetOrigin(liver.origin_mm.tolist())
    picture.SetSpacing([_GRID_MM] * 3)
    return picture


def _along(liver: _Liver) -> np.ndarray:
    """Extent of the even grid along the file's canonical axes, in steps of the even grid."""
    unit = liver.affine[:3, :3] / np.linalg.norm(liver.affine[:3, :3], axis=0)
    return np.abs(unit).T @ np.array(liver.shape)


def _check(
    affine: np.ndarray,
    displacement: np.ndarray | None,
    fixed: _Liver,
    moving: _Liver,
    later: MaskVolume,
    earlier: MaskVolume,
) -> tuple[float, float, float]:
    """Residual, share away and share inside.

    Raises:
        RegistrationError: if one of them is out of range.
    """
    field = np.zeros((1, 1, 1, 3), np.float32) if displacement is None else displacement
    transform = Registration(affine, field, fixed.origin_mm, _GRID_MM, 0.0, 0.0, 0.0, False)
    edge = fixed.band(0.7 * _GRID_MM)
    misfit = np.abs(moving.at(transform(edge)) - fixed.at(edge))
    paired = misfit < _BAND_MM
    away = 1 - float(paired.mean())
    residual = float(misfit[paired].mean()) if paired.any() else float("inf")
    inside = fixed.places(np.argwhere(fixed.signed_mm < 0))
    shared = float((moving.at(transform(inside)) < 0).mean())
    volumes = [float(np.count_nonzero(m.organ_labels) * m.voxel_volume_ml) for m in (later, earlier)]
    shared *= volumes[0] / min(volumes)
    stretch = np.linalg.svd(affine[:3, :3], compute_uv=False)
    bad = residual > LARGEST_RESIDUAL_MM * (2 if displacement is None else 1)
    if (
        bad
        or away > LARGEST_SHARE_AWAY
        or shared < SMALLEST_SHARE_INSIDE - (0.1 if displacement is None else 0)
        or stretch.max() > _LARGEST_STRETCH
        or stretch.min() < 1 / _LARGEST_STRETCH
    ):
        raise RegistrationError(
            f"{later.path or 'later mask'}: its {later.classes.organ} could not be registered to that of "
            f"{earlier.path or 'earlier mask'} "
            f"(surfaces {residual:.1f} mm apart, {100 * away:.0f} % of the surface without counterpart, "
            f"{100 * min(shared, 1.0):.0f} % shared, stretched {stretch.min():.2f} to {stretch.max():.2f} times): "
            "expected scans of one patient with correct affines; check both for a flip, a lost affine or a wrong mask"
        )
    return residual, away, min(shared, 1.0)


def _same(first: MaskVolume, second: MaskVolume, by_liver: bool) -> bool:
    """Whether nothing moved between them, as far as is seen: by the liver's shape, or by all labels."""
    if not first.geometry.matches(second.geometry):
        return False
    if by_liver:
        return np.array_equal(first.organ_labels != BACKGROUND, second.organ_labels != BACKGROUND)
    return np.array_equal(first.labels, second.labels)


def _apply(affine: np.ndarray, places: np.ndarray) -> np.ndarray:
    return places @ affine[:3, :3].T + affine[:3, 3]
