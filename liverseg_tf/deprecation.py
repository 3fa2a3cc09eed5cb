"""Deprecation: a public name works for one more minor version, with a warning that says what to use instead."""

from __future__ import annotations

import warnings


class LiverSegDeprecationWarning(FutureWarning):
    """A name or an option of this library that will be removed; shown to users, not only to developers."""


def deprecated(old: str, new: str, gone_in: str, stacklevel: int = 3) -> None:
    """Warn that `old` will be removed.

    Args:
        old: what was used, as the caller wrote it.
        new: what to write instead.
        gone_in: the version that no longer has `old`.
        stacklevel: stack level of the caller; by default the caller of the function that calls this one.

    Examples:
        >>> import warnings
        >>> def spacing(volume):
        ...     deprecated("spacing()", "spacing_mm", "0.3")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     spacing(None)
        >>> print(caught[0].message)
        spacing() will be removed in liverseg_tf 0.3: use spacing_mm
    """
    warnings.warn(
        f"{old} will be removed in liverseg_tf {gone_in}: use {new}", LiverSegDeprecationWarning, stacklevel=stacklevel
    )
