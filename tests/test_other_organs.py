"""Other organs than the liver, the whole way: with a lesion and a further structure, and without a lesion."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.cli.main import main
from liverseg_tf.data.volume import Geometry, MaskVolume
from liverseg_tf.errors import CaseError, ConfigError, GeometryWarning, LabelError
from liverseg_tf.evaluation.measure import find_masks
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.postprocessing import OTHER_ORGANS, PostProcessing
from liverseg_tf.labels import CLASSES, LIVER_CLASSES, ClassSet, color_mask
from liverseg_tf.models.artefacts import Manifest
from liverseg_tf.models.metrics import metrics_from_confusion
from liverseg_tf.ownership import save_image, sign

KIDNEYS = ClassSet.of("kidney", "kidney_tumour", "bone")
SMALL = ["--backbone", "tiny", "--image-size", "32", "--batch-size", "4", "--epochs", "1"]
SMALL += ["--steps-per-epoch", "1", "--no-xla"]


def relabelled(source, folder, change):
    """The phantoms with masks changed by a function of (HU, labels)."""
    for path in sorted(source.glob("volume-*.nii.gz")):
        shutil.copy(path, folder)
        image = nib.load(path.with_name(path.name.replace("volume", "segmentation")))
        labels = change(np.asanyarray(nib.load(path).dataobj), np.asanyarray(image.dataobj))
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), image.affine), folder / f"segmentation-{path.name[7:]}")
    return folder


@pytest.fixture(scope="module")
def kidneys(phantom_folder, tmp_path_factory):
    return relabelled(
        phantom_folder,
        tmp_path_factory.mktemp("kidneys"),
        lambda hu, labels: np.where((hu > 200) & (labels == 0), 3, labels),
    )


@pytest.fixture(scope="module")
def case(kidneys):
    """Scan and mask of the first patient with a tumour."""
    masks = sorted(kidneys.glob("segmentation-*.nii.gz"))
    mask = next(path for path in masks if (np.asanyarray(nib.load(path).dataobj) == 2).any())
    return kidneys / mask.name.replace("segmentation", "volume"), mask


@pytest.fixture(scope="module")
def run(kidneys, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "kidneys"
    assert main(["train", str(kidneys), "-o", str(output), "--classes", "kidney,kidney_tumour,bone", *SMALL]) == 0
    return output


@pytest.fixture(scope="module")
def predicted(run, kidneys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    scan = str(kidneys / "volume-0.nii.gz")
    options = ["--model", str(run), "--probabilities", "--json"]
    assert main(["predict", scan, "-o", str(folder) + "/", *options]) == 0
    return folder


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_run_tells_its_classes(run):
    about = json.loads((run / "run.json").read_text())
    assert about["settings"]["model"]["class_names"] == ["background", "kidney", "kidney_tumour", "bone"]
    assert {"val_case_kidney_dice", "val_case_kidney_tumour_dice", "val_case_bone_dice"} <= set(about["best"])
    assert not any("liver" in name for name in about["best"])
    assert ls.load_model(run).output_shape[-1] == 4


@pytest.mark.slow
def test_a_mask_tells_its_classes(predicted, capsys):
    mask = predicted / "segmentation-0.nii.gz"
    assert MaskVolume.load(mask).classes == KIDNEYS
    names = {p.name for p in predicted.glob("*.nii.gz")} - {mask.name}
    assert names == {f"segmentation-0_{name}.nii.gz" for name in KIDNEYS.names[1:]}
    row = json.loads((predicted / "manifest.jsonl").read_text().splitlines()[-1])
    assert {"kidney_volume_ml", "kidney_tumour_volume_ml", "bone_volume_ml"} <= set(row["statistics"])
    (found,) = printed(capsys, "measure", mask)["measurements"]
    assert {"kidney_volume_ml", "bone_volume_ml"} <= set(found) and "liver" not in json.dumps(found)


def test_masks_of_others_are_measured_by_given_classes(case, capsys):
    mask = case[1]
    with pytest.raises(LabelError, match="expected labels 0 background, 1 liver, 2 tumour; got 3"):
        ls.measure(mask)
    (found,) = printed(capsys, "measure", mask, "--classes", "kidney,kidney_tumour,bone")["measurements"]
    labels = np.asanyarray(nib.load(mask).dataobj)
    voxel_ml = abs(np.linalg.det(nib.load(mask).affine)) / 1000
    for name, members in {"kidney": (1, 2), "kidney_tumour": (2,), "bone": (3,)}.items():
        assert found[f"{name}_volume_ml"] == pytest.approx(np.isin(labels, members).sum() * voxel_ml)
    assert "kidney" in found["lesions"][0]["place"]
    assert main(["measure", str(mask), "--classes", "kidney,kidney_tumour,bone"]) == 0
    assert "bone ml" in capsys.readouterr().out


@pytest.mark.slow
def test_scores_have_the_organs_name_and_none_of_the_challenges(kidneys, predicted, tmp_path, capsys):
    truth = kidneys / "segmentation-0.nii.gz"
    scores = printed(capsys, "evaluate", "--truth", truth, "--prediction", predicted / "segmentation-0.nii.gz")
    assert scores["lits"] == {} and scores["settings"]["lesion"] == "kidney_tumour"
    assert {"kidney_dice", "lesion_dice", "bone_dice", "bone_hd95_mm"} <= set(scores["cases"][0])
    options = ["--classes", "kidney,kidney_tumour,bone", "--figure", str(tmp_path / "f.png")]
    same = ls.evaluate(truth, truth, classes=KIDNEYS, resamples=2)
    assert same.regions == ["kidney", "lesion", "bone"] and same.summary["bone_dice"]["mean"] == 1.0
    assert "kidney Dice per case 1.000" in repr(same)
    assert main(["evaluate", "--truth", str(truth), "--prediction", str(truth), "--resamples", "2", *options]) == 0
    shown = capsys.readouterr().out
    assert "bone" in shown and "LiTS scores" not in shown and "liver" not in shown


def test_a_missed_structure_is_scored(kidneys, tmp_path):
    truth = kidneys / "segmentation-0.nii.gz"
    image = nib.load(truth)
    labels = np.asanyarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(labels == 3, 0, labels).astype(np.uint8), image.affine), tmp_path / "p.nii.gz")
    row = ls.evaluate(truth, tmp_path / "p.nii.gz", classes=KIDNEYS, resamples=2).cases[0]
    assert (row["kidney_dice"], row["bone_dice"]) == (1.0, 0.0)


def test_millimetres_of_a_structure_are_left_out_with_an_identity_affine(kidneys, tmp_path):
    labels = np.asanyarray(nib.load(kidneys / "segmentation-0.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "m.nii.gz")
    with pytest.warns(GeometryWarning, match="left out"):
        scores = ls.evaluate(
            tmp_path / "m.nii.gz", tmp_path / "m.nii.gz", classes=KIDNEYS, resamples=2, exclude_identity=True
        )
    assert {scores.summary[f"{name}_hd95_mm"]["n"] for name in ("kidney", "bone")} == {0}
    assert scores.summary["bone_dice"]["n"] == 1


@pytest.mark.slow
def test_export_explain_and_report_name_what_the_model_names(run, case, tmp_path, capsys):
    exported = ls.export(run, tmp_path / "kidneys")
    assert [row["class"] for row in Manifest.load(exported.manifest).card["output"]] == list(KIDNEYS.names)
    assert "kidney" in Manifest.load(exported.manifest).card["intended_use"]
    scan, mask = case
    asked = {"model": run, "mask": mask, "faithfulness": False}
    assert [one.region.name for one in ls.explain(scan, tmp_path / "e", target="bone", **asked).regions] == ["bone"]
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {"bone.png", "bone_heatmap.nii.gz"}
    assert ls.explain(scan, **asked, most_lesions=1).regions[0].to_dict()["class"] == "kidney_tumour"
    with pytest.raises(
        ConfigError, match="expected kidney_tumour, all-kidney_tumour, kidney or bone. Received: 'liver'"
    ):
        ls.explain(scan, target="liver", **asked)
    page = ls.report(scan, tmp_path / "page.html", run, mask, explanations=False).read_text()
    assert '"name":"bone"' in page.replace(": ", ":") and "Kidney with tumours" in page and "LiTS" not in page


@pytest.mark.slow
def test_dicom_objects_are_of_livers(run, kidneys, tmp_path):
    with pytest.raises(ConfigError, match="DICOM objects support only livers"):
        ls.predict_folder(kidneys / "volume-0.nii.gz", tmp_path / "out", run, formats="nifti,seg")


@pytest.mark.slow
def test_an_organ_without_lesion(phantom_folder, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    relabelled(phantom_folder, folder, lambda hu, labels: labels > 0)
    assert main(["train", str(folder), "-o", str(tmp_path / "run"), "--classes", "spleen", *SMALL]) == 0
    assert "spleen" in capsys.readouterr().out
    predictor = ls.Predictor(tmp_path / "run")
    prediction = predictor.predict(folder / "volume-0.nii.gz")
    prediction.save(tmp_path / "p" / "segmentation-0.nii.gz")
    assert "spleen" in repr(prediction) and predictor.postprocessing == OTHER_ORGANS
    found = prediction.statistics().to_dict()
    assert found["lesion_count"] == 0 and "spleen_volume_ml" in found and not any("tumour" in name for name in found)
    scores = ls.evaluate(folder / "segmentation-0.nii.gz", tmp_path / "p" / "segmentation-0.nii.gz", resamples=2)
    assert scores.regions == ["spleen"] and scores.detection == {}
    assert not any("lesion" in name for row in (*scores.cases, *scores.slices, scores.summary) for name in row)
    masks = ["--truth", folder / "segmentation-0.nii.gz", "--prediction", tmp_path / "p" / "segmentation-0.nii.gz"]
    assert main(["evaluate", *map(str, masks), "--resamples", "2", "--figure", str(tmp_path / "f.png")]) == 0
    assert "lesion" not in capsys.readouterr().out


@pytest.mark.parametrize("classes", [(None, "tumour"), ("kidney", "tumour", None), ("kidney", "kidney"), ("a/b",)])
def test_classes_that_cant_be(classes, kidneys, tmp_path):
    with pytest.raises(ConfigError, match="class"):
        ls.train(ls.find_cases(kidneys), tmp_path / "run", classes=classes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_to_start_from_has_its_classes(run, kidneys, tmp_path):
    with pytest.raises(ConfigError, match="classes: .* has kidney, kidney_tumour, bone; leave them out"):
        ls.train(ls.find_cases(kidneys), tmp_path / "run", from_model=run, classes=("liver", "tumour"))


def test_what_a_class_set_tells():
    vessels = ClassSet.of("liver", None, "vessel")
    assert vessels.lesion is None and [c.index for c in vessels.further] == [2] and vessels.is_liver
    assert KIDNEYS.classes[1].color == CLASSES[1].color and LIVER_CLASSES.classes is CLASSES
    assert len({c.color for c in KIDNEYS.classes}) == len({c.safe_color for c in KIDNEYS.classes}) == 4
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert KIDNEYS.organ_part(labels).ravel().tolist() == [0, 1, 2, 0]
    assert vessels.organ_part(labels[..., :3]).ravel().tolist() == [0, 1, 0]
    assert LIVER_CLASSES.organ_part(labels[..., :3]).base is labels
    assert color_mask(labels, classes=KIDNEYS.classes).shape == (1, 1, 4, 3)
    assert ClassSet.from_json(vessels.to_json()) == vessels and ClassSet.from_json("{}") is None
    assert KIDNEYS.named("no liver, tumours") == "no kidney, tumours"


def test_the_organ_takes_in_its_lesion_alone():
    confusion = np.diag([5, 4, 3, 2])
    confusion[1, 2] = confusion[3, 1] = 1
    found = metrics_from_confusion(confusion, KIDNEYS)
    assert found["kidney_dice"] == pytest.approx(2 * 8 / (8 + 9))
    assert found["bone_dice"] == pytest.approx(2 * 2 / (3 + 2))


def test_clean_up_leaves_further_structures():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:9, 2:9, 2:9] = 1
    labels[5, 5, 5] = 0
    labels[3, 3, 3] = 3
    labels[11, 11, 11] = 3
    cleaned = PostProcessing()(labels.copy(), (2.0, 2.0, 2.0), classes=KIDNEYS)
    assert cleaned[5, 5, 5] == 1 and cleaned[3, 3, 3] == cleaned[11, 11, 11] == 3


KIDNEY = ClassSet.of("kidney", "kidney_tumour")


def kidney_mask(tumour=8, aside=0):
    """No two axes alike, in a grid of 3 mm; a cyst or something else (3) lies beside it."""
    x, y, z = np.indices((40, 46, 36))
    labels = ((((x - 18) / 10) ** 2 + ((y - 22) / 13) ** 2 + ((z - 17) / 14) ** 2) <= 1).astype(np.uint8)
    labels |= ((((x - 25) / 6) ** 2 + ((y - 30) / 7) ** 2 + ((z - 22) / 6) ** 2) <= 1).astype(np.uint8)
    labels[14 : 14 + tumour, 18:24, 14 + aside : 20 + aside] = 2
    return labels


def test_scans_of_another_organ_are_compared_under_its_names(tmp_path, capsys):
    pytest.importorskip("SimpleITK")
    affine, names = np.diag([-3.0, -3, 3, 1]), []
    for number, labels in enumerate((kidney_mask(6), kidney_mask(9))):
        names.append(str(tmp_path / f"mask-{number}.nii.gz"))
        labels[1:3, 1:3, 1:3] = 3  # far away: it must not take part
        nib.save(nib.Nifti1Image(labels, affine), names[-1])
    arguments = ["compare", *names, "-o", str(tmp_path / "out"), "--classes", "kidney,kidney_tumour,cyst", "--json"]
    assert main(arguments) == 0
    printed_text = capsys.readouterr().out
    found = json.loads(printed_text)
    assert found["scans"][0]["kidney_tumour_volume_ml"] == pytest.approx(6 * 36 * 27 / 1000)
    assert found["lesions"][0]["sightings"][1]["event"] == "kept" and found["scans"][1]["registration"]["by"]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Kidney tumour (ml)" in page and "liver" not in page.split("</style>")[1].lower().replace("liverseg", "")
    assert "liver" not in json.dumps({k: found[k] for k in ("scans", "lesions", "responses")})
    whole = MaskVolume.load(names[0], classes=ClassSet.of("kidney", "kidney_tumour", "cyst"))
    with pytest.raises(ConfigError, match="expected all of one organ, got kidney, kidney_tumour, cyst and then liver"):
        ls.compare(whole, MaskVolume(kidney_mask(), whole.geometry))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """File of a calibration for kidneys."""
    from liverseg_tf.calibration.calibrate import fit, labelled_case

    geometry = Geometry.from_spacing((40, 46, 36), (3, 3, 3))
    cases = []
    for number in range(20):
        truth, predicted = kidney_mask(8), kidney_mask(5 + number % 5)
        truth[0, 0, 0] = predicted[:2, 0, 0] = 3
        cases.append(labelled_case(*(MaskVolume(one, geometry, classes=KIDNEYS) for one in (truth, predicted))))
    assert cases[0].true_liver_ml == pytest.approx(np.count_nonzero(kidney_mask()) * 27 / 1000)  # without the bone
    path = tmp_path_factory.mktemp("calibration") / "c.json"
    fit(cases, with_ct=False).save(path)
    return path


def test_another_organ_is_calibrated_and_judged_under_its_names(calibration):
    from liverseg_tf.calibration.calibrate import labelled_case

    geometry = Geometry.from_spacing((40, 46, 36), (3, 3, 3))
    found = ls.Calibration.load(calibration)
    assert found.classes == KIDNEYS
    judged = found.judge(ls.measure(kidney_mask(8), spacing_mm=(3, 3, 3), classes=KIDNEYS))
    low, high = judged["kidney_tumour_interval_ml"]
    assert low < 8 * 36 * 27 / 1000 < high and "kidney_interval_ml" in judged and "liver" not in json.dumps(judged)
    liver = MaskVolume(kidney_mask(8), geometry)
    with pytest.raises(ConfigError, match="expected a mask of kidney, kidney_tumour, bone, got one of liver"):
        labelled_case(MaskVolume(kidney_mask(8), geometry, classes=KIDNEYS), liver)


@pytest.mark.slow
def test_predicted_volumes_of_another_organ_get_its_intervals(run, case, calibration, tmp_path):
    (row,) = ls.predict_folder(case[0], tmp_path / "out", run, calibration=calibration)
    assert row["status"] == "done" and {"kidney_interval_ml", "kidney_tumour_interval_ml"} <= set(row["calibrated"])


def test_an_archive_of_another_organ_is_summed_up_under_its_names(tmp_path, capsys):
    from liverseg_tf.ownership import signed_line

    measured = ls.measure(kidney_mask(6), spacing_mm=(3, 3, 3), classes=KIDNEY)
    row = {"input": "scans/a.nii.gz", "output": "segmentation-1.nii.gz", "status": "done", "seconds": 3.0}
    lines = [{"settings": {}, "model": "net"}, row | {"statistics": measured.statistics.to_dict()}]
    (tmp_path / "manifest.jsonl").write_text("".join(signed_line(line, "manifest") for line in lines))
    nib.save(nib.Nifti1Image(kidney_mask(9)[:20], np.diag([-3.0, -3, 3, 1])), tmp_path / "segmentation-2.nii.gz")
    with pytest.raises(CaseError, match="expected masks of one organ, got kidney, liver"):
        ls.summarize(tmp_path)
    found = printed(capsys, "summarize", tmp_path, "-o", tmp_path / "a.html", "--classes", "kidney,kidney_tumour")
    assert [r["kidney_tumour_volume_ml"] for r in found["rows"]] == pytest.approx([5.832, 5.832])
    assert found["rows"][1]["flags"] == ["cut_by_field_of_view"] and found["rows"][0]["flags"] == []  # no small_liver
    assert "kidney_volume_ml" in (tmp_path / "a.csv").read_text().splitlines()[0]
    page = (tmp_path / "a.html").read_text()
    assert "Kidney tumour (ml)" in page and "kidney goes on beyond" in page


@pytest.mark.slow
def test_what_predict_writes_beside_masks_of_another_organ_is_no_mask(predicted):
    from liverseg_tf.evaluation.measure import find_masks

    assert len(list(predicted.glob("*.nii.gz"))) == 4
    assert [one.mask.name for one in find_masks(predicted)] == ["segmentation-0.nii.gz"]


def test_verify_goes_by_the_classes_that_are_given_or_told(kidneys, case, tmp_path, capsys):
    assert {f.kind for f in ls.verify(kidneys).errors} == {"labels"}  # 3 is no class of livers
    found = ls.verify(kidneys, classes=KIDNEYS)
    assert not found.errors and set(found.cases[0]["voxels"]) == set(KIDNEYS.names)
    labels = np.asanyarray(nib.load(case[1]).dataobj)
    shutil.copy(case[0], tmp_path / "volume-1.nii.gz")
    stray = np.where(labels == 1, 0, labels)
    nib.save(nib.Nifti1Image(stray, nib.load(case[1]).affine), tmp_path / "segmentation-1.nii.gz")
    assert main(["verify", str(tmp_path), "--classes", "kidney,kidney_tumour,bone", "--json"]) == 0
    messages = [finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert any("pieces of kidney tumour" in m and "touch no kidney" in m for m in messages), messages
    assert not any("liver" in message for message in messages)
    image = sign(nib.Nifti1Image(labels, nib.load(case[1]).affine), "mask", KIDNEYS.to_json())
    nib.save(image, tmp_path / "segmentation-1.nii.gz")
    assert ls.verify(tmp_path).cases[0]["voxels"]["bone"] == np.count_nonzero(labels == 3)


@pytest.mark.slow
def test_slices_hold_the_classes_that_are_given(kidneys, tmp_path, capsys):
    out = tmp_path / "pictures"
    assert main(["slices", str(kidneys), "-o", str(out)]) == 1
    assert "expected labels 0 background, 1 liver, 2 tumour; got 3" in capsys.readouterr().err
    assert main(["slices", str(kidneys), "-o", str(out), "--format", "png", "--classes", "kidney,none,cyst,bone"]) == 0
    largest = max(int(labels.numpy().max()) for _, labels in ls.image_folder_dataset(out))
    assert largest == 3


def test_a_map_is_told_by_its_header_and_not_by_its_name(tmp_path):
    """Probabilities, whatever their class, are no masks and no CTs; a mask that is named like them is one."""
    grid = np.eye(4)
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    save_image(nib.Nifti1Image(labels, grid), tmp_path / "x_seg.nii.gz", "mask", comment=KIDNEYS.to_json())
    nib.save(nib.Nifti1Image(labels, grid), tmp_path / "y_liver.nii.gz")
    for name, kind in (("kidney_tumour", "probabilities"), ("bone", "probabilities"), ("uncertainty", "uncertainty")):
        save_image(nib.Nifti1Image(labels * 9, grid), tmp_path / f"x_seg_{name}.nii.gz", kind)
    save_image(nib.Nifti1Image(labels * 9, grid), tmp_path / "renamed.nii.gz", "probabilities")
    assert [one.mask.name for one in find_masks(tmp_path)] == ["x_seg.nii.gz", "y_liver.nii.gz"]
    assert [row["mask"] for row in ls.summarize(tmp_path, classes=KIDNEYS).rows] == ["x_seg.nii.gz", "y_liver.nii.gz"]
    assert {job.name for job in plan([tmp_path], tmp_path / "out")} == {"y_liver.nii.gz"}
