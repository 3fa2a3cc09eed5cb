"""The report page as Encapsulated PDF, and the contact sheet as Secondary Capture."""

import os
import re
import shutil
import signal
import time
import warnings

import numpy as np
import pytest
from matplotlib.text import Text

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from liverseg_tf.dicom_objects import document  # noqa: E402
from liverseg_tf.dicom_objects.objects import write_objects  # noqa: E402
from liverseg_tf.errors import DataWarning, OutputError  # noqa: E402
from liverseg_tf.reporting import printing  # noqa: E402

BROWSER = printing.find_browser()


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_the_pdf_is_the_report_page_on_two_pages(findings, tmp_path, without_a_browser):
    without_a_browser.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        write_objects(findings, {"pdf": tmp_path / "x.dcm"})
    data = pydicom.dcmread(tmp_path / "x.dcm")
    pdf = data.EncapsulatedDocument
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2
    assert re.search(rb"/MediaBox\s*\[\s*0 0 59[45][.\d]* 84[12]", pdf)  # A4
    assert b"Chrome" in pdf
    images = [one for one in re.findall(rb"<<.*?>>", pdf, re.DOTALL) if b"/Subtype /Image" in one]
    pictures = [tuple(map(int, re.findall(rb"/(?:Width|Height) (\d+)", one))) for one in images]
    assert len(pictures) >= 4 and all(min(size) > 10 for size in pictures)  # three views and the 3-D one
    assert str(data.PatientName) == "DOE^JANE"


def test_without_a_browser_matplotlib_draws_and_a_line_says_so(findings, tmp_path):
    with pytest.warns(DataWarning, match="the report page was not printed: it needs chromium or google-chrome"):
        rows = write_objects(findings, {"pdf": tmp_path / "x.dcm"})
    data = pydicom.dcmread(tmp_path / "x.dcm")
    assert b"Matplotlib" in data.EncapsulatedDocument and b"Chrome" not in data.EncapsulatedDocument
    assert rows[0]["read_again"] == {"bytes": len(data.EncapsulatedDocument)}


@pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
def test_pages_and_pictures_name_neither_the_patient_nor_the_folder(make_findings):
    found = make_findings(name="DOE_JANE")
    assert not re.search("DOE|JANE|secret", document._report_page(found))
    texts = " ".join(one.get_text() for one in document._contact_sheet(found).findobj(Text))
    assert "Liver: " in texts and not re.search("DOE|JANE", texts)
    assert not re.search(rb"DOE|JANE", document._pdf(found))


def test_a_secondary_capture_is_the_picture_that_was_drawn(findings, tmp_path):
    rows = write_objects(findings, {"sc": tmp_path / "x.dcm"})
    data = pydicom.dcmread(tmp_path / "x.dcm")
    pixels = data.pixel_array
    assert pixels.shape == (rows[0]["read_again"]["rows"], rows[0]["read_again"]["columns"], 3)
    assert (pixels[0] == 255).all()  # the paper, from the first row on
    liver = np.array([86, 180, 233])  # the outline's colour, in the order red, green, blue
    assert (np.abs(pixels.astype(int) - liver).max(axis=-1) < 30).sum() > 200
    assert (str(data.PatientName), data.Modality) == ("DOE^JANE", "OT")


def test_half_a_picture_is_refused(findings, tmp_path, monkeypatch):
    right = document.new_object

    def short(*arguments):
        data = right(*arguments)
        write = data.add_new
        data.add_new = lambda tag, kind, value: write(tag, kind, value[:-100])
        return data

    monkeypatch.setattr(document, "new_object", short)
    with pytest.raises(OutputError, match="holds no whole picture"):
        write_objects(findings, {"sc": tmp_path / "x.dcm"})
    assert not (tmp_path / "x.dcm").exists()


@pytest.fixture
def browser(tmp_path):
    """Makes a program that stands for a browser."""

    def make(script):
        path = tmp_path / "browser"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


SAYS_NO = r"""printf '{"method":"Some.event"}\0{"id":1,"error":{"message":"no room"}}\0' >&4; cat <&3 >/dev/null"""
posix = pytest.mark.skipif(os.name == "nt", reason="pages are printed on Linux and macOS")


@posix
@pytest.mark.parametrize(
    "script, words, timeout_s",
    [
        ("exit 1", "the browser ended", 60),
        ("sleep 60", "took too long", 1),
        (SAYS_NO, "answers Target.createTarget with no room", 60),
    ],
)
def test_a_browser_that_does_not_print_is_ended_and_says_why(browser, tmp_path, script, words, timeout_s):
    program = browser(f"echo $$ > {tmp_path}/pid\n{script}")
    started = time.monotonic()
    with pytest.raises(printing.NotPrintedError, match=words):
        printing.print_page("<p>", program, timeout_s)
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the browser is still there")


@posix
@pytest.mark.parametrize("user, sandboxed", [(0, False), (1000, True)])
def test_only_root_runs_without_a_sandbox_and_nothing_is_left(browser, tmp_path, monkeypatch, user, sandboxed):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(printing.NotPrintedError):
        printing.print_page("<p>", browser(f'printf "%s\\n" "$@" > {tmp_path}/options'))
    options = (tmp_path / "options").read_text().splitlines()
    assert ("--no-sandbox" not in options) is sandboxed
    (profile,) = (option.split("=")[1] for option in options if option.startswith("--user-data-dir"))
    assert "--host-resolver-rules=MAP * ~NOTFOUND" in options and not os.path.exists(os.path.dirname(profile))


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
def test_a_page_whose_pictures_are_damaged_is_not_printed(monkeypatch):
    page = '<body><p id="failure">The pictures in this file are damaged</p></body>'
    with pytest.raises(printing.NotPrintedError, match="no pictures .The pictures in this file are damaged"):
        printing.print_page(page, BROWSER)
    ask, waits = printing._Pipe.ask, []

    def hurried(pipe, method, *session, **parameters):
        if method == "Runtime.evaluate":  # the browser has opened the page, and waits for its pictures
            waits.append(method)
            pipe._deadline = time.monotonic() + 0.2
        return ask(pipe, method, *session, **parameters)

    monkeypatch.setattr(printing._Pipe, "ask", hurried)
    with pytest.raises(printing.NotPrintedError, match="took too long"):
        printing.print_page("<body>no viewer</body>", BROWSER)
    assert waits == ["Runtime.evaluate"]


def test_browsers_are_looked_for_on_the_path(monkeypatch, tmp_path):
    monkeypatch.undo()  # the stand-in of all other tests
    monkeypatch.setattr(shutil, "which", lambda name: f"/x/{name}" if name == "google-chrome" else None)
    assert printing.find_browser() == (None if os.name == "nt" else "/x/google-chrome")
