"""Gives memory that is no longer used back to the system."""

from __future__ import annotations

import ctypes
import gc


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
