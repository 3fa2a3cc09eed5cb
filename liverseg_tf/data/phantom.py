"""CT phantoms: abdomens made of smooth implicit functions with exact labels, written as LiTS-style pairs.

Anatomy is defined in millimetres (x to the patient's left, y to the back, z to the head; z = 0 at the top of the
right diaphragm) and drawn from the seed only, so a seed gives the same patient at any matrix size. Each organ is a
signed distance (negative inside) evaluated on coordinate grids; its edge is blurred over one voxel, like the partial
volume effect.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy.spatial.transform import Rotation

from liverseg_tf.data.volume import Geometry
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.labels import LIVER, TUMOUR
from liverseg_tf.ownership import claim, claim_folder, owned_write, save_image

DEFAULT_SHAPE = (128, 128, 40)
_SMALLEST_SHAPE = (32, 32, 8)
# Voxels drawn at a time, to keep intermediate arrays small.
_SLAB_VOXELS = 2_000_000
# In a row: a condition that no phantom meets must end.
_MOST_REFUSED = 1000


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic patient.

    Attributes:
        hu: (rows, columns, slices) int16 Hounsfield units; rows run anterior to posterior, columns from the
            patient's right to left, slices inferior to superior.
        labels: the same shape, uint8: 0 background, 1 liver, 2 tumour. Exact: from the same geometry as `hu`.
        spacing_mm: true voxel size (row, column, slice) in mm.
        geometry: grid of the file. For some patients its affine is the identity, as in LiTS 28 to 47, and the file
            lacks the spacing.
        description: JSON-able facts: phase, noise, padding, orientation, spacing, liver HU and volume, tumours.

    Examples:
        >>> phantom = make_phantom(0, shape=(64, 64, 20))
        >>> phantom.description["phase"], phantom.affine.shape
        ('arterial', (4, 4))
    """

    hu: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    spacing_mm: tuple[float, float, float]
    geometry: Geometry
    description: dict[str, Any]

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64 affine of the file."""
        return self.geometry.affine


def make_phantom(seed: int | Sequence[int], shape: tuple[int, int, int] = DEFAULT_SHAPE) -> Phantom:
    """Make one CT phantom of the abdomen.

    Args:
        seed: decides everything except the shape; the same seed gives the same patient in any shape.
        shape: (rows, columns, slices). The field of view belongs to the patient, so the shape determines the spacing.

    Returns:
        The phantom, with its exact labels.

    Raises:
        ConfigError: for a shape of fewer than 32 x 32 x 8 voxels.

    Examples:
        >>> phantom = make_phantom(0, shape=(64, 64, 20))
        >>> phantom.hu.shape, phantom.labels.dtype
        ((64, 64, 20), dtype('uint8'))
    """
    if len(shape) != 3 or any(int(n) != n or n < least for n, least in zip(shape, _SMALLEST_SHAPE, strict=True)):
        raise ConfigError(f"shape: expected (rows, columns, slices), at least {_SMALLEST_SHAPE}. Received: {shape}")
    rows, columns, slices = (int(n) for n in shape)
    rng = np.random.default_rng(seed)
    patient = _Patient(rng)
    scan = _Scan(rng, patient)

    grid, spacing_mm = scan.grid(rows, columns, slices)
    hu = np.empty((slices, rows, columns), np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    tumour_voxels = np.zeros(len(patient.lesions), int)
    step = max(1, _SLAB_VOXELS // (rows * columns))
    for start in range(0, slices, step):
        slab = slice(start, start + step)
        canvas = _Canvas(_Grid(grid.z[slab], grid.y, grid.x), scan.air_hu)
        _draw_table(canvas, scan)
        cavity = _draw_trunk(canvas, patient)
        _draw_organs(canvas, patient, cavity)
        tumour_voxels += _draw_liver(canvas, patient, cavity, labels[slab])
        _draw_spine(canvas, patient)
        canvas.hu += scan.noise_hu * _detector_noise(rng, canvas.hu.shape)
        hu[slab] = np.rint(np.clip(canvas.hu, *HU_RANGE))
    if scan.padding_hu is not None:
        hu[:, scan.outside(grid)[0]] = scan.padding_hu

    voxel_ml = math.prod(spacing_mm) / 1000
    description = {
        "phase": patient.phase,
        "noise_hu": round(scan.noise_hu, 1),
        "padding_hu": scan.padding_hu,
        "orientation": scan.orientation,
        "spacing_mm": [round(s, 4) for s in spacing_mm],
        "liver_hu": round(patient.hu["liver"], 1),
        "liver_ml": round(int(np.count_nonzero(labels)) * voxel_ml, 1),
        "tumours": [
            {"kind": lesion.kind, "diameter_mm": round(lesion.diameter_mm, 1), "volume_ml": round(count * voxel_ml, 2)}
            for lesion, count in zip(patient.lesions, tumour_voxels.tolist(), strict=True)
            if count
        ],
    }
    geometry = _geometry(scan.orientation, grid, spacing_mm)
    return Phantom(np.moveaxis(hu, 0, 2), np.moveaxis(labels, 0, 2), spacing_mm, geometry, description)


def write_phantoms(
    folder: str | Path,
    cases: int,
    seed: int = 0,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    dicom: bool = False,
    accept: Callable[[dict[str, Any]], bool] | None = None,
) -> list[dict[str, Any]]:
    """Write LiTS-style pairs `volume-<i>.nii.gz` and `segmentation-<i>.nii.gz`.

    With `dicom` the CT is a folder `volume-<i>` of axial slices; its mask is still a NIfTI file. All files have their
    true spacing: phantoms whose grid `make_phantom` leaves without one are stored as RAS.

    Args:
        folder: made if missing. Phantoms of an earlier call are replaced.
        cases: number of phantoms; they are numbered from 0.
        seed: of the set; case i is `make_phantom((seed, i), shape)`, except for a lost grid, or for `accept`.
        shape: (rows, columns, slices) of each.
        progress: called with the number of cases written and their total.
        overwrite: replace files of these names that are not this library's phantoms, or were changed since; never
            folders.
        dicom: write the CTs as DICOM series; needs the extra `[dicom]`.
        accept: given `Phantom.description`; a phantom for which it is False is passed over, and the next one is taken.

    Returns:
        A row for each case: its `id` and the entries of `Phantom.description`.

    Raises:
        ConfigError: for fewer than one case, a negative seed, a shape too small, or an `accept` that refuses a thousand
            phantoms in a row.
        OutputError: if a file of one of these names is not a phantom of this library (checked before anything is
            written), or can't be written.

    Examples:
        >>> [row["id"] for row in write_phantoms("phantoms", cases=2, shape=(64, 64, 16))]
        [0, 1]
    """
    folder = Path(folder)
    if cases < 1:
        raise ConfigError(f"cases: expected at least 1 phantom to write, got {cases}")
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {seed}")
    ends = {"volume": "" if dicom else ".nii.gz", "segmentation": ".nii.gz"}
    pairs = [[folder / f"{kind}-{i}{end}" for kind, end in ends.items()] for i in range(cases)]
    for path in sum(pairs, []):
        if path.suffix:
            claim(path, "phantom", overwrite=overwrite)
        else:
            claim_folder(path, "phantom")
    rows = []
    for i, (paths, phantom) in enumerate(zip(pairs, _accepted(seed, shape, accept), strict=False)):
        if phantom.geometry.is_identity_affine:
            phantom = _with_its_grid(phantom)
        if dicom:
            phantom = dataclasses.replace(phantom, geometry=_axial(phantom))
            _save_series(phantom, paths[0], (seed, i))
        else:
            save_image(_image(phantom, phantom.hu), paths[0], "phantom", overwrite=overwrite)
        save_image(_image(phantom, phantom.labels), paths[1], "phantom", overwrite=overwrite)
        rows.append({"id": i, **phantom.description})
        if progress is not None:
            progress(i + 1, cases)
    return rows


def _accepted(
    seed: int, shape: tuple[int, int, int], accept: Callable[[dict[str, Any]], bool] | None
) -> Iterator[Phantom]:
    refused = 0
    for i in itertools.count():
        phantom = make_phantom((seed, i), shape)
        if accept is None or accept(phantom.description):
            refused = 0
            yield phantom
        elif (refused := refused + 1) == _MOST_REFUSED:
            raise ConfigError(f"accept: expected it to be true for some phantom, it was false for {refused} in a row")


def _with_its_grid(phantom: Phantom) -> Phantom:
    """A phantom whose affine is the identity, stored as RAS with its true spacing."""
    shape = phantom.hu.shape
    canonical = Geometry.from_spacing(shape, phantom.spacing_mm).affine
    turn = orientations.ornt_transform(orientations.axcodes2ornt("PLS"), orientations.axcodes2ornt("RAS"))
    geometry = Geometry(phantom.geometry.shape, canonical @ orientations.inv_ornt_aff(turn, shape))
    return dataclasses.replace(phantom, geometry=geometry, description={**phantom.description, "orientation": "RAS"})


def _axial(phantom: Phantom) -> Geometry:
    """The grid as a scanner stores it: columns to the left, rows to the back, slices to the head, true spacing."""
    rows, columns, slices = phantom.hu.shape
    canonical = Geometry.from_spacing(phantom.hu.shape, phantom.spacing_mm)
    return Geometry((columns, rows, slices), canonical.affine[:, [1, 0, 2, 3]])


def _save_series(phantom: Phantom, folder: Path, seed: tuple[int, int]) -> None:
    from liverseg_tf.data.dicom.writing import write_series

    with owned_write(folder, "phantom", folder=True) as temporary:
        temporary.mkdir()
        write_series(
            phantom.geometry.to_file(phantom.hu),
            phantom.affine,
            temporary,
            patient=f"PHANTOM {seed[1]}",
            description="Abdomen, phantom",  # without a phase, which `verify` would compare with the models'
            seed=(*seed, phantom.hu.shape),
        )


def _image(phantom: Phantom, array: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.asfortranarray(phantom.geometry.to_file(array)), phantom.affine)
    image.set_sform(phantom.affine, code=1)
    image.set_qform(phantom.affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _geometry(orientation: str, grid: _Grid, spacing_mm: tuple[float, float, float]) -> Geometry:
    """Grid of the file; `orientation` is three axis letters, or "identity" for RAS with a lost affine."""
    shape = (grid.y.size, grid.x.size, grid.z.size)
    # nibabel's world is RAS+; our x runs to the left and y to the back.
    canonical = np.array(
        [
            [0, -spacing_mm[1], 0, -grid.x[0, 0, 0]],
            [-spacing_mm[0], 0, 0, -grid.y[0, 0, 0]],
            [0, 0, spacing_mm[2], grid.z[0, 0, 0]],
            [0, 0, 0, 1],
        ],
        np.float64,
    )
    codes = "RAS" if orientation == "identity" else orientation
    turn = orientations.ornt_transform(orientations.axcodes2ornt("PLS"), orientations.axcodes2ornt(codes))
    affine = np.eye(4) if orientation == "identity" else canonical @ orientations.inv_ornt_aff(turn, shape)
    first, second, third = (shape[i] for i in np.argsort(turn[:, 0]))
    return Geometry((first, second, third), affine)


# --- Shapes: `shape(grid)` is a signed distance in mm, `shape.box` its low and high corner (x, y, z) ------------------


@dataclass(frozen=True)
class _Grid:
    """Coordinates in mm, float32, to be broadcast: z (nz, 1, 1), y (1, ny, 1), x (1, 1, nx)."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> _Grid:
        z, y, x = (np.asarray(axis, np.float32) for axis in (z, y, x))
        return cls(z[:, None, None], y[None, :, None], x[None, None, :])

    def crop(self, low: np.ndarray, high: np.ndarray) -> tuple[tuple[slice, ...], _Grid]:
        """Index and grid of a box."""
        index = tuple(
            slice(*np.searchsorted(axis.ravel(), (a, b)))
            for axis, a, b in zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True)
        )
        return index, _Grid(self.z[index[0]], self.y[:, index[1]], self.x[:, :, index[2]])

    def relative_to(self, center) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and z from a centre (x, y, z)."""
        x, y, z = (axis - np.float32(c) for axis, c in zip((self.x, self.y, self.z), center, strict=True))
        return x, y, z


class _Noise:
    """Smooth random field of about unit variance: a random lattice interpolated by cubic B-splines."""

    def __init__(self, rng, scale_mm: float, low=(-300, -300, -500), high=(300, 300, 250)):
        self.scale_mm, self.low = scale_mm, np.asarray(low, float)
        count = np.ceil((np.asarray(high) - self.low) / scale_mm).astype(int) + 4
        # A cubic B-spline leaves a standard deviation of about 0.69 on each axis.
        self.lattice = rng.standard_normal(count[::-1], dtype=np.float32) / np.float32(0.69**3)

    def __call__(self, grid: _Grid) -> np.ndarray:
        (z, zs), (y, ys), (x, xs) = (self._basis(c, axis) for axis, c in enumerate((grid.z, grid.y, grid.x)))
        # einsum, not a matrix product: BLAS threads are slow while other programs use the cores.
        field = np.einsum("xk,abk->abx", x, self.lattice[zs, ys, xs])
        field = np.einsum("yk,akx->ayx", y, field)
        return np.einsum("zk,kyx->zyx", z, field)

    def _basis(self, coordinates: np.ndarray, axis: int) -> tuple[np.ndarray, slice]:
        """Cubic B-splines (coordinates, knots) of the needed knots, and the indices of these knots."""
        last = self.lattice.shape[axis] - 3
        position = (coordinates.ravel() - np.float32(self.low[2 - axis])) / np.float32(self.scale_mm) + 1
        position = np.clip(position, 1, last)  # constant beyond the ends
        knots = slice(int(position.min(initial=last)) - 1, int(position.max(initial=1)) + 3)
        away = np.abs(position[:, None] - np.arange(knots.start, knots.stop, dtype=np.float32))
        return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6), knots


class _Ellipsoid:
    """Rotated ellipsoid, its surface roughened by a smooth field of `roughness_mm`."""

    def __init__(self, center, radii, angles=(0.0, 0.0, 0.0), rng=None, roughness_mm: float = 0.0):
        self.center, self.radii, self.roughness_mm = np.asarray(center, float), np.asarray(radii, float), roughness_mm
        turn = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
        self.form = (turn @ np.diag(self.radii**-2.0) @ turn.T).astype(np.float32)
        extent = np.sqrt(turn**2 @ self.radii**2) + 2 * roughness_mm + 4
        self.box = self.center - extent, self.center + extent
        if roughness_mm:
            self.noise = _Noise(rng, max(6.0, 0.7 * float(self.radii.min())), *self.box)

    def __call__(self, grid: _Grid) -> np.ndarray:
        f = self.form
        x, y, z = grid.relative_to(self.center)
        rho_squared = (2 * f[0, 2] * x + 2 * f[1, 2] * y) * z
        rho_squared += f[0, 0] * x * x + 2 * f[0, 1] * x * y + f[1, 1] * y * y
        rho_squared += f[2, 2] * z * z
        distance = _radial((x * x + y * y) + z * z, rho_squared)
        if self.roughness_mm:
            distance += self.roughness_mm * self.noise(grid)
        return distance


class _Column:
    """Elliptic cylinder along the body; its centre and radii are numbers or functions of z."""

    def __init__(self, x, y, radius_x, radius_y, bottom: float = -500.0, top: float = 250.0):
        self.of_z, self.bottom, self.top = (x, y, radius_x, radius_y), bottom, top
        x, y, radius_x, radius_y = self._at(np.linspace(bottom, top, 60))
        low = np.array([np.min(x - radius_x), np.min(y - radius_y), bottom])
        high = np.array([np.max(x + radius_x), np.max(y + radius_y), top])
        self.box = low - 4, high + 4

    def _at(self, z: np.ndarray) -> Iterator[np.ndarray]:
        return (np.asarray(f(z) if callable(f) else f, np.float32) for f in self.of_z)

    def __call__(self, grid: _Grid) -> np.ndarray:
        x, y, radius_x, radius_y = self._at(grid.z)
        x, y = grid.x - x, grid.y - y
        distance = _radial(x**2 + y**2, (x / radius_x) ** 2 + (y / radius_y) ** 2)
        return np.maximum(distance, np.maximum(np.float32(self.bottom) - grid.z, grid.z - np.float32(self.top)))


class _Tube:
    """Straight vessel from `start` to `end` whose radius changes along the way."""

    def __init__(self, start, end, start_radius: float, end_radius: float):
        self.start, self.way = np.asarray(start, np.float32), np.asarray(end, np.float32) - np.float32(start)
        self.start_radius, self.growth = np.float32(start_radius), np.float32(end_radius - start_radius)
        margin = max(start_radius, end_radius) + 4
        self.box = np.minimum(start, end) - margin, np.maximum(start, end) + margin

    def __call__(self, grid: _Grid) -> np.ndarray:
        x, y, z = grid.relative_to(self.start)
        a, b, c = self.way
        t = np.clip((a * x + b * y + c * z) / (self.way @ self.way), 0, 1)
        return np.sqrt((x - t * a) ** 2 + (y - t * b) ** 2 + (z - t * c) ** 2) - (self.start_radius + self.growth * t)


class _Union:
    """Union of shapes with a fillet of `fillet_mm`."""

    def __init__(self, *parts, fillet_mm: float):
        self.parts, self.fillet_mm = parts, fillet_mm
        self.box = np.min([p.box[0] for p in parts], 0), np.max([p.box[1] for p in parts], 0)

    def __call__(self, grid: _Grid) -> np.ndarray:
        distance = self.parts[0](grid)
        for part in self.parts[1:]:
            distance = _smooth_min(distance, part(grid), self.fillet_mm)
        return distance


def _radial(radius_squared: np.ndarray, rho_squared: np.ndarray) -> np.ndarray:
    """Distance along the ray from the centre to the surface rho = 1, from squares."""
    distance = radius_squared / np.maximum(rho_squared, np.float32(1e-9))
    np.sqrt(distance, out=distance)
    return np.sqrt(radius_squared) - distance


def _smooth_max(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Intersection of two shapes with a rounded edge (Quilez's polynomial smooth maximum)."""
    blend = np.subtract(a, b)
    np.abs(blend, out=blend)
    np.subtract(np.float32(width_mm), blend, out=blend)
    np.maximum(blend, 0, out=blend)
    blend *= blend
    blend *= np.float32(1 / (4 * width_mm))
    blend += np.maximum(a, b)
    return blend


def _smooth_min(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Union of two shapes with a fillet."""
    return -_smooth_max(-a, -b, width_mm)


# --- Anatomy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hollow:
    """A hollow organ: wall, content (mottled by `mottle_hu`), and gas where y < gas_y, as the patient is supine."""

    shape: Callable
    wall_hu: float
    wall_mm: float
    content_hu: float
    mottle_hu: float = 0.0
    gas_y: float = -math.inf


@dataclass(frozen=True)
class _Lesion:
    """A tumour."""

    shape: _Ellipsoid
    kind: str
    diameter_mm: float
    contrast_hu: float
    edge_mm: float


class _Patient:
    """Everything that the seed decides about a patient, before any voxel."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        u = rng.uniform
        self.half_width, self.half_depth = u(122, 162), u(84, 116)  # of the muscle wall, mm
        # Scale of this patient relative to the mean anatomy, in which the organs below are defined
        self.sx, self.sy = self.half_width / 145, self.half_depth / 100
        self.sz = float(np.clip(rng.normal(1, 0.08), 0.84, 1.18))
        self.size = (self.sx * self.sy * self.sz) ** (1 / 3)
        self.fat_mm = float(np.clip(rng.lognormal(2.7, 0.6), 4, 42))
        self.muscle_mm = u(10, 17)
        self.squareness = u(2.1, 2.9)
        self.shape_noise, self.fat_noise, self.cavity_noise, self.texture = (_Noise(rng, s) for s in (90, 60, 55, 9))
        self.spine_depth, self.spine_phase, self.rib_offset = self.half_depth - u(56, 66), u(0, 2 * math.pi), u(0, 27)
        self.dome_depth = u(40, 58)
        self.dome_x, self.dome_y = -u(60, 74) * self.sx, u(-12, 8) * self.sy
        self.left_dome, self.saddle = -u(5, 28), -u(16, 32)
        self._choose_tissues()
        self._place_organs()
        self._place_vessels()
        self._place_lesions()

    def _choose_tissues(self) -> None:
        """HU of each tissue, by contrast phase."""
        rng, u, n = self.rng, self.rng.uniform, self.rng.normal
        self.phase = str(rng.choice(("portal venous", "arterial", "unenhanced"), p=(0.76, 0.14, 0.1)))
        steatosis = u(10, 45) if rng.random() < 0.2 else 0.0
        if self.phase == "portal venous":
            liver, blood = n(106, 13) - steatosis, u(130, 185)
            self.hu = {"spleen": u(95, 135), "kidney": u(160, 210), "pancreas": u(80, 110), "bowel": u(85, 125)}
            self.hu |= {"heart": u(115, 160), "artery": blood, "vein": blood, "liver vein": liver + u(25, 65)}
        elif self.phase == "arterial":
            liver = n(76, 8) - steatosis
            self.hu = {"spleen": u(95, 150), "kidney": u(140, 200), "pancreas": u(90, 120), "bowel": u(70, 120)}
            self.hu |= {"heart": u(160, 260), "artery": u(220, 340), "vein": u(80, 130)}
            self.hu |= {"liver vein": liver + u(-8, 15)}
        else:
            liver, blood = n(58, 5) - steatosis, u(38, 48)
            self.hu = {"spleen": u(45, 56), "kidney": u(28, 38), "pancreas": u(35, 45), "bowel": u(35, 50)}
            self.hu |= {"heart": blood, "artery": blood, "vein": blood, "liver vein": min(liver - 8, blood)}
        self.hu |= {"liver": liver, "muscle": n(62, 6), "skin": n(10, 15), "bile": u(2, 18)}
        self.hu |= {"fat": n(-104, 6), "visceral fat": n(-100, 7)}
        self.hu |= {"lung": u(-890, -780), "marrow": u(130, 260), "cortex": u(420, 700)}
        self.hu |= {"gut content": u(180, 400) if rng.random() < 0.3 else u(15, 45)}

    def _at(self, x: float, y: float, z: float, jitter_mm: float = 4.0) -> np.ndarray:
        """A place of the mean anatomy in this patient, mm."""
        return np.array((x * self.sx, y * self.sy, z * self.sz)) + self.rng.normal(0, jitter_mm, 3)

    def _organ(self, center, radii, angles=(0, 0, 0), roughness_mm=1.5, jitter_mm=4.0, variation=0.08) -> _Ellipsoid:
        """An ellipsoid of the mean anatomy in this patient."""
        radii = np.array(radii) * self.size * self.rng.lognormal(0, variation, 3)
        angles = np.array(angles) + self.rng.normal(0, 6, 3)
        x, y, z = center
        return _Ellipsoid(self._at(x, y, z, jitter_mm), radii, angles, self.rng, roughness_mm)

    def spine_x(self, z):
        """Positions of the vertebrae's centres."""
        return 3 * np.sin(z / 130 + self.spine_phase)

    def spine_y(self, z):
        return self.spine_depth + 6 * np.sin(z / 110 + self.spine_phase)

    def _place_organs(self) -> None:
        rng, u, organ = self.rng, self.rng.uniform, self._organ
        back = self.spine_depth / self.sy
        self.right_lobe = organ((-76, 2, -74), (68, 80, 76), (0, 0, 0), 4.0, 6, 0.11)
        self.tip = organ((-98, 6, -122), (34, 56, u(45, 85)), (0, 0, 0), 3.0, 6, 0.1)
        self.left_lobe = organ((-10, -48, -50), (u(58, 108), 38, 42), (u(-14, 6), u(8, 24), 0), 3.0, 7, 0.12)
        self.caudate = organ((-18, 8, -75), (26, 24, 32))
        self.hilum = organ((-14, -14, -102), (32, 12, 18), (u(-20, 20), 0, 0), 2.5)
        self.fissure = organ((-2, -62, -105), (u(1.5, 4.5), 38, 40), (u(-20, 20), 0, 0), 0.5)
        self.gallbladder = organ((-48, -42, -112), (15, 20, 30), (20, 0, 25)) if rng.random() < 0.85 else None
        self.kidneys = [
            organ((-60, back + 6, -u(130, 165)), (29, 31, 54), (25, -10, 8)),
            organ((62, back + 6, -u(115, 150)), (29, 31, 56), (-25, 10, 8)),
        ]
        # Shapes that indent the liver's lower surface: stomach and bowel, and the fat around the kidney
        self.hollow = organ((48, -14, -150), (88, 64, u(50, 72)), (0, 25, 0), 4.0, 8, 0.1)
        right = self.kidneys[0]
        self.kidney_bed = _Ellipsoid(right.center + (4, 14, -42), right.radii * (1.5, 1.5, 1.55) + 3, (20, -10, 0))
        self.spleen = organ((98, 34, -60), (36, 52, 50), (-15, 0, 0), 3.0, 6, 0.14)
        self.spleen_hilum = organ((62, 12, -64), (32, 32, 60), (0, 0, 0), 2.0)
        self.pancreas = _Union(
            organ((28, 4, -98), (48, 11, 14), (-25, -12, 0), 2.5),
            organ((-18, 2, -118), (18, 15, 24), (0, 0, 0), 2.0),
            fillet_mm=6,
        )
        self.heart = organ((26, -38, 20), (62, 44, 48), (30, 20, 0), 2.0, 5)
        self.mediastinum = _Ellipsoid((12 * self.sx, self.spine_depth - 62, 60), (32 * self.sx, 62, 140))
        self.stomach = _Union(
            organ((56, -8, -56), (36, 38, 46), (0, 15, 0), 5.0, 6, 0.15),
            organ((22, -42, -108), (52, 19, 22), (12, -14, 0), 4.0, 6, 0.15),
            fillet_mm=8,
        )
        self._place_gut()

    def _place_gut(self) -> None:
        """Small bowel, colon and stomach, in the order they are drawn."""
        rng, u, wall, content = self.rng, self.rng.uniform, self.hu["bowel"], self.hu["gut content"]
        self.gut = []
        for _ in range(170):
            center, radii = (u(-85, 92), u(-76, 12), -u(100, 290)), (u(10, 16), u(11, 18), u(13, 36))
            loop, kind = self._organ(center, radii, u(-90, 90, 3), 2.0), rng.random()
            gas_y = loop.center[1] - 4 if kind > 0.88 else -math.inf
            self.gut.append(_Hollow(loop, wall, 2.5, wall + u(-20, 5) if kind < 0.45 else content, 0.0, gas_y))
        inner = self.half_width - self.muscle_mm
        colon = []
        for x, y, top in ((-(inner - 26), 12 * self.sy, -165 * self.sz), (inner - 24, 22 * self.sy, -85 * self.sz)):
            colon += [
                _Ellipsoid((x + u(-5, 5), y + u(-6, 6), z), u(16, 26, 3), u(-40, 40, 3), rng, 1.5)
                for z in np.arange(top, -420, -24)
            ]
        sag = u(5, 40)
        for across in np.arange(-80, 95, 22):
            z = -125 + 0.22 * across - sag * (1 - (across / 90) ** 2)
            colon.append(self._organ((across, -60 + 0.002 * across * across, z), (20, 18, 18), u(-40, 40, 3)))
        for part in colon:
            gas_y = part.center[1] + u(-25, 8) if rng.random() < 0.7 else -math.inf
            self.gut.append(_Hollow(part, 0.8 * wall, 2.5, -60, 140, gas_y))
        gas_y = self.stomach.parts[0].center[1] + u(-30, 8)
        self.gut.append(_Hollow(self.stomach, wall, 3.5, content if rng.random() < 0.8 else 60.0, 12, gas_y))

    def _place_vessels(self) -> None:
        rng, u, at = self.rng, self.rng.uniform, self._at
        back = self.spine_depth / self.sy

        def along(base: np.ndarray, lean: float):
            """Functions of z that keep an offset from the spine."""
            return (
                lambda z: base[0] + lean * z / 100 + self.spine_x(z),
                lambda z: base[1] + self.spine_y(z) - self.spine_depth,
            )

        cava_radius, aorta_radius = u(9, 13), u(9, 13)
        cava_x, cava_y = along(at(-24, back - 27, 0, 2), u(-2, 3))
        self.cava = _Column(cava_x, cava_y, cava_radius, u(0.65, 1.0) * cava_radius, top=15.0)
        self.aorta = _Column(*along(at(10, back - 29, 0, 2), 3), *[lambda z: aorta_radius + np.clip(z / 80, -4, 4)] * 2)
        esophagus_x, esophagus_y = along(at(16, back - 42, 0, 2), 3)
        self.esophagus = _Column(esophagus_x, esophagus_y, 9.0, 7.0, bottom=-25.0)
        hilum = self.hilum.center
        self.trunk_veins = [
            _Tube(hilum + (0, 6, 0), at(75, 25, -70), 6 * self.size, 4 * self.size),
            _Tube(hilum + (12, 4, -6), at(8, -12, -230), 5.5 * self.size, 3.5),
        ]
        self.mesenteric_artery = _Tube(at(16, 2, -110), at(16, -8, -230), 3.5, 3.0)

        def grow(start: np.ndarray, way: np.ndarray, radius: float, branchings: int) -> Iterator[_Tube]:
            end = start + way * u(14, 28) * self.size * (0.8 + radius / 10)
            yield _Tube(start, end, radius, 0.8 * radius)
            for _ in range(2 if branchings else 0):
                turned = way + rng.normal(0, 0.5, 3)
                yield from grow(end, turned / np.linalg.norm(turned), radius * u(0.62, 0.85), branchings - 1)

        # Hepatic veins gather at the cava under the diaphragm; the portal vein's branches start at the hilum.
        z = -18.0 * self.sz
        trees = (
            (np.array((cava_x(z), cava_y(z) - 6, z)), ((-0.9, -0.05, -0.25), (-0.55, -0.8, -0.3), (0.3, -0.9, -0.2))),
            (hilum + (-10, 0, 8), ((-1, 0.3, 0.1), (-0.7, -0.6, 0.4), (-0.7, 0.4, -0.6), (0.4, -0.8, 0.5))),
        )
        self.liver_vessels: list[_Tube] = []
        for root, ways in trees:
            for mean in ways:
                way = np.array(mean) + rng.normal(0, 0.15, 3)
                self.liver_vessels += grow(root, way / np.linalg.norm(way), u(4.0, 6.0), 4)

    def _place_lesions(self) -> None:
        """Tumours: none in every fifth patient, else 1 to 10 of 3 to 60 mm, inside the liver and apart."""
        rng, u = self.rng, self.rng.uniform
        self.lesions = []
        if rng.random() < 0.2:
            return
        low, high = self.liver_box
        grid = _Grid.of(*(np.arange(a, b, 7) for a, b in zip(low[::-1], high[::-1], strict=True)))
        depth = -self.liver(grid, self.cavity(grid, self.wall(grid)))
        places = np.stack(np.broadcast_arrays(grid.x, grid.y, grid.z), -1)[depth > 0]
        depth = depth[depth > 0]
        room = np.full(depth.shape, np.inf)
        count = min(rng.geometric(0.3), 10)
        for diameter in np.sort(np.exp(u(math.log(3), math.log(60), count)))[::-1].tolist():
            fitting = places[(depth > min(0.3 * diameter, 0.7 * depth.max())) & (room > 0.6 * diameter)]
            kind = str(rng.choice(("hypodense", "rim-enhancing", "hyperdense"), p=(0.72, 0.17, 0.11)))
            contrast = u(25, 50) if kind == "hyperdense" else -u(22, 65)
            if self.phase == "unenhanced":
                kind, contrast = "hypodense", -u(15, 30)
            if not len(fitting):
                continue
            center = fitting[rng.integers(len(fitting))] + u(-3, 3, 3)
            roughness = 0.1 * diameter if diameter > 6 else 0.3
            shape = _Ellipsoid(center, diameter / 2 * rng.lognormal(0, 0.15, 3), u(-90, 90, 3), rng, roughness)
            self.lesions.append(_Lesion(shape, kind, diameter, contrast, u(1.5, 5)))
            room = np.minimum(room, np.linalg.norm(places - center, axis=1) - 0.6 * diameter)

    # Signed distances of structures at the body wall

    def wall(self, grid: _Grid) -> np.ndarray:
        """To the outside of the muscle wall."""
        p = np.float32(self.squareness)
        waist = 1 + 0.04 * np.sin(grid.z / 120 + np.float32(self.spine_phase))
        x, y = np.abs(grid.x / (self.half_width * waist)) ** p, np.abs(grid.y / (self.half_depth * waist)) ** p
        return _radial(grid.x**2 + grid.y**2, (x + y) ** (2 / p)) + 4 * self.shape_noise(grid)

    def skin(self, grid: _Grid, wall: np.ndarray) -> np.ndarray:
        """To the outside of the body; fat is thicker at the sides and the back, and towards the pelvis."""
        thickness = 0.9 + 0.25 * np.abs(grid.x) / self.half_width + 0.25 * grid.y / self.half_depth - grid.z / 900
        return wall - np.maximum(self.fat_mm * (thickness + 0.22 * self.fat_noise(grid)), 2.5)

    def cavity(self, grid: _Grid, wall: np.ndarray) -> np.ndarray:
        """To the inside of the wall: what the vertebrae and the back muscles leave free."""
        x, y = grid.x - self.spine_x(grid.z), grid.y - self.spine_y(grid.z)
        vertebrae = 26 - np.sqrt(x**2 + (y - 2) ** 2)
        muscles = 28 - 28 * np.sqrt((x / 62) ** 2 + ((y - 38) / 28) ** 2)
        inside = wall + self.muscle_mm + 2 * self.cavity_noise(grid)
        return _smooth_max(inside, _smooth_max(vertebrae, muscles, 10), 14)

    def diaphragm(self, grid: _Grid) -> np.ndarray:
        """Height of the diaphragm above the grid's points: negative in the chest."""
        return self.dome_height(grid) - grid.z

    def dome_height(self, grid: _Grid) -> np.ndarray:
        """(1, ny, nx): height of the diaphragm."""

        def dome(x: float, y: float, top: float) -> np.ndarray:
            away_y = grid.y - y
            away_y = away_y / np.where(away_y < 0, np.float32(105 * self.sy), np.float32(78 * self.sy))
            return top - self.dome_depth * (((grid.x - x) / (78 * self.sx)) ** 2 + away_y**2)

        height = _smooth_max(dome(self.dome_x, self.dome_y, 0.0), dome(-self.dome_x, self.dome_y, self.left_dome), 16)
        height = _smooth_max(height, dome(0.0, self.dome_y - 25, self.saddle), 20)
        return height + 3 * self.cavity_noise(_Grid(np.zeros((1, 1, 1), np.float32), grid.y, grid.x))

    def liver(self, grid: _Grid, cavity: np.ndarray) -> np.ndarray:
        distance = _smooth_min(self.right_lobe(grid), self.tip(grid), 20)
        distance = _smooth_min(distance, self.left_lobe(grid), 16)
        distance = _smooth_min(distance, self.caudate(grid), 8)
        distance = _smooth_max(distance, cavity + 1, 5)
        distance = _smooth_max(distance, 2 - self.diaphragm(grid), 6)
        carved: list[tuple[Callable, float, float]] = [(self.hollow, 0, 14), (self.hilum, 0, 6)]
        carved += [(self.fissure, 0, 4), (self.kidney_bed, 0, 12), (self.cava, -1, 2), (self.stomach, 2, 8)]
        if self.gallbladder:
            carved.append((self.gallbladder, -0.5, 2))
        for shape, gap_mm, width_mm in carved:
            distance = _smooth_max(distance, gap_mm - shape(grid), width_mm)
        return distance

    @property
    def liver_box(self) -> tuple[np.ndarray, np.ndarray]:
        return _Union(self.right_lobe, self.tip, self.left_lobe, self.caudate, fillet_mm=1).box


class _Scan:
    """How the patient was scanned: field of view, table, noise, padding, orientation."""

    air_hu = -1000.0

    def __init__(self, rng: np.random.Generator, patient: _Patient):
        u = rng.uniform
        widest_mm = 2 * (max(patient.half_width, 1.3 * patient.half_depth) + patient.fat_mm)
        self.field_mm = float(np.clip(widest_mm * u(1.0, 1.35), 290, 500))
        self.top, self.bottom = u(15, 75), -(185 * patient.sz + u(10, 110))
        self.center_x, self.center_y = u(-12, 12), u(-15, 25)
        self.noise_hu = u(10, 26)
        self.padding_hu = (None, -1024, -2048, -3024)[int(rng.choice(4, p=(0.4, 0.25, 0.15, 0.2)))]
        self.orientation = str(rng.choice(("LPS", "LAS", "RAS", "identity"), p=(0.4, 0.25, 0.2, 0.15)))
        self.has_table = rng.random() < 0.75
        self.table_y = patient.half_depth + 1.15 * patient.fat_mm + u(1, 12)
        self.table_bend, self.table_hu = u(500, 1600), u(-150, 60)

    def grid(self, rows: int, columns: int, slices: int) -> tuple[_Grid, tuple[float, float, float]]:
        """Grid of the voxels' centres, and their spacing (row, column, slice) in mm."""
        pixel_mm, slice_mm = self.field_mm / max(rows, columns), (self.top - self.bottom) / slices
        grid = _Grid.of(
            self.bottom + (np.arange(slices) + 0.5) * slice_mm,
            self.center_y + (np.arange(rows) - (rows - 1) / 2) * pixel_mm,
            self.center_x + (np.arange(columns) - (columns - 1) / 2) * pixel_mm,
        )
        return grid, (pixel_mm, pixel_mm, slice_mm)

    def outside(self, grid: _Grid) -> np.ndarray:
        """(1, rows, columns) bool: pixels outside the scanner's circular field of view."""
        return (grid.x - self.center_x) ** 2 + (grid.y - self.center_y) ** 2 > (self.field_mm / 2) ** 2


# --- Drawing ------------------------------------------------------------------------------------------------------

_EVERYWHERE = (slice(None),) * 3


class _Canvas:
    """An HU image on a grid, to paint on."""

    def __init__(self, grid: _Grid, background_hu: float):
        self.grid = grid
        self.hu = np.full((grid.z.size, grid.y.size, grid.x.size), background_hu, np.float32)
        self.edge_mm = float(max(grid.x[0, 0, -1] - grid.x[0, 0, 0], 1) / max(grid.x.size - 1, 1))

    def crop(self, shape) -> tuple[tuple[slice, ...], _Grid] | None:
        """Index and grid of a shape's box; None if it lies outside."""
        index, grid = self.grid.crop(*shape.box)
        return (index, grid) if all(s.stop > s.start for s in index) else None

    def blend(self, index, distance: np.ndarray, value, edge_mm: float = 0.0) -> None:
        """Paint `value` (HU, a number or an array) where `distance` is negative, with a soft edge."""
        alpha = distance * np.float32(-1 / max(edge_mm, self.edge_mm))
        alpha += np.float32(0.5)
        np.clip(alpha, 0, 1, out=alpha)
        self.hu[index] += alpha * (value - self.hu[index])

    def paint(self, shape, value) -> None:
        """Paint a shape."""
        if seen := self.crop(shape):
            index, grid = seen
            self.blend(index, shape(grid), value)


def _draw_table(canvas: _Canvas, scan: _Scan) -> None:
    """Two curved plates with foam between."""
    if not scan.has_table:
        return
    _, y, x = canvas.grid.z, canvas.grid.y, canvas.grid.x
    depth = y - (scan.table_y - x**2 / scan.table_bend)
    canvas.blend(_EVERYWHERE, np.minimum(np.abs(depth - 2), np.abs(depth - 32)) - 1.5, scan.table_hu)
    canvas.blend(_EVERYWHERE, np.maximum(depth - 30, 4 - depth), -930)


def _draw_trunk(canvas: _Canvas, patient: _Patient) -> np.ndarray:
    """Skin, fat, muscles, lungs and ribs; returns the cavity's signed distance."""
    grid, hu = canvas.grid, patient.hu
    wall = patient.wall(grid)
    skin = patient.skin(grid, wall)
    cavity = patient.cavity(grid, wall)
    texture = patient.texture(grid)
    canvas.blend(_EVERYWHERE, skin, hu["skin"])
    canvas.blend(_EVERYWHERE, skin + 2, hu["fat"])
    canvas.blend(_EVERYWHERE, wall, hu["muscle"])
    # Fat between the layers of the wall's muscles
    between = np.flatnonzero((cavity > 0) & (wall < -1) & (wall > -patient.muscle_mm - 3))
    depth = cavity.ravel()[between] / patient.muscle_mm
    layers = np.exp(-(((depth - 0.38) / 0.07) ** 2)) + np.exp(-(((depth - 0.7) / 0.07) ** 2))
    canvas.hu.ravel()[between] -= 70 * np.clip(layers * (0.6 + 0.4 * texture.ravel()[between]), 0, 1)
    # Small vessels speckle the mesentery and the lungs.
    canvas.blend(_EVERYWHERE, cavity, hu["visceral fat"] + 70 * np.clip(texture - 1.2, 0, 1))
    if grid.z.max() > patient.left_dome - 3 * patient.dome_depth:
        lung = np.maximum(cavity + 1, patient.diaphragm(grid))
        canvas.blend(_EVERYWHERE, lung, hu["lung"] + 1200 * np.clip(texture - 1.9, 0, 0.7))
    _draw_ribs(canvas, patient, wall, cavity)
    return cavity


def _draw_ribs(canvas: _Canvas, patient: _Patient, wall: np.ndarray, cavity: np.ndarray) -> None:
    """Ribs in the body wall, descending from the spine to the front, where they end in cartilage."""
    grid = canvas.grid
    voxels = np.flatnonzero((cavity > -3) & (wall < 1) & (grid.z > -230 * patient.sz))
    k, j, i = np.unravel_index(voxels, cavity.shape)
    x, y, z = grid.x.ravel()[i], grid.y.ravel()[j], grid.z.ravel()[k]
    angle = np.arctan2(np.abs(x), y - 0.1 * patient.half_depth)  # 0 at the spine, pi at the sternum
    pitch = 27 * patient.sz
    phase = (z + 95 * patient.sz * np.sin(0.65 * np.clip(angle, 0, 2.4)) + patient.rib_offset) / pitch
    number = np.round(phase)
    across = cavity.ravel()[voxels] - 0.5 * patient.muscle_mm
    along = (phase - number) * pitch
    distance = 4.2 * np.sqrt((across / 4.2) ** 2 + (along / 6.5) ** 2) - 4.2
    reach = np.clip(2.3 + 0.32 * (number + 1), 1.1, 4)  # the lowest ribs float
    distance = np.maximum(distance, (angle - reach) * 60)
    distance[(number < -4) | ((np.abs(x) < 0.3 * patient.half_width) & (angle < 1.2))] = 9
    value = np.where(distance > -1.8, patient.hu["cortex"], patient.hu["marrow"])
    value = np.where(angle > 2.35, 110, value)
    alpha = np.clip(0.5 - distance / canvas.edge_mm, 0, 1)
    flat = canvas.hu.ravel()
    flat[voxels] += alpha * (value - flat[voxels])


def _draw_organs(canvas: _Canvas, patient: _Patient, cavity: np.ndarray) -> None:
    """All organs in the abdominal cavity except the liver."""
    hu, texture = patient.hu, patient.texture
    dome_height = patient.dome_height(canvas.grid)

    def diaphragm(index: tuple[slice, ...], grid: _Grid) -> np.ndarray:
        return dome_height[:, *index[1:]] - grid.z

    def solid(shape, value: float | Callable, carved: Sequence = ()) -> None:
        """Paint a shape within the wall, the diaphragm and `carved` (shape, gap); `value` may take (grid, distance)."""
        if not (seen := canvas.crop(shape)):
            return
        index, grid = seen
        distance = _smooth_max(shape(grid), cavity[index] + 2.5, 5)
        distance = _smooth_max(distance, 2.5 - diaphragm(index, grid), 5)
        for other, gap_mm in carved:
            distance = _smooth_max(distance, gap_mm - other(grid), 8)
        canvas.blend(index, distance, value(grid, distance) if callable(value) else value)

    def hollow(organ: _Hollow) -> None:
        def value(grid: _Grid, distance: np.ndarray) -> np.ndarray:
            content: float | np.ndarray = organ.content_hu
            if organ.mottle_hu:
                content = np.minimum(content + organ.mottle_hu * texture(grid), max(organ.content_hu, 60.0))
            gas = np.clip((organ.gas_y - grid.y) / canvas.edge_mm + 0.5, 0, 1)
            content = content + gas * (-950 - content)
            lumen = np.clip(0.5 - (distance + organ.wall_mm) / canvas.edge_mm, 0, 1)
            return organ.wall_hu + lumen * (content - organ.wall_hu)

        solid(organ.shape, value)

    def chest(shape, value, margin_mm: float) -> None:
        """Paint a shape above the diaphragm, within the ribs."""
        if seen := canvas.crop(shape):
            index, grid = seen
            distance = np.maximum(shape(grid), diaphragm(index, grid) + 3) - margin_mm
            canvas.blend(index, np.maximum(distance, cavity[index] + 1), value)

    def kidney(grid: _Grid, distance: np.ndarray, sinus: _Ellipsoid) -> np.ndarray:
        cortex = hu["kidney"] - 28 * np.clip((-distance - 6) / 3, 0, 1)
        fat = np.clip(0.5 - sinus(grid) / canvas.edge_mm, 0, 1)
        return cortex + fat * (hu["visceral fat"] + 30 - cortex)

    for organ in patient.gut[:-1]:
        hollow(organ)
    chest(patient.mediastinum, hu["fat"], 0)
    chest(patient.heart, hu["fat"], 6)
    chest(patient.heart, hu["heart"], 0)
    canvas.paint(patient.esophagus, 45)
    solid(patient.spleen, hu["spleen"], [(patient.spleen_hilum, 0), (patient.stomach, 3)])
    hollow(patient.gut[-1])
    solid(patient.pancreas, lambda grid, _: hu["pancreas"] - 90 * np.clip(texture(grid) - 0.9, 0, 1))
    for shape in patient.kidneys:
        offset = (-14 * np.sign(shape.center[0]), -4, 0)
        sinus = _Ellipsoid(shape.center + offset, shape.radii * (0.5, 0.28, 0.45))
        solid(shape, lambda grid, distance, sinus=sinus: kidney(grid, distance, sinus))
    for vessel in (*patient.trunk_veins, patient.cava):
        canvas.paint(vessel, hu["vein"])
    for vessel in (patient.mesenteric_artery, patient.aorta):
        canvas.paint(vessel, hu["artery"])
    if patient.gallbladder:
        solid(patient.gallbladder, lambda _, distance: np.where(distance > -1.5, 45, hu["bile"]))


def _draw_liver(canvas: _Canvas, patient: _Patient, cavity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Liver with vessels and tumours, and the labels of both; returns each tumour's number of voxels."""
    voxels = np.zeros(len(patient.lesions), int)
    index, grid = canvas.grid.crop(*patient.liver_box)
    if not grid.z.size:
        return voxels
    distance = patient.liver(grid, cavity[index])
    truth = np.where(distance <= 0, LIVER, 0).astype(np.uint8)
    tissue = _Canvas(grid, patient.hu["liver"])
    tissue.hu += 2.5 * patient.cavity_noise(grid)
    for vessel in patient.liver_vessels:
        tissue.paint(vessel, patient.hu["liver vein"])
    for n, lesion in enumerate(patient.lesions):
        if not (seen := tissue.crop(lesion.shape)):
            continue
        where, near = seen
        outward = lesion.shape(near)
        value = patient.hu["liver"] + lesion.contrast_hu + 4 * patient.texture(near)
        if lesion.diameter_mm > 20:  # the core is necrotic
            value -= 80 * np.clip(-outward / lesion.diameter_mm - 0.2, 0, 0.3)
        if lesion.kind == "rim-enhancing":
            value += (30 - lesion.contrast_hu) * np.exp(-(((outward + 2.5) / 2) ** 2))
        tissue.blend(where, outward, value, lesion.edge_mm)
        inside = (outward <= 0) & (truth[where] > 0)
        truth[where][inside] = TUMOUR
        voxels[n] = np.count_nonzero(inside)
    labels[index] = truth
    canvas.blend(index, distance, tissue.hu)
    return voxels


def _draw_spine(canvas: _Canvas, patient: _Patient) -> None:
    """Vertebrae with discs, canal and processes, and the muscles along them."""
    hu = patient.hu
    # The sizes assume a spinous process that ends 64 mm behind the vertebra's centre, under the skin.
    scale = min(patient.size, (patient.half_depth - patient.spine_depth + 0.4 * patient.fat_mm) / 66)

    def column(x: float, y: float, radius_x: float, radius_y: float) -> _Column:
        return _Column(
            lambda z: patient.spine_x(z) + x * scale,
            lambda z: patient.spine_y(z) + y * scale,
            radius_x * scale,
            radius_y * scale,
        )

    def level(z: np.ndarray) -> np.ndarray:
        """-0.5 to 0.5 from disc to disc."""
        turns = z / np.float32(31 * patient.sz) + np.float32(patient.spine_phase)
        return turns - np.round(turns)

    for side in (-1, 1):
        canvas.paint(column(side * 30, 38, 24, 19), hu["muscle"] - 6)
        psoas = _Column(
            lambda z, side=side: patient.spine_x(z) + side * (26 * scale - z / 30),
            lambda z: patient.spine_y(z) + 6 - z / 60,
            lambda z: np.clip(-z / 14, 1, 22),
            lambda z: np.clip(-z / 11, 1, 26),
            top=-100 * patient.sz,
        )
        canvas.paint(psoas, hu["muscle"])
    canvas.paint(column(0, 34, 3.5, 28), hu["fat"])

    body = column(0, 0, 21, 16)
    index, grid = canvas.grid.crop(*body.box)
    distance = body(grid) - 1.5 * np.cos(2 * np.float32(np.pi) * level(grid.z))
    disc = np.clip((np.abs(level(grid.z)) - 0.39) * 30, 0, 1)
    bone = np.where(distance > -2.5, 0.75 * hu["cortex"], hu["marrow"] + 40 * patient.texture(grid))
    canvas.blend(index, distance, bone + disc * (85 - bone))
    canvas.paint(column(0, 24, 17, 12), 1.5 * hu["marrow"])
    # Spinous, transverse and articular processes: (x, y, radius x, radius y), middle and half height in levels
    for place, middle, half_height in (
        ((0, 46, 4, 18), -0.2, 0.32),
        ((0, 24, 36, 4.5), 0.1, 0.22),
        ((-15, 31, 8, 8), -0.4, 0.3),
        ((15, 31, 8, 8), -0.4, 0.3),
    ):
        process = column(*place)
        index, grid = canvas.grid.crop(*process.box)
        away = level(grid.z) - middle
        away = 31 * (np.abs(away - np.round(away)) - half_height)
        canvas.blend(index, np.maximum(process(grid), away), 1.6 * hu["marrow"])
    canvas.paint(column(0, 23, 10, 8.5), 25)
    canvas.paint(column(0, 23, 5, 4), 45)


def _detector_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit-variance noise, correlated in plane as by a reconstruction kernel."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis in (1, 2):
        noise += np.float32(0.8) * np.roll(noise, 1, axis)
    return noise / np.float32(1 + 0.8**2)
