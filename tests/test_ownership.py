"""Ours is replaced, what is no longer ours or never was is refused, inputs never are written over."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.errors import OutputError
from liverseg_tf.files import write_text as write_foreign
from liverseg_tf.ownership import (
    LEDGER,
    carries_our_mark,
    claim,
    claim_folder,
    is_ours,
    owned_write,
    read_signed_line,
    refuse_inputs,
    save_image,
    signed_line,
    write_text,
)


def test_a_file_of_ours_is_replaced_until_somebody_changes_it(tmp_path):
    path = tmp_path / "cases.csv"
    write_text(path, "one", "table")
    write_text(path, "two", "table")
    assert path.read_text() == "two" and is_ours(path, "table")
    path.write_text("two, corrected")
    with pytest.raises(OutputError, match="was changed since this library made it.*overwrite=True"):
        write_text(path, "three", "table")
    assert path.read_text() == "two, corrected"
    write_text(path, "three", "table", overwrite=True)
    assert path.read_text() == "three" and is_ours(path, "table")


def test_files_of_others_and_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "scores.json"
    write_foreign(path, "{}")
    with pytest.raises(OutputError, match="was not made by this library"):
        claim(path, "scores")
    assert claim(path, "scores", overwrite=True) == path
    write_text(path, "{}", "scores", overwrite=True)
    with pytest.raises(OutputError, match=r"another result of this library \(scores\)"):
        claim(path, "run")
    (tmp_path / LEDGER).unlink()
    with pytest.raises(OutputError, match="was not made by this library"):
        claim(path, "scores")


def test_folders_devices_and_impossible_names_are_refused_whatever_is_said(tmp_path):
    for path in (tmp_path, "/dev/null", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError):
            claim(path, "table", overwrite=True)


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link", "link to the folder", "file URL", "dots"])
def test_inputs_are_never_written_over_under_any_name(tmp_path, link):
    source = tmp_path / "data" / "ct.nii.gz"
    source.parent.mkdir()
    source.write_bytes(b"ct")
    name = tmp_path / "link.nii.gz"
    if link == "symlink":
        name.symlink_to(source)
    elif link == "hard link":
        os.link(source, name)
    elif link == "link to the folder":
        (tmp_path / "other").symlink_to(source.parent)
        name = tmp_path / "other" / source.name
    else:
        name = {"itself": source, "file URL": source, "dots": tmp_path / "data" / ".." / "data" / source.name}[link]
    inputs = [f"file://{source}" if link == "file URL" else source]
    with pytest.raises(OutputError, match="is an input and is never written over"):
        claim(name, "mask", inputs=inputs, overwrite=True)
    claim(tmp_path / "data" / "mask.nii.gz", "mask", inputs=inputs)


def test_urls_are_inputs_too():
    inputs = ["s3://bucket/scans/ct.nii.gz"]
    for output in ("s3://bucket/scans/ct.nii.gz", "S3A://bucket//scans/ct.nii.gz"):
        with pytest.raises(OutputError, match="is an input"):
            refuse_inputs([output], inputs)
    refuse_inputs(["gs://bucket/scans/ct.nii.gz", "s3://bucket/scans/other.nii.gz"], inputs)


def image(kind=nib.Nifti1Image, dtype=np.uint8, **header):
    made = kind(np.arange(60, dtype=dtype).reshape(3, 4, 5), np.diag([-1.5, -1.5, 3, 1]))
    for name, value in header.items():
        made.header[name] = value
    return made


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_images_are_known_by_their_header_and_content(tmp_path, kind, suffix):
    path = tmp_path / f"mask{suffix}"
    save_image(image(kind), path, "mask")
    assert is_ours(path, "mask") and not is_ours(path, "phantom")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no record beside it
    moved = path.rename(tmp_path / f"moved{suffix}")
    assert is_ours(moved, "mask") and carries_our_mark(moved.read_bytes()[:2048], "mask")

    # one voxel by hand, in a program that keeps the header
    loaded = nib.load(moved)
    voxels = np.array(loaded.dataobj)
    assert np.array_equal(voxels.ravel(), np.arange(60))
    voxels[0, 0, 0] = 2
    nib.save(kind(voxels, loaded.affine, loaded.header), moved)
    assert carries_our_mark(moved.read_bytes()[:2048], "mask")
    with pytest.raises(OutputError, match="was changed since this library made it"):
        save_image(image(kind), moved, "mask")


@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float32])
def test_scaled_and_big_endian_images_are_known_too(tmp_path, dtype):
    made = image(dtype=np.dtype(dtype))
    made.header.set_slope_inter(1 / 255, 0)
    save_image(made, tmp_path / "x.nii.gz", "probabilities")
    assert is_ours(tmp_path / "x.nii.gz", "probabilities")
    assert nib.load(tmp_path / "x.nii.gz").dataobj[1, 0, 0] == pytest.approx(20 / 255)


def test_a_changed_header_or_tail_or_a_cut_file_is_no_longer_ours(tmp_path):
    path = tmp_path / "mask.nii.gz"
    save_image(image(), path, "mask")
    content = gzip.decompress(path.read_bytes())
    for changed in (content[:270] + b"\1" + content[271:], content + b"note", content[:-1]):
        path.write_bytes(gzip.compress(changed))
        with pytest.raises(OutputError, match="was changed since"):
            claim(path, "mask")
    path.write_bytes(gzip.compress(content))  # packed anew, the same inside
    assert is_ours(path, "mask")
    path.write_bytes(path.read_bytes()[:-20])
    assert not is_ours(path, "mask")


def test_masks_of_version_0_1_0_say_too_little(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "mask.nii.gz", np.zeros((3, 4, 5), np.uint8), descrip=b"liverseg_tf 0.1.0")
    assert not is_ours(path, "mask") and not carries_our_mark(path.read_bytes(), "mask")


def test_header_texts_that_may_name_the_patient_go(tmp_path):
    texts = dict.fromkeys(("data_type", "db_name", "descrip", "aux_file", "intent_name"), b"DOE^JANE")
    made = image(**texts)
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    save_image(made, tmp_path / "mask.nii", "mask")
    second = image(nib.Nifti2Image, unused_str=b"DOE^JANE")
    save_image(second, tmp_path / "second.nii", "mask")
    assert b"DOE" not in (tmp_path / "mask.nii").read_bytes() + (tmp_path / "second.nii").read_bytes()


def test_lines_are_known_one_by_one(tmp_path):
    path, rows = tmp_path / "manifest.jsonl", [{"a": 0.1, "b": "ä"}, {"c": None}]
    lines = [signed_line(row, "manifest") for row in rows]
    assert [read_signed_line(line, "manifest") for line in lines] == rows
    assert read_signed_line(lines[0], "other") is None and read_signed_line('["digest"]', "manifest") is None
    for content, ours in (
        ("".join(lines), True),
        (lines[0] + lines[1][:-9], True),  # cut by a kill
        (lines[0] + "a note", False),
        (lines[0] + '{"a": "note"}', False),
        (lines[0] + "a note\n", False),
        (lines[0].replace("0.1", "0.2") + lines[1], False),
        ('{"a": 1}\n', False),
        ("", False),
    ):
        path.write_text(content)
        assert is_ours(path, "manifest") is ours, content


def test_folders_are_replaced_only_if_every_file_is_ours(tmp_path):
    folder = tmp_path / "images"

    def write():
        with owned_write(folder, "images", folder=True) as temporary:
            (temporary / "masks").mkdir(parents=True)
            (temporary / "masks" / "1.png").write_bytes(b"mask")

    write()
    write()
    mask = folder / "masks" / "1.png"
    for spoil, words in (
        (lambda: mask.write_bytes(b"corrected"), "1.png: exists and was changed"),
        (lambda: (folder / "notes.txt").write_text("mine"), "notes.txt: exists and was not made"),
    ):
        spoil()
        with pytest.raises(OutputError, match=words):
            write()
        mask.write_bytes(b"mask")
    (folder / "notes.txt").unlink()
    with pytest.raises(OutputError, match="is an input"):
        claim_folder(folder, "images", inputs=[mask])
    write()


def test_a_kill_between_record_and_name_leaves_the_old_file_ours(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_text(path, "old", "scores")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OutputError):
            write_text(path, "new", "scores")
    assert path.read_text() == "old" and is_ours(path, "scores")
