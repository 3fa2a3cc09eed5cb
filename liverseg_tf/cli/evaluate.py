"""`liverseg evaluate`: LiTS scores and others from two folders of masks."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_classes, add_overwrite, add_seed, classes_of, output_name


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score predicted masks with the LiTS challenge's metrics and others",
        description="Score predicted masks against reference masks. Masks are paired by case number: segmentation-7, "
        "liver_7, liver_7_seg and volume-7_seg are all case 7.",
    )
    parser.add_argument("--truth", required=True, metavar="DIR", help="folder of reference masks, or one file")
    parser.add_argument("--prediction", required=True, metavar="DIR", help="folder of predicted masks, or one file")
    parser.add_argument(
        "-o", "--output", type=output_name(".json"), metavar="FILE.json", help="write all scores and rows as JSON"
    )
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="print the same JSON instead of tables")
    more = parser.add_argument_group("more outputs")
    more.add_argument("--csv", type=output_name(".csv"), metavar="FILE.csv", help="write one row per case")
    more.add_argument("--csv-slices", type=output_name(".csv"), metavar="FILE.csv", help="write one row per slice")
    more.add_argument("--csv-lesions", type=output_name(".csv"), metavar="FILE.csv", help="write one row per lesion")
    more.add_argument(
        "--figure",
        type=output_name(".png", ".pdf", ".svg"),
        metavar="FILE",
        help="draw Dice, volumes and lesion detection (.png, .pdf, .svg)",
    )
    parser.add_argument(
        "--exclude-identity",
        action="store_true",
        help="exclude cases with an identity affine from means in mm and ml (LiTS scores keep them)",
    )
    add_classes(parser, "classes of predicted masks that don't hold their class names")
    intervals = parser.add_argument_group("confidence intervals (bootstrap)")
    intervals.add_argument(
        "--patients", metavar="FILE.csv", help="CSV with columns id,patient: resample patients, not cases"
    )
    intervals.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="number of resamples (default: 2000)"
    )
    add_seed(intervals, "seed of the resampling")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, write what was asked for, and print."""
    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.evaluation.evaluate import evaluate

    _check_outputs(args)
    with progress_bar() as bar:
        scores = evaluate(
            args.truth,
            args.prediction,
            patients=args.patients,
            exclude_identity=args.exclude_identity,
            classes=classes_of(args),
            resamples=args.resamples,
            seed=args.seed,
            progress=bar.show("evaluate"),
        )
    if args.output:
        scores.save_json(args.output, args.overwrite)
    for rows, path in (("cases", args.csv), ("slices", args.csv_slices), ("lesions", args.csv_lesions)):
        if path:
            scores.save_csv(path, rows, args.overwrite)
    if args.figure:
        scores.save_figure(args.figure, args.overwrite)
    if args.json:
        print(scores.to_json(), end="")
    else:
        _print(scores)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Check before scoring, which may take an hour, that the outputs may be written."""
    from liverseg_tf.ownership import claim

    inputs = [path for path in (args.truth, args.prediction, args.patients) if path]
    tables = ((table, "table") for table in (args.csv, args.csv_slices, args.csv_lesions))
    for path, kind in ((args.output, "scores"), *tables, (args.figure, "figure")):
        if path:
            claim(path, kind, inputs=inputs, overwrite=args.overwrite)


def _print(scores) -> None:
    _print_cases(scores)
    if scores.lits:
        _print_challenge(scores)
    _print_means(scores)
    if scores.detection:
        _print_detection(scores)
    _print_slices(scores)


def _print_cases(scores) -> None:
    from liverseg_tf.cli.tables import print_table

    organ = scores.regions[0]
    found = " found and false: lesions at overlap above 0.5." if scores.detection else ""
    counted = ("lesions_truth", "lesions_detected_overlap_above_0.5", "lesions_false_positive_overlap_above_0.5")
    marked = " * identity affine: mm and ml unreliable." if scores.settings["identity_affine_cases"] else ""
    print_table(
        (
            "case",
            *(f"{region}\n{name}" for region in scores.regions for name in ("Dice", "HD95")),
            *(("lesions", "found", "false") if scores.detection else ()),
            f"{organ}\nml",
        ),
        [
            (
                f"{row['case']}{' *' if row['identity_affine'] else ''}",
                *(
                    _figure(row[f"{region}_{name}"], digits)
                    for region in scores.regions
                    for name, digits in (("dice", 3), ("hd95_mm", 1))
                ),
                *(str(row[name]) for name in counted if scores.detection),
                _figure(row[f"{organ}_volume_prediction_ml"], 0),
            )
            for row in scores.cases
        ],
        title="Cases",
        caption=f"HD95 in mm.{found}{marked}",
    )


def _print_challenge(scores) -> None:
    from liverseg_tf.cli.tables import print_table

    print_table(
        ("score", "value", "95 % interval"),
        [(name, _figure(value), _interval(scores.lits_ci95[name])) for name, value in scores.lits.items()],
        names=("score",),
        title="LiTS scores",
        caption="95 % interval: bootstrap over patients",
    )


def _print_means(scores) -> None:
    from liverseg_tf.cli.tables import print_table

    measures = ("hd95_mm", "surface_dice_1mm", "surface_dice_2mm", "surface_dice_3mm", "volume_error_ml")
    beyond = [f"{region}_{name}" for region in scores.regions for name in measures]
    print_table(
        ("figure", "mean", "std", "95 % interval", "n", "missing"),
        [
            (
                name,
                *map(_figure, (row["mean"], row["std"])),
                _interval(row["ci95"]),
                *map(str, (row["n"], row["missing"])),
            )
            for name, row in ((name, scores.summary[name]) for name in beyond)
        ],
        names=("figure",),
        title="Beyond LiTS: mean over cases" if scores.lits else "Mean over cases",
        caption="missing: cases in which a mask is empty",
    )


def _print_slices(scores) -> None:
    from liverseg_tf.cli.tables import print_table

    print_table(
        (
            "slices with",
            "slices",
            *(f"{region}\n{loss} loss" for region in scores.organ_regions for loss in ("Dice", "IoU")),
        ),
        [
            (scenario.replace("_", " "), str(count), *map(_figure, losses))
            for scenario, (count, *losses) in ((name, row.values()) for name, row in scores.scenarios.items())
        ],
        names=("slices with",),
        title="Slices: mean loss",
    )


def _print_detection(scores) -> None:
    from liverseg_tf.cli.tables import print_table

    print_table(
        ("IoU", "size", "TP", "FN", "FP", "precision", "recall", "F1", "F1, 95 %"),
        [
            (
                overlap.replace("overlap_above_", "> "),
                size,
                *(str(row[name]) for name in ("true_positives", "false_negatives", "false_positives")),
                *(_figure(row[name]) for name in ("precision", "recall", "f1")),
                _interval(row["f1_ci95"], 2),
            )
            for overlap, sizes in scores.detection.items()
            for size, row in sizes.items()
        ],
        names=("size",),
        title="Lesion detection by size",
        caption="small < 10 mm, large > 20 mm equivalent diameter",
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(bounds: list[float] | None, digits: int = 3) -> str:
    return "-" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"
