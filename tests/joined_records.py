"""Training records as a tower sees them, joined to the candidates that they name, in the form of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lockstep.model_sections import TrainSection
from lockstep.tags import Kind, open_artifact
from trainer.encoding import SIDES, EncodedFeature, Repeated, read_encoded_features
from trainer.input_pipeline import open_training_records


def joined_records(examples: Path) -> list[dict[str, list[Any]]]:
    """By record, `<side>/<feature>` -> its `length` values, and `candidate_index`, `weight` and so on."""
    artifact, features = open_artifact(examples, Kind.EXAMPLES), read_encoded_features(examples / "features.json")
    rows = artifact.tag.rows
    records = open_training_records(artifact, features, TrainSection(batch_size=rows, shuffle_buffer=1))
    (batch,) = records.batches(0)
    columns = {name: values.numpy()[:, np.newaxis] for name, values in batch.items() if name not in (*SIDES, "past")}
    for side in SIDES:
        for feature in features.side(side):
            columns[f"{side}/{feature.name}"] = dense(batch[side][feature.name], feature)
    return [{name: values[row].tolist() for name, values in columns.items()} for row in range(rows)]


def dense(values: Any, feature: EncodedFeature) -> np.ndarray:
    """[batch, length], with the elements of `Repeated` moved to the left."""
    if not isinstance(values, Repeated):
        return values.numpy()
    elements, places = values.elements.numpy(), values.places.numpy()
    out = np.zeros((len(places), feature.elements, elements.shape[1]), elements.dtype)
    for row, of in enumerate(places):
        standing = of[of > 0]
        out[row, : len(standing)] = elements[standing]
    return out.reshape(len(places), feature.length)
