"""A large DICOM series is decoded into a temporary file, and is to the voxel the series in memory."""

import errno
import pickle
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from liverseg_tf.data import temporary_slices, volume  # noqa: E402
from liverseg_tf.data.phantom import make_phantom  # noqa: E402
from liverseg_tf.data.temporary_slices import TemporarySlices  # noqa: E402
from liverseg_tf.data.volume import CTVolume  # noqa: E402
from liverseg_tf.errors import InputFileError  # noqa: E402
from tests.data.dicom.conftest import AXIAL  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@pytest.fixture(autouse=True)
def every_series_is_large(monkeypatch):
    monkeypatch.setattr(volume, "_LEAST_BYTES_ON_DISK", 0)


def both(folder, **options):
    whole, sliced = (CTVolume.load(folder, in_memory=in_memory, **options) for in_memory in (True, False))
    assert isinstance(whole._stored, np.ndarray)
    return whole, sliced


def assert_same(sliced, whole):
    assert repr(sliced) == repr(whole) and sliced._stored.dtype == whole._stored.dtype
    assert (sliced.shape, sliced.spacing_mm, sliced.files) == (whole.shape, whole.spacing_mm, whole.files)
    count = whole.shape[2]
    for start, stop in ((0, count), (count - 1, count), (1, 3), (0, 1)):
        np.testing.assert_array_equal(sliced.slices(start, stop), whole.slices(start, stop))
    np.testing.assert_array_equal(sliced.hu, whole.hu)


def fraction(data, index):
    data.RescaleSlope, data.RescaleIntercept = str(0.5 + index / 4), "-1000.25"


def slopes(data, index):
    data.RescaleSlope, data.RescaleIntercept = str(index + 1), str(-10 * index)


def large_in_the_middle(data, index):
    data.PixelRepresentation = 0
    data.PixelData = np.full((6, 7), 60000 if index == 3 else index, "<u2").tobytes()


def padded(data, index):
    data.add(pydicom.DataElement("PixelPaddingValue", "SS", -1024))
    data.RescaleIntercept = "-100"


def compressed(data, index):
    data.compress(pydicom.uid.RLELossless)


@pytest.mark.parametrize("change", [None, fraction, slopes, large_in_the_middle, padded, compressed])
def test_slices_are_those_of_the_series_in_memory(make_series, change):
    whole, sliced = both(make_series(change=change), hu_range=None)
    assert isinstance(sliced._stored, TemporarySlices)
    assert_same(sliced, whole)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, 1, -1), (-1, 1, -1), (-1, -1, 1)])
def test_whichever_way_the_axes_run(make_series, signs):
    whole, sliced = both(make_series(affine=AXIAL * [*signs, 1]))
    assert isinstance(sliced._stored, TemporarySlices)
    assert_same(sliced, whole)


def test_a_phantom(tmp_path):
    from liverseg_tf.data.dicom.writing import write_series

    phantom = make_phantom(seed=3, shape=(48, 40, 20))
    write_series(phantom.geometry.to_file(phantom.hu), phantom.affine, tmp_path)
    whole, sliced = both(tmp_path)
    assert_same(sliced, whole)
    assert whole.hu.std() > 100


def test_duplicates_are_compared(make_series, hu):
    folder = make_series()
    make_series(seed=0, names="again{:03d}", change=lambda data, index: index == 2 or False)
    whole, sliced = both(folder)
    assert_same(sliced, whole)
    changed = np.where(np.arange(5) == 2, hu + 1, hu)
    make_series(array=changed, names="again{:03d}", change=lambda data, index: index == 2 or False)
    with pytest.raises(InputFileError, match="2 different images lie at one place"):
        CTVolume.load(folder, in_memory=False)


def test_what_is_read_into_memory_all_the_same(make_series, monkeypatch):
    turned = np.array([[0, 0, 3.0, 0], [-1.5, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    sagittal = make_series("sagittal", affine=turned)
    gaps = make_series("gaps", change=lambda data, index: index != 2)
    axial = make_series("axial")
    for folder, options in ((sagittal, {}), (gaps, {"allow_gaps": True})):
        whole, other = both(folder, **options)
        assert isinstance(other._stored, np.ndarray)
        assert_same(other, whole)
    monkeypatch.setattr(volume, "_LEAST_BYTES_ON_DISK", 1000)
    assert isinstance(CTVolume.load(axial, in_memory=False)._stored, np.ndarray)


def test_a_full_disk_takes_memory_instead(make_series, monkeypatch):
    written = []

    def write(descriptor, at, content):
        written.append(at)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(temporary_slices, "write_at", write)
    whole, other = both(make_series())
    assert len(written) == 3 and isinstance(other._stored, np.ndarray)
    assert_same(other, whole)


def test_a_series_picked_by_its_uid_among_several(make_series):
    first = make_series("study/a", seed=1)
    make_series("study/b", seed=2, array=np.zeros((7, 6, 5), np.int16))
    uid = CTVolume.load(first).series.uid
    whole, sliced = both(first.parent, series=uid)
    assert isinstance(sliced._stored, TemporarySlices)
    assert_same(sliced, whole)


@pytest.mark.parametrize("case", ["cut", "gone", "other"])
def test_a_broken_slice_is_told_at_once_and_as_in_memory(make_series, monkeypatch, case):
    folder = make_series(change=compressed)
    file = folder / "IM002"
    content = file.read_bytes()
    if case == "gone":  # after its header was read
        read_header = volume.pick_dicom

        def pick(*args):
            found = read_header(*args)
            file.unlink(missing_ok=True)
            return found

        monkeypatch.setattr("liverseg_tf.data.volume.pick_dicom", pick)
        monkeypatch.setattr("liverseg_tf.data.reading.pick_dicom", pick)
    elif case == "cut":
        file.write_bytes(content[:-40])
    else:
        file.write_bytes(content[:-60] + bytes(b ^ 85 for b in content[-60:]))
    told = []
    for in_memory in (True, False):
        file.write_bytes(content) if case == "gone" else None
        with pytest.raises(InputFileError) as error:
            CTVolume.load(folder, in_memory=in_memory)
        told.append(str(error.value))
    assert told[0] == told[1] and "IM002" in told[0]


def test_files_may_change_once_they_were_read(make_series):
    folder = make_series()
    whole, sliced = both(folder)
    for file in folder.iterdir():
        file.write_bytes(b"something else")
    np.testing.assert_array_equal(sliced.hu, whole.hu)


def test_a_temporary_file_that_was_cut_is_an_error_and_no_volume(make_series):
    sliced = CTVolume.load(make_series(), in_memory=False)
    sliced._stored._file.truncate(7 * 6 * 2 * 3)
    assert sliced.slices(0, 3).shape == (3, 6, 7)
    with pytest.raises(InputFileError, match="could not be read back.*TMPDIR"):
        sliced.slices(2, 4)


def test_no_file_is_left_and_another_process_gets_the_voxels(make_series, tmp_path, monkeypatch):
    there = tmp_path / "temporary"
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    whole, sliced = both(make_series())
    assert not list(there.iterdir())  # it has no name, so that it goes with the process
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sliced)).hu, whole.hu)


def test_threads_do_not_disturb_one_another():
    slices = TemporarySlices((30, 20, 16), np.int16)
    for index in reversed(range(16)):
        slices[index] = np.full((20, 30), index, np.int16)
    wrong = []

    def look(seed):
        for index in np.random.default_rng(seed).integers(0, 16, 200):
            if not (slices[index] == index).all():
                wrong.append(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))  # raises what they raise
    assert not wrong


def test_it_takes_memory_for_a_few_slices_alone(make_series, monkeypatch):
    monkeypatch.setattr(volume, "_SLICES_AT_ONCE", 2)
    hu = np.random.default_rng(1).integers(-1000, 1000, (256, 256, 16)).astype(np.int16)
    folder, peaks = make_series("large", array=hu), {}
    for in_memory in (True, False):
        CTVolume.load(folder, in_memory=in_memory)  # what is imported and kept
        tracemalloc.start()
        made = CTVolume.load(folder, in_memory=in_memory)
        for index in range(16):
            made.slices(index, index + 1)
        peaks[in_memory] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert hu.nbytes < peaks[True]
    assert peaks[False] < peaks[True] - 0.6 * hu.nbytes
