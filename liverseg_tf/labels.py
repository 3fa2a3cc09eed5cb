"""Registry of classes (index, name, colour, meaning), and the set of classes of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from liverseg_tf.errors import ConfigError, LabelError
from liverseg_tf.strict_json import to_json
from liverseg_tf.wording import counted, readable

if TYPE_CHECKING:  # the command line's help needs only the names
    import numpy as np


@dataclass(frozen=True)
class LabelClass:
    """One class of a segmentation.

    Attributes:
        index: value in a mask, 0 to 255.
        name: short lower-case name, as the command line takes it.
        color: RGB, 0 to 255 each.
        safe_color: RGB of a colour-blind-safe alternative (Okabe and Ito).
        meaning: its meaning in LiTS.
    """

    index: int
    name: str
    color: tuple[int, int, int]
    safe_color: tuple[int, int, int]
    meaning: str


# The colours are viridis at 0, 1/2 and 1: what the original's plots showed.
CLASSES: tuple[LabelClass, ...] = (
    LabelClass(0, "background", (68, 1, 84), (0, 0, 0), "neither liver nor tumour"),
    LabelClass(1, "liver", (33, 145, 140), (86, 180, 233), "healthy liver tissue"),
    LabelClass(2, "tumour", (253, 231, 37), (230, 159, 0), "liver tumour; counts as liver too"),
)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
# Classes of LiTS's masks. In models and masks of another organ these are the background, the organ, and its lesion if
# it has one; code that uses them works on `ClassSet.organ_part` only.
BACKGROUND, LIVER, TUMOUR = (c.index for c in CLASSES)
# Of further structures, in turn: viridis at 1/4 and 3/4 and colours between; the rest of Okabe and Ito.
_FURTHER = (
    ((59, 82, 139), (0, 158, 115)),
    ((94, 201, 98), (204, 121, 167)),
    ((213, 94, 0), (213, 94, 0)),
    ((204, 121, 167), (0, 114, 178)),
)


@dataclass(frozen=True)
class ClassSet:
    """The classes of a model and of its masks: background, an organ, its lesion or none, further structures.

    Attributes:
        names: by index; 0 is the background, 1 the organ.
        lesion_is_2: True if class 2, where there is one, is the organ's lesion (which also counts as organ), False if
            it is a further structure.

    Raises:
        ConfigError: for fewer than 2 or more than 256 names, a repeated name, or a name that can't be in a file's name.

    Examples:
        >>> kidneys = ClassSet(("background", "kidney", "kidney_tumour", "ureter"))
        >>> kidneys.organ, kidneys.lesion, [c.name for c in kidneys.further]
        ('kidney', 'kidney_tumour', ['ureter'])
        >>> kidneys.named("tumour_burden, gap_in_liver")
        'kidney_tumour_burden, gap_in_kidney'
    """

    names: tuple[str, ...] = CLASS_NAMES
    lesion_is_2: bool = True

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 256:
            raise ConfigError(f"a model needs at least two classes, at most 256. Received: {len(self.names)}")
        # they become parts of file names
        if not all(re.fullmatch(r"\w[\w .-]{0,63}", name) for name in self.names):
            raise ConfigError(
                f"class names: expected up to 64 letters, digits, blanks, dots, - or _. Received: {self.names!r:.80}"
            )
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"class names: expected each once. Received: {self.names!r:.80}")

    @classmethod
    def of(cls, organ: str, lesion: str | None = None, *further: str) -> ClassSet:
        """Make a class set from the names of organ, lesion and further structures.

        Examples:
            >>> ClassSet.of("kidney"), ClassSet.of("liver", None, "spleen").lesion
            (ClassSet(names=('background', 'kidney'), lesion_is_2=True), None)
        """
        foreground = (organ, *further) if lesion is None else (organ, lesion, *further)
        return cls((CLASS_NAMES[BACKGROUND], *foreground), lesion is not None or not further)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def organ(self) -> str:
        """The organ's name."""
        return self.names[1]

    @property
    def lesion(self) -> str | None:
        """The lesion's name, if there is one."""
        return self.names[TUMOUR] if self.lesion_is_2 and len(self) > TUMOUR else None

    @property
    def organ_indices(self) -> range:
        """Indices that count as organ: the organ's and its lesion's."""
        return range(1, 2 if self.lesion is None else TUMOUR + 1)

    @cached_property
    def classes(self) -> tuple[LabelClass, ...]:
        """Index, name and colours of each class."""
        if self == LIVER_CLASSES:
            return CLASSES
        found = []
        for index, name in enumerate(self.names):
            color, safe = _FURTHER[(index - self.organ_indices.stop) % len(_FURTHER)]
            if index < self.organ_indices.stop:
                color, safe = CLASSES[index].color, CLASSES[index].safe_color
            found.append(LabelClass(index, name, color, safe, name if index else "none of the others"))
        return tuple(found)

    @property
    def further(self) -> tuple[LabelClass, ...]:
        """The classes that are neither background, organ nor lesion."""
        return self.classes[self.organ_indices.stop :]

    @property
    def is_liver(self) -> bool:
        """Whether the organ is the liver: LiTS's scores and rules about livers apply only then."""
        return self.organ == CLASS_NAMES[LIVER]

    def organ_part(self, labels: np.ndarray) -> np.ndarray:
        """Labels (any shape, uint8) with further structures set to background; the same array if there are none."""
        stop = self.organ_indices.stop
        if len(self) == stop or not labels.size or labels.max() < stop:
            return labels
        import numpy as np

        return np.where(labels < stop, labels, np.uint8(BACKGROUND))

    def named(self, text: str) -> str:
        """Replace "liver" and "tumour" in a text or key by the names of this organ and lesion."""
        return self._with_names(text, self.organ, self.lesion or "lesion")

    def words(self, text: str) -> str:
        """The same for a text that people read: names of classes as words.

        Examples:
            >>> ClassSet.of("kidney", "kidney_tumour").words("HU of the tumour in the liver")
            'HU of the kidney tumour in the kidney'
        """
        return self._with_names(text, readable(self.organ), readable(self.lesion or "lesion"))

    def _with_names(self, text: str, organ: str, lesion: str) -> str:
        if self.is_liver and self.lesion in (CLASS_NAMES[TUMOUR], None):
            return text
        names = {"liver": organ, "tumour": lesion}
        return re.sub(r"(?<![a-zA-Z])(liver|tumour)(?![a-zA-Z])", lambda m: names[m[1]], text)

    def heading(self, text: str) -> str:
        """Replace "Liver" and "Tumours" in a heading by the names of this organ and lesion.

        Examples:
            >>> ClassSet.of("kidney", "kidney_tumour").heading("Tumours (ml)")
            'Kidney tumour (ml)'
        """
        if self.named("liver tumour") == "liver tumour":
            return text
        words = {"Liver": self.organ, "Tumours": self.lesion or "lesion"}
        return re.sub("Liver|Tumours", lambda m: readable(words[m[0]]).capitalize(), text)

    def to_json(self) -> str:
        """One line, for a mask's header."""
        return to_json({"classes": list(self.names), "lesion": self.lesion})

    @classmethod
    def from_json(cls, text: str) -> ClassSet | None:
        """Read what `to_json` wrote; None for any other text."""
        try:
            content = json.loads(text)
            names = tuple(map(str, content["classes"]))
            return cls(names, len(names) <= TUMOUR or content["lesion"] == names[TUMOUR])
        except (ValueError, KeyError, TypeError, RecursionError, ConfigError):
            return None


LIVER_CLASSES = ClassSet()


def color_mask(labels: np.ndarray, safe: bool = False, classes: Sequence[LabelClass] = CLASSES) -> np.ndarray:
    """Turn class indices into colours.

    Args:
        labels: any shape, integer, values of `classes`.
        safe: use the colour-blind-safe colours.
        classes: classes by index; by default background, liver and tumour.

    Returns:
        The shape of `labels` plus a last axis of 3, uint8 RGB.

    Raises:
        LabelError: for values that are no class.

    Examples:
        >>> import numpy as np
        >>> color_mask(np.array([[0, 1, 2]])).shape
        (1, 3, 3)
    """
    import numpy as np

    table = np.array([c.safe_color if safe else c.color for c in classes], np.uint8)
    return table[to_labels(np.asarray(labels), "mask", [c.name for c in classes])]


def to_labels(values: np.ndarray, name: str, class_names: Sequence[str] = CLASS_NAMES) -> np.ndarray:
    """Turn stored mask values into uint8 class indices.

    Args:
        values: any shape and real dtype; within 0.001 of 0, 1 and so on.
        name: name of the mask in error messages.
        class_names: names by index.

    Raises:
        LabelError: for values that are no class; the message lists them and how often they occur.
    """
    import numpy as np

    count = len(class_names)
    if values.dtype.kind in "iub":
        if values.size and values.min() >= 0 and values.max() < count:  # no copies of a large mask
            return values.astype(np.uint8, copy=False)
        rounded, wrong = values, (values < 0) | (values >= count)
    else:
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            wrong = ~((np.abs(values - rounded) <= 1e-3) & (rounded >= 0) & (rounded < count))
    if wrong.any():
        found, counts = np.unique(values[wrong], return_counts=True)
        listed = ", ".join(
            f"{v:g} ({counted(c, 'voxel')})" for v, c in zip(found[:5].tolist(), counts[:5].tolist(), strict=True)
        )
        expected = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        raise LabelError(f"{name}: expected labels {expected}; got {listed}{', ...' if len(found) > 5 else ''}")
    return rounded.astype(np.uint8)
