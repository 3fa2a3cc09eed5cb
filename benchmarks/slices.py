"""Slices per second of `slice_dataset` against the original's route, in one run.

Run: python benchmarks/slices.py [--case VOLUME SEGMENTATION] [--repeats 5] [--size 128]

The original's route: nibabel's `get_fdata`, a turn by 90 degrees, liver and custom window and the sort-based histogram
in NumPy, three-channel JPG and PNG mask written with Pillow. It reads what ours is compared with: .nii.gz or .nii.
Ours ends with batches of 16 at `--size` pixels, ready to train on; the dataset is built once, as a training does.
Repeats are interleaved and the best of each counts, because other programs may run beside; ratios by wall clock use
all cores, those by CPU time don't profit from them. Without `--case` a CT phantom of 512 x 512 x 64 voxels is made.
Further lines give the time of the channels alone (as a graph, under XLA, as an exported function), and of augmentation
and lesion synthesis.
"""

from __future__ import annotations

import liverseg_tf  # noqa: F401, before TensorFlow, whose oneDNN it turns on

# isort: split
import argparse
import gzip
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nibabel as nib
import numpy as np
import tensorflow as tf
from PIL import Image

from liverseg_tf.channels import CTChannels
from liverseg_tf.data.augmentation import Augmentation
from liverseg_tf.data.cases import Case
from liverseg_tf.data.lesion_synthesis import LesionSynthesis
from liverseg_tf.data.phantom import write_phantoms
from liverseg_tf.data.slices import slice_dataset
from liverseg_tf.windows import window_bounds

COPIES = 4
QUANTILES = np.concatenate([[0.001], np.arange(100) / 100 + 0.005, [0.999]]).astype(np.float32)


def original_channels(hu: np.ndarray) -> np.ndarray:
    """Liver window, custom window and histogram of a slice (H, W), as fastai computes them: (H, W, 3) uint8."""
    channels = []
    for window in ("liver", "custom"):
        low, high = window_bounds(window)
        channels.append((np.clip(hu, low, high) - low) / (high - low))
    ordered = np.sort(hu.ravel())
    breaks = np.unique(ordered[(len(ordered) * QUANTILES).astype(np.int64)])
    channels.append(np.interp(hu.ravel(), breaks, np.linspace(0, 1, len(breaks))).reshape(hu.shape))
    return (np.stack(channels, -1) * 255).astype(np.uint8)


def original_route(volume: Path, mask: Path, output: Path) -> int:
    """Write every slice of a case as the original did; returns their number."""
    hu, labels = (np.rot90(nib.load(path).get_fdata()) for path in (volume, mask))
    for index in range(hu.shape[2]):
        image = Image.fromarray(original_channels(hu[..., index].astype(np.float32)))
        image.save(output / f"{index}.jpg", quality=90)
        Image.fromarray(labels[..., index].astype(np.uint8)).save(output / f"{index}_mask.png")
    return hu.shape[2]


def our_route(cases: list[Case], size: int, **options) -> Callable[[], int]:
    """A dataset that is built once, as a training builds it, and read from the files anew by each call.

    Without `shuffle` one file is read after another.
    """
    dataset = slice_dataset(cases, size, **options).batch(16)
    return lambda: sum(len(labels) for _, labels in dataset)


def interleaved(routes: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple[float, float]]:
    """Slices a second of each route, best of `repeats`, by wall clock and by CPU time; one warm-up is left out."""
    best = dict.fromkeys(routes, (0.0, 0.0))
    for repeat in range(repeats + 1):
        for name, route in routes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            count = route()
            rates = count / (time.perf_counter() - wall), count / (time.process_time() - cpu)
            if repeat:
                best[name] = tuple(map(max, best[name], rates))
    return best


def read_benchmark(case: tuple[Path, Path], folder: Path, size: int, repeats: int) -> list[Case]:
    """Print slices a second of both routes from .nii.gz, several .nii.gz and .nii."""
    pair = list(case)
    plain = [folder / "volume-0.nii", folder / "segmentation-0.nii"]
    for source, target in zip(pair, plain, strict=True):
        with gzip.open(source) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)
    copies = []
    for i in range(COPIES):
        names = [folder / f"{kind}-{i + 1}.nii.gz" for kind in ("volume", "segmentation")]
        for source, target in zip(pair, names, strict=True):
            shutil.copyfile(source, target)
        copies.append(Case(i + 1, str(i + 1), *names))
    one, unpacked = copies[0], Case(0, "0", *plain)
    output = folder / "original"
    output.mkdir()
    ours, originals = "slice_dataset, ", "original, "
    rates = interleaved(
        {
            originals + ".nii.gz": lambda: original_route(one.volume, one.segmentation, output),
            originals + ".nii": lambda: original_route(*plain, output),
            ours + "a .nii.gz at a time": our_route(copies, size),
            ours + f"{COPIES} .nii.gz at once": our_route(copies, size, shuffle=True),
            ours + "a .nii at a time": our_route([unpacked] * COPIES, size),
        },
        repeats,
    )
    start = time.perf_counter()
    slice_dataset([one], size)
    print(f"building a dataset takes {time.perf_counter() - start:.2f} s, once")
    print(f"{'route':34}{'slices/s':>10}{'ratio':>8}{'CPU ratio':>11}")
    for name, (wall, cpu) in rates.items():
        base = rates[originals + (".nii.gz" if ".gz" in name else ".nii")]
        print(f"{name:34}{wall:10.1f}{wall / base[0]:8.1f}{cpu / base[1]:11.1f}")
    return [unpacked]


def channels_benchmark(hu: np.ndarray, repeats: int) -> None:
    """Print what `CTChannels` costs by itself: as a graph, under XLA, and exported and loaded again."""
    layer = CTChannels()
    slices = tf.constant(np.moveaxis(hu, 2, 0)[:8])
    signature = [tf.TensorSpec((None, *slices.shape[1:]), tf.float32)]
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        module.serve = tf.function(layer.call, signature)
        tf.saved_model.save(module, folder, {"serving_default": module.serve})
        exported = tf.saved_model.load(folder).signatures["serving_default"]
    functions = {
        "graph, int16": (tf.function(layer.call), tf.cast(slices, tf.int16)),
        "graph, float32": (tf.function(layer.call), tf.cast(slices, tf.float32)),
        "XLA, int16": (tf.function(layer.call, jit_compile=True), tf.cast(slices, tf.int16)),
        "XLA, float32": (tf.function(layer.call, jit_compile=True), tf.cast(slices, tf.float32)),
        "exported, float32": (exported, tf.cast(slices, tf.float32)),
    }

    def timed(function, argument):
        tf.nest.map_structure(lambda t: t.numpy(), function(argument))
        return len(argument)

    rates = interleaved({name: lambda f=f, a=a: timed(f, a) for name, (f, a) in functions.items()}, 2 * repeats)
    for name, (wall, _) in rates.items():
        print(
            f"{'CTChannels, ' + name:34}{wall:10.1f}{1000 / wall:8.2f} ms a slice of {'x'.join(map(str, hu.shape[:2]))}"
        )


def variation_benchmark(cases: list[Case], size: int, repeats: int) -> None:
    """Print what augmentation and lesion synthesis add."""
    synthesis, augmentation = LesionSynthesis(probability=1.0), Augmentation()
    options = {
        "plain": {},
        "with augmentation": {"augmentation": augmentation},
        "with synthesis": {"synthesis": synthesis},
        "with both": {"augmentation": augmentation, "synthesis": synthesis},
    }
    rates = interleaved({n: our_route(cases, size, cache="memory", **o) for n, o in options.items()}, repeats)
    for name, (wall, cpu) in rates.items():
        print(f"{'from memory, ' + name:34}{wall:10.1f}{1000 / cpu:8.1f} ms of CPU a slice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=2, type=Path, metavar=("VOLUME", "SEGMENTATION"), help="a pair of .nii.gz")
    parser.add_argument("--size", type=int, default=128, help="rows and columns in pixels (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each route (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.case is None:
            write_phantoms(folder / "phantom", 1, seed=2, shape=(512, 512, 64))
            args.case = [folder / "phantom" / f"{kind}-0.nii.gz" for kind in ("volume", "segmentation")]
        plain = read_benchmark(args.case, folder, args.size, args.repeats)
        channels_benchmark(np.asarray(nib.load(plain[0].volume).dataobj, np.float32), args.repeats)
        variation_benchmark(plain, args.size, args.repeats)


if __name__ == "__main__":
    main()
