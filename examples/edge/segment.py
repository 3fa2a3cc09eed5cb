"""Segment a CT on a device without TensorFlow: needs ai-edge-litert, numpy and nibabel.

python segment.py liver-int8.tflite ct.nii.gz mask.nii.gz --threads 4
"""

import argparse
import os
import sys

import nibabel as nib
import numpy as np
from ai_edge_litert.interpreter import Interpreter

AIR_HU = -1024.0
# The model's orientation: rows from anterior to posterior, columns from the patient's right to left, slices upwards.
MODEL_VIEW = nib.orientations.axcodes2ornt(("P", "L", "S"))


def weights(source, target):
    """(target, source) matrix of linear interpolation along one axis; averages over the pixel's width to shrink."""
    scale = max(source / target, 1.0)
    centers = (np.arange(target) + 0.5) * source / target - 0.5
    matrix = np.maximum(0.0, 1.0 - np.abs(centers[:, None] - np.arange(source)) / scale)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=".tflite file that 'liverseg export' wrote")
    parser.add_argument("ct", help="NIfTI file in Hounsfield units, of any size and orientation")
    parser.add_argument("mask", help="NIfTI file to write: 0 background, 1 liver, 2 tumour")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    args = parser.parse_args()
    try:
        segment(args.model, args.ct, args.mask, args.threads)
    except (OSError, EOFError, ValueError, RuntimeError, nib.filebasedimages.ImageFileError) as error:
        print(f"segment.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def segment(model_path, ct_path, mask_path, threads):
    if os.path.exists(mask_path):
        raise ValueError(f"{mask_path} exists; name another file")
    if not mask_path.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{mask_path}: expected a name ending in .nii or .nii.gz")
    if not os.path.isfile(model_path):
        raise ValueError(f"{model_path}: there is no such file; 'liverseg export' writes one")
    image = nib.squeeze_image(nib.load(ct_path))
    if len(image.shape) != 3:
        raise ValueError(f"{ct_path}: expected a volume of three axes, got shape {image.shape}")
    to_view = nib.orientations.ornt_transform(nib.io_orientation(image.affine), MODEL_VIEW)
    hu = nib.orientations.apply_orientation(image.get_fdata(dtype=np.float32), to_view)
    hu = np.clip(np.where(np.isfinite(hu), hu, AIR_HU), AIR_HU, 3071.0)

    runner = Interpreter(model_path, num_threads=threads).get_signature_runner("serving_default")
    size = int(runner.get_input_details()["hu"]["shape"][1])
    rows, columns, slices = hu.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    there, back = weights(side, size), weights(size, side)
    labels = np.zeros(hu.shape, np.uint8)
    for index in range(slices):
        square = np.full((side, side), AIR_HU, np.float32)
        square[top : top + rows, left : left + columns] = hu[..., index]
        if side != size:
            square = np.rint(there @ square @ there.T)  # integer HU use the model's faster path
        result = runner(hu=square[None])
        found = result["labels"][0]
        if side != size:
            found = (back @ np.moveaxis(result["probabilities"][0], 2, 0) @ back.T).argmax(0)
        labels[..., index] = found[top : top + rows, left : left + columns]

    from_view = nib.orientations.ornt_transform(MODEL_VIEW, nib.io_orientation(image.affine))
    mask = nib.Nifti1Image(nib.orientations.apply_orientation(labels, from_view), image.affine, dtype=np.uint8)
    mask.header.set_xyzt_units("mm")
    part = os.path.join(os.path.dirname(mask_path), ".part." + os.path.basename(mask_path))
    nib.save(mask, part)
    os.replace(part, mask_path)  # a reader never sees an incomplete mask
    ml = np.bincount(labels.ravel(), minlength=3)[1:] * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    print(f"{mask_path}: liver {ml.sum():.0f} ml, of which tumour {ml[1]:.1f} ml")


if __name__ == "__main__":
    main()
