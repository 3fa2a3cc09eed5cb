"""Positions of a file are read and written in any thread."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from liverseg_tf.data.file_positions import read_at, write_at

COUNT, SIZE = 64, 4096


@pytest.fixture(params=["positions", "as on Windows"])
def descriptor(request, tmp_path, monkeypatch):
    if request.param == "as on Windows":
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "pwrite")
    found = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads interrupt one another as often as they can
    yield found
    sys.setswitchinterval(interval)
    os.close(found)


def test_threads_read_and_write_their_own_positions(descriptor):
    def turn(first):
        for index in [*range(first, COUNT, 4)] * 20:
            content = bytes([index]) * SIZE
            write_at(descriptor, index * SIZE, memoryview(content))
            for _ in range(20):
                assert read_at(descriptor, index * SIZE, SIZE) == content

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(turn, range(4)))  # raises what they raise
    assert read_at(descriptor, 0, COUNT * SIZE) == b"".join(bytes([i]) * SIZE for i in range(COUNT))
    assert read_at(descriptor, (COUNT - 1) * SIZE, 2 * SIZE) == bytes([COUNT - 1]) * SIZE  # fewer at the end
