"""Slices of CTs and masks as a tf.data pipeline, which reads, reorients, windows and resizes them in graph operations.

Slices along the file's third axis are contiguous, so TensorFlow's own record reader streams them, gzip included,
without Python. Sizes come from the checked header and records are counted, so a file that ends early is an error even
if it ends exactly between two slices. `CTVolume` reads DICOM, NRRD and MetaImage, one case at a time.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import tensorflow as tf

from liverseg_tf.channels import CTChannels, SquareResize, resize_labels
from liverseg_tf.config import ChannelsConfig
from liverseg_tf.data.cases import Case, with_masks
from liverseg_tf.data.nifti import NiftiFile, is_nifti_name, open_nifti, read_voxels
from liverseg_tf.data.reading import open_volume
from liverseg_tf.data.slice_options import SliceChanges, SliceOptions, SliceSelection
from liverseg_tf.data.volume import Geometry, check_same_grid
from liverseg_tf.errors import CaseError, ConfigError, InputFileError, LiverSegError
from liverseg_tf.hounsfield import AIR_HU, HU_RANGE
from liverseg_tf.keyword_options import takes_options, with_changes
from liverseg_tf.labels import CLASS_NAMES, CLASSES, LIVER, TUMOUR, ClassSet, to_labels
from liverseg_tf.ownership import write_text
from liverseg_tf.strict_json import to_json

# Increase it when the same files and options give different slices.
_CACHE_FORMAT = 1
# Kinds of slices, in the order of `proportions`.
CATEGORIES = ("tumour", "liver only", "neither")


@takes_options(SliceOptions)
def slice_dataset(
    cases: Sequence[Case],
    image_size: int | None = None,
    *,
    options: SliceOptions | None = None,
    **changes: Unpack[SliceChanges],
) -> tf.data.Dataset:
    """Read labelled cases slice by slice.

    Args:
        cases: those with a mask are read; headers are checked immediately, voxels when they are read.
        image_size: rows and columns of channels and labels in pixels; None returns HU and labels as in the file.
        options: which slices, their order and form; see `SliceOptions`.
        changes: fields of `SliceOptions` as keywords, such as `shuffle=True`; they override `options`.

    Returns:
        An unbatched dataset of (channels (S, S, C) float32 in [0, 1], labels (S, S) uint8), or without `image_size`
        of (hu (H, W) float32, labels (H, W) uint8); rows start anterior, columns at the patient's right.

    Raises:
        CaseError: if no case has a mask.
        InputFileError, GeometryError: for files that can't be used, or if a mask and its volume have different grids.
        ConfigError: for options that can't be met, or a stale cache.
        OutputError: if the cache's record can't be written.

    Examples:
        >>> channels, labels = next(iter(slice_dataset(find_cases("LiTS"), image_size=32).batch(4)))
        >>> channels.shape, labels.dtype
        (TensorShape([4, 32, 32, 3]), tf.uint8)
    """
    options = with_changes(options, SliceOptions, changes, "slice_dataset")
    pipeline = _Pipeline(cases, image_size, options)
    epoch = tf.constant(options.epoch, tf.int64)
    if options.shuffle:  # within a graph function, whose seed `round` sets
        dataset = tf.data.Dataset.from_tensors(epoch).flat_map(_as_written(pipeline.round))
    else:  # each pass prepares nested functions anew, which takes as long as a hundred slices
        dataset = _as_written(pipeline.round)(epoch)
    if pipeline.keep is None and not pipeline.source.is_filtered:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(pipeline.source.count))
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(_options())


def training_batches(
    cases: Sequence[Case],
    image_size: int,
    batch_size: int,
    steps_per_epoch: int,
    first_epoch: int = 0,
    *,
    options: SliceOptions | None = None,
    **changes: Unpack[SliceChanges],
) -> tf.data.Dataset:
    """Endless batches for training, epoch after epoch.

    A dataset that begins with `first_epoch` continues like an uninterrupted one, so that training can resume.

    Args:
        cases, image_size, options, changes: as in `slice_dataset`; `shuffle` is on, and `epoch` is ignored.
        batch_size: slices per batch.
        steps_per_epoch: batches per epoch; the cases are repeated when they run out.
        first_epoch: number of the first epoch.

    Returns:
        A dataset of (channels (B, S, S, C) float32, labels (B, S, S) uint8).
    """
    options = replace(with_changes(options, SliceOptions, changes, "training_batches"), shuffle=True)
    pipeline = _Pipeline(cases, image_size, options)

    def one_epoch(epoch):
        rounds = tf.data.Dataset.range(_MOST_ROUNDS).flat_map(
            _as_written(lambda r: pipeline.round(epoch * _MOST_ROUNDS + r))
        )
        return rounds.batch(batch_size, drop_remainder=True).take(steps_per_epoch)

    batches = tf.data.Dataset.range(first_epoch, 2**31 // _MOST_ROUNDS).flat_map(one_epoch).prefetch(2)
    return batches.with_options(_options())


def count_slices(cases: Sequence[Case], selection: SliceSelection | None = None) -> dict[str, int]:
    """Count the slices of each of `CATEGORIES`; reads only the masks.

    Returns:
        For example `{"tumour": 40, "liver only": 90, "neither": 120}`.
    """
    selection = selection or SliceSelection()
    return _Source(selection.cases(with_masks(cases)), selection, None).categories()


def explain_read_error(
    error: Exception, cases: Sequence[Case], class_names: Sequence[str] = CLASS_NAMES
) -> LiverSegError:
    """Turn TensorFlow's error while reading into one that names the file and its defect."""
    for case in with_masks(cases):
        try:
            if not _is_streamed(case):
                mask = case.load_mask(case.load_volume(), ClassSet(tuple(class_names)))
                to_labels(mask.labels, str(case.segmentation), class_names)
                continue
            for path in case.files:
                file = open_nifti(path)
                voxels = read_voxels(file)
                if path == case.segmentation:
                    to_labels(
                        voxels * file.slope + file.intercept if file.is_scaled else voxels, str(path), class_names
                    )
        except LiverSegError as found:
            return found
    return InputFileError(f"reading slices failed, although each file alone can be read: {str(error)[:300]}")


def _options() -> tf.data.Options:
    """Slices are processed in parallel; parallelism within each operation would only cost time.

    tf.data's own rewriting finds nothing to improve here, and takes half of the time until an iterator is made.
    """
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.apply_default_optimizations = False
    return options


# An epoch repeats the cases at most this often.
_MOST_ROUNDS = 1000


class _Pipeline:
    """The pipeline of `slice_dataset`; `round(r)` is the dataset of the r-th pass through the cases."""

    def __init__(self, cases: Sequence[Case], image_size: int | None, options: SliceOptions):
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image size: expected a positive number of pixels. Received: {image_size}")
        selection = options.selection or SliceSelection()
        self.source = _Source(selection.cases(with_masks(cases)), selection, options.hu_range, options.classes)
        self.image_size, self.options = image_size, options
        self.channels = CTChannels.from_channels_config(options.channels or ChannelsConfig())
        self.resize = SquareResize(image_size) if image_size else None
        self.keep = self._keep_probabilities(options.proportions) if options.proportions is not None else None
        # made once, so that all passes read the same cache
        self.cached = self._cache(options.cache) if options.cache else None

    def _cache(self, where: str | Path) -> tf.data.Dataset:
        slices = self.source.slices(None, True)
        if str(where) == "memory":
            return slices.cache()
        where = Path(where)
        record = where.with_name(f"{where.name}.json")
        fingerprint = self.source.fingerprint()
        text = to_json({"fingerprint": fingerprint, "of": "slices cached by liverseg_tf"}, indent=1) + "\n"
        name = glob.escape(where.name)
        if any(path for ending in ("", "_[0-9]*") for path in where.parent.glob(f"{name}{ending}.index")):
            try:
                known = json.loads(record.read_text("utf-8"))["fingerprint"] == fingerprint
            except (OSError, ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise ConfigError(
                    f"{where}: its cached slices are of other files or options, or their record {record.name} is "
                    f"missing; remove {where.name}.* or name another cache"
                )
        write_text(record, text, "cache")
        return slices.cache(str(where))

    def round(self, number: tf.Tensor) -> tf.data.Dataset:
        """The dataset of one pass; called while a graph function is traced, if slices are shuffled."""
        if self.options.shuffle:
            # tf.data mixes the graph's seed into every shuffle; a seed set by the user must not affect it
            tf.random.set_seed(1)
        order = None
        if self.options.shuffle and self.cached is None:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(len(self.source.cases)), seed=self._seed(number, _ORDER)
            )
        dataset = self.cached if self.cached is not None else self.source.slices(order, self.options.deterministic)
        if self.options.shuffle:
            dataset = dataset.shuffle(
                self.source.count if self.cached is not None else self.options.shuffle_buffer,
                seed=tf.cast(self._seed(number, _SHUFFLE)[0], tf.int64),
                reshuffle_each_iteration=False,
            )
        dataset = dataset.enumerate()
        if self.keep is not None:
            dataset = dataset.filter(lambda i, item: self._keeps(item["labels"], self._seed(number, _KEEP, i)))
        dataset = dataset.map(
            lambda i, item: self._prepare(item, self._seed(number, _RANDOM, i)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=self.options.deterministic,
        )
        return dataset.prefetch(tf.data.AUTOTUNE)

    def _seed(self, number, purpose: int, index=0):
        """Seed pair of one purpose, pass and slice."""
        mixed = tf.random.experimental.stateless_fold_in([self.options.seed, purpose], tf.cast(number, tf.int32))
        return tf.random.experimental.stateless_fold_in(mixed, tf.cast(index, tf.int32))

    def _keep_probabilities(self, proportions: tuple[float, float, float]) -> np.ndarray:
        wanted = np.asarray(proportions, np.float64)
        if wanted.shape != (3,) or (wanted < 0).any() or not math.isclose(wanted.sum(), 1, abs_tol=1e-6):
            raise ConfigError(
                f"proportions: expected three shares (tumour, liver only, neither) of sum 1. Received: {proportions}"
            )
        counts = self.source.categories()
        found = np.array([counts[c] for c in CATEGORIES], np.float64)
        missing = [c for c, w, f in zip(CATEGORIES, wanted, found, strict=True) if w > 0 and f == 0]
        if missing:
            raise ConfigError(
                f"proportions: no slice shows {missing[0]!r}; give it the share 0. Received: {proportions}"
            )
        ratio = np.divide(wanted, found, out=np.zeros(3), where=found > 0)
        return ratio / ratio.max()

    def _keeps(self, labels, seed):
        return tf.random.stateless_uniform([], seed) < tf.gather(tf.constant(self.keep, tf.float32), _category(labels))

    def _prepare(self, item, seed):
        hu, labels = item["hu"], item["labels"]
        within_bins = self.source.is_within_bins
        if self.options.synthesis is not None or self.options.augmentation is not None:
            within_bins = False
            hu = tf.cast(hu, tf.float32)
            if self.options.synthesis is not None:
                first = tf.random.experimental.stateless_fold_in(seed, 1)
                hu, labels = self.options.synthesis(hu, labels, first, item["spacing_mm"])
            if self.options.augmentation is not None:
                hu, labels = self.options.augmentation(hu, labels, tf.random.experimental.stateless_fold_in(seed, 2))
            hu = tf.cast(tf.round(hu), tf.int32)  # integers, so that the histogram is a count
        if self.resize is None:
            result = tf.cast(hu, tf.float32), labels
        else:
            size = self.image_size
            channels = self.channels(hu[None], within_bins=within_bins)
            result = self.resize(channels)[0], resize_labels(labels[None], size, self.options.classes)[0]
            result = (
                tf.ensure_shape(result[0], (size, size, self.channels.channels)),
                tf.ensure_shape(result[1], (size, size)),
            )
        return (*result, {"case": item["case"], "slice": item["slice"]}) if self.options.with_index else result


_ORDER, _SHUFFLE, _KEEP, _RANDOM = range(4)


def _category(labels):
    """Index in `CATEGORIES` of a mask (H, W)."""
    has_tumour, has_liver = (tf.reduce_any(labels == c) for c in (TUMOUR, LIVER))
    return tf.where(has_tumour, 0, tf.where(has_liver, 1, 2))


class _Source:
    """The checked headers of the cases as tensors, and the readers that use them."""

    def __init__(
        self,
        cases: Sequence[Case],
        selection: SliceSelection,
        hu_range: tuple[float, float] | None,
        classes: int = len(CLASSES),
    ):
        if not cases:
            raise CaseError("expected at least one case to read, got none")
        self.cases, self.selection, self.hu_range, self.classes = cases, selection, hu_range, classes
        # cases that `CTVolume` reads are not streamed; their columns hold no file
        self._is_streamed = [_is_streamed(case) for case in cases]
        self._volumes: list[NiftiFile | None] = []
        self._masks: list[NiftiFile | None] = []
        self._geometries = []
        loaded_dtypes = []
        for case, is_streamed in zip(cases, self._is_streamed, strict=True):
            if not is_streamed:
                header = open_volume(case.volume, case.series)
                loaded_dtypes.append(header.dtype)
                self._volumes.append(None)
                self._masks.append(None)
                self._geometries.append(Geometry(header.shape, header.affine))
                continue
            assert case.segmentation is not None  # `with_masks` left the others out
            volume, mask = open_nifti(case.volume), open_nifti(case.segmentation)
            geometry = Geometry(volume.shape, volume.affine)
            check_same_grid(geometry, Geometry(mask.shape, mask.affine), (volume.path, mask.path))
            self._volumes.append(volume)
            self._masks.append(mask)
            self._geometries.append(geometry)
        self.count = sum(len(range(0, g.canonical_shape[2], selection.every_slice)) for g in self._geometries)
        # Integer HU stay integers until channels are computed: smaller buffers, and a histogram by counting.
        self.hu_dtype = tf.float32
        streamed = [v for v in self._volumes if v is not None]
        if all(v.dtype.kind in "iu" and v.slope.is_integer() and v.intercept.is_integer() for v in streamed) and all(
            dtype.kind in "iu" for dtype in loaded_dtypes
        ):
            fits = hu_range is not None and hu_range[0] >= -(2**15) and hu_range[1] < 2**15
            self.hu_dtype = tf.int16 if fits else tf.int32
        self._all_axial = all(self._is_axial(g) for g in self._geometries)
        # How the file's axes z, y, x (slowest first, as stored) become slices, rows, columns.
        self._axes = [[2 - int(np.flatnonzero(g.transform[:, 0] == a)[0]) for a in (2, 0, 1)] for g in self._geometries]
        self._flips = [
            [bool(g.transform[2 - z, 1] < 0) for z in axes]
            for g, axes in zip(self._geometries, self._axes, strict=True)
        ]

    def fingerprint(self) -> str:
        """Digest of everything that `slices` depends on: the current files and the options."""
        files = [
            (case.id, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
            for case in self.cases
            for path in case.files
        ]
        selection = asdict(replace(self.selection, every_volume=1, order="number"))  # the cases are already chosen
        parts = [_CACHE_FORMAT, files, selection, self.hu_range, self.hu_dtype.name]
        return hashlib.sha256(to_json(parts).encode()).hexdigest()

    @property
    def is_within_bins(self) -> bool:
        """Whether all HU are integers in `HU_RANGE`, for which `CTChannels` has its tables."""
        if self.hu_dtype == tf.float32 or self.hu_range is None:
            return False
        return HU_RANGE[0] <= self.hu_range[0] and self.hu_range[1] <= HU_RANGE[1]

    @property
    def is_filtered(self) -> bool:
        """Whether the number of slices is known only after reading them."""
        return self.selection.only_liver or self.selection.part is not None

    @staticmethod
    def _is_axial(geometry: Geometry) -> bool:
        return int(geometry.transform[2, 0]) == 2

    def slices(self, order: tf.Tensor | None, deterministic: bool) -> tf.data.Dataset:
        """Dataset of {"hu" (H, W), "labels" (H, W) uint8, "case", "slice", "spacing_mm" (2,)}.

        Args:
            order: indices of the cases; None for their own order, one after another.
            deterministic: see `slice_dataset`.
        """
        cases = self._case_tensors()
        if order is None:
            dataset = tf.data.Dataset.from_tensor_slices(cases).flat_map(_as_written(self._case_slices))
        else:
            shuffled = {key: tf.gather(values, order) for key, values in cases.items()}
            dataset = tf.data.Dataset.from_tensor_slices(shuffled).interleave(
                _as_written(self._case_slices),
                cycle_length=min(_FILES_AT_ONCE, len(self.cases)),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=deterministic,
            )
        if self.selection.only_liver:
            dataset = dataset.filter(lambda item: tf.reduce_any(item["labels"] > 0))
        if self.selection.part is not None:
            dataset = dataset.filter(lambda item: self.selection.part.contains(item["case"], item["slice"]))
        return dataset

    def categories(self) -> dict[str, int]:
        cases = tf.data.Dataset.from_tensor_slices(self._case_tensors())
        dataset = cases.interleave(
            _as_written(lambda case: self._mask_slices(case).map(lambda labels, index: _category(labels))),
            cycle_length=min(_FILES_AT_ONCE, len(self.cases)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        try:
            counts = dataset.batch(256).reduce(
                tf.zeros(3, tf.int64), lambda total, c: total + tf.reduce_sum(tf.one_hot(c, 3, dtype=tf.int64), 0)
            )
        except tf.errors.OpError as error:
            raise explain_read_error(error, self.cases) from error
        counts = dict(zip(CATEGORIES, map(int, counts), strict=True))
        return {**counts, "neither": 0} if self.selection.only_liver else counts

    def _case_tensors(self) -> dict[str, np.ndarray]:
        columns: dict[str, list] = {"case": [c.id for c in self.cases]}
        for name, files in (("volume", self._volumes), ("mask", self._masks)):
            columns[f"{name}_path"] = [str(f.path) if f else "" for f in files]
            columns[f"{name}_offset"] = [f.offset if f else 0 for f in files]
            columns[f"{name}_record"] = [f.data_bytes // f.shape[2] if f else 1 for f in files]
            columns[f"{name}_footer"] = [_footer_bytes(f) if f else 0 for f in files]
            columns[f"{name}_compression"] = ["GZIP" if f and f.compressed else "" for f in files]
            columns[f"{name}_type"] = [self._types(files).index(f.dtype.str) if f else 0 for f in files]
            columns[f"{name}_scaling"] = [(f.slope, f.intercept) if f else (1.0, 0.0) for f in files]
        columns["number"] = list(range(len(self.cases)))
        columns["is_streamed"] = self._is_streamed
        columns["shape"] = [g.shape for g in self._geometries]
        columns["spacing_mm"] = [g.spacing_mm[:2] for g in self._geometries]
        columns["axes"], columns["flips"] = self._axes, self._flips
        columns["axial"] = [self._is_axial(g) for g in self._geometries]
        tensors = {k: np.array(v) for k, v in columns.items()}
        return {k: v.astype(np.float32) if k == "spacing_mm" else v for k, v in tensors.items()}

    @staticmethod
    def _types(files: Sequence[NiftiFile | None]) -> list[str]:
        return sorted({f.dtype.str for f in files if f is not None})

    def _either(self, case, streamed: Callable[[], tf.data.Dataset], loaded: Callable[[], tf.data.Dataset]):
        """`streamed` or `loaded`, as the case is read; both are built only if there are cases of both kinds."""
        if all(self._is_streamed):
            return streamed()
        if not any(self._is_streamed):
            return loaded()

        def when(is_wanted, dataset):
            once = tf.data.Dataset.from_tensors(0).take(tf.where(is_wanted, tf.constant(1, tf.int64), 0))
            return once.flat_map(_as_written(lambda _: dataset()))

        return when(case["is_streamed"], streamed).concatenate(when(~case["is_streamed"], loaded))

    def _loaded(self, case) -> tf.data.Dataset:
        """Dataset of (HU (H, W), labels (H, W), index from inferior) of a case that `CTVolume` reads."""

        class_names = ("background", *(f"class {index}" for index in range(1, self.classes)))

        def load(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            one = self.cases[int(number)]
            volume = one.load_volume(hu_range=self.hu_range)
            mask = one.load_mask(volume, ClassSet(class_names))
            hu = np.empty((volume.shape[2], *volume.shape[:2]), self.hu_dtype.as_numpy_dtype)
            for index in range(len(hu)):
                hu[index] = volume.slices(index, index + 1)[0]
            # a SEG has the classes of the liver, not those of `classes`
            return hu, to_labels(np.moveaxis(mask.labels, 2, 0), str(one.segmentation), class_names)

        hu, labels = tf.numpy_function(load, [case["number"]], [self.hu_dtype, tf.uint8])
        hu, labels = (tf.ensure_shape(stack, [None, None, None]) for stack in (hu, labels))
        slices = tf.data.Dataset.from_tensor_slices((hu, labels)).enumerate()
        slices = slices.filter(lambda index, _: index % self.selection.every_slice == 0)
        return slices.map(lambda index, pair: (*pair, index))

    def _case_slices(self, case) -> tf.data.Dataset:
        def item(hu_bytes_or_values, labels_or_values, index):
            return {
                "hu": hu_bytes_or_values,
                "labels": labels_or_values,
                "case": tf.cast(case["case"], tf.int64),
                "slice": index,
                "spacing_mm": case["spacing_mm"],
            }

        def streamed():
            # separate prefetches, so that both files are decompressed at the same time
            volumes = self._read(case, "volume", self._volumes, self._to_hu).prefetch(2)
            masks = self._read(case, "mask", self._masks, self._to_labels).prefetch(2)
            return tf.data.Dataset.zip(volumes, masks).map(lambda hu, mask: item(hu[0], mask[0], mask[1]))

        return self._either(case, streamed, lambda: self._loaded(case).map(item))

    def _mask_slices(self, case) -> tf.data.Dataset:
        return self._either(
            case,
            lambda: self._read(case, "mask", self._masks, self._to_labels),
            lambda: self._loaded(case).map(lambda hu, labels, index: (labels, index)),
        )

    def _read(self, case, name: str, files: Sequence[NiftiFile | None], convert) -> tf.data.Dataset:
        """Dataset of (converted slice (H, W), its index from inferior) of one file, in the order of the file."""
        dataset = self._read_axial(case, name, files, convert)
        if not self._all_axial:
            dataset = dataset.concatenate(self._read_whole(case, name, files, convert))
        return dataset

    @staticmethod
    def _records(case, name, count) -> tf.data.Dataset:
        """The first `count` planes along the file's third axis, as bytes; later bytes are not read.

        A file truncated at a plane's edge ends without an error, so an empty record at the end carries the number of
        planes.
        """
        records = tf.data.FixedLengthRecordDataset(
            case[f"{name}_path"],
            case[f"{name}_record"],
            header_bytes=case[f"{name}_offset"],
            footer_bytes=case[f"{name}_footer"],
            compression_type=case[f"{name}_compression"],
        )
        return records.take(count).concatenate(tf.data.Dataset.from_tensors(""))

    def _read_axial(self, case, name, files, convert) -> tf.data.Dataset:
        count = tf.where(case["axial"], case["shape"][2], 0)
        records = self._records(case, name, count).enumerate()

        def index_of(position):
            return tf.where(case["flips"][0], count - 1 - position, position)

        def wanted(position, record):
            is_end = tf.equal(tf.strings.length(record), 0)
            complete = tf.debugging.Assert(
                ~is_end | (position == count),
                ["file ends early:", case[f"{name}_path"], "slices:", position, "of", count],
            )
            with tf.control_dependencies([complete] if complete is not None else []):
                return ~is_end & (index_of(position) % self.selection.every_slice == 0)

        def read(position, record):
            plane = tf.reshape(
                _decode(record, case[f"{name}_type"], self._types(files)), [case["shape"][1], case["shape"][0]]
            )
            # unused branches would cost time on each slice
            if any(axes[1] == 2 for axes in self._axes):
                plane = tf.cond(case["axes"][1] == 2, lambda: tf.transpose(plane), lambda: plane)
            for axis in (0, 1):
                if any(flips[1 + axis] for flips in self._flips):
                    plane = tf.cond(case["flips"][1 + axis], lambda a=axis: tf.reverse(plane, [a]), lambda: plane)  # noqa: B023
            return convert(plane, case, name), index_of(position)

        return records.filter(wanted).map(read)

    def _read_whole(self, case, name, files, convert) -> tf.data.Dataset:
        """Sagittal and coronal storage: axial slices are not contiguous, so the whole file is read and transposed."""

        count = tf.where(case["axial"], tf.constant(0, tf.int64), case["shape"][2])

        def turn(records):
            complete = tf.debugging.Assert(
                tf.size(records, tf.int64) == count + 1,
                ["file ends early:", case[f"{name}_path"], "planes:", tf.size(records) - 1, "of", count],
            )
            with tf.control_dependencies([complete] if complete is not None else []):
                voxels = _decode(records[:-1], case[f"{name}_type"], self._types(files))
            voxels = tf.transpose(tf.reshape(voxels, tf.reverse(case["shape"], [0])), case["axes"])
            for axis in range(3):
                voxels = tf.cond(case["flips"][axis], lambda a=axis: tf.reverse(voxels, [a]), lambda: voxels)  # noqa: B023
            return tf.data.Dataset.from_tensor_slices(voxels)

        whole = self._records(case, name, count).batch(tf.cast(count, tf.int64) + 1)
        planes = whole.take(tf.where(case["axial"], tf.constant(0, tf.int64), 1)).flat_map(turn).enumerate()
        planes = planes.filter(lambda index, plane: index % self.selection.every_slice == 0)
        return planes.map(lambda index, plane: (convert(plane, case, name), index))

    def _to_hu(self, plane, case, name):
        scaling = case[f"{name}_scaling"]
        if any(f.is_scaled for f in self._volumes if f is not None):
            plane = tf.cast(tf.cast(plane, tf.float64) * scaling[0] + scaling[1], tf.float32)
        if self.hu_dtype != tf.float32:
            plane = plane if plane.dtype == self.hu_dtype else tf.cast(plane, tf.int32)
        else:
            plane = tf.cast(plane, tf.float32)
            plane = tf.where(tf.math.is_finite(plane), plane, AIR_HU)  # as in `CTVolume`
        if self.hu_range is not None:
            plane = tf.clip_by_value(plane, *(tf.cast(edge, plane.dtype) for edge in self.hu_range))
        return tf.cast(plane, self.hu_dtype)

    def _to_labels(self, plane, case, name):
        scaling = case[f"{name}_scaling"]
        rounded = plane
        valid = plane <= tf.cast(min(self.classes - 1, plane.dtype.max), plane.dtype)
        if not plane.dtype.is_unsigned:
            valid &= plane >= tf.cast(0, plane.dtype)
        if plane.dtype.is_floating or any(f.is_scaled for f in self._masks if f is not None):
            values = tf.cast(plane, tf.float64) * scaling[0] + scaling[1]
            rounded = tf.round(values)
            valid = (tf.abs(values - rounded) <= 1e-3) & (rounded >= 0) & (rounded < self.classes)
        only_classes = tf.debugging.Assert(tf.reduce_all(valid), ["values that are no class:", case[f"{name}_path"]])
        with tf.control_dependencies([only_classes] if only_classes is not None else []):
            return tf.cast(rounded, tf.uint8)


# These functions use graph operations only; AutoGraph would slow down tracing.
_as_written = tf.autograph.experimental.do_not_convert
# Reading more files at once would only cost memory: two cores decompress, and slices are shuffled again later.
_FILES_AT_ONCE = 4


def _is_streamed(case: Case) -> bool:
    """Whether TensorFlow's record reader can read a case without Python."""
    return case.series is None and all(is_nifti_name(path) for path in case.files)


def _footer_bytes(file: NiftiFile) -> int:
    """Number of bytes after the last voxel of an uncompressed file, for the record reader."""
    return 0 if file.compressed else file.path.stat().st_size - file.offset - file.data_bytes


def _decode(record, kind, types: Sequence[str]):
    """Decode bytes whose NumPy type string is types[kind] into values of one common dtype."""

    def branch(text: str):
        dtype = np.dtype(text)
        # decode_raw has no uint32 and uint64; their bits are read as signed
        signed = np.dtype(f"i{dtype.itemsize}") if text[1:] in ("u4", "u8") else dtype.newbyteorder("=")
        values = tf.io.decode_raw(record, tf.as_dtype(signed), little_endian=not text.startswith(">"))
        return tf.bitcast(values, tf.as_dtype(dtype.newbyteorder("="))) if signed.kind != dtype.kind else values

    if len(types) == 1:
        return branch(types[0])
    common = tf.as_dtype(np.result_type(*(np.dtype(t) for t in types)).newbyteorder("="))
    return tf.switch_case(tf.cast(kind, tf.int32), [lambda t=t: tf.cast(branch(t), common) for t in types])
