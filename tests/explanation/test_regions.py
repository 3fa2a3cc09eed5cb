"""What an explanation asks about."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.data.volume import Geometry
from liverseg_tf.errors import ConfigError, GeometryError
from liverseg_tf.evaluation.statistics import statistics
from liverseg_tf.explanation.regions import find_regions


def test_one_region_for_each_lesion_the_largest_first(lesions):
    volume, labels = lesions
    regions = find_regions(labels, volume.geometry)
    assert [r.name for r in regions] == ["lesion-1", "lesion-2"]
    assert [int(r.mask.sum()) for r in regions] == [16 * 16 * 3, 64]
    assert [list(r.slices) for r in regions] == [[2, 3, 4], [5]]
    assert (labels[..., 5][regions[1].mask[..., 0]] == 2).all()


def test_lesions_are_numbered_as_the_statistics_number_them(lesions):
    volume, labels = lesions
    numbered = statistics(labels, spacing_mm=volume.spacing_mm).lesions
    for row in numbered:
        (region,) = find_regions(labels, volume.geometry, lesion=row.number)
        assert region.mask.sum() * 0.02 == pytest.approx(row.volume_ml)
        assert region.largest_slice + 1 == row.slice


def test_liver_counts_its_tumours_and_all_tumour_is_one_region(lesions):
    volume, labels = lesions
    (liver,) = find_regions(labels, volume.geometry, "liver")
    assert liver.label == 1 and liver.mask.sum() == (labels > 0).sum()
    (tumour,) = find_regions(labels, volume.geometry, "all-tumour")
    assert tumour.label == 2 and tumour.mask.sum() == (labels == 2).sum()


def test_a_point_is_a_voxel_of_the_file():
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])  # LPS
    geometry = Geometry((40, 50, 10), affine)
    (region,) = find_regions(np.zeros(geometry.canonical_shape, np.uint8), geometry, point=(30, 20, 4), radius_mm=6)
    assert region.name == "point" and region.label == 2
    whole = np.zeros(geometry.canonical_shape, bool)
    whole[..., region.slices.start : region.slices.stop] = region.mask
    x, y, z = np.nonzero(geometry.to_file(whole))
    assert (x.mean(), y.mean(), z.mean()) == (30, 20, 4)
    assert (np.ptp(x), np.ptp(y), np.ptp(z)) == (6, 6, 2)  # 12 mm across, of 2, 2 and 5 mm


def test_nothing_found_is_no_region_and_wrong_questions_are_errors(lesions):
    volume, labels = lesions
    empty = np.zeros_like(labels)
    assert find_regions(empty, volume.geometry) == [] == find_regions(empty, volume.geometry, "liver")
    with pytest.raises(ConfigError, match="from 1 to 2"):
        find_regions(labels, volume.geometry, lesion=3)
    with pytest.raises(ConfigError, match="Received: 'spleen'"):
        find_regions(labels, volume.geometry, "spleen")
    with pytest.raises(ConfigError, match="not both"):
        find_regions(labels, volume.geometry, lesion=1, point=(1, 1, 1))
    with pytest.raises(GeometryError, match="got 64,0,0"):
        find_regions(labels, volume.geometry, point=(64, 0, 0))
    with pytest.raises(GeometryError):
        find_regions(labels, volume.geometry, point=(float("nan"), 0, 0))
