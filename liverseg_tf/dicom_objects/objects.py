"""Everything that a prediction becomes as DICOM: claimed, written, read again, and kept only if it is proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.data.dicom.formats import PRODUCTS
from liverseg_tf.dicom_objects.proof import prove
from liverseg_tf.ownership import owned_write

if TYPE_CHECKING:
    from liverseg_tf.dicom_objects.findings import Findings


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
        lesion_segments: one segment a lesion; always with `sr`, whose groups refer to them.
        inputs, overwrite: as `ownership.claim`.

    Returns:
        A row a file: `format`, `output`, and under `read_again` the figures that were read.

    Raises:
        OutputError: if a file may not or can't be written, or isn't what the mask is.
    """
    from liverseg_tf.dicom_objects.document import write_document
    from liverseg_tf.dicom_objects.report import write_report
    from liverseg_tf.dicom_objects.segmentation import write_segmentation
    from liverseg_tf.dicom_objects.structure_set import write_structure_set

    each = lesion_segments or "sr" in paths
    writers: dict[str, Callable[[Path], None]] = {
        "seg": lambda path: write_segmentation(findings, path, segmentation_type, lesion_segments=each),
        "sr": lambda path: write_report(findings, path, paths["seg"]),
        "rtstruct": lambda path: write_structure_set(findings, path),
        "pdf": lambda path: write_document(findings, path),
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
