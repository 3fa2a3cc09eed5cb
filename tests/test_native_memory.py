"""Memory that is taken from the system."""

import gc
import platform
import resource
import subprocess
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_a_process_of_many_threads_keeps_two_arenas():
    script = """if True:
        import ctypes, threading
        from liverseg_tf.native_memory import keep_few_arenas
        keep_few_arenas()
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = libc.malloc.restype = ctypes.c_void_p
        together = threading.Barrier(8)
        def allocate():
            together.wait()
            libc.malloc(1000)
            together.wait()
        threads = [threading.Thread(target=allocate) for _ in range(8)]
        [t.start() for t in threads], [t.join() for t in threads]
        libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
        libc.fflush(None)
    """
    described = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 1 <= described.count("<heap nr=") <= 2
