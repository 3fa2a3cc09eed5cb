"""Whole volumes through a small network: grids, headers, files that must not be touched."""

import keras
import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.errors import ConfigError, DataWarning, ModelError, OutputError
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.postprocessing import PostProcessing
from liverseg_tf.inference.predict_files import predict_files
from liverseg_tf.models.saving import build_model
from tests.data.test_volume import ORIENTATIONS, stored_as

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
SHAPE, SPACING = (40, 36, 5), (2.0, 2.5, 4.0)


@pytest.fixture(scope="module")
def predictor(small_model):
    return ls.Predictor(small_model, postprocessing=None)


@pytest.fixture(scope="module")
def hu():
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 400, (10, 9, 5))
    return np.rint(np.kron(coarse, np.ones((4, 4, 1)))).astype(np.int16)


@pytest.fixture(scope="module")
def expected(predictor, hu):
    labels = predictor.predict(hu, spacing_mm=SPACING).canonical_labels
    assert len(np.unique(labels)) > 1  # else every test below would pass for nothing
    return labels


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_reoriented_volume_gives_the_reoriented_mask(predictor, hu, expected, tmp_path, write_nifti, codes):
    array, affine = stored_as(hu, SPACING, codes)
    prediction = predictor.predict(write_nifti(tmp_path / "ct.nii", array, affine))
    np.testing.assert_array_equal(prediction.labels, stored_as(expected, SPACING, codes)[0])
    np.testing.assert_allclose(prediction.image.affine, affine)


def test_every_kind_of_input_gives_the_same_mask(predictor, hu, expected, tmp_path, write_nifti):
    array, affine = stored_as(hu, SPACING, "LPS")
    path = write_nifti(tmp_path / "ct.nii.gz", array, affine)
    for source in (path, str(path), nib.load(path), ls.CTVolume.load(path)):
        np.testing.assert_array_equal(predictor.predict(source).canonical_labels, expected)
    with pytest.raises(ConfigError, match="spacing_mm"):
        predictor.predict(hu)


def test_reprs_tell_what_they_are(predictor, hu, expected, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "ct.nii.gz", *stored_as(hu, SPACING, "LPS"))
    prediction = predictor.predict(path)
    liver, tumour = ((expected == label).sum() * 0.02 for label in (1, 2))
    grid = "40 x 36 x 5 (rows, columns, slices), 2 x 2.5 x 4 mm"
    assert repr(prediction).startswith(
        f"Prediction({path}: {grid}, ml by class: liver {liver:.1f}, tumour {tumour:.1f}, by given in memory in "
    )
    name = "Predictor(given in memory: KerasRuntime, 32 x 32, classes background, liver, tumour; "
    assert repr(predictor) == name + "no post-processing, no variations, no second look)"
    varied = ls.Predictor(predictor.runtimes[0], variations=4)
    assert repr(varied) == name + "with post-processing, 4 variations, no second look)"


class Constant:
    """A runtime that gives the same probabilities everywhere."""

    is_remote, slices_at_once = False, 1

    def __init__(self, *probabilities):
        self.config, self._probabilities = ls.ModelConfig(image_size=32), np.asarray(probabilities, np.float32)

    def labels(self, hu):
        return self.probabilities(hu).argmax(-1).astype(np.uint8)

    def probabilities(self, hu):
        return np.broadcast_to(self._probabilities, (*hu.shape, 3))


def test_several_models_give_their_mean(hu):
    models = [Constant(0.6, 0.4, 0.0), Constant(0.0, 0.6, 0.4), Constant(0.36, 0.2, 0.44)]
    predictor = ls.Predictor(models, postprocessing=None)
    mean = predictor.network_probabilities(np.zeros((2, 4, 5), np.float32))
    np.testing.assert_allclose(mean[1, 2, 3], [0.32, 0.4, 0.28], atol=1e-6)
    prediction = predictor.predict(hu, spacing_mm=SPACING, probabilities=True)
    assert (prediction.canonical_labels == 1).all()
    assert [np.unique(prediction.probabilities[name]).tolist() for name in ("liver", "tumour")] == [[102], [71]]


@pytest.mark.slow
def test_batches_change_nothing(small_model, hu, expected):
    for size in (1, 2, 99):
        one = ls.Predictor(small_model, batch_size=size, postprocessing=None)
        np.testing.assert_array_equal(one.predict(hu, spacing_mm=SPACING).canonical_labels, expected)
    with pytest.raises(ConfigError, match="batch size"):
        ls.Predictor(small_model, batch_size=0)
    with pytest.raises(ConfigError, match="or None for none. Got: False"):
        ls.Predictor(small_model, postprocessing=False)


def test_header_fields_survive(predictor, hu, tmp_path, write_nifti):
    array, affine = stored_as(hu, SPACING, "LAS")
    path = write_nifti(
        tmp_path / "ct.nii",
        array,
        affine,
        descrip=b"Mustermann, Max",
        intent_name=b"Mustermann",
        db_name=b"Mustermann",
        aux_file=b"Mustermann.txt",
        xyzt_units=2,
        qform_code=1,
    )
    predictor.predict(path).save(tmp_path / "mask.nii.gz")
    source, mask = nib.load(path), nib.load(tmp_path / "mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "srow_x"):
        np.testing.assert_array_equal(mask.header[field], source.header[field])
    assert b"Mustermann" not in (tmp_path / "mask.nii.gz").read_bytes()
    assert b"Mustermann" not in mask.header.binaryblock
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Mustermann, Max"))
    predictor.predict(source).save(tmp_path / "again.nii")
    assert b"Mustermann" not in (tmp_path / "again.nii").read_bytes()


def test_probabilities_are_the_labels_reasons(hu, tmp_path):
    keras.utils.set_random_seed(3)
    # deep enough for few ties, which a rounding turns
    predictor = ls.Predictor(build_model(ls.ModelConfig(32, "resnet18")), postprocessing=None)
    expected = predictor.predict(hu, spacing_mm=SPACING).canonical_labels
    assert len(np.unique(expected)) > 1
    prediction = predictor.predict(hu, spacing_mm=SPACING, probabilities=True)
    liver, tumour = (prediction.probabilities[n].astype(int) for n in ("liver", "tumour"))
    best = np.stack([255 - liver - tumour, liver, tumour]).argmax(0)
    assert (best == expected).mean() > 0.99  # ties within a rounding
    paths = prediction.save_probabilities(tmp_path / "m.nii.gz")
    assert [p.name for p in paths] == ["m_liver.nii.gz", "m_tumour.nii.gz"]
    values = nib.load(paths[0]).get_fdata()
    np.testing.assert_allclose(values, prediction.volume.geometry.to_file(liver) / 255, atol=1e-6)
    with pytest.raises(ConfigError, match="probabilities=True"):
        predictor.predict(hu, spacing_mm=SPACING).save_probabilities(tmp_path / "n.nii.gz")


def test_little_liver_is_warned_of(small_model, hu):
    with pytest.warns(DataWarning, match="ml of liver found"):
        ls.Predictor(small_model, postprocessing=PostProcessing()).predict(
            np.full_like(hu, -1000), spacing_mm=(0.1, 0.1, 0.1)
        )


def test_statistics_and_progress(predictor, hu, expected):
    seen = []
    prediction = predictor.predict(hu, spacing_mm=SPACING, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    voxel_ml = 2 * 2.5 * 4 / 1000
    assert prediction.statistics().liver_volume_ml == pytest.approx((expected > 0).sum() * voxel_ml)


def test_inputs_and_files_of_others_are_not_written_over(predictor, hu, tmp_path, write_nifti):
    array, affine = stored_as(hu, SPACING, "LPS")
    path = write_nifti(tmp_path / "ct.nii", array, affine)
    truth = write_nifti(tmp_path / "segmentation-1.nii", np.zeros_like(array), affine)
    before = path.read_bytes(), truth.read_bytes()
    prediction = predictor.predict(path)
    with pytest.raises(OutputError, match="is an input and is never written over"):
        prediction.save(path, overwrite=True)
    with pytest.raises(OutputError, match="was not made by this library"):
        prediction.save(truth)
    with pytest.raises(OutputError, match="name ending in .nii"):
        prediction.save(tmp_path / "mask.png")
    assert before == (path.read_bytes(), truth.read_bytes())
    prediction.save(truth, overwrite=True)
    prediction.save(truth)  # now it is our own
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_no_model_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr("liverseg_tf.shipped.models_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match="liverseg train DIR -o RUN"):
        ls.Predictor()


def test_plan_names_masks_and_refuses_clashes(tmp_path, write_nifti, hu):
    for name in ("a/volume-7.nii", "a/x.nii.gz", "a/segmentation-7.nii", "a/y_seg.nii", "b/x.nii"):
        write_nifti(tmp_path / name, hu)
    jobs = plan([tmp_path / "a"], tmp_path / "out")
    assert [(j.source.name, j.target.name) for j in jobs] == [
        ("volume-7.nii", "segmentation-7.nii.gz"),
        ("x.nii.gz", "x_seg.nii.gz"),
    ]
    assert plan([tmp_path / "b" / "x.nii"], tmp_path / "one.nii")[0].target == tmp_path / "one.nii"
    with pytest.raises(OutputError, match="both .* would be written there"):
        plan([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(OutputError, match="one file can't take 2 masks"):
        plan([tmp_path / "a"], tmp_path / "one.nii")
    with pytest.raises(OutputError, match="was not made by this library"):
        plan([tmp_path / "a" / "volume-7.nii"], tmp_path / "a" / "segmentation-7.nii")


def test_a_bad_file_becomes_a_row_and_the_rest_go_on(predictor, hu, tmp_path, write_nifti):
    array, affine = stored_as(hu, SPACING, "LPS")
    for number in (1, 3):
        write_nifti(tmp_path / f"volume-{number}.nii", array, affine)
    (tmp_path / "volume-2.nii").write_text("no CT")
    rows = predict_files(predictor, plan([tmp_path], tmp_path / "out"))
    assert [row["status"] for row in rows] == ["done", "error", "done"]
    assert "volume-2.nii" in rows[1]["error"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["segmentation-1.nii.gz", "segmentation-3.nii.gz"]
    assert rows[0]["statistics"]["liver_volume_ml"] >= 0
