"""Threads are counted by what is allowed."""

import os

import pytest

from liverseg_tf.inference.threads import usable_threads


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_container_gets_what_it_was_given(files, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("LIVERSEG_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_threads(tmp_path) == expected


def test_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("LIVERSEG_THREADS", "3")
    assert usable_threads() == 3
    monkeypatch.setenv("LIVERSEG_THREADS", "many")
    assert usable_threads() >= 1
