"""Optimizers and their learning rate.

The gradient of an embedding table names the rows that a batch has looked up, a few thousand of perhaps millions.
`RowAdam` updates those alone; Adagrad of Keras does so by itself.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lockstep.model_sections import TrainSection


class RowAdam(tf.keras.optimizers.Optimizer):
    """Adam that leaves the rows alone that a step does not touch: their weights, and their moments too.

    Plain Adam decays the moments of all rows and goes on moving them, which costs several passes over the whole
    table a step (1 M rows x 64, 5,000 of them touched: 40 times the time). A dense gradient is updated as by plain
    Adam; so is a row that every batch touches. The bias correction counts the steps of the training, not a row's.

    References:
        Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        # Keras would decay every weight by 0, a pass over each table.
        super().__init__(name="row_adam", weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.first: list[tf.Variable] = []
        self.second: list[tf.Variable] = []

    def build(self, var_list: list[tf.Variable]) -> None:
        """Make both moments of every variable, zero."""
        super().build(var_list)
        if self.first:
            return  # Keras builds before every step
        self.first = [self.add_variable_from_reference(variable, "m") for variable in var_list]
        self.second = [self.add_variable_from_reference(variable, "v") for variable in var_list]

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Move one variable.

        Args:
            gradient: of the variable's shape, or of some of its rows, each named once (Keras adds up what repeats).
        """
        position = self._index_dict[self._var_key(variable)]
        first, second = self.first[position], self.second[position]
        step = tf.cast(self.iterations + 1, variable.dtype)
        rate = tf.cast(self.learning_rate, variable.dtype)
        if not isinstance(gradient, tf.IndexedSlices):
            # One kernel, which reads and writes each number once.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=self.beta_1**step,
                beta2_power=self.beta_2**step,
                lr=rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )
            return
        rows, values = gradient.indices, gradient.values
        m = self.beta_1 * tf.gather(first, rows) + (1.0 - self.beta_1) * values
        v = self.beta_2 * tf.gather(second, rows) + (1.0 - self.beta_2) * tf.square(values)
        first.scatter_update(tf.IndexedSlices(m, rows))
        second.scatter_update(tf.IndexedSlices(v, rows))
        rate = rate * tf.sqrt(1.0 - self.beta_2**step) / (1.0 - self.beta_1**step)
        variable.scatter_sub(tf.IndexedSlices(rate * m / (tf.sqrt(v) + self.epsilon), rows))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        return {"learning_rate": rate, "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def build_optimizer(section: TrainSection, total_steps: int) -> tf.keras.optimizers.Optimizer:
    """The configured optimizer and its learning rate.

    Where layers multiply in float16, it scales the loss, lest small gradients vanish.

    Args:
        total_steps: steps of the whole training, at whose end a cosine reaches zero.
    """
    rate = section.learning_rate
    if section.decay == "cosine":
        rate = tf.keras.optimizers.schedules.CosineDecay(rate, max(total_steps, 1))
    optimizer = RowAdam(rate) if section.optimizer == "adam" else tf.keras.optimizers.Adagrad(rate)
    if tf.keras.mixed_precision.global_policy().compute_dtype == "float16":
        return tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def learning_rate(optimizer: tf.keras.optimizers.Optimizer) -> float:
    """The rate of the last step."""
    return float(tf.convert_to_tensor(optimizer.learning_rate))
