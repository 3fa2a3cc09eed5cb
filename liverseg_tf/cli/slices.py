"""`liverseg slices`: a data set as pictures, in the original project's format."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_classes, add_folders, add_json, add_output, add_patients, classes_of
from liverseg_tf.data.picture_formats import IMAGE_FORMATS


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "slices",
        help="write slices as pictures",
        description="Write slices of CTs with masks as JPG or PNG of three channels (liver window, custom window, "
        "histogram) and masks as PNG, in the format of the original project. Training does not need them.",
    )
    add_folders(parser)
    add_output(parser, "OUT", "folder to write", folder=True)
    parser.add_argument(
        "--format", choices=IMAGE_FORMATS, default=IMAGE_FORMATS[0], help="format of the channels (default: jpg)"
    )
    parser.add_argument("--quality", type=int, default=90, metavar="Q", help="JPG quality, 1 to 100 (default: 90)")
    parser.add_argument(
        "--every-volume", type=int, default=3, metavar="N", help="every n-th volume by name (default: 3)"
    )
    parser.add_argument("--every-slice", type=int, default=2, metavar="N", help="every n-th slice (default: 2)")
    add_classes(parser, "classes of another organ's masks")
    add_patients(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the pictures; returns the exit status."""
    import time

    from liverseg_tf.cli.progress import console, progress_bar
    from liverseg_tf.data.cases import find_cases
    from liverseg_tf.data.image_folder import write_image_folder
    from liverseg_tf.data.slice_options import SliceSelection
    from liverseg_tf.labels import LIVER_CLASSES
    from liverseg_tf.strict_json import to_json

    start = time.perf_counter()
    cases = find_cases(*args.folders, patients=args.patients)
    selection = SliceSelection(args.every_volume, args.every_slice, order="name")
    with progress_bar() as bar:
        slices = write_image_folder(
            cases,
            args.output,
            format=args.format,
            quality=args.quality,
            selection=selection,
            classes=classes_of(args) or LIVER_CLASSES,
            progress=bar.show("slices"),
        )
    seconds = time.perf_counter() - start
    volumes = len({item.case for item in slices})
    if args.json:
        summary = {"folder": args.output, "volumes": volumes, "slices": len(slices), "seconds": round(seconds, 2)}
        print(to_json(summary))
    else:
        from liverseg_tf.wording import counted

        done = f"{counted(len(slices), 'slice')} of {counted(volumes, 'volume')}"
        console().print(f"{done} in {args.output} ({seconds:.1f} s)", markup=False)
    return 0
