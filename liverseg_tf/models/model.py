"""`Model`: a network together with its configuration, model card and source. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ModelError

if TYPE_CHECKING:
    import keras

# Attribute of a Keras model from this library that holds its configuration; only this module uses it.
_ATTRIBUTE = "liverseg_config"


@dataclass(frozen=True, eq=False)
class Model:
    """A network, how its input is prepared, and where it comes from.

    `Predictor`, `explain`, `export` and `report` accept it as a model, so any Keras network can be used.

    Attributes:
        network: channels (B, S, S, C) float32 in, logits (B, S, S, classes) float32 out.
        config: how its input is prepared, and the names of its classes.
        card: the model card of an exported or shipped model, or None.
        source: file or folder that it was loaded from; None for one made in memory.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> model = Model(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> model.config.class_names
        ('background', 'liver', 'tumour')
    """

    network: keras.Model
    config: ModelConfig
    card: Mapping[str, Any] | None = None
    source: Path | None = None

    @classmethod
    def of(cls, given: Model | keras.Model, config: ModelConfig | None = None) -> Model:
        """Make a `Model` of a `Model` or of a Keras model.

        Args:
            given: a `Model`, or a Keras model.
            config: configuration of a Keras model; by default the one that `to_keras` (and so `load_model`) attached.

        Raises:
            ModelError: if the network's configuration is unknown.
        """
        if isinstance(given, Model):
            return given
        config = config or getattr(given, _ATTRIBUTE, None)
        if config is None:
            raise ModelError(
                "the Keras model carries no configuration: expected one of load_model, or Model(network, config)"
            )
        return cls(given, config)

    def to_keras(self) -> keras.Model:
        """The network as a Keras model, with the configuration attached; `Model.of` reads it again."""
        setattr(self.network, _ATTRIBUTE, self.config)
        return self.network
