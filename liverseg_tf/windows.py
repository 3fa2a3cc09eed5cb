"""Registry of CT windows. Loads nothing heavy; `channels.CTWindow` applies them."""

from __future__ import annotations

from types import MappingProxyType

from liverseg_tf.errors import ConfigError

# (width, level) in HU: the twelve presets of the original (fastai's `dicom_windows` and two of its own). Models of the
# first format were stored with these names instead of numbers, so don't change these values. To add or change a preset:
# WINDOWS = MappingProxyType({**FIRST_WINDOWS, "bone": (width, level)}).
FIRST_WINDOWS: MappingProxyType[str, tuple[int, int]] = MappingProxyType(
    {
        "brain": (80, 40),
        "subdural": (254, 100),
        "stroke": (8, 32),
        "brain_bone": (2800, 600),
        "brain_soft": (375, 40),
        "lungs": (1500, -600),
        "mediastinum": (350, 50),
        "abdomen_soft": (400, 50),
        "liver": (150, 30),
        "spine_soft": (250, 50),
        "spine_bone": (1800, 400),
        "custom": (200, 60),
    }
)
WINDOWS: MappingProxyType[str, tuple[int, int]] = MappingProxyType({**FIRST_WINDOWS})


def resolve_window(window: str | tuple[float, float]) -> tuple[float, float]:
    """Return (width, level) in HU of a preset's name or of a (width, level) pair.

    Raises:
        ConfigError: for an unknown name, or a width below 2 (both bounds would be equal).

    Examples:
        >>> resolve_window("liver")
        (150, 30)
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            raise ConfigError(f"unknown CT window {window!r}: expected one of {', '.join(WINDOWS)}, or (width, level)")
        return WINDOWS[window]
    try:
        width, level = window
        width, level = float(width), float(level)
    except (TypeError, ValueError):
        raise ConfigError(f"a CT window is a preset's name or (width, level) in HU. Received: {window!r}") from None
    if not width >= 2 or not abs(level) < 1e6 or not width < 1e6:
        raise ConfigError(f"a CT window needs a finite width of at least 2 HU. Received: {window!r}")
    return (int(width) if width.is_integer() else width, int(level) if level.is_integer() else level)


def window_bounds(window: str | tuple[float, float]) -> tuple[float, float]:
    """Lowest and highest HU of a window: level - width // 2 and level + width // 2, as fastai's `windowed` has it."""
    width, level = resolve_window(window)
    return level - width // 2, level + width // 2


def window_name(window: str | tuple[float, float]) -> str:
    """Return the name of the preset with this (width, level), else the two numbers as text.

    Example:
        >>> window_name((150, 30)), window_name((100, 54.5))
        ('liver', '100/54.5')
    """
    width, level = resolve_window(window)
    return next((name for name, preset in WINDOWS.items() if preset == (width, level)), f"{width:g}/{level:g}")
