"""`explain`, from a volume to files."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.errors import ConfigError, DataWarning, GeometryError, LiverSegError, ModelError, OutputError
from liverseg_tf.explanation.explain import explain
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.runtimes import KerasRuntime

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def explained(dark_is_tumour, lesions):
    volume, labels = lesions
    return explain(volume, model=dark_is_tumour, mask=labels, method="gradcam")


def test_one_map_for_each_lesion_that_beats_random(explained, lesions):
    volume, labels = lesions
    assert [r.region.name for r in explained.regions] == ["lesion-1", "lesion-2"]
    for region in explained.regions:
        heat = region.heatmap(volume.shape)
        assert heat.shape == volume.shape and heat.max() == pytest.approx(1, abs=0.01) and heat.min() >= 0
        # the slice that is shown and tested has heat, up to the brightest; no other was looked at
        assert set(np.flatnonzero(heat.any(axis=(0, 1)))) == {region.region.largest_slice}
        assert region.curves.beats_random and region.heat_in_liver > 0.9
        assert region.verdict == "supported" and region.reasons == []
    figures = explained.to_dict()
    assert figures["supported"] == figures["tested"] == 2
    assert figures["regions"][0]["tested_slice_from_1"] == 3 and figures["regions"][0]["slices_from_1"] == [3, 5]
    json.dumps(figures)


def test_heatmaps_are_written_in_the_inputs_own_grid(dark_is_tumour, lesions, tmp_path):
    volume, labels = lesions
    affine = np.array([[0, 0, -2.0, 7], [2.0, 0, 0, 8], [0, -5.0, 0, 9], [0, 0, 0, 1]])  # axes A, I, L
    order = CTVolume.from_image(nib.Nifti1Image(np.zeros((64, 8, 64), np.int16), affine)).geometry
    nib.save(nib.Nifti1Image(order.to_file(volume.hu).astype(np.int16), affine), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(order.to_file(labels), affine), tmp_path / "mask.nii.gz")
    result = explain(
        tmp_path / "ct.nii.gz", tmp_path / "out", dark_is_tumour, lesion=2, mask=tmp_path / "mask.nii.gz",
        faithfulness=False,
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == [
        "explanation.json",
        "lesion-2.png",
        "lesion-2_heatmap.nii.gz",
    ]
    image = nib.load(tmp_path / "out" / "lesion-2_heatmap.nii.gz")
    assert image.shape == (64, 8, 64) and np.allclose(image.affine, affine)
    heat = np.asarray(image.dataobj)
    expected = order.to_file(result.regions[0].heatmap(volume.shape))
    assert heat == pytest.approx(expected, abs=1 / 255)
    brightest = np.unravel_index(heat.argmax(), heat.shape)
    assert order.to_file(labels)[brightest] == 2
    assert json.loads((tmp_path / "out" / "explanation.json").read_text())["regions"][0]["verdict"] == "not tested"


def test_regions_come_from_the_prediction_by_default(dark_is_tumour, lesions):
    volume, labels = lesions
    predicted = Predictor(dark_is_tumour).predict(volume)
    by_volume = explain(volume, model=dark_is_tumour, faithfulness=False)
    by_prediction = explain(predicted, model=dark_is_tumour, faithfulness=False)
    assert len(by_volume.regions) == len(by_prediction.regions) == 2
    assert np.array_equal(by_volume.labels, predicted.canonical_labels)


def test_a_point_is_explained_where_nothing_was_found(dark_is_tumour, lesions):
    volume, labels = lesions
    empty = np.zeros_like(labels)
    result = explain(volume, model=dark_is_tumour, mask=empty, point=(24, 16, 3), radius_mm=10, random_maps=2)
    assert result.regions[0].reasons[0] == "fewer than 20 random maps"
    assert result.regions[0].region.name == "point"
    assert result.regions[0].slice_map(3)[24, 16] > 0.5


def test_liver_target(dark_is_tumour, lesions):
    volume, labels = lesions
    result = explain(volume, model=dark_is_tumour, mask=labels, target="liver", random_maps=2)
    assert result.to_dict()["regions"][0]["class"] == "liver"
    assert (
        result.regions[0].verdict == "not supported" and "no heat" in result.regions[0].reasons
    )  # the network's liver logit is a constant: there is nothing to see


def test_nothing_to_explain_warns_and_only_the_largest_lesions_are_taken(dark_is_tumour, lesions):
    volume, labels = lesions
    with pytest.warns(DataWarning, match="no tumour was found"):
        assert explain(volume, model=dark_is_tumour, mask=np.zeros_like(labels)).regions == []
    result = explain(volume, model=dark_is_tumour, mask=labels, most_lesions=1, faithfulness=False)
    assert [r.region.name for r in result.regions] == ["lesion-1"] and result.left_out == 1


def test_files_of_others_are_not_replaced(explained, tmp_path):
    (tmp_path / "lesion-1.png").write_text("mine")
    with pytest.raises(OutputError, match="was not made by this library"):
        explained.save(tmp_path)
    assert (tmp_path / "lesion-1.png").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    explained.save(tmp_path / "new")
    explained.save(tmp_path / "new")  # our own are
    (tmp_path / "new" / "explanation.json").write_text("{}")
    with pytest.raises(OutputError, match="explanation.json: exists and was changed"):
        explained.save(tmp_path / "new")
    explained.save(tmp_path, overwrite=True)
    assert (tmp_path / "lesion-1.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_models_masks_and_options_are_errors(dark_is_tumour, lesions, tmp_path):
    volume, labels = lesions
    with pytest.raises(ModelError):
        explain(volume, model=tmp_path / "none")
    with pytest.raises(LiverSegError):
        explain(tmp_path / "none.nii", model=dark_is_tumour)
    with pytest.raises(GeometryError):
        explain(volume, model=dark_is_tumour, mask=labels[:-1])
    with pytest.raises(ConfigError, match="most_lesions=0"):
        explain(volume, model=dark_is_tumour, most_lesions=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="got a file"):
        explain(volume, tmp_path / "file", dark_is_tumour)


def test_figure_tells_what_the_map_means(explained):
    figure = explained.figure(0)
    assert " ".join(figure.get_suptitle().split()) == explained.regions[0].words
    assert explained.regions[0].words.startswith("supported: beats 100 % (deletion)")
    assert [a.get_title().splitlines()[0] for a in figure.axes[2:4]] == [
        "deletion: lower is better",
        "insertion: higher is better",
    ]


class Marks:
    """Says of every region that this is where the reasons lie."""

    layer = None

    def __init__(self, heat):
        self.heat = heat

    def slice_map(self, hu, region, label, filled):
        return self.heat.astype(np.float32)


@pytest.fixture
def in_air(lesions):
    """The lesions with air around the liver, and a pocket of muscle beside it."""
    volume, labels = lesions
    hu = volume.hu.copy()
    hu[labels == 0] = -1000
    hu[4:60, 60:63] = 50
    return CTVolume.from_array(hu.astype(np.int16), volume.spacing_mm), labels


@pytest.mark.parametrize(
    ("rows", "columns", "weight", "reason"),
    [
        (slice(0, 3), slice(0, 64), 1, "no heat"),  # air is masked, so nothing is left
        (slice(4, 60), slice(60, 63), 9, "most of the heat is outside the liver"),
        (slice(50, 58), slice(50, 58), 1, "beats less than 95 % of random maps"),
    ],
)
def test_heat_in_air_outside_the_liver_or_in_the_wrong_place_is_not_supported(
    dark_is_tumour, in_air, monkeypatch, rows, columns, weight, reason
):
    volume, labels = in_air
    heat = np.zeros((64, 64))
    if weight == 9:  # the lesion is marked too, and would beat any random map
        heat[16:32, 8:24] = 1
    heat[rows, columns] = weight
    monkeypatch.setattr("liverseg_tf.explanation.explain.make_explainer", lambda *a, **k: Marks(heat))
    (found,) = explain(volume, model=dark_is_tumour, mask=labels, lesion=1, randomized_models=1).regions
    assert reason in found.reasons and found.verdict == "not supported"
    assert not found.maps[:, :3].any()
    if weight == 9:
        assert found.heat_in_liver == pytest.approx(256 / (256 + 9 * 56 * 3), abs=0.01)
        assert "14 % of the heat within the liver" in found.words


def test_maps_like_those_of_randomised_networks_are_not_supported(dark_is_tumour, lesions, monkeypatch):
    volume, labels = lesions
    heat = (labels[..., 3] == 2) * 1.0  # the lesion itself, whatever the network
    monkeypatch.setattr("liverseg_tf.explanation.explain.make_explainer", lambda *a, **k: Marks(heat))
    (found,) = explain(volume, model=dark_is_tumour, mask=labels, lesion=1, randomized_models=1).regions
    assert found.reasons == ["looks like maps of randomised networks"] and found.randomized_correlation > 0.99


@pytest.mark.parametrize(("likeness", "networks"), [(0.1, 1), (0.9, 1), (0.4, 3)])
def test_further_randomised_networks_are_asked_only_where_the_first_leaves_it_open(
    dark_is_tumour, lesions, monkeypatch, likeness, networks
):
    volume, labels = lesions
    made = []
    monkeypatch.setattr("liverseg_tf.explanation.explain.randomized_model", lambda model, seed: made.append(seed))
    monkeypatch.setattr("liverseg_tf.explanation.explain.rank_correlation", lambda *maps: -likeness)
    monkeypatch.setattr("liverseg_tf.explanation.explain.make_explainer", lambda *a, **k: Marks(labels[..., 3] * 1.0))
    (found,) = explain(volume, model=dark_is_tumour, mask=labels, lesion=1, random_maps=2).regions
    assert made == list(range(networks)) and found.randomized_correlation == pytest.approx(likeness)


def test_the_curves_are_of_what_made_the_mask(dark_is_tumour, lesions, monkeypatch):
    volume, labels = lesions

    class Own(KerasRuntime):
        """Has another network to look into, as a .tflite file has."""

        def probabilities(self, hu):
            return np.full((*hu.shape, 3), 0.25, np.float32)

    own, network = Own(dark_is_tumour), KerasRuntime(dark_is_tumour)
    monkeypatch.setattr("liverseg_tf.explanation.explain.keras_runtime", lambda runtime: network)
    (found,) = explain(volume, model=own, mask=labels, lesion=1, random_maps=2, randomized_models=1).regions
    assert np.all(found.curves.deletion == 0.25)


def test_each_map_is_scaled_on_the_slice_that_is_shown(dark_is_tumour, lesions, monkeypatch):
    volume, labels = lesions

    class Weaker(Marks):
        def slice_map(self, hu, region, label, filled):
            return self.heat * (0.01 if region.sum() == 256 else 7.0)

    thinner = labels.copy()
    thinner[16:18, 8:24, 2] = 1  # slices 3 and 4 hold most of lesion 1, slice 2 the hottest map
    monkeypatch.setattr(
        "liverseg_tf.explanation.explain.make_explainer", lambda *a, **k: Weaker(np.ones((64, 64), np.float32))
    )
    (found,) = explain(
        volume, model=dark_is_tumour, mask=thinner, lesion=1, faithfulness=False, all_slices=True
    ).regions
    assert found.region.largest_slice == 3
    assert [float(m.max()) for m in found.maps] == pytest.approx([1, 1, 1])  # cut, not the shown slice made dark


def test_lesions_of_one_slice_share_its_random_maps(dark_is_tumour, lesions):
    volume, labels = lesions
    both = np.minimum(labels, 1)
    both[16:32, 8:24, 3] = both[40:48, 40:48, 3] = 2
    pictures = []

    class Counting(KerasRuntime):
        def probabilities(self, hu):
            pictures.append(len(hu))
            return super().probabilities(hu)

    found = explain(volume, model=Counting(dark_is_tumour), mask=both, randomized_models=1)
    assert [r.region.largest_slice for r in found.regions] == [3, 3]
    # the slice as it is, both ends and 20 random maps once; for each lesion its own map, and the lesion filled
    assert sum(pictures) == 1 + 2 + 6 * 20 + 2 * (6 + 1)


def test_the_shipped_model_is_explained_by_default(lesions):
    volume, labels = lesions
    found = explain(volume, mask=labels, lesion=1, faithfulness=False)
    assert found.regions[0].maps.shape[1:] == volume.shape[:2] and found.regions[0].maps.max() > 0


def test_wrong_questions_are_noticed_before_anything_is_predicted(dark_is_tumour, lesions):
    steps = []
    for question, words in (
        ({"point": (99, 0, 0)}, "point"),
        ({"lesion": 0}, "counted from 1"),
        ({"point": (1, 1, 1), "radius_mm": 0}, "radius"),
        ({"target": "spleen"}, "target"),
    ):
        with pytest.raises(LiverSegError, match=words):
            explain(lesions[0], model=dark_is_tumour, progress=lambda *step: steps.append(step), **question)
    assert not steps


def test_files_of_an_earlier_explanation_go(dark_is_tumour, lesions, tmp_path):
    volume, labels = lesions
    options = {"model": dark_is_tumour, "mask": labels, "faithfulness": False}
    explain(volume, tmp_path, **options)
    (tmp_path / "notes.png").write_text("mine")
    (tmp_path / "lesion-1.png").write_text("mine by now")
    explain(volume, tmp_path, lesion=2, **options)
    names = ["explanation.json", "lesion-1.png", "lesion-2.png", "lesion-2_heatmap.nii.gz", "notes.png"]
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == names


def test_curves_by_a_tflite_files_network_are_those_of_the_whole_file():
    from liverseg_tf.explanation.explain import _probabilities_of
    from liverseg_tf.inference.predictor import Predictor

    runtime = Predictor().runtimes[0]
    hu = np.random.default_rng(0).normal(50, 100, (2, *runtime.slice_shape)).astype(np.float32)
    np.testing.assert_allclose(_probabilities_of(runtime)(hu), runtime.probabilities(hu), atol=1e-2)
