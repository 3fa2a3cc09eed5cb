"""`liverseg info`: versions, shipped models, classes, windows."""

from __future__ import annotations

import argparse
from typing import Any

from liverseg_tf.cli.options import add_json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="versions, shipped models, classes and windows",
        description="Versions, shipped models, classes and CT windows.",
    )
    parser.add_argument("--devices", action="store_true", help="load TensorFlow and list its devices")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from rich.text import Text

    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.inference.choice import choose
    from liverseg_tf.labels import CLASSES
    from liverseg_tf.provenance import versions
    from liverseg_tf.shipped import DEFAULT_MODEL, SECOND_LOOK_MODEL, shipped_models
    from liverseg_tf.strict_json import to_json
    from liverseg_tf.windows import WINDOWS, window_bounds

    packages = versions()
    models = {name: str(path) for name, path in shipped_models().items()}
    runs = {name: choose(path) for name, path in shipped_models().items()}
    found = {
        "versions": packages,
        "models": models,
        "runtimes": {name: {"runtime": choice.runtime, "reason": choice.reason} for name, choice in runs.items()},
        "classes": [{"index": c.index, "name": c.name, "color": c.color, "meaning": c.meaning} for c in CLASSES],
        "windows": {name: {"width": w, "level": level} for name, (w, level) in WINDOWS.items()},
    }
    devices: list[dict[str, Any]] = []
    if args.devices:
        import tensorflow as tf

        found["devices"] = devices = [
            {"name": d.name, "type": d.device_type, **tf.config.experimental.get_device_details(d)}
            for d in tf.config.list_physical_devices()
        ]
    if args.json:
        print(to_json(found, default=str))
        return 0
    rows = [(name, version or "not installed") for name, version in packages.items()]
    print_table(("package", "version"), rows, names=("package", "version"))
    listed = ", ".join(f"{name} ({path})" for name, path in models.items())
    print(f"Shipped models: {listed or 'none in this installation'}")
    for name, choice in runs.items():
        print(f"{name} runs here as {choice.runtime}: {choice.reason}")
    if {DEFAULT_MODEL, SECOND_LOOK_MODEL} <= runs.keys():
        print(f"{SECOND_LOOK_MODEL} must confirm each tumour that {DEFAULT_MODEL} finds (predict --second-look)")
    columns = ("class", "name", "color", "meaning")
    classes = [
        (str(c.index), c.name, Text("    ", f"on rgb({','.join(map(str, c.color))})"), c.meaning) for c in CLASSES
    ]
    print_table(columns, classes, names=columns[1:3], sentences=columns[3:])
    windows = [
        (name, str(width), str(level), "{} to {}".format(*window_bounds(name)))
        for name, (width, level) in WINDOWS.items()
    ]
    print_table(("window", "width", "level", "HU shown"), windows, names=("window",))
    for device in devices:
        print(f"device {device['name']} ({device['type']})")
    return 0
