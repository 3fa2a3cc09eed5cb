"""The slice pipeline against the loader, and what it promises about order, seeds and proportions."""

import gzip
import os
import shutil
import zlib

import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.channels import CTChannels, SquareResize, resize_labels
from liverseg_tf.config import ChannelsConfig
from liverseg_tf.data.cases import find_cases
from liverseg_tf.data.slice_options import SlicePart, SliceSelection
from liverseg_tf.data.slices import (
    CATEGORIES,
    count_slices,
    explain_read_error,
    slice_dataset,
    training_batches,
)
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import CaseError, ConfigError, GeometryError, InputFileError, LabelError
from tests.data.test_volume import ORIENTATIONS, stored_as


def make_case(folder, write_nifti, number=0, shape=(12, 10, 6), codes="LPS", dtype=np.int16, suffix=".nii.gz", seed=0):
    rng = np.random.default_rng(seed + number)
    hu = rng.integers(-1200, 1500, shape).astype(dtype)
    labels = np.zeros(shape, np.uint8)
    labels[2:8, 2:8, 1:4] = 1
    labels[3:5, 3:5, 2] = 2
    array, affine = stored_as(hu, (1.0, 2.0, 3.0), codes)
    write_nifti(folder / f"volume-{number}{suffix}", array, affine)
    write_nifti(folder / f"segmentation-{number}{suffix}", stored_as(labels, (1.0, 2.0, 3.0), codes)[0], affine)
    return hu, labels


def as_arrays(dataset):
    return [
        tuple(x.numpy() if not isinstance(x, dict) else {k: int(v) for k, v in x.items()} for x in e) for e in dataset
    ]


@pytest.mark.slow
def test_raw_slices_equal_the_loaders_in_every_orientation(tmp_path, write_nifti):
    """All of them in one pipeline, which is traced once: each case has its own axes and flips."""
    made = [make_case(tmp_path, write_nifti, n, codes=codes) for n, codes in enumerate(ORIENTATIONS)]
    assert len(made) == 48
    found = as_arrays(slice_dataset(find_cases(tmp_path), with_index=True))
    assert sorted((at["case"], at["slice"]) for *_, at in found) == [(n, i) for n in range(48) for i in range(6)]
    for slice_hu, slice_labels, at in found:
        hu, labels = made[at["case"]]
        np.testing.assert_array_equal(slice_hu, hu[..., at["slice"]].clip(-1024, 3071))
        np.testing.assert_array_equal(slice_labels, labels[..., at["slice"]])


@pytest.mark.parametrize("codes", ["LPS", "PSL"])
def test_streams_that_go_on_after_the_voxels_are_not_followed(tmp_path, write_nifti, codes):
    """16 MiB of zeros behind the voxels, then a stream that can't be inflated: whoever goes there fails."""
    hu, labels = make_case(tmp_path, write_nifti, codes=codes)
    for path in tmp_path.glob("*.nii.gz"):
        bomb = zlib.compressobj(1, zlib.DEFLATED, 31)
        path.write_bytes(bomb.compress(gzip.decompress(path.read_bytes()) + bytes(16 << 20)) + b"\xff" * 1000)
    for slice_hu, slice_labels, at in as_arrays(slice_dataset(find_cases(tmp_path), with_index=True)):
        np.testing.assert_array_equal(slice_hu, hu[..., at["slice"]].clip(-1024, 3071))
        np.testing.assert_array_equal(slice_labels, labels[..., at["slice"]])
    np.testing.assert_array_equal(MaskVolume.load(tmp_path / "segmentation-0.nii.gz").labels, labels)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "uint32", "float32", ">f8"])
def test_every_stored_type_reads_as_the_loader_does(tmp_path, write_nifti, dtype, suffix):
    import nibabel as nib

    dtype = np.dtype(dtype)
    values = np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(dtype) + dtype.type(
        0.25 if dtype.kind == "f" else 0
    )
    header = nib.Nifti1Header(endianness=">" if dtype.byteorder == ">" else "<")
    nib.save(nib.Nifti1Image(values, np.diag([-1, -1, 2, 1]), header, dtype=dtype), tmp_path / f"volume-1{suffix}")
    write_nifti(tmp_path / f"segmentation-1{suffix}", np.zeros((7, 6, 5), np.uint8), np.diag([-1, -1, 2, 1]))
    cases = find_cases(tmp_path)
    volume = CTVolume.load(cases[0].volume)
    for index, (hu, _) in enumerate(as_arrays(slice_dataset(cases))):
        np.testing.assert_array_equal(hu, volume.hu[..., index])


def test_slope_trailing_bytes_and_mixed_types(tmp_path, write_nifti):
    import nibabel as nib

    make_case(tmp_path, write_nifti, 0, suffix=".nii")
    scaled = nib.Nifti1Image(np.arange(720).reshape(10, 12, 6) / 7 - 60, np.diag([-2, -1, 3, 1]))
    scaled.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    nib.save(scaled, tmp_path / "volume-1.nii")
    write_nifti(tmp_path / "segmentation-1.nii", np.zeros((10, 12, 6)), np.diag([-2, -1, 3, 1]))
    with (tmp_path / "volume-0.nii").open("ab") as file:
        file.write(b"behind the last voxel")
    cases = find_cases(tmp_path)
    volumes = {c.id: CTVolume.load(c.volume) for c in cases}
    elements = as_arrays(slice_dataset(cases, with_index=True))
    assert len(elements) == 12
    for hu, _, info in elements:
        np.testing.assert_allclose(hu, volumes[info["case"]].hu[..., info["slice"]], atol=1e-3)


def test_channels_and_labels_are_the_layers(tmp_path, write_nifti):
    hu, labels = make_case(tmp_path, write_nifti, shape=(48, 40, 3))
    dataset = slice_dataset(find_cases(tmp_path), image_size=32)
    assert [s.shape.as_list() for s in dataset.element_spec] == [[32, 32, 3], [32, 32]]
    assert int(dataset.cardinality()) == 3
    for index, (channels, small) in enumerate(as_arrays(dataset)):
        hu_slice = hu[None, ..., index].clip(-1024, 3071)
        np.testing.assert_allclose(channels, SquareResize(32)(CTChannels()(hu_slice))[0], atol=1e-6)
        np.testing.assert_array_equal(small, resize_labels(labels[None, ..., index], 32)[0])


@pytest.mark.slow
def test_evaluation_order_is_stable_and_training_order_goes_by_seed_and_epoch(phantom_folder):
    cases = find_cases(phantom_folder)

    def order(**options):
        return [(e[2]["case"], e[2]["slice"]) for e in as_arrays(slice_dataset(cases, with_index=True, **options))]

    plain = order()
    assert plain == sorted(plain)
    first = order(shuffle=True, seed=1, epoch=0)
    assert sorted(first) == plain
    assert first != plain
    tf.random.set_seed(0)  # the user's own seed changes nothing
    assert first == order(shuffle=True, seed=1, epoch=0)
    assert first != order(shuffle=True, seed=1, epoch=1)
    assert first != order(shuffle=True, seed=2, epoch=0)


def test_every_nth_volume_in_string_order_and_every_nth_slice(tmp_path, write_nifti):
    for number in (1, 2, 10, 11):
        make_case(tmp_path, write_nifti, number)
    cases = find_cases(tmp_path)
    selection = SliceSelection(every_volume=3, every_slice=2, order="name")  # 1, 10, 11, 2
    taken = [
        (e[2]["case"], e[2]["slice"]) for e in as_arrays(slice_dataset(cases, selection=selection, with_index=True))
    ]
    assert taken == [(1, 0), (1, 2), (1, 4), (2, 0), (2, 2), (2, 4)]
    liver = SliceSelection(only_liver=True)
    assert {e[2]["slice"] for e in as_arrays(slice_dataset(cases, selection=liver, with_index=True))} == {1, 2, 3}
    with pytest.raises(ConfigError, match="order"):
        SliceSelection(order="size")


def test_a_split_over_slices_takes_each_slice_on_one_side(phantom_folder):
    cases = find_cases(phantom_folder)

    def side(validation):
        selection = SliceSelection(part=SlicePart(0.3, seed=1, validation=validation))
        return {
            (e[2]["case"], e[2]["slice"]) for e in as_arrays(slice_dataset(cases, selection=selection, with_index=True))
        }

    training, validation = side(False), side(True)
    assert not training & validation
    assert len(training | validation) == 72
    assert 10 <= len(validation) <= 34


@pytest.mark.slow
def test_counts_and_proportions(phantom_folder):
    cases = find_cases(phantom_folder)
    labels = [MaskVolume.load(c.segmentation).labels for c in cases]
    flat = np.concatenate([np.moveaxis(m, 2, 0) for m in labels])
    tumour, liver = (flat == 2).any((1, 2)), (flat == 1).any((1, 2))
    expected = [int(tumour.sum()), int((liver & ~tumour).sum()), int((~liver & ~tumour).sum())]
    counts = count_slices(cases)
    assert [counts[c] for c in CATEGORIES] == expected
    wanted = np.array([0.5, 0.3, 0.2])
    drawn = np.zeros(3)
    one_channel = ChannelsConfig(("liver",), False)
    options = {"channels": one_channel, "proportions": tuple(wanted), "seed": 1}
    # at the slices' own size, so that no tumour vanishes; pass after pass through the cases
    for _, masks in training_batches(cases, 64, 16, steps_per_epoch=15, **options).take(15):
        for mask in masks.numpy():
            drawn[0 if (mask == 2).any() else 1 if (mask == 1).any() else 2] += 1
    np.testing.assert_allclose(drawn / drawn.sum(), wanted, atol=0.1)
    for bad in [(0.5, 0.5), (0.9, 0.2, 0.1), (1.5, -0.5, 0)]:
        with pytest.raises(ConfigError, match="three shares"):
            slice_dataset(cases, proportions=bad)


@pytest.mark.slow
def test_random_steps_go_by_seed_and_not_by_parallelism(phantom_folder):
    from liverseg_tf.data.augmentation import Augmentation

    cases = find_cases(phantom_folder)[:2]

    def epoch(**options):
        dataset = slice_dataset(cases, shuffle=True, augmentation=Augmentation(), seed=4, **options)
        return np.stack([hu for hu, _ in as_arrays(dataset)])

    first = epoch()
    np.testing.assert_array_equal(first, epoch())
    assert not np.array_equal(first, epoch(epoch=1))


def test_a_cache_gives_the_same_slices(phantom_folder, tmp_path):
    cases = find_cases(phantom_folder)[:2]
    plain = as_arrays(slice_dataset(cases))
    for cache in ("memory", tmp_path / "cache"):
        dataset = slice_dataset(cases, cache=cache)
        for _ in range(2):
            for (a, b), (c, d) in zip(plain, as_arrays(dataset), strict=True):
                np.testing.assert_array_equal(a, c)
                np.testing.assert_array_equal(b, d)


@pytest.mark.slow
def test_a_stale_cache_is_refused(phantom_folder, tmp_path):
    """Of other cases, of files that were written anew, of another range or selection, or of nobody knows what."""
    copies = tmp_path / "copies"
    shutil.copytree(phantom_folder, copies)
    cases, cache = find_cases(copies)[:2], tmp_path / "cache"

    def total(cases=cases, **options):
        return sum(float(tf.reduce_sum(hu)) for hu, _ in slice_dataset(cases, cache=cache, **options))

    first = total()
    assert total() == first
    stale = (
        {"cases": find_cases(copies)[1:3]},
        {"hu_range": (-100, 200)},
        {"hu_range": None},
        {"selection": SliceSelection(every_slice=2)},
        {"selection": SliceSelection(only_liver=True)},
    )
    for options in stale:
        with pytest.raises(ConfigError, match="cache: its cached slices are of other files or options"):
            total(**options)
    # channels and size come after the cache
    assert (
        next(iter(slice_dataset(cases, 32, channels=ChannelsConfig(("liver",), False), cache=cache)))[0].shape[2] == 1
    )
    assert total() == first
    os.utime(cases[0].volume, (0, 0))
    with pytest.raises(ConfigError, match="of other files"):
        total()
    for path in tmp_path.glob("cache.*"):
        path.unlink()
    assert total() == first
    (tmp_path / "cache.json").unlink()
    with pytest.raises(ConfigError, match="record cache.json is missing"):
        total()


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "memory"])
def test_training_batches_resume_where_they_would_have_been(phantom_folder, cache):
    cases = find_cases(phantom_folder)[:3]

    options = {"channels": ChannelsConfig(("liver",), False), "seed": 3, "cache": cache}

    def sums(first_epoch, batches):
        dataset = training_batches(cases, 32, 4, steps_per_epoch=12, first_epoch=first_epoch, **options)
        return [float(tf.reduce_sum(channels)) for channels, _ in dataset.take(batches)]

    whole = sums(0, 36)  # each epoch goes through the 36 slices more than once
    assert whole[24:] == sums(2, 12)
    assert len(set(whole)) > 30


@pytest.mark.slow
def test_the_dataset_is_usable_in_fit(phantom_folder):
    import keras

    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(3, 1)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(slice_dataset(find_cases(phantom_folder), 32).batch(4).take(2), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["LPS", "SPL"])
def test_a_file_that_ends_early_is_an_error_even_on_a_slices_edge(tmp_path, write_nifti, suffix, codes):
    make_case(tmp_path, write_nifti, codes=codes, suffix=suffix)
    path = tmp_path / f"volume-0{suffix}"
    cases = find_cases(tmp_path)
    dataset = slice_dataset(cases)  # cut after the headers were checked, as by a copy that goes on meanwhile
    content = path.read_bytes() if suffix == ".nii" else gzip.decompress(path.read_bytes())
    cut = content[: -12 * 10 * 2]
    path.write_bytes(cut if suffix == ".nii" else gzip.compress(cut))
    with pytest.raises(tf.errors.OpError) as caught:
        list(dataset)
    explained = explain_read_error(caught.value, cases)
    assert isinstance(explained, InputFileError)
    assert str(path) in str(explained)
    assert "truncated" in str(explained)


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (-1, np.int16)])
def test_the_values_next_to_the_classes_are_none(tmp_path, write_nifti, value, dtype):
    make_case(tmp_path, write_nifti)
    affine = stored_as(np.zeros((12, 10, 6)), (1, 2, 3), "LPS")[1]
    labels = np.zeros((10, 12, 6), dtype)
    labels[4, 5, 3] = value
    write_nifti(tmp_path / "segmentation-0.nii.gz", labels, affine)
    with pytest.raises(tf.errors.InvalidArgumentError, match="values that are no class"):
        list(slice_dataset(find_cases(tmp_path)))


@pytest.mark.slow
def test_labels_stored_as_fractions_are_classes_too(tmp_path, write_nifti):
    _, labels = make_case(tmp_path, write_nifti, suffix=".nii")
    array, affine = stored_as(labels, (1, 2, 3), "LPS")
    array = array + np.float32(0.0005)
    write_nifti(tmp_path / "segmentation-0.nii", array, affine)
    dataset = slice_dataset(find_cases(tmp_path))
    for (_, found), expected in zip(dataset, np.moveaxis(labels, 2, 0), strict=True):
        np.testing.assert_array_equal(found, expected)
    for value in (-1.0, 0.5, 1.01, 3.0):
        array[4, 5, 3] = value
        write_nifti(tmp_path / "segmentation-0.nii", array, affine)
        with pytest.raises(tf.errors.InvalidArgumentError, match="values that are no class"):
            list(dataset)


@pytest.mark.slow
@pytest.mark.parametrize("hu_range", [(-1024, 32767), (-1024, 32768), (-32769, 100), (-0.5, 70000.5), None])
def test_a_range_beyond_16_bits_does_not_wrap(tmp_path, write_nifti, hu_range):
    values = np.array([[[-40000, -1025, -1, 0, 1, 32767, 32768, 40000, 70001]]], np.int32).reshape(3, 3, 1)
    write_nifti(tmp_path / "volume-1.nii", values)
    write_nifti(tmp_path / "segmentation-1.nii", np.zeros(values.shape, np.uint8))
    (case,) = find_cases(tmp_path)
    ((hu, _),) = slice_dataset([case], hu_range=hu_range)
    expected = CTVolume.load(case.volume, hu_range=hu_range).hu[..., 0]
    np.testing.assert_allclose(hu, expected, atol=0.5)  # whole HU stay whole
    ((channels, _),) = slice_dataset([case], 3, hu_range=hu_range)
    np.testing.assert_allclose(channels, CTChannels()(np.rint(expected)[None])[0], atol=1e-6)


def test_an_impossible_size_is_refused(phantom_folder):
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"image size: expected a positive number of pixels. Received: {size}"):
            slice_dataset(find_cases(phantom_folder), size)


def test_wrong_labels_and_grids_are_told(tmp_path, write_nifti):
    make_case(tmp_path, write_nifti)
    cases = find_cases(tmp_path)
    affine = stored_as(np.zeros((12, 10, 6)), (1, 2, 3), "LPS")[1]
    write_nifti(tmp_path / "segmentation-0.nii.gz", np.full((10, 12, 6), 7, np.uint8), affine)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(slice_dataset(cases))
    assert isinstance(explain_read_error(caught.value, cases), LabelError)
    write_nifti(tmp_path / "segmentation-0.nii.gz", np.zeros((10, 12, 5), np.uint8))
    with pytest.raises(GeometryError, match=r"expected the shape \(10, 12, 6\)"):
        slice_dataset(cases)
    with pytest.raises(CaseError, match="expected cases with masks"):
        slice_dataset([])
