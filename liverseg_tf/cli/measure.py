"""`liverseg measure`: volumes, diameters and HU of masks, and what makes them doubtful."""

from __future__ import annotations

import argparse
from pathlib import Path

from liverseg_tf.cli.options import add_classes, add_json, add_overwrite, add_series, classes_of, ct_of, output_name


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "measure",
        help="measure masks: volumes, long and short axes, HU, and what makes them doubtful",
        description="Measure any mask of liver (1) and lesions (2), from any source: volumes, tumour burden, and for "
        "each lesion long and short axis (RECIST 1.1), shape, depth and position; HU too if the CT is given. Doubtful "
        "values are flagged, such as the volume of a liver that the field of view cuts. Files of two folders are "
        "paired by case number or name.",
    )
    parser.add_argument("mask", metavar="MASK", help="mask (NIfTI, NRRD, MetaImage, DICOM SEG), or folder of masks")
    parser.add_argument("ct", nargs="?", metavar="CT", help="its CT (a DICOM folder too), or folder of CTs, for HU")
    add_series(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=output_name(".json", ".csv"),
        metavar="FILE",
        help=".json: everything; .csv: a row per case, and FILE_lesions.csv with a row per lesion",
    )
    add_classes(parser)
    parser.add_argument(
        "--radiomics",
        action="store_true",
        help="also first-order and shape radiomics of each lesion, by IBSI's names (extra [radiomics], Python 3.12)",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 if a mask of a folder could not be read."""
    from liverseg_tf.cli.progress import console, progress_bar
    from liverseg_tf.errors import ConfigError, LiverSegError
    from liverseg_tf.evaluation.measure import find_masks, measure, measurement_tables
    from liverseg_tf.evaluation.radiomics import load_radiomics
    from liverseg_tf.ownership import claim, write_text
    from liverseg_tf.strict_json import to_json

    if args.ct is None and (args.series or args.allow_gaps):
        raise ConfigError("--series and --allow-gaps say which CT is meant: expected CT beside MASK, got none")
    if args.radiomics:
        load_radiomics()
    pairs = find_masks(args.mask, args.ct)
    inputs = [path for pair in pairs for path in (pair.mask, pair.ct) if path is not None]
    outputs = [Path(args.output)] if args.output else []
    if args.output and args.output.lower().endswith(".csv"):
        outputs.append(outputs[0].with_name(f"{outputs[0].stem}_lesions.csv"))
    for path in outputs:
        claim(path, "measurements", inputs=inputs, overwrite=args.overwrite)
    measured, failed = [], {}
    with progress_bar() as bar:
        report = bar.show("measure")
        for done, (mask, ct, series) in enumerate(pairs):
            report(done, len(pairs), mask.name)
            try:
                classes = classes_of(args)
                volume = None if ct is None else ct_of(args, ct, series)
                measured.append(measure(mask, volume, classes=classes, radiomics=args.radiomics))
            except LiverSegError as error:
                if len(pairs) == 1:
                    raise
                failed[str(mask)] = str(error)
                console().print(f"error: {error}", markup=False, soft_wrap=True)
    content = {
        "measurements": [one.to_dict() for one in measured],
        "errors": [{"mask": mask, "error": error} for mask, error in failed.items()],
        "note": "Not a medical device: for research only.",
    }
    texts = [to_json(content, indent=1) + "\n"] if len(outputs) == 1 else measurement_tables(measured)
    for path, text in zip(outputs, texts, strict=False):
        write_text(path, text, "measurements", inputs=inputs, overwrite=args.overwrite)
    if args.json:
        print(to_json(content))
    else:
        _print(measured)
    return 1 if failed else 0


def _print(measured: list) -> None:
    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.labels import ClassSet

    at_least = {True: "> ", False: ""}
    classes = measured[0].statistics.classes if measured else ClassSet()
    named, further = classes.named, [c.name for c in classes.further]
    print_table(
        (
            "case",
            f"{named('liver')} ml",
            f"{named('tumour')} ml",
            *(f"{name} ml" for name in further),
            "lesions",
            "doubts",
        ),
        [
            (
                one.case,
                f"{at_least[one.volume_is_lower_bound]}{one.statistics.liver_volume_ml:.0f}",
                f"{one.statistics.tumour_volume_ml:.1f}",
                *(f"{one.statistics.further_volumes_ml.get(name, 0):.1f}" for name in further),
                str(one.statistics.lesion_count),
                "; ".join(one.to_dict()["flags"].values()),
            )
            for one in measured
        ],
        names=("case",),
        sentences=("doubts",),
    )
    lesions = [(one.case, lesion) for one in measured for lesion in one.lesions]
    if not lesions:
        return
    print_table(
        ("case", "lesion", "ml", "long mm", "short mm", "3-D mm", "round", "deep mm", "HU", "contrast"),
        [
            (
                case,
                str(lesion.statistics.number),
                f"{lesion.statistics.volume_ml:.2f}",
                f"{lesion.axes.long_axis_mm:.1f}",
                f"{lesion.axes.short_axis_mm:.1f}",
                f"{lesion.axes.largest_diameter_mm:.1f}",
                "" if lesion.sphericity is None else f"{lesion.sphericity:.2f}",
                f"{lesion.distance_to_surface_mm:.1f}",
                "" if lesion.hu is None else f"{lesion.hu['mean']:.0f}",
                "" if lesion.contrast_hu is None else f"{lesion.contrast_hu:+.0f}",
            )
            for case, lesion in lesions
        ],
        names=("case",),
        caption=named(
            "round: sphericity, 1 for a ball; deep: distance to the liver's surface; contrast: to liver within 10 mm"
        ),
    )
