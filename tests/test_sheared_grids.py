"""Millilitres and millimetres in grids whose axes are not perpendicular, as a tilted gantry's are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.cases import Case
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.evaluation.case_scores import score_case
from liverseg_tf.evaluation.statistics import statistics
from liverseg_tf.evaluation.surface import surface_distances, surface_voxels
from liverseg_tf.explanation.regions import find_regions
from liverseg_tf.explanation.uncertainty import measure_uncertainty
from liverseg_tf.inference.postprocessing import PostProcessing
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.reporting.case_table import describe_cases

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
# 2 x 2 mm pixels, slices 4 mm apart along the table, the gantry tilted by 20 degrees
TILT = np.radians(20)
TILTED = np.array(
    [[-2, 0, 0, 9], [0, -2 * np.cos(TILT), 0, 7], [0, -2 * np.sin(TILT), 4, -60], [0, 0, 0, 1]], dtype=float
)
VOXEL_ML = 2 * 2 * 4 * np.cos(TILT) / 1000


@pytest.fixture
def labels():
    """(x, y, z): a liver with one tumour."""
    labels = np.zeros((24, 22, 10), np.uint8)
    labels[4:20, 4:18, 2:8] = 1
    labels[8:13, 8:12, 3:6] = 2
    return labels


def as_mask(labels, affine=TILTED):
    return MaskVolume(labels, Geometry(labels.shape, affine))


class Thresholds:
    """A runtime that takes 100 HU for liver and 200 for tumour."""

    config = ModelConfig(image_size=32)
    is_remote = False
    slices_at_once = 1

    def probabilities(self, hu):
        found = np.digitize(hu, [50, 150])
        return np.eye(3, dtype=np.float32)[found]

    def labels(self, hu):
        return self.probabilities(hu).argmax(-1).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(0.5, 5)] * 3),
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((-1, 1))] * 3),
)
def test_steps_keep_lengths_and_volumes_are_the_determinant(spacing, shear, order, signs):
    matrix = np.diag(spacing) @ np.array([[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (matrix * signs)[:, order]
    geometry = Geometry((4, 5, 6), affine)
    assert geometry.voxel_volume_ml == pytest.approx(np.prod(spacing) / 1000)
    steps, turned = geometry.steps_mm, geometry.canonical_affine[:3, :3]
    lengths = np.linalg.norm(turned, axis=0)  # axes that are perpendicular to within 1e-4 count as such
    assert (np.abs(steps.T @ steps - turned.T @ turned) <= 1.1e-4 * np.outer(lengths, lengths)).all()
    assert np.linalg.det(steps) / 1000 == pytest.approx(geometry.voxel_volume_ml, rel=1e-4)
    assert (np.diag(steps) > 0).all() and np.array_equal(steps, np.triu(steps))


def test_steps_of_perpendicular_axes_are_the_spacing():
    turned = np.eye(4)
    turned[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([0.7, 0.9, 2.5])
    geometry = Geometry((3, 3, 3), turned)
    np.testing.assert_array_equal(geometry.steps_mm, np.diag(geometry.spacing_mm))


def test_every_volume_is_the_determinants(labels, tmp_path, write_nifti):
    liver, tumour = int((labels > 0).sum()) * VOXEL_ML, int((labels == 2).sum()) * VOXEL_ML
    assert np.prod(as_mask(labels).spacing_mm) / 1000 > 1.05 * VOXEL_ML  # else nothing would be tested here
    found = statistics(as_mask(labels))
    assert (found.liver_volume_ml, found.tumour_volume_ml) == pytest.approx((liver, tumour))
    assert found.lesions[0].volume_ml == pytest.approx(tumour)
    assert found.lesions[0].diameter_mm == pytest.approx((6000 * tumour / np.pi) ** (1 / 3))
    scores = score_case(as_mask(labels), as_mask(labels))
    assert (scores.row["liver_volume_truth_ml"], scores.row["lesion_volume_prediction_ml"]) == pytest.approx(
        (liver, tumour)
    )
    assert [row["volume_ml"] for row in scores.lesions] == pytest.approx([tumour] * 2)
    hu = (100 * labels.astype(np.int16)) - (labels == 0) * np.int16(500)
    files = [
        write_nifti(tmp_path / f"{name}-1.nii", array, TILTED)
        for name, array in (("volume", hu), ("segmentation", labels))
    ]
    (row,) = describe_cases([Case(1, "1", *files)])
    assert (row["liver_ml"], row["tumour_ml"]) == pytest.approx((liver, tumour), abs=0.006)
    uncertain = measure_uncertainty(CTVolume.load(files[0]), Thresholds(), TestTimeAugmentation(count=3))
    assert uncertain.liver_volumes_ml[0] == pytest.approx(liver)
    assert uncertain.tumour_volumes_ml[0] == pytest.approx(tumour)


@pytest.mark.parametrize(("smallest", "kept"), [(0.995, True), (1.005, False)])
def test_the_smallest_lesion_goes_by_the_determinant(labels, smallest, kept):
    hu = CTVolume((100 * labels.astype(np.int16)) - 50 * (labels == 0), Geometry(labels.shape, TILTED))
    least = smallest * int((labels == 2).sum()) * VOXEL_ML
    clean = PostProcessing(smoothing_mm=0, smallest_lesion_ml=least)
    assert (Predictor(Thresholds(), postprocessing=clean).predict(hu).labels == 2).any() == kept


def test_little_liver_is_told_by_the_determinant():
    labels = np.zeros((40, 40, 10), np.uint8)
    labels[4:38, 4:38, :9] = 1
    affine = TILTED.copy()
    affine[:3] *= np.cbrt(195 / (np.count_nonzero(labels) * VOXEL_ML))
    volume = CTVolume(100 * labels.astype(np.int16) - 50 * (labels == 0), Geometry(labels.shape, affine))
    assert np.count_nonzero(labels) * np.prod(volume.spacing_mm) / 1000 > 200
    with pytest.warns(UserWarning, match="only 195 ml of liver found"):
        Predictor(Thresholds(), postprocessing=None).predict(volume)


def test_surface_distances_are_those_of_the_voxels_places(labels):
    other = np.roll(labels, (1, 2, 1), (0, 1, 2))
    row = score_case(as_mask(labels), as_mask(other)).row
    places = [
        np.argwhere(surface_voxels(mask)) @ TILTED[:3, :3].T for mask in (labels > 0, other > 0)
    ]  # fmt: skip
    between = cdist(*places)
    there, back = between.min(1), between.min(0)
    both = np.concatenate([there, back])
    assert row["liver_assd_mm"] == pytest.approx(both.mean())
    assert row["liver_msd_mm"] == pytest.approx(both.max())
    assert row["liver_hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert row["liver_surface_dice_3mm"] == pytest.approx((both <= 3.0005).mean())
    straight = surface_distances(labels > 0, other > 0, as_mask(labels).spacing_mm)
    assert abs(straight.assd() - both.mean()) > 0.01  # what the column lengths alone would give


def test_a_diagonal_matrix_means_its_spacing(labels):
    truth, other = labels > 0, np.roll(labels, 2, 1) > 0
    by_spacing = surface_distances(truth, other, (2.0, 1.0, 3.0))
    by_steps = surface_distances(truth, other, np.diag([2.0, 1.0, 3.0]))
    np.testing.assert_array_equal(by_spacing.truth_mm, by_steps.truth_mm)


def test_extent_and_voxel_of_a_lesion():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[5, 5, 2:8] = 2  # a rod along the table
    lesion = statistics(as_mask(labels)).lesions[0]
    # the slices' normal leans by the tilt: the rod, 24 mm long, rises by its cosine and runs forward by its sine
    across = 2 + 6 * 4 * np.sin(TILT)
    assert lesion.extent_mm == pytest.approx((across, 2.0, 24 * np.cos(TILT)))


def test_a_ball_around_a_point_is_round():
    geometry = Geometry((40, 40, 20), TILTED)
    (ball,) = find_regions(
        np.full(geometry.canonical_shape, 1, np.uint8), geometry, "liver", point=(20, 20, 10), radius_mm=12.0
    )
    ml = ball.mask.sum() * geometry.voxel_volume_ml
    assert ml == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.03)
