"""Tables in Markdown of what evaluate.py and measure.py wrote."""

from __future__ import annotations

COLUMNS = {
    "liver Dice": "liver_dice",
    "tumour Dice": "tumour_dice",
    "mean per patient": "tumour_dice_patient",
    "precision": "tumour_precision",
    "recall": "tumour_recall",
    "false pixels per tumour-free slice": "false_tumour_per_free_slice",
    "per slice without liver": "false_tumour_per_negative",
}
SIZES = ("5 to 10 mm", "10 to 20 mm", "above 20 mm")


def _row(cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"


def score_table(quality: dict, names: list[str] | None = None) -> str:
    """Each model's scores with their intervals; all models by default."""
    text = _row(["model", *COLUMNS]) + "| --- " * (len(COLUMNS) + 1) + "|\n"
    for name in quality["models"] if names is None else names:
        cells = []
        for key in COLUMNS.values():
            digits = 1 if key.startswith("false") else 3
            value, low, high = (f"{number:.{digits}f}" for number in quality["models"][name]["scores"][key])
            cells.append(f"{value} ({low} to {high})")
        text += _row([name, *cells])
    return text


def sensitivity_table(quality: dict, names: list[str] | None = None) -> str:
    """Lesions found by size, at given numbers of false lesions per patient."""
    text = _row(["model", "false lesions per patient", *SIZES]) + "| --- " * (len(SIZES) + 2) + "|\n"
    for name in quality["models"] if names is None else names:
        for allowed, found in quality["models"][name]["sensitivity"].items():
            text += _row([name, allowed, *(f"{a} of {b}" for a, b in found)])
    return text


def case_table(cases: list[dict]) -> str:
    """A row per whole CT."""
    text = _row(["case", "liver Dice", "tumour Dice", "liver ASSD mm", "liver HD95 mm", "tumour ml, true / found"])
    text += "| --- " * 6 + "|\n"
    for case in cases:
        tumour = case["lesion_dice"] if case["lesion_volume_truth_ml"] else None
        cells = [case["liver_dice"], tumour, case["liver_assd_mm"], case["liver_hd95_mm"]]
        cells = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        volumes = f"{case['lesion_volume_truth_ml']:.1f} / {case['lesion_volume_prediction_ml']:.1f}"
        text += _row([case["case"], *cells, volumes])
    return text
