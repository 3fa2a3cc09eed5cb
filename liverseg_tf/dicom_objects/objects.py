"""A mask as DICOM objects: each is written, read again, and kept only if it agrees with the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liverseg_tf.data.dicom.formats import PRODUCTS, parse_formats
from liverseg_tf.data.nifti import stem
from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_voxels
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.dicom_objects.proof import prove
from liverseg_tf.errors import GeometryError
from liverseg_tf.ownership import owned_write

if TYPE_CHECKING:
    from liverseg_tf.inference.predictor import Prediction


def write_dicom_objects(
    mask: str | Path | MaskVolume | Prediction | np.ndarray,
    ct: str | Path | CTVolume,
    folder: str | Path,
    formats: Sequence[str] = ("seg",),
    *,
    name: str | None = None,
    segmentation_type: str = "BINARY",
    lesion_segments: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write any mask of a DICOM CT as DICOM objects, whoever made it; each is read again and must agree with the mask.

    Args:
        mask: a mask file, a `MaskVolume`, a `Prediction`, or labels (rows A->P, columns R->L, slices I->S) of 0, 1 and
            2; on the CT's grid, in whatever order its axes are stored.
        ct: the series: a folder of DICOM files, a .zip archive, or a `CTVolume` loaded from one.
        folder: made if missing.
        formats: of `seg`, `sr` (TID 1500; with `seg`, which it refers to), `rtstruct`, `pdf` (the report page)
            and `sc` (a contact sheet as Secondary Capture).
        name: what the files' names begin with; by default the CT's name and `_seg`.
        segmentation_type: `BINARY`, which every viewer reads, or the smaller `LABELMAP`.
        lesion_segments: one segment for each lesion; always with `sr`.
        overwrite: replace files that this library did not make.

    Returns:
        One row per file: `format`, `output`, and under `read_again` the figures that were read.

    Raises:
        ConfigError: for formats that don't exist.
        GeometryError: for a mask on another grid.
        OutputError: for an empty mask, a CT that is no DICOM series, and as `write_objects`.
        InputFileError, LabelError: for a mask or CT that can't be read.
        MissingDependencyError: if highdicom is missing.

    Examples:
        >>> rows = write_dicom_objects("study/segmentation-0.nii.gz", "study/volume-0", "out", ("seg",))
        >>> rows[0]["output"], len(rows[0]["read_again"]["lesions"])
        ('out/volume-0_seg.dcm', 0)
    """
    wanted = parse_formats(",".join(formats), tuple(PRODUCTS))
    volume = ct if isinstance(ct, CTVolume) else CTVolume.load(ct)
    if isinstance(mask, (str, Path)):
        mask = MaskVolume.load(mask, like=volume)
    base = Path(folder, name or f"{stem(volume.path or 'ct')}_seg")
    return write_objects(
        Findings(_labels(mask, volume), volume, str(getattr(mask, "model_name", None) or "")),
        {one: base.with_name(f"{base.name}{PRODUCTS[one][0]}") for one in wanted},
        segmentation_type=segmentation_type,
        lesion_segments=lesion_segments,
        inputs=[mask.path] if isinstance(mask, MaskVolume) and mask.path else (),
        overwrite=overwrite,
    )


def _labels(mask: MaskVolume | Prediction | np.ndarray, volume: CTVolume) -> np.ndarray:
    """A mask in the canonical view of its CT."""
    if not isinstance(mask, MaskVolume):
        labels = np.asarray(getattr(mask, "canonical_labels", mask))
        if labels.shape != volume.shape:
            raise GeometryError(f"mask: expected the shape {volume.shape} of {volume.name}, got {labels.shape}")
        return MaskVolume(volume.geometry.to_file(labels), volume.geometry).labels
    check_same_voxels(volume.geometry, mask.geometry, (volume.name, mask.path or "mask"))
    return mask.labels


def write_objects(
    findings: Findings,
    paths: dict[str, Path],
    *,
    segmentation_type: str = "BINARY",
    lesion_segments: bool = False,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write DICOM objects, and read each again before it gets its name; one that differs from the mask is removed.

    Args:
        findings: the mask, with at least one voxel of liver.
        paths: where each format goes, as `{"seg": Path("x_seg.dcm")}`; `sr` needs `seg`.
        segmentation_type: `BINARY` or `LABELMAP`.
        lesion_segments: one segment for each lesion; always with `sr`, whose groups refer to them.
        inputs, overwrite: as `ownership.claim`.

    Returns:
        One row per file: `format`, `output`, and under `read_again` the figures that were read.

    Raises:
        OutputError: if a file may not or can't be written, or does not agree with the mask.
    """
    from liverseg_tf.dicom_objects.document import write_document, write_picture
    from liverseg_tf.dicom_objects.segmentation import write_segmentation
    from liverseg_tf.dicom_objects.structure_set import write_structure_set
    from liverseg_tf.dicom_objects.structured_report import write_report

    each = lesion_segments or "sr" in paths
    writers: dict[str, Callable[[Path], None]] = {
        "seg": lambda path: write_segmentation(findings, path, segmentation_type, lesion_segments=each),
        "sr": lambda path: write_report(findings, path, paths["seg"]),
        "rtstruct": lambda path: write_structure_set(findings, path),
        "pdf": lambda path: write_document(findings, path),
        "sc": lambda path: write_picture(findings, path),
    }
    inputs = [*inputs, *findings.volume.files]
    rows = []
    for name in PRODUCTS:
        if name in paths:
            with owned_write(paths[name], PRODUCTS[name][1], inputs=inputs, overwrite=overwrite) as temporary:
                writers[name](temporary)
                figures = prove(temporary, findings)
            rows.append({"format": name, "output": str(paths[name]), "read_again": figures})
    return rows
