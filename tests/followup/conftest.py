"""Livers made of ellipsoids with balls in them, seen through a known map: the truth is a formula."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.followup import registration

# (centre, radii) in RAS+ mm: a large right lobe, a smaller left one in front, a caudate tip; no two axes alike
LOBES = (((45, 0, 0), (62, 55, 70)), ((-40, 30, 25), (50, 30, 32)), ((35, 15, -62), (25, 28, 30)))
BALLS = (((50, 0, 10), 13), ((30, -25, 35), 9), ((-45, 30, 25), 8), ((60, 20, -35), 7))


def identity(places):
    return places


def breathing(places):
    """A turn, a shift, and a bend of up to 5 mm: places of the later scan -> of the first."""
    x, y, z = places.T
    angle = np.radians(4)
    turned = np.column_stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z])
    bend = np.column_stack([3 * np.sin(z / 45), 4 * np.sin(x / 60), 5 * np.sin(y / 50)])
    return turned + bend + (6, -9, 14)


class Scene:
    """Makes masks and CTs of one patient."""

    def labels(self, places, balls, lobes=LOBES):
        inside = np.zeros(len(places), bool)
        for center, radii in lobes:
            inside |= (((places - center) / radii) ** 2).sum(axis=1) <= 1
        found = inside.astype(np.uint8)
        for center, radius in balls:
            found[((places - center) ** 2).sum(axis=1) <= radius**2] = 2
        return found

    def mask(self, balls=BALLS, *, spacing_mm=(3.0, 3.0, 3.0), motion=identity, lobes=LOBES, codes="PLS", keep=None):
        shape = tuple(int(n / s) for n, s in zip((200, 280, 220), spacing_mm, strict=True))
        affine = np.zeros((4, 4))
        affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1
        affine[:3, 3] = 140, 95, -115
        if keep is not None:  # slices from there on alone
            shape = (*shape[:2], shape[2] - keep)
            affine[2, 3] += keep * spacing_mm[2]
        places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
        labels = self.labels(motion(places), balls, lobes).reshape(shape)
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("PLS"), nib.orientations.axcodes2ornt(codes)
        )
        stored = nib.orientations.apply_orientation(labels, turn)
        return MaskVolume(
            np.ascontiguousarray(stored),
            Geometry(stored.shape, affine @ nib.orientations.inv_ornt_aff(turn, shape)),
        )

    def ct(self, mask, motion=identity, *, liver_hu=110.0, vessel_hu=60.0, seed=0):
        """Its CT: liver with vessels at fixed places of the patient, lesions 50 HU darker."""
        affine = mask.geometry.canonical_affine
        places = motion(np.indices(mask.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3])
        x, y, z = places.T
        vessels = np.maximum.reduce([np.sin(x / 11 + y / 17), np.sin(y / 13 - z / 12), np.sin(z / 15 + x / 19)]) > 0.93
        hu = np.full(len(places), -90.0)
        labels = mask.labels.ravel()
        hu[labels > 0] = liver_hu
        hu[(labels > 0) & vessels] = liver_hu + vessel_hu
        hu[labels == 2] = liver_hu - 50
        hu += np.random.default_rng(seed).normal(0, 8, len(hu))
        return CTVolume(mask.geometry.to_file(hu.reshape(mask.shape).astype(np.float32)), mask.geometry)

    def inside(self, mask, every=40):
        """Places (N, 3) within a mask's liver."""
        affine = mask.geometry.canonical_affine
        return np.argwhere(mask.labels)[::every] @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture(scope="session")
def scene():
    pytest.importorskip("SimpleITK")
    return Scene()


@pytest.fixture
def rough_registration(monkeypatch):
    """Few steps, for what is not about how well scans are registered: most of the time would go into them."""
    monkeypatch.setattr(registration, "_STEPS", 2)
