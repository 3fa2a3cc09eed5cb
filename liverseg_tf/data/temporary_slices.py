"""Slices of a volume in a temporary file, so that they take no memory."""

from __future__ import annotations

import tempfile
import weakref

import numpy as np

from liverseg_tf.data.file_positions import read_at, write_at
from liverseg_tf.errors import InputFileError


class TemporarySlices:
    """An array of slices, (slices, rows, columns), that lies in a temporary file without a name.

    It is filled slice by slice, in any order, and then read in any thread. The file is gone when this object or its
    process is.

    Args:
        shape: (x, y, z), thus columns, rows, slices.
        dtype: of the voxels.

    Raises:
        OSError: if the file can't be made or, later, written.

    Examples:
        >>> slices = TemporarySlices((3, 2, 5), np.int16)
        >>> slices[4] = np.full((2, 3), 7, np.int16)
        >>> slices.read(4, 5).shape, int(slices[4].max())
        ((3, 2, 1), 7)
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype | type):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._slice_bytes = shape[0] * shape[1] * self.dtype.itemsize
        self._file = tempfile.TemporaryFile(prefix="liverseg-", buffering=0)  # noqa: SIM115 - it is closed below
        weakref.finalize(self, self._file.close)
        self._file.truncate(self.nbytes)  # slices that were not written are 0

    def __reduce__(self):
        return _of_array, (self.read(0, self.shape[2]),)

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes."""
        return self._slice_bytes * self.shape[2]

    def __setitem__(self, index: int, values: np.ndarray) -> None:
        plane = np.ascontiguousarray(np.broadcast_to(values, self.shape[1::-1]), self.dtype)
        write_at(self._file.fileno(), index * self._slice_bytes, plane.view(np.uint8).data)

    def __getitem__(self, index: int) -> np.ndarray:
        """One slice as (rows, columns)."""
        return self.read(index, index + 1)[..., 0].T

    def read(self, start: int, stop: int) -> np.ndarray:
        """Slices start to stop - 1 as (x, y, slices), read-only.

        Raises:
            InputFileError: if the file can't be read back.
        """
        wanted = (stop - start) * self._slice_bytes
        try:
            content = read_at(self._file.fileno(), start * self._slice_bytes, wanted)
        except OSError:
            content = b""
        if len(content) < wanted:
            raise InputFileError(
                f"{tempfile.gettempdir()}: a temporary file with slices of the CT could not be read back; is the disk "
                "failing? Name another folder in TMPDIR, and run again"
            )
        return np.frombuffer(content, self.dtype).reshape((*self.shape[:2], -1), order="F")

    def astype(self, dtype: np.dtype | type) -> TemporarySlices:
        """The same slices with another type, in another file."""
        other = TemporarySlices(self.shape, dtype)
        for index in range(self.shape[2]):
            other[index] = self[index]
        return other


def _of_array(voxels: np.ndarray) -> TemporarySlices:
    slices = TemporarySlices((voxels.shape[0], voxels.shape[1], voxels.shape[2]), voxels.dtype)
    for index in range(voxels.shape[2]):
        slices[index] = voxels[..., index].T
    return slices
