"""CT phantoms: same seed same patient, exact truth, files as LiTS has them, and no easy way to the liver."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.cli.main import main
from liverseg_tf.data import phantom as phantom_module
from liverseg_tf.data.cases import find_cases
from liverseg_tf.data.phantom import make_phantom, write_phantoms
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import ConfigError, OutputError
from liverseg_tf.ownership import claim, is_ours
from tests.data import reference

SHAPE, PATIENTS = (64, 64, 24), 24


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom((7, i), SHAPE) for i in range(PATIENTS)]


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_a_phantom_is_shown_without_its_voxels():
    text = repr(make_phantom(1, (32, 32, 8)))
    assert "hypodense" in text
    assert "hu=" not in text and "labels=" not in text


def test_same_seed_is_the_same_phantom():
    first, second, other = make_phantom(3, SHAPE), make_phantom(3, SHAPE), make_phantom(4, SHAPE)
    assert np.array_equal(first.hu, second.hu) and np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.affine, second.affine) and first.description == second.description
    assert not np.array_equal(first.hu, other.hu)


@pytest.mark.slow
def test_a_seed_is_the_same_patient_in_every_version(phantoms):
    """Figures measured on phantoms stay comparable. Who changes the anatomy on purpose writes so in the changelog."""
    reference.check("phantom", reference.of_phantoms(phantoms))


def test_same_seed_is_the_same_patient_at_any_resolution():
    coarse, fine = make_phantom(3, SHAPE), make_phantom(3, (128, 128, 48))
    volumes = [p.description["liver_ml"] for p in (coarse, fine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    assert dice(fine.labels[::2, ::2, ::2] > 0, coarse.labels > 0) > 0.9


def test_the_files_grid_is_the_patients():
    for seed in (3, 4, 5):
        phantom = make_phantom(seed, (32, 48, 8))
        assert phantom.geometry.canonical_shape == phantom.hu.shape
        if phantom.description["orientation"] != "identity":
            assert phantom.geometry.spacing_mm == pytest.approx(phantom.spacing_mm)
            axes = phantom.affine[:3, :3]
            np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)


def test_drawing_in_slabs_changes_nothing(monkeypatch):
    whole = make_phantom(3, SHAPE)
    monkeypatch.setattr(phantom_module, "_SLAB_VOXELS", 5 * SHAPE[0] * SHAPE[1])
    slabs = make_phantom(3, SHAPE)
    assert np.array_equal(whole.labels, slabs.labels) and whole.description == slabs.description
    assert np.abs(whole.hu.astype(int) - slabs.hu).max() <= 1  # float rounding


def test_arrays_are_what_lits_holds(phantoms):
    for phantom in phantoms:
        assert phantom.hu.shape == phantom.labels.shape == SHAPE
        assert phantom.hu.dtype == np.int16 and phantom.labels.dtype == np.uint8
        assert set(np.unique(phantom.labels)) <= {0, 1, 2}
        assert 700 < phantom.description["liver_ml"] < 3500
        assert phantom.hu[phantom.labels == 1].mean() == pytest.approx(phantom.description["liver_hu"], abs=12)


def test_patients_vary(phantoms):
    descriptions = [p.description for p in phantoms]
    assert {d["orientation"] for d in descriptions} == {"LPS", "LAS", "RAS", "identity"}
    assert {d["padding_hu"] for d in descriptions} >= {None, -1024, -2048, -3024}
    assert any(not d["tumours"] for d in descriptions)
    assert {t["kind"] for d in descriptions for t in d["tumours"]} == {"hypodense", "rim-enhancing", "hyperdense"}
    assert max(t["diameter_mm"] for d in descriptions for t in d["tumours"]) > 30
    assert np.ptp([d["liver_ml"] for d in descriptions]) > 500


def test_tumours_lie_inside_the_liver_and_have_their_own_density(phantoms):
    for phantom in phantoms:
        tumours = phantom.description["tumours"]
        assert bool(tumours) == bool((phantom.labels == 2).any())
        if len(tumours) == 1 and tumours[0]["diameter_mm"] > 15 and tumours[0]["kind"] == "hypodense":
            assert phantom.hu[phantom.labels == 2].mean() < phantom.hu[phantom.labels == 1].mean() - 5


def test_canonical_view_faces_the_reader(phantoms):
    """The liver lies to the patient's right (low columns), the spine behind, the lungs above."""
    for phantom in phantoms:
        rows, columns, slices = np.nonzero(phantom.labels)
        body = np.argwhere(phantom.hu > -200).mean(0)
        assert columns.mean() < body[1]
        chest = phantom.hu[:, int(body[1]) - 4 : int(body[1]) + 5, int(slices.max()) :]
        if phantom.description["phase"] != "arterial":  # else the aorta is as bright as bone
            assert np.median(np.nonzero(chest > np.percentile(chest, 98))[0]) > body[0]
        lung = ((phantom.hu > -920) & (phantom.hu < -700)).sum((0, 1))
        assert lung[-1] > 2 * lung[0]


def test_no_hu_interval_finds_the_liver(phantoms):
    """The best single interval, picked with the truth in hand, stays below 0.6 Dice, over the set and on average."""
    edges = np.arange(-60, 261, 4)
    inside, everywhere = (
        np.array([np.histogram(p.hu[mask(p)], edges)[0] for p in phantoms])
        for mask in (lambda p: p.labels > 0, lambda p: np.ones(SHAPE, bool))
    )
    livers = np.array([(p.labels > 0).sum() for p in phantoms])

    def dice_of_intervals(inside, everywhere, livers):
        cumulative_inside = np.concatenate([[0], np.cumsum(inside)])
        cumulative = np.concatenate([[0], np.cumsum(everywhere)])
        hits = cumulative_inside[None] - cumulative_inside[:, None]
        return 2 * hits / (cumulative[None] - cumulative[:, None] + livers).clip(1)

    assert dice_of_intervals(inside.sum(0), everywhere.sum(0), livers.sum()).max() < 0.6
    per_case = [dice_of_intervals(*case) for case in zip(inside, everywhere, livers, strict=True)]
    assert np.mean(per_case, 0).max() < 0.6  # one interval for all


def test_no_place_finds_the_liver(phantoms):
    """The best fixed region, learned from other patients, stays below 0.75 Dice."""
    masks = np.array([p.labels > 0 for p in phantoms])
    learned, unseen = masks[:16].mean(0), masks[16:]
    best = max(np.mean([dice(learned > level, mask) for mask in unseen]) for level in (0.3, 0.4, 0.5, 0.6))
    assert best < 0.75


def test_pairs_are_found_and_read_back(tmp_path):
    steps = []
    rows = write_phantoms(tmp_path, cases=3, seed=7, shape=SHAPE, progress=lambda *counts: steps.append(counts))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == [row["id"] for row in rows] == [0, 1, 2]
    for case, row in zip(cases, rows, strict=True):
        phantom = make_phantom((7, case.id), SHAPE)
        lost = phantom.description["orientation"] == "identity"  # files always have their spacing
        assert row == {"id": case.id, **phantom.description} | ({"orientation": "RAS"} if lost else {})
        volume, mask = CTVolume.load(case.volume, hu_range=None), MaskVolume.load(case.segmentation)
        assert np.array_equal(volume.hu, phantom.hu)
        assert np.array_equal(mask.labels, phantom.labels)
        assert volume.geometry.matches(mask.geometry)
        assert volume.geometry.axis_codes == row["orientation"]
        assert volume.spacing_mm == pytest.approx(phantom.spacing_mm, rel=1e-5)
        image = nib.load(case.volume)
        assert image.get_data_dtype() == np.int16 and image.header.get_xyzt_units()[0] == "mm"


def test_phantoms_that_are_not_accepted_are_passed_over(tmp_path):
    wanted = make_phantom((7, 1), SHAPE)
    rows = write_phantoms(tmp_path, 1, seed=7, shape=SHAPE, accept=lambda one: one == wanted.description)
    assert [row["id"] for row in rows] == [0] and rows[0]["tumours"] == wanted.description["tumours"]
    volume = CTVolume.load(tmp_path / "volume-0.nii.gz", hu_range=None)
    assert np.array_equal(volume.hu, wanted.hu)


def test_nothing_accepted_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_module, "_MOST_REFUSED", 3)
    with pytest.raises(ConfigError, match="false for 3 in a row"):
        write_phantoms(tmp_path, 1, shape=SHAPE, accept=lambda one: False)


def test_same_seed_writes_the_same_bytes_over_its_own(tmp_path):
    write_phantoms(tmp_path, cases=1, seed=7, shape=SHAPE)
    first = (tmp_path / "volume-0.nii.gz").read_bytes()
    write_phantoms(tmp_path, cases=1, seed=7, shape=SHAPE)
    assert (tmp_path / "volume-0.nii.gz").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["segmentation-0.nii.gz", "volume-0.nii.gz"]


@pytest.mark.parametrize("content", [b"text", None])
def test_foreign_files_are_left_alone(tmp_path, content):
    foreign = tmp_path / "segmentation-1.nii.gz"
    if content is None:
        nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_filename(foreign)
    else:
        foreign.write_bytes(content)
    before = foreign.read_bytes()
    with pytest.raises(OutputError, match="segmentation-1"):
        write_phantoms(tmp_path, cases=2, shape=SHAPE)
    assert [p.name for p in tmp_path.iterdir()] == [foreign.name] and foreign.read_bytes() == before


def test_a_corrected_phantom_is_kept_and_no_mask_takes_its_place(tmp_path):
    write_phantoms(tmp_path, cases=1, shape=SHAPE)
    path = tmp_path / "segmentation-0.nii.gz"
    with pytest.raises(OutputError, match=r"another result of this library \(phantom\)"):
        claim(path, "mask")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros_like(np.asarray(image.dataobj)), image.affine, image.header), path)
    with pytest.raises(OutputError, match="was changed since this library made it"):
        write_phantoms(tmp_path, cases=1, shape=SHAPE)
    write_phantoms(tmp_path, cases=1, shape=SHAPE, overwrite=True)
    assert is_ours(path, "phantom")


@pytest.mark.parametrize("shape", [(16, 64, 20), (64, 64), (64, 64, 2), (64.5, 64, 20)])
def test_useless_shapes_are_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        make_phantom(0, shape)


def test_no_cases_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cases"):
        write_phantoms(tmp_path, cases=0)


def test_command_prints_one_json_object(tmp_path, capsys):
    arguments = ["phantom", str(tmp_path / "a b"), "--cases", "2", "--seed", "4", "--shape", "48", "48", "12", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [case["id"] for case in printed["cases"]] == [0, 1]
    for case in printed["cases"]:
        volume = nib.load(tmp_path / "a b" / f"volume-{case['id']}.nii.gz")
        mask = nib.load(tmp_path / "a b" / f"segmentation-{case['id']}.nii.gz")
        assert volume.shape == mask.shape == (48, 48, 12)
        assert (np.asarray(mask.dataobj).max() == 2) == bool(case["tumours"])


def test_command_refuses_foreign_files_in_one_line(tmp_path, capsys):
    (tmp_path / "volume-0.nii.gz").write_bytes(b"mine")
    assert main(["phantom", str(tmp_path), "--cases", "1"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert (tmp_path / "volume-0.nii.gz").read_bytes() == b"mine"


def test_phantoms_as_dicom_are_those_of_nifti(tmp_path):
    pytest.importorskip("pydicom")
    from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_grid

    for seed in (0, 3):  # two orientations of NIfTI
        write_phantoms(tmp_path / f"n{seed}", 2, seed, (64, 64, 16))
        rows = write_phantoms(tmp_path / f"d{seed}", 2, seed, (64, 64, 16), dicom=True)
        for row in rows:
            name = f"{row['id']}.nii.gz"
            volume = CTVolume.load(tmp_path / f"d{seed}" / f"volume-{row['id']}", hu_range=None)
            mask = MaskVolume.load(tmp_path / f"d{seed}" / f"segmentation-{name}")
            check_same_grid(volume.geometry, mask.geometry, ("volume", "mask"))
            nifti = CTVolume.load(tmp_path / f"n{seed}" / f"volume-{name}", hu_range=None)
            np.testing.assert_array_equal(volume.hu, nifti.hu)
            np.testing.assert_array_equal(
                mask.labels, MaskVolume.load(tmp_path / f"n{seed}" / f"segmentation-{name}").labels
            )
            assert volume.spacing_mm == pytest.approx(row["spacing_mm"], abs=1e-3)
    write_phantoms(tmp_path / "d0", 1, 0, (64, 64, 16), dicom=True)
    (tmp_path / "d0" / "volume-0" / "IM0001.dcm").write_bytes(b"mine")
    with pytest.raises(OutputError):
        write_phantoms(tmp_path / "d0", 1, 0, (64, 64, 16), dicom=True)
