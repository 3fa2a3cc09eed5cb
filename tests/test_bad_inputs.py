"""Inputs that real users hit: each file is built here and goes through the public functions and the commands.

A bad one ends in one line that names the file and says what is wrong and what to do, exit status 1, nothing written and
an older result still there. A strange but usable one gives a mask on its own grid, and a warning where one is due.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.errors import (
    CaseError,
    DataWarning,
    GeometryError,
    GeometryWarning,
    InputFileError,
    LabelError,
    LiverSegError,
    LiverSegWarning,
    NotHounsfieldWarning,
)

pytestmark = pytest.mark.slow

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
SHAPE = (32, 30, 4)


def ct(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000)
    hu[4:-4, 4:-4] = rng.normal(60, 100, hu[4:-4, 4:-4].shape)
    return hu.astype(np.int16)


def content(array=None, affine=AFFINE, compress=False, **header) -> bytes:
    image = nib.Nifti1Image(ct() if array is None else array, affine)
    for name, value in header.items():
        image.header[name] = value
    raw = image.to_bytes()
    return gzip.compress(raw, 6) if compress else raw


def patched(offset, pattern, *values, compress=False) -> bytes:
    """A CT whose header says something else at `offset`."""
    raw = bytearray(content())
    struct.pack_into(pattern, raw, offset, *values)
    return gzip.compress(bytes(raw)) if compress else bytes(raw)


def noise(compress=True):
    """Voxels that hardly compress, so that a cut stream has lost some."""
    return content(np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16), compress=compress)


# name: (file name, its bytes or None for a folder, kind of error, what the message says)
BAD = {
    "missing": ("ct.nii", "missing", InputFileError, "there is no such file; check the path"),
    "folder": ("ct.nii", None, InputFileError, "got a folder"),
    "empty": ("ct.nii.gz", b"", InputFileError, "the file is empty; copy or download it again"),
    "text": ("ct.nii", b"patient,volume\n" * 99, InputFileError, "expected a NIfTI file, got something else"),
    "short text": ("ct.nii", b"x", InputFileError, "expected a NIfTI file, got something else"),
    "text in gzip": ("ct.nii.gz", gzip.compress(b"hello " * 99), InputFileError, "expected a NIfTI file"),
    "plain named gz": ("ct.nii.gz", content(), InputFileError, "is an uncompressed NIfTI; rename it to ct.nii"),
    "gzip named nii": ("ct.nii", content(compress=True), InputFileError, "rename it to ct.nii.gz"),
    "DICOM": ("ct.nii", b"\0" * 128 + b"DICM" + b"\0" * 500, InputFileError, "expected a NIfTI file"),
    "NIfTI named dcm": ("ct.dcm", content(), InputFileError, "is named .dcm and holds something else"),
    "other suffix": ("ct.img", content(), InputFileError, r"expected a name ending in .nii or .nii.gz.*convert it"),
    "header alone": ("ct.nii", content()[:348], InputFileError, "is truncated or its header is wrong.*download"),
    "half a header": ("ct.nii", content()[:347], InputFileError, "is truncated|something else"),
    "cut": ("ct.nii", content()[:-1], InputFileError, r"needs \d+ bytes, the file has \d+; copy or download it again"),
    "cut on a slice": ("ct.nii", content()[: -32 * 30 * 2], InputFileError, "is truncated"),
    "cut gzip": ("ct.nii.gz", noise()[:-40], InputFileError, "truncated or damaged.*copy or download it again"),
    "cut gzip trailer": ("ct.nii.gz", noise()[:-4], InputFileError, "truncated or damaged"),
    "cut inside gzip": (
        "ct.nii.gz", gzip.compress(noise(False)[: -32 * 30 * 2]), InputFileError, "is truncated: expected .* got",
    ),
    "30000^3": ("ct.nii", patched(42, "<3h", 30000, 30000, 30000), InputFileError, "header is wrong"),
    "30000^3 gzip": (
        "ct.nii.gz", patched(42, "<3h", 30000, 30000, 30000, compress=True), InputFileError,
        r"\(30000, 30000, 30000\) of int16 can't come out of \d+ compressed bytes",
    ),
    "gzip bomb": (  # 16 MB in 16 kB; the test's limit is 8 MB
        "ct.nii.gz", gzip.compress(patched(42, "<3h", 512, 512, 32)[:352] + bytes(1 << 24), 9), InputFileError,
        r"takes 16.0 MiB, the limit is 8.0 MiB; if that is right, raise .*LIVERSEG_MAX_BYT",
    ),
    "negative size": ("ct.nii", patched(42, "<h", -5), GeometryError, "at least one voxel|broken"),
    "no dimensions": ("ct.nii", patched(40, "<h", 0), GeometryError, "expected a 3-D volume|broken"),
    "99 dimensions": ("ct.nii", patched(40, "<h", 99), LiverSegError, "ct.nii"),
    "4-D": ("ct.nii", content(np.zeros((6, 6, 6, 3), np.int16)), GeometryError, r"\(6, 6, 6, 3\); split it into 3-D"),
    "RGB": (
        "ct.nii", content(np.zeros(SHAPE, [(c, "u1") for c in "RGB"])), InputFileError, "got RGB; export the CT as int",
    ),
    "complex": ("ct.nii", content(np.zeros(SHAPE, np.complex64)), InputFileError, "got complex; export the CT as int"),
    "unknown dtype": ("ct.nii", patched(70, "<h", 9999), InputFileError, "ct.nii"),
    "NaN affine": (
        "ct.nii", patched(254, "<h", 1)[:280] + struct.pack("<4f", *[np.nan] * 4) + content()[296:], GeometryError,
        "three independent axes",
    ),
    "flat affine": (
        "ct.nii", patched(254, "<h", 1)[:280] + struct.pack("<4f", 0, 0, 0, 0) + content()[296:], GeometryError,
        "three independent axes",
    ),
    "infinite intercept": ("ct.nii", patched(112, "<2f", 1.0, np.inf), InputFileError, "scl_slope and scl_inter"),
}  # fmt: skip


@pytest.fixture
def bad(request, tmp_path):
    name, data, kind, words = BAD[request.param]
    path = tmp_path / "in put" / name
    path.parent.mkdir()
    if data is None:
        path.mkdir()
    elif data != "missing":
        path.write_bytes(data)
    return path, kind, words


@pytest.fixture(scope="module")
def small_predictor(small_model):
    return ls.Predictor(small_model)


@pytest.fixture
def predictor(small_predictor, monkeypatch):
    """Commands use the small model that is loaded already: files are bad here, not models."""
    import liverseg_tf.inference.predictor as module

    monkeypatch.setattr(module, "open_runtime", lambda model: small_predictor.runtimes[0])
    return small_predictor


@pytest.fixture
def command(capsys):
    """Run a command; returns its status and the lines on stderr, which hold no traceback."""

    def run(*words):
        with warnings.catch_warnings():
            status = main([*map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.err.splitlines()

    return run


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("bad", BAD, indirect=True)
def test_bad_files_end_in_one_line_and_change_nothing(bad, predictor, command, tmp_path, monkeypatch):
    path, kind, words = bad
    monkeypatch.setenv("LIVERSEG_MAX_BYTES", str(1 << 23))
    good = tmp_path / "good.nii"
    good.write_bytes(content())
    older = tmp_path / "out" / "mask.nii.gz"
    command("predict", good, "-o", older, "--model", "x")
    before = tree(tmp_path)
    assert older.relative_to(tmp_path) in before
    for function in (ls.CTVolume.load, ls.MaskVolume.load, ls.statistics, predictor.predict):
        with pytest.raises(kind, match=words) as caught:
            function(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for line in (
        ("predict", path, "-o", older, "--model", "x"),
        ("predict", path, "-o", tmp_path / "new" / "mask.nii", "--model", "x"),
        ("evaluate", "--truth", good, "--prediction", path, "-o", tmp_path / "scores.json"),
        ("explain", path, "-o", tmp_path / "explained", "--model", "x"),
        ("report", path, "-o", tmp_path / "report.html", "--model", "x"),
    ):
        status, errors = command(*line)
        assert status == 1
        assert len(errors) == 1, errors
        assert re.search(r"^(liverseg: )?error: ", errors[0])
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


def case_folder(folder, number, volume=None, mask=None, suffix=".nii"):
    folder.mkdir(exist_ok=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:20, 8:20, 1:3] = 1
    (folder / f"volume-{number}{suffix}").write_bytes(content() if volume is None else volume)
    (folder / f"segmentation-{number}{suffix}").write_bytes(content(labels) if mask is None else mask)


# what a data set is made unusable by: (volume, mask, suffix), kind of error, message, kind of finding
MISFITS = {
    "cut volume": ((noise()[:-40], gzip.compress(content(np.zeros(SHAPE, np.uint8))), ".nii.gz"),
                   InputFileError, r"volume-2.nii.gz: .*truncated or damaged", "file"),
    "other shape": ((None, content(np.zeros((32, 30, 5), np.uint8)), ".nii"), GeometryError,
                    r"segmentation-2.nii: expected the shape \(32, 30, 4\) of .*volume-2.nii, got \(32, 30, 5\)",
                    "shape"),
    "other affine": ((None, content(np.zeros(SHAPE, np.uint8), np.diag([-1.5, -1.5, 3.1, 1])), ".nii"), GeometryError,
                     "segmentation-2.nii: its affine .* differs from .*volume-2.nii", "affine"),
    **{
        f"label {value:g}": ((None, content(np.full(SHAPE, value, dtype)), ".nii"), LabelError,
                             rf"segmentation-2.nii: expected labels .* got {value:g} \(3840 voxels\)", "labels")
        for value, dtype in ((255, np.uint8), (-1, np.int16), (7, np.int16), (1.5, np.float32), (np.nan, np.float32))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_data_sets_that_do_not_fit(name, tmp_path, command, monkeypatch):
    files, kind, words, about = MISFITS[name]
    case_folder(tmp_path / "data", 1)
    case_folder(tmp_path / "data", 2, *files)
    found = ls.verify(tmp_path / "data")
    assert [(f.kind, f.case) for f in found.errors] == [(about, 2)]
    assert re.search(words, found.errors[0].message)
    assert command("verify", tmp_path / "data")[0] == 1
    cases = ls.find_cases(tmp_path / "data")
    if kind is GeometryError:  # known before any voxel is read: no run folder
        with pytest.raises(kind, match=words):
            ls.slice_dataset(cases)
        status, errors = command("train", tmp_path / "data", "-o", tmp_path / "run")
        assert (status, len(errors)) == (1, 1)
        assert re.search(words, errors[0])
        assert not (tmp_path / "run").exists()
    if kind is LabelError:
        from liverseg_tf.data.slices import count_slices

        with pytest.raises(kind, match=words):
            count_slices(cases)
    if kind is InputFileError:
        recipe = ls.Recipe(name="tiny", image_size=32, batch_size=2, backbone="tiny", epochs=1, augmentation=False)
        with pytest.raises(kind, match=words):
            ls.train(cases, tmp_path / "run", recipe, xla=False)
        assert not (tmp_path / "run" / "model.keras").exists()


def test_pairs(tmp_path, command):
    case_folder(tmp_path / "a", 1)
    (tmp_path / "a" / "volume-10.nii").write_bytes(content())
    (tmp_path / "a" / "segmentation-3.nii").write_bytes(content(np.zeros(SHAPE, np.uint8)))
    with pytest.warns(DataWarning, match="1 mask has no volume and is left out: .*segmentation-3.nii"):
        cases = ls.find_cases(tmp_path / "a")
    assert [(c.id, c.segmentation is not None) for c in cases] == [(1, True), (10, False)]
    case_folder(tmp_path / "b", 1)
    with pytest.raises(CaseError, match=r"volume 1 is there twice: .*a/volume-1.nii and .*b/volume-1.nii; remove one"):
        ls.find_cases(tmp_path / "a", tmp_path / "b")
    for line in (("train", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "run"), ("verify", tmp_path)):
        assert command(*line)[0] == 1
    assert not (tmp_path / "run").exists()
    assert command("train", tmp_path / "nowhere", "-o", tmp_path / "run") == (
        1,
        [f"liverseg: error: {tmp_path / 'nowhere'}: expected a folder of CTs, there is none; check the path"],
    )


def identity(array):
    return content(array, np.eye(4))


def oblique():
    turned = AFFINE.copy()
    angle = np.radians(26)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return content(ct(), turned)


def forms_disagree():
    image = nib.Nifti1Image(ct(), AFFINE)
    image.set_qform(np.diag([-1.5, -1.5, 4.0, 1.0]), code=1)
    return image.to_bytes()


def with_values(*values, dtype=np.float32):
    array = ct().astype(dtype)
    array[0, 0, : len(values)] = values
    return content(array)


def big_endian():
    image = nib.Nifti1Image(ct().astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    return image.to_bytes()


# name: (bytes, warning or None, what it says)
USABLE = {
    "2-D": (content(ct()[..., 0]), None, ""),
    "one slice": (content(ct()[..., :1]), None, ""),
    "trailing 1": (content(ct()[..., None]), None, ""),
    "5 pixels across": (content(ct()[2:7, 2:7]), None, ""),
    "512x796": (
        content(np.pad(ct()[..., :2], ((0, 480), (0, 766), (0, 0)), constant_values=-1000), AFFINE / 5), None, "",
    ),
    "not square": (content(np.pad(ct(), ((0, 40), (0, 0), (0, 0)), constant_values=-1000)), None, ""),
    "identity": (identity(ct()), None, ""),
    "oblique": (oblique(), GeometryWarning, "26 degrees oblique"),
    "qform and sform": (forms_disagree(), GeometryWarning, "qform and sform disagree; the sform is used"),
    "float64": (content(ct().astype(np.float64)), None, ""),
    "big-endian": (big_endian(), None, ""),
    "NIfTI-2": (nib.Nifti2Image(ct(), AFFINE).to_bytes(), None, ""),
    "HU + 1024": (content((ct() + 1024).clip(0)), NotHounsfieldWarning, "shifted by 1024; subtract 1024"),
    "0..1": (content((ct() / 2000.0).clip(0, 1)), NotHounsfieldWarning, "scaled to 0..1"),
    "0..255": (content(ct().clip(0, 255).astype(np.uint8)), NotHounsfieldWarning, "scaled to 0..255"),
    "padding": (with_values(-2000, -2048, -3024, dtype=np.int16), None, ""),
    "NaN": (with_values(np.nan, np.inf, -np.inf), DataWarning, "3 voxels are NaN or infinite; they are taken as air"),
    "beyond float32": (with_values(1e300, -1e300, dtype=np.float64), None, ""),
    "constant": (content(np.zeros(SHAPE, np.int16)), None, ""),
    "all NaN": (content(np.full(SHAPE, np.nan, np.float32)), DataWarning, "3840 voxels are NaN"),
    "head": (content((ct() + 100).clip(-1000, 80)), None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", USABLE)
def test_strange_but_usable_files_give_a_mask_on_their_own_grid(name, predictor, command, tmp_path, recwarn):
    data, warning, words = USABLE[name]
    path, out = tmp_path / "-scan mit Ümläut.nii", tmp_path / "aus gabe" / "mask.nii.gz"
    path.write_bytes(data)
    volume = ls.CTVolume.load(path)
    assert np.isfinite(volume.hu).all()
    assert volume.hu.min() >= -1024
    said = [w for w in recwarn if issubclass(w.category, LiverSegWarning)]
    if warning:
        assert any(w.category is warning and re.search(words, str(w.message)) for w in said)
    else:
        assert not said
    status, errors = command("predict", path, "-o", out, "--model", "x", "--statistics", "--probabilities")
    assert status == 0, errors
    assert all(line.startswith("warning: ") for line in errors)
    assert any("200 ml" in line for line in errors)  # none of these holds a liver of an adult's size
    mask, source = nib.load(out), nib.load(path)
    assert mask.shape == volume.geometry.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    again = ls.MaskVolume.load(out)
    np.testing.assert_array_equal(again.labels, predictor.predict(path).canonical_labels)
    figures = json.dumps(ls.statistics(out, volume=path).to_dict(), allow_nan=False)
    assert json.loads(figures)["identity_affine"] == (name == "identity")


@pytest.mark.parametrize("fill", ["empty", "liver only", "tumour outside the liver", "almost integers"])
def test_masks_of_every_kind_are_scored(fill, tmp_path, command):
    truth, predicted = np.zeros((2, *SHAPE))
    if fill != "empty":
        predicted[8:20, 8:20, 1:3] = 1.0004 if fill == "almost integers" else 1
    if fill == "tumour outside the liver":
        predicted[24:28, 24:28, 1:3] = 2
    for name, labels in (("truth", truth), ("pred", predicted)):
        (tmp_path / name).mkdir()
        dtype = np.float32 if fill == "almost integers" else np.uint8
        (tmp_path / name / "segmentation-1.nii").write_bytes(content(labels.astype(dtype)))
    status, errors = command(
        "evaluate", "--truth", tmp_path / "truth", "--prediction", tmp_path / "pred", "-o", tmp_path / "s.json"
    )
    assert (status, errors) == (0, [])
    (row,) = json.loads((tmp_path / "s.json").read_text())["cases"]
    assert row["liver_dice"] == (fill == "empty")
    assert row["lesions_prediction"] == ("tumour" in fill)


def test_outputs_that_must_not_be_replaced(predictor, command, tmp_path):
    case_folder(tmp_path / "data", 1)
    before = tree(tmp_path)
    truth = tmp_path / "data" / "segmentation-1.nii"
    link = tmp_path / "data" / "link.nii"
    os.link(tmp_path / "data" / "volume-1.nii", link)
    for target, more, words in (
        (truth, [], "was not made by this library.*--overwrite"),
        (tmp_path / "data" / "volume-1.nii", ["--overwrite"], "is an input and is never written over"),
        (link, ["--overwrite"], "is an input and is never written over"),
    ):
        status, errors = command("predict", tmp_path / "data" / "volume-1.nii", "-o", target, "--model", "x", *more)
        assert (status, len(errors)) == (1, 1)
        assert re.search(words, errors[0])
    link.unlink()
    assert tree(tmp_path) == before
    assert command("predict", tmp_path / "data" / "volume-1.nii", "-o", truth, "--model", "x", "--overwrite")[0] == 0
    assert command("predict", tmp_path / "data" / "volume-1.nii", "-o", truth, "--model", "x")[0] == 0  # our own now


@pytest.mark.parametrize("affine", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1, 1, 1e9, 1])])
def test_images_from_elsewhere_are_checked_too(affine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.Nifti1Image(ct(), np.eye(4))
        image._affine = affine
    with pytest.raises(GeometryError, match="nibabel image: expected an affine with three independent axes"):
        ls.CTVolume.from_image(image)
