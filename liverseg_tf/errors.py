"""Errors and warnings of this library.

Every message is one line that says what was expected, what was got and what to do.
The command line prints it and exits with status 1; nothing else is shown.
"""

import re
import sys
import warnings
from typing import Any


class _WithoutSecrets(Exception):  # noqa: N818 - of warnings too
    def __init__(self, *arguments: object):
        super().__init__(*(without_secrets(text) if isinstance(text, str) else text for text in arguments))


class LiverSegError(_WithoutSecrets):
    """Base of all errors that this library raises on purpose.

    Users, passwords and signatures in URLs are left out of its message, even if another library wrote it.

    Examples:
        >>> import liverseg_tf as ls
        >>> try:
        ...     ls.CTVolume.load("missing.nii.gz")
        ... except LiverSegError as error:
        ...     type(error).__name__
        'InputFileError'
    """


class InputFileError(LiverSegError):
    """A file that can't be used: missing, empty, truncated, or of another format than its name says."""


class GeometryError(LiverSegError):
    """Shapes, affines or orientations that don't match."""


class LabelError(LiverSegError):
    """A mask with invalid values."""


class CaseError(LiverSegError):
    """Volumes and masks that can't be paired, grouped or split."""


class ConfigError(LiverSegError):
    """An option or a configuration that can't be used."""


class ModelError(LiverSegError):
    """A model that can't be found, read, or used for this."""


class OutputError(LiverSegError):
    """A result that can't be written, or that would overwrite something."""


class TrainingError(LiverSegError):
    """A training that can't start or go on."""


class ServerError(LiverSegError):
    """A model server that can't be reached or refuses."""


class MissingDependencyError(LiverSegError):
    """An optional package that isn't installed; the message names the extra that installs it."""


class LiverSegWarning(_WithoutSecrets, UserWarning):
    """Base of all warnings of this library; their messages contain no credentials either."""


class NotHounsfieldWarning(LiverSegWarning):
    """Intensities that don't look like Hounsfield units."""


class GeometryWarning(LiverSegWarning):
    """Geometry that is usable but suspicious: identity affine, strong obliqueness, qform against sform."""


class DataWarning(LiverSegWarning):
    """Data that is usable but suspicious: NaN, orphan masks, no liver found, patients in both parts of a split."""


def warn(message: str, category: type[LiverSegWarning]) -> None:
    """Warn, and give as location the line of the user's program that called this library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, level)


def first_line(error: object) -> str:
    """The first line of another library's message, at most 200 characters, to quote within one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional `module`, or raise an error that names the extra that installs it.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {module.split('.')[0]!r}, which can't be imported ({error}); "
            f"install it with: pip install 'liverseg_tf[{extra}]'"
        ) from error


# Names in a URL's query whose values give access: signatures (`X-Amz-Signature`, a SAS's `sig`), tokens, keys.
_SECRET = re.compile(
    r"([?&;](?:[^\s=&;?#]*(?:sig|token|key|secret|passw|pwd|credential|auth|jwt|session)[^\s=&;?#]*|code)=)[^\s&;#'\")]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Remove users, passwords, signatures and keys from a URL, or from a text that contains URLs.

    Example:
        >>> without_secrets("https://anna:secret@host:8501/liverseg")
        'https://host:8501/liverseg'
        >>> without_secrets("https://host/ct.nii.gz?sv=2024&sig=a%2Fb")
        'https://host/ct.nii.gz?sv=2024&sig=***'
    """
    # a password may hold slashes and @; a file's name behind a host without a password may hold @ too
    return _SECRET.sub(r"\1***", re.sub(r"(://)(?:[^\s/:@]*:\S*@|[^\s/]*@)", r"\1", text))
