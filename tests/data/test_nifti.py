"""Files that lie about themselves."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.nifti import doubts_about_affine, max_bytes_limit, open_nifti, read_voxels, stem
from liverseg_tf.errors import ConfigError, GeometryError, InputFileError


@pytest.fixture
def ct(tmp_path, write_nifti):
    rng = np.random.default_rng(0)
    return write_nifti(tmp_path / "ct.nii", rng.integers(-1000, 1000, (16, 15, 14), np.int16))


def test_a_good_file_reads_bit_equal(ct):
    file = open_nifti(ct)
    assert file.shape == (16, 15, 14)
    np.testing.assert_array_equal(read_voxels(file), np.asanyarray(nib.load(ct).dataobj))


@pytest.mark.parametrize("cut", [1, 16 * 15 * 2, 16 * 15 * 2 * 10, 16 * 15 * 14 * 2])
def test_a_plain_file_cut_anywhere_is_truncated(ct, cut):
    ct.write_bytes(ct.read_bytes()[:-cut])
    with pytest.raises(InputFileError, match=r"ct.nii: is truncated or its header is wrong.*copy or download it again"):
        open_nifti(ct)


@pytest.mark.parametrize("cut", [1, 8, 500, 3000])
def test_a_compressed_file_cut_anywhere_is_damaged(ct, tmp_path, cut):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(gzip.compress(ct.read_bytes())[:-cut])
    with pytest.raises(InputFileError, match=r"ct.nii.gz: .*(truncated|damaged)"):
        read_voxels(open_nifti(path))


def test_a_file_cut_on_a_slices_edge_and_compressed_again_is_truncated(ct, tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(gzip.compress(ct.read_bytes()[: -16 * 15 * 2]))
    with pytest.raises(InputFileError, match="is truncated: expected"):
        read_voxels(open_nifti(path))


def test_a_changed_byte_in_a_compressed_stream_is_noticed(ct, tmp_path):
    path = tmp_path / "ct.nii.gz"
    content = bytearray(gzip.compress(ct.read_bytes()))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="ct.nii.gz"):
        read_voxels(open_nifti(path))


def test_names_that_lie(ct, tmp_path):
    misnamed = tmp_path / "a.nii.gz"
    misnamed.write_bytes(ct.read_bytes())
    with pytest.raises(InputFileError, match="is named .nii.gz but is an uncompressed NIfTI; rename it to a.nii"):
        open_nifti(misnamed)
    ct.write_bytes(gzip.compress(ct.read_bytes()))
    with pytest.raises(InputFileError, match="is gzip-compressed but named .nii; rename it to ct.nii.gz"):
        open_nifti(ct)


def test_each_kind_of_wrong_file_has_its_own_words(tmp_path):
    (tmp_path / "empty.nii").touch()
    (tmp_path / "text.nii").write_text("hello " * 200)
    (tmp_path / "ct.dcm").write_text("x")
    (tmp_path / "folder.nii").mkdir()
    for name, words in {
        "missing.nii": "no such file",
        "empty.nii": "is empty",
        "text.nii": "no NIfTI signature",
        "ct.dcm": "name ending in .nii or .nii.gz",
        "folder.nii": "got a folder",
    }.items():
        with pytest.raises(InputFileError, match=f"{name}: .*{words}"):
            open_nifti(tmp_path / name)


def _with_shape(path, shape):
    content = bytearray(path.read_bytes())
    content[42:48] = np.array(shape, np.int16).tobytes()
    path.write_bytes(content)
    return path


def test_a_small_file_that_declares_a_huge_volume_takes_no_memory(ct, tmp_path):
    _with_shape(ct, (30000, 30000, 30000))
    with pytest.raises(InputFileError, match="header is wrong"):
        open_nifti(ct)
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(gzip.compress(ct.read_bytes()))
    with pytest.raises(InputFileError, match="can't come out of"):
        open_nifti(packed)


def test_what_compresses_best_is_still_read(tmp_path, write_nifti):
    """A constant volume is 1/1028 of itself, a little below what deflate can do."""
    path = write_nifti(tmp_path / "constant.nii", np.full((256, 256, 64), -1024, np.int16))
    packed = tmp_path / "constant.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 9))
    assert path.stat().st_size > 1000 * packed.stat().st_size
    assert (read_voxels(open_nifti(packed)) == -1024).all()
    # twice the slices can't come out of the same bytes
    content = bytearray(path.read_bytes())
    content[46:48] = np.int16(128).tobytes()
    packed.write_bytes(gzip.compress(bytes(content), 9))
    with pytest.raises(InputFileError, match="can't come out of"):
        open_nifti(packed)


def test_the_limit_is_an_option_and_a_variable(ct, monkeypatch):
    with pytest.raises(InputFileError, match="raise the limit with max_bytes= or LIVERSEG_MAX_BYTES"):
        open_nifti(ct, max_bytes=1000)
    monkeypatch.setenv("LIVERSEG_MAX_BYTES", "1000")
    with pytest.raises(InputFileError, match="the limit is 1000 bytes"):
        open_nifti(ct)
    monkeypatch.setenv("LIVERSEG_MAX_BYTES", "lots")
    with pytest.raises(ConfigError, match="LIVERSEG_MAX_BYTES"):
        max_bytes_limit()


def test_shapes_and_dtypes_that_are_no_ct(tmp_path, write_nifti):
    with pytest.raises(GeometryError, match=r"got shape \(4, 4, 4, 3\)"):
        open_nifti(write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4, 3), np.int16)))
    with pytest.raises(InputFileError, match="got complex"):
        open_nifti(write_nifti(tmp_path / "b.nii", np.zeros((4, 4, 4), np.complex64)))
    rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputFileError, match="got RGB"):
        open_nifti(write_nifti(tmp_path / "c.nii", rgb))


def test_stems():
    assert [stem(n) for n in ("a/volume-7.nii.gz", "x.NII", "y.b.nii")] == ["volume-7", "x", "y.b"]


def test_a_header_says_whether_values_are_scaled(ct):
    assert not open_nifti(ct).is_scaled
    for slope, intercept in ((2.0, 0.0), (1.0, -1024.0)):
        content = bytearray(ct.read_bytes())
        content[112:120] = np.array([slope, intercept], "<f4").tobytes()
        ct.write_bytes(content)
        file = open_nifti(ct)
        assert file.is_scaled and (file.slope, file.intercept) == (slope, intercept)


@pytest.mark.filterwarnings("ignore::liverseg_tf.errors.GeometryWarning")
def test_only_what_is_strange_about_an_affine_is_doubted(tmp_path):
    def doubts(sform, qform):
        image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), sform)
        image.set_qform(qform, code=1)
        nib.save(image, tmp_path / "ct.nii")
        return [doubt.split(";")[0] for doubt in doubts_about_affine(open_nifti(tmp_path / "ct.nii"))]

    straight = np.diag([-1.5, -1.5, 3.0, 1.0])
    turned = straight.copy()
    turned[:2, :2] = 1.5 * np.array([[-np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), -np.cos(0.3)]])
    assert doubts(straight, straight) == []
    assert doubts(straight, np.diag([-1.5, -1.5, 2.0, 1.0])) == ["qform and sform disagree"]
    assert doubts(turned, turned) == ["its axes lie 17 degrees oblique to the patient's"]
