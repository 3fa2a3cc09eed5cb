"""DICOM Encapsulated PDF and Secondary Capture: pages and a picture for viewers that show no segmentation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.data.dicom.headers import quiet
from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.dicom_objects.attributes import new_object
from liverseg_tf.dicom_objects.findings import Findings
from liverseg_tf.errors import DataWarning, warn
from liverseg_tf.labels import CLASS_NAMES
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE

_A4_INCHES = (8.27, 11.69)
_MOST_LESIONS = 30
_PICTURE_DPI = 110
_TITLE = "Liver and lesions (research only)"


def write_document(findings: Findings, path: Path) -> None:
    """Write the report page, printed on two A4 pages by a headless browser, as a PDF inside a DICOM file.

    Without a browser matplotlib draws the volumes, the table of lesions and a contact sheet of slices instead. Neither
    the pages nor the title name the patient or the folder; the header has the patient, as the CT's does.

    Warns:
        DataWarning: if the page could not be printed, with the reason.
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


def write_picture(findings: Findings, path: Path) -> None:
    """Write the contact sheet of slices, headed by the volumes, as a Secondary Capture image.

    It names neither the patient nor the folder; the header has the patient, as the CT's does.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from pydicom.uid import SecondaryCaptureImageStorage

    sheet = _contact_sheet(findings)
    sheet.set_dpi(_PICTURE_DPI)
    canvas = FigureCanvasAgg(sheet)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    with quiet():
        source = findings.source_datasets(slice(0, 1))[0]
        data = new_object(source, SecondaryCaptureImageStorage, "OT", 9005, _TITLE)
        del data.FrameOfReferenceUID, data.PositionReferenceIndicator
        data.ConversionType, data.BurnedInAnnotation = "WSD", "NO"
        data.BodyPartExamined = "LIVER"
        data.ImageType, data.PatientOrientation = ["DERIVED", "SECONDARY"], ""
        data.Rows, data.Columns, data.SamplesPerPixel = pixels.shape
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        content = pixels.tobytes()
        data.add_new("PixelData", "OB", content + b"\0" * (len(content) % 2))
        data.save_as(path, enforce_file_format=True)


def _contact_sheet(findings: Findings) -> Any:
    """A matplotlib figure: telling slices with outlines, headed by the volumes; the folder's name is not on it."""
    from liverseg_tf.reporting.montage import montage

    geometry, found = findings.volume.geometry, findings.statistics
    sheet = montage(findings.volume, MaskVolume(geometry.to_file(findings.labels), geometry))
    lesions = f"lesions: {found.lesion_count}, {found.tumour_volume_ml:.1f} ml"
    sheet.suptitle(f"{_TITLE}. {NOT_A_MEDICAL_DEVICE}\nLiver: {found.liver_volume_ml:.0f} ml; {lesions}")
    return sheet


def _pdf(findings: Findings) -> bytes:
    """The report page, or matplotlib's figures where no browser prints it."""
    from liverseg_tf.reporting.printing import NotPrintedError, find_browser, print_page

    try:
        browser = find_browser()
        if browser is None:
            raise NotPrintedError("it needs chromium or google-chrome on the PATH, and Linux or macOS")
        return print_page(_report_page(findings), browser)
    except NotPrintedError as error:
        warn(
            f"{findings.volume.name}: the PDF holds a table and a contact sheet; the report page was not printed: "
            f"{error}",
            DataWarning,
        )
        return _figures(findings)


def _report_page(findings: Findings) -> str:
    """The report page's HTML, without heatmaps."""
    from liverseg_tf.evaluation.measure import measure
    from liverseg_tf.inference.predictor import Prediction
    from liverseg_tf.reporting.page import ReportContent, build_page

    volume, labels = findings.volume, findings.labels
    mask = MaskVolume(volume.geometry.to_file(labels), volume.geometry)
    measured = measure(mask, volume)
    model = [("Model", findings.model or "unknown"), ("SHA-256", findings.model_sha256 or "unknown")]
    return build_page(ReportContent(Prediction(volume, labels, CLASS_NAMES), measured, model=model), _TITLE)


def _figures(findings: Findings) -> bytes:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

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
    pictures = _contact_sheet(findings)
    sink = io.BytesIO()
    with PdfPages(sink, metadata={"Title": _TITLE, "Creator": "liverseg_tf"}) as pdf:
        pdf.savefig(page)
        pdf.savefig(pictures, dpi=_PICTURE_DPI)
    return sink.getvalue()
