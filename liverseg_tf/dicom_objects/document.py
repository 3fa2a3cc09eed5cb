"""DICOM Encapsulated PDF: a page of figures and pictures for viewers that show no segmentation."""

from __future__ import annotations

import io
from pathlib import Path

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.dicom_objects.attributes import new_object
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE

_A4_INCHES = (8.27, 11.69)
_MOST_LESIONS = 30
_TITLE = "Liver and lesions (research only)"


def write_document(findings: Findings, path: Path) -> None:
    """Write the volumes, the table of lesions and a contact sheet of slices as a PDF inside a DICOM file.

    Neither the pages nor the title name the patient; the header does, as the CT's.
    """
    from pydicom.uid import EncapsulatedPDFStorage

    content = _pdf(findings)
    with quiet():
        source = findings.source_datasets(slice(0, 1))[0]
        data = new_object(source, EncapsulatedPDFStorage, "DOC", 9004, _TITLE)
        del data.FrameOfReferenceUID, data.PositionReferenceIndicator
        data.ConversionType, data.BurnedInAnnotation = "WSD", "NO"
        data.AcquisitionDateTime, data.DocumentTitle = "", _TITLE
        data.ConceptNameCodeSequence = []
        data.MIMETypeOfEncapsulatedDocument = "application/pdf"
        data.EncapsulatedDocumentLength = len(content)
        data.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
        data.save_as(path, enforce_file_format=True)


def _pdf(findings: Findings) -> bytes:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    from liverseg_tf.reporting.montage import montage

    found = findings.statistics
    lines = [
        _TITLE,
        NOT_A_MEDICAL_DEVICE,
        "",
        f"Liver, lesions included: {found.liver_volume_ml:.0f} ml",
        f"Lesions: {found.lesion_count}, together {found.tumour_volume_ml:.1f} ml",
        "",
    ]
    if findings.lesions:
        lines.append(f"{'lesion':>6} {'ml':>8} {'long mm':>8} {'short mm':>8} {'slice':>6} {'mean HU':>8}")
    for one in findings.lesions[:_MOST_LESIONS]:
        lesion, axes = one.statistics, one.axes
        lines.append(
            f"{lesion.number:>6} {lesion.volume_ml:>8.2f} {axes.long_axis_mm:>8.1f} {axes.short_axis_mm:>8.1f} "
            f"{axes.slice + 1:>6} {lesion.mean_hu:>8.0f}"
        )
    if len(findings.lesions) > _MOST_LESIONS:
        lines.append(f"and {len(findings.lesions) - _MOST_LESIONS} smaller ones")
    lines += ["", "Long axis: longest diameter in an axial slice; short axis: perpendicular to it (RECIST 1.1).",
              f"Slices are counted from the feet. Model {findings.model or 'unknown'}."]  # fmt: skip
    page = Figure(figsize=_A4_INCHES)
    page.text(0.08, 0.95, "\n".join(lines), family="monospace", fontsize=9, va="top")
    geometry = findings.volume.geometry
    pictures = montage(findings.volume, MaskVolume(geometry.to_file(findings.labels), geometry))
    sink = io.BytesIO()
    with PdfPages(sink, metadata={"Title": _TITLE, "Creator": "liverseg_tf"}) as pdf:
        pdf.savefig(page)
        pdf.savefig(pictures, dpi=110)
    return sink.getvalue()
