"""How well follow-up finds what is known: phantoms, or a real CT, edited and bent by known fields.

Run: python benchmarks/compare.py [--phantoms 30] [--real CT MASK] [--shape-only] [--save DIR]

Of each case a later scan is made: lesions grow, shrink, vanish and appear; then everything is turned, shifted and bent
smoothly, sampled on other slices, and shown in another phase. Compared with the truth: links of lesions, changes of
volume (by the field's own Jacobian), and where places of the liver are mapped to.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.evaluation.measurements import numbered_lesions
from liverseg_tf.followup.registration import RegistrationError

NEW = 1000
SMALLEST_VOXELS = 100  # of lesions whose volume is judged: smaller ones say how coarse the voxels are


def field(rng: np.random.Generator, center: np.ndarray, bend_mm: float, turn_degrees: float, shift_mm: float):
    """A map from places (N, 3) in mm of the later scan to those of the first."""
    turn = Rotation.from_euler("xyz", rng.uniform(-turn_degrees, turn_degrees, 3), degrees=True).as_matrix()
    shift = rng.uniform(-shift_mm, shift_mm, 3)
    lattices = [ndimage.gaussian_filter(rng.standard_normal((12, 12, 12)), 1.2) for _ in range(3)]
    lattices = [bend_mm * lattice / np.abs(lattice[3:9, 3:9, 3:9]).max() for lattice in lattices]

    def mapping(places: np.ndarray) -> np.ndarray:
        index = ((places - center + 250) / (500 / 11)).T
        bend = [ndimage.map_coordinates(lattice, index, order=3, mode="nearest") for lattice in lattices]
        return (places - center) @ turn.T + center + shift + np.stack(bend, axis=-1)

    return mapping


def edit(rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]):
    """Lesions grown, shrunk, gone and new.

    Returns:
        HU, labels, lesions' own numbers (as of the first scan, or NEW and up), and by number the factor of each one's
        volume.
    """
    numbered, box = numbered_lesions(labels)
    numbers = np.zeros(labels.shape, np.int32)
    if box is not None:
        numbers[box] = numbered
    tissue = hu[labels == 1]
    level, noise = float(np.median(tissue)), float(tissue.std())
    dark = float(np.median(hu[labels == 2])) if box is not None else level - 45
    new_hu, new_labels, own = hu.astype(np.float32), (labels > 0).astype(np.uint8), np.zeros_like(numbers)
    new_hu[labels == 2] = level + noise * rng.standard_normal(np.count_nonzero(labels == 2))
    scales: dict[int, float] = {}
    for number, part in enumerate(ndimage.find_objects(numbers), start=1):
        scale = float(rng.choice([0.0, 0.75, 0.9, 1.0, 1.0, 1.2, 1.35]))
        scales[number] = scale
        if not scale:
            continue
        center = np.argwhere(numbers[part] == number).mean(axis=0) + [s.start for s in part]
        reach = [int(0.3 * (s.stop - s.start)) + 2 for s in part]
        wide = tuple(
            slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(part, reach, labels.shape, strict=True)
        )
        grid = np.moveaxis(np.indices([s.stop - s.start for s in wide]), 0, -1) + [s.start for s in wide]
        source = center + (grid - center) / scale
        there = ndimage.map_coordinates((numbers == number).astype(np.float32), np.moveaxis(source, -1, 0), order=1)
        inside = (there > 0.5) & (new_labels[wide] > 0) & (own[wide] == 0)
        own[wide][inside] = number
        scales[number] = np.count_nonzero(inside) / np.count_nonzero(numbers == number)
    free = ndimage.distance_transform_edt((new_labels > 0) & (own == 0), sampling=spacing_mm)
    for new in range(int(rng.integers(0, 3))):
        radius_mm = float(rng.uniform(5, 11))
        candidates = np.argwhere(free > radius_mm + 6)
        if not len(candidates):
            break
        center = candidates[rng.integers(len(candidates))]
        distance = np.linalg.norm((np.moveaxis(np.indices(labels.shape), 0, -1) - center) * spacing_mm, axis=-1)
        own[distance <= radius_mm] = NEW + new
        free = np.minimum(free, np.maximum(distance - radius_mm, 0))
    new_labels[own > 0] = 2
    new_hu[own > 0] = dark + noise * rng.standard_normal(np.count_nonzero(own))
    return new_hu, new_labels, own, scales


def later_scan(rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray, geometry: Geometry, bend_mm: float):
    """The later scan of a case: CT, mask, lesions' numbers, their scales, and the map to the first scan."""
    spacing = np.array(geometry.spacing_mm)
    edited = edit(rng, hu, labels, geometry.spacing_mm)
    affine = geometry.canonical_affine
    center = affine[:3, :3] @ np.argwhere(labels).mean(axis=0) + affine[:3, 3]
    mapping = field(rng, center, bend_mm, 4.0, 15.0)
    new_spacing = np.r_[spacing[:2] * rng.uniform(0.9, 1.15), max(spacing[2] * rng.choice([0.8, 1.0, 1.5]), 1.0)]
    shape = tuple(np.ceil(np.array(hu.shape) * spacing / new_spacing).astype(int).tolist())
    new_affine = affine.copy()
    new_affine[:3, :3] = affine[:3, :3] / spacing * new_spacing
    to_index = np.linalg.inv(affine)
    out = [np.empty(shape, np.float32), np.empty(shape, np.uint8), np.empty(shape, np.int32)]
    for k in range(shape[2]):
        index = np.indices((*shape[:2], 1)).reshape(3, -1).T + (0, 0, k)
        places = mapping(index @ new_affine[:3, :3].T + new_affine[:3, 3])
        source = (places @ to_index[:3, :3].T + to_index[:3, 3]).T
        for array, values, order in zip(out, edited[:3], (1, 0, 0), strict=True):
            sampled = ndimage.map_coordinates(values, source, order=order, mode="nearest")
            array[..., k] = sampled.reshape(shape[:2])
    new_hu, new_labels, own = out
    if rng.random() < 0.5:  # another phase: vessels and liver come closer to each other
        inside = new_labels > 0
        level = np.median(new_hu[inside])
        new_hu[inside] = level - 45 + 0.6 * (new_hu[inside] - level)
    return np.rint(new_hu), new_labels, own, edited[3], mapping, Geometry(shape, new_affine)


def judge(found, own: np.ndarray, scales: dict[int, float], mapping, later: MaskVolume) -> dict[str, list]:
    """Links, volume errors and distances of one pair."""
    numbered, box = numbered_lesions(later.labels)
    truth: set[tuple[int, int]] = set()
    whole: dict[int, int] = {}  # lesions of the later scan that are one lesion of the first, and all of it
    for number in range(1, int(numbered.max(initial=0)) + 1):
        here = own[box][numbered == number]
        values, counts = np.unique(here[here > 0], return_counts=True)
        truth |= {(int(v), number) for v, c in zip(values, counts, strict=True) if c > 0.2 * len(here) and v < NEW}
        if len(values) == 1 and values[0] < NEW and np.count_nonzero(own == values[0]) == len(here):
            whole[number] = int(values[0])
    links = set()
    for track in found.lesions:
        first, now = track.sightings
        target = now.numbers
        if now.merged_into is not None:
            target = next(t for t in found.lesions if t.id == now.merged_into).sightings[1].numbers
        links |= {(b, n) for b in first.numbers for n in target}
    before, after = (
        {one.statistics.number: one.statistics for one in scan.measurement.lesions} for scan in found.scans
    )
    errors = []
    for number, origin in whole.items():
        voxels = [
            one.volume_ml / scan.mask.voxel_volume_ml
            for one, scan in zip((before[origin], after[number]), found.scans, strict=True)
        ]
        if min(voxels) < SMALLEST_VOXELS:
            continue
        center = np.array(after[number].center_mm)
        steps = np.concatenate([np.eye(3), -np.eye(3)]) * 2.0
        moved = mapping(center + steps)
        squeezed = abs(np.linalg.det((moved[:3] - moved[3:]) / 4))
        true = scales[origin] / squeezed
        errors.append(after[number].volume_ml / before[origin].volume_ml / true - 1)
    affine = later.geometry.canonical_affine
    places = np.argwhere(later.labels)[::97] @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(found.scans[1].registration(places) - mapping(places), axis=1)
    return {"true": list(truth), "links": list(links), "errors": errors, "mm": [float(distance.mean())],
            "mm95": [float(np.percentile(distance, 95))]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=30)
    parser.add_argument("--real", nargs=2, metavar=("CT", "MASK"), help="a real CT and its mask in place of phantoms")
    parser.add_argument("--draws", type=int, default=3, help="later scans made of the real CT")
    parser.add_argument("--bend", type=float, default=8.0, help="largest displacement of the bend along each axis, mm")
    parser.add_argument("--shape-only", action="store_true", help="leave the CTs out")
    parser.add_argument("--save", help="write both scans of each case here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    true = hit = linked = failed = 0
    errors, means, tails, seconds = [], [], [], []
    real = None
    if args.real:
        real = CTVolume.load(args.real[0]), MaskVolume.load(args.real[1])
    for case in range(args.draws if real else args.phantoms):
        rng = np.random.default_rng([7, case])
        if real:
            hu, labels, geometry = real[0].hu, real[1].labels, real[1].geometry
            geometry = Geometry(labels.shape, geometry.canonical_affine)
        else:
            phantom = ls.make_phantom((11, case), (128, 128, 48))
            hu, labels = phantom.hu, phantom.labels
            geometry = Geometry.from_spacing(labels.shape, phantom.spacing_mm)
        new_hu, new_labels, own, scales, mapping, grid = later_scan(rng, hu, labels, geometry, args.bend)
        first, later = MaskVolume(labels, geometry), MaskVolume(new_labels, grid)
        cts = CTVolume(hu, geometry), CTVolume(new_hu.astype(np.int16), grid)
        if args.save:
            for name, mask, ct in (("before", first, cts[0]), ("after", later, cts[1])):
                for what, array in (("", np.rint(ct.hu).astype(np.int16)), ("_seg", mask.labels)):
                    Path(args.save).mkdir(parents=True, exist_ok=True)
                    path = Path(args.save, f"{name}-{case}{what}.nii.gz")
                    nib.save(nib.Nifti1Image(array, mask.geometry.canonical_affine), path)
        began = time.process_time()
        try:
            sources = (first, later) if args.shape_only else cts
            found = ls.compare(*sources, masks=None if args.shape_only else (first, later))
        except RegistrationError as error:
            failed += 1
            print(f"{case}: {error}", flush=True)
            continue
        seconds.append(time.process_time() - began)
        figures = judge(found, own, scales, mapping, later)
        true, linked = true + len(figures["true"]), linked + len(figures["links"])
        hit += len(set(figures["true"]) & set(figures["links"]))
        errors += figures["errors"]
        means += figures["mm"]
        tails += figures["mm95"]
        wrong = set(figures["true"]) ^ set(figures["links"])
        print(
            f"{case}: {len(figures['true'])} true links, wrong or missed {sorted(wrong)}, "
            f"{figures['mm'][0]:.2f} mm off, "
            f"surfaces {found.scans[1].registration.residual_mm:.2f} mm, {found.responses[1].category}",
            flush=True,
        )
    off = np.abs(errors)
    print(f"links: precision {hit / max(linked, 1):.4f}, recall {hit / max(true, 1):.4f} ({true} true, {linked} made)")
    print(
        f"change of volume ({len(errors)} lesions of {SMALLEST_VOXELS} voxels and more): "
        f"mean {100 * np.mean(errors):+.1f} %, median off by {100 * np.median(off):.1f} %, "
        f"95th percentile {100 * np.percentile(off, 95):.1f} %"
    )
    print(
        f"places of the liver: {np.mean(means):.2f} mm off on average, worst case {np.max(means):.2f} mm, "
        f"95th percentile {np.mean(tails):.2f} mm; {failed} registrations failed; "
        f"{np.mean(seconds):.1f} s of CPU a pair"
    )


if __name__ == "__main__":
    main()
