from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, sparse

import liverseg_tf as ls
from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.inference import pieces
from liverseg_tf.inference.pieces import _connected
from liverseg_tf.inference.postprocessing import PostProcessing, SliceSmoother, _is_deeper

SPACING = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml


def volume():
    labels = np.zeros((30, 30, 10), np.uint8)
    labels[5:20, 5:20, 2:8] = 1
    labels[10:14, 10:14, 4:6] = 2
    labels[25:28, 25:28, 2:4] = 1  # a second piece
    return labels


def test_the_largest_piece_is_kept():
    cleaned = PostProcessing()(volume(), SPACING)
    assert not cleaned[25:].any()
    assert (cleaned == 2).sum() == 32


def test_holes_in_three_dimensions_become_liver_and_tunnels_stay():
    labels = volume()
    labels[7, 7, 5] = 0
    labels[17, 17, :] = 0
    cleaned = PostProcessing()(labels, SPACING)
    assert cleaned[7, 7, 5] == 1
    assert not cleaned[17, 17].any()


def test_a_lesion_of_just_the_smallest_volume_stays():
    lesion_ml = 32 * float(np.prod(SPACING)) / 1000
    for smallest_ml, kept in ((lesion_ml, 32), (np.nextafter(lesion_ml, 1), 0)):
        assert (PostProcessing(smallest_lesion_ml=smallest_ml)(volume(), SPACING) == 2).sum() == kept


def test_small_lesions_become_liver_if_asked():
    assert (PostProcessing(smallest_lesion_ml=1.0)(volume(), SPACING) == 2).sum() == 0
    assert (PostProcessing(smallest_lesion_ml=0.5)(volume(), SPACING) == 2).sum() == 32


def whole_at_once(labels, bridge_mm, contact):
    """The rules on the whole volume by SciPy, at 2 x 2 x 5 mm; without `drop_single_slices`."""

    def keep_largest():
        pieces, _ = ndimage.label(labels > 0)
        labels[pieces != np.bincount(pieces[pieces > 0]).argmax()] = 0

    def areas(piece):
        """mm^2 of a piece's faces towards each label, by comparing the volume with itself moved by a voxel."""
        result = np.zeros(3)
        for axis, area_mm2 in enumerate((10.0, 10.0, 4.0)):
            for step in (-1, 1):
                beside = np.moveaxis(np.full(labels.shape, 9), axis, 0)
                source, cut = np.moveaxis(labels, axis, 0), np.moveaxis(piece, axis, 0)
                beside[max(step, 0) : len(source) + min(step, 0)] = source[max(-step, 0) : len(source) - max(step, 0)]
                result += [area_mm2 * ((beside == label) & cut).sum() for label in range(3)]
        return result

    keep_largest()
    distance = partial(ndimage.distance_transform_edt, sampling=SPACING)
    padded = np.pad(labels, 9, mode="edge")
    cores, count = ndimage.label((distance(padded > 0) > bridge_mm / 2 + 1)[9:-9, 9:-9, 9:-9]) if bridge_mm else (0, 0)
    sizes = np.bincount(np.ravel(cores), minlength=count + 1)
    dropped = [n for n in range(1, count + 1) if 2 * (labels[cores == n] == 2).sum() > sizes[n]]
    dropped = np.isin(cores, [n for n in dropped if n != 1 + sizes[1:].argmax()])
    if dropped.any():
        nearer = distance(~dropped) < distance(~((cores > 0) & ~dropped))
        labels[nearer & (distance(~dropped) <= bridge_mm)] = 0
    for label in (0, 1):
        pieces, count = ndimage.label(labels == label)
        border = np.ones(labels.shape, bool)
        border[1:-1, 1:-1, 1:-1] = False
        sizes = np.bincount(pieces.ravel(), minlength=2)
        sizes[np.unique(pieces[border])] = 0
        if label == 1:
            sizes[1 + np.bincount(pieces.ravel(), minlength=2)[1:].argmax()] = 0
        found = {n: areas(pieces == n) for n in range(1, count + 1) if sizes[n]}
        for n, area in found.items():
            if label == 0:
                labels[pieces == n] = 2 if area[2] > area[1] else 1
            elif area[0] == 0:
                labels[pieces == n] = 2
    pieces, count = ndimage.label(labels == 2)
    found = [areas(pieces == n) for n in range(1, count + 1)]
    labels[np.isin(pieces, [n for n, area in enumerate(found, 1) if area[1] < contact * (area[0] + area[1])])] = 0
    keep_largest()
    pieces, _ = ndimage.label(labels == 2)
    labels[(np.bincount(pieces.ravel()) < 3)[pieces] & (pieces > 0)] = 1
    return labels


@pytest.mark.slow
@pytest.mark.parametrize("bridge_mm, contact, rows_a_slab", [(0.0, 0.0, 16), (5.0, 0.25, 16), (5.0, 0.25, 3)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_pieces_are_those_of_the_whole_volume_at_once(share, bridge_mm, contact, rows_a_slab, monkeypatch):
    """Pieces are found slab by slab: random labels make many that wind through several slabs."""
    monkeypatch.setattr(pieces, "_VOXELS_A_SLAB", rows_a_slab * 20 * 18)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((50, 20, 18)) < share, rng.integers(1, 3, (50, 20, 18)), 0).astype(np.uint8)
    labels[1:-1, 1:-1, 1:-1][ndimage.gaussian_filter(rng.random((48, 18, 16)), 2) > 0.51] = 2
    expected = whole_at_once(labels.copy(), bridge_mm, contact)
    rules = PostProcessing(
        bridge_mm=bridge_mm, least_liver_contact=contact, drop_single_slices=False, smallest_lesion_ml=0.05
    )
    np.testing.assert_array_equal(rules(labels, SPACING), expected)
    assert (expected > 0).any()


GRIDS = [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (1.5, 1.2, 2.0)]


def balls(spacing, *balls, size_mm=100):
    """Labels of `(label, centre_mm, radius_mm or three half axes)`, each over those before."""
    shape = [int(size_mm / step) for step in spacing]
    places = np.meshgrid(*(np.arange(n) * step for n, step in zip(shape, spacing, strict=True)), indexing="ij")
    labels = np.zeros(shape, np.uint8)
    for label, centre, radii in balls:
        radii = np.broadcast_to(radii, 3)
        inside = sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) <= 1
        labels[inside] = label
    return labels


LIVER_BALL = (1, (40, 50, 50), 30)
# centre 2 mm outside the liver: a little less than half of it lies within
EXOPHYTIC = (2, (72, 50, 50), 15)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 40), data=st.data())
def test_joined_parts_are_scipys_connected_components(count, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60))
    first, second = np.array(pairs, int).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    expected_count, expected = sparse.csgraph.connected_components(graph, directed=False)
    found_count, found = _connected(count, first, second)
    assert found_count == expected_count
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("spacing", GRIDS)
def test_exophytic_tumours_stay(spacing):
    labels = balls(spacing, LIVER_BALL, EXOPHYTIC)
    np.testing.assert_array_equal(PostProcessing()(labels.copy(), spacing), labels)


@pytest.mark.parametrize("spacing", GRIDS)
def test_tumour_that_hardly_borders_on_liver_is_none(spacing):
    stomach = (2, (86, 50, 50), 20)  # beside the liver's ball, which it touches with a cap
    labels = balls(spacing, stomach, LIVER_BALL, (2, (40, 50, 50), 8))
    cleaned = PostProcessing(bridge_mm=0)(labels.copy(), spacing)
    expected = balls(spacing, LIVER_BALL, (2, (40, 50, 50), 8))
    np.testing.assert_array_equal(cleaned, expected)
    kept = PostProcessing(bridge_mm=0, least_liver_contact=0)(labels.copy(), spacing)
    np.testing.assert_array_equal(kept, labels)


@pytest.mark.parametrize(
    "spacing", [(0.7, 0.8, 5.0), (0.9, 0.6, 1.3), (2.0, 3.0, 1.1), (4.0, 4.0, 4.0), (0.31, 0.3, 0.5)]
)
def test_what_is_deeper_than_a_distance_is_so_in_a_distance_map(spacing):
    mask = ndimage.binary_dilation(np.random.default_rng(0).random((24, 30, 20)) < 0.002, iterations=8)
    assert not mask.all()
    padded = np.pad(mask, 30, constant_values=True)  # beyond the array is inside
    depth_mm = ndimage.distance_transform_edt(padded, sampling=spacing)[30:-30, 30:-30, 30:-30]
    for least_mm in (0.0, 1.234, 2.5, 3.01):
        for stored in (mask, np.asfortranarray(mask)):
            np.testing.assert_array_equal(_is_deeper(stored, least_mm, spacing), depth_mm > least_mm)


@pytest.mark.parametrize(("bridge_mm", "is_cut"), [(2.9, False), (3.0, True)])
def test_a_bridge_just_as_wide_is_cut(bridge_mm, is_cut):
    labels = np.zeros((44, 24, 24), np.uint8)
    labels[2:22, 2:22, 2:22] = 1
    labels[22:28, 10:13, 10:13] = 1  # 3 voxels of 1 mm
    labels[28:40, 6:18, 6:18] = 2
    cleaned = PostProcessing(bridge_mm=bridge_mm, least_liver_contact=0)(labels.copy(), (1.0, 1.0, 1.0))
    assert (cleaned == 2).any() != is_cut
    assert (cleaned[2:22] == labels[2:22]).all()


@pytest.mark.parametrize("spacing", GRIDS)
def test_a_stomach_with_its_wall_on_a_bridge_is_dropped(spacing):
    """Its contents are called tumour, its wall liver: the contents border on "liver" all around."""
    wall, contents = (1, (50, 80, 50), 17), (2, (50, 80, 50), 14)
    liver, bridge = (1, (50, 30, 50), 25), (1, (50, 60, 50), (1.9, 8, 1.9))
    labels = balls(spacing, wall, contents, liver, bridge)
    pieces, count = ndimage.label(labels > 0)
    assert count == 1
    cleaned = PostProcessing()(labels.copy(), spacing)
    assert not (cleaned == 2).any()
    is_liver = balls(spacing, liver) > 0
    np.testing.assert_array_equal(cleaned[is_liver], labels[is_liver])
    assert np.count_nonzero(cleaned) - is_liver.sum() < 0.1 * (labels == 2).sum()  # at most a stub of the bridge
    without = PostProcessing(bridge_mm=0)(labels.copy(), spacing)
    np.testing.assert_array_equal(without, labels)


def test_a_lobe_of_liver_on_a_bridge_stays_with_its_tumour():
    lobe, lesion = (1, (50, 80, 50), 15), (2, (50, 80, 50), 8)
    labels = balls((1, 1, 1), lobe, lesion, (1, (50, 30, 50), 25), (1, (50, 60, 50), (1.9, 9, 1.9)))
    np.testing.assert_array_equal(PostProcessing()(labels.copy(), (1.0, 1.0, 1.0)), labels)


centres = st.tuples(*[st.floats(25, 55), st.floats(35, 65), st.floats(35, 65)])


@settings(max_examples=25, deadline=None)
@given(centre=centres, radius=st.floats(4, 12), spacing=st.sampled_from(GRIDS))
def test_a_tumour_within_the_liver_stays(centre, radius, spacing):
    if np.linalg.norm(np.subtract(centre, LIVER_BALL[1])) + radius > 30 - max(spacing):
        return
    labels = balls(spacing, LIVER_BALL, (2, centre, radius))
    np.testing.assert_array_equal(PostProcessing(smallest_lesion_ml=0)(labels.copy(), spacing), labels)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), flips=st.sets(st.sampled_from([0, 1, 2])), swap=st.booleans())
def test_the_result_does_not_go_by_the_orientation(seed, flips, swap):
    rng = np.random.default_rng(seed)
    labels = balls((2, 2, 4), *((rng.integers(1, 3), rng.uniform(20, 80, 3), rng.uniform(4, 25)) for _ in range(9)))
    flipped = np.flip(labels, tuple(flips))
    turned = np.ascontiguousarray(flipped.swapaxes(0, 1) if swap else flipped)
    cleaned = PostProcessing()(turned, (2.0, 2.0, 4.0))
    cleaned = np.flip(cleaned.swapaxes(0, 1) if swap else cleaned, tuple(flips))
    np.testing.assert_array_equal(cleaned, PostProcessing()(labels, (2.0, 2.0, 4.0)))


def test_holes_in_a_tumour_are_tumour():
    labels = balls((1, 1, 1), (1, (50, 50, 50), 30), (2, (50, 50, 50), 15), (0, (50, 50, 50), 5), size_mm=100)
    labels[50, 50, 60] = 1
    cleaned = PostProcessing()(labels.copy(), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(cleaned, balls((1, 1, 1), (1, (50, 50, 50), 30), (2, (50, 50, 50), 15)))


def test_broad_tumour_in_one_slice_alone_is_liver():
    labels = np.ones((60, 60, 9), np.uint8)
    labels[5:17, 5:17, 4] = 2  # 144 mm^2: a ball of it would have a radius of 6.8 mm
    labels[40:46, 5:11, 4] = 2  # 36 mm^2, 3.4 mm
    labels[5:17, 40:52, 4:6] = 2
    expected = labels.copy()
    expected[5:17, 5:17, 4] = 1
    np.testing.assert_array_equal(PostProcessing()(labels.copy(), (1.0, 1.0, 3.0)), expected)
    single = np.ascontiguousarray(labels[..., 4:5])
    np.testing.assert_array_equal(PostProcessing()(single.copy(), (1.0, 1.0, 3.0)), single)


@pytest.mark.parametrize("options", [{"bridge_mm": -1}, {"least_liver_contact": 1.2}, {"smoothing_mm": float("nan")}])
def test_impossible_rules(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: expected a number of at least 0"):
        PostProcessing(**options)


def test_nothing_found_stays_nothing():
    assert not PostProcessing()(np.zeros((4, 5, 6), np.uint8), SPACING).any()


def test_switched_off_changes_nothing():
    off = PostProcessing(largest_liver=False, fill_holes=False)
    np.testing.assert_array_equal(off(volume(), SPACING), volume())


def test_nothing_to_clean_up():
    full = np.ones((20, 5, 1), np.uint8)
    np.testing.assert_array_equal(PostProcessing(smallest_lesion_ml=1)(full.copy(), SPACING), full)


@pytest.mark.parametrize("sizes", [(9,), (1,) * 9, (4, 4, 1), (2, 7)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_smoothing_is_a_gaussian_over_the_slices_however_they_come(sizes, sigma):
    values = np.random.default_rng(0).random((9, 3, 2, 2)).astype(np.float32)
    smoother = SliceSmoother(sigma)
    parts = [smoother.add(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    radius = int(np.ceil(3 * sigma))
    gaussian = partial(ndimage.gaussian_filter1d, sigma=sigma, axis=0, mode="constant", radius=radius)
    expected = gaussian(values) / gaussian(np.ones_like(values))  # cut at the ends
    np.testing.assert_allclose(np.concatenate([*parts, smoother.rest()]), expected, atol=1e-6)


def test_smoothing_holds_no_more_slices_than_it_needs():
    smoother = SliceSmoother(1.0)
    for _ in range(50):
        smoother.add(np.zeros((2, 4, 4, 3), np.float32))
    assert len(smoother._window) <= 2 * 3 + 2


class OneSliceOfTumour:
    """Liver everywhere; tumour in one slice, or in all."""

    is_remote = False
    slices_at_once = 1

    config = ModelConfig(image_size=32, backbone="resnet18")

    def probabilities(self, hu):
        tumour = np.where(hu > 0, 0.9, 0.02)
        return np.stack([np.full_like(tumour, 0.01), 0.99 - tumour, tumour], -1).astype(np.float32)

    def labels(self, hu):
        return self.probabilities(hu).argmax(-1).astype(np.uint8)


def test_smoothing_drops_a_finding_in_one_thin_slice_and_keeps_one_in_several_or_a_thick_one():
    def found(slices, thickness_mm, **options):
        hu = np.full((40, 40, 9), -1.0, np.float32)
        hu[..., slices] = 1
        predictor = ls.Predictor(OneSliceOfTumour(), **options)
        labels = predictor.predict(hu, spacing_mm=(10.0, 10.0, thickness_mm)).canonical_labels
        return np.flatnonzero((labels == 2).any((0, 1))).tolist()

    assert found([4], 1.0) == []
    assert found([4], 1.0, batch_size=2) == []
    assert found([4], 1.0, postprocessing=PostProcessing(smoothing_mm=0, drop_single_slices=False)) == [4]
    assert found([4], 5.0, postprocessing=PostProcessing(drop_single_slices=False)) == [4]
    assert found([2, 3, 4, 5, 6], 1.0) == [2, 3, 4, 5, 6]


def test_findings_below_a_ball_of_5_mm_are_liver_by_default():
    labels = np.ones((30, 30, 30), np.uint8)
    labels[2:6, 2:6, 2:6] = 2  # 64 voxels of 1 mm: smaller than 65.4
    labels[10:15, 10:15, 10:13] = 2  # 75
    cleaned = PostProcessing()(labels, (1.0, 1.0, 1.0))
    assert (cleaned == 2).sum() == 75 and cleaned[12, 12, 11] == 2
