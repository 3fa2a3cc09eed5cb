"""`liverseg demo`: the whole workflow on CT phantoms, without data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from liverseg_tf.cli.options import add_json, add_seed, output_name

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from liverseg_tf.training.train import Run

# Chosen so that a network with random weights finds liver and tumours within five minutes on two cores: few patients
# of one phase, many small steps, most slices with tumours, some of them painted in.
_TRAINING_CASES, _TEST_CASES = 12, 3
_EPOCHS, _STEPS, _IMAGE_SIZE, _BACKBONE = 5, 36, 96, "resnet18"
_RECIPE: dict[str, Any] = {
    "batch_size": 8,
    "augmentation": False,
    "lesion_synthesis": True,
    "proportions": (0.6, 0.2, 0.2),
}
_PHASE, _LEAST_MM = "portal venous", 20.0


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="try the whole workflow on phantoms, without data",
        description="Make CT phantoms in LiTS layout, train a ResNet18 U-Net on some of the patients, segment the "
        "others, score the masks and draw them. Takes two to five minutes on two CPU cores.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_name(folder=True),
        default="liverseg-demo",
        metavar="DIR",
        help="folder (default: liverseg-demo)",
    )
    add_seed(parser, "seed of the patients and the training")
    parser.add_argument(
        "--epochs", type=int, default=_EPOCHS, metavar="N", help=f"epochs of training (default: {_EPOCHS})"
    )
    parser.add_argument("--explain", action="store_true", help="also explain the largest predicted tumour")
    parser.add_argument("--report", action="store_true", help="also write a report page")
    parser.add_argument("--export", action="store_true", help="also export for TensorFlow Serving and TFLite")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all stages and print a table of results and paths."""
    import time
    from pathlib import Path

    from liverseg_tf.cli.progress import console
    from liverseg_tf.errors import OutputError

    start = time.perf_counter()
    out = console()
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output}: expected no folder or an empty one, got one with files; name another with -o")

    def stage(title: str):
        out.print(f"[bold]{title}[/]")

    stage("1. CT phantoms in LiTS layout")
    _make_phantoms(args.seed, output)
    out.print(
        f"{_TRAINING_CASES + _TEST_CASES} patients in {output}: {_PHASE} CTs, "
        f"each with a tumour of {_LEAST_MM:.0f} mm or more that is darker than the liver",
        markup=False,
    )
    stage("2. Training a ResNet18 U-Net")
    result = _train(args, output, out)
    stage("3. Segmenting patients that were not in training")
    pairs = _predict(output, result.output)
    stage("4. Scores")
    from liverseg_tf.evaluation.evaluate import evaluate

    scores = evaluate(output / "test", output / "prediction")
    scores.save_json(output / "scores.json")

    stage("5. Pictures")
    _draw(output, pairs)
    extras = _extras(args, output, result.output, pairs[0])
    seconds = time.perf_counter() - start
    lits = scores.to_dict()["lits"]
    paths = {
        "phantoms": output / "training",
        "run (model, history, curves)": result.output,
        "masks": output / "prediction",
        "scores": output / "scores.json",
        "pictures": output / "pictures",
        **extras,
    }
    _print_summary(lits, seconds, paths, args.json)
    return 0


def _make_phantoms(seed: int, output: Path) -> None:
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.data.phantom import write_phantoms

    with progress_bar() as bar:
        for folder, count, own_seed in (("training", _TRAINING_CASES, 2 * seed), ("test", _TEST_CASES, 2 * seed + 1)):
            write_phantoms(output / folder, count, own_seed, progress=bar.show(folder), accept=_is_learnable)


def _is_learnable(description: dict[str, Any]) -> bool:
    """Whether a patient is like those that a dozen are enough to learn from."""
    dark = [t["diameter_mm"] for t in description["tumours"] if t["kind"] == "hypodense"]
    return description["phase"] == _PHASE and max(dark, default=0) >= _LEAST_MM


def _train(args: argparse.Namespace, output: Path, out: Console) -> Run:
    from dataclasses import replace

    from liverseg_tf.cli.training_progress import TrainingProgress
    from liverseg_tf.data.cases import find_cases
    from liverseg_tf.training.recipes import get_recipe
    from liverseg_tf.training.train import train

    recipe = replace(get_recipe("default"), image_size=_IMAGE_SIZE, backbone=_BACKBONE, epochs=args.epochs, **_RECIPE)
    return train(
        find_cases(output / "training"),
        output / "run",
        recipe,
        steps_per_epoch=_STEPS,
        validation_fraction=1 / 6,
        seed=args.seed,
        callbacks=[TrainingProgress(out)],
    )


def _predict(output: Path, model: Path) -> list[tuple[Path, Path]]:
    """Scan and mask of each patient."""
    from pathlib import Path

    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.cohorts.predict_folder import predict_folder

    with progress_bar() as bar:
        task = bar.add_task("volumes", total=_TEST_CASES)
        rows = predict_folder(output / "test", output / "prediction", model, on_done=lambda row: bar.advance(task))
    return [(Path(row["input"]), Path(row["output"])) for row in rows if row["status"] == "done"]


def _print_summary(lits: dict, seconds: float, paths: dict[str, Path], as_json: bool) -> None:
    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.strict_json import to_json

    summary = {
        "liver_dice_per_case": lits["liver_dice_per_case"],
        "tumour_dice_per_case": lits["lesion_dice_per_case"],
        "seconds": round(seconds, 1),
        "paths": {name: str(path) for name, path in paths.items()},
    }
    if as_json:
        print(to_json(summary))
        return
    results = {
        "liver Dice per case": f"{lits['liver_dice_per_case']:.3f}",
        "tumour Dice per case": f"{lits['lesion_dice_per_case']:.3f}",
        "seconds": f"{seconds:.0f}",
        **summary["paths"],
    }
    columns = ("result", "value")
    print_table(
        columns,
        list(results.items()),
        names=columns,
        title="Phantom patients that were not in training",
        caption="Phantoms and minutes of training: this shows how it works, not how good a model can be.",
    )


def _draw(output, pairs) -> None:
    from liverseg_tf.data.volume import CTVolume, MaskVolume
    from liverseg_tf.drawing import save_figure
    from liverseg_tf.reporting.montage import montage

    for scan, mask in pairs:
        truth = scan.with_name(mask.name)
        figure = montage(CTVolume.load(scan), MaskVolume.load(mask), MaskVolume.load(truth))
        save_figure(figure, output / "pictures" / mask.name.replace(".nii.gz", ".png"))


def _extras(args, output, model, pair) -> dict:
    """The optional stages."""
    scan, mask = pair
    made = {}
    if args.explain:
        from liverseg_tf.explanation.explain import explain

        explain(scan, output / "explanation", model=model, most_lesions=1)
        made["explanation"] = output / "explanation"
    if args.report:
        from liverseg_tf.reporting.report import report

        report(scan, output / "report.html", model=model, truth=scan.with_name(mask.name))
        made["report"] = output / "report.html"
    if args.export:
        from liverseg_tf.exporting.export import export
        from liverseg_tf.exporting.formats import FORMATS

        for format_ in FORMATS:
            export(model, output / "export" / "phantom-model", format=format_)
        made["exported models"] = output / "export"
    return made
