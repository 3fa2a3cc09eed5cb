"""Pages of the site that are made, not written: commands from their parsers, the Python reference from the stub."""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "liverseg_tf" / "__init__.pyi"
# File at the top of the repository -> page.
COPIES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "savedmodels/liverseg-resnet34/model_card.md": "model_card.md",
    "savedmodels/liverseg-lite0/model_card.md": "model_card_lite0.md",
}


def on_files(files: Files, config) -> Files:
    """Add the made pages to those that were written."""
    pages = {"reference/commands.md": commands_page(), "reference/python.md": python_page()}
    for source, page in COPIES.items():
        pages[page] = (
            (ROOT / source).read_text("utf-8").replace("](docs/", "](").replace("](CHANGELOG.md)", "](changes.md)")
        )
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands_page() -> str:
    """Every command with its own help text."""
    from liverseg_tf.cli.main import build_parser

    parser = build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    text = ["# Commands", "", parser.description or "", ""]
    for name, command in subparsers.choices.items():
        text += [f"## liverseg {name}", "", html.escape(command.description or ""), ""]
        for group in command._action_groups:
            rows = [_row(action) for action in group._group_actions if action.help != argparse.SUPPRESS]
            if rows:
                text += [f"| {_TITLES.get(group.title, group.title)} | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(text)


# argparse's own titles of its first two groups
_TITLES = {"positional arguments": "argument", "options": "option"}


def _row(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    value = " ".join(value) if isinstance(value, tuple) else value
    names = [f"`{name}`" for name in action.option_strings] or [f"`{value}`"]
    takes = f" `{value}`" if action.option_strings and action.nargs != 0 else ""
    help_text = (action.help or "") % {**vars(action), "prog": "liverseg"} if action.help else ""
    cells = f"{', '.join(names)}{takes}".replace("|", "\\|"), html.escape(help_text).replace("|", "\\|")
    return f"| {cells[0]} | {cells[1]} |"


def python_page() -> str:
    """The public names, room by room."""
    text = ["# Python", "", "`import liverseg_tf as ls`; every name below is `ls.NAME`, loaded on first use.", ""]
    text += [
        "The examples are tested. They run after `from liverseg_tf import *` and `import numpy as np`, in a folder "
        "with `LiTS` (two small phantoms), `run` (an untrained model), `study` (a phantom as a DICOM series) and "
        "`site` (twenty masks, in `references`, and predictions of them).",
        "",
    ]
    room = None
    for module, name in re.findall(r"^from \.([\w.]+) import (\w+) as", STUB.read_text("utf-8"), re.M):
        if module.split(".")[0] != room:
            room = module.split(".")[0]
            text += [f"## {room}", ""]
        text += [f"::: liverseg_tf.{module}.{name}", ""]
    return "\n".join(text)
