"""`liverseg phantom`: CT phantoms in LiTS layout."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_overwrite, add_seed, output_name


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "phantom",
        help="make CT phantoms in LiTS layout",
        description="Make CT phantoms of the abdomen with exact masks: volume-<i>.nii.gz and segmentation-<i>.nii.gz, "
        "or the CTs as DICOM series in folders volume-<i>.",
    )
    parser.add_argument(
        "folder", type=output_name(folder=True), metavar="DIR", help="folder to write to; made if missing"
    )
    parser.add_argument("--cases", type=int, default=10, metavar="N", help="number of patients (default: %(default)s)")
    add_seed(parser, "seed of all patients")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(128, 128, 40),
        metavar=("ROWS", "COLUMNS", "SLICES"),
        help="voxels of each volume (default: 128 128 40)",
    )
    parser.add_argument(
        "--format",
        choices=("nifti", "dicom"),
        default="nifti",
        help="format of the CTs; masks are NIfTI (default: nifti)",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the phantoms; returns the exit status."""
    import time
    from pathlib import Path

    from liverseg_tf.cli.progress import console, progress_bar
    from liverseg_tf.data.phantom import write_phantoms
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.wording import counted

    start = time.perf_counter()
    with progress_bar() as bar:
        cases = write_phantoms(
            args.folder,
            args.cases,
            args.seed,
            tuple(args.shape),
            bar.show("phantoms"),
            args.overwrite,
            args.format == "dicom",
        )
    seconds = time.perf_counter() - start
    if args.json:
        print(to_json({"folder": str(Path(args.folder)), "seconds": round(seconds, 2), "cases": cases}))
    else:
        tumours = sum(len(case["tumours"]) for case in cases)
        console().print(
            f"{counted(len(cases), 'phantom')} with {counted(tumours, 'tumour')} in {args.folder} ({seconds:.1f} s)",
            markup=False,
        )
    return 0
