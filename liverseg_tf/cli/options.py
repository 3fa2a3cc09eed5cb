"""Options that several commands share, each defined once."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from liverseg_tf.config import BACKBONES

if TYPE_CHECKING:
    from liverseg_tf.labels import ClassSet

# A name with such an ending is a file's; ".v2" and ".2024" may end a folder's name.
_FILE_SUFFIX = re.compile(r"\.(?!v\d)[a-z][a-z0-9]{1,7}$", re.IGNORECASE)


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The options of a command by the name of their argument: "max_bytes" is "--max-bytes"."""
    return {
        action.dest: min((flag for flag in action.option_strings if flag.startswith("--")), key=len)
        for action in parser._actions
        if any(flag.startswith("--") for flag in action.option_strings)
    }


def as_flags(message: str, flags: dict[str, str]) -> str:
    """Replace Python arguments in the library's messages by the command line's options.

    Args:
        message: a text with arguments as `name=value`, or `name=` for any value.
        flags: the result of `flags_of`; other arguments are not changed.

    Examples:
        >>> as_flags("try xla=False, precision='float32' or a smaller batch_size=", {"xla": "--xla"})
        "try --no-xla, precision='float32' or a smaller batch_size="
    """

    def flag(found: re.Match) -> str:
        name, value = found[1], found[2].strip("'")
        if name not in flags:
            return found[0]
        if value == "True":
            return flags[name]
        if value == "False":
            return "--no-" + flags[name].removeprefix("--")
        return f"{flags[name]} {value}".rstrip()

    return re.sub(r"\b([a-z]\w*)=((?:'[\w ]+'|[A-Z0-9]\w*)?)(?![\w'=])", flag, message)


def output_name(*suffixes: str, folder: bool = False) -> Callable[[str], str]:
    """A type for argparse: the name of a file that ends in one of `suffixes`, or, if `folder`, of a folder.

    A name that looks like a file's is refused as a folder, because the user expects a file of that format. An existing
    folder, or a name ending in "/", is accepted.

    Example:
        >>> output_name(".nii", ".nii.gz", folder=True)("masks")
        'masks'
    """
    expected = [f"a name ending in {' or '.join(suffixes)}"] if suffixes else []
    expected += ["a folder"] if folder else []

    def check(name: str) -> str:
        if suffixes and name.lower().endswith(suffixes):
            return name
        is_folder = name.endswith(("/", os.sep)) or os.path.isdir(name) or not _FILE_SUFFIX.search(name)
        if folder and is_folder:
            return name
        advice = f"; for a folder of that name write {name}/" if folder else ""
        raise argparse.ArgumentTypeError(f"{name}: expected {' or '.join(expected)}{advice}")

    return check


def add_output(parser: argparse.ArgumentParser, metavar: str, help: str, *suffixes: str, folder: bool = False) -> None:
    """`-o`; see `output_name`."""
    kind = output_name(*suffixes, folder=folder)
    parser.add_argument("-o", "--output", required=True, type=kind, metavar=metavar, help=help)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The folders of a data set."""
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders of volumes and masks, searched recursively")


def add_model(parser: argparse._ActionsContainer) -> None:
    """`--model`: whatever `Predictor` takes."""
    parser.add_argument(
        "--model",
        metavar="M",
        help="model to use: run folder, .keras file, SavedModel, .tflite file, or a shipped model's name (default: "
        "shipped)",
    )


def add_series(parser: argparse._ActionsContainer, default: str = "the only one that can be segmented") -> None:
    """`--series` and `--allow-gaps`: which DICOM series to read (else `default`), and whether gaps are accepted."""
    parser.add_argument(
        "--series",
        metavar="UID",
        help=f"SeriesInstanceUID of the DICOM series to read; 'liverseg series' lists them (default: {default})",
    )
    parser.add_argument(
        "--allow-gaps",
        action="store_true",
        help="accept a DICOM series with missing slices or uneven steps, and resample it",
    )


def ct_of(args: argparse.Namespace, path=None, series: str | None = None):
    """The CT (by default `INPUT`): its path, or its volume if a series or `--allow-gaps` was given."""
    path = args.input if path is None else path
    series = args.series or series
    if series is None and not args.allow_gaps:
        return path
    from liverseg_tf.data.volume import CTVolume

    return CTVolume.load(path, series=series, allow_gaps=args.allow_gaps)


def add_patients(parser: argparse._ActionsContainer) -> None:
    """`--patients`: the groups file."""
    parser.add_argument(
        "--patients", metavar="FILE.csv", help="CSV with columns id,patient that groups cases by patient"
    )


def add_training_input(parser: argparse._ActionsContainer) -> None:
    """Options by which `train` and `find-lr` change a recipe."""
    parser.add_argument(
        "--recipe",
        default="default",
        metavar="R",
        help="training settings: default, or report, the recipe of the original project's report (default: default)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="S",
        help="rows and columns of the network's input in pixels (default: the recipe's, 128)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="slices per step, over all devices (default: the recipe's, 16)"
    )
    parser.add_argument(
        "--backbone",
        choices=BACKBONES,
        metavar="NAME",
        help=f"encoder of the U-Net: {', '.join(BACKBONES)} (default: the recipe's, resnet34)",
    )
    parser.add_argument(
        "--encoder-weights",
        metavar="W",
        help="weights that the encoder starts from: imagenet, none (random weights), or a file (default: the recipe's: "
        "none, or imagenet with --recipe report)",
    )


def add_classes(
    parser: argparse._ActionsContainer, of: str = "classes of masks that don't hold their class names"
) -> None:
    """`--classes`: the classes of masks, if not liver and tumour; `classes_of` reads them."""
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="ORGAN[,LESION[,MORE]]",
        help=f"{of}, in order of their values from 1; write none in place of LESION for an organ without lesions "
        "(default: liver,tumour)",
    )


def classes_of(args: argparse.Namespace) -> ClassSet | None:
    """The classes of `--classes`; None if it is not given."""
    from liverseg_tf.labels import ClassSet

    return ClassSet.of(*args.classes) if args.classes else None


def _classes(text: str) -> tuple[str | None, ...]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, as kidney,kidney_tumour; got {text!r}")
    return tuple(None if index == 1 and name == "none" else name for index, name in enumerate(names))


def add_seed(parser: argparse._ActionsContainer, of: str) -> None:
    """`--seed`."""
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=f"{of} (default: 0)")


def add_max_bytes(parser: argparse._ActionsContainer) -> None:
    """`--max-bytes`."""
    parser.add_argument(
        "--max-bytes",
        type=int,
        metavar="N",
        help="memory limit of a volume in bytes (default: LIVERSEG_MAX_BYTES, else 8 GiB)",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """`--overwrite`."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files that liverseg did not write, or that were changed since; inputs are never replaced",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
