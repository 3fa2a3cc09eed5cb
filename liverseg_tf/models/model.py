"""`Model`: a network with what must be known to use it. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ModelError

if TYPE_CHECKING:
    import keras

# Where a bare Keras model that this library gave out keeps its configuration; known to this module alone.
_ATTRIBUTE = "liverseg_config"


@dataclass(frozen=True, eq=False)
class Model:
    """A network, how its input is prepared, and where it comes from: what is passed on inside the library.

    `Predictor`, `explain`, `export` and `report` take it as a model; so any Keras network can be used.

    Attributes:
        network: channels (B, S, S, C) float32 in, logits (B, S, S, classes) float32 out.
        config: how its input is prepared, and the names of its classes.
        card: what its artefact says of it, or None.
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
        """Take up a model that somebody hands in.

        Args:
            given: a `Model`, or a Keras model.
            config: of a Keras model; by default what `to_keras`, and so `load_model`, gave it along.

        Raises:
            ModelError: if nothing says how the network's input is prepared.
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
        """The bare network for those who want a Keras model; `of` finds the configuration again."""
        setattr(self.network, _ATTRIBUTE, self.config)
        return self.network
