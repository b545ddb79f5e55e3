"""What the vocabularies do not know, as the towers will see it: by the saved preprocessing, not by a second lookup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from dataflow.encoded import FIRST_ID, hash_bins, table_owner
from dataflow.feature_report.values import Rows
from lockstep.features import features_type, tower_inputs
from lockstep.schema import Schema

_BATCH = 4_096
_UNKNOWN = FIRST_ID - 1


@dataclass(frozen=True)
class Unknown:
    """Occurrences and rows of a feature that has a vocabulary, after sequences and texts were cut.

    Args:
        occurrences: values (of a text: tokens) that the tower reads.
        unknown: those that are not in the vocabulary.
        rows: rows with a value.
        unknown_rows: those with at least one that is not in the vocabulary.
    """

    occurrences: int
    unknown: int
    rows: int
    unknown_rows: int


def count_unknown(preprocessing: Path, schema: Schema, tower: str, rows: Rows) -> dict[str, Unknown]:
    """Count by feature, for the features of a tower that look their values up.

    Args:
        preprocessing: folder of the artifact.
    """
    names = [name for name in schema.features(tower) if looks_up(schema, tower, name)]
    totals = {name: np.zeros(4, np.int64) for name in names}
    module = tf.saved_model.load(str(preprocessing / tower))  # kept: its tables live as long as it does
    signature = module.signatures["serving_default"]
    for start in range(0, len(rows), _BATCH):
        batch = rows.features.slice(start, _BATCH).cast(features_type(schema, tower))
        inputs = {name: tf.constant(values) for name, values in tower_inputs(schema, tower, batch).items()}
        for name, ids in signature(**inputs).items():
            if name in totals:
                there, unknown = ids.numpy() > 0, ids.numpy() == _UNKNOWN
                totals[name] += (there.sum(), unknown.sum(), there.any(axis=1).sum(), unknown.any(axis=1).sum())
    return {name: Unknown(*(int(count) for count in counts)) for name, counts in totals.items()}


def looks_up(schema: Schema, tower: str, name: str) -> bool:
    """Whether a feature has a vocabulary, its own or another's; hashed values are never unknown."""
    owner = table_owner(schema, tower, name)
    return owner is not None and hash_bins(schema, owner) is None
