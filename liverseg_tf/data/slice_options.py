"""`SliceOptions` and `SliceSelection`: which slices of which cases are read, and in what form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from liverseg_tf.config import ChannelsConfig
from liverseg_tf.data.cases import Case
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.labels import CLASS_NAMES

if TYPE_CHECKING:
    import tensorflow as tf

SliceMap = Callable[..., "tuple[tf.Tensor, tf.Tensor]"]


@dataclass(frozen=True)
class SlicePart:
    """One part of a split by single slices, as in the original: a patient can be in both parts.

    Attributes:
        fraction: share of the slices in the validation part.
        seed: the same seed gives the same parts.
        validation: take the validation part; else the training part.
    """

    fraction: float
    seed: int = 0
    validation: bool = False

    def contains(self, case: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Whether a slice (case number, slice number) is in this part."""
        import tensorflow as tf

        seed = tf.random.experimental.stateless_fold_in([self.seed, 0], tf.cast(case, tf.int32))
        drawn = tf.random.stateless_uniform(
            [], tf.random.experimental.stateless_fold_in(seed, tf.cast(index, tf.int32))
        )
        return (drawn < self.fraction) if self.validation else (drawn >= self.fraction)


@dataclass(frozen=True)
class SliceSelection:
    """Which slices of which cases are taken.

    Attributes:
        every_volume: take every n-th case, counted from the first.
        every_slice: take every n-th slice of a case, counted from the lowest.
        order: `"number"` counts cases by number, `"name"` by their file names as strings (the original's way).
        only_liver: leave out slices whose mask is empty.
        part: one part of a split by single slices, or None.

    Raises:
        ConfigError: for a step below 1 or another order.

    Examples:
        >>> SliceSelection(every_volume=3, every_slice=2, order="name").only_liver
        False
    """

    every_volume: int = 1
    every_slice: int = 1
    order: str = "number"
    only_liver: bool = False
    part: SlicePart | None = None

    def __post_init__(self) -> None:
        if self.every_volume < 1 or self.every_slice < 1:
            raise ConfigError(f"every n-th volume and slice: expected at least 1. Received: {self}")
        if self.order not in ("number", "name"):
            raise ConfigError(f"order: expected 'number' or 'name'. Received: {self.order!r}")

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """The chosen cases."""
        key = (lambda c: c.id) if self.order == "number" else (lambda c: c.volume.name)
        return sorted(cases, key=key)[:: self.every_volume]


@dataclass(frozen=True)
class SliceOptions:
    """Options of `slice_dataset`, and, except `shuffle` and `epoch`, of `training_batches`.

    Attributes:
        classes: number of classes in masks, background included; other values are an error. The first two after the
            background are those that `proportions` calls liver and tumour.
        channels: how HU become channels; None: the liver window, the custom window and the histogram.
        selection: which slices; None: all.
        shuffle: shuffle cases and slices differently in each `epoch` (training); otherwise cases in order, each from
            its first stored slice to its last (evaluation).
        proportions: shares of slices with tumour, with liver only and with neither (sum 1; 0 for a kind that no case
            has). All slices of the kind that is scarcest relative to its share are used; others are left out at random.
        augmentation: callable (hu (H, W) float32, labels (H, W) uint8, seed (2,) int32) -> (hu, labels), in graph
            operations, as `Augmentation`.
        synthesis: callable with a further `spacing_mm` (row, column), as `LesionSynthesis`; comes before augmentation.
        seed: all random numbers depend on this, on the epoch and on the slice's position in it.
        epoch: number of the pass through the cases, at least 0.
        with_index: add `{"case": int64, "slice": int64}`: the case's number, and the slice counted from inferior.
        cache: `"memory"`, or a file to keep decoded slices in; random steps, channels and resizing come after the
            cache. According to its record `<file>.json`, a cache of other cases, changed files, or another selection or
            `hu_range` is refused.
        hu_range: (lowest, highest) HU to clip to, or None for none.
        deterministic: keep the order independent of parallelism; False may be faster.
        shuffle_buffer: size of the shuffle buffer in slices, at least 1.

    Examples:
        >>> SliceOptions(shuffle=True, selection=SliceSelection(every_slice=2)).epoch
        0
    """

    classes: int = len(CLASS_NAMES)
    channels: ChannelsConfig | None = None
    selection: SliceSelection | None = None
    shuffle: bool = False
    proportions: tuple[float, float, float] | None = None
    augmentation: SliceMap | None = None
    synthesis: SliceMap | None = None
    seed: int = 0
    epoch: int = 0
    with_index: bool = False
    cache: str | Path | None = None
    hu_range: tuple[float, float] | None = HU_RANGE
    deterministic: bool = True
    shuffle_buffer: int = 256


class SliceChanges(TypedDict, total=False):
    """The fields of `SliceOptions` as keywords of `slice_dataset`."""

    classes: int
    channels: ChannelsConfig | None
    selection: SliceSelection | None
    shuffle: bool
    proportions: tuple[float, float, float] | None
    augmentation: SliceMap | None
    synthesis: SliceMap | None
    seed: int
    epoch: int
    with_index: bool
    cache: str | Path | None
    hu_range: tuple[float, float] | None
    deterministic: bool
    shuffle_buffer: int
