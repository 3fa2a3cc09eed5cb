"""`liverseg train`: a U-Net from labelled CTs."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from liverseg_tf.cli.options import (
    add_classes,
    add_folders,
    add_json,
    add_output,
    add_patients,
    add_seed,
    add_training_input,
)
from liverseg_tf.training.options import PRECISIONS, SPLITS, STRATEGIES, TrainingOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a U-Net on labelled CTs",
        description="Train a U-Net on volume-<i> and segmentation-<i> in any number of folders, and keep the best "
        "epoch. Model, settings, split, history and curves are written to RUN.",
    )
    add_folders(parser)
    add_output(parser, "RUN", "folder to make", folder=True)
    add_training_input(parser)
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs after the frozen phase")
    parser.add_argument("--steps-per-epoch", type=int, metavar="N", help="batches per epoch (default: all slices)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=TrainingOptions.validation_fraction,
        metavar="F",
        help="share of the patients to validate on (default: %(default)s)",
    )
    add_classes(parser, "classes of another organ's masks")
    add_patients(parser)
    parser.add_argument(
        "--split", choices=SPLITS, default=TrainingOptions.split, help="slices: split by slices, as in the original"
    )
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validate over K folds of the patients")
    parser.add_argument(
        "--from", dest="from_model", metavar="MODEL", help="model to start from; 'shipped' for the shipped one"
    )
    add_seed(parser, "seed of all random numbers")
    parser.add_argument("--resume", action="store_true", help="continue a stopped run; a larger --epochs extends it")
    parser.add_argument(
        "--xla",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile with XLA (default: where it is faster)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default: mixed on a recent GPU, bfloat16 on a CPU with bfloat16 instructions",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=STRATEGIES[0],
        help="mirrored: all GPUs; multiworker: all hosts of TF_CONFIG, with this command started on each",
    )
    parser.add_argument(
        "--data-shards", type=int, metavar="N", help="patient-disjoint shards (default: one per worker)"
    )
    parser.add_argument("--data-service", metavar="grpc://HOST:PORT", help="dispatcher of a tf.data service")
    parser.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard (extra [tensorboard])")
    parser.add_argument("--summary", action="store_true", help="print the network's layers")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print the best epoch."""
    from liverseg_tf.cli.progress import console
    from liverseg_tf.cli.tables import counted
    from liverseg_tf.cli.training_progress import TrainingProgress
    from liverseg_tf.data.cases import find_cases
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.training.strategies import create_strategy, worker_index
    from liverseg_tf.training.train import dice_in_words, train

    out = console()
    cases = find_cases(*args.folders, patients=args.patients)
    labelled = [case for case in cases if case.segmentation is not None]
    if len(labelled) < len(cases):
        out.print(f"left out: {counted(len(cases) - len(labelled), 'volume')} without a mask", markup=False)
    if args.strategy == "multiworker":
        out.print("waiting for the other workers of TF_CONFIG; Ctrl-C stops", markup=False)
    strategy = create_strategy(args.strategy)
    worker, workers = worker_index(strategy)
    if worker > 0:
        out.print(f"worker {worker} of {workers}: worker 0 shows the progress and writes {args.output}", markup=False)
    progress = TrainingProgress(out, summary=args.summary)
    try:
        result = train(
            cases,
            args.output,
            args.recipe,
            options=replace(_options(args), strategy=strategy),
            callbacks=[progress] if worker == 0 else [],
        )
    except KeyboardInterrupt:
        progress.close()
        kept = f"the best epoch so far is kept in {args.output}" if progress.rows else "no epoch was complete"
        raise KeyboardInterrupt(f"{kept}; continue with --resume") from None
    finally:
        progress.close()
    best = result.best
    if worker > 0:
        return 0
    if args.json:
        print(to_json({"run": str(result.output), "best": best, "epochs": len(result.history)}))
    else:
        print(
            f"{result.output}: best epoch {best['epoch']} of {len(result.history)}: validation loss "
            f"{best['val_loss']:.4f}, Dice by case: {dice_in_words(best)}"
        )
    return 0


def _options(args: argparse.Namespace) -> TrainingOptions:
    """Those that the command has as flags of the same name."""
    given = {f.name: getattr(args, f.name) for f in fields(TrainingOptions) if hasattr(args, f.name)}
    return TrainingOptions(**given)
