"""Make the documentation's pictures: CT phantoms alone, segmented by the shipped model, and curves of stored figures.

python docs/figures.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import liverseg_tf as ls
from liverseg_tf.drawing import new_figure, save_figure

IMAGES = Path(__file__).parent / "images"


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
    """Write docs/images/sensitivity.png, montage.png, and report.png where chromium is installed."""
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
        browser = shutil.which("chromium") or shutil.which("chrome")
        if browser:
            shot = IMAGES / "report.png"
            command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,900"]
            command += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # the 3-D view without a GPU
            command += ["--virtual-time-budget=8000", f"--screenshot={shot}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
