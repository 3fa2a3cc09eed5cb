"""`compare` on patients whose lesions are known: events, volumes, ids, response, files."""

import csv
import json

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.errors import ConfigError
from liverseg_tf.followup.page import build_page

from .conftest import BALLS, LOBES, breathing


def sighted(found, scan):
    return {lesion.id: lesion.sightings[scan].event for lesion in found.lesions}


@pytest.mark.slow
def test_growth_loss_and_what_is_new_through_breathing_and_thick_slices(scene):
    later = (((50, 0, 10), 16), ((30, -25, 35), 9), ((-45, 30, 25), 5), ((10, 20, 40), 7))
    found = ls.compare(scene.mask(), scene.mask(later, motion=breathing, spacing_mm=(2.5, 2.5, 4.0)))
    assert sighted(found, 1) == {1: "kept", 2: "kept", 3: "kept", 4: "vanished", 5: "new"}
    assert [lesion.is_target for lesion in found.lesions] == [True, True, False, False, False]
    row = found.lesions[0].to_dict()["sightings"][1]
    assert row["volume_change_from_first"] == pytest.approx((16 / 13) ** 3 - 1, abs=0.06)
    assert all(lesion.sightings[1].confidence > 0.9 for lesion in found.lesions[:2])
    assert found.responses[1].category == "PD" and "new" in found.responses[1].reason


def test_the_same_scan_twice_differs_in_nothing(scene):
    mask = scene.mask()
    found = ls.compare(mask, mask)
    assert found.difference_count == 0 and found.responses[1].category == "SD"
    assert found.responses[1].change_from_baseline == 0 and found.scans[1].registration.residual_mm == 0


@pytest.mark.usefixtures("rough_registration")
def test_ids_stay_over_a_merger_a_loss_and_a_return(scene):
    first = (((50, 0, 0), 8), ((50, 0, 22), 7), ((-45, 30, 25), 6))
    merged = (((50, 0, 0), 11), ((50, 0, 18), 11))
    again = (*merged, ((-45, 30, 25), 6))
    found = ls.compare(*(scene.mask(balls) for balls in (first, merged, again)), days=[3, 33, 93])
    events = [[one.event for one in lesion.sightings] for lesion in found.lesions]
    assert events == [["first", "kept", "kept"], ["first", "merged", "merged"], ["first", "vanished", "seen again"]]
    assert found.lesions[1].sightings[2].merged_into == 1
    assert [scan.day for scan in found.scans] == [0, 30, 90]
    alone = ls.compare(*(scene.mask(balls) for balls in (first, merged)))
    assert [t.tracking_uid for t in alone.lesions] == [t.tracking_uid for t in found.lesions]
    assert len({t.tracking_uid for t in found.lesions}) == 3 and len(found.lesions[0].tracking_uid) <= 64


@pytest.mark.usefixtures("rough_registration")
def test_a_lesion_that_split_is_the_sum_of_its_parts(scene):
    parts = (((50, 0, -8), 6), ((50, 0, 8), 6))
    found = ls.compare(scene.mask((((50, 0, 0), 15),)), scene.mask(parts))
    (lesion,) = found.lesions
    now = lesion.sightings[1]
    assert now.event == "split" and now.numbers == (1, 2)
    assert now.long_axis_mm == pytest.approx(2 * (12 + 1.5), abs=1) and found.responses[1].category == "SD"


@pytest.mark.usefixtures("rough_registration")
def test_a_speck_at_the_edge_of_a_lesion_is_not_new(scene):
    mask = scene.mask()
    labels = mask.labels.copy()
    rows, columns, slices = np.nonzero(labels == 2)
    lowest = np.flatnonzero((slices == slices.min()) & (rows == rows[slices == slices.min()].min()))[0]
    labels[rows[lowest] - 2, columns[lowest], slices[lowest]] = 2
    later = MaskVolume(mask.geometry.to_file(labels), mask.geometry)
    for first, second in ((mask, later), (later, mask), (later, later)):
        found = ls.compare(first, second)
        assert sighted(found, 1) == dict.fromkeys((1, 2, 3, 4), "kept") and found.responses[1].category == "SD"
        for scan in (0, 1):
            volumes = sum(lesion.sightings[scan].volume_ml for lesion in found.lesions)
            assert volumes == pytest.approx(found.scans[scan].measurement.statistics.tumour_volume_ml)
            longest = [lesion.sightings[scan].long_axis_mm for lesion in found.lesions]
            assert longest == pytest.approx([o.axes.long_axis_mm for o in found.scans[scan].measurement.lesions[:4]])
    (speck,) = [lesion for lesion in found.lesions if len(lesion.sightings[1].numbers) == 2]
    assert found.tracking(1)[5][0] == f"Lesion {speck.id} part 2"
    assert found.scans[1].to_dict()["speck_count"] == 1 and "<td>4 and 1 speck</td>" in build_page(found, "specks")


@pytest.mark.usefixtures("rough_registration")
def test_a_change_that_voxels_alone_make_is_not_called_growth(scene):
    grown = tuple((center, 1.5 * radius if radius == 13 else radius) for center, radius in BALLS)
    found = ls.compare(scene.mask(), scene.mask(grown, spacing_mm=(2.6, 2.6, 7.0)))
    rows = [lesion.to_dict()["sightings"][1] for lesion in found.lesions]
    assert [row["volume_trend_from_previous"] for row in rows] == ["larger", *["within limit"] * 3]
    assert all(row["volume_change_limit_from_first"] > 0.05 for row in rows[1:])
    assert any(abs(row["volume_change_from_first"]) > 0.03 for row in rows[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("rough_registration")
def test_resected_and_out_of_view_are_no_response(scene):
    balls = (((50, 0, 10), 13), ((-55, 30, 25), 8))
    found = ls.compare(scene.mask(balls), scene.mask(balls[:1], lobes=(LOBES[0], LOBES[2])))
    assert sighted(found, 1) == {1: "kept", 2: "resected"} and found.responses[1].category == "NE"
    low = (((50, 0, 10), 13), ((40, 10, -70), 8))
    cut = scene.mask(low, keep=22)
    found = ls.compare(scene.mask(low), cut)
    assert sighted(found, 1) == {1: "kept", 2: "outside"} and found.scans[1].measurement.volume_is_lower_bound
    assert found.lesions[1].sightings[1].volume_ml is None and found.responses[1].category == "NE"


@pytest.mark.usefixtures("rough_registration")
def test_no_lesion_in_either(scene):
    found = ls.compare(scene.mask(()), scene.mask((), motion=breathing))
    assert found.lesions == () and found.responses[1].category == "no disease"
    assert found.tables()[0].startswith("lesion,scan")


def test_what_does_not_fit_together_is_refused(scene):
    mask = scene.mask()
    with pytest.raises(ConfigError, match="masks: expected one for each of 2 scans, got 1"):
        ls.compare(mask, mask, masks=[mask])
    with pytest.raises(ConfigError, match="days: expected ascending"):
        ls.compare(mask, mask, days=[3, 3])


@pytest.mark.slow
@pytest.mark.usefixtures("rough_registration")
def test_the_command_writes_tables_and_fails_without_a_file_on_a_flip(scene, tmp_path, write_nifti, capsys):
    from liverseg_tf.cli.main import main

    first, later = scene.mask(), scene.mask(BALLS[:3], motion=breathing)
    names = []
    for number, mask in enumerate((first, later)):
        names.append(str(tmp_path / f"mask-{number}.nii.gz"))
        write_nifti(tmp_path / f"mask-{number}.nii.gz", mask.geometry.to_file(mask.labels), mask.affine)
    out = tmp_path / "out"
    assert main(["compare", *names, "-o", str(out), "--days", "0", "60"]) == 0
    assert "vanished" in capsys.readouterr().out
    content = json.loads((out / "comparison.json").read_text())
    assert content["scans"][1]["registration"]["residual_mm"] < 2
    rows = list(csv.DictReader((out / "lesions.csv").open(newline="")))
    assert len(rows) == 8 and rows[-1]["event"] == "vanished" and float(rows[0]["volume_ml"]) > 8
    flipped = tmp_path / "flipped.nii.gz"
    write_nifti(flipped, later.geometry.to_file(later.labels), later.affine * np.r_[-1, 1, 1, 1])
    assert main(["compare", names[0], str(flipped), "-o", str(tmp_path / "none")]) == 1
    told = capsys.readouterr().err
    assert "flipped.nii.gz: its liver" in told and "front and back are exchanged" in told
    assert not (tmp_path / "none").exists()
