"""Slices that can hold the liver are found, and give the mask that all slices give."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liverseg_tf as ls
from liverseg_tf.inference.extent import coarse_slices, likely_extent
from liverseg_tf.inference.postprocessing import PostProcessing
from liverseg_tf.inference.segment import read_ahead

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


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
def test_labels_are_written_without_a_copy(signs):
    """A mask of a thousand slices would take a quarter of a gigabyte once more."""
    image = nib.Nifti1Image(volume([0] * 5 + [30] * 12).astype(np.int16), np.diag([*np.multiply(signs, 4.0), 1]))
    prediction = ls.Predictor(Bright()).predict(image)
    written = prediction.volume.image_like(prediction.canonical_labels)
    assert prediction.canonical_labels.any()
    assert np.shares_memory(written.dataobj, prediction.canonical_labels)
