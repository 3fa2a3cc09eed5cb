"""`liverseg fetch`: a study from an archive."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "fetch",
        help="copy CT series from an archive (DICOMweb)",
        description="Copy a study's CT series from a DICOMweb archive into a folder. Credentials come "
        "from ~/.netrc or, as a bearer token, from LIVERSEG_DICOMWEB_TOKEN; certificates are verified.",
    )
    parser.add_argument("study", metavar="STUDY", help="StudyInstanceUID")
    parser.add_argument(
        "--from", required=True, dest="source", metavar="URL", help="DICOMweb service: https://host/dicom-web"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder to write to; each series becomes a folder in it"
    )
    parser.add_argument("--series", metavar="UID", help="SeriesInstanceUID (default: all series of modality CT)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch and print the folders."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.data.dicom.web import fetch_series
    from liverseg_tf.strict_json import to_json

    with progress_bar() as bar:
        task = bar.add_task("images", total=None)
        folders = fetch_series(
            args.source, args.study, args.output, args.series, lambda done: bar.update(task, completed=done)
        )
    if args.json:
        print(to_json({"folders": [str(folder) for folder in folders]}))
    else:
        for folder in folders:
            print(folder)
    return 0
