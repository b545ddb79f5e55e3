"""The encoded candidates of the training data, which records and negatives name by index.

A candidate's features, and its element in the history features of queries, are the same wherever it stands. So the
data step encodes each once, and a record holds numbers of rows only:

    candidates/candidate_<feature>.npy    [candidates, length] int32 or float32: the encoded feature; where it counts
                                          events, as of the newest moment of the training data
    candidates/query_<feature>.npy        [candidates, n]: the candidate as an element of a feature of the past: n = 1
                                          id or number (standardised, NaN where there is none), or max_tokens ids
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lockstep.errors import CorruptArtifactError
from trainer.encoding import EncodedFeature, EncodedFeatures, Repeated


class CandidateTable:
    """The encoded candidates in memory.

    Args:
        folder: `candidates` of an `examples` artifact.

    Raises:
        CorruptArtifactError: a file is missing or of another shape than the features.
    """

    def __init__(self, folder: Path, features: EncodedFeatures) -> None:
        self._past_features = [feature for feature in features.query if feature.past]
        shapes = {feature.name: (feature.length, feature.dtype) for feature in features.candidate}
        candidates = {name: _read(folder / f"candidate_{name}.npy", *shape) for name, shape in shapes.items()}
        elements = {f.name: _read(folder / f"query_{f.name}.npy", *_element(f)) for f in self._past_features}
        rows = {len(values) for values in (*candidates.values(), *elements.values())}
        if len(rows) != 1:
            raise CorruptArtifactError(folder, f"files of {sorted(rows)} candidates", "one number of candidates")
        self.rows: int = rows.pop()
        with tf.device("CPU"):
            self._candidates = {name: tf.constant(values) for name, values in candidates.items()}
            # Row 0 is padding, so candidate i is row i + 1, as in the records.
            self._elements = {name: tf.constant(_padded(values)) for name, values in elements.items()}

    def features(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """The encoded candidate features of [n] indices: name -> [n, length]."""
        return {name: tf.gather(values, indices) for name, values in self._candidates.items()}

    def all(self) -> Mapping[str, tf.Tensor]:
        """The encoded features of every candidate, by index: name -> [candidates, length]."""
        return self._candidates

    def past(self, past: tf.Tensor) -> dict[str, Repeated | tf.Tensor]:
        """The features of the past.

        Args:
            past: [batch, width] candidate indices + 1, oldest first; 0 where nothing stands, anywhere in the row.

        Returns:
            name -> `Repeated` ids; or [batch, 3] float32 of numbers: mean, last, and 1 where there is none.
        """
        if not self._past_features:
            return {}
        # A padding element first, so that it gets place 0.
        flat = tf.concat([tf.zeros([1], past.dtype), tf.reshape(past, [-1])], axis=0)
        distinct, places = tf.unique(flat)
        places = tf.reshape(places[1:], tf.shape(past))
        # How many elements stand from here on to the end: the last has 1.
        rank = tf.cumsum(tf.cast(places > 0, tf.int32), axis=1, reverse=True)
        found: dict[str, Repeated | tf.Tensor] = {}
        for feature in self._past_features:
            elements = tf.gather(self._elements[feature.name], distinct)
            kept = tf.where(rank <= feature.elements, places, 0)
            is_number = feature.dtype == "float32"
            found[feature.name] = _summary(elements, kept) if is_number else Repeated(elements, kept)
        return found


def _summary(elements: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Mean and last of the numbers, and 1 where there is none, as preprocessing makes them of raw ones.

    Args:
        elements: [distinct, 1] float32, NaN where a candidate has no number.
        places: [batch, width].
    """
    values = tf.gather(elements[:, 0], places)
    present = (places > 0) & tf.math.is_finite(values)
    numbers, counted = tf.where(present, values, 0.0), tf.cast(present, tf.float32)
    count = tf.reduce_sum(counted, axis=1)
    after = tf.cumsum(counted, axis=1, exclusive=True, reverse=True)
    last = tf.reduce_sum(tf.where(present & (after == 0.0), numbers, 0.0), axis=1)
    mean = tf.reduce_sum(numbers, axis=1) / tf.maximum(count, 1.0)
    return tf.stack([mean, last, tf.cast(count == 0.0, tf.float32)], axis=1)


def _element(feature: EncodedFeature) -> tuple[int, str]:
    return (1, "float32") if feature.dtype == "float32" else (feature.length // feature.elements, feature.dtype)


def _padded(values: NDArray[np.generic]) -> NDArray[np.generic]:
    padding = np.zeros((1, values.shape[1]), values.dtype)
    return np.concatenate([padding, values])


def _read(path: Path, width: int, dtype: str) -> NDArray[np.generic]:
    try:
        values: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifactError(path, repr(error), "an array of encoded candidates") from error
    wanted = "int32" if dtype == "int64" else dtype
    if values.ndim != 2 or values.shape[1] != width or str(values.dtype) != wanted:
        raise CorruptArtifactError(
            path, f"{values.dtype} of shape {values.shape}", f"{wanted} of [candidates, {width}]"
        )
    return values
