"""Make the documentation's pictures, and the notebook's outputs: CT phantoms alone, and curves of stored figures.

python docs/figures.py [notebook]
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import liverseg_tf as ls
from liverseg_tf.drawing import new_figure, save_figure

IMAGES = Path(__file__).parent / "images"
NOTEBOOK = Path(__file__).parents[1] / "examples" / "walkthrough.ipynb"

SIZES = ("5 to 10 mm", "10 to 20 mm", "above 20 mm")


def sensitivity_figure(quality: dict):
    """Share of true lesions found against false ones a patient: a panel for each size, a line for each model.

    Args:
        quality: what `examples/shipped_model/evaluate.py` wrote.
    """
    figure, axes = new_figure(1, len(SIZES), 0.9, picture=False)
    for index, (axis, size) in enumerate(zip(axes, SIZES, strict=True)):
        for name, model in quality["models"].items():
            found = [pairs[index] for pairs in model["sensitivity"].values()]
            axis.plot(range(len(found)), [a / b for a, b in found], marker="o", label=name)
        axis.set(title=f"{size}, {found[0][1]} lesions", xlabel="false lesions a patient", ylim=(0, 1.02))
        axis.set_xticks(range(len(model["sensitivity"])), list(model["sensitivity"]))
    axes[0].set_ylabel("sensitivity")
    axes[0].legend(fontsize="small")
    return figure


def main() -> None:
    """Write docs/images/sensitivity.png, montage.png, and report.png where chromium and chromedriver are installed."""
    quality = json.loads((Path(__file__).parent / "quality.json").read_text())
    save_figure(sensitivity_figure(quality), IMAGES / "sensitivity.png", 90, overwrite=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ls.write_phantoms(folder, cases=1, seed=10, shape=(320, 320, 64))
        ct, truth = folder / "volume-0.nii.gz", folder / "segmentation-0.nii.gz"
        prediction = ls.Predictor().predict(ct)
        print(prediction)
        mask = ls.MaskVolume.load(truth)
        figure = ls.montage(prediction.volume, prediction.canonical_labels, mask, count=8)
        save_figure(figure, IMAGES / "montage.png", 90, overwrite=True)
        page = folder / "report.html"
        ls.report(ct, page, explanations=False)
        if shutil.which("chromedriver"):
            screenshot(page, IMAGES / "report.png")


def screenshot(page: Path, target: Path) -> None:
    """Save what a browser window of 1280 x 900 pixels shows once all of the page's pictures are there."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--use-angle=swiftshader")  # the 3-D view without a GPU
    options.add_argument("--enable-unsafe-swiftshader")
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as driver:
        size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        WebDriverWait(driver, 60).until(lambda _: driver.execute_script("return document.body.dataset.complete"))
        driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        driver.save_screenshot(target)


def sources_sha256(notebook) -> str:
    """Digest of a notebook's code: stored beside its outputs, it tells whether they are of the code as it is."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def store_outputs() -> None:
    """Run the notebook in an empty folder, with this copy of the library, and keep what its cells show."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, 4)
    os.environ["PYTHONPATH"] = str(Path(ls.__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}, record_timing=False
        ).execute()
    for cell in notebook.cells:
        # without TensorFlow's log, and the views that need a running kernel
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not _is_widget(o)]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["sources_sha256"] = sources_sha256(notebook)
    nbformat.write(notebook, NOTEBOOK)


def _is_widget(output) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


if __name__ == "__main__":
    store_outputs() if sys.argv[1:] == ["notebook"] else main()
