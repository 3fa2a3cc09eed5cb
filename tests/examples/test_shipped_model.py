"""What the shipped models' tables and front matter say."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "shipped_model"
SCORES = {
    "liver_dice": [0.95, 0.94, 0.96],
    "tumour_dice": [0.4126, 0.1, 0.7],
    "tumour_dice_patient": [0.5, 0.3, 0.6],
    "tumour_precision": [0.6, 0.5, 0.7],
    "tumour_recall": [0.3, 0.2, 0.4],
    "false_tumour_per_free_slice": [12.34, 1.0, 30.0],
    "false_tumour_per_negative": [0.0, 0.0, 0.0],
}
QUALITY = {
    "fold": 0,
    "slices": 155,
    "patients": 37,
    "models": {"net": {"scores": SCORES, "sensitivity": {"0.5": [[1, 18], [6, 26], [9, 13]]}}},
}
CASES = [
    {"case": "44", "liver_dice": 0.96, "lesion_dice": 0.75, "liver_assd_mm": 1.3, "liver_hd95_mm": 5.0},
    {"case": "203", "liver_dice": 0.97, "lesion_dice": 0.0, "liver_assd_mm": 1.2, "liver_hd95_mm": None},
]
for case, truth, found in zip(CASES, (164.3, 0.0), (106.12, 0.8), strict=True):
    case |= {"lesion_volume_truth_ml": truth, "lesion_volume_prediction_ml": found}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in ("tables", "ship"):
        sys.modules.pop(name, None)


def test_tables_hold_scores_with_their_intervals(module):
    tables = module("tables")
    header, _, row = tables.score_table(QUALITY).splitlines()
    assert header.startswith("| model | liver Dice | tumour Dice | mean per patient | precision | recall |")
    assert row.startswith("| net | 0.950 (0.940 to 0.960) | 0.413 (0.100 to 0.700) |")
    assert row.endswith("| 12.3 (1.0 to 30.0) | 0.0 (0.0 to 0.0) |")
    assert tables.sensitivity_table(QUALITY).splitlines()[2] == "| net | 0.5 | 1 of 18 | 6 of 26 | 9 of 13 |"
    assert tables.score_table(QUALITY, []).count("\n") == 2
    rows = tables.case_table(CASES).splitlines()[2:]
    assert rows == [
        "| 44 | 0.960 | 0.750 | 1.300 | 5.000 | 164.3 / 106.1 |",
        "| 203 | 0.970 | - | 1.200 | - | 0.0 / 0.8 |",
    ]


def test_front_matter_has_no_tumour_dice_where_there_is_no_tumour(module):
    text = module("ship").front_matter("net", QUALITY, SCORES, CASES)
    fields = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in text.splitlines())}
    assert fields["license"] == "cc-by-sa-4.0"
    (index,) = fields["model-index"]
    found = [[(m["name"], m["value"]) for m in result["metrics"]] for result in index["results"]]
    assert found == [[("liver", 0.95), ("tumour", 0.413)], [("liver", 0.96), ("tumour", 0.75)], [("liver", 0.97)]]
    assert "155 slices of 37 patients" in index["results"][0]["dataset"]["name"]
