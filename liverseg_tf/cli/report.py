"""`liverseg report`: one page about a CT."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_model, add_output, add_overwrite, add_series, ct_of
from liverseg_tf.explanation.options import DEFAULT_METHOD, METHODS
from liverseg_tf.reporting.options import ReportOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "report",
        help="write one self-contained page about a CT",
        description="Segment a CT and write one HTML page about it: slices in any CT window, overlays of mask, truth, "
        "heatmap and uncertainty, a list of lesions, figures. The page opens from disk and needs no network.",
    )
    parser.add_argument("input", metavar="INPUT", help="a CT: NIfTI, NRRD, MetaImage, or DICOM (folder, file, .zip)")
    add_series(parser)
    add_output(parser, "FILE.html", "page to write", ".html", ".htm")
    add_model(parser)
    parser.add_argument("--truth", metavar="SEG", help="reference mask: adds scores and an overlay")
    parser.add_argument("--title", help="heading (default: the file's name)")
    parser.add_argument("--no-heatmaps", action="store_true", help="leave out the heatmaps: faster")
    parser.add_argument(
        "--method",
        choices=METHODS,
        metavar="NAME",
        help=f"method of the heatmaps: {', '.join(METHODS)} (default: {DEFAULT_METHOD})",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="segment 8 varied copies too (test-time augmentation) and add the entropy as an overlay (takes about 8 "
        "times as long)",
    )
    parser.add_argument(
        "--most-lesions",
        type=int,
        default=ReportOptions.most_lesions,
        metavar="N",
        help="number of lesions with a heatmap, the largest first (default: %(default)s)",
    )
    parser.add_argument(
        "--safe-colors",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use colours that colour-blind readers can distinguish (default: yes)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="add a resection tool to the page: volume of the remnant, margins of the lesions (not for planning "
        "treatment)",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.cli.quiet import load_nibabel_quickly
    from liverseg_tf.native_memory import keep_few_arenas

    keep_few_arenas()
    load_nibabel_quickly()
    from liverseg_tf.reporting.report import report
    from liverseg_tf.strict_json import to_json

    with progress_bar(stages=True) as bar:
        page = report(
            ct_of(args),
            args.output,
            args.model,
            args.truth,
            title=args.title,
            explanations=not args.no_heatmaps,
            uncertainty=args.uncertainty,
            method=args.method or DEFAULT_METHOD,
            most_lesions=args.most_lesions,
            safe_colors=args.safe_colors,
            plan=args.plan,
            overwrite=args.overwrite,
            progress=bar.show("report"),
        )
    size = page.stat().st_size
    print(to_json({"page": str(page), "bytes": size}) if args.json else f"{page}  ({size / 1e6:.1f} MB)")
    return 0
