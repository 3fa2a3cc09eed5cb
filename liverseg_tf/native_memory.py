"""Takes little memory from the system, and gives back what is no longer used."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap

import numpy as np


def zeros_in_small_pages(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros in Fortran's order, of which only pages of some kilobytes that are written take physical memory.

    NumPy asks for pages of 2 MB, eight slices of a CT; a single voxel would take one of them.

    Raises:
        MemoryError: if there is not so much.

    Examples:
        >>> zeros_in_small_pages((2, 3)).sum()
        np.uint64(0)
    """
    size = math.prod(shape)
    if not size or not hasattr(mmap, "MAP_PRIVATE"):  # not on Windows
        return np.zeros(shape, np.uint8, order="F")
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size} bytes of memory ({error.strerror})") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError:  # a kernel without large pages
            pass
    return np.frombuffer(pages, np.uint8).reshape(shape, order="F")


def give_back_memory() -> None:
    """Free what nothing refers to any more, and return free memory to the system.

    Networks and their functions refer to each other in circles, and glibc keeps most of what they leave for later
    allocations: a hundred megabytes after a network is gone. Other C libraries are left to themselves.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library; no such library on Windows
        pass


def keep_few_arenas() -> None:
    """Have glibc divide memory into two arenas at most, for a process that is about to load TensorFlow.

    By default each of TensorFlow's threads gets one, and what one has freed another can't use.
    """
    try:
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX
    except (AttributeError, OSError, TypeError):  # as above
        pass
