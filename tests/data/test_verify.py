"""What `verify` finds in data sets, and what it leaves alone."""

import gzip
import json
import os

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.data.verify import _Memory, verify
from liverseg_tf.errors import CaseError, ConfigError, InputFileError

SHAPE = (40, 36, 8)


def body(seed=0):
    """A body in air, with a liver on the patient's right, stored LPS: x runs to the patient's left."""
    rng = np.random.default_rng(seed)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[6:-6, 6:-6] = rng.normal(40, 20, (28, 24, 8))
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:18, 10:26, 2:7] = 1
    labels[12:15, 14:17, 3:5] = 2
    return hu, labels


@pytest.fixture
def data(tmp_path, write_nifti):
    for number in (1, 2):
        hu, labels = body(number)
        write_nifti(tmp_path / "data" / f"volume-{number}.nii.gz", hu)
        write_nifti(tmp_path / "data" / f"segmentation-{number}.nii.gz", labels)
    return tmp_path / "data"


def kinds(found):
    return [(f.severity, f.kind, f.case) for f in found.findings]


def test_good_data_have_no_findings(data):
    calls = []
    found = verify(data, progress=lambda *call: calls.append(call))
    assert found.findings == []
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert found.cases[0] == {
        "case": 1,
        "volume": str(data / "volume-1.nii.gz"),
        "segmentation": str(data / "segmentation-1.nii.gz"),
        "shape": (36, 40, 8),
        "spacing_mm": [1.5, 1.5, 3.0],
        "orientation": "LPS",
        "dtype": "int16",
        "voxels": {"background": 40 * 36 * 8 - 800, "liver": 782, "tumour": 18},
    }
    assert repr(found) == "Verification(2 cases, 2 patients: 0 errors, 0 warnings)"


@pytest.mark.slow
@pytest.mark.parametrize("dicom", [False, True])
@pytest.mark.parametrize("shape", [(32, 32, 8), (64, 48, 16), (128, 128, 40)])
def test_phantoms_of_any_shape_leave_nothing_to_doubt(tmp_path, shape, dicom):
    if dicom:
        pytest.importorskip("pydicom")
    rows = ls.write_phantoms(tmp_path, cases=5, seed=1, shape=shape, dicom=dicom)
    assert len({row["padding_hu"] for row in rows}) > 1 and len({row["phase"] for row in rows}) > 1
    assert verify(tmp_path).findings == []


def test_padding_is_doubted_where_a_scanner_has_none(tmp_path, write_nifti):
    hu = np.full((64, 64, 2), 40, np.int16)
    place = np.arange(64) - 31.5
    hu[place[:, None] ** 2 + place**2 > 32**2] = -3024

    def doubted(changed):
        write_nifti(tmp_path / "volume-1.nii", changed)
        return [f.message for f in verify(tmp_path).findings if f.kind == "padding"]

    assert doubted(hu) == []
    within, mixed = hu.copy(), hu.copy()
    within[32, 3, 1] = -3024  # inside the circle
    mixed[0, 0, 0] = -2000  # two values
    for changed in (within, mixed):
        (message,) = doubted(changed)
        assert "HU (lowest -3024), taken as air" in message


@pytest.mark.parametrize(
    ("spacing_mm", "doubted"),
    [
        ((0.21, 3.9, 9.9), []),
        ((0.19, 1, 3), ["rows"]),
        ((1, 0.19, 3), ["columns"]),
        ((16.8, 15.1, 3), ["rows", "columns"]),
        ((16.6, 14.9, 3), []),  # a body in 36 x 40 pixels: reduced
        ((1, 1, 0.19), ["slices"]),
        ((1, 1, 10.1), ["slices"]),
        ((5, 6, 29.9), []),
        ((5, 6, 30.1), ["slices"]),
        ((0.9, 1, 0.21), []),
    ],
)
def test_spacing_beyond_what_a_ct_has_is_doubted(tmp_path, write_nifti, spacing_mm, doubted):
    row_mm, column_mm, slice_mm = spacing_mm
    affine = np.diag([-column_mm, -row_mm, slice_mm, 1.0])
    for name, array in zip(("volume", "segmentation"), body(), strict=True):
        write_nifti(tmp_path / f"{name}-1.nii", array, affine)
    words = [f.message for f in verify(tmp_path).findings if f.kind == "spacing" and "volume" in str(f)]
    assert [f"between {axis}:" for axis in doubted] == [" ".join(w.split(" mm ")[1].split()[:2]) for w in words]


def test_a_file_that_is_damaged_at_its_very_end(data):
    path = data / "volume-2.nii.gz"
    path.write_bytes(path.read_bytes()[:-5])
    found = verify(data)
    assert kinds(found) == [("error", "file", 2)]
    assert "copy or download it again" in found.errors[0].message
    assert found.cases[1]["voxels"]["tumour"] == 18  # its mask is checked all the same


def test_every_warning_by_its_name(data, write_nifti):
    hu, labels = body()

    def store(number, hu=hu, labels=labels, affine=None, **header):
        write_nifti(data / f"volume-{number}.nii", hu, affine, **header)
        write_nifti(data / f"segmentation-{number}.nii", labels, affine, **header)

    loose = labels.copy()
    loose[30:33, 30:33, 0] = 2
    with_nan = hu.astype(np.float32)
    with_nan[0, 0, :3] = np.nan
    padded = hu.copy()
    padded[:2] = -2048
    store(10, body(10)[0], loose)
    store(11, with_nan)
    store(12, padded)
    store(13, body(13)[0], affine=np.eye(4))
    store(14, body(14)[0], affine=np.diag([-0.01, -1.5, 3, 1]))
    store(15, body(15)[0] + 1024)
    store(16, np.zeros(SHAPE, np.int16))
    coronal = np.array([[0, -1.5, 0, 0], [0, 0, -1.5, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    store(17, np.moveaxis(body(17)[0], 2, 0), np.moveaxis(labels, 2, 0), coronal)
    store(18, body(18)[0], affine=np.diag([1.5, -1.5, 3.0, 1]))  # mirrored, so the liver lies on the left
    write_nifti(data / "volume-19.nii", np.asarray(body(1)[0]))
    write_nifti(data / "segmentation-20.nii", labels)
    write_nifti(data / "mystery.nii", labels)
    found = verify(data, threads=2)
    assert found.errors == []
    assert kinds(found) == [
        ("warning", "duplicate", 1),
        ("warning", "tumour", 10),
        ("warning", "intensities", 11),
        ("warning", "padding", 12),
        ("warning", "spacing", 13),
        ("warning", "spacing", 14),
        ("warning", "intensities", 15),
        ("warning", "intensities", 16),
        ("warning", "orientation", 17),
        ("warning", "orientation", 18),
        ("warning", "pair", 19),
        ("warning", "pair", 20),
        ("warning", "pair", None),
    ]
    said = [f.message for f in found.findings]
    for message, words in zip(
        said,
        (
            "volume-19.nii: hold the same voxels; keep one, or give them one patient",
            "1 tumour of 9 voxels touches no liver",
            "3 voxels are NaN or infinite",
            "576 voxels lie below -1024 HU (lowest -2048)",
            "1x1x1 mm without direction",
            "0.01 mm between columns: expected 0.2 to 4",
            "shifted by 1024",
            "every voxel is 0",
            "coronal slices",
            "its liver lies on the patient's left",
            "has no mask",
            "has no CT here",
            "1 file is skipped",
        ),
        strict=True,
    ):
        assert words in message


def test_duplicates_and_misfits_are_errors(data, tmp_path, write_nifti):
    hu, labels = body(1)
    write_nifti(tmp_path / "more" / "volume-1.nii", hu)
    write_nifti(data / "segmentation-2.nii.gz", labels[:-1])
    labels[0, 0, 0] = 7
    write_nifti(data / "segmentation-1.nii.gz", labels)
    found = verify(data, tmp_path / "more")
    assert [(f.kind, f.case) for f in found.errors] == [("pair", 1), ("labels", 1), ("shape", 2)]
    assert [f.kind for f in found.warnings] == ["duplicate"]
    assert found.warnings[0].message.endswith("keep one")


def test_patients(data, tmp_path):
    groups = tmp_path / "patients.csv"
    groups.write_text("id,patient\n1,Anna\n9,Bert\n")
    found = verify(data, patients=groups)
    assert kinds(found) == [("warning", "patients", None)] * 2
    assert found.patients == 2
    (data / "volume-2.nii.gz").write_bytes((data / "volume-1.nii.gz").read_bytes())
    groups.write_text("id,patient\n1,Anna\n2,Anna\n")
    (finding,) = verify(data, patients=groups).findings
    assert finding.message.endswith("hold the same voxels; keep one")


def test_what_cannot_be_verified(data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="got none"):
        verify(tmp_path / "empty")
    with pytest.raises(InputFileError, match="there is none"):
        verify(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="threads"):
        verify(data, threads=0)


def test_the_limit_on_memory_is_kept(data):
    found = verify(data, max_bytes=1000)
    assert [f.kind for f in found.errors] == ["file"] * 4
    memory, held = _Memory(100), []
    with memory.hold(1000):  # alone, anything goes
        held.append(memory._held)
    with memory.hold(60), memory.hold(40):
        held.append(memory._held)
    assert held == [1000, 100]
    assert memory._held == 0


def test_the_command(data, capsys):
    assert main(["verify", str(data)]) == 0
    assert "2 cases of 2 patients, 2 with a mask; stored as LPS 2\n0 errors, 0 warnings" in capsys.readouterr().out
    hu, _ = body(5)
    (data / "volume-5.nii.gz").write_bytes(gzip.compress(b"no NIfTI"))
    assert main(["verify", str(data), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"], found["patients"]) == (1, 1, 3)
    assert found["findings"][0]["path"] == str(data / "volume-5.nii.gz")
    assert main(["verify", str(data)]) == 1
    captured = capsys.readouterr()
    assert "volume-5.nii.gz" in captured.out
    assert "1 error, 1 warning" in captured.out
    assert captured.err == ""


@pytest.mark.skipif("LIVERSEG_REAL_DATA" not in os.environ, reason="needs real CT")
@pytest.mark.parametrize("name", ["lits", "chaos", "tcia"])
def test_real_ct_has_no_findings(name):
    assert ls.verify(f"{os.environ['LIVERSEG_REAL_DATA']}/{name}").findings == []
