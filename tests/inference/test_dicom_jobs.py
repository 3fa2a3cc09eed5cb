"""Prediction from DICOM: every series is a volume, and the mask is that of the same CT as NIfTI."""

import json

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.dicom.writing import write_series  # noqa: E402
from liverseg_tf.data.phantom import make_phantom  # noqa: E402
from liverseg_tf.data.volume import CTVolume  # noqa: E402
from liverseg_tf.errors import ConfigError, DataWarning, InputFileError, OutputError  # noqa: E402
from liverseg_tf.inference.jobs import plan, predict_job  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two series in one folder, a third elsewhere, a broken one, a localizer and a NIfTI file."""
    root = tmp_path_factory.mktemp("study")
    for number, (place, seed) in enumerate((("a", 1), ("a", 2), ("b/c", 3), ("broken", 4)), 1):
        phantom = make_phantom(seed, (64, 64, 8))
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        inside = folder / str(seed)
        inside.mkdir()
        array = phantom.geometry.to_file(phantom.hu)
        affine = phantom.geometry.affine
        write_series(array, affine, inside, patient="DOE^JANE", series_number=number, seed=seed)
        for path in sorted(inside.iterdir()):
            path.rename(folder / f"{seed}-{path.name}")
        inside.rmdir()
    (root / "broken" / "4-IM0003.dcm").unlink()
    nib.save(nib.Nifti1Image(phantom.hu, np.eye(4)), root / "other.nii.gz")
    return root


def test_every_usable_series_is_a_volume(study, tmp_path):
    with pytest.warns(DataWarning, match="series 4 is left out: expected steps"):
        jobs = plan([study], tmp_path)
    names = [job.target.name for job in jobs]
    assert names[0] == "other_seg.nii.gz" and names[-1] == "b_c_seg.nii.gz"
    assert len({job.series for job in jobs}) == 4 and len(set(names)) == 4
    assert sum(name.startswith("a_") for name in names) == 2
    only = plan([study], tmp_path, series=jobs[-1].series)
    assert [job.target.name for job in only] == ["b_c_seg.nii.gz"]
    assert [job.target.name for job in plan([study / "b"], tmp_path, ending=".dcm")] == ["c_seg.dcm"]
    assert [job.target.name for job in plan([study / "broken"], tmp_path, allow_gaps=True)] == ["broken_seg.nii.gz"]


def test_headers_of_the_only_series_are_read_once(study, tmp_path, small_predictor, monkeypatch):
    from liverseg_tf.data.dicom import series

    searched = []
    find = series.find_series
    monkeypatch.setattr(series, "find_series", lambda path, *rest: searched.append(path) or find(path, *rest))
    for inputs in ([study / "b"], [study / "a"]):
        searched.clear()
        jobs = plan(inputs, tmp_path)
        assert all(predict_job(small_predictor, job)["status"] == "done" for job in jobs)
        assert len(searched) == (1 if len(jobs) == 1 else 1 + len(jobs))


def test_what_can_not_be_planned(study, tmp_path):
    with pytest.raises(InputFileError, match="1 missing"):
        plan([study / "broken"], tmp_path)
    with pytest.raises(InputFileError, match=r"holds no series 1\.2\.3"):
        plan([study / "a"], tmp_path, series="1.2.3")
    with pytest.raises(OutputError, match="one file can't take 2 masks"):
        plan([study / "a"], tmp_path / "mask.nii.gz")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x" * 200)
    with pytest.raises(InputFileError, match="or DICOM files; the folder holds none"):
        plan([tmp_path / "text"], tmp_path / "out")


def test_nifti_and_dicom_give_the_same_mask_to_the_voxel(study, tmp_path, small_predictor):
    of_dicom = small_predictor.predict(study / "b")
    image = nib.Nifti1Image(
        np.asarray(of_dicom.volume.geometry.to_file(of_dicom.volume.hu), np.int16)[::-1],
        of_dicom.volume.affine @ np.array([[-1, 0, 0, 63], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    nib.save(image, tmp_path / "ct.nii.gz")
    of_nifti = small_predictor.predict(tmp_path / "ct.nii.gz")
    assert len(np.unique(of_nifti.canonical_labels)) > 1
    np.testing.assert_array_equal(of_dicom.canonical_labels, of_nifti.canonical_labels)


def in_plane_and_through(number):
    """One of the eight ways a slice may be turned and mirrored, from the feet or from the head by turns."""
    axes = np.diag([-1.0, -1.0, 1.0])
    if number & 1:
        axes = axes[:, [1, 0, 2]]
    return axes * (1 - (number & 2), 1 - (number & 4) / 2, 1 if number in (0, 3, 5, 6) else -1)


STORAGES = {f"orientation {number}": {"turn": in_plane_and_through(number)} for number in range(8)}
STORAGES |= {name: {"syntax": name} for name in ("JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless")}
STORAGES |= {"enhanced": {}, "tilted": {"tilt": 0.35}}


@pytest.fixture(scope="module")
def nifti_masks(tmp_path_factory, small_predictor):
    """A predictor, a CT (columns, rows, slices), and the mask of its NIfTI file by tilt."""
    phantom = make_phantom(3, (48, 40, 8))
    hu = np.asarray(phantom.geometry.to_file(phantom.hu), np.int16)
    masks = {}
    for tilt in (0, 0.35):
        path = tmp_path_factory.mktemp("nifti") / "ct.nii.gz"
        nib.save(nib.Nifti1Image(hu, grid_of(hu, tilt)), path)
        masks[tilt] = small_predictor.predict(path).canonical_labels
        assert len(np.unique(masks[tilt])) > 1
    return small_predictor, hu, masks


def grid_of(hu, tilt):
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    affine[1, 2] = tilt * 3
    return affine


@pytest.mark.parametrize("name", STORAGES)
def test_nifti_and_dicom_give_the_same_mask_however_the_series_is_stored(nifti_masks, tmp_path, name):
    from tests.data.dicom.test_voxels import enhanced, with_gdcm

    predictor, hu, masks = nifti_masks
    how = STORAGES[name]
    affine = grid_of(hu, how.get("tilt", 0))
    if "turn" in how:  # the same voxels at the same places, stored in another order
        wanted = nib.orientations.io_orientation(nib.affines.from_matvec(how["turn"]))
        change = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), wanted)
        affine = affine @ nib.orientations.inv_ornt_aff(change, hu.shape)
        hu = nib.orientations.apply_orientation(hu, change)
    folder = tmp_path / "ct"
    folder.mkdir()
    if name == "enhanced":
        enhanced(hu + 5, affine, order=[3, 0, 1, 5, 7, 4, 2, 6]).save_as(folder / "e", enforce_file_format=True)
    else:
        write_series(hu, affine, folder)
    if "syntax" in how:
        with_gdcm(folder, how["syntax"])
    np.testing.assert_array_equal(predictor.predict(folder).canonical_labels, masks[how.get("tilt", 0)])


@pytest.mark.slow
def test_predict_writes_what_is_asked_for_and_names_nobody(study, tmp_path, open_model_file, capsys):
    out = tmp_path / "out"
    arguments = ["predict", str(study / "b"), "-o", str(out), "--model", str(open_model_file), "--no-postprocessing"]
    assert main([*arguments, "--format", "nifti,seg,sr"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("read back, agrees with the mask") == 2
    names = ["c_seg.dcm", "c_seg.nii.gz", "c_seg_sr.dcm", "manifest.jsonl"]
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == names
    row = json.loads((out / "manifest.jsonl").read_text().splitlines()[1])
    assert [o["format"] for o in row["objects"]] == ["seg", "sr"]
    assert row["objects"][0]["output"] == str(out / "c_seg.dcm")
    assert row["objects"][0]["read_again"]["liver"]["volume_ml"] > 0
    mask = nib.load(out / "c_seg.nii.gz")
    texts = (out / "manifest.jsonl").read_text() + printed.out + printed.err + str(mask.header)
    assert "JANE" not in texts and "DOE" not in texts
    stamp = (out / "c_seg.dcm").stat().st_mtime_ns
    assert main([*arguments, "--format", "nifti,seg,sr", "--resume"]) == 0
    assert (out / "c_seg.dcm").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_file_for_the_segmentation_alone(study, tmp_path, open_model_file):
    arguments = ["predict", str(study / "b"), "--model", str(open_model_file), "--no-postprocessing", "-o"]
    assert main([*arguments, str(tmp_path / "mine.dcm")]) == 0
    assert pydicom.dcmread(tmp_path / "mine.dcm").Modality == "SEG"
    assert main([*arguments, str(tmp_path / "mine.nii.gz")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["mine.dcm", "mine.nii.gz"]


def test_dicom_of_what_is_no_dicom_is_an_error(study, tmp_path, open_model_file, capsys):
    arguments = ["predict", str(study / "other.nii.gz"), "--model", str(open_model_file), "-o", str(tmp_path / "o")]
    assert main([*arguments, "--format", "seg"]) == 1
    assert "is no DICOM series" in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("*.dcm"))
    with pytest.raises(ConfigError, match="expected some of"):
        main([*arguments, "--format", "stl", "--debug"])


@pytest.mark.slow
def test_a_resampled_series_gives_nifti_and_says_why(study, tmp_path, open_model_file, capsys):
    arguments = [
        "predict",
        str(study / "broken"),
        "--model",
        str(open_model_file),
        "-o",
        str(tmp_path),
        "--allow-gaps",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "no DICOM was written" in told and "resampled" in told
    assert [p.name for p in tmp_path.glob("*seg*")] == ["broken_seg.nii.gz"]


def test_a_series_behind_a_url(study, tmp_path, small_predictor):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in sorted((study / "b" / "c").iterdir()):
        memory.pipe_file(f"/archive/scan/{path.name}", path.read_bytes())
    try:
        (job,) = plan(["memory://archive"], tmp_path)
        assert (job.source, job.target.name, job.is_dicom) == ("memory://archive/scan", "scan_seg.nii.gz", True)
        row = predict_job(small_predictor, job)
        assert row["status"] == "done" and row["input"] == "memory://archive/scan"
        mask = nib.load(tmp_path / "scan_seg.nii.gz")
        np.testing.assert_allclose(mask.affine, CTVolume.load(study / "b").affine, atol=1e-5)
    finally:
        memory.rm("/archive", recursive=True)
