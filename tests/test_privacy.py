"""Who a patient is stays in the DICOM objects: no log, manifest, NIfTI header, table or page says it."""

import gzip
import logging

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from liverseg_tf.cli.main import main  # noqa: E402
from liverseg_tf.data.dicom.writing import series_datasets  # noqa: E402
from liverseg_tf.data.phantom import make_phantom  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
SECRETS = {
    "PatientName": "ZEPHYRINE^QUILL",
    "PatientID": "PID-77431",
    "PatientBirthDate": "19510623",
    "AccessionNumber": "ACC99817",
    "ReferringPhysicianName": "WHOMSOEVER^ORLA",
    "InstitutionName": "St Elsewhere",
    "StudyDate": "20210304",
    "StudyDescription": "for Mrs Quill",
    "SeriesDescription": "QUILL portal 20210304",
    "OperatorsName": "PELHAM",
}
WORDS = ("zephyrine", "quill", "77431", "19510623", "99817", "whomsoever", "elsewhere", "20210304", "pelham", "hushed")


@pytest.fixture
def named_ct(tmp_path):
    phantom = make_phantom(3, (48, 48, 8))
    folder = tmp_path / "ct"
    folder.mkdir()
    hu = np.asarray(phantom.geometry.to_file(phantom.hu), np.int16)
    for index, data in enumerate(series_datasets(hu, phantom.geometry.affine, "X", "X", 1, 0)):
        for name, value in SECRETS.items():
            setattr(data, name, value)
        data.private_block(0x0009, "LIVERSEG TEST", create=True).add_new(1, "LO", "hushed")
        data.save_as(folder / f"IM{index}", enforce_file_format=True)
    return folder


def said(text):
    text = text.lower()
    return [word for word in WORDS if word in text]


@pytest.mark.slow
def test_nobody_is_named_outside_of_dicom_objects(named_ct, tmp_path, open_model_file, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    model = ["--model", str(open_model_file)]
    out = tmp_path / "out"
    predict = ["predict", str(named_ct), "-o", str(out), *model, "--no-postprocessing", "--statistics"]
    assert main([*predict, "--format", "nifti,seg,sr"]) == 0
    assert main(["series", str(named_ct), "--json"]) == 0
    assert main(["measure", str(out / "ct_seg.dcm"), str(named_ct), "-o", str(out / "measured.json")]) == 0
    assert main(["report", str(named_ct), "-o", str(out / "page.html"), *model, "--no-heatmaps"]) == 0
    (named_ct / "IM3").write_bytes((named_ct / "IM3").read_bytes()[:-7])
    assert main(["series", str(named_ct)]) == 1
    printed = capsys.readouterr()
    assert not said(printed.out + printed.err + caplog.text)
    written = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert {"manifest.jsonl", "ct_seg.nii.gz", "measured.json", "page.html"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert not said(content.decode("latin-1")), path.name
    objects = [pydicom.dcmread(path) for path in out.glob("*.dcm")]
    assert len(objects) == 2
    for data in objects:  # theirs they are, and no more than the patient's and the study's own attributes
        assert data.PatientName == "ZEPHYRINE^QUILL" and "hushed" not in str(data) and "PELHAM" not in str(data)
