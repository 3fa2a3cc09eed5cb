"""Make the documentation's pictures: CT phantoms alone, segmented by the shipped model.

python docs/figures.py
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import liverseg_tf as ls
from liverseg_tf.drawing import save_figure

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Write docs/images/montage.png, and report.png where chromium is installed."""
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
        browser = shutil.which("chromium") or shutil.which("chrome")
        if browser:
            shot = IMAGES / "report.png"
            command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,900"]
            command += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # the 3-D view without a GPU
            command += ["--virtual-time-budget=8000", f"--screenshot={shot}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
