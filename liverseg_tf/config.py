"""Frozen configuration: what a model expects and how it was trained. Stored as JSON in every artefact."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.labels import CLASS_NAMES, ClassSet
from liverseg_tf.strict_json import to_json
from liverseg_tf.windows import FIRST_WINDOWS, resolve_window

C = TypeVar("C", bound="Config")
LARGEST_IMAGE_SIZE = 4096
# Encoders built and tried under Keras 3; others of segmentation-models may fail there.
BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "seresnet34",
    "resnext50",
    "vgg16",
    "mobilenetv2",
    "efficientnetb0",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "tiny",  # trains in seconds, to test a pipeline; its masks are useless
)
# Format of stored model configurations. 1 named the windows, 2 has their numbers and the histogram's.
FORMAT = 2


@dataclass(frozen=True)
class Config:
    """A frozen dataclass with an exact JSON round trip."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary; tuples stay tuples and become lists in JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return to_json(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls: type[C], values: Any, source: str = "configuration") -> C:
        """Build from a dictionary; unknown keys and wrong types are errors that name them.

        Raises:
            ConfigError: naming `source`, the key, what was expected and what was got.
        """
        if not isinstance(values, dict):
            raise ConfigError(
                f"{source}: expected an object with the fields of {cls.__name__}. Received: {values!r:.80}"
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(f"{source}: unknown field {unknown[0]!r}; {cls.__name__} has {', '.join(fields)}")
        hints = typing.get_type_hints(cls)
        converted = {k: _convert(v, hints[k], f"{source}: field {k!r}") for k, v in values.items()}
        missing = [
            n
            for n, f in fields.items()
            if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{source}: the field {missing[0]!r} of {cls.__name__} is missing")
        try:
            return cls(**converted)
        except ConfigError as error:  # of the values' own checks
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_json(cls: type[C], text: str, source: str = "configuration") -> C:
        """Build from JSON text.

        Raises:
            ConfigError: for text that is no JSON, or as `from_dict`.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: expected JSON, got something else ({error})") from None
        return cls.from_dict(values, source)

    @classmethod
    def load(cls: type[C], path: str | Path) -> C:
        """Read a JSON file.

        Raises:
            ConfigError: if it can't be read or isn't such a configuration.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: expected a readable JSON configuration ({error})") from None
        return cls.from_json(text, str(path))


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against a type hint of the few kinds used here; lists become tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(value, option, where)
            except ConfigError:
                continue
    elif hint is type(None):
        if value is None:
            return None
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_convert(v, arguments[0], where) for v in value)
            if len(value) == len(arguments):
                return tuple(_convert(v, a, where) for v, a in zip(value, arguments, strict=True))
    elif origin is dict:
        if isinstance(value, dict):
            return {_convert(k, arguments[0], where): _convert(v, arguments[1], where) for k, v in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_dict(value, where)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}. Received: {value!r:.80}")


@dataclass(frozen=True)
class ChannelsConfig(Config):
    """How HU become channels: `CTChannels`' arguments, as numbers, so that no later preset changes a stored model.

    Attributes:
        windows: names in `WINDOWS` or (width, level) in HU; kept as (width, level).
        histogram: add the histogram-scaled channel.
        histogram_steps, histogram_tails: its break points, see `HistogramScale`.

    Raises:
        ConfigError: for an unknown window, or break points that are out of range.

    Examples:
        >>> ChannelsConfig(("liver", (100, 50))).windows
        ((150, 30), (100, 50))
    """

    windows: tuple[str | tuple[float, float], ...] = ("liver", "custom")
    histogram: bool = True
    histogram_steps: int = 100
    histogram_tails: tuple[float, float] = (0.001, 0.999)

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(map(resolve_window, self.windows)))
        steps, (low, high) = self.histogram_steps, self.histogram_tails
        if not 1 <= steps <= 1000 or not 0 <= low <= 0.5 / steps or not 1 - 0.5 / steps <= high < 1:
            raise ConfigError(
                "histogram: expected 1 to 1000 steps, and a tail before the first and behind the last "
                f"(i + 0.5) / steps in [0, 1). Received: {steps} steps, tails {self.histogram_tails}"
            )

    @classmethod
    def from_dict(cls, values: Any, source: str = "configuration") -> ChannelsConfig:
        """As `Config.from_dict`; the names in files of format 1 mean what they meant then."""
        if isinstance(values, dict) and isinstance(values.get("windows"), (list, tuple)):
            windows = [FIRST_WINDOWS.get(w, w) if isinstance(w, str) else w for w in values["windows"]]
            values = {**values, "windows": windows}
        return super().from_dict(values, source)

    @property
    def count(self) -> int:
        return len(self.windows) + int(self.histogram)


@dataclass(frozen=True)
class ModelConfig(Config):
    """Everything needed to rebuild a model and to prepare its input; stored in or beside each model.

    Attributes:
        image_size: rows and columns of the network's input, in pixels; a multiple of 32.
        backbone: encoder, one of `BACKBONES`.
        class_names: the classes' names by index: background, an organ, its lesion if there is one, further structures.
        lesion_is_2: class 2 is the organ's lesion; see `ClassSet`.
        channels: how HU become channels.
        hu_range: lowest and highest HU that the loader clips to, or None for no clipping.
        format: of this configuration; older files are read as the newest.

    Raises:
        ConfigError: for a size that is no multiple of 32, impossible classes or HU range, or a newer format.

    Examples:
        >>> ModelConfig(image_size=128, backbone="resnet34").class_names
        ('background', 'liver', 'tumour')
    """

    image_size: int = 128
    backbone: str = "resnet34"
    class_names: tuple[str, ...] = CLASS_NAMES
    channels: ChannelsConfig = field(default_factory=ChannelsConfig)
    hu_range: tuple[float, float] | None = HU_RANGE
    format: int = FORMAT
    lesion_is_2: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.format <= FORMAT:
            raise ConfigError(
                f"format: expected a model configuration of format 1 to {FORMAT}; update liverseg_tf for a newer one. "
                f"Received: {self.format}"
            )
        object.__setattr__(self, "format", FORMAT)
        if not 32 <= self.image_size <= LARGEST_IMAGE_SIZE or self.image_size % 32:
            raise ConfigError(
                f"image size: expected a multiple of 32 pixels, from 32 to {LARGEST_IMAGE_SIZE}. "
                f"Received: {self.image_size}"
            )
        ClassSet(self.class_names, self.lesion_is_2)  # checks them
        if self.hu_range is not None and not self.hu_range[0] < self.hu_range[1]:
            raise ConfigError(f"HU range: expected (lowest, highest). Received: {self.hu_range}")

    @property
    def classes(self) -> ClassSet:
        """The model's classes."""
        return ClassSet(self.class_names, self.lesion_is_2)

    def to_dict(self) -> dict[str, Any]:
        """As `Config.to_dict`; `lesion_is_2` is left out where it is true, as it is for the liver."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name != "lesion_is_2" or not value}
