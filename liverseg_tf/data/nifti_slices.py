"""Slices of a large NIfTI file that are read when they are needed, so that only a few are in memory at a time."""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from liverseg_tf.data.file_positions import read_at
from liverseg_tf.data.nifti import NiftiFile, damaged, size_in_words
from liverseg_tf.data.temporary_slices import TemporarySlices
from liverseg_tf.errors import InputFileError

# Slices are read in blocks of about this size, and the last few blocks are kept: slices are mostly read in order.
_BLOCK_BYTES = 2 * 1024**2
_MOST_BLOCKS = 4
_READ_BYTES = 64 * 1024
_GZIP_AND_CHECKSUM = 31  # zlib's parameter for it


class NiftiSlices:
    """The voxels of a NIfTI file, as stored and unscaled.

    The whole file is read once at the start, so that a damaged file is found before it is used. A compressed file's
    voxels are written to a temporary file meanwhile. If the disk is too full for that, the state of the decompressor at
    each block (40 kB) is kept, and voxels are decompressed again from there when they are needed. The file stays
    open, and must not be written to.

    Args:
        file: a checked file.
        visit: called once with each block: its first slice, and its voxels (x, y, slices).

    Attributes:
        shape: (x, y, z).
        dtype: of the voxels.

    Raises:
        InputFileError: as `read_voxels`.
    """

    def __init__(self, file: NiftiFile, visit: Callable[[int, np.ndarray], None] | None = None):
        self._file, self.shape, self.dtype = file, file.shape, file.dtype
        self._slice_bytes = file.data_bytes // file.shape[2]
        self._depth = max(1, _BLOCK_BYTES // self._slice_bytes)
        self._states: list[_Gunzip] = []
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._unpacked = _temporary(file) if file.compressed else None
        try:
            self._descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._descriptor)
            for first, voxels in self._first_reading():
                self._unpack(first, voxels)
                if visit is not None:
                    visit(first, voxels)
            if self._unpacked is not None:
                self._states.clear()
        except (EOFError, zlib.error) as error:
            raise damaged(file.path, error) from None
        except OSError as error:
            raise InputFileError(f"{file.path}: could not be read ({error.strerror or error})") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return NiftiSlices, (self._file,)

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes, in memory or not."""
        return self._file.data_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Slices start to stop - 1 of the file as (x, y, slices), in any thread.

        Raises:
            InputFileError: if the file was changed since it was opened.
        """
        if self._unpacked is not None:
            return self._unpacked.read(start, stop)
        found = np.empty((*self.shape[:2], stop - start), self.dtype, order="F")
        with self._lock:
            for number in range(start // self._depth, -(-stop // self._depth)):
                first = number * self._depth
                low, high = max(start, first), min(stop, first + self._depth)
                found[..., low - start : high - start] = self._block(number)[..., low - first : high - first]
        return found

    def _first_reading(self):
        if self._file.compressed:
            stream = _Gunzip(self._descriptor)
            if len(stream.read(self._file.offset)) < self._file.offset:
                raise InputFileError(
                    f"{self._file.path}: is truncated before its first voxel; copy or download it again"
                )
        for first in range(0, self.shape[2], self._depth):
            if self._file.compressed:
                self._states.append(stream.copy())
                content = stream.read(self._bytes_from(first))
            else:
                content = self._plain(first)
            if len(content) < self._bytes_from(first):
                done = first * self._slice_bytes + len(content)
                raise InputFileError(
                    f"{self._file.path}: is truncated: expected {size_in_words(self.nbytes)} of voxels, got "
                    f"{size_in_words(done)}; copy or download it again"
                )
            yield first, self._shaped(content)
        if self._file.compressed:
            stream.read(1 << 20)  # reading to the end verifies the checksum

    def _unpack(self, first: int, voxels: np.ndarray) -> None:
        if self._unpacked is None:
            return
        try:
            for index in range(voxels.shape[2]):
                self._unpacked[first + index] = voxels[..., index].T
        except OSError:  # the disk is full
            self._unpacked = None

    def _block(self, number: int) -> np.ndarray:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        first = number * self._depth
        try:
            compressed = self._file.compressed
            content = self._states[number].copy().read(self._bytes_from(first)) if compressed else self._plain(first)
        except (EOFError, zlib.error, OSError):
            content = b""
        if len(content) < self._bytes_from(first):
            raise InputFileError(f"{self._file.path}: was changed while it was used; run again")
        self._blocks[number] = self._shaped(content)
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[number]

    def _bytes_from(self, first: int) -> int:
        return (min(first + self._depth, self.shape[2]) - first) * self._slice_bytes

    def _shaped(self, content: bytes) -> np.ndarray:
        return np.frombuffer(content, self.dtype).reshape((*self.shape[:2], -1), order="F")

    def _plain(self, first: int) -> bytes:
        return read_at(self._descriptor, self._file.offset + first * self._slice_bytes, self._bytes_from(first))


def _temporary(file: NiftiFile) -> TemporarySlices | None:
    try:
        return TemporarySlices((file.shape[0], file.shape[1], file.shape[2]), file.dtype)
    except OSError:  # the folder can't be written to
        return None


class _Gunzip:
    """Decompresses the gzip members of a file, one after another; a copy continues from the same place."""

    def __init__(self, descriptor: int):
        self._descriptor, self._at, self._rest = descriptor, 0, b""
        self._inflate = zlib.decompressobj(_GZIP_AND_CHECKSUM)

    def copy(self) -> _Gunzip:
        other = _Gunzip(self._descriptor)
        other._inflate, other._at = self._inflate.copy(), self._at - len(self._rest)
        return other

    def read(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the last member.

        Raises:
            EOFError: if the file ends within a member.
            zlib.error: if it is damaged.
        """
        parts, left = [], count
        while left:
            if self._inflate.eof and not self._next_member():
                break
            if not self._rest:
                self._fill()
            is_end = not self._rest
            part = self._inflate.decompress(self._rest, left)
            self._rest = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if is_end and not part and not self._inflate.eof:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _fill(self) -> None:
        self._rest = read_at(self._descriptor, self._at, _READ_BYTES)
        self._at += len(self._rest)

    def _next_member(self) -> bool:
        while not (rest := self._rest.lstrip(b"\0")):  # members may be padded
            self._fill()
            if not self._rest:
                return False
        self._rest, self._inflate = rest, zlib.decompressobj(_GZIP_AND_CHECKSUM)
        return True
