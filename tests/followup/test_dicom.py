"""`compare` on DICOM: SEGs as masks, alone or with their series."""

import numpy as np
import pytest

pytest.importorskip("highdicom")

import liverseg_tf as ls  # noqa: E402
from liverseg_tf.evaluation.measure import measure  # noqa: E402
from liverseg_tf.followup.compare import Scan, Track, _clouds, _lost  # noqa: E402

from .conftest import BALLS  # noqa: E402

SPACING = (6.0, 6.0, 6.0)
LATER = (((50, 0, 10), 16), *BALLS[1:3])


@pytest.fixture(scope="module")
def studies(scene, tmp_path_factory):
    """Two studies of a patient: for each the series, its SEG, and its mask."""
    from liverseg_tf.data.dicom.writing import write_series

    made = []
    for number, balls in enumerate((BALLS, LATER)):
        folder = tmp_path_factory.mktemp(f"study-{number}")
        mask = scene.mask(balls, spacing_mm=SPACING)
        hu = np.rint(scene.ct(mask).hu).astype(np.int16).transpose(1, 0, 2)
        affine = mask.geometry.canonical_affine[:, [1, 0, 2, 3]]
        (folder / "ct").mkdir()
        write_series(hu, affine, folder / "ct", seed=number)
        ls.write_dicom_objects(mask.labels, folder / "ct", folder, name="seg")
        made.append((folder / "ct", folder / "seg.dcm", mask))
    return made


def scan(mask):
    """A scan that lies where the first does."""
    return Scan("", None, mask, None, measure(mask), None)


def events(found):
    return [[one.event for one in lesion.sightings] for lesion in found.lesions]


def test_segs_are_compared_as_their_masks_with_their_series_and_alone(studies):
    (ct, seg, _), (later_ct, later_seg, later_mask) = studies
    expected = [one.statistics.volume_ml for one in measure(later_mask).lesions]
    alone, with_ct = ls.compare(seg, later_seg), ls.compare(ct, later_ct, masks=[seg, later_seg])
    for found in (alone, with_ct):
        assert sorted(events(found)) == [["first", "kept"]] * 3 + [["first", "vanished"]]
        seen = sorted((one.sightings[1].volume_ml for one in found.lesions), reverse=True)
        assert seen == pytest.approx([*expected, 0])
    assert not any(scan.measurement.volume_is_lower_bound for scan in alone.scans)
    assert with_ct.scans[1].ct is not None


def test_what_lies_in_slices_that_a_lone_seg_leaves_out_went_with_the_liver(studies, tmp_path):
    ct, seg, mask = studies[0]
    rest = mask.labels.copy()
    rest[..., : int((-25 + 115) / SPACING[2])] = 0  # cut out, with the lesion at -35 mm
    ls.write_dicom_objects(rest, ct, tmp_path, name="rest")
    lesion = min(_clouds(scan(ls.MaskVolume.load(seg))), key=lambda cloud: cloud.points_mm[:, 2].min())
    track = Track(1, "", True, _clouds=[lesion])
    alone = ls.MaskVolume.load(tmp_path / "rest.dcm")
    assert _lost(track, scan(alone)).event == "resected"
    as_if_the_ct_ended_there = ls.MaskVolume(alone.geometry.to_file(alone.labels), alone.geometry)
    assert _lost(track, scan(as_if_the_ct_ended_there)).event == "outside"
