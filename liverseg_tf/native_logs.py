"""Log lines that TensorFlow's and LiteRT's C++ parts write past Python to stderr."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

# glog's ("I0000 00:00:17955 12425 port.cc:153] ..."), absl's notice before them, and TensorFlow Lite's own
_LOG_LINE = re.compile(rb"[IWE]\d{4} \d\d:\d\d:|WARNING: All log messages before absl|INFO: ")

# stderr is the whole process's: a thread that held it back while another does would restore the other's file.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def without_log_lines() -> Iterator[None]:
    """Hold back what this process writes to stderr in the block, then write it without the log lines.

    Nothing is removed if the block fails, and a crash still writes its traceback. Does nothing without a stderr.
    """
    with _ONE_AT_A_TIME:
        yield from _held_back()


def _held_back() -> Iterator[None]:
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (AttributeError, OSError, ValueError):
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        tells_crashes = not faulthandler.is_enabled()
        if tells_crashes:
            faulthandler.enable(kept)
        failed = False
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            sys.stderr.flush()
            if tells_crashes:
                faulthandler.disable()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if failed or not _LOG_LINE.match(line):
                    os.write(2, line)
