"""Whether the text of a figure can be read: its contrast, and its size once the picture is shown at half size."""

from __future__ import annotations

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA
SAVED_DPI = 120
LEAST_PIXELS = 8  # font size in a picture of `save_figure` at half its size


def contrast(first, second) -> float:
    """WCAG's contrast of two opaque colours, 1 to 21."""
    dark, light = sorted(map(_luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def illegible(figure: Figure) -> list[str]:
    """The texts of a figure that have too little contrast with their halo, box or ground, or are too small."""
    figure.draw_without_rendering()
    return [f"{text.get_text()!r}: {why}" for text in figure.findobj(Text) if _is_drawn(text) for why in _faults(text)]


def _is_drawn(text: Text) -> bool:
    return bool(text.get_visible() and text.get_text().strip())


def _faults(text: Text) -> list[str]:
    faults = []
    pixels = text.get_fontsize() / 72 * SAVED_DPI / 2
    if pixels < LEAST_PIXELS:
        faults.append(f"{pixels:.1f} pixels high at half size")
    found = contrast(text.get_color(), _ground(text))
    if found < LEAST_CONTRAST:
        faults.append(f"contrast {found:.1f}")
    return faults


def _ground(text: Text):
    halos = [effect._gc["foreground"] for effect in text.get_path_effects() if isinstance(effect, withStroke)]
    if halos:
        return halos[0]
    if text.get_bbox_patch() is not None:
        return text.get_bbox_patch().get_facecolor()
    axis = text.axes
    # titles and labels of axes lie outside of them
    if axis is not None and axis.images and text in axis.texts:
        raise AssertionError(f"{text.get_text()!r} is drawn on a picture without a halo")
    return text.figure.get_facecolor()


def _luminance(color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(color)[:3]]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
