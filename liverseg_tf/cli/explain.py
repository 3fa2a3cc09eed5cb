"""`liverseg explain`: Seg-Grad-CAM of a volume's lesions."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_output, add_overwrite, add_seed


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "explain",
        help="show what made the network see a lesion",
        description="Seg-Grad-CAM: for each lesion a heatmap (NIfTI in the input's grid), a figure (PNG), and how much "
        "the map means: deletion and insertion curves against random regions, and rank correlation with randomised "
        "networks (explanation.json).",
    )
    parser.add_argument("input", metavar="INPUT", help="NIfTI file of a CT")
    add_output(parser, "DIR", "folder to write to; made if missing", folder=True)
    parser.add_argument("--model", metavar="M", help="run folder or .keras file (default: shipped)")
    parser.add_argument(
        "--target",
        choices=("tumour", "all-tumour", "liver"),
        default="tumour",
        help="each lesion by itself, all together, or the liver (default: tumour)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--lesion", type=int, metavar="K", help="only this lesion; 1 is the largest")
    which.add_argument("--point", type=_point, metavar="X,Y,Z", help="around this voxel of the file, counted from 0")
    parser.add_argument("--radius", type=float, default=10.0, metavar="MM", help="of --point (default: 10)")
    parser.add_argument("--mask", metavar="SEG", help="take the regions from this mask, not from the prediction")
    parser.add_argument(
        "--method",
        choices=("gradcam", "gradcam++", "layercam", "scorecam"),
        default="gradcam",
        help="scorecam needs no gradients and much more time (default: gradcam)",
    )
    parser.add_argument(
        "--layer", default="bottleneck", help="bottleneck, decoder0 (coarse) to decoder4 (fine), or a layer's name"
    )
    parser.add_argument("--most-lesions", type=int, default=20, metavar="N", help="the largest ones (default: 20)")
    parser.add_argument(
        "--no-tests",
        action="store_true",
        help="skip the tests that say which map to trust: faster",
    )
    add_seed(parser, "of the tests' random maps")
    parser.add_argument("--safe-colors", action="store_true", help="color-blind-safe colors in figures")
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain, write, and print what the maps mean."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.explanation.explain import explain
    from liverseg_tf.strict_json import to_json

    with progress_bar(stages=True) as bar:
        explanation = explain(
            args.input,
            args.output,
            args.model,
            args.target,
            args.lesion,
            args.point,
            mask=args.mask,
            method=args.method,
            layer=args.layer,
            radius_mm=args.radius,
            faithfulness=not args.no_tests,
            most_lesions=args.most_lesions,
            seed=args.seed,
            overwrite=args.overwrite,
            safe_colors=args.safe_colors,
            progress=bar.show("explain"),
        )
    if args.json:
        print(to_json(explanation.to_dict()))
        return 0
    rows = explanation.to_dict()["regions"]
    for row in rows:
        print(f"{args.output}/{row['region']}.png  {_in_words(row)}")
    little = sum(bool(row["means_little"]) for row in rows)
    if little and args.layer == "bottleneck":
        print(f"{little} of {len(rows)} maps mean little; another stage may hold up: --layer decoder3, for one")
    if explanation.left_out:
        print(f"{explanation.left_out} smaller lesions were left out (--most-lesions)")
    return 0


def _in_words(row: dict) -> str:
    curves = row["deletion_insertion"]
    if curves is None:
        return "not tested"
    return (
        f"{'means little: ' if row['means_little'] else ''}deletion {curves['deletion_area']:.3f} "
        f"(random {curves['deletion_area_random_mean']:.3f}), insertion {curves['insertion_area']:.3f} "
        f"(random {curves['insertion_area_random_mean']:.3f}), rank correlation with randomised networks "
        f"{row['randomized_rank_correlation']:.2f}"
    )


def _point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers X,Y,Z, got {text!r}") from None
    return x, y, z
