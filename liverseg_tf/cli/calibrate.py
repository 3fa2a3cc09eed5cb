"""`liverseg calibrate`: prediction intervals from a site's own labelled cases."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_classes, add_json, add_model, add_output, add_overwrite, classes_of


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="estimate the errors of volumes from your own cases",
        description="From 20 to 100 labelled cases of your own that were not used in training, compute prediction "
        "intervals of liver and tumour volume with a given coverage, the probability that a finding is a lesion, and "
        "an order in which to review cases. 'predict --calibration FILE' uses them. CTS are segmented, unless "
        "--predictions names the masks.",
    )
    parser.add_argument("masks", metavar="MASKS", help="folder of your reference masks")
    parser.add_argument("cts", nargs="?", metavar="CTS", help="folder of their CTs")
    parser.add_argument("--predictions", metavar="DIR", help="masks that the model predicted, with its manifest.jsonl")
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.9,
        metavar="C",
        help="coverage of the intervals, 0.5 to below 1 (default: 0.9)",
    )
    add_output(parser, "FILE", "JSON file to write", ".json")
    add_model(parser)
    add_classes(parser)
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate."""
    from liverseg_tf.calibration.calibrate import calibrate
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.wording import counted

    with progress_bar() as bar:
        found = calibrate(
            args.masks,
            args.cts,
            predictions=args.predictions,
            model=args.model,
            coverage=args.coverage,
            classes=classes_of(args),
            output=args.output,
            overwrite=args.overwrite,
            progress=bar.show("calibrate"),
        )
    if args.json:
        print(to_json(found.to_dict()))
        return 0
    quality = found.quality
    promised = f"{100 * found.liver.coverage:.0f} % promised"
    print(
        f"{args.output}: {counted(found.case_count, 'case')}, {counted(found.lesion_count, 'predicted lesion')}; "
        "each tested with a calibration by the others:"
    )
    for name in ("liver", "tumour")[: 1 if found.classes.lesion is None else 2]:
        inside, width = getattr(quality, f"{name}_coverage"), getattr(quality, f"{name}_width")
        print(
            f"  {found.classes.words(name)} volume in its interval: {100 * inside:.0f} % ({promised}), "
            f"ends {width:.2f} times apart"
        )
    if quality.lesion_brier is None:
        print("  lesions: too few to separate true from false findings")
    else:
        print(f"  lesions: Brier score {quality.lesion_brier:.3f} ({quality.lesion_brier_of_mean:.3f} by their mean)")
    print(f"  the fifth to review first has {100 * quality.error_in_first_fifth:.0f} % of all error (chance: 20 %)")
    return 0
