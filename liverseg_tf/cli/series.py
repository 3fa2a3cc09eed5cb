"""`liverseg series`: lists the CT series in folders."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "series",
        help="list the DICOM series in folders",
        description="Read the headers of all DICOM files in folders or zip archives and list their series: which can "
        "be segmented, and why the others can't. Patients' names and dates are not shown. Exit status 1 if no series "
        "is usable.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="folders, searched recursively; files; .zip archives"
    )
    parser.add_argument("--max-bytes", type=int, metavar="N", help="limit of an archive's expanded size in bytes")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List them; an error if none is usable."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.data.dicom.series import find_series, why_nothing
    from liverseg_tf.errors import InputFileError
    from liverseg_tf.strict_json import to_json

    with progress_bar() as bar:
        task = bar.add_task("files", total=None)
        found = [
            find_series(folder, args.max_bytes, lambda count: bar.update(task, completed=count))
            for folder in args.folders
        ]
    if args.json:
        content = {
            "series": [series.to_dict() for one in found for series in one.series],
            "broken": [
                {"file": str(file.path), "member": file.member, "reason": reason}
                for one in found
                for file, reason in one.broken
            ],
            "other_files": sum(one.other_files for one in found),
        }
        print(to_json(content))
    else:
        _print(found)
    if not any(one.usable for one in found):
        raise InputFileError("; ".join(f"{one.path}: {why_nothing(one)}" for one in found))
    return 0


def _print(found: list) -> None:
    from liverseg_tf.wording import counted

    for row in (series.to_dict() for one in found for series in one.series):
        number = f"series {row['number']}" if row["number"] is not None else "series"
        print(f"{number}: {row['description'] or row['modality'] or 'no description'}")
        if row["spacing_mm"]:
            spacing = " x ".join(f"{s:.3g}" for s in row["spacing_mm"])
            said = [f"{counted(row['slices'], 'slice')} of {row['rows']} x {row['columns']}", f"{spacing} mm"]
            said += [f"kernel {row['kernel']}"] if row["kernel"] else []
            said += [row["phase"]] if row["phase"] else []
            said += [f"tilted by {row['tilt_degrees']:g} degrees"] if row["tilt_degrees"] else []
            print(f"  {', '.join(said)}")
        print(f"  {row['series'] or 'without UID'} in {row['folder']}")
        print(f"  {'usable' if row['usable'] else 'not used: ' + row['reason']}")
    for one in found:
        for file, reason in one.broken:
            print(f"{file.name}: {reason}")
    others = sum(one.other_files for one in found)
    if others:
        print(counted(others, "other file"))
