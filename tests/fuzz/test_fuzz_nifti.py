"""Damaged NIfTI files end in a result or in a LiverSegError, within bounds of time and memory.

Each file is a function of its number, so a find is repeated by its number alone. LIVERSEG_FUZZ_FILES sets how many are
tried (100000 for the long run), LIVERSEG_FUZZ_FIRST the number of the first.
"""

from __future__ import annotations

import collections
import gzip
import os
import resource
import struct
import time
import traceback
import warnings

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import LiverSegError, LiverSegWarning

FILES = int(os.environ.get("LIVERSEG_FUZZ_FILES", 400))
FIRST = int(os.environ.get("LIVERSEG_FUZZ_FIRST", 0))
FINDS = (5002110,)  # files that once broke something
SECONDS_A_FILE, MEGABYTES = 2.0, 300
DTYPES = ["<i2", "<i2", "<i2", ">i2", "<u2", "u1", "i1", "<i4", "<u4", "<i8", "<u8", "<f4", ">f4", "<f8"]
SHAPES = [(6, 5, 4), (5, 5, 3), (8, 7), (6, 6, 1), (4, 5, 6, 1), (3, 4, 5, 2), (33, 20, 2)]
# Values that headers go wrong with, whatever the field's type.
NUMBERS = [0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 255, 256, 348, 352, 512, 540, 1024, 32767, -32768, 65535]
NUMBERS += [2**31 - 1, -(2**31), 1e-45, 1e-30, 1e-4, 0.5, 1.5, 1e4, 1e10, 3e38, -3e38, np.nan, np.inf, -np.inf]
# Drawn in half of the cases; in the others any field of the header.
FIELDS = ("dim", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter")
FIELDS += ("qform_code", "sform_code", "quatern_b", "srow_x", "srow_y", "srow_z", "magic")


def realistic(rng: np.random.Generator) -> tuple[bytearray, type]:
    """Bytes of a small CT as scanners, converters and LiTS have it, and its header's class."""
    dtype, shape = np.dtype(str(rng.choice(DTYPES))), SHAPES[rng.integers(len(SHAPES))]
    kind = nib.Nifti1Header if rng.random() < 0.8 else nib.Nifti2Header
    header = kind(endianness=">" if dtype.str[0] == ">" else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    affine = np.diag([*rng.choice([-1.0, 1.0, -0.7, 1.5, 3.0], 3), 1.0])[rng.permutation(3).tolist() + [3]]
    affine[:3, 3] = rng.normal(0, 200, 3)
    if rng.random() < 0.8:
        header.set_sform(affine, code=int(rng.integers(0, 4)))
    if rng.random() < 0.8:
        header.set_qform(affine, code=int(rng.integers(0, 4)))
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = header.sizeof_hdr + 4
    if rng.random() < 0.3:
        header["scl_slope"], header["scl_inter"] = rng.choice([1, 0.5, 2, 0]), rng.choice([0, -1024, 3])
    with np.errstate(all="ignore"):
        voxels = rng.integers(-1024, 1500, shape).astype(dtype)
    if dtype.kind == "f" and rng.random() < 0.3:
        voxels = np.frombuffer(rng.bytes(voxels.nbytes), dtype).reshape(shape)
    return bytearray(header.binaryblock + b"\0" * 4 + voxels.tobytes("F")), kind


def damage_header(rng: np.random.Generator, content: bytearray, kind: type) -> None:
    """Change fields to values that go wrong, or single bytes."""
    structure = kind.template_dtype
    order = ">" if content[:4] in (b"\x00\x00\x01\x5c", b"\x00\x00\x02\x1c") else "<"
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.25:
            content[rng.integers(min(len(content), structure.itemsize))] = rng.integers(256)
            continue
        dtype, offset = structure.fields[str(rng.choice(FIELDS if rng.random() < 0.5 else structure.names))][:2]
        base = dtype.base.newbyteorder(order)
        place = offset + int(rng.integers(dtype.itemsize // base.itemsize)) * base.itemsize
        if base.kind == "S":
            content[place : place + base.itemsize] = rng.bytes(base.itemsize)
            continue
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = np.array(NUMBERS[rng.integers(len(NUMBERS))]).astype(base)
        content[place : place + base.itemsize] = value.tobytes()


def damage_stream(rng: np.random.Generator, content: bytearray) -> None:
    """Cut, flip, double, insert or append bytes."""
    way = rng.integers(5)
    place = int(rng.integers(len(content)))
    if way == 0:
        del content[place:]
    elif way == 1:
        content[place] ^= 1 << rng.integers(8)
    elif way == 2:
        content += content[place:]
    elif way == 3:
        content[place:place] = rng.bytes(int(rng.integers(1, 20)))
    else:
        content += rng.bytes(int(rng.integers(1, 2000)))


def damaged_file(number: int) -> tuple[str, bytes]:
    """Name and bytes of one damaged file."""
    rng = np.random.default_rng(number)
    content, kind = realistic(rng)
    if rng.random() < 0.85:
        damage_header(rng, content, kind)
    compressed = rng.random() < 0.5
    if not compressed and rng.random() < 0.2:
        damage_stream(rng, content)
    if compressed:
        if rng.random() < 0.1:
            content += b"\0" * int(rng.integers(1, 2_000_000))  # compresses a thousand times
        content = bytearray(gzip.compress(bytes(content), 1))
        if rng.random() < 0.4:
            damage_stream(rng, content)
        if rng.random() < 0.05:
            struct.pack_into("<I", content, len(content) - 4, int(rng.integers(2**32)))  # the length it declares
    name = "ct.nii.gz" if compressed != (rng.random() < 0.02) else "ct.nii"
    return name, bytes(content)


class Threshold:
    """A runtime that needs no network."""

    is_remote = False
    slices_at_once = 1

    def __init__(self):
        from liverseg_tf.config import ModelConfig

        self.config = ModelConfig(32)

    def labels(self, hu):
        assert np.isfinite(hu).all()
        return (hu > 0).astype(np.uint8) + (hu > 500)

    def probabilities(self, hu):
        return np.eye(3, dtype=np.float32)[self.labels(hu)]


def load(path, predictor) -> None:
    volume = CTVolume.load(path, hu_range=None)
    assert np.isfinite(volume.hu).all()
    repr(volume)


def predict(path, predictor) -> None:
    from liverseg_tf.inference.jobs import plan

    (job,) = plan([path], path.with_name("mask.nii.gz"), overwrite=True)
    prediction = predictor.predict(job.source)
    prediction.save(job.target, overwrite=True)
    again = MaskVolume.load(job.target)
    np.testing.assert_array_equal(again.labels, prediction.canonical_labels)
    np.testing.assert_allclose(again.affine, prediction.volume.affine, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_damaged_files_end_in_a_result_or_an_error_of_ours(tmp_path):
    from liverseg_tf.inference.predictor import Predictor

    predictor = Predictor(Threshold())
    outcomes, finds = collections.Counter(), {}
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for number in (*FINDS, *range(FIRST, FIRST + FILES)):
        name, content = damaged_file(number)
        path = tmp_path / name
        path.write_bytes(content)
        for read in (load, predict):
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.simplefilter("ignore", LiverSegWarning)
                    read(path, predictor)
                outcomes[f"{read.__name__}: result"] += 1
            except LiverSegError as error:
                outcomes[f"{read.__name__}: {type(error).__name__}"] += 1
                if "\n" in str(error) or name not in str(error):
                    finds.setdefault(f"message: {error}", number)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                finds.setdefault(f"{read.__name__}: {error!r:.150} at {where.filename}:{where.lineno}", number)
            slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 1024
    print(  # noqa: T201
        f"{FILES} files from {FIRST}: {dict(outcomes)}; slowest {slowest:.2f} s, memory grew by {grown:.0f} MB"
    )
    assert not finds, "\n".join(f"file {number}: {what}" for what, number in finds.items())
    assert sum(v for k, v in outcomes.items() if k == "load: result") >= 0.2 * FILES
    assert slowest < SECONDS_A_FILE
    assert grown < MEGABYTES
