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
from liverseg_tf.training.options import SPLITS, STRATEGIES, TRAINING_PRECISIONS, TrainingOptions


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a U-Net on labelled CTs",
        description="Train a U-Net on labelled CTs, volume-<i> and segmentation-<i> in any number of folders, and keep "
        "the best epoch. RUN gets the model, the settings, the split by patient, the history and its curves.",
    )
    add_folders(parser)
    add_output(parser, "RUN", "folder to write; made if missing", folder=True)
    parser.add_argument("--resume", action="store_true", help="continue a stopped run; a larger --epochs extends it")
    parser.add_argument("--summary", action="store_true", help="print the network's layers")
    parser.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard (extra [tensorboard])")
    add_json(parser)
    _add_data(parser.add_argument_group("data"))
    network = parser.add_argument_group("network and recipe")
    add_training_input(network)
    network.add_argument(
        "--from",
        dest="from_model",
        metavar="MODEL",
        help="start from this model's weights: run folder, .keras file, or 'shipped'",
    )
    network.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs after the phase with a frozen encoder (default: the recipe's: 20, or 5 with --recipe report)",
    )
    network.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="batches per epoch (default: all slices once)"
    )
    add_seed(network, "seed of all random numbers")
    _add_devices(parser.add_argument_group("speed, several GPUs, several machines"))
    parser.set_defaults(run=run)


def _add_data(group: argparse._ActionsContainer) -> None:
    add_classes(group, "classes of another organ's masks")
    add_patients(group)
    group.add_argument(
        "--validation-fraction",
        type=float,
        default=TrainingOptions.validation_fraction,
        metavar="F",
        help="share of the patients to validate on (default: %(default)s)",
    )
    group.add_argument(
        "--split",
        choices=SPLITS,
        default=TrainingOptions.split,
        help="what is divided into training and validation; slices, as in the original, makes scores look better than "
        "they are (default: %(default)s)",
    )
    group.add_argument(
        "--folds", type=int, metavar="K", help="cross-validate: train K models, each validated on one fold of patients"
    )


def _add_devices(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--xla",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile with XLA (default: where it is faster)",
    )
    group.add_argument(
        "--precision",
        choices=TRAINING_PRECISIONS,
        help="number format of the computation (default: mixed_float16 on a GPU with tensor cores, bfloat16 on a CPU "
        "with bfloat16 instructions, else float32)",
    )
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=STRATEGIES[0],
        help="one: one device; mirrored: all GPUs; multiworker: all hosts of TF_CONFIG, where this command is started "
        "on each (default: %(default)s)",
    )
    group.add_argument(
        "--data-shards",
        type=int,
        metavar="N",
        help="divide the training patients into N shards; each batch takes as many slices from each (default: one "
        "per worker)",
    )
    group.add_argument(
        "--data-service", metavar="grpc://HOST:PORT", help="take batches from the tf.data service with this dispatcher"
    )


def run(args: argparse.Namespace) -> int:
    """Train and print the best epoch."""
    from liverseg_tf.cli.progress import console
    from liverseg_tf.cli.training_progress import TrainingProgress
    from liverseg_tf.data.cases import find_cases
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.training.strategies import create_strategy, worker_index
    from liverseg_tf.training.train import dice_in_words, train
    from liverseg_tf.wording import counted

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
