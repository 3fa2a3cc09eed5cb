"""`liverseg export`: export to artefacts that take raw HU."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_output, add_overwrite
from liverseg_tf.exporting.formats import EXPORT_PRECISIONS, FORMATS


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="export a model as a SavedModel or a TFLite file",
        description="Export a trained model as an artefact that takes raw HU and returns labels: a SavedModel for "
        "TensorFlow Serving (DIR/<next version>/), or a TFLite file of builtin operators with a JSON file beside it.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, .keras file, or a shipped model's name ('shipped' for the default one)",
    )
    add_output(parser, "DIR", "folder to write to, or a .tflite file", ".tflite", folder=True)
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="format of the artefact (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=EXPORT_PRECISIONS,
        default=EXPORT_PRECISIONS[0],
        help="number format of the weights: float16 halves the file; int8, for TFLite only, quarters it (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        help="folder of cases with tumours, for the value ranges of int8 (default: phantoms)",
    )
    parser.add_argument(
        "--check",
        nargs="?",
        const=True,
        default=False,
        metavar="CASES",
        help="compare the masks with the Keras model's, on phantoms or on the cases of a folder; exit status 1 if they "
        "differ too much",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export; returns 1 if a check fails."""
    from liverseg_tf.cli.progress import console, progress_bar
    from liverseg_tf.exporting.export import export
    from liverseg_tf.strict_json import to_json

    out = console()
    model = args.model
    with progress_bar(stages=True) as bar:
        task = bar.add_task("exporting", total=None)
        exported = export(
            model,
            args.output,
            args.format,
            args.precision,
            args.calibration,
            args.check,
            progress=lambda step: bar.update(task, description=step),
            overwrite=args.overwrite,
        )
    if exported.warmup is False:
        out.print(
            "without warm-up requests for TensorFlow Serving: they need pip install 'liverseg_tf[serving]'",
            markup=False,
        )
    parity = exported.parity
    if args.json:
        print(
            to_json(
                {
                    "path": str(exported.path),
                    "manifest": str(exported.manifest),
                    "megabytes": exported.megabytes,
                    "warmup": exported.warmup,
                    "parity": parity.to_dict() if parity else None,
                }
            )
        )
    else:
        print(f"{exported.path}  ({exported.megabytes:.1f} MB)")
        if parity:
            _print_parity(parity)
    for failure in parity.failures if parity else ():
        out.print(f"error: {failure}", markup=False, soft_wrap=True)
    return 1 if parity and parity.failures else 0


def _print_parity(parity) -> None:
    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.wording import counted

    def shown(dice: dict) -> str:
        return " / ".join("-" if value is None else f"{value:.4f}" for value in dice.values())

    classes = "/".join(parity.rows[0].dice)
    columns = (
        "runtime",
        "size",
        "voxels as Keras",
        f"Dice to Keras\n{classes}",
        f"Dice to truth\n{classes}",
        "largest\nprob. diff.",
        "ms/slice",
        "MB",
        "peak MB",
    )
    rows = [
        (
            row.runtime,
            row.size,
            f"{row.agreement:.4%}",
            shown(row.dice),
            shown(row.dice_truth),
            f"{row.largest_difference:.1e}",
            f"{row.milliseconds_a_slice:.1f}",
            f"{row.megabytes:.1f}",
            "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        )
        for row in parity.rows
    ]
    print_table(columns, rows, names=("runtime",), caption=f"{counted(parity.rows[0].slices, 'slice')} of each size")
