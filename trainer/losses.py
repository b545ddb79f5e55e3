"""The softmax that tells each query's own candidate from the others, and how much each example counts.

References:
    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

_LOGITS_AT_ONCE = 2**20
"""Logits of one block of queries, 4 MB: what the next operation reads is still in the cache."""

_MOST_BLOCKS = 32
"""Each block is a part of the graph, so their number is bounded."""


class Columns(NamedTuple):
    """The candidates that the queries of a batch choose from, one column of the logits each.

    Args:
        vectors: [columns, dim] float32.
        correction: [columns] float32, added to the logit of a negative; -inf where a column is none.
        own: [batch] int32 column of each query's own candidate.
        own_correction: [batch] float32, added to its logit.
        left_out: [batch, width] int32 columns that are no negatives of the query; its own where there is nothing to
            leave out.
        also: [batch, any width] int32 columns that are the query's as well; its own where there is none.
    """

    vectors: tf.Tensor
    correction: tf.Tensor
    own: tf.Tensor
    own_correction: tf.Tensor
    left_out: tf.Tensor
    also: tf.Tensor


def softmax_loss(
    queries: tf.Tensor, columns: Columns, weights: tf.Tensor, hard_negatives: int | None = None
) -> tf.Tensor:
    """Minus the log of the softmax of each query's own candidate, summed with weights.

    Of a query that has several, the mean over them: they share the query's weight, and the denominator has them all
    (the multinomial likelihood of Liang et al., "Variational autoencoders for collaborative filtering", WWW 2018).

    The gradient is computed with the loss, for a block of queries after the other, so that the logits of a large
    catalogue never stand in memory as a whole. It is that of the vectors only: corrections and weights are given.

    Args:
        queries: [batch, dim] float32, divided by the temperature.
        weights: [batch] float32.
        hard_negatives: keep so many negatives a query, those of the largest corrected logits (and what ties with the
            last of them); None keeps all.

    Returns:
        [] float32.
    """

    @tf.custom_gradient
    def loss_of(queries: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
        total, by_vectors = tf.zeros([]), tf.zeros_like(vectors)
        by_queries = []
        for block in _blocks(queries.shape[0], vectors.shape[0]):
            # One after the other, or all their logits would stand in memory together.
            with tf.control_dependencies([total, by_vectors]):
                part = Columns(
                    tf.identity(vectors),
                    columns.correction,
                    columns.own[block],
                    columns.own_correction[block],
                    columns.left_out[block],
                    columns.also[block],
                )
                loss, by_query, by_vector = _block_loss(queries[block], part, weights[block], hard_negatives)
            total, by_vectors = total + loss, by_vectors + by_vector
            by_queries.append(by_query)
        by_all_queries = tf.concat(by_queries, axis=0)
        return total, lambda upstream: (upstream * by_all_queries, upstream * by_vectors)

    loss: tf.Tensor = loss_of(queries, columns.vectors)
    return loss


def example_weights(weight: tf.Tensor) -> tf.Tensor:
    """How much each example counts: by its engagement. (Of old examples, an epoch draws fewer.)

    Args:
        weight: [batch] at least 0.

    Returns:
        [batch] float32 above 0: a batch of examples that weigh nothing would divide by zero.
    """
    return tf.maximum(weight, 1e-6)


def _blocks(queries: int | None, columns: int | None) -> Iterator[slice]:
    """Slices of the queries; one of all of them where the shapes are unknown before the run."""
    if queries is None or columns is None:
        yield slice(None)
        return
    size = max(_LOGITS_AT_ONCE // columns, math.ceil(queries / _MOST_BLOCKS), 1)
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))


def _block_loss(
    queries: tf.Tensor, columns: Columns, weights: tf.Tensor, hard_negatives: int | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The weighted loss of some queries and its gradients by their vectors and by those of the candidates."""
    own_vectors = tf.gather(columns.vectors, columns.own)
    positive = tf.reduce_sum(queries * own_vectors, axis=1) + columns.own_correction
    logits = tf.nn.bias_add(tf.matmul(queries, columns.vectors, transpose_b=True), columns.correction)
    logits += _left_out(columns, tf.shape(logits)[1])
    others = _other_positives(columns)
    other_positives = tf.gather_nd(logits, others)
    if hard_negatives is not None:
        no_positives = tf.tensor_scatter_nd_update(logits, others, tf.fill(tf.shape(other_positives), -math.inf))
        logits = _hardest(no_positives, hard_negatives)
        logits = tf.tensor_scatter_nd_update(logits, others, other_positives)
    # Written out: the softmax with loss of TensorFlow takes twice the time on a CPU.
    largest = tf.maximum(tf.reduce_max(logits, axis=1), positive)
    shares = tf.exp(logits - largest[:, tf.newaxis])
    own_share = tf.exp(positive - largest)
    total = tf.reduce_sum(shares, axis=1) + own_share
    positives = tf.math.bincount(others[:, 0], minlength=tf.size(positive), dtype=tf.float32) + 1.0
    of_each = weights / positives
    of_others = tf.gather(of_each, others[:, 0])
    found = tf.reduce_sum(of_each * positive) + tf.reduce_sum(of_others * other_positives)
    loss = tf.reduce_sum(weights * (largest + tf.math.log(total))) - found
    by_logits = shares * (weights / total)[:, tf.newaxis]
    if columns.also.shape[1] != 0:
        by_logits = tf.tensor_scatter_nd_sub(by_logits, others, of_others)
    by_own = (own_share * weights / total - of_each)[:, tf.newaxis]
    by_queries = tf.matmul(by_logits, columns.vectors) + by_own * own_vectors
    # Twice as fast, for narrow vectors, as transposing the logits within the product.
    by_vectors = tf.transpose(tf.matmul(tf.transpose(queries), by_logits))
    return loss, by_queries, tf.tensor_scatter_nd_add(by_vectors, columns.own[:, tf.newaxis], by_own * queries)


def _left_out(columns: Columns, count: tf.Tensor) -> tf.Tensor:
    """[batch, columns] -inf where a column is no negative of the query, its own included; else 0."""
    left_out = tf.concat([columns.own[:, tf.newaxis], columns.left_out], axis=1)
    weights = tf.fill(tf.shape(left_out), -math.inf)
    return tf.raw_ops.DenseBincount(input=left_out, size=count, weights=weights, binary_output=False)


def _other_positives(columns: Columns) -> tf.Tensor:
    """[n, 2] row and column of every positive that is not the query's own."""
    is_other = columns.also != columns.own[:, tf.newaxis]
    at = tf.where(is_other)
    return tf.stack([tf.cast(at[:, 0], tf.int32), tf.boolean_mask(columns.also, is_other)], axis=1)


def _hardest(negatives: tf.Tensor, count: int) -> tf.Tensor:
    """[batch, columns] logits with all but the `count` largest of each row at -inf."""
    kept = tf.math.top_k(negatives, tf.minimum(count, tf.shape(negatives)[1]), sorted=True).values
    return tf.where(negatives >= kept[:, -1:], negatives, -math.inf)
