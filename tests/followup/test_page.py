"""The page of a comparison: self-contained, its places right, and no script from a file's name."""

import base64
import gzip
import json
import shutil

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.followup.page import build_page


def data_of(text):
    start = text.index('<script type="application/json" id="page-data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])


def test_both_cts_their_places_and_the_curve(scene, tmp_path):
    mask = scene.mask()
    ct = scene.ct(mask)
    found = ls.compare(ct, ct, ct, masks=[mask] * 3, days=[0, 30, 60])
    text = build_page(found, "</title><script>alert(1)</script>")
    assert "<script>alert" not in text and "default-src 'none'" in text and "http" not in text.split("<main>")[1]
    data = data_of(text)
    assert len(data["scans"]) == 3 and len(data["lesions"]) == len(found.lesions)
    first = data["scans"][0]
    start = text.index('id="blob-mask-0">') + len('id="blob-mask-0">')
    lines = text[start : text.index("</script>", start)].split("\n")
    shown = np.frombuffer(gzip.decompress(b"".join(map(base64.b64decode, lines))), np.uint8)
    shown = np.cumsum(shown.reshape(first["shape"][2], *first["shape"][:2]), axis=2, dtype=np.uint8)
    # where the page says that a lesion lies, its mask shows one
    for lesion in data["lesions"]:
        row, column, number = np.rint(np.array(first["to_index"]) @ [*lesion["place"], 1])[:3].astype(int)
        assert shown[number, row, column] == 2
    assert text.count("<polyline") == 5 and "days since the first scan" in text
    assert text.count('<tr data-lesion="0">') == 3


def test_masks_alone_give_figures_without_a_viewer(scene):
    mask = scene.mask()
    text = build_page(ls.compare(mask, mask), "two masks")
    assert 'id="viewer"' not in text and 'id="changes"' in text and data_of(text)["scans"] == []


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'p'}"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def test_tables_of_a_phone_scroll_within_themselves(scene, tmp_path, browser):
    mask = scene.mask()
    page = tmp_path / "page.html"
    page.write_text(build_page(ls.compare(mask, mask), "two masks"))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
