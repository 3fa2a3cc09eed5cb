"""`liverseg compare`: follow-up of one patient."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.cli.options import add_classes, add_json, add_model, add_output, add_overwrite, classes_of
from liverseg_tf.data.dicom.formats import PRODUCTS, parse_formats

if TYPE_CHECKING:
    from liverseg_tf.followup.compare import Comparison


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="follow lesions over scans of one patient",
        description="Register the later CTs of a patient to the first, link their lesions, and write the changes to "
        "DIR as JSON, CSV and a page. Masks are taken from --masks, or predicted. If BEFORE and AFTER are masks (DICOM "
        "SEG too), they are registered by the liver's shape. Needs the extra [compare].",
    )
    parser.add_argument("before", metavar="BEFORE", help="the first CT, or mask")
    parser.add_argument("after", nargs="+", metavar="AFTER", help="the later CTs or masks, in order of time")
    add_output(parser, "DIR", "folder to write", folder=True)
    parser.add_argument(
        "--masks", nargs="+", metavar="M", help="masks of the CTs, in the same order (default: segment the CTs)"
    )
    parser.add_argument(
        "--days", nargs="+", type=float, metavar="D", help="day of each scan, for the growth curve (default: none)"
    )
    parser.add_argument(
        "--format",
        metavar="F,...",
        help=f"also write DICOM objects of each scan: {', '.join(PRODUCTS)} (sr needs seg); a lesion has one tracking "
        "UID in all scans; the CTs must be DICOM series (default: none)",
    )
    add_model(parser)
    add_classes(parser)
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.followup.compare import JSON_NAME, LESIONS_NAME, PAGE_NAME, SCANS_NAME, compare, object_paths
    from liverseg_tf.ownership import claim
    from liverseg_tf.strict_json import to_json

    inputs = [args.before, *args.after, *(args.masks or ())]
    for name in (JSON_NAME, LESIONS_NAME, SCANS_NAME, PAGE_NAME):
        claim(Path(args.output) / name, "comparison", inputs=inputs, overwrite=args.overwrite)
    formats = parse_formats(args.format, tuple(PRODUCTS)) if args.format else ()
    for number in range(1, len(args.after) + 2):
        for format, path in object_paths(args.output, number, formats).items():
            claim(path, PRODUCTS[format][1], inputs=inputs, overwrite=args.overwrite)
    with progress_bar(stages=True) as bar:
        found = compare(
            args.before,
            *args.after,
            masks=args.masks,
            days=args.days,
            model=args.model,
            classes=classes_of(args),
            progress=bar.show("compare"),
        )
        objects = []
        if formats:
            objects = found.save_objects(args.output, formats, inputs=inputs, overwrite=args.overwrite)
        written = found.save(args.output, inputs=inputs, overwrite=args.overwrite) + objects
    if args.json:
        print(to_json(found.to_dict() | {"files": [str(path) for path in written]}))
    else:
        _print_scans(found)
        _print_lesions(found)
        for path in written:
            print(path)
    return 0


def _print_scans(found: Comparison) -> None:
    from liverseg_tf.cli.tables import print_table

    named = found.classes.words
    print_table(
        (
            "scan",
            "name",
            "day",
            f"{named('liver')} ml",
            f"{named('tumour')} ml",
            "sum mm",
            "response",
            "why",
            "residual mm",
        ),
        [
            (
                str(number),
                scan.name,
                "" if scan.day is None else f"{scan.day:g}",
                f"{scan.measurement.statistics.liver_volume_ml:.0f}",
                f"{scan.measurement.statistics.tumour_volume_ml:.1f}",
                _fixed(response.sum_mm, 1),
                response.category or "",
                response.reason,
                "" if scan.registration is None else f"{scan.registration.residual_mm:.1f}",
            )
            for number, (scan, response) in enumerate(zip(found.scans, found.responses, strict=True), start=1)
        ],
        names=("name", "response"),
        sentences=("why",),
        caption="sum: long axes of at most two targets of 10 mm or more; this is RECIST's arithmetic, not a reading by "
        "a radiologist",
    )


def _print_lesions(found: Comparison) -> None:
    from liverseg_tf.cli.tables import print_table

    rows = []
    for lesion in found.lesions:
        for number, row in enumerate(lesion.to_dict()["sightings"], start=1):
            if row["event"] == "absent":
                continue
            rows.append(
                (
                    f"{lesion.id}{'*' if lesion.is_target else ''}",
                    str(number),
                    row["event"] if row["merged_into"] is None else f"merged into {row['merged_into']}",
                    _fixed(row["volume_ml"], 2),
                    _change(row),
                    _fixed(row["long_axis_mm"], 1),
                    _fixed(row["short_axis_mm"], 1),
                    _fixed(row["confidence"], 2),
                )
            )
    if rows:
        print_table(
            ("lesion", "scan", "what", "ml", "change", "long mm", "short mm", "sure"),
            rows,
            names=("what",),
            caption="*: target; ±: change that voxels alone can make (95 %), a smaller change is in brackets; sure: "
            "share of repetitions with the same link when lesions are shifted by the registration's residual",
        )


def _change(row: dict[str, Any]) -> str:
    """Change of volume since the previous scan; in brackets if voxels alone can make it."""
    change, limit = row["volume_change_from_previous"], row["volume_change_limit_from_previous"]
    if change is None:
        return ""
    digits = 0 if limit and limit >= 0.01 else 1
    text = f"{100 * change:+.0f}{f' ± {100 * limit:.{digits}f}' if limit else ''} %"
    return f"({text})" if row["volume_trend_from_previous"] == "within limit" else text


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
