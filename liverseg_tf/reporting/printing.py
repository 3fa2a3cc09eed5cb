"""The report page as PDF, printed by a headless browser where one is installed."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from liverseg_tf.strict_json import to_json

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # the page asks for nothing, and the browser itself gets no answer
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--use-angle=swiftshader",  # the 3-D view without a graphics card
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
)
# The browser reads commands from its file 3 and answers into file 4 (DevTools protocol): no port is opened.
_AS_FILES_3_AND_4 = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null'
# Resolves once all pictures are drawn: true, or what the page says went wrong.
_COMPLETE = """new Promise((done) => {
  const look = () => {
    if (document.readyState !== "loading") {
      const failure = document.getElementById("failure");
      if (failure && !failure.hidden) return done(failure.textContent);
      if (document.body.dataset.complete === "true")
        return requestAnimationFrame(() => requestAnimationFrame(() => done(true)));
    }
    setTimeout(look, 50);
  };
  look();
})"""


class NotPrintedError(Exception):
    """The page could not be printed; the text says why."""


def find_browser() -> str | None:
    """The first Chromium or Chrome on the PATH; None without one, and on Windows, where it takes no pipe from us."""
    if os.name == "nt":
        return None
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def print_page(page: str, browser: str, timeout_s: float = 120.0) -> bytes:
    """Print a report page in its print style, once all of its pictures are drawn.

    The browser has a profile of its own in a temporary folder, no network, and its sandbox unless this process is
    root, which Chromium refuses to sandbox.

    Args:
        page: HTML of `build_page`.
        browser: program, as `find_browser` gives it.
        timeout_s: the browser is ended after so many seconds.

    Returns:
        The PDF.

    Raises:
        NotPrintedError: if the browser can't be started, ends, reports an error, or takes too long.
    """
    deadline = time.monotonic() + timeout_s
    # the browser may still be writing to its profile when it is ended
    with tempfile.TemporaryDirectory(prefix="liverseg-", ignore_cleanup_errors=True) as folder:
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        arguments = [*_OPTIONS, f"--user-data-dir={Path(folder, 'profile')}"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _AS_FILES_3_AND_4, browser, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise NotPrintedError(f"{browser} can't be started ({error.strerror})") from None
        try:
            return _printed(_Pipe(process, deadline), file)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its renderers too
            process.communicate()


def _printed(pipe: _Pipe, file: Path) -> bytes:
    target = pipe.ask("Target.createTarget", url="about:blank")["targetId"]
    session = pipe.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    moved = pipe.ask("Page.navigate", session, url=file.as_uri())
    if moved.get("errorText"):
        raise NotPrintedError(f"the browser can't open the page ({moved['errorText']})")
    seen = pipe.ask("Runtime.evaluate", session, expression=_COMPLETE, awaitPromise=True, returnByValue=True)
    said = seen["result"].get("value")
    if said is not True:
        raise NotPrintedError(f"the page has no pictures ({said or 'it stopped'})")
    content = pipe.ask("Page.printToPDF", session, preferCSSPageSize=True)["data"]
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        raise NotPrintedError("the browser's PDF is damaged") from None


class _Pipe:
    """Commands to a browser, and its answers: JSON, each ended by a zero byte."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float):
        assert process.stdin is not None and process.stdout is not None
        self._to, self._from, self._deadline = process.stdin, process.stdout.fileno(), deadline
        self._number, self._read = 0, b""

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; other messages of the browser are ignored."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        try:
            self._to.write(to_json(command).encode() + b"\0")
        except OSError:
            raise NotPrintedError("the browser ended") from None
        while True:
            message = json.loads(self._message())
            if message.get("id") == self._number:
                if "error" in message:
                    raise NotPrintedError(f"the browser answers {method} with {message['error'].get('message')}")
                return message["result"]

    def _message(self) -> bytes:
        parts = [self._read]
        while b"\0" not in parts[-1]:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise NotPrintedError("the browser took too long")
            parts.append(os.read(self._from, 1 << 16))
            if not parts[-1]:
                raise NotPrintedError("the browser ended")
        message, _, self._read = b"".join(parts).partition(b"\0")
        return message
