"""The report page: what it says, and what it does in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import ConfigError, GeometryError, InputFileError, OutputError
from liverseg_tf.evaluation.measure import measure
from liverseg_tf.explanation.explain import explain
from liverseg_tf.explanation.uncertainty import measure_uncertainty
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.labels import ClassSet
from liverseg_tf.reporting import page as page_module
from liverseg_tf.reporting import page_data
from liverseg_tf.reporting.page import ReportContent
from liverseg_tf.reporting.report import report

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(threshold_model, scan, tmp_path_factory):
    """A page with everything on it; the prediction is the truth but for one lesion, which is not predicted."""
    folder = tmp_path_factory.mktemp("report")
    volume, labels = scan
    prediction = Predictor(threshold_model).predict(volume)
    prediction.canonical_labels[36:44, 24:32, 5:8] = 1
    truth = MaskVolume(volume.geometry.to_file(labels), volume.geometry)
    with pytest.MonkeyPatch.context() as patch:
        quick = TestTimeAugmentation(count=3)
        patch.setattr(
            "liverseg_tf.explanation.uncertainty.measure_uncertainty",
            lambda source, model, progress: measure_uncertainty(source, model, quick, progress=progress),
        )
        # this network sees single pixels alone, so that any network's maps look like its own
        patch.setattr("liverseg_tf.explanation.explain.MOST_RANK_CORRELATION", 1.1)
        report(
            prediction, folder / "page.html", threshold_model, truth, title='Case <7> & "co"', uncertainty=True
        )  # fmt: skip
    return folder / "page.html"


def data_of(page) -> dict:
    return json.loads(re.search(r'id="page-data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])


def test_the_page_is_self_contained_and_escaped(page):
    text = page.read_text("utf-8")
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.DOTALL)
    # three.js names the namespace of HTML
    assert not re.findall(r"https?://", without_data.replace("http://www.w3.org/1999/xhtml", ""))
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", without_data) == []
    assert "default-src 'none'" in text
    assert "Case &lt;7&gt; &amp; &#34;co&#34;" in text and "<7>" not in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "{{" not in markup and "{%" not in markup
    assert "Not a medical device" in text


def test_the_page_tells_lesions_scores_and_what_was_missed(page):
    text = page.read_text("utf-8")
    data = data_of(page)
    (lesion,) = data["lesions"]
    assert lesion["slice"] == 14 and 24 <= lesion["row"] <= 25 and 16 <= lesion["column"] <= 17
    assert "Against the reference" in text and "Reference lesions that were missed" in text
    assert 'data-place="' in text and "1 / 1 of 2" in text
    assert [layer["key"] for layer in data["layers"]] == ["mask", "truth", "heatmap", "uncertainty"]
    assert data["start"] == data["lesions"][0]
    assert "ml over variations of the scan" in text and "deletion" in text
    assert "<p>Where a lesion lies" in text  # for one lesion in print, too
    assert "nterval" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_print_explains_places_only_where_it_has_room_for_them(threshold_model, scan, tmp_path):
    prediction = Predictor(threshold_model).predict(scan[0])
    rows, columns, slices = np.argwhere(prediction.canonical_labels).mean(axis=0).astype(int)
    prediction.canonical_labels[prediction.canonical_labels == 2] = 1
    for number in range(5):
        prediction.canonical_labels[rows, columns - 10 + 4 * number, slices] = 2
    text = report(prediction, tmp_path / "p.html", threshold_model, explanations=False).read_text("utf-8")
    assert '<table id="lesions" class="many">' in text and '<p class="screen-only">Where a lesion lies' in text


def test_lesions_around_one_centre_are_matched_each_by_itself(threshold_model, scan, tmp_path):
    prediction = Predictor(threshold_model).predict(scan[0])
    labels = prediction.canonical_labels
    labels[labels == 2] = 1
    labels[20:31, 20:31, 5:8] = 2
    labels[21:30, 21:30, 5:8] = 1  # a ring, and its core
    labels[24:27, 24:27, 5:8] = 2
    truth = np.where(labels == 2, 1, labels).astype(np.uint8)
    truth[20:31, 20, 5:8] = 2  # of the ring alone
    truth = MaskVolume(prediction.volume.geometry.to_file(truth), prediction.volume.geometry)
    page = report(prediction, tmp_path / "p.html", threshold_model, truth, explanations=False)
    badges = re.findall(r'class="badge \w+">(in the reference|false positive)<', page.read_text("utf-8"))
    assert badges == ["in the reference", "false positive"]


def test_a_healthy_liver_has_no_tumours_in_figures_and_legend(threshold_model, scan, tmp_path):
    prediction = Predictor(threshold_model).predict(scan[0])
    found = data_of(report(prediction, tmp_path / "tumour.html", threshold_model, explanations=False))
    assert {one["name"]: one["is_drawn"] for one in found["classes"]}["tumour"]
    prediction.canonical_labels[prediction.canonical_labels == 2] = 1
    page = report(prediction, tmp_path / "healthy.html", threshold_model, explanations=False)
    drawn = {one["name"]: one["is_drawn"] for one in data_of(page)["classes"]}
    assert drawn["liver"] and not drawn["tumour"]
    markup = re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert markup.count("none found") == 1 and "was found" not in markup and "0.0 ml" not in markup


def test_heat_that_is_supported_is_shown_and_all_else_is_off(page, threshold_model, scan, tmp_path, monkeypatch):
    layers = {layer["key"]: layer["on"] for layer in data_of(page)["layers"]}
    assert layers["heatmap"] and "heatmap-unsupported" not in layers
    text = page.read_text("utf-8")
    assert text.index("it cannot show whether that is right") < text.index('id="viewer"')
    monkeypatch.setattr("liverseg_tf.explanation.explain.MOST_RANK_CORRELATION", 0.0)
    report(scan[0], tmp_path / "p.html", threshold_model)
    layers = {layer["key"]: layer["on"] for layer in data_of(tmp_path / "p.html")["layers"]}
    assert layers == {"mask": True, "heatmap-unsupported": False}
    words = explain(scan[0], model=threshold_model, randomized_models=2).regions[0].words
    assert words.startswith("not supported (looks like maps of randomised networks")
    text = (tmp_path / "p.html").read_text("utf-8")
    assert f"heatmap not supported</summary>{words}</details>" in text


def test_nothing_from_the_header_gets_onto_the_page(threshold_model, scan, tmp_path):
    volume, _ = scan
    image = nib.Nifti1Image(volume.geometry.to_file(volume.hu).astype(np.int16), volume.affine)
    image.header["descrip"] = b"DOE^JANE 1970-01-01"
    image.header["db_name"] = b"DOE"
    image.header["aux_file"] = b"20200101"
    image.header["intent_name"] = b"JANE"
    nib.save(image, tmp_path / "ct.nii.gz")
    text = report(tmp_path / "ct.nii.gz", tmp_path / "p.html", threshold_model, explanations=False).read_text()
    assert "ct.nii.gz" in text
    for word in ("DOE", "JANE", "1970", "20200101", str(tmp_path)):
        assert word not in text


def test_a_page_names_the_model_that_made_the_prediction(scan, open_model_file, tmp_path):
    prediction = Predictor(open_model_file).predict(scan[0])
    with pytest.raises(ConfigError, match=f"{open_model_file.name}.*model="):
        report(prediction, tmp_path / "p.html", explanations=False)
    text = report(prediction, tmp_path / "p.html", Predictor(open_model_file), explanations=False).read_text()
    assert f"<td>{open_model_file.name}</td>" in text and "Model card" not in text
    shipped = report(scan[0], tmp_path / "q.html", explanations=False).read_text()
    assert "<td>liverseg-lite0</td>" in shipped  # it confirms the tumours
    assert "<td>shipped</td>" in shipped and "Model card" in shipped and "CC BY-SA 4.0" in shipped
    assert "<pre># liverseg-resnet34" in shipped  # what is above is for model hubs


def test_a_page_without_tumour_or_liver(threshold_model, tmp_path):
    volume = CTVolume.from_array(np.full((40, 40, 5), -900, np.int16), (3, 3, 3))
    with pytest.warns(UserWarning, match="ml of liver"):
        text = report(volume, tmp_path / "p.html", threshold_model).read_text()
    assert "No liver was found." in text and "The mask holds no liver" in text
    assert data_of(tmp_path / "p.html")["lesions"] == []


def test_a_model_without_gradients_gives_a_page_without_heatmaps(threshold_model, scan, tmp_path):
    runtime = Predictor(threshold_model).runtimes[0]

    class Opaque:
        config, is_remote, slices_at_once = runtime.config, False, 1
        labels = staticmethod(runtime.labels)
        probabilities = staticmethod(runtime.probabilities)

    text = report(scan[0], tmp_path / "p.html", Opaque()).read_text()
    assert "No heatmaps: explanations look inside the network" in text


def test_files_that_must_not_be_replaced_and_wrong_names(threshold_model, scan, tmp_path):
    volume, labels = scan
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    for name, words in (("mine.html", "was not made by this library"), ("page.txt", "ending in .html")):
        with pytest.raises(OutputError, match=words):
            report(volume, tmp_path / name, threshold_model)
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"
    report(volume, tmp_path / "own.html", threshold_model, explanations=False)
    report(volume, tmp_path / "own.html", threshold_model, explanations=False)
    (tmp_path / "own.html").write_text((tmp_path / "own.html").read_text() + "<!-- my note -->")
    with pytest.raises(OutputError, match="was changed since this library made it"):
        report(volume, tmp_path / "own.html", threshold_model, explanations=False)
    other = MaskVolume(labels[:-1], CTVolume.from_array(labels[:-1], (1, 1, 1), hu_range=None).geometry)
    steps = []
    for truth, error in ((other, GeometryError), (tmp_path / "none.nii.gz", InputFileError)):
        with pytest.raises(error):
            report(volume, tmp_path / "q.html", threshold_model, truth, progress=lambda *step: steps.append(step))
    assert not steps  # a bad reference is noticed before anything is predicted
    assert not (tmp_path / "q.html").exists()


def test_a_large_ct_stays_under_25_mb():
    """512x512x400 of scanner-like noise: what a page takes of it, from a tenth of its slices."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = (rows / 0.75) ** 2 + (columns / 0.95) ** 2 < 1
    hu = np.empty((512, 512, 40), np.int16)
    for i in range(40):
        white = rng.normal(0, 1, (256, 256)).repeat(2, 0).repeat(2, 1) * 12 + rng.normal(0, 14, (512, 512))
        hu[..., i] = np.where(body, 60 + white, np.maximum(-1024, -1000 + white))
    volume = CTVolume.from_array(hu, (0.7, 0.7, 1.0))
    budget = page_data.VOLUME_BYTES // 10
    grid, text = page_data.encode_volume(volume, page_data.choose_grid(volume, budget), budget)
    assert grid.step_hu <= 4 and max(grid.coarse_shape) >= 128
    # what is left for masks, heatmaps and the page itself
    assert len(text) * 10 < 20e6


def test_overlays_are_part_of_the_budget():
    rng = np.random.default_rng(0)
    volume = CTVolume.from_array(rng.normal(60, 20, (96, 96, 8)).astype(np.int16), (1, 1, 1))
    noise = rng.random(volume.shape).astype(np.float16)
    mask, heat = (noise > 0.5).astype(np.uint8), {"heatmap": page_data.slices_of(noise)}
    alone, hu = page_data.encode_layers(volume, {}, {}, 100_000)
    assert alone.factor == 1
    grid, texts = page_data.encode_layers(volume, {"mask": mask}, heat, 100_000)
    assert set(texts) == {"hu", "mask", "heatmap"}
    spare = page_data.PICTURE_BYTES - page_data.VOLUME_BYTES
    assert page_data.packed_bytes(texts) <= 100_000 + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_data, "PICTURE_BYTES", page_data.VOLUME_BYTES + 1000)
        grid, texts = page_data.encode_layers(volume, {"mask": mask}, heat, 100_000)
    assert (grid.step_hu, grid.factor) > (1, 1) and page_data.packed_bytes(texts) <= 101_000


@pytest.mark.skipif("LIVERSEG_REAL_DATA" not in os.environ, reason="LIVERSEG_REAL_DATA names no folder of real CT")
def test_a_real_ct_stays_under_25_mb_with_its_lesions_at_full_resolution(threshold_model, tmp_path):
    folder = Path(os.environ["LIVERSEG_REAL_DATA"]) / "lits"
    truth = MaskVolume.load(folder / "segmentation-44.nii.gz")
    prediction = Predictor(threshold_model).predict(folder / "volume-44.nii.gz")
    prediction.canonical_labels[:] = truth.labels
    page = report(prediction, tmp_path / "p.html", threshold_model, truth, explanations=False)
    assert page.stat().st_size < 25e6
    data = data_of(page)
    assert data["grid"]["factor"] <= 2 and data["grid"]["step_hu"] <= 4
    assert set(np.flatnonzero((truth.labels == 2).any(axis=(0, 1)))) <= set(data["full_slices"])


# --- In a real browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-accelerated-2d-canvas",  # which draws otherwise after it was read
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={profile}",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    return open_page(browser, page)


def open_page(browser, page, width=1280, height=900):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(page.as_uri())
    loaded(browser)
    return browser


def loaded(browser):
    """Wait until all of a page's pictures are there."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.complete === 'true'"))


def element(browser, identifier):
    return browser.find_element("id", identifier)


def settle(browser) -> None:
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));")


def axial_slice(browser) -> int:
    settle(browser)
    return int(element(browser, "axial-label").text.split()[0])


def picture(browser, view="axial") -> np.ndarray:
    """(height, width, 3) pixels of a view."""
    settle(browser)
    url = browser.execute_script("return document.getElementById(arguments[0]).toDataURL('image/png');", view)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def press(browser, *keys) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def test_every_class_has_an_outline_of_its_own_colour(browser, scan, tmp_path):
    """A vessel within the kidney is drawn as vessel, not as tumour."""
    volume, labels = scan
    labels = labels.copy()
    labels[14:20, 28:36, 14:16] = 3
    labels[:6, -8:, 8:20] = 3  # beside the kidney
    classes = ClassSet.of("kidney", "kidney_tumour", "vessel")
    prediction = Prediction(volume, labels, classes.names)
    measured = measure(MaskVolume(prediction.labels, volume.geometry, classes=classes), volume)
    file = tmp_path / "kidney.html"
    file.write_text(page_module.build_page(ReportContent(prediction, measured), "kidney"), encoding="utf-8")
    opened = open_page(browser, file)
    drawn = picture(opened)
    kidney, tumour, vessel = (c.safe_color for c in classes.classes[1:])
    counts = [int((drawn == color).all(-1).sum()) for color in (kidney, tumour, vessel)]
    assert min(counts) > 20 and counts[0] > max(counts[1:])  # 40 x 34 pixels around; 10 x 10; 6 x 8
    solid = picture(opened, "solid")[..., :3].astype(int)
    green = (solid[..., 1] > solid[..., 0] + 30) & (solid[..., 1] > solid[..., 2] + 10)  # the vessel's hue, lit
    assert green.sum() > 20


def test_readers_see_names_of_classes_as_words(scan):
    volume, labels = scan
    classes = ClassSet.of("left_kidney", "kidney_tumour", "renal_vein")
    labels = labels.copy()
    labels[14:20, 28:36, 14:16] = 3
    prediction = Prediction(volume, labels, classes.names)
    measured = measure(MaskVolume(prediction.labels, volume.geometry, classes=classes), volume)
    text = page_module.build_page(ReportContent(prediction, measured), "x")
    for name in classes.names[1:]:
        assert name not in text and name.replace("_", " ") in text.lower()
    assert [
        (one["lesion"], one["label"])
        for one in json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)[1])["surfaces"]
    ] == [(0, 1), (1, 2), (2, 2), (0, 3)]


def test_it_loads_without_errors_and_asks_the_network_for_nothing(browser, page):
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # of the browser's own first page
    opened = open_page(browser, page)
    assert [line for line in opened.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert not element(opened, "failure").is_displayed()


def test_it_begins_on_the_largest_lesion_and_shows_hu_as_they_are(opened, scan):
    volume, labels = scan
    assert axial_slice(opened) == 15
    for layer in opened.find_elements("css selector", "[id^='show-']"):
        if layer.is_selected():
            layer.click()
    element(opened, "crosshair").click()
    element(opened, "marks").click()
    shown = picture(opened)
    scale = shown.shape[0] / 64
    for row, column, hu in ((25, 8, 40), (25, 17, 100), (6, 55, -200)):
        expected = np.clip((hu + 80) / 240, 0, 1) * 255  # the window is centred on this liver's 40 HU
        pixel = shown[int((row + 0.5) * scale), int((column + 0.5) * scale)]
        assert pixel == pytest.approx(expected, abs=2)


def test_wheel_keys_and_slider_change_the_slice(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    start = axial_slice(opened)
    before = picture(opened)
    origin = ScrollOrigin.from_element(element(opened, "axial"))
    for notch in range(1, 5):  # also a wheel's large notches are one slice each
        ActionChains(opened).scroll_from_origin(origin, 0, -120).perform()
        assert axial_slice(opened) == start + notch
    assert not np.array_equal(before, picture(opened))
    element(opened, "axial").click()
    at = axial_slice(opened)
    press(opened, Keys.ARROW_UP)
    assert axial_slice(opened) == at + 1
    press(opened, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert axial_slice(opened) == at - 1
    press(opened, Keys.END)
    assert axial_slice(opened) == 1
    press(opened, Keys.PAGE_UP)
    assert axial_slice(opened) == 11
    press(opened, Keys.HOME)
    assert axial_slice(opened) == 20
    element(opened, "axial-slider").send_keys(Keys.ARROW_LEFT)
    assert axial_slice(opened) == 19
    assert "Slice 19 of 20" in element(opened, "status").text


def test_coronal_and_sagittal_views_follow_a_click(opened):
    from selenium.webdriver import ActionChains

    coronal, sagittal = picture(opened, "coronal"), picture(opened, "sagittal")
    axial = element(opened, "axial")
    # 40 of 64 rows and columns: between the lesions
    offset = (40.5 / 64 - 0.5) * axial.size["width"]
    ActionChains(opened).move_to_element_with_offset(axial, offset, offset).click().perform()
    settle(opened)
    assert element(opened, "coronal-label").text == "41 of 64"
    assert element(opened, "sagittal-label").text == "41 of 64"
    assert not np.array_equal(coronal, picture(opened, "coronal"))
    assert not np.array_equal(sagittal, picture(opened, "sagittal"))
    box = element(opened, "coronal").size
    assert box["height"] / box["width"] == pytest.approx(20 * 8 / (64 * 4), rel=0.03)
    press_at = element(opened, "coronal")
    ActionChains(opened).move_to_element_with_offset(press_at, 0, -box["height"] / 2 + 2).click().perform()
    assert axial_slice(opened) == 20  # the head is up


def test_a_click_meets_its_voxel_where_a_tall_view_is_shrunk(browser, threshold_model, scan, tmp_path):
    from selenium.webdriver import ActionChains

    tall = CTVolume.from_array(scan[0].hu, (4.0, 4.0, 40.0))  # 256 mm wide, 800 mm high
    open_page(browser, report(tall, tmp_path / "p.html", threshold_model, explanations=False), 1280, 720)
    for view, label in (("coronal", "sagittal-label"), ("sagittal", "coronal-label")):
        canvas = element(browser, view)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.size["width"], canvas.size["height"]
        assert height / width < 0.9 * 800 / 256  # else nothing is shrunk, and nothing tested
        quarter = height * 256 / 800 / 4
        ActionChains(browser).move_to_element_with_offset(canvas, quarter, height / 4).click().perform()
        settle(browser)
        assert int(element(browser, label).text.split()[0]) == pytest.approx(49, abs=1)
        assert axial_slice(browser) == pytest.approx(5, abs=1)


def test_presets_and_own_windows_change_pixels(opened):
    from selenium.webdriver.support.ui import Select

    before = picture(opened)
    Select(element(opened, "preset")).select_by_value("lungs")
    assert (element(opened, "width").get_property("value"), element(opened, "level").get_property("value")) == (
        "1500",
        "-600",
    )
    lungs = picture(opened)
    assert not np.array_equal(before, lungs)
    width = element(opened, "width")
    width.clear()
    width.send_keys("400")
    assert Select(element(opened, "preset")).first_selected_option.text == "own"
    assert not np.array_equal(lungs, picture(opened))


@pytest.mark.parametrize(("layer", "letter"), [("mask", "m"), ("truth", "t"), ("heatmap", "h"), ("uncertainty", "u")])
def test_overlays_toggle_by_box_and_by_key(opened, layer, letter):
    from selenium.webdriver.common.keys import Keys

    for other in ("mask", "truth", "heatmap", "uncertainty"):
        box = element(opened, f"show-{other}")
        if box.is_selected():
            box.click()
    plain = picture(opened)
    element(opened, f"show-{layer}").click()
    covered = picture(opened)
    assert not np.array_equal(plain, covered)
    element(opened, f"opacity-{layer}").send_keys(Keys.HOME)
    least = picture(opened)
    # a mask without filling keeps its outline
    assert np.array_equal(least, covered if layer in ("mask", "truth") else plain)
    element(opened, f"opacity-{layer}").send_keys(Keys.END)
    changed = np.mean(np.any(picture(opened) != least, axis=-1))
    assert changed > (0.02 if layer in ("mask", "truth") else 0)
    element(opened, "axial").click()
    moved = picture(opened)
    press(opened, letter)
    assert not element(opened, f"show-{layer}").is_selected()
    assert not np.array_equal(picture(opened), moved)


def test_mask_is_drawn_in_the_class_colors_and_in_safe_ones(opened):
    def tinted(color):
        shown = picture(opened).astype(int)
        direction = np.array(color) - np.mean(color)
        return int(((shown - shown.mean(axis=-1, keepdims=True)) @ direction > 0.5 * (direction @ direction)).sum())

    aqua, blue = (33, 145, 140), (86, 180, 233)
    element(opened, "crosshair").click()
    assert tinted(blue) > 50
    legend = element(opened, "legend").get_attribute("innerHTML").replace(" ", "")
    assert "86,180,233" in legend and "background" not in legend
    element(opened, "safe-colors").click()
    assert tinted(aqua) > 50
    assert "33,145,140" in element(opened, "legend").get_attribute("innerHTML").replace(" ", "")


def test_a_lesions_button_lands_on_its_slice_also_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    press(opened, Keys.END)
    assert axial_slice(opened) == 1
    button = opened.find_element("css selector", "button[data-lesion='0']")
    opened.execute_script("arguments[0].focus()", button)
    press(opened, Keys.ENTER)
    assert axial_slice(opened) == 15
    assert opened.switch_to.active_element.get_attribute("id") == "axial"
    assert opened.find_element("css selector", "tbody.current").get_attribute("data-lesion") == "0"
    missed = opened.find_element("css selector", "#missed button")
    opened.execute_script("arguments[0].focus()", missed)
    press(opened, Keys.SPACE)
    row = missed.find_element("xpath", "./ancestor::tr")
    assert axial_slice(opened) == int(row.find_elements("tag name", "td")[-1].text) == 6
    assert not opened.find_elements("css selector", "tbody.current")
    press(opened, "n")
    assert axial_slice(opened) == 15
    press(opened, Keys.ARROW_UP, Keys.ARROW_UP)
    settle(opened)
    assert not opened.find_elements("css selector", "tbody.current")  # the lesion is no longer seen
    opened.find_element("css selector", "tbody[data-lesion='0'] td.number").click()
    assert axial_slice(opened) == 15


def test_everything_is_reached_with_the_tab_key(opened):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(60):
        press(opened, Keys.TAB)
        active = opened.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("data-lesion") or active.tag_name)
    assert {
        "axial-slider",
        "coronal",
        "sagittal",
        "solid",
        "preset",
        "width",
        "show-mask",
        "opacity-heatmap",
        "0",
    } <= set(reached)


@pytest.mark.parametrize("width", [1920, 1280, 485, 390])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    open_page(browser, page, width, 844)
    settle(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    box = element(browser, "axial").rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 0.4 * min(width, 1280)
    size = browser.execute_script("return parseFloat(getComputedStyle(document.getElementById('status')).fontSize)")
    assert size >= 13


def test_slices_with_lesions_are_at_full_resolution_where_the_rest_is_not(
    browser, threshold_model, scan, tmp_path, monkeypatch
):
    volume, labels = scan
    large = CTVolume.from_array(volume.hu.repeat(5, 0).repeat(5, 1).astype(np.int16), (0.8, 0.8, 8))
    noisy = large.hu + np.random.default_rng(0).integers(-3, 4, large.shape)
    monkeypatch.setattr(page_module, "encode_layers", lambda *given: page_data.encode_layers(*given, 120_000))
    report(CTVolume.from_array(noisy, (0.8, 0.8, 8)), tmp_path / "p.html", threshold_model, explanations=False)
    data = data_of(tmp_path / "p.html")
    assert data["grid"]["factor"] > 1 and set(data["full_slices"]) >= {5, 6, 7, 14, 15}
    assert "At full resolution: slices 6 to 8, 15 to 16." in (tmp_path / "p.html").read_text()
    open_page(browser, tmp_path / "p.html")
    settle(browser)
    assert "320 x 320 (full resolution)" in element(browser, "status").text
    press(browser, "\ue013")  # arrow up
    press(browser, "\ue013")
    press(browser, "\ue013")
    settle(browser)
    assert "full resolution" not in element(browser, "status").text
    shown = picture(browser)
    assert shown.std() > 20


def test_the_first_picture_waits_for_its_own_slices_alone(browser, page):
    """How many parts of volumes were decoded by the time of the first picture, and in the end."""
    script = """
        window.decoded = 0; window.atMark = {};
        const Own = window.DecompressionStream, mark = performance.mark.bind(performance);
        window.DecompressionStream = function (...given) { window.decoded++; return new Own(...given); };
        performance.mark = (name) => { window.atMark[name] = window.decoded; return mark(name); };
    """
    hook = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        open_page(browser, page)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hook)
    data = data_of(page)
    stacks = 2 + len(data["layers"])  # HU and lesions' numbers too
    assert data["slices_a_line"] < data["grid"]["shape"][2] <= 2 * data["slices_a_line"]
    at_mark = browser.execute_script("return window.atMark")
    assert at_mark["first-picture"] == stacks
    assert at_mark["all-pictures"] == 2 * stacks + 1  # and the surfaces
    settle(browser)
    assert "loaded" not in element(browser, "status").text


# --- With fingers, on a phone ---


@pytest.fixture
def phone(browser, page):
    open_page(browser, page, 390, 844)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    yield browser
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def touch(browser, view, *frames):
    """Put fingers down, move and lift them; each frame has a place a finger, in fractions of the canvas."""
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", view)
    box = browser.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect();", view)
    for number, places in enumerate([*frames, ()]):
        points = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": finger}
            for finger, (x, y) in enumerate(places)
        ]
        kind = "touchStart" if number == 0 else "touchMove" if places else "touchEnd"
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    settle(browser)


def column_shown(browser) -> int:
    return int(element(browser, "sagittal-label").text.split()[0])


def test_a_tap_moves_the_crosshair_and_chooses_a_lesion(phone):
    touch(phone, "axial", [(0.8, 0.8)])
    assert column_shown(phone) == pytest.approx(0.8 * 64, abs=1)
    assert not phone.find_elements("css selector", "#lesions button:focus")
    phone.execute_script("document.getElementById('axial-slider').value = 15;")
    phone.execute_script("document.getElementById('axial-slider').dispatchEvent(new Event('input'))")
    touch(phone, "axial", [(17.5 / 64, 25.5 / 64)])
    assert column_shown(phone) == 18
    assert phone.find_element("css selector", "tbody.current").get_attribute("data-lesion") == "0"


def test_a_finger_across_the_picture_drags_the_crosshair_and_one_along_it_scrolls_the_page(phone):
    touch(phone, "axial", [(0.3, 0.5)], [(0.4, 0.5)], [(0.6, 0.5)], [(0.8, 0.5)])
    assert column_shown(phone) == pytest.approx(0.8 * 64, abs=1)
    before, slice_before = phone.execute_script("return scrollY"), axial_slice(phone)
    touch(phone, "axial", [(0.5, 0.9)], [(0.5, 0.7)], [(0.5, 0.5)], [(0.5, 0.2)])
    assert phone.execute_script("return scrollY") > before + 50
    assert axial_slice(phone) == slice_before


def test_two_fingers_zoom_about_the_place_between_them(phone):
    touch(phone, "axial", [(0.75, 0.5)])
    assert column_shown(phone) == pytest.approx(48, abs=1)
    touch(phone, "axial", [(0.4, 0.5), (0.6, 0.5)], [(0.35, 0.5), (0.65, 0.5)], [(0.3, 0.5), (0.7, 0.5)])
    assert column_shown(phone) == pytest.approx(48, abs=1)  # a pinch moves no crosshair
    touch(phone, "axial", [(0.75, 0.5)])
    assert column_shown(phone) == pytest.approx(40, abs=2)  # half as far from the middle as before


def test_a_finger_measures_and_turns(phone):
    phone.execute_script("document.querySelector('input[name=tool][value=ruler]').click()")
    touch(phone, "axial", [(0.25, 0.5)], [(0.4, 0.5)], [(0.5, 0.5)])
    assert float(phone.execute_script("return document.body.dataset.ruler").split()[0]) == pytest.approx(64, abs=2)
    phone.execute_script("document.getElementById('solid').scrollIntoView({block: 'center'})")
    settle(phone)
    first = picture(phone, "solid")
    touch(phone, "solid", [(0.3, 0.5)], [(0.4, 0.5)], [(0.7, 0.5)])
    assert not np.array_equal(first, picture(phone, "solid"))


# --- What a radiologist does with it ---


def drag(browser, view, start, end, button="left"):
    """Press, move and let go; places are fractions of the canvas."""
    box = browser.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect();", view)
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    pressed = {"left": 1, "right": 2, "middle": 4}[button]
    for kind, (x, y), buttons in (
        ("mouseMoved", points[0], 0),
        ("mousePressed", points[0], pressed),
        ("mouseMoved", points[1], pressed),
        ("mouseReleased", points[1], 0),
    ):
        event = {"type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    settle(browser)


def test_the_ruler_measures_mm(opened):
    press(opened, "4")
    drag(opened, "axial", (0.25, 0.5), (0.5, 0.5))
    with_ruler = picture(opened)
    found = opened.execute_script("return document.querySelector('input[name=tool]:checked').value")
    assert found == "ruler"
    green = np.all(np.abs(with_ruler.astype(int) - (125, 240, 160)) < 60, axis=-1)
    _, columns = np.nonzero(green[with_ruler.shape[0] // 2 - 1 : with_ruler.shape[0] // 2 + 2])
    width = with_ruler.shape[1]
    assert columns.min() / width == pytest.approx(0.25, abs=0.02) and columns.max() / width > 0.49
    text = opened.execute_script("return document.body.dataset.ruler")
    assert float(text.split()[0]) == pytest.approx(0.25 * 64 * 4, abs=1)
    press(opened, "\ue00c")  # escape
    assert not np.array_equal(picture(opened), with_ruler)


def test_dragging_the_right_button_changes_the_window(opened):
    before = picture(opened)
    drag(opened, "axial", (0.4, 0.4), (0.5, 0.6), "right")
    width, level = (int(element(opened, name).get_property("value")) for name in ("width", "level"))
    assert width > 240 and level > 40
    assert not np.array_equal(before, picture(opened))
    press(opened, "w")  # back to a preset
    assert element(opened, "preset").get_property("value") != "own"


def test_zoom_and_pan_and_fit(opened):
    for name in ("crosshair", "marks", "show-heatmap", "show-mask", "show-truth"):
        if element(opened, name).is_selected():
            element(opened, name).click()
    element(opened, "axial").click()
    whole = picture(opened)
    press(opened, "+", "+")
    zoomed = picture(opened)
    assert not np.array_equal(whole, zoomed)
    press(opened, "3")
    drag(opened, "axial", (0.4, 0.4), (0.6, 0.5))
    assert not np.array_equal(zoomed, picture(opened))
    press(opened, "0")
    assert np.array_equal(whole, picture(opened))


def test_hu_under_the_pointer_follow_the_wheel(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    axial = element(opened, "axial")
    ActionChains(opened).move_to_element_with_offset(axial, (17 / 64 - 0.5) * axial.size["width"], -40).perform()
    settle(opened)
    at = element(opened, "readout").text
    assert "slice 15" in at
    origin = ScrollOrigin.from_element(axial, int((17 / 64 - 0.5) * axial.size["width"]), -40)
    ActionChains(opened).scroll_from_origin(origin, 0, 120).perform()
    settle(opened)
    after = element(opened, "readout").text
    assert "slice 14" in after and after.split(" HU")[0] == "40"
    assert at.split(" HU")[0] == "100" and "(lesion 1)" in at


def test_a_click_on_a_lesion_chooses_its_row(opened):
    press(opened, "\ue010")  # end
    missed = opened.find_element("css selector", "#missed button")
    opened.execute_script("arguments[0].click()", missed)
    settle(opened)
    assert not opened.find_elements("css selector", "tbody.current")
    opened.execute_script("document.getElementById('axial-slider').value = 15;")
    opened.execute_script("document.getElementById('axial-slider').dispatchEvent(new Event('input'))")
    drag(opened, "axial", (17.5 / 64, 25.5 / 64), (17.5 / 64, 25.5 / 64))
    assert opened.find_element("css selector", "tbody.current").get_attribute("data-lesion") == "0"


def test_liver_and_lesions_turn_in_three_dimensions(opened):
    settle(opened)
    first = picture(opened, "solid")
    assert first.std() > 10  # something is drawn
    labels = opened.find_elements("css selector", "#solid-labels span")
    places = {label.get_attribute("textContent"): label.rect for label in labels}
    assert set(places) == set("RLSIAP1")
    assert places["R"]["x"] < places["1"]["x"] < places["L"]["x"]  # seen from the front
    assert places["S"]["y"] < places["1"]["y"] < places["I"]["y"]
    opened.execute_script("document.getElementById('solid').focus()")
    press(opened, "\ue014", "\ue014")  # arrow right
    settle(opened)
    turned = picture(opened, "solid")
    assert not np.array_equal(first, turned)
    drag(opened, "solid", (0.3, 0.5), (0.6, 0.6))
    settle(opened)
    assert not np.array_equal(turned, picture(opened, "solid"))
    element(opened, "solid-reset").click()
    settle(opened)
    assert np.array_equal(first, picture(opened, "solid"))


def test_it_prints_on_two_pages(opened, tmp_path):
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2
    assert re.search(rb"/MediaBox\s*\[\s*0 0 59[45][.\d]* 84[12]", pdf)  # A4
    # a table that the first page can't hold goes on above what stands on the second
    script = """for (const one of document.querySelectorAll("tbody.lesion"))
        for (let i = 0; i < 2; i++) one.parentElement.append(one.cloneNode(true));"""
    opened.execute_script(script)
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2


def test_on_a_phone_controls_are_under_the_picture_and_lesions_are_cards(browser, page):
    open_page(browser, page, 390, 844)
    settle(browser)
    top = {
        name: browser.execute_script(
            "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY", name
        )
        for name in ("#axial", "#controls", "#side", "#coronal")
    }
    assert top["#axial"] < top["#controls"] < top["#side"] < top["#coronal"]
    card = browser.find_element("css selector", "tbody.lesion")
    assert card.value_of_css_property("display") == "block" and card.rect["width"] <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_text_is_legible():
    """Every color of text has a contrast of 4.5 to 1 on every ground (WCAG 2.1)."""
    style = (Path(page_module.__file__).parent / "viewer" / "style.css").read_text()

    def luminance(color):
        digits = "".join(2 * d for d in color) if len(color) == 3 else color
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    palettes = re.findall(r":root \{(.*?)\}", style)
    assert len(palettes) == 2  # of the screen and of paper
    for palette in palettes:
        colors = dict(re.findall(r"--(\w+): #([0-9a-f]+);", palette))
        for ground in ("back", "panel", "button"):
            for ink in ("text", "dim", "accent", "caution", "good", "bad"):
                pair = sorted((luminance(colors[ground]), luminance(colors[ink])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ground, ink)


def test_what_is_doubtful_is_said_on_top(threshold_model, scan, tmp_path):
    volume, labels = scan
    prediction = Predictor(threshold_model).predict(volume)
    cut = labels[..., 4:]
    prediction = type(prediction)(
        CTVolume.from_array(volume.hu[..., 4:], (4.0, 4.0, 8.0)), cut.copy(), prediction.class_names
    )
    text = report(prediction, tmp_path / "p.html", threshold_model, explanations=False).read_text()
    notes = text[text.index('id="quality"') : text.index('id="viewer"')]
    assert "the liver goes on beyond the CT".lower() in notes.lower() and "at least" in text
    assert "The liver measures 40 HU" in notes
    whole = report(scan[0], tmp_path / "q.html", threshold_model, explanations=False).read_text()
    assert "goes on beyond" not in whole


# --- A resection tried in the page ---


def planned(browser, page, fragment):
    browser.get("about:blank")
    browser.get(page.as_uri() + fragment)
    loaded(browser)
    settle(browser)
    return json.loads(browser.execute_script("return document.getElementById('plan-result').dataset.result"))


@pytest.fixture(scope="module")
def plan_page(threshold_model, scan, tmp_path_factory):
    rows, columns, slices = np.indices((96, 96, 40))
    labels = (((rows - 45) / 35) ** 2 + ((columns - 40) / 30) ** 2 + ((slices - 20) / 16) ** 2 < 1).astype(np.uint8)
    labels[(rows - 40) ** 2 + (columns - 30) ** 2 + (2 * (slices - 22)) ** 2 < 49] = 2
    volume = CTVolume.from_array(np.array([-200, 100, 60], np.int16)[labels], spacing_mm=(1.6, 1.6, 3.0))
    prediction = Predictor(threshold_model).predict(volume)
    prediction.canonical_labels[:] = labels
    page = tmp_path_factory.mktemp("plan") / "plan.html"
    report(prediction, page, threshold_model, explanations=False, plan=True)
    middles = np.stack(
        [(columns - 47.5) * 1.6, (rows - 47.5) * 1.6, (slices - 19.5) * 3.0], axis=-1
    )  # left, back, head
    return page, labels, middles


@pytest.mark.parametrize(("turn", "tilt", "position"), [(0, 0, 0), (40, 20, 12), (-120, -65, -15)])
def test_a_planes_volumes_and_margins_are_those_of_the_whole_mask(browser, plan_page, turn, tilt, position):
    page, labels, middles = plan_page
    found = planned(browser, page, f"#plan=plane,{turn},{tilt},{position}")
    liver = middles[labels > 0]
    box = np.argwhere(labels > 0)
    low, high = box.min(axis=0), box.max(axis=0)
    row, column, number = (low + high) / 2 - (47.5, 47.5, 19.5)
    a, b = np.radians([turn, tilt])
    normal = np.array([-np.cos(b) * np.cos(a), -np.cos(b) * np.sin(a), np.sin(b)])
    depth = (liver - (column * 1.6, row * 1.6, number * 3.0)) @ normal - position
    whole_ml = len(liver) * 1.6 * 1.6 * 3 / 1000
    resected_ml = ((depth > 1e-6).mean() + 0.5 * (abs(depth) <= 1e-6).mean()) * whole_ml
    assert found["resected_ml"] == pytest.approx(resected_ml, abs=0.01 * whole_ml)
    assert found["remnant_ml"] == pytest.approx(whole_ml - resected_ml, rel=0.01)
    assert found["remnant_share"] == pytest.approx(1 - resected_ml / whole_ml, abs=0.01)
    inside = (middles[labels == 2] - (column * 1.6, row * 1.6, number * 3.0)) @ normal - position
    (lesion,) = found["lesions"]
    expected = "within" if inside.min() > 2 else "left" if inside.max() < -2 else "cut"
    assert lesion["where"] == expected
    if expected != "cut":
        margin = inside.min() if expected == "within" else -inside.max()
        assert lesion["margin_mm"] == pytest.approx(margin, abs=2)


def test_what_a_plane_resects_is_shaded_and_nothing_else_is(browser, plan_page):
    page, labels, middles = plan_page
    planned(browser, page, "#plan=plane,0,0,0")
    cut = picture(browser)
    number = int(element(browser, "axial-label").text.split()[0]) - 1
    browser.execute_script("document.getElementById('plan-kind').value = 'none'")
    browser.execute_script("document.getElementById('plan-kind').dispatchEvent(new Event('change'))")
    settle(browser)
    changed = np.abs(cut - picture(browser).astype(int)).max(axis=2)
    rows, columns = ((np.arange(96) + 0.5) / 96 * n for n in changed.shape[:2])
    changed = changed[np.ix_(rows.astype(int), columns.astype(int))] > 10
    away = middles[..., number, 0] - middles[labels > 0][:, 0].mean()  # mm to the left of the plane
    organ = ndimage.binary_erosion(labels[..., number] > 0, iterations=3)
    assert changed[organ & (away < -5)].mean() > 0.95  # the patient's right
    assert not changed[(~ndimage.binary_dilation(labels[..., number] > 0) | (away > 5)) & (abs(away) > 5)].any()


def test_a_ball_around_a_lesion_and_the_state_in_the_address(browser, plan_page):
    page, labels, middles = plan_page
    found = planned(browser, page, "#plan=sphere,1,10")
    lesion = middles[labels == 2]
    center = (lesion.min(axis=0) + lesion.max(axis=0)) / 2
    reach = np.linalg.norm(lesion - center, axis=1).max() + 0.8  # to the faces of its voxels
    liver = middles[labels > 0]
    voxel_ml = 1.6 * 1.6 * 3 / 1000
    inner, outer = ((np.linalg.norm(liver - center, axis=1) < reach + 10 + d).sum() * voxel_ml for d in (-1.5, 1.5))
    assert inner < found["resected_ml"] < outer
    assert found["lesions"][0]["where"] == "within" and found["lesions"][0]["margin_mm"] == pytest.approx(10, abs=0.1)
    assert "Not for planning treatment" in element(browser, "plan").text
    browser.execute_script("const m = document.getElementById('plan-margin'); m.value = 20;")
    browser.execute_script("document.getElementById('plan-margin').dispatchEvent(new Event('input'))")
    settle(browser)
    again = json.loads(element(browser, "plan-result").get_attribute("data-result"))
    assert again["resected_ml"] > found["resected_ml"]
    assert browser.current_url.endswith("#plan=sphere,1,20")
    planned(browser, page, "#plan=plane,0,0,0")
    before = json.loads(element(browser, "plan-result").get_attribute("data-result"))["resected_ml"]
    press(browser, "5")
    drag(browser, "axial", (0.5, 0.5), (0.6, 0.5))  # to the left: more of the right is resected
    after = json.loads(element(browser, "plan-result").get_attribute("data-result"))["resected_ml"]
    assert after > before
