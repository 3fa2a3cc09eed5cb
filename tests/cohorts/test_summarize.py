"""`summarize`: what the manifest and the masks say of a cohort, and a page that stays small in the browser."""

import csv
import io
import json

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cohorts.summarize import Summary, build_page
from liverseg_tf.errors import CaseError, InputFileError
from liverseg_tf.ownership import signed_line


def row(number, liver_ml=1500.0, **changes):
    statistics = {"liver_volume_ml": liver_ml, "tumour_volume_ml": 10.0 + number, "tumour_burden": 0.01}
    statistics |= {"lesion_count": 2, "liver_mean_hu": 100.0, "identity_affine": False}
    base = {"input": f"scans/volume-{number}.nii.gz", "output": f"masks/segmentation-{number}.nii.gz", "status": "done"}
    return base | {"seconds": 10.0 + number, "statistics": statistics, "warnings": []} | changes


@pytest.fixture
def folder(tmp_path):
    rows = [row(i, 1500.0 + 20 * i) for i in range(12)]
    rows += [row(12, 90.0), row(13, 0.0)]
    rows.append({**row(14, status="error", error="volume-14.nii.gz: cut <script>"), "statistics": None})
    rows.append(row(0, 1444.0))  # predicted again
    lines = [signed_line(content, "manifest") for content in ({"settings": {}, "model": "net"}, *rows)]
    (tmp_path / "manifest.jsonl").write_text("".join(lines) + '{"input": "scans/volu')
    (tmp_path / "segmentation-3.html").write_text("a report")
    return tmp_path


def test_the_manifest_gives_figures_flags_outliers_and_failures(folder):
    found = ls.summarize(folder)
    assert len(found.rows) == 15 and [r["case"] for r in found.failed] == ["volume-14.nii.gz"]
    assert found.rows[0]["liver_volume_ml"] == 1444.0  # the last row of a volume counts
    assert found.rows[12]["flags"] == ["small_liver"] and "liver_volume_ml" in found.rows[12]["outlier_in"]
    assert found.rows[13]["flags"] == ["no_liver"] and found.rows[3]["report"] == "segmentation-3.html"
    assert not any(r["outlier_in"] for r in found.rows[:12])
    assert found.distribution("liver_volume_ml")["count"] == 14
    assert found.to_dict()["flags"] == {"small_liver": 1, "no_liver": 1}


def test_masks_without_a_row_are_measured(tmp_path, write_nifti):
    labels = np.zeros((40, 40, 20), np.uint8)
    labels[5:35, 5:35, 5:] = 1  # cut at the last slice
    write_nifti(tmp_path / "segmentation-7.nii.gz", labels, np.diag([-3, -3, 3, 1]))
    write_nifti(tmp_path / "segmentation-8.nii.gz", labels * 9, np.diag([-3, -3, 3, 1]))
    found = ls.summarize(tmp_path)
    assert found.rows[0]["flags"] == ["cut_by_field_of_view"]
    assert found.rows[0]["liver_volume_ml"] == pytest.approx(30 * 30 * 15 * 27 / 1000)
    assert found.rows[1]["status"] == "error" and "segmentation-8" in found.rows[1]["error"]


def test_one_case_is_no_distribution(tmp_path, write_nifti, capsys):
    from liverseg_tf.cli.main import main

    write_nifti(tmp_path / "segmentation-7.nii.gz", np.ones((9, 9, 9), np.uint8), np.diag([-3, -3, 3, 1]))
    page = tmp_path / "out" / "archive.html"
    assert main(["summarize", str(tmp_path), "-o", str(page)]) == 0
    assert "1 case, 0 failed, 0 outliers" in capsys.readouterr().out
    assert "<h1>1 case</h1>" in page.read_text() and "No figure has two different values." in page.read_text()


def test_the_command_writes_both_and_keeps_others_files(folder, capsys):
    from liverseg_tf.cli.main import main

    page = folder / "out" / "archive.html"
    assert main(["summarize", str(folder), "-o", str(page)]) == 0
    assert "15 cases, 1 failed" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_bytes().decode())))
    assert len(rows) == 15 and rows[12]["flags"] == "small_liver"
    text = page.read_text()
    assert "cut <script>" not in text and "default-src 'none'" in text and "../segmentation-3.html" in text
    page.write_text("mine")
    assert main(["summarize", str(folder), "-o", str(page)]) == 1
    assert page.read_text() == "mine" and "changed" in capsys.readouterr().err


def test_ten_thousand_rows_are_data_not_elements(folder):
    base = ls.summarize(folder).rows
    many = tuple({**base[i % 15], "case": f"volume-{i}.nii.gz"} for i in range(10_000))
    text = build_page(Summary(many, folder), folder)
    assert len(text) < 2_500_000 and text.count("<tr") < 20
    start = text.index('<script type="application/json" id="page-data">')
    data = json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])
    assert len(data["columns"]["case"]) == 10_000 and data["columns"]["case"][-1] == "volume-9999.nii.gz"


def test_nothing_to_sum_up_is_told(tmp_path):
    with pytest.raises(InputFileError, match="expected a folder"):
        ls.summarize(tmp_path / "none")
    with pytest.raises(CaseError, match="expected masks"):
        ls.summarize(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputFileError, match="expected a manifest"):
        ls.summarize(tmp_path)


def test_counts_have_a_bar_for_each_number(folder):
    base = ls.summarize(folder).rows[0]
    rows = tuple({**base, "lesion_count": count} for count in (0, 0, 0, 1, 3, 3))
    (figure,) = [
        part for part in build_page(Summary(rows, folder), folder).split("<figure>") if "Lesions: median" in part
    ]
    assert figure.count("<rect") == 3 and "logarithmic" not in figure and "at 0" not in figure
    heights = [float(bar.split('height="')[1].split('"')[0]) for bar in figure.split("<rect")[1:]]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2) and heights[2] == pytest.approx(2 * heights[1], abs=0.2)


def test_zeros_are_told_in_words(folder):
    base = ls.summarize(folder).rows[0]
    (tumours,) = [
        part
        for part in build_page(
            Summary(tuple({**base, "tumour_volume_ml": ml} for ml in (0.0, 0.0, 3.0, 4.0)), folder), folder
        ).split("<figure>")
        if "Tumours (ml): median" in part
    ]
    assert "2 cases at 0, logarithmic" in tumours
