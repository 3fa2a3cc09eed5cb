"""`liverseg send`: DICOM objects to an archive."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "send",
        help="send DICOM objects to an archive (DICOMweb)",
        description="Send the DICOM objects that liverseg wrote to a DICOMweb archive, and check that it lists them. "
        "Credentials come from ~/.netrc or, as a token, from LIVERSEG_DICOMWEB_TOKEN; certificates are verified.",
    )
    parser.add_argument("paths", nargs="+", metavar="OUT", help="files, or output folders of predict")
    parser.add_argument("--to", required=True, metavar="URL", help="DICOMweb service: https://host/dicom-web")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send, and print what the archive lists."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.data.dicom.web import send_objects
    from liverseg_tf.strict_json import to_json

    with progress_bar() as bar:
        task = bar.add_task("objects", total=None)
        rows = send_objects(args.paths, args.to, lambda done, total: bar.update(task, completed=done, total=total))
    if args.json:
        print(to_json({"sent": rows}))
    else:
        for row in rows:
            print(f"{row['file']}  ({row['modality']}, {row['instance']})")
    return 0
