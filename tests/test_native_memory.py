"""Memory that is taken from the system."""

import gc
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from liverseg_tf.native_memory import zeros_in_small_pages


def test_zeros_are_an_ordinary_array():
    zeros = zeros_in_small_pages((3, 4, 5))
    assert zeros.dtype == np.uint8 and zeros.shape == (3, 4, 5) and zeros.flags.f_contiguous and not zeros.any()
    zeros[1, 2, 3] = 7
    assert zeros.sum() == 7
    assert zeros_in_small_pages((0, 4)).shape == (0, 4)


def test_more_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError):
        zeros_in_small_pages((1 << 60,))


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_only_what_is_written_takes_memory():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    gc.collect()
    before = resident()
    zeros = zeros_in_small_pages((512, 512, 400))
    zeros[0, 0, ::8] = 1  # a voxel in each 2 MB
    assert zeros.max() == 1  # all of it was read
    assert resident() - before < 20e6
