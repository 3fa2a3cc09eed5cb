"""Do all runtimes give the same mask? Agreement, Dice, time and memory, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.data.cases import Case
from liverseg_tf.errors import CaseError
from liverseg_tf.exporting.samples import Sample, samples
from liverseg_tf.exporting.timing import measure
from liverseg_tf.labels import ClassSet

# In-plane sizes that are compared: the size of TFLite files, and an odd one that is not square.
SIZES = ((512, 512), (476, 290))
SLICES = 24
# Least share of equal voxels and least Dice against Keras, by a runtime's name.
FLOORS_AGAINST_KERAS = {
    "savedmodel float32": (0.9999, 0.999),
    "tflite float32": (0.9999, 0.999),
    "tflite float16": (0.999, 0.995),
}
# Largest allowed difference between int8's and Keras's Dice against truth.
INT8_DICE_TOLERANCE = 0.01
REFERENCE = "keras float32"


@dataclass(frozen=True)
class ParityRow:
    """One runtime on slices of one size.

    Attributes:
        runtime: format and precision.
        size: rows and columns, as `"512x512"`.
        slices: number of slices.
        agreement: share of voxels with the same label as Keras's, 0 to 1.
        dice: Dice by class against Keras's labels, over slices where either has the class; None if no slice has it.
        dice_truth: Dice by class against the masks, over slices whose mask has the class; None if no slice has it.
        largest_difference: largest difference between a probability and Keras's, 0 to 1.
        milliseconds_a_slice: time from HU to labels, in ms per slice.
        megabytes: size of the model on disk, in MB.
        peak_memory_mb: see `Measured`.
    """

    runtime: str
    size: str
    slices: int
    agreement: float
    dice: dict[str, float | None]
    dice_truth: dict[str, float | None]
    largest_difference: float
    milliseconds_a_slice: float
    megabytes: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Parity:
    """Comparison of all runtimes.

    Attributes:
        rows: one per runtime and slice size, Keras first.
        failures: a sentence for each value that is too low; empty if the check passed.
    """

    rows: tuple[ParityRow, ...]
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as a dictionary for JSON."""
        return asdict(self)


def check_parity(
    artefacts: dict[str, Path],
    classes: ClassSet,
    hu_range: tuple[float, float] | None,
    source: str | Path | Sequence[Case] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    count: int = SLICES,
) -> Parity:
    """Run the same slices through every exported model, each in its own process.

    Args:
        artefacts: path by name: "<format> <precision>"; "keras float32" is what the others are compared with.
        classes: classes of the models.
        hu_range: lowest and highest HU; slices are clipped to them.
        source: a folder of cases, cases, or None for phantoms. Slices larger than a size are cropped to it around the
            middle of their liver; smaller ones are left out.
        sizes: in-plane sizes (rows, columns) in pixels.
        count: approximate number of slices of each size.

    Raises:
        LiverSegError: if a case can't be read, or a model can't be run.
    """
    drawn = list(samples(source, count, hu_range, (512, 512, 16), classes))
    slices: dict[str, np.ndarray] = {}
    truths: dict[str, np.ndarray] = {}
    for pixels in sizes:
        cut = [s for s in (_cut(sample, pixels) for sample in drawn) if s is not None]
        if cut:
            name = "x".join(map(str, pixels))
            slices[name] = np.concatenate([s.hu for s in cut])
            truths[name] = np.concatenate([s.labels for s in cut])
    if not slices:
        raise CaseError(
            f"expected slices of at least {' x '.join(map(str, sizes[-1]))} pixels to compare runtimes on, got none so "
            "large; name larger CTs, or none for phantoms"
        )
    results = {name: measure(path, slices) for name, path in artefacts.items()}
    reference = results[REFERENCE]
    rows = []
    for size in slices:
        for name, (labels, probabilities, figures) in results.items():
            rows.append(
                ParityRow(
                    runtime=name,
                    size=size,
                    slices=len(slices[size]),
                    agreement=float((labels[size] == reference[0][size]).mean()),
                    dice=_dice(labels[size], reference[0][size], classes.names, either=True),
                    dice_truth=_dice(labels[size], truths[size], classes.names, either=False),
                    largest_difference=float(np.abs(probabilities[size] - reference[1][size]).max()),
                    milliseconds_a_slice=figures.milliseconds_a_slice[size],
                    megabytes=megabytes(artefacts[name]),
                    peak_memory_mb=figures.peak_memory_mb,
                )
            )
    return Parity(tuple(rows), tuple(_failures(rows)))


def _cut(sample: Sample, size: tuple[int, int]) -> Sample | None:
    """A sample cropped to a size, around the middle of its liver if that is known."""
    rows, columns = sample.hu.shape[1:]
    if rows < size[0] or columns < size[1]:
        return None
    shown = np.argwhere((sample.labels > 0).any(0))
    middle = shown.mean(0) if len(shown) else np.array([rows / 2, columns / 2])
    low = np.clip((middle - np.array(size) / 2).astype(int), 0, np.array([rows, columns]) - size)
    window = (slice(None), *(slice(a, a + n) for a, n in zip(low, size, strict=True)))
    return Sample(sample.hu[window], sample.labels[window])


def _dice(found: np.ndarray, other: np.ndarray, class_names: Sequence[str], either: bool) -> dict[str, float | None]:
    """Dice of each class except the background, over the slices where `other` (or `either`) has the class."""
    scores: dict[str, float | None] = {}
    for index, name in enumerate(class_names[1:], 1):
        a, b = found == index, other == index
        held = (a | b if either else b).any((1, 2))
        total = np.count_nonzero(a[held]) + np.count_nonzero(b[held])
        scores[name] = 2 * np.count_nonzero(a[held] & b[held]) / total if total else None
    return scores


def _failures(rows: Iterable[ParityRow]) -> Iterable[str]:
    rows = list(rows)
    keras = {row.size: row for row in rows if row.runtime == REFERENCE}
    for row in rows:
        what = f"{row.runtime} at {row.size}"
        if row.runtime in FLOORS_AGAINST_KERAS:
            least_agreement, least_dice = FLOORS_AGAINST_KERAS[row.runtime]
            if row.agreement < least_agreement:
                yield f"{what}: {row.agreement:.4%} of voxels agree with Keras, expected {least_agreement:.2%}"
            for name, dice in row.dice.items():
                if dice is not None and dice < least_dice:
                    yield f"{what}: Dice of {name} against Keras is {dice:.4f}, expected {least_dice}"
        elif row.runtime != REFERENCE:
            for name, dice in row.dice_truth.items():
                wanted = keras[row.size].dice_truth[name]
                if dice is not None and wanted is not None and abs(dice - wanted) > INT8_DICE_TOLERANCE:
                    yield (
                        f"{what}: Dice of {name} against truth is {dice:.4f}, Keras's is {wanted:.4f}; "
                        f"expected within {INT8_DICE_TOLERANCE}"
                    )


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files) / 1e6
