"""`liverseg info`: versions, shipped models, classes, windows."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="versions, shipped models, classes and windows",
        description="Versions, shipped models, classes and CT windows.",
    )
    parser.add_argument("--devices", action="store_true", help="load TensorFlow and list what it computes on")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what there is."""
    import json

    from rich.console import Console
    from rich.table import Table

    from liverseg_tf.labels import CLASSES
    from liverseg_tf.provenance import versions
    from liverseg_tf.shipped import shipped_models
    from liverseg_tf.windows import WINDOWS, window_bounds

    found = {
        "versions": versions(),
        "models": {name: str(path) for name, path in shipped_models().items()},
        "classes": [{"index": c.index, "name": c.name, "color": c.color, "meaning": c.meaning} for c in CLASSES],
        "windows": {name: {"width": w, "level": level} for name, (w, level) in WINDOWS.items()},
    }
    if args.devices:
        import tensorflow as tf

        found["devices"] = [
            {"name": d.name, "type": d.device_type, **tf.config.experimental.get_device_details(d)}
            for d in tf.config.list_physical_devices()
        ]
    if args.json:
        print(json.dumps(found, default=str))
        return 0
    console = Console()
    table = Table("package", "version", box=None)
    for package, version in found["versions"].items():
        table.add_row(package, version or "not installed")
    console.print(table)
    models = ", ".join(f"{n} ({p})" for n, p in found["models"].items()) or "none in this installation"
    console.print(f"\nShipped models: {models}", soft_wrap=True)
    table = Table("class", "name", "color", "meaning", box=None)
    for c in CLASSES:
        table.add_row(str(c.index), c.name, f"[on rgb({','.join(map(str, c.color))})]    [/]", c.meaning)
    console.print(table)
    table = Table("window", "width", "level", "HU shown", box=None)
    for name, (width, level) in WINDOWS.items():
        low, high = window_bounds(name)
        table.add_row(name, str(width), str(level), f"{low} to {high}")
    console.print(table)
    for device in found.get("devices", []):
        console.print(f"device {device['name']} ({device['type']})")
    return 0
