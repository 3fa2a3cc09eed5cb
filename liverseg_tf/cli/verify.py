"""`liverseg verify`: checks a data set."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_classes, add_json, add_max_bytes, add_patients, classes_of


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "verify",
        help="check a data set",
        description="Read every volume and mask of a data set completely and report errors and doubts: NIfTI, NRRD, "
        "MetaImage, and DICOM series with their SEGs. Errors: unusable files, DICOM series with missing or differing "
        "slices, two files with one number, mismatched shapes or affines, invalid mask values. Warnings: spacing, "
        "orientation, a tilted gantry, the contrast phase, intensities that are not HU, padding, tumours outside the "
        "liver, duplicate volumes under different numbers. Exit status 1 if there are errors, else 0.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="INPUT",
        help="folders of volumes and masks, searched recursively; single files, and .zip archives of DICOM",
    )
    add_classes(parser)
    add_patients(parser)
    add_max_bytes(parser)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="number of cases read at a time (default: one per CPU)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify and print the findings."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.data.verify import verify
    from liverseg_tf.strict_json import to_json

    with progress_bar() as bar:
        found = verify(
            *args.folders,
            patients=args.patients,
            max_bytes=args.max_bytes,
            threads=args.threads,
            progress=bar.show("verify"),
            classes=classes_of(args),
        )
    if args.json:
        print(to_json(found.to_dict()))
    else:
        _print(found)
    return 1 if found.errors else 0


def _print(found) -> None:
    from collections import Counter
    from pathlib import Path

    from rich.text import Text

    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.wording import counted

    if found.findings:
        rows = []
        for finding in found.findings:
            style = "red" if finding.severity == "error" else "yellow"
            case = "" if finding.case is None else str(finding.case)
            name = Path(finding.path).name if finding.path else ""
            message = finding.message.removeprefix(f"{finding.path}: ")
            rows.append((Text(finding.severity, style), case, finding.kind, name, message))
        columns = ("severity", "case", "about", "file", "finding")
        print_table(columns, rows, names=("severity", "about", "file"), sentences=("finding",))
    masks = sum(row["segmentation"] is not None for row in found.cases)
    orientations = Counter(row["orientation"] for row in found.cases if "orientation" in row)
    stored = ", ".join(f"{code} {count}" for code, count in orientations.most_common())
    print(
        f"{counted(len(found.cases), 'case')} of {counted(found.patients, 'patient')}, {masks} with a mask; "
        f"stored as {stored or 'nothing'}"
    )
    print(f"{counted(len(found.errors), 'error')}, {counted(len(found.warnings), 'warning')}")
