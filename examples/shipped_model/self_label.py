"""Add the slices of unlabelled CTs to the file of training slices, labelled by a network and cleared by eye.

    python self_label.py slices.npz --model MODEL --ct hcc_048=FOLDER --ct crlm_1004=FOLDER -o all_slices.npz

Slices in which no liver was seen are background. In slices where the network's outline of the liver was seen to be
right, its largest component is liver, and all else is background, also stomach and bowel that the network labelled
liver or tumour. Inside the liver, predicted tumour and whatever is clearly darker stays open (liver or tumour): these
patients have tumours that the network misses. All other slices are left out.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
from prepare import LIVER, OPEN, SIZE, TUMOUR, hidden_tumours, square
from scipy import ndimage
from train import probabilities

import liverseg_tf as ls
from liverseg_tf.files import atomic_write

# Found visually; slices counted from the feet: without liver, and with a correct outline.
SEEN = {
    "hcc_048": ([*range(13), *range(78, 89)], [*range(14, 73)]),
    "crlm_1004": ([*range(36, 41)], [*range(10, 32)]),
}


def self_labels(found: np.ndarray, hu: np.ndarray, empty: list[int]) -> np.ndarray:
    """(N, H, W) codes from the network's labels: largest component of liver with tumour, what may be tumour open."""
    regions, number = ndimage.label(found > 0)
    if number:
        found = np.where(regions == np.bincount(regions.ravel())[1:].argmax() + 1, found, 0)
    tumour = ndimage.binary_dilation(found == TUMOUR, ndimage.generate_binary_structure(2, 1)[None], iterations=2)
    found[empty] = 0
    codes = hidden_tumours(hu, found > 0)
    codes[tumour & (codes == LIVER)] = OPEN
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the file that prepare.py wrote")
    parser.add_argument("--model", required=True, help="that labels the liver")
    parser.add_argument("--ct", required=True, action="append", help="NAME=PATH of a CT, as a DICOM series")
    parser.add_argument("-o", "--output", required=True, help="the .npz file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with np.load(options.data) as file:
        data = dict(file)
    model = ls.load_model(options.model)
    for name, folder in (text.split("=", 1) for text in options.ct):
        volume = ls.CTVolume.load(folder)
        factor = max(volume.shape[:2]) / SIZE
        empty, outlined = SEEN[name]
        hu = square(np.moveaxis(volume.hu, 2, 0))
        codes = self_labels(probabilities(model, model.input_shape[1], hu.astype(np.float32)).argmax(-1), hu, empty)
        chosen = sorted([*empty, *outlined])
        count = len(chosen)
        added = {
            "hu": hu[chosen],
            "labels": codes[chosen],
            "known": np.array(["self"] * count),
            "case": np.full(count, -1, np.int32),
            "patient": np.array([name] * count),
            "spacing_mm": np.tile(np.float32(volume.spacing_mm[:2]) * factor, (count, 1)),
        }
        data = {key: np.concatenate([data[key], added[key]]) for key in data}
        logging.info("%s: %d slices, %d with liver", name, count, int((codes[chosen] > 0).any((1, 2)).sum()))
    with atomic_write(options.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **data)


if __name__ == "__main__":
    main()
