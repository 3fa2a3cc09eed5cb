"""Log lines of C++ parts are left out of stderr, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from liverseg_tf.native_logs import without_log_lines

LOGS = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nI0000 00:00:1795517714.406411   12 port.cc:153] on\n"
OURS = b"liverseg: warning: INFO: is ours\nTraceback\nIn between\nE0 is no log line\n"


def test_log_lines_are_left_out(capfd):
    with without_log_lines():
        os.write(2, LOGS + OURS)
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.encode() == OURS
    os.write(2, LOGS)
    assert capfd.readouterr().err.encode() == LOGS


def test_a_failure_shows_all(capfd):
    with pytest.raises(ValueError, match="mine"), without_log_lines():
        os.write(2, LOGS + OURS)
        raise ValueError("mine")
    assert capfd.readouterr().err.encode() == LOGS + OURS


def test_ctrl_c_is_no_failure(capfd):
    with pytest.raises(KeyboardInterrupt), without_log_lines():
        os.write(2, LOGS + OURS)
        raise KeyboardInterrupt
    assert capfd.readouterr().err.encode() == OURS


def test_a_crash_is_told():
    code = "import os\nfrom liverseg_tf.native_logs import without_log_lines\nwith without_log_lines(): os.abort()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode < 0
    assert "Fatal Python error: Aborted" in done.stderr


def test_without_a_stderr():
    code = (
        "import os\nfrom liverseg_tf.native_logs import without_log_lines\nos.close(2)\n"
        "with without_log_lines(): print('works')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "works\n")
