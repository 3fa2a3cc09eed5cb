"""`compare` on DICOM: SEGs as masks, alone or with their series."""

import json

import numpy as np
import pytest

pytest.importorskip("highdicom")

import liverseg_tf as ls  # noqa: E402
from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.errors import ConfigError  # noqa: E402
from liverseg_tf.evaluation.measure import measure  # noqa: E402
from liverseg_tf.followup.compare import (  # noqa: E402
    Comparison,
    Scan,
    Sighting,
    Track,
    _clouds,
    _lost,
    _tracking_uids,
)

from .conftest import BALLS  # noqa: E402

pytestmark = pytest.mark.usefixtures("rough_registration")

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
    lesion = min(_clouds(scan(ls.MaskVolume.load(seg)))[0].values(), key=lambda cloud: cloud.points_mm[:, 2].min())
    track = Track(1, "", True, _clouds=[lesion])
    alone = ls.MaskVolume.load(tmp_path / "rest.dcm")
    assert _lost(track, scan(alone)).event == "resected"
    as_if_the_ct_ended_there = ls.MaskVolume(alone.geometry.to_file(alone.labels), alone.geometry)
    assert _lost(track, scan(as_if_the_ct_ended_there)).event == "outside"


def tracked(seg, sr):
    """Label -> tracking UID of a SEG's segments, and tracking UIDs of a report's groups, as highdicom reads them."""
    import highdicom as hd

    groups = hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()
    segments = hd.seg.segread(seg).SegmentSequence
    return {s.SegmentLabel: s.TrackingUID for s in segments}, {group.tracking_uid for group in groups}


@pytest.mark.slow
def test_a_lesion_has_one_tracking_uid_in_the_objects_of_all_scans(studies, tmp_path, capsys):
    (ct, _, mask), (later_ct, later_seg, _) = studies
    earlier = tmp_path / "earlier"  # as an archive has it, lesion by lesion
    ls.write_dicom_objects(mask.labels, ct, earlier, ("seg", "sr"), name="a")
    archived, _ = tracked(earlier / "a.dcm", earlier / "a_sr.dcm")
    command = [
        "compare",
        str(ct),
        str(later_ct),
        "--masks",
        str(earlier / "a.dcm"),
        str(later_seg),
        "--format",
        "seg,sr",
    ]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    first, in_first_report = tracked(*(tmp_path / "out" / f"scan-1_seg{end}.dcm" for end in ("", "_sr")))
    later, in_later_report = tracked(*(tmp_path / "out" / f"scan-2_seg{end}.dcm" for end in ("", "_sr")))
    assert first == archived and in_first_report == set(first.values()) and in_later_report == set(later.values())
    assert later["Liver"] == first["Liver"] == archived["Liver"]
    lesions = {name: uid for name, uid in later.items() if name != "Liver"}
    assert len(lesions) == 3 and lesions.items() <= first.items()
    known = json.loads((tmp_path / "out" / "comparison.json").read_text())["lesions"]
    assert {one["tracking_uid"] for one in known} == {uid for name, uid in first.items() if name != "Liver"}
    assert "scan-2_seg_sr.dcm" in capsys.readouterr().out


@pytest.mark.slow
def test_the_liver_keeps_the_uid_that_the_earlier_seg_gives_it(studies, tmp_path):
    import pydicom

    (ct, seg, _), (later_ct, later_seg, _) = studies
    data = pydicom.dcmread(seg)
    data.SegmentSequence[0].TrackingUID = "2.25.5"
    data.save_as(tmp_path / "known.dcm")
    found = ls.compare(ct, later_ct, masks=[tmp_path / "known.dcm", later_seg])
    for path in found.save_objects(tmp_path, ["seg"]):
        assert pydicom.dcmread(path).SegmentSequence[0].TrackingUID == "2.25.5"
    del data.SegmentSequence[0].TrackingUID, data.SegmentSequence[0].TrackingID
    data.save_as(tmp_path / "unknown.dcm")
    found = ls.compare(ct, later_ct, masks=[tmp_path / "unknown.dcm", later_seg])
    paths = found.save_objects(tmp_path, ["seg"])
    by_predict = pydicom.dcmread(seg).SegmentSequence[0].TrackingUID
    assert [pydicom.dcmread(path).SegmentSequence[0].TrackingUID for path in paths] == [by_predict] * 2


def test_parts_of_a_lesion_and_uids_of_others_stay_apart(studies):
    ct, seg, mask = studies[0]
    volume = ls.CTVolume.load(ct)
    one = scan(ls.MaskVolume.load(seg, like=volume))
    assert _tracking_uids(one.mask, None, one.measurement) == (None,) * 4  # one segment for all lesions tells none
    from_series = _tracking_uids(one.mask, volume, one.measurement)
    assert len(set(from_series)) == 4 and None not in from_series
    split = Track(7, "2.25.7", True, [Sighting("first", (1,)), Sighting("split", (2, 5))])
    names = Comparison((one, one), (split,), ()).tracking(1)
    assert names[2] == ("Lesion 7", "2.25.7") and names[5][0] == "Lesion 7 part 2" and names[5][1] != "2.25.7"
    with pytest.raises(ConfigError, match="no DICOM series"):
        Comparison((one,), (), ()).save_objects(seg.parent / "none", ["seg"])
    assert not (seg.parent / "none").exists()
