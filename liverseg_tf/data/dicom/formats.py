"""What a mask may be written as. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from liverseg_tf.errors import ConfigError

# Format -> how its file's name ends, and its kind in the record of files that are ours.
PRODUCTS = {
    "seg": (".dcm", "dicom-seg"),
    "sr": ("_sr.dcm", "dicom-sr"),
    "rtstruct": ("_rtstruct.dcm", "dicom-rtstruct"),
    "pdf": ("_report.dcm", "dicom-pdf"),
    "sc": ("_sc.dcm", "dicom-sc"),
}
FORMATS = ("nifti", *PRODUCTS)
SEGMENTATION_TYPES = ("BINARY", "LABELMAP")


def parse_formats(text: str, known: Sequence[str] = FORMATS) -> tuple[str, ...]:
    """Formats as the command line takes them: `nifti,seg`.

    Raises:
        ConfigError: for an unknown one, for none, or for `sr` without the `seg` that it refers to.

    Example:
        >>> parse_formats("nifti,seg")
        ('nifti', 'seg')
    """
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    if names - set(known) or not names:
        raise ConfigError(f"format: expected some of {', '.join(known)}, separated by commas. Received: {text!r}")
    if "sr" in names and "seg" not in names:
        raise ConfigError("format: sr refers to the segments of a seg; expected both, as in seg,sr")
    return tuple(name for name in known if name in names)
