"""From the encoded ids of one feature to one vector.

    id, text    -> sum of the embeddings of the n ids present / sqrt(n)
    sequence    -> the same of each element's ids -> weighted sum of the elements (weights: trainer.pooling)

All of it is float32 under mixed precision too: the tables are, and reading them costs more than adding them up.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.encoding import Repeated

_LARGE_TABLE = 2**14
"""Rows from which on the gradient names the rows that it is of. A smaller table has one for all of its rows, which is
faster: the optimizer need not look for those that repeat, and moves all of them in one pass."""


class IdsPresent(tf.keras.layers.Layer):
    """Sum of the embeddings of a row's ids over the square root of their number; id 0 is padding, and is not one.

    The square root keeps a text of many tokens as long as one of few, as sums of unrelated vectors go: a mean would
    shrink it beside the other features. A row of padding alone is a vector of zeros.
    """

    def __init__(self, table: tf.keras.layers.Embedding, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.table = table

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Pool.

        Args:
            ids: [batch, length] int32 or int64.

        Returns:
            [batch, dim] float32.
        """
        if ids.shape[1] == 1:
            return look_up(self.table, ids[:, 0]) * tf.cast(ids != 0, tf.float32)
        present = tf.where(ids != 0)
        rows, found, batch = present[:, 0], tf.gather_nd(ids, present), tf.shape(ids)[0]
        if self.table.input_dim >= _LARGE_TABLE:
            return tf.math.unsorted_segment_sqrt_n(self.table(found), rows, batch)
        # One kernel that looks up and adds up, and never holds a vector for every id.
        return tf.sparse.segment_sqrt_n(self.table.embeddings, found, rows, num_segments=batch)


def look_up(table: tf.keras.layers.Embedding, ids: tf.Tensor) -> tf.Tensor:
    """[n, dim] rows of a table, for each of [n] ids."""
    if table.input_dim >= _LARGE_TABLE:
        return table(ids)

    @tf.custom_gradient
    def rows_of(embeddings: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.gather(embeddings, ids), lambda upstream: tf.math.unsorted_segment_sum(upstream, ids, table.input_dim)

    # As a tensor: a variable of several replicas is another object within the function.
    found: tf.Tensor = rows_of(tf.convert_to_tensor(table.embeddings))
    return found


class PooledSequence(tf.keras.layers.Layer):
    """A sequence of ids or texts: each element becomes a vector, and their weighted sum the sequence's.

    An element without a single id is not present; a sequence without elements is a vector of zeros.

    Args:
        elements: of a dense row, how many.
        weights: a layer of `trainer.pooling`.
    """

    def __init__(
        self, table: tf.keras.layers.Embedding, elements: int, weights: tf.keras.layers.Layer, name: str
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.element = IdsPresent(table, f"{name}_element")
        self.elements = elements
        self.pooling = weights

    @property
    def table(self) -> tf.keras.layers.Embedding:
        """The elements' embedding table."""
        return self.element.table

    def call(self, values: tf.Tensor | Repeated) -> tf.Tensor:
        """Pool; both forms of the same sequences give the same vectors.

        Args:
            values: [batch, elements * n] ids, n of each element, the oldest first; or the same as `Repeated`, which
                embeds an element once however often it stands in the batch.

        Returns:
            [batch, dim] float32.
        """
        ids, places = values if isinstance(values, Repeated) else _as_repeated(values, self.elements)
        # An element of no id has no place in the sum, so its vector need not be zero.
        vectors = look_up(self.table, ids[:, 0]) if ids.shape[1] == 1 else self.element(ids)
        present = tf.gather(tf.reduce_any(ids != 0, axis=1), places)
        weights = self.pooling(vectors, places, present)
        # A sparse product reads the vectors in place, where a gather would copy one for every element of the batch.
        at = tf.where(present)
        columns = tf.cast(tf.gather_nd(places, at), tf.int64)
        shape = tf.stack([tf.shape(places, tf.int64)[0], tf.shape(vectors, tf.int64)[0]])
        sparse = tf.SparseTensor(tf.stack([at[:, 0], columns], axis=1), tf.gather_nd(weights, at), shape)
        return tf.sparse.sparse_dense_matmul(sparse, vectors)


def _as_repeated(values: tf.Tensor, elements: int) -> Repeated:
    ids = tf.reshape(values, [-1, values.shape[1] // elements])
    return Repeated(ids, tf.reshape(tf.range(tf.shape(ids)[0]), [-1, elements]))
