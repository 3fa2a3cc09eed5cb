"""`liverseg summarize`: a page about a cohort."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_classes, add_json, add_output, add_overwrite, classes_of


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "summarize",
        help="summarise a cohort on one page",
        description="Summarise the output folder of 'predict', or any folder of masks: FILE.html has distributions, "
        "outliers, flags, failed cases and links to reports, FILE.csv a row for each case.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of masks, with manifest.jsonl if 'predict' wrote it")
    add_output(parser, "FILE.html", "page to write; the CSV is written beside it", ".html", ".htm")
    parser.add_argument(
        "--flags", action="store_true", help="measure every mask, to find livers cut by the field of view"
    )
    add_classes(parser)
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Summarise; failed cases are results, not a failure of this command."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.cohorts.summarize import summarize
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.wording import counted, readable

    with progress_bar() as bar:
        found = summarize(
            args.folder,
            flags=args.flags,
            classes=classes_of(args),
            progress=bar.show("measure"),
        )
    page, table = found.save(args.output, overwrite=args.overwrite)
    content = found.to_dict()
    if args.json:
        print(to_json(content | {"files": [str(page), str(table)]}))
        return 0
    outliers = counted(content["outliers"], "outlier")
    print(f"{counted(content['cases'], 'case')}, {content['failed']} failed, {outliers}")
    for flag, count in content["flags"].items():
        print(f"  {readable(flag)}: {count}")
    print(page)
    print(table)
    return 0
