from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.volume import Geometry, MaskVolume


@pytest.fixture
def write_mask():
    """Write an (x, y, z) array as a NIfTI mask."""

    def write(path, labels, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-0.8, -0.8, 2.5, 1]) if affine is None else affine
        nib.save(nib.Nifti1Image(np.asarray(labels, np.uint8), affine), path)
        return path

    return write


@pytest.fixture
def mask_of():
    """A MaskVolume of an (x, y, z) array; by default 1 x 1 x 1 mm with directions that are not the identity."""

    def make(labels, affine=None):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
        return MaskVolume(np.asarray(labels, np.uint8), Geometry(np.shape(labels), np.asarray(affine, float)))

    return make


@pytest.fixture
def liver_pair():
    """Reference and prediction, (30, 28, 12): a liver box, a lesion found, one missed, and one that isn't there."""
    truth = np.zeros((30, 28, 12), np.uint8)
    truth[4:24, 4:24, 2:10] = 1
    prediction = truth.copy()
    truth[6:10, 6:10, 4:8] = 2  # 64 voxels
    prediction[6:10, 6:10, 5:9] = 2  # 48 of them and 16 others
    truth[18:20, 18:20, 4:6] = 2
    prediction[18:21, 6:9, 4:7] = 2
    return truth, prediction


@pytest.fixture
def folders(tmp_path, write_mask, liver_pair):
    """Folders `truth` and `pred` with the cases 1, 2 and 10; case 2 is predicted perfectly."""
    truth, prediction = liver_pair
    for case, predicted in ((1, prediction), (2, truth), (10, prediction)):
        write_mask(tmp_path / "truth" / f"segmentation-{case}.nii.gz", truth)
        write_mask(tmp_path / "pred" / f"volume-{case}_seg.nii.gz", predicted)
    return tmp_path / "truth", tmp_path / "pred"
