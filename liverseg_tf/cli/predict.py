"""`liverseg predict`: masks of CT volumes."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING, Any

from liverseg_tf.cli.options import add_json, add_max_bytes, add_model, add_output, add_overwrite, add_series, as_flags
from liverseg_tf.data.dicom.formats import FORMATS, SEGMENTATION_TYPES
from liverseg_tf.errors import ConfigError
from liverseg_tf.inference.choice import ENGINES, RUNTIMES

if TYPE_CHECKING:
    from liverseg_tf.inference.jobs import Job


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "predict",
        help="segment CT volumes",
        description="Segment CT volumes. With one input, OUT may be a file that ends in .nii or .nii.gz. Otherwise OUT "
        "is a folder: volume-7.nii.gz gives segmentation-7.nii.gz, x.nii.gz gives x_seg.nii.gz, and manifest.jsonl "
        "gets a line for each volume. For a DICOM series a DICOM SEG is written too; DICOM objects are read back and "
        "kept only if they agree with the mask. INPUT and OUT may be URLs (s3://, gs://). Inputs are never replaced; "
        "files that liverseg did not write, and masks that were edited since, are replaced only with --overwrite.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="NIfTI, NRRD, MetaImage or DICOM: files, folders of them, .zip archives of DICOM, or URLs",
    )
    add_output(parser, "OUT", "file or folder to write", ".nii", ".nii.gz", ".dcm", folder=True)
    parser.add_argument(
        "--format",
        metavar="F,...",
        help=f"formats to write: {', '.join(FORMATS)} (default: nifti; for a DICOM series nifti,seg)",
    )
    parser.add_argument("--statistics", action="store_true", help="print volumes and lesions")
    parser.add_argument("--preview", action="store_true", help="draw a one-page picture of each result (PNG)")
    parser.add_argument("--probabilities", action="store_true", help="also write each class's probabilities (NIfTI)")
    add_overwrite(parser)
    parser.add_argument("--resume", action="store_true", help="continue a stopped run in the same output folder")
    add_json(parser)
    _add_model(parser.add_argument_group("model"))
    _add_uncertainty(parser.add_argument_group("uncertainty"))
    _add_dicom(parser.add_argument_group("DICOM"))
    _add_engine(parser.add_argument_group("several processes or machines"))
    parser.set_defaults(run=run)


def _add_model(group: argparse._ActionsContainer) -> None:
    add_model(group)
    group.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help="runtime of the model (default: auto, the fastest on this machine; 'liverseg info' shows which and why)",
    )
    group.add_argument(
        "--server",
        metavar="URL",
        help="let a TensorFlow Serving server run the model: grpc://host:8500/NAME or http://host:8501/NAME",
    )
    group.add_argument(
        "--second-look",
        metavar="MODEL",
        default="auto",
        help="second model, which must confirm each tumour; none for no second model (default: liverseg-lite0 with the "
        "shipped model, else none)",
    )
    group.add_argument(
        "--all-slices",
        action="store_true",
        help="segment every slice (default: those that can hold the liver, at most 3.25 mm apart)",
    )
    group.add_argument("--no-postprocessing", action="store_true", help="keep the network's labels unchanged")
    group.add_argument("--batch-size", type=int, metavar="B", help="slices per batch (default: depends on their size)")
    add_max_bytes(group)


def _add_uncertainty(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--uncertainty",
        action="store_true",
        help="segment 8 varied copies too (test-time augmentation): write the entropy as NIfTI, and the range of each "
        "volume (takes about 8 times as long)",
    )
    group.add_argument(
        "--variations",
        type=int,
        metavar="N",
        help="make the mask from the average of N shifted, rotated, scaled and brightened copies (test-time "
        "augmentation; takes N times as long)",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="result of 'liverseg calibrate': adds prediction intervals of the volumes for your site",
    )


def _add_dicom(group: argparse._ActionsContainer) -> None:
    add_series(group, default="all that can be segmented")
    group.add_argument(
        "--segmentation-type",
        choices=SEGMENTATION_TYPES,
        default=SEGMENTATION_TYPES[0],
        help="type of the DICOM SEG (default: %(default)s)",
    )
    group.add_argument("--lesion-segments", action="store_true", help="store each lesion as its own segment in the SEG")


def _add_engine(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="segment in this process (embedded), or in Ray's workers on this machine or a cluster (default: embedded)",
    )
    group.add_argument("--address", metavar="ADDR", help="Ray: address of the cluster (default: start Ray here)")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="Ray: processes, each with its own copy of the model (default: as many as the CPUs allow)",
    )
    group.add_argument("--threads", type=int, metavar="T", help="Ray: CPU threads of each worker (default: 2)")
    group.add_argument("--gpus", type=int, metavar="G", help="Ray: GPUs of each worker (default: 0)")
    group.add_argument(
        "--timeout", type=float, metavar="S", help="Ray: time limit of a volume in seconds (default: 3600)"
    )


def run(args: argparse.Namespace) -> int:
    """Predict; returns 1 if any volume failed."""
    from liverseg_tf.cli.progress import console
    from liverseg_tf.cli.quiet import load_nibabel_quickly
    from liverseg_tf.wording import counted

    load_nibabel_quickly()
    from liverseg_tf.cohorts.predict_folder import predict_folder

    model = _model(args)
    ray_options = {name: getattr(args, name) for name in ("address", "workers", "threads", "gpus")}
    ray_options["timeout_s"] = args.timeout
    out = console()
    with _Shown(args) as shown:
        rows = predict_folder(
            args.inputs,
            args.output,
            model,
            formats=args.format,
            segmentation_type=args.segmentation_type,
            lesion_segments=args.lesion_segments,
            series=args.series,
            allow_gaps=args.allow_gaps,
            probabilities=args.probabilities,
            uncertainty=args.uncertainty,
            preview=args.preview,
            calibration=args.calibration,
            resume=args.resume,
            overwrite=args.overwrite,
            engine=args.engine,
            ray_options={name: value for name, value in ray_options.items() if value is not None},
            on_start=shown.start,
            progress=shown.progress,
            on_done=shown.done,
            runtime=args.runtime,
            extent=not args.all_slices,
            second_look=None if args.second_look == "none" else args.second_look,
            batch_size=args.batch_size,
            **({"postprocessing": None} if args.no_postprocessing else {}),
            variations=args.variations,
            max_bytes=args.max_bytes,
        )
    _print_rows(rows, args)
    failed = [row for row in rows if row["status"] == "error"]
    if failed and len(rows) > 1:
        out.print(f"{len(failed)} of {counted(len(rows), 'volume')} failed", markup=False)
    return 1 if failed else 0


def _model(args: argparse.Namespace) -> Any:
    """What the options call the model; TensorFlow is loaded if it will be needed."""
    from liverseg_tf.cli.quiet import load_tensorflow_quietly

    if args.server and (args.model or args.runtime != RUNTIMES[0]):
        raise ConfigError("--server and --model or --runtime: expected one of them, the server has its own model")
    if args.server and args.engine == "ray":
        raise ConfigError("--server and --engine ray: expected one of them, both divide the work")
    if args.server:
        from liverseg_tf.inference.serving_client import ServingClient

        return ServingClient(args.server)
    if needs_tensorflow(args):
        load_tensorflow_quietly()
    return args.model


class _Shown(ExitStack):
    """Progress bars of volumes and slices, and above them warnings and errors."""

    def __init__(self, args: argparse.Namespace):
        from liverseg_tf.cli.progress import console, progress_bar

        super().__init__()
        self._args, self._out, self._bar = args, console(), progress_bar()

    def start(self, volumes: int, finished: int) -> None:
        self.enter_context(self._bar)
        if self._args.engine == "ray":
            # Ray prints a message for every worker that dies; stdout is for the rows, which have it too
            nowhere = self.enter_context(open(os.devnull, "w"))  # noqa: SIM115 (this is a context manager)
            self.enter_context(redirect_stdout(nowhere))
        self._volumes = self._bar.add_task("volumes", total=volumes, completed=finished)
        self._slices = self._bar.add_task("slices", total=None, visible=self._args.engine == "embedded")

    def progress(self, job: Job, done: int, total: int) -> None:
        self._bar.update(self._slices, completed=done, total=total, description=job.name)

    def done(self, row: dict) -> None:
        self._bar.advance(self._volumes)
        for message in row["warnings"]:
            self._out.print(f"warning: {as_flags(message, self._args.flags)}", markup=False, soft_wrap=True)
        if row["status"] == "error":
            self._out.print(f"error: {as_flags(row['error'], self._args.flags)}", markup=False, soft_wrap=True)


def needs_tensorflow(args: argparse.Namespace) -> bool:
    """Tell whether TensorFlow will be loaded, so that it can be loaded without its log lines."""
    from liverseg_tf.inference.choice import choose
    from liverseg_tf.shipped import locate_model

    if args.uncertainty or args.variations:
        return True
    models = [args.model] + [args.second_look] * (args.second_look not in ("auto", "none"))
    return args.engine == "embedded" and any(
        choose(locate_model(model), args.runtime).runtime != "tflite" for model in models
    )


def _print_rows(rows: list[dict], args: argparse.Namespace) -> None:
    from liverseg_tf.strict_json import to_json

    if args.json:
        print(to_json({"volumes": rows}))
    else:
        for row in rows:
            if row["status"] == "done":
                print(f"{row['output']}  ({row['seconds']:.1f} s)")
                if "preview" in row:
                    print(row["preview"])
                for written in row.get("objects", ()):
                    print(f"{written['output']}  ({_read_again(written)})")
                if args.statistics:
                    _print_statistics(row["statistics"])
                if "calibrated" in row:
                    _print_calibrated(row["calibrated"])
                if "uncertainty" in row:
                    ranges = {k: v for k, v in row["uncertainty"].items() if k.endswith("_range_ml")}
                    found = ", ".join(f"{k.removesuffix('_range_ml')} {_range(v)} ml" for k, v in ranges.items())
                    print(f"  test-time augmentation: {found} (spread of predictions, not a confidence interval)")


def _print_calibrated(found: dict) -> None:
    ends = {name.removesuffix("_interval_ml"): found[name] for name in found if name.endswith("_interval_ml")}
    intervals = ", ".join(f"{name} {_range(interval)} ml" for name, interval in ends.items())
    print(f"  {100 * found['coverage']:.0f} % intervals by {found['cases']} cases: {intervals}")
    if found["lesions"]:
        chances = ", ".join(f"{one['number']}: {100 * one['probability']:.0f} %" for one in found["lesions"][:20])
        print(f"  probability that the finding is a lesion: {chances}")


def _read_again(written: dict) -> str:
    found = written["read_again"]
    if "liver" not in found:
        return "read back, complete"
    from liverseg_tf.wording import counted

    lesions = counted(len(found["lesions"]), "lesion")
    return f"read back, agrees with the mask: liver {found['liver']['volume_ml']:.1f} ml, {lesions}"


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def _print_statistics(statistics: dict) -> None:
    from liverseg_tf.cli.tables import print_table
    from liverseg_tf.wording import counted

    burden = next((value for name, value in statistics.items() if name.endswith("_burden")), None)
    volumes = {k.removesuffix("_volume_ml"): v for k, v in statistics.items() if k.endswith("_volume_ml")}
    listed = [
        f"{name} {ml:.0f} ml" if i == 0 else f"{name} {ml:.1f} ml" for i, (name, ml) in enumerate(volumes.items())
    ]
    if burden is not None:
        listed[1] += f" ({100 * burden:.1f} %)"
    note = "  (1x1x1 mm without direction: mm and ml are unreliable)" if statistics["identity_affine"] else ""
    print(f"  {', '.join(listed)}, {counted(statistics['lesion_count'], 'lesion')}{note}")
    if not statistics["lesions"]:
        return
    rows = [
        (
            str(lesion["number"]),
            f"{lesion['volume_ml']:.2f}",
            f"{lesion['diameter_mm']:.0f}",
            str(lesion["slice_from_1"]),
            lesion["place"],
            f"{lesion['mean_hu']:.0f}" if lesion["mean_hu"] is not None else "",
        )
        for lesion in statistics["lesions"][:20]
    ]
    print_table(("lesion", "ml", "diameter mm", "slice", "where", "mean HU"), rows, names=("where",))
    if len(statistics["lesions"]) > 20:
        print(f"  and {len(statistics['lesions']) - 20} smaller ones (all of them: --json)")
