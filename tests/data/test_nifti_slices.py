"""A large NIfTI file's slices are read when they are needed, and are those of the file in memory."""

from __future__ import annotations

import gzip
import pickle
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.data import nifti_slices, temporary_slices, volume
from liverseg_tf.data.nifti import check_nifti
from liverseg_tf.data.nifti_slices import NiftiSlices
from liverseg_tf.errors import DataWarning, InputFileError, NotHounsfieldWarning

SHAPE = (20, 18, 23)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Every file counts as large, with blocks of three slices and pieces of a few bytes."""
    monkeypatch.setattr(volume, "_LEAST_BYTES_ON_DISK", 0)
    monkeypatch.setattr(nifti_slices, "_BLOCK_BYTES", 3 * 20 * 18 * 2)
    monkeypatch.setattr(nifti_slices, "_READ_BYTES", 97)
    monkeypatch.setattr(nifti_slices, "_MOST_BLOCKS", 2)


@pytest.fixture
def full_disk(monkeypatch):
    """A few slices fit into temporary files, then the disk is full."""
    written = []

    def write(descriptor, at, content):
        written.append(at)
        if len(written) > 7:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(temporary_slices, "write_at", write)


def _write(path, axes="LPS", dtype=np.int16, scale=None):
    rng = np.random.default_rng(3)
    voxels = rng.integers(-1000, 400, SHAPE).astype(dtype)
    to = nib.orientations.axcodes2ornt(tuple(axes))
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(to, SHAPE)[:3, :3] @ np.diag([0.7, 0.8, 2.0])
    image = nib.Nifti1Image(voxels, affine)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LPI", "PLS", "SPL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_are_those_of_a_volume_in_memory(tmp_path, axes, ending):
    path = _write(tmp_path / f"ct{ending}", axes, scale=(2.0, -5.0))
    whole, sliced = ls.CTVolume.load(path), ls.CTVolume.load(path, in_memory=False)
    assert isinstance(sliced._stored, NiftiSlices) == (axes != "SPL")
    count = whole.shape[2]
    for start, stop in ((0, count), (count - 1, count), (0, 1), (5, 9), (2, 3), (count - 4, count - 1)):
        np.testing.assert_array_equal(sliced.slices(start, stop), whole.slices(start, stop))
    np.testing.assert_array_equal(sliced.hu, whole.hu)
    assert (sliced.shape, sliced.spacing_mm, sliced.files) == (whole.shape, whole.spacing_mm, whole.files)
    assert repr(sliced) == repr(whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sliced)).hu, whole.hu)


@pytest.mark.parametrize("disk", ["free", "full"])
def test_threads_do_not_disturb_one_another(tmp_path, disk, request):
    if disk == "full":
        request.getfixturevalue("full_disk")
    sliced = ls.CTVolume.load(_write(tmp_path / "ct.nii.gz"), in_memory=False)
    whole, wrong = ls.CTVolume.load(tmp_path / "ct.nii.gz").hu, []

    def look(seed):
        for index in np.random.default_rng(seed).integers(0, SHAPE[2], 100):
            if not np.array_equal(sliced.slices(index, index + 1)[0], whole[..., index]):
                wrong.append(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))  # raises what they raise
    assert not wrong


def test_few_blocks_are_kept_where_the_disk_is_full(tmp_path, full_disk):
    slices = NiftiSlices(check_nifti(_write(tmp_path / "ct.nii.gz")))
    for index in (*range(SHAPE[2]), *reversed(range(SHAPE[2]))):
        slices.read(index, index + 1)
        assert len(slices._blocks) <= 2


def test_gzip_members_and_their_padding(tmp_path):
    content = _write(tmp_path / "ct.nii").read_bytes()
    parts = [gzip.compress(content[:5000]), b"\0" * 200, gzip.compress(content[5000:]), b"\0" * 9]
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(parts))
    sliced = ls.CTVolume.load(tmp_path / "ct.nii.gz", in_memory=False)
    np.testing.assert_array_equal(sliced.hu, ls.CTVolume.load(tmp_path / "ct.nii").hu)


@pytest.mark.parametrize("case", ["cut", "changed", "checksum", "short", "rest", "header"])
def test_a_broken_file_is_told_at_once_and_as_in_memory(tmp_path, case):
    whole = _write(tmp_path / "whole.nii.gz").read_bytes()
    at = len(whole) // 2
    content = {
        "cut": whole[:at],
        "changed": whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :],
        "checksum": whole[:-6] + bytes([whole[-6] ^ 255]) + whole[-5:],
        "short": gzip.compress(gzip.decompress(whole)[:-700]),
        "rest": whole + b"more",
        "header": gzip.compress(gzip.decompress(whole)[:350]),
    }[case]
    (tmp_path / "ct.nii.gz").write_bytes(content)
    with pytest.raises(InputFileError) as expected:
        ls.CTVolume.load(tmp_path / "ct.nii.gz")
    with pytest.raises(InputFileError) as told:
        ls.CTVolume.load(tmp_path / "ct.nii.gz", in_memory=False)
    assert str(told.value).split("(")[0] == str(expected.value).split("(")[0]


def test_a_file_that_changes_while_it_is_used(tmp_path, full_disk):
    for name in ("ct.nii", "ct.nii.gz"):
        sliced = ls.CTVolume.load(_write(tmp_path / name), in_memory=False)
        with (tmp_path / name).open("r+b") as file:
            file.truncate(600)
        with pytest.raises(InputFileError, match="was changed while it was used"):
            sliced.slices(10, 11)


def test_a_compressed_file_is_decompressed_once(tmp_path):
    sliced = ls.CTVolume.load(_write(tmp_path / "ct.nii.gz"), in_memory=False)
    whole = ls.CTVolume.load(tmp_path / "ct.nii.gz").hu
    with (tmp_path / "ct.nii.gz").open("r+b") as file:
        file.truncate(600)
    np.testing.assert_array_equal(sliced.hu, whole)


def test_warnings_are_those_of_a_volume_in_memory(tmp_path):
    values = np.random.default_rng(0).uniform(0, 200, SHAPE).astype(np.float32)
    values[3, 4, 5] = values[7, 8, 22] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, -1.0, 1.0])), tmp_path / "ct.nii.gz")
    told = []
    for in_memory in (True, False):
        with pytest.warns(DataWarning, match="2 voxels are NaN") as found:
            made = ls.CTVolume.load(tmp_path / "ct.nii.gz", in_memory=in_memory)
        assert made.doubt
        told.append([(one.category, str(one.message)) for one in found])
    assert told[0] == told[1] and any(category is NotHounsfieldWarning for category, _ in told[0])


@pytest.mark.slow
def test_prediction_of_a_folder_takes_slices_and_gives_the_same_masks(tmp_path, small_model_file, phantom_folder):
    options = {"second_look": None}
    for name in ("slices", "memory"):
        ls.predict_folder(phantom_folder / "volume-1.nii.gz", tmp_path / f"{name}.nii.gz", small_model_file, **options)
        volume._LEAST_BYTES_ON_DISK = 1 << 40  # the fixture puts it back
    masks = [ls.MaskVolume.load(tmp_path / f"{name}.nii.gz").labels for name in ("slices", "memory")]
    np.testing.assert_array_equal(*masks)
    assert masks[0].any()
