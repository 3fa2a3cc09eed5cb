"""Which series lie in a folder, and why one can't be used."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")

from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.dicom.series import find_series, pick_series  # noqa: E402
from liverseg_tf.data.dicom.writing import series_datasets  # noqa: E402
from liverseg_tf.errors import InputFileError  # noqa: E402
from tests.data.dicom.conftest import AXIAL  # noqa: E402


def set_(**values):
    """A change of every slice."""

    def change(data, index):
        for name, value in values.items():
            setattr(data, name, value)

    return change


def of_slice(number, **values):
    """A change of one slice."""
    return lambda data, index: set_(**values)(data, index) if index == number else None


def test_order_is_by_position_whatever_names_and_numbers_say(make_series, hu):
    order = [3, 0, 4, 1, 2]

    def shuffled(data, index):
        data.InstanceNumber = order[index]
        data.SOPInstanceUID = f"1.2.{order[index]}"

    (series,) = find_series(make_series(change=shuffled, names="{:02d}.x")).usable
    assert [image.sop_instance_uid for image in series.images] == [f"1.2.{n}" for n in order]
    np.testing.assert_allclose(series.affine, AXIAL)
    assert series.to_dict()["slices"] == 5
    assert series.to_dict()["spacing_mm"] == [2.0, 1.5, 3.0]


def test_a_folder_of_studies_gives_each_series_and_says_what_it_leaves(make_series):
    make_series("a/one", seed=1)
    make_series("a/two", seed=2, change=set_(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    make_series("b", seed=3, change=set_(SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"))
    root = make_series("b/c", seed=4, change=set_(ImageType=["DERIVED", "SECONDARY", "MPR"])).parents[1]
    (root / "notes.txt").write_text("x")
    found = find_series(root)
    reasons = {series.folder.split("/")[-1]: series.left_out for series in found.series}
    assert reasons == {"one": "", "two": "a localizer", "b": "no CT image (MR)", "c": "derived (mpr)"}
    assert [series.folder for series in found.usable] == [str(root / "a/one")]
    assert found.other_files == 1
    derived = next(series for series in found.series if series.left_out.startswith("derived"))
    assert pick_series(found, derived.uid).uid == derived.uid


def test_two_series_are_not_guessed_between(make_series):
    folder = make_series(seed=1, names="a{}")
    make_series(seed=2, names="b{}")
    found = find_series(folder)
    assert len(found.usable) == 2
    with pytest.raises(InputFileError, match="holds 2 CT series, expected one: .*5 slices.*pick one with series="):
        pick_series(found)
    assert pick_series(found, found.usable[1].uid) is found.usable[1]
    with pytest.raises(InputFileError, match=r"holds no series 1\.2\.3"):
        pick_series(found, "1.2.3")


def break_length(data, index):
    if index == 2:
        data.PixelData = data.PixelData[:-4]


def leave_pixels(data, index):
    if index == 1:
        del data.PixelData


BAD = {
    "missing slice": (lambda data, index: index != 2, "between IM001 and IM003 .* 6.00 mm, 1 missing"),
    "uneven step": (of_slice(2, ImagePositionPatient=[-20, -30, -33.9]), "expected steps of 3.00 mm.*IM001 and IM002"),
    "slice aside": (of_slice(2, ImagePositionPatient=[-21, -30, -34]), "expected steps of 3.00 mm"),
    "other orientation": (of_slice(0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "mixes 2 grids .4, 1 images"),
    "other pixel spacing": (of_slice(0, PixelSpacing=[2, 1.6]), "mixes 2 grids"),
    "other frame of reference": (of_slice(4, FrameOfReferenceUID="1.2.3"), "mixes 2 grids"),
    "wrong pixel length": (break_length, "IM002 has 80 bytes of pixels, expected 84"),
    "no pixel data": (leave_pixels, "IM001 has no pixel data"),
    "no position": (of_slice(1, ImagePositionPatient=None), "IM001 has no usable position"),
    "skewed orientation": (set_(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "describes no grid"),
    "RGB": (set_(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "holds RGB pixels"),
    "MR": (set_(SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"), r"left out: no CT image \(MR\)"),
    "mixed signs": (of_slice(1, PixelRepresentation=0), "store their pixels in different ways"),
    "rescale of nothing": (of_slice(1, RescaleSlope="0"), "no usable rescale slope"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_series_are_refused_with_the_reason(make_series, capsys, name):
    change, words = BAD[name]
    folder = make_series(change=change)
    with pytest.raises(InputFileError, match=words) as caught:
        pick_series(find_series(folder))
    assert "DOE" not in str(caught.value)
    assert main(["series", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and error.startswith("liverseg: error: ")


@pytest.mark.parametrize("keep", [0.98, 0.7, 140, 60, 0])
def test_one_truncated_file_spoils_its_series(make_series, keep):
    folder = make_series(names="IM{:03d}.dcm")
    path = folder / "IM004.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputFileError, match="IM004.dcm"):
        pick_series(find_series(folder))


def test_one_slice_is_a_volume_as_thick_as_it_says(make_series, hu):
    (series,) = find_series(make_series(array=hu[..., :1])).usable
    np.testing.assert_allclose(series.step_mm, [0, 0, 3])
    np.testing.assert_allclose(series.affine, AXIAL)


def test_a_straight_gantry_is_not_tilted_whatever_the_rounding(make_series, hu):
    from scipy.spatial.transform import Rotation

    for number, turn in enumerate(Rotation.random(12, random_state=0).as_matrix()):
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([-1.5, -2.0, 3.0])
        (series,) = find_series(make_series(f"ct{number}", array=hu[..., :2], affine=affine)).usable
        assert series.tilt_degrees == pytest.approx(0, abs=1e-3)


def test_series_of_a_folder_are_listed_by_number(make_series):
    for seed, number in enumerate((7, 10, 2, None)):
        folder = make_series(seed=seed, names=f"{seed}-{{}}", change=set_(SeriesNumber=number))
    assert [series.number for series in find_series(folder).series] == [None, 2, 7, 10]


def test_three_of_many_gaps_are_named_and_the_others_counted(make_series, hu):
    lost = (2, 5, 8, 11, 14)
    folder = make_series(array=np.tile(hu, 4)[..., :18], change=lambda data, index: index not in lost)
    (series,) = find_series(folder).series
    assert series.is_uneven and not series.is_usable
    assert series.problem.count("6.00 mm, 1 missing") == 3
    assert "between IM001 and IM003 (slices 2 and 3 of 13)" in series.problem
    assert "and 2 more places" in series.problem


def test_rounded_positions_are_no_gaps(make_series):
    def rounded(data, index):
        data.ImagePositionPatient = [-20, -30, round(-40 + index * 1.2345, 2)]

    assert find_series(make_series(change=rounded)).usable


def test_what_lost_its_uids_is_kept_together_by_its_folder(make_series):
    blank = set_(SOPClassUID="", SOPInstanceUID="", SeriesInstanceUID="", StudyInstanceUID="")
    (series,) = find_series(make_series(change=blank)).usable
    assert series.uid == "" and len(series.places) == 5


def test_names_and_dates_are_left_out_of_descriptions(make_series, capsys):
    folder = make_series(change=set_(SeriesDescription="Jane liver portal 2021-03-04 20210304"))
    (series,) = find_series(folder).usable
    assert series.description == "liver portal"
    assert series.phase == "portal venous"
    assert main(["series", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert "jane" not in out.lower() and "2021" not in out


def test_zip_archives_are_read_without_being_unpacked(make_series, tmp_path, hu):
    folder = make_series()
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"../../evil/{path.name}")
        file.writestr("readme.txt", "x" * 200)
    before = sorted(tmp_path.rglob("*"))
    from liverseg_tf.data.volume import CTVolume

    np.testing.assert_array_equal(CTVolume.load(archive).hu, CTVolume.load(folder).hu)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_bombs_and_broken_archives_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(3_000_000))
    with pytest.raises(InputFileError, match="expands to more than 2000000 bytes"):
        find_series(bomb, max_bytes=2_000_000)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(bomb.read_bytes()[:-30])
    with pytest.raises(InputFileError, match="expected a zip archive"):
        find_series(broken)


def with_junk(folder, files):
    """A folder with links that lead nowhere or in circles, a DICOMDIR, and files of no use."""
    for number in range(files):
        (folder / f"junk{number}.bin").write_bytes(bytes([number % 256]) * 200)
    os.symlink(folder, folder / "loop")
    os.symlink(folder / "self", folder / "self")
    os.symlink(folder / "nowhere", folder / "dead")
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder


def test_junk_links_and_a_dicomdir_beside_a_series(make_series):
    found = find_series(with_junk(make_series(), 10_000))
    assert (len(found.usable), len(found.broken), found.directories, found.other_files) == (1, 0, 1, 10_000)


def test_a_dicomdir_alone_says_what_to_do(make_series, tmp_path):
    with_junk(make_series(), 1)
    with pytest.raises(InputFileError, match="a DICOMDIR lists files that lie elsewhere"):
        pick_series(find_series(tmp_path / "ct" / "DICOMDIR"))


def test_nothing_at_all(tmp_path):
    with pytest.raises(InputFileError, match="no such file"):
        find_series(tmp_path / "missing")
    with pytest.raises(InputFileError, match="got none, it is empty"):
        pick_series(find_series(tmp_path))


def deflated(data, index):
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"


def test_deflated_files_are_read(make_series, hu):
    from liverseg_tf.data.volume import CTVolume

    folder = make_series(change=deflated)
    assert b"1.2.840.10008.1.2.1.99" in (folder / "IM000").read_bytes()
    volume = CTVolume.load(folder, hu_range=None)
    np.testing.assert_array_equal(volume.geometry.to_file(volume.hu), hu)


def test_deflated_bombs_and_broken_ones_are_refused(make_series, monkeypatch):
    def large(data, index):
        deflated(data, index)
        if index == 2:
            data.add_new(0x00091010, "LO", "x")
            data.add_new(0x00091011, "OB", bytes(50_000_000))

    folder = make_series(change=large)
    assert (folder / "IM002").stat().st_size < 100_000
    monkeypatch.setenv("LIVERSEG_MAX_BYTES", "2000000")
    tracemalloc.start()
    with pytest.raises(InputFileError, match="IM002 .*expand to more than 2000000 bytes"):
        pick_series(find_series(folder))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    path = folder / "IM002"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    monkeypatch.delenv("LIVERSEG_MAX_BYTES")
    with pytest.raises(InputFileError, match="IM002 .*is truncated in its deflated data"):
        pick_series(find_series(folder))
    at = content.index(b"1.2.840.10008.1.2.1.99") + 200
    path.write_bytes(content[:at] + bytes(500) + content[at + 500 :])
    with pytest.raises(InputFileError, match="IM002 .*in its deflated data"):
        pick_series(find_series(folder))


def test_a_zip_member_larger_than_it_says_takes_no_more_memory_than_it_says(make_series, tmp_path):
    bomb = tmp_path / "bomb.zip"
    content = next(make_series(names="IM{:03d}.dcm").iterdir()).read_bytes()
    real = 60_000_000
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", content + bytes(real - len(content)))
    archive = bomb.read_bytes()
    assert len(archive) < 100_000
    said = len(content) + 1000
    # in the local header and in the directory
    bomb.write_bytes(archive.replace(real.to_bytes(4, "little"), said.to_bytes(4, "little")))
    assert zipfile.ZipFile(bomb).infolist()[0].file_size == said
    tracemalloc.start()
    found = find_series(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.usable and "can't be read" in found.broken[0][1]
    assert peak < 5_000_000


def test_unknown_transfer_syntaxes_are_named(make_series):
    folder = make_series("unknown")
    for path in folder.iterdir():
        known = b"1.2.840.10008.1.2.1\0"
        path.write_bytes(path.read_bytes().replace(known, b"1.2.840.10008.1.9.9\0", 1))
    with pytest.raises(InputFileError, match="IM000 and 4 more has an unknown transfer syntax"):
        pick_series(find_series(folder))


def test_pydicoms_own_series():
    root = os.path.join(os.path.dirname(pydicom.data.__file__), "test_files", "dicomdirtests")
    found = {os.path.basename(series.folder): series for series in find_series(root).series}
    assert found["CT5N"].is_usable and len(found["CT5N"].places) == 5
    assert found["CT2N"].left_out == "a localizer"
    assert "202.50 mm" in found["CT2"].problem
    assert found["MR1"].left_out == "no CT image (MR)"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 23),
    st.floats(-0.4, 0.4),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.booleans(),
)
def test_affines_of_all_orientations_and_tilts_come_back(orientation, shear, spacing, mirrored):
    import itertools
    import tempfile

    rotations = [
        np.array(matrix, float)
        for permutation in itertools.permutations(np.eye(3))
        for signs in itertools.product((1, -1), repeat=3)
        if np.linalg.det(matrix := np.array(permutation) * np.array(signs)[:, None]) > 0
    ]
    affine = np.eye(4)
    affine[:3, :3] = rotations[orientation] @ np.diag([-spacing[0], -spacing[1], spacing[2]])
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = (5, -7, 11)
    array = np.arange(4 * 3 * 3, dtype=np.int16).reshape(4, 3, 3)
    with tempfile.TemporaryDirectory() as folder:
        datasets = list(series_datasets(array, affine, "X", "", 1, 0))
        for index, data in enumerate(reversed(datasets) if mirrored else datasets):
            data.save_as(f"{folder}/{index}", enforce_file_format=True)
        (series,) = find_series(folder).usable
        import warnings

        from liverseg_tf.data.dicom.voxels import read_series

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            voxels, found = read_series(series)
    # slices may come back in the other order: the same voxel lies at the same place
    if np.allclose(found, affine, atol=1e-6):
        np.testing.assert_array_equal(voxels, array)
    else:
        flip = np.diag([1.0, 1.0, -1.0, 1.0])
        flip[2, 3] = 2
        np.testing.assert_allclose(found, affine @ flip, atol=1e-6)
        np.testing.assert_array_equal(voxels, array[:, :, ::-1])
    assert series.tilt_degrees == pytest.approx(np.degrees(np.arctan(abs(shear) * spacing[1] / spacing[2])), abs=1e-3)
