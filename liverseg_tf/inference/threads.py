"""The number of threads that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_threads(cgroup: Path = _CGROUP) -> int:
    """Threads allowed by CPU affinity and the container's CPU limit, or set by LIVERSEG_THREADS; at least 1.

    A container that may use two of a host's 64 cores still sees 64, and 64 threads on two cores are slower than two.

    Args:
        cgroup: where the container's limits (cgroup version 2 or 1) are mounted.
    """
    if (given := os.environ.get("LIVERSEG_THREADS", "")).isdecimal() and int(given) > 0:
        return int(given)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share(cgroup)
    return max(1, count if share is None else min(count, math.ceil(share)))


def _share(cgroup: Path) -> float | None:
    """The container's CPU limit in CPUs; None for no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: no limit
        return None
