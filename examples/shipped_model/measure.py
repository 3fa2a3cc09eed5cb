"""Predict whole labelled CTs and score them; writes a table in Markdown.

python measure.py RUN/model.keras FOLDER_OF_CASES [FOLDER_OF_CASES ...] -o whole.md
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import liverseg_tf as ls
from liverseg_tf.files import write_text


def measure(model: Path, cases: list[ls.Case], folder: Path) -> str:
    """Predict and score the cases; a table in Markdown."""
    predictor = ls.Predictor(model)
    lines = ["| case | liver Dice | tumour Dice | liver ASSD mm | liver HD95 mm | tumour ml, true / found | seconds |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        for name in ("truth", "prediction"):
            (folder / name / str(case.id)).mkdir(parents=True)
        shutil.copy(case.segmentation, folder / "truth" / str(case.id))
        start = time.perf_counter()
        prediction = predictor.predict(case.volume)
        prediction.save(folder / "prediction" / str(case.id) / f"segmentation-{case.id}.nii.gz")
        seconds = time.perf_counter() - start
        scores = ls.evaluate(folder / "truth" / str(case.id), folder / "prediction" / str(case.id))
        row = scores.to_dict()["cases"][0]
        cells = [row["liver_dice"], row["lesion_dice"], row["liver_assd_mm"], row["liver_hd95_mm"]]
        cells = ["-" if c is None else f"{c:.3f}" for c in cells]
        volumes = f"{row['lesion_volume_truth_ml']:.1f} / {row['lesion_volume_prediction_ml']:.1f}"
        lines.append(f"| {case.id} | {' | '.join(cells)} | {volumes} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help=".keras file or SavedModel")
    parser.add_argument("cases", nargs="+", help="folders of labelled CTs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_text(args.output, measure(args.model, ls.find_cases(*args.cases), Path(temporary)))


if __name__ == "__main__":
    main()
