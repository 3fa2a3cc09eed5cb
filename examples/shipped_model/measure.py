"""Predict every slice of labelled CTs, and score the masks; writes the scores as JSON and prints them as a table.

python measure.py RUN/model.keras FOLDER_OF_CASES [FOLDER_OF_CASES ...] -o whole.json
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from tables import case_table

import liverseg_tf as ls
from liverseg_tf.files import write_text

KEYS = (
    "liver_dice",
    "lesion_dice",
    "liver_assd_mm",
    "liver_hd95_mm",
    "lesion_volume_truth_ml",
    "lesion_volume_prediction_ml",
)


def measure(model: Path, cases: list[ls.Case], folder: Path) -> list[dict]:
    """Predict the cases, masks kept in a folder, and score them."""
    predictor, rows = ls.Predictor(model, extent=False), []
    for case in cases:
        for name in ("truth", "prediction"):
            (folder / name / str(case.id)).mkdir(parents=True)
        shutil.copy(case.segmentation, folder / "truth" / str(case.id))
        prediction = predictor.predict(case.volume)
        prediction.save(folder / "prediction" / str(case.id) / f"segmentation-{case.id}.nii.gz")
        scores = ls.evaluate(folder / "truth" / str(case.id), folder / "prediction" / str(case.id))
        row = scores.to_dict()["cases"][0]
        rows.append({"case": str(case.id)} | {key: row[key] for key in KEYS})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help=".keras file or SavedModel")
    parser.add_argument("cases", nargs="+", help="folders of labelled CTs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(args.model, ls.find_cases(*args.cases), Path(temporary))
    write_text(args.output, json.dumps(rows, indent=1) + "\n")
    print(case_table(rows))


if __name__ == "__main__":
    main()
