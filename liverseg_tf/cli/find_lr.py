"""`liverseg find-lr`: a learning-rate range test."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_folders, add_json, add_output, add_overwrite, add_seed, add_training_input


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "find-lr",
        help="find a learning rate",
        description="Raise the learning rate step by step, watch the loss, and suggest the rate at which it falls "
        "fastest. Writes learning_rate.png and learning_rate.json to RUN.",
    )
    add_folders(parser)
    add_output(parser, "RUN", "folder to write to", folder=True)
    add_training_input(parser)
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="number of batches (default: 100)")
    add_seed(parser, "seed of weights and order")
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the test, write curve and figure, print the suggestion."""
    from dataclasses import asdict, replace
    from pathlib import Path

    from liverseg_tf.cli.progress import console, progress_bar
    from liverseg_tf.data.cases import find_cases, with_masks
    from liverseg_tf.drawing import save_figure
    from liverseg_tf.ownership import claim, write_text
    from liverseg_tf.reporting.figures import learning_rate_figure
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.training.find_learning_rate import find_learning_rate
    from liverseg_tf.training.recipes import get_recipe

    changes = {k: getattr(args, k) for k in ("image_size", "batch_size", "backbone", "encoder_weights")}
    recipe = replace(get_recipe(args.recipe), **{k: v for k, v in changes.items() if v is not None})
    cases = with_masks(find_cases(*args.folders))
    output = Path(args.output)
    table, figure = output / "learning_rate.json", output / "learning_rate.png"
    claim(table, "learning rates", overwrite=args.overwrite)
    claim(figure, "figure", overwrite=args.overwrite)
    with progress_bar(stages=True) as bar:
        task = bar.add_task("range test", total=args.steps)
        curve = find_learning_rate(
            cases, recipe, steps=args.steps, seed=args.seed, on_step=lambda step: bar.advance(task)
        )  # fmt: skip
    text = to_json(asdict(curve), indent=2) + "\n"
    write_text(table, text, "learning rates", overwrite=args.overwrite)
    picture = learning_rate_figure(curve.rates, curve.losses, curve.suggestion)
    save_figure(picture, figure, overwrite=args.overwrite)
    if args.json:
        print(to_json({"suggestion": curve.suggestion, "output": str(output)}))
    else:
        print(f"suggested learning rate {curve.suggestion:.2g}; curve in {output / 'learning_rate.png'}")
    if curve.still_falling:
        console().print(
            f"The loss still falls at the highest rate tried, {curve.rates[-1]:.2g}: doubt the suggestion, or repeat "
            "with more --steps.",
            markup=False,
        )
    return 0
