"""Accuracy of follow-up: phantoms, or a real CT, with known changes and known deformation.

Run: python benchmarks/compare.py -o results.jsonl [--phantoms 22] [--real CT MASK ...] [--shape-only] [--save DIR]

Of each case a later scan is made: lesions grow, shrink, vanish, appear, split and merge, a part of the liver is cut
out; then everything is turned, shifted and bent smoothly (breathing), sampled on other slices, and shown in another
phase. Both scans' masks are drawn from the lesions' exact shapes, each on its own grid. Compared with the truth: links
and events of lesions, changes of volume (of the exact shapes, by the field's Jacobian), and positions in the liver. The
results get a line per case; cases that are already there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.followup.registration import RegistrationError

NEW = 1000
# Changes of volume are judged by the voxels that the lesion has in the scan that shows fewer of them.
SIZES = (0, 30, 100, 300, 1000, 10**9)
SMALLEST_VOXELS = 300
MARGIN_MM = 40.0
SCENARIOS = (
    "growth",
    "split",
    "merged",
    "resected",
    "thick slices",
    "other phase",
    "vanished and new",
    "no lesion first",
    "no lesion later",
    "twice",
    "flipped",
)


@dataclass
class Side:
    """One scan: HU, labels (0, 1, 2), and each lesion voxel's own number; its lesions as (centre, radii), in mm."""

    hu: np.ndarray
    labels: np.ndarray
    own: np.ndarray
    balls: dict[int, list]


def drawn(balls: dict[int, list], places: np.ndarray) -> np.ndarray:
    """The number of the lesion that holds each place (..., 3), in mm from the grid's first voxel; 0 for none."""
    own = np.zeros(places.shape[:-1], np.int32)
    for number, parts in balls.items():
        for center, radii in parts:
            own[(((places - center) / radii) ** 2).sum(axis=-1) <= 1] = number
    return own


def exact_ml(side: Side, own: int, spacing: np.ndarray) -> float:
    """Volume of a lesion's exact shape within the liver, by fine sampling."""
    low = np.min([center - radii for center, radii in side.balls[own]], axis=0)
    high = np.max([center + radii for center, radii in side.balls[own]], axis=0)
    axes = [np.linspace(a, b, 81)[1:] - (b - a) / 160 for a, b in zip(low, high, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    index = np.rint(places / spacing).astype(int).clip(0, np.array(side.labels.shape) - 1)
    inside = (drawn({own: side.balls[own]}, places) > 0) & (side.labels[tuple(np.moveaxis(index, -1, 0))] > 0)
    return float(inside.mean() * np.prod(high - low) / 1000)


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


class Editor:
    """Draws lesions into a liver without any."""

    def __init__(self, rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, ...]):
        self.rng, self.spacing = rng, np.array(spacing_mm)
        self.liver = labels > 0
        tissue = hu[labels == 1]
        self.level, self.noise = float(np.median(tissue)), float(tissue.std())
        self.hu = hu.astype(np.float32)
        self.hu[labels == 2] = self._around(self.level, np.count_nonzero(labels == 2))
        self.mm = np.moveaxis(np.indices(labels.shape), 0, -1) * self.spacing

    def _around(self, level: float, count: int) -> np.ndarray:
        return level + self.noise * self.rng.standard_normal(count)

    def place(self, balls: list, radius_mm: float, gap_mm: float = 8.0) -> np.ndarray | None:
        """A centre (mm) for a ball within the liver, `gap_mm` from the others."""
        room = self.liver.copy()
        for center, radius in balls:
            room &= np.linalg.norm(self.mm - center, axis=-1) > radius + gap_mm
        deep = ndimage.distance_transform_edt(np.pad(room, 1), sampling=self.spacing)[1:-1, 1:-1, 1:-1]
        candidates = np.argwhere(deep > radius_mm + 1)
        if not len(candidates):
            return None
        # not in the middle of a voxel: a ball there is cut alike on all sides, and its volume errs most
        return (candidates[self.rng.integers(len(candidates))] + self.rng.uniform(-0.5, 0.5, 3)) * self.spacing

    def side(self, balls: dict[int, list], cut: np.ndarray | None = None) -> Side:
        """A scan with lesions, each a list of (centre mm, radii mm); what `cut` marks is no liver any more."""
        hu, labels = self.hu.copy(), self.liver.astype(np.uint8)
        own = drawn(balls, self.mm)
        own[labels == 0] = 0
        if cut is not None:
            hu[cut & self.liver] = self._around(-90.0, np.count_nonzero(cut & self.liver))
            labels[cut], own[cut] = 0, 0
        labels[own > 0] = 2
        hu[own > 0] = self._around(self.level - 45, np.count_nonzero(own))
        return Side(hu, labels, own, balls)


def edit(rng: np.random.Generator, editor: Editor, scenario: str) -> tuple[Side, Side, dict[int, str]]:
    """Both scans before any motion, and what becomes of each lesion of the first."""
    placed: list[tuple[np.ndarray, float]] = []
    for radius_mm in rng.uniform(5, 15, 5):
        center = editor.place(placed, radius_mm * 1.35)
        if center is not None:
            placed.append((center, float(radius_mm)))
    before = {n: [(c, r * rng.uniform(0.85, 1.15, 3))] for n, (c, r) in enumerate(placed, start=1)}
    scales = rng.choice([0.75, 0.9, 1.0, 1.2, 1.3], len(before))
    after = {n: [(c, radii * s)] for (n, [(c, radii)]), s in zip(before.items(), scales, strict=True)}
    events = dict.fromkeys(before, "kept")
    cut = None
    if scenario == "vanished and new":
        for gone in list(after)[:2]:
            del after[gone]
            events[gone] = "vanished"
    if scenario in ("growth", "vanished and new"):
        for new in range(2):
            center = editor.place(placed, 9.0, 10.0)
            if center is not None:
                after[NEW + new] = [(center, np.full(3, rng.uniform(5, 8)))]
                placed.append((center, 8.0))
    if scenario == "split":
        center, radius = max(placed, key=lambda one: one[1])
        number = next(n for n, (c, _) in enumerate(placed, start=1) if c is center)
        aside = np.array([0, 0.55 * radius, 0])
        after[number] = [(center - aside, np.full(3, 0.4 * radius)), (center + aside, np.full(3, 0.4 * radius))]
        events[number] = "split"
    if scenario == "merged":
        center = editor.place(placed, 14.0, 6.0)
        if center is not None:
            aside = np.array([0, 9.0, 0])
            first, second = len(before) + 1, len(before) + 2
            before |= {first: [(center - aside, np.full(3, 6.5))], second: [(center + aside, np.full(3, 5.5))]}
            after |= {first: [(center - aside, np.full(3, 10.0))], second: [(center + aside, np.full(3, 9.0))]}
            events |= {first: "kept", second: "merged"}
    if scenario == "resected":
        # a plane across the liver: as a left lobe is taken, with a fifth of the volume
        along = editor.mm[..., 1]
        cut = along > np.quantile(along[editor.liver], 0.8)
    if scenario == "no lesion first":
        before, events = {}, {}
    if scenario == "no lesion later":
        after, events = {}, dict.fromkeys(before, "vanished")
    first, later = editor.side(before), editor.side(after, cut)
    if cut is not None:
        for number in before:
            share = np.count_nonzero(first.own[~cut] == number) / max(np.count_nonzero(first.own == number), 1)
            left = np.count_nonzero(later.own == number)
            # what the plane cuts through is neither the one nor the other
            events[number] = "kept" if share > 0.7 and left else "resected" if share < 0.1 and not left else "any"
    return first, later, events


def moved(rng: np.random.Generator, side: Side, geometry: Geometry, bend_mm: float, scenario: str):
    """A scan turned, shifted, bent and sampled anew: it, its geometry, and the map to where it was."""
    spacing = np.array(geometry.spacing_mm)
    affine = geometry.canonical_affine
    center = affine[:3, :3] @ np.argwhere(side.labels).mean(axis=0) + affine[:3, 3]
    mapping = field(rng, center, bend_mm, 4.0, 15.0)
    factor = 2.0 if scenario == "thick slices" else rng.choice([0.8, 1.0, 1.25])
    new_spacing = np.r_[spacing[:2] * rng.uniform(0.9, 1.1), max(spacing[2] * factor, 1.0)]
    shape = tuple(np.ceil(np.array(side.hu.shape) * spacing / new_spacing).astype(int).tolist())
    new_affine = affine.copy()
    new_affine[:3, :3] = affine[:3, :3] / spacing * new_spacing
    to_index = np.linalg.inv(affine)
    out = Side(np.empty(shape, np.float32), np.empty(shape, np.uint8), np.empty(shape, np.int32), side.balls)
    for k in range(shape[2]):
        index = np.indices((*shape[:2], 1)).reshape(3, -1).T + (0, 0, k)
        places = mapping(index @ new_affine[:3, :3].T + new_affine[:3, 3])
        source = (places @ to_index[:3, :3].T + to_index[:3, 3]).T
        hu = ndimage.map_coordinates(side.hu, source, order=1, mode="nearest")
        organ = ndimage.map_coordinates((side.labels > 0).astype(np.uint8), source, order=0, mode="nearest")
        # not from the first grid's voxels: steps of a voxelised lesion would be sampled, which no scanner sees
        own = np.where(organ > 0, drawn(side.balls, source.T * spacing), 0)
        for name, sampled in (("hu", hu), ("labels", np.where(own > 0, 2, organ)), ("own", own)):
            getattr(out, name)[..., k] = sampled.reshape(shape[:2])
    if scenario == "other phase" or rng.random() < 0.4:  # vessels and liver come closer to each other
        inside = out.labels > 0
        level = np.median(out.hu[inside])
        out.hu[inside] = level - 45 + 0.6 * (out.hu[inside] - level)
    out.hu = np.rint(out.hu)
    return out, Geometry(shape, new_affine), mapping


def numbers_of(side: Side) -> dict[int, set[int]]:
    """By each lesion's number in its mask: the own numbers of what it holds, those that make a fifth of it or more."""
    numbered, box = numbered_lesions(side.labels)
    found: dict[int, set[int]] = {}
    for number in range(1, int(numbered.max(initial=0)) + 1):
        here = side.own[box][numbered == number]
        values, counts = np.unique(here[here > 0], return_counts=True)
        found[number] = {int(v) for v, c in zip(values, counts, strict=True) if c >= 0.2 * len(here)}
    return found


def judge(found, first: Side, later: Side, at_rest: Side, events: dict[int, str], mapping, grids) -> dict:
    """Links, events, volume errors and distances of one pair."""
    before, after = numbers_of(first), numbers_of(later)
    truth = {(b, n) for b, owns in before.items() for n, others in after.items() if owns & others}
    links, wrong_events = set(), []
    for track in found.lesions:
        one, now = track.sightings
        target = now.numbers
        if now.merged_into is not None:
            target = next(t for t in found.lesions if t.id == now.merged_into).sightings[1].numbers
        links |= {(b, n) for b in one.numbers for n in target}
        expected = {events[own] for b in one.numbers for own in before[b]} or {"new"}
        # of two that merged either may be the one that goes on
        if not {"any", now.event} & expected and not ("merged" in (now.event, *expected) and now.event != "vanished"):
            wrong_events.append([track.id, sorted(expected), now.event])
    measured = [{one.statistics.number: one for one in s.measurement.lesions} for s in found.scans]
    grid = grids[1]
    errors = []
    for b, n in truth:
        owns = before[b] | after[n]
        alone = (
            len(owns) == 1 and sum(owns <= o for o in before.values()) == sum(owns <= o for o in after.values()) == 1
        )
        (own,) = owns if alone else (0,)
        ends = later.own[..., [0, -1]]
        if not own or (ends == own).any():  # the motion carries some beyond the last slice
            continue
        voxels = [np.count_nonzero(side.own == own) for side in (first, later)]
        affine = grid.canonical_affine
        inside = np.argwhere(later.own == own)[:: max(1, voxels[1] // 200)] @ affine[:3, :3].T + affine[:3, 3]
        slopes = [(mapping(inside + step) - mapping(inside - step)) / 2 for step in np.eye(3)]
        # what the field squeezes a lesion by, all over it
        spacing = np.array(grids[0].spacing_mm)
        true = exact_ml(at_rest, own, spacing) / exact_ml(first, own, spacing)
        true /= np.abs(np.linalg.det(np.stack(slopes, axis=-1))).mean()
        one, now = measured[0][b], measured[1][n]
        sd = np.hypot(one.volume_sd_ml / one.statistics.volume_ml, now.volume_sd_ml / now.statistics.volume_ml)
        off = now.statistics.volume_ml / one.statistics.volume_ml / true - 1
        slices = min(int(np.ptp(m.statistics.slices)) + 1 for m in (one, now))
        errors.append({"off": round(off, 5), "sd": round(float(sd), 5), "voxels": int(min(voxels)), "slices": slices})
    affine = grid.canonical_affine
    places = np.argwhere(later.labels)[::97] @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(found.scans[1].registration(places) - mapping(places), axis=1)
    return {
        "true": len(truth), "made": len(links), "right": len(truth & links), "wrong": sorted(truth ^ links),
        "events": len(found.lesions), "wrong_events": wrong_events, "volume_errors": errors,
        "off_mm": round(float(distance.mean()), 3), "off_mm_95": round(float(np.percentile(distance, 95)), 3),
        "residual_mm": round(found.scans[1].registration.residual_mm, 3), "response": found.responses[1].category,
        "sure": [one.sightings[1].confidence for one in found.lesions],
    }  # fmt: skip


def run_case(args: argparse.Namespace, name: str, scenario: str, hu, labels, geometry: Geometry, seed: int) -> dict:
    """One case, from the edit to the verdict."""
    rng = np.random.default_rng([7, seed])
    # what is far from the liver costs time and tells nothing
    margin = np.ceil(MARGIN_MM / np.array(geometry.spacing_mm)).astype(int)
    box = [slice(max(0, b.start - m), b.stop + m) for b, m in zip(bounding_box(labels > 0), margin, strict=True)]
    affine = geometry.canonical_affine
    affine = affine @ np.array(
        [[1, 0, 0, box[0].start], [0, 1, 0, box[1].start], [0, 0, 1, box[2].start], [0, 0, 0, 1]]
    )
    hu, labels = hu[tuple(box)], labels[tuple(box)]
    geometry = Geometry(labels.shape, affine)
    first, at_rest, events = edit(rng, Editor(rng, hu, labels, geometry.spacing_mm), scenario)
    if scenario == "twice":
        later, grid, mapping, at_rest = first, geometry, lambda places: places, first
        events = dict.fromkeys(events, "kept")
    else:
        later, grid, mapping = moved(rng, at_rest, geometry, args.bend, scenario)
    stored = Geometry(grid.shape, np.diag([-1.0, 1, 1, 1]) @ grid.affine) if scenario == "flipped" else grid
    masks = MaskVolume(first.labels, geometry), MaskVolume(later.labels, stored)
    cts = CTVolume(np.rint(first.hu), geometry), CTVolume(later.hu, stored)
    if args.save:
        Path(args.save).mkdir(parents=True, exist_ok=True)
        for when, mask, ct in zip(("before", "after"), masks, cts, strict=True):
            for what, array in (("", ct.hu.astype(np.int16)), ("_seg", mask.labels)):
                path = Path(args.save, f"{name}-{when}{what}.nii.gz".replace(" ", "_"))
                nib.save(nib.Nifti1Image(array, mask.geometry.canonical_affine), path)
    began = time.process_time()
    try:
        found = ls.compare(*(masks if args.shape_only else cts), masks=None if args.shape_only else masks)
    except RegistrationError as error:
        return {"refused": str(error)}
    row = judge(found, first, later, at_rest, events, mapping, (geometry, grid))
    return row | {"differences": found.difference_count, "seconds": round(time.process_time() - began, 1)}


def report(rows: list[dict]) -> None:
    """The figures of all cases."""
    flipped = [row for row in rows if row["scenario"] == "flipped"]
    others = [row for row in rows if row["scenario"] != "flipped"]
    done = [row for row in others if "refused" not in row]
    true, made, right = (sum(row[name] for row in done) for name in ("true", "made", "right"))
    changes = [change for row in done if row["scenario"] != "twice" for change in row["volume_errors"]]
    events = sum(row["events"] for row in done)
    wrong = sum(len(row["wrong_events"]) for row in done)
    print(f"{len(others)} pairs, {len(others) - len(done)} refused; {len(flipped)} flipped, "
          f"{sum('refused' in row for row in flipped)} of them refused")  # fmt: skip
    print(f"links: precision {right / max(made, 1):.4f}, recall {right / max(true, 1):.4f} ({true} true, {made} made)")
    print(f"what became of a lesion: {events - wrong} of {events} right")
    print("change of volume off by, and how often by less than the stated limit (95 % promised)")
    for low, high in [(SMALLEST_VOXELS, SIZES[-1]), *zip(SIZES, SIZES[1:], strict=False)]:
        some = [change for change in changes if low <= change["voxels"] < high]
        if some:
            errors, sd = np.abs([change["off"] for change in some]), np.array([change["sd"] for change in some])
            print(f"  {low} to {high} voxels, {len(some)} lesions: {100 * np.mean(errors):.1f} % on average, "
                  f"median {100 * np.median(errors):.1f} %, 95th percentile {100 * np.percentile(errors, 95):.1f} %, "
                  f"worst {100 * np.max(errors):.1f} %; {np.count_nonzero(errors <= 2 * sd)} within")  # fmt: skip
    off = [row["off_mm"] for row in done]
    print(f"places of the liver: {np.mean(off):.2f} mm off on average, worst pair {np.max(off):.2f} mm, "
          f"95th percentile {np.mean([row['off_mm_95'] for row in done]):.2f} mm; "
          f"{np.mean([row['seconds'] for row in done]):.1f} s of CPU a pair")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", default="compare.jsonl", help="results, a line a case; goes on where it ended"
    )
    parser.add_argument("--phantoms", type=int, default=2 * len(SCENARIOS))
    parser.add_argument("--real", nargs="+", metavar="CT MASK", default=[], help="real CTs, each followed by its mask")
    parser.add_argument("--every", type=int, default=2, help="take every so manieth pixel of a real CT, to be quick")
    parser.add_argument("--bend", type=float, default=8.0, help="largest displacement of the bend along each axis, mm")
    parser.add_argument("--shape-only", action="store_true", help="leave the CTs out")
    parser.add_argument("--save", help="write both scans of each case here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    output = Path(args.output)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    cases = [(f"phantom {n}", SCENARIOS[n % len(SCENARIOS)], n) for n in range(args.phantoms)]
    for number in range(len(args.real) // 2):
        cases += [(f"real {number}", scenario, 100 + number) for scenario in (*SCENARIOS[:7], *SCENARIOS[-2:])]
    for seed, (name, scenario, source) in enumerate(cases):
        if any((row["case"], row["scenario"]) == (name, scenario) for row in rows):
            continue
        if source < 100:
            phantom = ls.make_phantom((11, source), (160, 160, 72))
            hu, labels = phantom.hu, phantom.labels
            geometry = Geometry.from_spacing(labels.shape, phantom.spacing_mm)
        else:
            ct, mask = CTVolume.load(args.real[2 * (source - 100)]), MaskVolume.load(args.real[2 * (source - 100) + 1])
            step = args.every
            hu, labels = ct.hu[::step, ::step].astype(np.float32), mask.labels[::step, ::step]
            geometry = Geometry(labels.shape, mask.geometry.canonical_affine @ np.diag([step, step, 1, 1]))
        row = {"case": name, "scenario": scenario} | run_case(
            args, f"{name}-{scenario}", scenario, hu, labels, geometry, seed
        )
        rows.append(row)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    report(rows)


if __name__ == "__main__":
    main()
