"""`liverseg explain`: heatmaps of a volume's lesions, and their verdicts."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_output, add_overwrite, add_seed, add_series, ct_of
from liverseg_tf.explanation.options import DEFAULT_METHOD, METHODS, ExplainOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "explain",
        help="show what made the network see a lesion",
        description="Write for each lesion a heatmap of its largest slice (NIfTI in the input's grid), a figure (PNG), "
        "and a verdict (explanation.json). A map is supported if it beats 95 % of 20 random maps over the body on "
        "deletion and insertion, differs from maps of randomised networks, and has most of its heat within the liver.",
    )
    parser.add_argument("input", metavar="INPUT", help="a CT: NIfTI, NRRD, MetaImage, or DICOM (folder, file, .zip)")
    add_series(parser)
    add_output(parser, "DIR", "folder to write to; made if missing", folder=True)
    parser.add_argument(
        "--model",
        metavar="M",
        help="model to use: run folder, .keras file, or a shipped model's name (default: shipped)",
    )
    _add_regions(parser)
    _add_method(parser)
    parser.add_argument(
        "--safe-colors",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use colours that colour-blind readers can distinguish (default: yes)",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _add_regions(parser: argparse.ArgumentParser) -> None:
    regions = parser.add_argument_group("what to explain")
    regions.add_argument(
        "--target",
        metavar="CLASS",
        help="what to explain: tumour (each lesion separately), all-tumour (all lesions together), liver, or a class "
        "of another model (default: tumour)",
    )
    which = regions.add_mutually_exclusive_group()
    which.add_argument("--lesion", type=int, metavar="K", help="explain only this lesion; 1 is the largest")
    which.add_argument(
        "--point", type=_point, metavar="X,Y,Z", help="explain the region around this voxel of the file, from 0"
    )
    regions.add_argument(
        "--radius",
        type=float,
        default=ExplainOptions.radius_mm,
        metavar="MM",
        help="radius of the region of --point in mm (default: %(default)g)",
    )
    regions.add_argument("--mask", metavar="SEG", help="explain regions of this mask instead of the prediction")
    regions.add_argument(
        "--most-lesions",
        type=int,
        default=ExplainOptions.most_lesions,
        metavar="N",
        help="number of lesions to explain, the largest first (default: %(default)s)",
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    method = parser.add_argument_group("how to explain it")
    method.add_argument(
        "--method",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help=f"method of the heatmaps: {', '.join(METHODS)}; scorecam takes much longer (default: {DEFAULT_METHOD})",
        metavar="NAME",
    )
    method.add_argument(
        "--layer",
        default=ExplainOptions.layer,
        help="layer of the CAMs: bottleneck, decoder0 (coarse) to decoder4 (fine), or a layer's name (default: "
        "bottleneck)",
    )
    method.add_argument(
        "--all-slices", action="store_true", help="make maps of all slices of a lesion, not only of the tested one"
    )
    method.add_argument("--no-tests", action="store_true", help="don't test the maps: faster, and without a verdict")
    add_seed(method, "seed of the tests' random maps")


def run(args: argparse.Namespace) -> int:
    """Explain, write, and print what the maps mean."""
    from liverseg_tf.native_memory import keep_few_arenas

    keep_few_arenas()
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.explanation.explain import CAN_SHOW, explain
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.wording import counted

    with progress_bar(stages=True) as bar:
        explanation = explain(
            ct_of(args),
            args.output,
            args.model,
            args.target,
            args.lesion,
            args.point,
            mask=args.mask,
            method=args.method,
            layer=args.layer,
            all_slices=args.all_slices,
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
    for one in explanation.regions:
        print(f"{args.output}/{one.region.name}.png  {one.words}")
    if explanation.regions:
        print(CAN_SHOW)
    if explanation.left_out:
        left = counted(explanation.left_out, "smaller lesion was", "smaller lesions were")
        print(f"{left} left out (--most-lesions)")
    return 0


def _point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers X,Y,Z, got {text!r}") from None
    return x, y, z
