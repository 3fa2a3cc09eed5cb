"""All runtimes on one CT: Keras, SavedModel, TFLite in three precisions, and ONNX Runtime on the same network.

    python benchmarks/runtimes.py MODEL CT.nii.gz [--truth SEG.nii.gz] [--every N] [--calibration DIR] [-o FILE.json]

Each runs in its own process, on the same slices. For ONNX Runtime, a common alternative, the network is converted by
tf2onnx; this library computes windows, histogram and resizing. It needs
`pip install onnxruntime tf2onnx` and is left out if they are missing. Nothing is post-processed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="run folder or .keras file")
    parser.add_argument("ct", help="NIfTI file")
    parser.add_argument("--truth", help="its mask")
    parser.add_argument("--every", type=int, default=1, help="take every n-th slice")
    parser.add_argument("--calibration", help="cases to calibrate int8 on (default: phantoms)")
    parser.add_argument("--artefacts", help="keep the artefacts in this folder, and use those that are there")
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()

    from liverseg_tf.data.volume import CTVolume, MaskVolume
    from liverseg_tf.exporting.parity import megabytes
    from liverseg_tf.exporting.timing import measure
    from liverseg_tf.models.saving import load_config, model_file

    config = load_config(args.model)
    volume = CTVolume.load(args.ct, hu_range=config.hu_range)
    indices = range(0, volume.shape[2], args.every)
    hu = np.concatenate([volume.slices(i, i + 1) for i in indices])
    truth = np.moveaxis(MaskVolume.load(args.truth).labels[..., :: args.every], 2, 0) if args.truth else None
    print(f"{volume!r}\n{len(hu)} slices, {os.cpu_count()} cores\n")

    with tempfile.TemporaryDirectory(prefix="liverseg-") as temporary:
        folder = Path(args.artefacts or temporary)
        artefacts = {"keras float32": model_file(args.model), **exported(args, folder)}
        rows = []
        for name, path in artefacts.items():
            labels, probabilities, figures = measure(path, {"ct": hu})
            rows.append(
                {
                    "runtime": name,
                    "milliseconds_a_slice": figures.milliseconds_a_slice["ct"],
                    "megabytes": megabytes(path),
                    "peak_memory_mb": figures.peak_memory_mb,
                    **compared(labels["ct"], probabilities["ct"], truth, rows, config.class_names),
                }
            )
            if name == "keras float32":
                rows[0]["labels"], rows[0]["probabilities"] = labels["ct"], probabilities["ct"]
            show(rows[-1])
        if row := onnx_runtime(args.model, config, hu, truth, rows, Path(temporary)):
            rows.append(row)
            show(row)
    rows[0].pop("labels"), rows[0].pop("probabilities")
    if args.output:
        content = {"ct": Path(args.ct).name, "slices": len(hu), "cores": os.cpu_count(), "rows": rows}
        Path(args.output).write_text(json.dumps(content, indent=2) + "\n")
    return 0


def exported(args, folder: Path) -> dict[str, Path]:
    """Export what is not in the folder yet."""
    from liverseg_tf.exporting.export import export

    artefacts = {}
    savedmodel = folder / "liverseg" / "1"
    artefacts["savedmodel float32"] = savedmodel
    if not savedmodel.exists():
        export(args.model, savedmodel.parent)
    for precision in ("float32", "float16", "int8"):
        path = folder / f"liverseg-{precision}.tflite"
        artefacts[f"tflite {precision}"] = path
        if not path.exists():
            calibration = args.calibration if precision == "int8" else None
            export(args.model, path, "tflite", precision, calibration)
    return artefacts


def compared(labels, probabilities, truth, rows, class_names) -> dict:
    """Agreement with the first row, and Dice against it and against the truth, over the whole volume."""
    reference = rows[0]["labels"] if rows else labels
    difference = np.abs(probabilities - rows[0]["probabilities"]).max() if rows else 0.0
    found = {"agreement": float((labels == reference).mean()), "largest_difference": float(difference)}
    for index, name in enumerate(class_names[1:], 1):
        found[f"dice_{name}"] = dice(labels == index, reference == index)
        if truth is not None:
            found[f"dice_{name}_truth"] = dice(labels == index, truth == index)
    return found


def dice(a, b) -> float | None:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else None


def onnx_runtime(model, config, hu, truth, rows, folder: Path) -> dict | None:
    """The network by ONNX Runtime, in this process: memory is not comparable and left out."""
    try:
        import onnxruntime
        import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        print(f"without ONNX Runtime: {error}")
        return None
    from liverseg_tf.inference.slice_function import SliceFunction
    from liverseg_tf.models.saving import load_model

    network = load_model(model)
    size = config.image_size
    spec = tf.TensorSpec((None, size, size, config.channels.count), tf.float32, "channels")
    path = folder / "network.onnx"
    tf2onnx.convert.from_function(
        tf.function(lambda channels: network(channels, training=False), input_signature=[spec]),
        input_signature=[spec],
        opset=18,
        output_path=str(path),
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (channels_name,) = (i.name for i in session.get_inputs())
    function = SliceFunction(network, config)
    prepare = tf.function(function.network_input, [tf.TensorSpec((None, None, None), tf.float32)])
    finish = tf.function(function.from_logits)
    batches = [hu[i : i + 4] for i in range(0, len(hu), 4)]
    times, probabilities = [], []
    for batch in [batches[0], *batches]:
        start = time.perf_counter()
        (logits,) = session.run(None, {channels_name: prepare(batch).numpy()})
        found = finish(tf.constant(logits), *batch.shape[1:]).numpy()
        found.argmax(-1)
        times.append((time.perf_counter() - start) / len(batch))
        probabilities.append(found)
    probabilities = np.concatenate(probabilities[1:])  # the first was to warm up
    labels = probabilities.argmax(-1).astype(np.uint8)
    return {
        "runtime": "onnx runtime float32",
        "milliseconds_a_slice": 1e3 * min(times[1:]),
        "megabytes": path.stat().st_size / 1e6,
        "peak_memory_mb": None,
        **compared(labels, probabilities, truth, rows, config.class_names),
    }


def show(row: dict) -> None:
    memory = "-" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
    scores = ", ".join(f"{k[5:]} {v:.4f}" for k, v in row.items() if k.startswith("dice_") and v is not None)
    print(
        f"{row['runtime']:22}{row['milliseconds_a_slice']:8.1f} ms/slice{row['megabytes']:8.1f} MB{memory:>6} MB peak"
        f"  as Keras {row['agreement']:.4%}  prob. diff. {row['largest_difference']:.1e}  Dice: {scores}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
