"""Slices that can hold the liver are found, and give the mask that all slices give."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume
from liverseg_tf.inference.extent import coarse_slices, likely_extent, slab_weights, slice_step
from liverseg_tf.inference.postprocessing import PostProcessing, SliceSmoother
from liverseg_tf.inference.segment import NetworkScoring, Segmenter, read_ahead

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
SPACING = (2.0, 2.0, 4.0)


class Bright:
    """A network at half the slices' size that finds liver by brightness, and counts its slices."""

    is_remote, slices_at_once = False, 2

    def __init__(self):
        self.config, self.seen = ls.ModelConfig(image_size=32), []

    def at_network_size(self, hu):
        self.seen += hu[:, 0, 0].tolist()
        liver = hu[:, ::2, ::2] / 100
        return np.stack([1 - liver, 0.9 * liver, 0.1 * liver], axis=1).astype(np.float32)

    def probabilities(self, hu):
        raise AssertionError("the slices' own size is not needed")

    labels = probabilities


def volume(heights, shape=(64, 64)):
    """Each slice holds a square of liver as high as said; the first pixel is its number, below what is liver."""
    hu = np.zeros((*shape, len(heights)), np.float32)
    hu[0, 0] = np.arange(len(heights)) / 10
    for index, height in enumerate(heights):
        hu[8 : 8 + height, 8 : 8 + height, index] = 90
    return hu


def masks(hu, **options):
    runtimes = Bright(), Bright()
    found = [
        ls.Predictor(runtime, extent=extent, **options).predict(hu, spacing_mm=SPACING)
        for runtime, extent in zip(runtimes, (True, False), strict=True)
    ]
    return [prediction.canonical_labels for prediction in found], runtimes


def test_slices_far_from_the_liver_are_not_segmented():
    heights = [0] * 40 + [10, 20, 30, 40, 40, 40, 40, 40, 40, 40, 40, 30, 20, 10] + [0] * 40
    (found, expected), (fast, full) = masks(volume(heights), batch_size=2)
    assert expected.any()
    np.testing.assert_array_equal(found, expected)
    assert len(full.seen) == len(heights)
    assert len(fast.seen) < 0.55 * len(heights)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 16), st.integers(1, 39)), min_size=1, max_size=3),
    liver=st.none() | st.tuples(st.integers(0, 12), st.integers(9, 16), st.just(39)),
    place=st.integers(0, 3),
    above=st.integers(0, 20),
    smoothing_mm=st.sampled_from([0.0, 2.0, 6.0]),
)
def test_masks_are_those_of_all_slices(pieces, liver, place, above, smoothing_mm):
    """Wherever pieces lie: at the ends, with gaps, several of them, a liver among them or none."""
    pieces = [*pieces[:place], *([liver] if liver else []), *pieces[place:]]
    heights = [h for gap, slices, height in pieces for h in [0] * gap + [height] * slices] + [0] * above
    clean = PostProcessing(smoothing_mm=smoothing_mm)
    (found, expected), _ = masks(volume(heights), postprocessing=clean, batch_size=3)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(1, 39)), min_size=1, max_size=3),
    above=st.integers(0, 40),
    step=st.integers(1, 5),
    sigma=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 99),
)
def test_the_same_slices_are_scored_with_and_without_locating_the_liver(pieces, above, step, sigma, seed):
    heights = [h for gap, slices, height in pieces for h in [0] * gap + [height] * slices] + [0] * above
    hu = volume(heights)
    hu[8:40, 8:40] += np.random.default_rng(seed).integers(-40, 41, len(heights))  # no finding by itself
    ct = CTVolume.from_array(hu, spacing_mm=(2.0, 2.0, 1.0))
    found = []
    for name in ("liver_slices", "all_slices"):
        scoring = NetworkScoring(Bright().at_network_size, (64, 64))
        smoother = (lambda: SliceSmoother(sigma)) if sigma else None
        labels = getattr(Segmenter(ct, scoring, 3, smoother, step), name)(lambda done: None)
        found.append(PostProcessing()(labels, ct.spacing_mm))
    np.testing.assert_array_equal(*found)


def test_thin_slices_are_interpolated():
    heights = [0] * 30 + [*range(12, 40)] * 2 + [*range(40, 0, -1)] + [0] * 30
    heights = np.repeat(heights, 2)
    runtimes = Bright(), Bright()
    fast, full = (
        ls.Predictor(runtime, extent=extent).predict(volume(heights), spacing_mm=(2.0, 2.0, 1.0)).canonical_labels
        for runtime, extent in zip(runtimes, (True, False), strict=True)
    )
    seen, every = (len(set(runtime.seen)) for runtime in runtimes)
    assert every == len(heights)
    assert seen < 0.34 * every
    assert 2 * ((fast > 0) & (full > 0)).sum() > 0.99 * ((fast > 0).sum() + (full > 0).sum())


def test_probabilities_change_no_mask():
    hu = volume([0] * 30 + [*range(5, 40)] * 3 + [0] * 30)
    with_them, without = (
        ls.Predictor(Bright()).predict(hu, spacing_mm=(2.0, 2.0, 1.0), probabilities=wanted) for wanted in (True, False)
    )
    assert without.canonical_labels.any()
    np.testing.assert_array_equal(with_them.canonical_labels, without.canonical_labels)


def test_no_slice_is_interpolated_where_thick_or_unsmoothed():
    heights = [0] * 40 + [30] * 40 + [0] * 40
    for spacing, options in ((1.7, {}), (1.0, {"postprocessing": PostProcessing(smoothing_mm=0, largest_liver=False)})):
        runtime = Bright()
        ls.Predictor(runtime, **options).predict(volume(heights), spacing_mm=(2.0, 2.0, spacing))
        middle = {round(10 * number) for number in runtime.seen if 4.5 < number < 7.5}
        assert middle == set(range(46, 75))


def test_thin_slices_are_averaged_before_they_are_segmented():
    for spacing, weights in ((1.6, [1.0]), (0.8, [0.25, 0.5, 0.25]), (1.0, [0.1875, 0.625, 0.1875])):
        np.testing.assert_allclose(slab_weights(spacing), weights, atol=1e-6)
    assert len(slab_weights(0.5)) == 5
    seen = []

    class Kept(Bright):
        def at_network_size(self, hu):
            seen.extend(hu[:, 0, 0].tolist())
            return super().at_network_size(hu)

    hu = np.zeros((64, 64, 9), np.float32)
    hu[0, 0] = [8, 0, 0, 4, 0, 0, 0, 0, 6]
    ls.Predictor(Kept()).predict(hu, spacing_mm=(2.0, 2.0, 0.8))
    # slices 0, 4 and 8 are segmented; the first and the last have one neighbour
    assert sorted(set(np.round(seen, 3))) == [1.0, 4.0, 5.333]


def test_every_how_many_slices():
    assert [slice_step(spacing_mm) for spacing_mm in (0.5, 1.6, 1.625, 1.63, 3.25, 10.0)] == [6, 2, 2, 1, 1, 1]


def test_all_slices_where_pieces_are_kept_or_probabilities_wanted():
    heights = [0] * 20 + [30] * 12 + [0] * 20
    for options in ({"postprocessing": None}, {"postprocessing": PostProcessing(largest_liver=False)}):
        _, (fast, _) = masks(volume(heights), **options)
        assert sorted(fast.seen) == pytest.approx(np.arange(len(heights)) / 10)
    runtime = Bright()
    prediction = ls.Predictor(runtime).predict(volume(heights), spacing_mm=SPACING, probabilities=True)
    assert len(runtime.seen) == len(heights)
    assert np.unique(prediction.probabilities["liver"][20, 20]).tolist() == [0, 207]


def test_coarse_slices_lie_20_mm_apart():
    assert list(coarse_slices(20, 4.0)) == [2, 7, 12, 17]
    assert list(coarse_slices(3, 30.0)) == [0, 1, 2]
    assert list(coarse_slices(60, 1.0, step=3)) == [9, 30, 51]


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ([0, 5, 9, 4, 0], (1, 3)),
        ([0, 5, 9, 0, 3, 0], (1, 2)),
        ([0, 5, 9, 0, 4, 0], None),
        ([0, 0, 0], None),
        ([], None),
        ([0, 9, 0], None),
        ([5, 9, 0], (0, 1)),
        ([0, 5, 9], (1, 2)),
        ([5, 9], (0, 1)),
        ([5, 0, 0], None),
        ([5, 9, 0, 0, 4], None),
    ],
)
def test_what_is_not_sure_is_told(areas, expected):
    assert likely_extent(areas) == expected


def test_the_next_item_is_taken_meanwhile():
    import threading

    asked = threading.Event()

    def items():
        yield 1
        asked.set()
        yield 2

    taken = read_ahead(items())
    assert next(taken) == 1
    assert asked.wait(5)
    assert list(taken) == [2]

    def failing():
        yield 1
        raise ls.LiverSegError("broken")

    with pytest.raises(ls.LiverSegError, match="broken"):
        list(read_ahead(failing()))


class Parts(Bright):
    """A network of 128 px that can look at parts of slices; `changes` changes what it finds there."""

    sees_parts = True

    def __init__(self, changes=lambda liver: liver):
        self.config, self.boxes, self._changes = ls.ModelConfig(image_size=128), [], changes

    def scores(self, hu, box=None):
        self.boxes += [box] * len(hu)
        liver = np.zeros_like(hu)
        part = np.s_[:, *(box or (slice(None),) * 2)]
        liver[part] = hu[part] / 100
        liver = liver if box is None else self._changes(liver)
        return np.stack([1 - liver, 0.9 * liver, 0.1 * liver], axis=1)

    at_network_size = scores


def column(heights):
    """A liver 40 columns wide, as many rows high as said for each slice, in slices of 128 x 128."""
    hu = np.zeros((128, 128, len(heights)), np.float32)
    for index, height in enumerate(heights):
        hu[40 : 40 + height, 40:80, index] = 90
    return hu


def test_only_what_lies_around_the_liver_is_segmented():
    hu, runtime = column([0] * 20 + [40] * 60 + [0] * 20), Parts()
    found = ls.Predictor(runtime).predict(hu, spacing_mm=SPACING).canonical_labels
    expected = ls.Predictor(Parts(), extent=False).predict(hu, spacing_mm=SPACING).canonical_labels
    np.testing.assert_array_equal(found, expected)
    assert expected.any()
    parts = [box for box in runtime.boxes if box]
    assert len(parts) > 60
    assert all((rows.stop - rows.start, columns.stop - columns.start) == (64, 64) for rows, columns in parts)


def test_parts_of_all_slices_are_segmented_where_the_extent_is_uncertain():
    hu, runtime = column([0] * 10 + [40] * 40 + [0] * 12 + [40] * 38 + [0] * 10), Parts()
    found = ls.Predictor(runtime).predict(hu, spacing_mm=SPACING).canonical_labels
    expected = ls.Predictor(Parts(), extent=False).predict(hu, spacing_mm=SPACING).canonical_labels
    np.testing.assert_array_equal(found, expected)
    assert sum(box is not None for box in runtime.boxes) > 80


def test_whole_slices_are_segmented_where_a_part_is_not_enough():
    liver = [0] * 20 + [40] * 60 + [0] * 20
    wide = column(liver)
    wide[40:44, 40:, 53:56] = 90  # between the slices of the first pass it reaches the edge of the part, and beyond
    small = column([(10 if index % 5 == 2 else 2) * (height > 0) for index, height in enumerate(liver)])
    small[90:, 30:100, 33:37] = 90
    for hu, runtime in (
        (column(liver), Parts(lambda liver: np.roll(liver, 1, axis=1))),  # a network that sees other things in a part
        (wide, Parts()),
        (small, Parts()),  # less than 200 ml is found around the largest piece of the first pass
        (column([0] * 20 + [40] * 10 + [0] * 20), Parts()),  # so few slices that a part saves nothing
    ):
        found = ls.Predictor(runtime).predict(hu, spacing_mm=SPACING).canonical_labels
        expected = ls.Predictor(Parts(), extent=False).predict(hu, spacing_mm=SPACING).canonical_labels
        np.testing.assert_array_equal(found, expected)
        assert expected.any()
    assert not any(runtime.boxes)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
def test_labels_are_written_without_a_copy(signs):
    """A mask of a thousand slices would take a quarter of a gigabyte once more."""
    image = nib.Nifti1Image(volume([0] * 5 + [30] * 12).astype(np.int16), np.diag([*np.multiply(signs, 4.0), 1]))
    prediction = ls.Predictor(Bright()).predict(image)
    written = prediction.volume.image_like(prediction.canonical_labels)
    assert prediction.canonical_labels.any()
    assert np.shares_memory(written.dataobj, prediction.canonical_labels)
