"""The layers of a tower above the embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from lockstep.model_sections import ModelSection
from trainer.dropout import ResumableDropout


class CrossNetwork(tf.keras.layers.Layer):
    """Cross layers, in which features multiply one another, a degree more with each.

    x[l + 1] = x[0] * (W[l] x[l] + b[l]) + x[l]; of no layers, its input.

    Args:
        width: of the input, which is the output's.
        rank: W = U V with an inner width of `rank`, which for a wide input has fewer weights; None for a full W.
        seeds: one is drawn for each matrix.

    Reference:
        Wang et al., "DCN V2: Improved deep & cross network and practical lessons for web-scale learning to rank
        systems", WWW 2021 (arXiv 2008.13535), equations 1 and 2.
    """

    def __init__(self, width: int, layers: int, rank: int | None, seeds: Iterator[int]) -> None:
        super().__init__(name="cross")
        self.reductions = (
            []
            if rank is None
            else [linear(rank, seeds, f"reduction_{layer}", use_bias=False) for layer in range(layers)]
        )
        self.expansions = [linear(width, seeds, f"expansion_{layer}") for layer in range(layers)]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Cross.

        Args:
            inputs: [batch, width].

        Returns:
            [batch, width].
        """
        crossed = inputs
        for layer, expand in enumerate(self.expansions):
            reduced = self.reductions[layer](crossed) if self.reductions else crossed
            crossed = inputs * expand(reduced) + crossed
        return crossed


class HiddenLayer(tf.keras.layers.Layer):
    """relu(norm(W x + b)), with the input added to it where the model is residual, then dropout.

    Args:
        width: of the input; another than `units` is projected linearly before it is added.
        seeds: one is drawn for each matrix and for the dropout.
    """

    def __init__(self, width: int, units: int, model: ModelSection, seeds: Iterator[int], name: str) -> None:
        super().__init__(name=name)
        # The bias of a normalised layer is the normalisation's.
        self.dense = linear(units, seeds, "dense", use_bias=not model.layer_norm)
        self.norm = tf.keras.layers.LayerNormalization(name="norm") if model.layer_norm else None
        self.residual = model.residual
        self.shortcut = linear(units, seeds, "shortcut", use_bias=False) if model.residual and width != units else None
        self.dropout = ResumableDropout(model.dropout, next(seeds))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[batch, width] -> [batch, units]."""
        outputs = self.dense(inputs)
        outputs = tf.nn.relu(outputs if self.norm is None else self.norm(outputs))
        if self.residual:
            outputs += inputs if self.shortcut is None else self.shortcut(inputs)
        return self.dropout(outputs, training=training)


class Bias(tf.keras.layers.Layer):
    """x + b: what is left of a last layer where there is nothing to project."""

    def __init__(self, initializer: tf.keras.initializers.Initializer, name: str) -> None:
        super().__init__(name=name)
        self.initializer = initializer

    def build(self, input_shape: tf.TensorShape) -> None:
        """Make b, as wide as the input."""
        self.bias = self.add_weight("bias", [input_shape[-1]], initializer=self.initializer)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[batch, width] -> [batch, width]."""
        return inputs + tf.cast(self.bias, inputs.dtype)


def linear(
    units: int,
    seeds: Iterator[int],
    name: str,
    *,
    use_bias: bool = True,
    bias_initializer: str | tf.keras.initializers.Initializer = "zeros",
) -> tf.keras.layers.Dense:
    """W x + b, with a W of the next seed."""
    glorot = tf.keras.initializers.GlorotUniform(seed=next(seeds))
    return tf.keras.layers.Dense(
        units, use_bias=use_bias, kernel_initializer=glorot, bias_initializer=bias_initializer, name=name
    )
