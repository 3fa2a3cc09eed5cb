"""A data set on disk in the original project's format: slices as three-channel JPG or PNG, masks as PNG.

    OUTPUT/index.json                      settings, and case, slice and patient of each picture
    OUTPUT/images/volume-7_slice_12.jpg    liver window, custom window and histogram as red, green and blue
    OUTPUT/masks/volume-7_slice_12.png     class indices, grey

`slice_dataset` reads NIfTI files directly and without loss. This format is for viewing, for other programs, and for
comparison with the original, which rounded channels to 8 bits and compressed them as lossy JPG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf

from liverseg_tf.channels import CTChannels, SquareResize, resize_labels
from liverseg_tf.config import ChannelsConfig, Config
from liverseg_tf.data.cases import Case, with_masks
from liverseg_tf.data.picture_formats import IMAGE_FORMATS
from liverseg_tf.data.slice_options import SliceSelection
from liverseg_tf.data.slices import explain_read_error, slice_dataset
from liverseg_tf.errors import CaseError, ConfigError, InputFileError, LabelError, LiverSegError
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.labels import CLASS_NAMES, LIVER_CLASSES, ClassSet
from liverseg_tf.ownership import claim_folder, owned_write

# Every third volume in alphabetical order of the file names, and every second slice.
ORIGINAL_SELECTION = SliceSelection(every_volume=3, every_slice=2, order="name")
INDEX = "index.json"


@dataclass(frozen=True)
class _Row(Config):
    case: int
    slice: int
    patient: str

    @property
    def name(self) -> str:
        return f"volume-{self.case}_slice_{self.slice}"


@dataclass(frozen=True)
class _Index(Config):
    format: str
    channels: ChannelsConfig
    hu_range: tuple[float, float] | None
    slices: tuple[_Row, ...]
    class_names: tuple[str, ...] = CLASS_NAMES

    def __post_init__(self) -> None:
        if self.format not in IMAGE_FORMATS:
            raise ConfigError(f"image format: expected one of {', '.join(IMAGE_FORMATS)}. Received: {self.format!r}")
        if self.channels.count not in (1, 3):
            raise ConfigError(
                f"pictures hold one or three channels: expected that many windows and histogram. "
                f"Received: {self.channels.count} channels"
            )


@dataclass(frozen=True)
class ImageSlice:
    """One picture of an image folder and its mask; `split_by_patient` splits lists of these as it does cases.

    Attributes:
        case: number of the volume.
        slice: slice of the volume, counted from inferior.
        patient: the patient's name.
        image: JPG or PNG file.
        mask: PNG file.
        channels: how many channels the picture has, 1 or 3.
        classes: how many classes the mask holds, background included.
    """

    case: int
    slice: int
    patient: str
    image: Path
    mask: Path
    channels: int = 3
    classes: int = len(CLASS_NAMES)


def write_image_folder(
    cases: Sequence[Case],
    output: str | Path,
    *,
    format: str = IMAGE_FORMATS[0],
    quality: int = 90,
    selection: SliceSelection = ORIGINAL_SELECTION,
    channels: ChannelsConfig | None = None,
    hu_range: tuple[float, float] | None = HU_RANGE,
    progress: Callable[[int, int | None], None] | None = None,
    classes: ClassSet = LIVER_CLASSES,
) -> list[ImageSlice]:
    """Write slices as pictures of their channels, and their masks. After an error no partial folder is left.

    Reading, channels and encoding run in parallel in graph operations. Channels are rounded to 8 bits.

    Args:
        cases: those with a mask are written.
        output: folder to make; an earlier image folder of this library is replaced if no file in it was changed or
            added.
        format: "jpg", or "png" (larger, lossless).
        quality: JPG quality, 1 to 100; fastai's `save_jpg` uses 90.
        selection: which slices; by default the original's selection.
        channels: how HU become channels, one or three; liver window, custom window and histogram by default.
        hu_range: HU range to clip to, or None for no clipping, as in the original.
        progress: called with the number of slices written and their total, None if it is unknown.
        classes: what the masks hold.

    Returns:
        What was written, in the order of cases and slices.

    Raises:
        CaseError: if no case has a mask, two cases have the same number, or no slice is selected.
        ConfigError: for an unknown format, or a number of channels that no picture can hold.
        InputFileError, GeometryError, LabelError: for files that can't be used.
        OutputError: if `output` holds anything but an image folder, or can't be written.

    Examples:
        >>> slices = write_image_folder(find_cases("LiTS"), "LiTS_jpg")
        >>> slices[0].image
        PosixPath('LiTS_jpg/images/volume-0_slice_0.jpg')
    """
    output = Path(output)
    config = _Index(format, channels or ChannelsConfig(), hu_range, (), classes.names)
    if not 1 <= quality <= 100:
        raise ConfigError(f"JPG quality: expected 1 to 100. Received: {quality}")
    chosen = selection.cases(with_masks(cases))
    inputs = [path for case in cases for path in case.files]
    claim_folder(output, "images", inputs=inputs)
    patients = {case.id: case.patient for case in chosen}
    if len(patients) < len(chosen):
        raise CaseError("two cases have the same number: expected different ones, as they name the pictures")
    layer = CTChannels.from_channels_config(config.channels)

    def encoded(hu, labels, info):
        picture = tf.cast(tf.round(layer(hu[None])[0] * 255.0), tf.uint8)
        if format == "jpg":
            picture = tf.io.encode_jpeg(picture, quality=quality)
        else:
            picture = tf.io.encode_png(picture)
        return picture, tf.io.encode_png(labels[..., None]), info["case"], info["slice"]

    dataset = slice_dataset(cases, selection=selection, hu_range=hu_range, classes=len(classes), with_index=True)
    total = int(dataset.cardinality())
    rows = []
    with owned_write(output, "images", inputs=inputs, folder=True) as temporary:
        for folder in ("images", "masks"):
            (temporary / folder).mkdir(parents=True)
        try:
            for picture, mask, case, index in dataset.map(encoded, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE):
                row = _Row(int(case), int(index), patients[int(case)])
                image_path, mask_path = _paths(temporary, row, format)
                image_path.write_bytes(picture.numpy())
                mask_path.write_bytes(mask.numpy())
                rows.append(row)
                if progress is not None:
                    progress(len(rows), total if total >= 0 else None)
        except tf.errors.OpError as error:
            raise explain_read_error(error, chosen, classes.names) from error
        if not rows:
            raise CaseError("expected slices to write, but the selection is empty; select more volumes or slices")
        rows.sort(key=lambda row: (row.case, row.slice))
        index = replace(config, slices=tuple(rows))
        (temporary / INDEX).write_text(index.to_json(), encoding="utf-8")
    return _slices(output, index)


def read_image_folder(folder: str | Path) -> list[ImageSlice]:
    """List the pictures of a folder that `write_image_folder` made.

    Raises:
        InputFileError: if the folder, its index, a picture or a mask is missing or empty.
        ConfigError: if the index has other content.

    Examples:
        >>> _ = write_image_folder(find_cases("LiTS"), "LiTS_jpg", selection=SliceSelection(every_slice=4))
        >>> training, validation = split_by_patient(read_image_folder("LiTS_jpg"))
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        what = f"there is no {INDEX} in it" if folder.is_dir() else "there is no such folder"
        raise InputFileError(f"{folder}: expected a folder made by 'liverseg slices', {what}; check the path")
    slices = _slices(folder, _Index.load(folder / INDEX))
    if not slices:
        raise InputFileError(f"{folder / INDEX}: lists no slices; write the folder again")
    for item in slices:
        for path in (item.image, item.mask):
            if not path.is_file() or path.stat().st_size == 0:
                raise InputFileError(f"{path}: is listed in {INDEX} but missing or empty; write the folder again")
    return slices


def image_folder_dataset(
    source: str | Path | Sequence[ImageSlice],
    image_size: int | None = None,
    *,
    shuffle: bool = False,
    seed: int = 0,
    with_index: bool = False,
) -> tf.data.Dataset:
    """Read an image folder for training, in graph operations.

    Args:
        source: the folder, or some of its slices (one side of a split).
        image_size: rows and columns in pixels of channels and labels, resized as in `slice_dataset`; None keeps the
            pictures' own size.
        shuffle: shuffle all slices, differently in each pass through the dataset.
        seed: of the shuffled order.
        with_index: add `{"case": int64, "slice": int64}`.

    Returns:
        An unbatched dataset of (channels (S, S, C) float32 in [0, 1], labels (S, S) uint8), for `Model.fit` once
        batched. A damaged file raises TensorFlow's error when it is read; `explain_image_error` names the file.

    Raises:
        InputFileError, ConfigError: as `read_image_folder`, or if there are no slices.

    Examples:
        >>> _ = write_image_folder(find_cases("LiTS"), "LiTS_jpg")
        >>> channels, labels = next(iter(image_folder_dataset("LiTS_jpg", image_size=32, shuffle=True).batch(4)))
        >>> channels.shape, labels.dtype
        (TensorShape([4, 32, 32, 3]), tf.uint8)
    """
    slices = read_image_folder(source) if isinstance(source, (str, Path)) else list(source)
    if not slices:
        raise InputFileError("expected slices of an image folder, got none")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image size: expected a positive number of pixels. Received: {image_size}")
    channels = slices[0].channels
    resize = SquareResize(image_size) if image_size else None

    def load(item):
        picture = _decode(item["image"], channels)
        labels = _decode(item["mask"], 1)[..., 0]
        same_shape = tf.debugging.Assert(
            tf.reduce_all(tf.shape(picture)[:2] == tf.shape(labels)), ["mask of another shape:", item["mask"]]
        )
        only_classes = tf.debugging.Assert(
            tf.reduce_max(labels) < slices[0].classes, ["values that are no class:", item["mask"]]
        )
        with tf.control_dependencies([same_shape, only_classes]):
            picture = tf.cast(picture, tf.float32) / 255.0
        if resize is not None:
            picture = tf.ensure_shape(resize(picture[None])[0], (image_size, image_size, channels))
            labels = tf.ensure_shape(resize_labels(labels[None], image_size)[0], (image_size, image_size))
        return (picture, labels, {k: item[k] for k in ("case", "slice")}) if with_index else (picture, labels)

    dataset = tf.data.Dataset.from_tensor_slices(
        {
            "image": [str(s.image) for s in slices],
            "mask": [str(s.mask) for s in slices],
            "case": tf.constant([s.case for s in slices], tf.int64),
            "slice": tf.constant([s.slice for s in slices], tf.int64),
        }
    )
    if shuffle:
        dataset = dataset.shuffle(len(slices), seed=seed, reshuffle_each_iteration=True)
    load = tf.autograph.experimental.do_not_convert(load)
    return dataset.map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def explain_image_error(error: Exception, slices: Sequence[ImageSlice]) -> LiverSegError:
    """Turn TensorFlow's error while reading pictures into one that names the file and its defect."""
    for item in slices:
        shapes = []
        for path, channels in ((item.image, item.channels), (item.mask, 1)):
            try:
                picture = _decode(str(path), channels)
            except tf.errors.OpError:
                return InputFileError(f"{path}: expected a whole picture, could not decode it; write the folder again")
            shapes.append(tuple(picture.shape[:2]))
        if shapes[0] != shapes[1]:
            return InputFileError(f"{item.mask}: expected the shape {shapes[0]} of its picture, got {shapes[1]}")
        if (found := int(tf.reduce_max(picture))) >= item.classes:
            return LabelError(f"{item.mask}: expected values 0 to {item.classes - 1}, got {found}")
    return InputFileError(f"reading pictures failed, although each file alone can be read: {str(error)[:300]}")


def _decode(path, channels: int):
    """JPG or PNG, recognised by content, in its own size: (rows, columns, channels) uint8."""
    picture = tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
    return tf.ensure_shape(picture, (None, None, channels))


def _paths(folder: Path, row: _Row, format: str) -> tuple[Path, Path]:
    return folder / "images" / f"{row.name}.{format}", folder / "masks" / f"{row.name}.png"


def _slices(folder: Path, index: _Index) -> list[ImageSlice]:
    counts = (index.channels.count, len(index.class_names))
    return [
        ImageSlice(row.case, row.slice, row.patient, *_paths(folder, row, index.format), *counts)
        for row in index.slices
    ]
