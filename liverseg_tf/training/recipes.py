"""The one registry of training recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType

from liverseg_tf.config import BACKBONES, ChannelsConfig, Config, ModelConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import HU_RANGE
from liverseg_tf.labels import LIVER_CLASSES, ClassSet


@dataclass(frozen=True)
class Recipe(Config):
    """All settings of a training except the data, the seed and the machine.

    Attributes:
        name: of the recipe.
        image_size: rows and columns of the network's input, in pixels.
        batch_size: slices per step, over all devices.
        backbone: encoder, one of `liverseg_tf.config.BACKBONES`.
        encoder_weights: "imagenet", "none" or a file.
        channels: how HU become channels.
        clip_hu: clip HU to [-1024, 3071] when reading.
        loss: as `build_loss` takes it.
        class_weights: weight of each class in cross entropy and focal loss, or None; Dice and Tversky ignore them.
        frozen_epochs: epochs with the encoder's convolutions frozen; skipped if the encoder starts with random weights.
        epochs: epochs after that.
        learning_rate: highest rate of the frozen phase; times `unfrozen_factor`, the decoder's highest rate after it.
        unfrozen_factor: the second phase's rate is the first one's times this.
        encoder_factors: rates of the first and second half of the encoder, relative to the decoder's.
        warmup, frozen_warmup: share of a phase in which the rate rises.
        start_factor, frozen_start_factor: a phase's first rate, relative to its highest.
        momentum: highest and lowest beta_1; it falls while the rate rises.
        beta_2, epsilon: of Adam.
        weight_decay: decoupled, not on BatchNorm and biases.
        clip_norm: largest norm of all gradients together, or None.
        ema: decay per step of the averaged weights that are validated and kept, or None.
        augmentation: vary slices at random.
        lesion_synthesis: paint synthetic tumours into livers.
        proportions: shares of slices with tumour, with liver only, with neither; None takes them as they come.
        every_volume, every_slice, order, only_liver: see `SliceSelection`.
        best_by: history column that selects the kept epoch: `val_dice` (`models.metrics.mean_dice`) or another of
            `BEST_BY`.

    Raises:
        ConfigError: for values out of range, or an unknown column.

    Examples:
        >>> replace(RECIPES["default"], epochs=5).epochs
        5
    """

    name: str
    image_size: int = 128
    batch_size: int = 16
    backbone: str = "resnet34"
    encoder_weights: str = "none"
    channels: ChannelsConfig = field(default_factory=ChannelsConfig)
    clip_hu: bool = True
    loss: str = "cross_entropy+dice"
    class_weights: tuple[float, ...] | None = None
    frozen_epochs: int = 1
    epochs: int = 20
    learning_rate: float = 1.5e-3
    unfrozen_factor: float = 1.0
    encoder_factors: tuple[float, float] = (1.0, 1.0)
    warmup: float = 0.2
    frozen_warmup: float = 0.9
    start_factor: float = 0.1
    frozen_start_factor: float = 0.1
    momentum: tuple[float, float] = (0.95, 0.85)
    beta_2: float = 0.99
    epsilon: float = 1e-5
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    ema: float | None = None
    augmentation: bool = True
    lesion_synthesis: bool = False
    proportions: tuple[float, float, float] | None = None
    every_volume: int = 1
    every_slice: int = 1
    order: str = "number"
    only_liver: bool = False
    best_by: str = "val_dice"

    def __post_init__(self) -> None:
        for name in ("batch_size", "every_volume", "every_slice"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1. Received: {getattr(self, name)}")
        if self.epochs < 0 or self.frozen_epochs < 0 or self.epochs + self.frozen_epochs < 1:
            raise ConfigError(f"epochs: expected at least 1. Received: {self.epochs}")
        if not 0 < self.learning_rate < 10:
            raise ConfigError(f"learning rate: expected above 0 and below 10. Received: {self.learning_rate}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema: expected a decay above 0 and below 1. Received: {self.ema}")
        if self.best_by not in BEST_BY:
            raise ConfigError(f"best_by: expected one of {', '.join(BEST_BY)}. Received: {self.best_by!r}")

    def model_config(self, source: ModelConfig | None = None, classes: ClassSet = LIVER_CLASSES) -> ModelConfig:
        """Configuration of the model that this recipe trains.

        Args:
            source: of a model to start from: all but the image size stays as it is.
            classes: of a model that starts from none.

        Raises:
            ConfigError: if there is no such backbone.
        """
        if source is not None:
            return replace(source, image_size=self.image_size)
        if self.backbone not in BACKBONES:
            raise ConfigError(f"backbone: expected one of {', '.join(BACKBONES)}. Received: {self.backbone!r}")
        hu_range = HU_RANGE if self.clip_hu else None
        return ModelConfig(
            self.image_size,
            self.backbone,
            classes.names,
            self.channels,
            hu_range,
            lesion_is_2=classes.lesion_is_2,
        )


# What may choose the kept epoch, and whether more of it is better.
BEST_BY = MappingProxyType(
    {
        "val_dice": True,
        "val_case_dice": True,
        "val_loss": False,
        "val_foreground_accuracy": True,
        "val_tumour_dice": True,
    }
)

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        # The original: fastai's fine_tune(5) at its default rate, one frozen epoch, best validation loss kept.
        "report": Recipe(
            name="report",
            encoder_weights="imagenet",
            clip_hu=False,
            loss="cross_entropy",
            frozen_epochs=1,
            epochs=5,
            learning_rate=2e-3,
            unfrozen_factor=0.5,
            encoder_factors=(0.01, 0.1),
            warmup=0.3,
            frozen_warmup=0.99,
            start_factor=0.2,
            frozen_start_factor=0.04,
            weight_decay=0.1,
            clip_norm=None,
            augmentation=False,
            every_volume=3,
            every_slice=2,
            order="name",
            best_by="val_loss",
        ),
        "default": Recipe(name="default"),
    }
)


def get_recipe(name: str | Recipe) -> Recipe:
    """A recipe of the registry, or the given one.

    Raises:
        ConfigError: for an unknown name.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
