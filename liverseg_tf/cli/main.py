"""The command `liverseg`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings

from liverseg_tf import __version__
from liverseg_tf.cli.options import as_flags, flags_of
from liverseg_tf.cli.quiet import load_tensorflow_quietly
from liverseg_tf.errors import LiverSegError, LiverSegWarning, require

COMMANDS = (
    "demo",
    "phantom",
    "verify",
    "slices",
    "train",
    "find_lr",
    "series",
    "fetch",
    "predict",
    "send",
    "evaluate",
    "measure",
    "compare",
    "calibrate",
    "summarize",
    "explain",
    "report",
    "export",
    "benchmark",
    "info",
)


_WITH_TENSORFLOW = {"demo", "train", "find-lr", "explain", "export", "slices"}


class Parser(argparse.ArgumentParser):
    """A parser that answers an unknown option with the usage of the command, not of `liverseg`."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


class _PrintCompletion(argparse.Action):
    """`--print-completion`: print the script with which a shell completes commands and options."""

    def __call__(self, parser, namespace, values, option_string=None):
        shtab = require("shtab", "completion", "shell completion")
        print(shtab.complete(parser, shell=values))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="liverseg",
        description="Liver and liver tumours in CT: train, segment, score, serve, explain. Not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"liverseg_tf {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print the shell's completion script (extra [completion])",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"liverseg_tf.cli.{name}").add_parser(subparsers)
    for command in subparsers.choices.values():
        command.set_defaults(parser=command)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 failed with a one-line error, 2 wrong usage.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
    """
    # before TensorFlow is imported: its C++ part writes dozens of lines to stderr
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GLOG_minloglevel", "3")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may have characters outside the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", LiverSegWarning)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # --debug may be anywhere on the line
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    flags: dict[str, str] = {}
    try:
        parser = build_parser()
        if not arguments:
            # no command, possibly an empty variable in a script: wrong usage, not success
            parser.print_help(sys.stderr)
            return 2
        args = parser.parse_args(arguments)
        args.flags = flags = flags_of(args.parser)
        needs_tensorflow = args.command in _WITH_TENSORFLOW or getattr(args, "devices", False)
        if needs_tensorflow and not debug:
            load_tensorflow_quietly(start_devices=getattr(args, "strategy", None) != "multiworker")
        return args.run(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except LiverSegError as error:
        return _fail(error, debug, flags)
    except KeyboardInterrupt as stop:
        if not debug:
            sys.excepthook = _print_stop
        # Python cleans up and then ends as killed by SIGINT: status 130 in a shell, and a loop in a script stops too
        raise stop.with_traceback(None) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _fail(LiverSegError(f"error of the operating system: {error or type(error).__name__}"), debug, flags)


def _fail(error: Exception, debug: bool, flags: dict[str, str]) -> int:
    if debug:
        raise error
    print(f"liverseg: error: {as_flags(' '.join(str(error).split()), flags)}", file=sys.stderr)
    return 1


def _print_stop(kind, error, traceback) -> None:
    print(": ".join(["liverseg: stopped", *map(str, error.args)]), file=sys.stderr)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"liverseg: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
