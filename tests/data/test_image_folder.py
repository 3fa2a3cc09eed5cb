"""The data set as pictures: what is written, that it reads back, and what bad folders get."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from liverseg_tf.channels import CTChannels
from liverseg_tf.cli.main import main
from liverseg_tf.config import ChannelsConfig
from liverseg_tf.data.cases import Case, find_cases, split_by_patient
from liverseg_tf.data.image_folder import (
    ImageSlice,
    explain_image_error,
    image_folder_dataset,
    read_image_folder,
    write_image_folder,
)
from liverseg_tf.data.slice_options import SliceSelection
from liverseg_tf.data.slices import slice_dataset
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import CaseError, ConfigError, InputFileError, LabelError, OutputError

ALL = SliceSelection()


@pytest.fixture(scope="module")
def cases(phantom_folder):
    return find_cases(phantom_folder)[:2]


@pytest.fixture(scope="module")
def png_folder(cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "png"
    write_image_folder(cases, folder, format="png", selection=ALL)
    return folder


def test_pictures_hold_the_channels_and_masks_the_labels(png_folder, cases):
    slices = read_image_folder(png_folder)
    assert [(s.case, s.slice) for s in slices] == [(c.id, i) for c in cases for i in range(12)]
    for item in slices[::5]:
        case = next(c for c in cases if c.id == item.case)
        hu, labels = CTVolume.load(case.volume).hu, MaskVolume.load(case.segmentation).labels
        expected = CTChannels()(hu[None, ..., item.slice])[0]
        np.testing.assert_allclose(np.array(Image.open(item.image)) / 255, expected, atol=0.501 / 255)
        np.testing.assert_array_equal(np.array(Image.open(item.mask)), labels[..., item.slice])
        assert f"volume-{item.case}_slice_{item.slice}." in item.image.name


def test_pictures_read_back_as_the_slices_they_came_from(png_folder, cases):
    direct = slice_dataset(cases, 32, with_index=True)
    found = {
        (int(i["case"]), int(i["slice"])): (c, m) for c, m, i in image_folder_dataset(png_folder, 32, with_index=True)
    }
    assert len(found) == 24
    for channels, labels, info in direct:
        picture, mask = found[int(info["case"]), int(info["slice"])]
        np.testing.assert_allclose(picture, channels, atol=0.501 / 255)
        np.testing.assert_array_equal(mask, labels)
    spec = image_folder_dataset(png_folder, 32).element_spec
    assert [s.shape.as_list() for s in spec] == [[32, 32, 3], [32, 32]]
    assert [s.dtype for s in spec] == [tf.float32, tf.uint8]
    picture, mask = next(iter(image_folder_dataset(png_folder)))
    assert picture.shape == (64, 64, 3)
    assert mask.shape == (64, 64)


def test_defaults_are_the_originals(phantom_folder, tmp_path):
    steps = []
    slices = write_image_folder(
        find_cases(phantom_folder), tmp_path / "jpg", progress=lambda done, total: steps.append((done, total))
    )
    assert sorted({s.case for s in slices}) == [0, 3]  # every third of six
    assert [s.slice for s in slices if s.case == 3] == [0, 2, 4, 6, 8, 10]
    assert steps == [(i + 1, 12) for i in range(12)]
    image = Image.open(slices[0].image)
    assert image.format == "JPEG"
    assert image.mode == "RGB"
    case = find_cases(phantom_folder)[0]
    expected = CTChannels()(CTVolume.load(case.volume).hu[None, ..., 0])[0]
    assert np.abs(np.array(image) / 255 - expected).mean() < 0.05  # JPG loses some


def test_shuffling_goes_by_the_seed_and_changes_each_time(png_folder):
    def order(dataset):
        return [(int(i["case"]), int(i["slice"])) for _, _, i in dataset]

    dataset = image_folder_dataset(png_folder, 32, shuffle=True, seed=1, with_index=True)
    first, second = order(dataset), order(dataset)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first == order(image_folder_dataset(png_folder, 32, shuffle=True, seed=1, with_index=True))
    assert first != order(image_folder_dataset(png_folder, 32, shuffle=True, seed=2, with_index=True))


def test_a_split_by_patient_keeps_patients_apart(png_folder):
    training, validation = split_by_patient(read_image_folder(png_folder), 0.5)
    assert not {s.patient for s in training} & {s.patient for s in validation}
    assert len(list(image_folder_dataset(validation, 32))) == len(validation) == 12


def test_one_channel_makes_gray_pictures(cases, tmp_path):
    channels = ChannelsConfig(("liver",), histogram=False)
    slices = write_image_folder(cases[:1], tmp_path / "gray", format="png", channels=channels, selection=ALL)
    assert Image.open(slices[0].image).mode == "L"
    assert next(iter(image_folder_dataset(tmp_path / "gray", 32)))[0].shape == (32, 32, 1)
    with pytest.raises(ConfigError, match="one or three channels"):
        write_image_folder(cases, tmp_path / "two", channels=ChannelsConfig(("liver",)))


@pytest.mark.slow
def test_nothing_is_left_of_a_failed_run_and_ours_is_replaced(cases, tmp_path, write_nifti):
    output = tmp_path / "pictures"
    write_image_folder(cases[:1], output, selection=ALL)
    before = sorted(output.rglob("*"))
    bad_mask = write_nifti(tmp_path / "segmentation-9.nii.gz", np.full((16, 16, 2), 7, np.uint8))
    volume = write_nifti(tmp_path / "volume-9.nii.gz", np.zeros((16, 16, 2), np.int16))
    with pytest.raises(LabelError, match="segmentation-9"):
        write_image_folder([cases[0], Case(9, "9", volume, bad_mask)], output, selection=ALL)
    assert sorted(output.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    assert len(write_image_folder(cases[1:], output, selection=ALL)) == 12
    assert {s.case for s in read_image_folder(output)} == {cases[1].id}
    mask = read_image_folder(output)[0].mask
    mask.write_bytes(mask.read_bytes() + b"corrected")
    with pytest.raises(OutputError, match=f"{mask.name}: exists and was changed"):
        write_image_folder(cases[1:], output, selection=ALL)
    assert mask.read_bytes().endswith(b"corrected")


def test_no_case_of_the_folder_itself_is_written_over(cases, tmp_path):
    inside = [tmp_path / path.name for path in (cases[0].volume, cases[0].segmentation)]
    for path, source in zip(inside, (cases[0].volume, cases[0].segmentation), strict=True):
        path.write_bytes(source.read_bytes())
    with pytest.raises(OutputError, match="is an input"):
        write_image_folder([Case(1, "1", *inside)], tmp_path, selection=ALL)
    assert all(path.is_file() for path in inside)


def test_foreign_folders_and_bad_options_are_refused(cases, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(OutputError, match="thesis.txt: exists and was not made by this library"):
        write_image_folder(cases, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "text"
    with pytest.raises(OutputError, match="got a file"):
        write_image_folder(cases, tmp_path / "mine" / "thesis.txt")
    with pytest.raises(ConfigError, match="image format"):
        write_image_folder(cases, tmp_path / "new", format="bmp")
    with pytest.raises(ConfigError, match="image size: expected a positive number of pixels. Received: 0"):
        image_folder_dataset([ImageSlice(1, 0, "1", tmp_path / "x.png", tmp_path / "y.png", 3)], 0)
    with pytest.raises(ConfigError, match="quality"):
        write_image_folder(cases, tmp_path / "new", quality=0)
    with pytest.raises(CaseError, match="same number"):
        write_image_folder([cases[0], cases[0]], tmp_path / "new", selection=ALL)
    assert not (tmp_path / "new").exists()


def test_damaged_folders_are_told(cases, tmp_path):
    folder = tmp_path / "pictures"
    with pytest.raises(InputFileError, match="no such folder"):
        image_folder_dataset(folder)
    folder.mkdir()
    with pytest.raises(InputFileError, match="index.json"):
        image_folder_dataset(folder)
    folder.rmdir()
    slices = write_image_folder(cases[:1], folder, selection=ALL)
    Image.new("L", (64, 64), 7).save(slices[3].mask)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(image_folder_dataset(folder, 32))
    explained = explain_image_error(caught.value, slices)
    assert isinstance(explained, LabelError)
    assert str(slices[3].mask) in str(explained)
    slices[2].image.write_bytes(b"no picture")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(image_folder_dataset(folder, 32))
    assert str(slices[2].image) in str(explain_image_error(caught.value, slices))
    slices[1].mask.unlink()
    with pytest.raises(InputFileError, match="missing or empty"):
        image_folder_dataset(folder)
    (folder / "index.json").write_text('{"format": "jpg"}')
    with pytest.raises(ConfigError, match="missing"):
        image_folder_dataset(folder)


def test_command_writes_the_folder(phantom_folder, tmp_path, capsys):
    output = tmp_path / "a b"
    assert main(["slices", str(phantom_folder), "-o", str(output), "--format", "png", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["volumes"], printed["slices"]) == (2, 12)
    assert len(list((output / "images").glob("*.png"))) == 12
    assert main(["slices", str(tmp_path / "nowhere"), "-o", str(output)]) == 1
    assert "nowhere" in capsys.readouterr().err
