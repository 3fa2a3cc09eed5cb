"""`liverseg benchmark`: time and memory of each runtime on this machine."""

from __future__ import annotations

import argparse

from liverseg_tf.cli.options import add_json, add_model


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "benchmark",
        help="measure time and memory of each runtime on this machine",
        description="Segment a CT with every runtime of a model, each in a separate process, and print milliseconds "
        "per slice, seconds of the whole command and its peak memory. The default runtime comes first. Close other "
        "programs before.",
    )
    parser.add_argument("ct", nargs="?", metavar="CT", help="CT to segment (default: a phantom of 512 x 512 x 60)")
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from dataclasses import asdict

    from liverseg_tf.cli.progress import progress_bar
    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.inference.benchmark import benchmark
    from liverseg_tf.inference.threads import usable_threads
    from liverseg_tf.strict_json import to_json

    with progress_bar() as bar:
        found = benchmark(args.ct, args.model, progress=bar.show("benchmark"))
    threads = usable_threads()
    if args.json:
        print(to_json({"threads": threads, "runtimes": [asdict(one) for one in found]}))
        return 0
    rows = [
        (
            one.runtime + (" (default)" if one.is_default else ""),
            f"{one.milliseconds_a_slice:.1f}",
            f"{one.command_s:.1f}",
            "-" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
        )
        for one in found
    ]
    caption = f"{threads} threads may run at a time"
    print_table(("runtime", "ms a slice", "whole command s", "peak MB"), rows, names=("runtime",), caption=caption)
    return 0
