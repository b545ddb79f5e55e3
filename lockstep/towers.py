"""An exported tower: raw features in, versioned embeddings out.

<artifact>/                    kind query_tower or candidate_tower
  saved_model/                 three signatures with the same outputs, of any batch size: embedding float32[batch, dim]
                               (unit length), model_version int64[batch]
                                 serving_default: one input a feature, named as in the schema (lockstep.features)
                                 tf_example: `examples` string[batch], serialized tf.train.Examples of raw features
                                 embed_encoded: one input a feature, int64 or float32 [batch, length], encoded
                               and the first half of serving_default by itself, for those who embed many rows:
                                 distinct: strings one by one to their ids (dataflow.encoding)
  schema.json                  the schema that it was built for
  tag.json

In a tf.train.Example a feature is a list by its name: bytes_list of one text or id, or of a sequence of them;
float_list of one number, a sequence of them, or a vector of its size; int64_list of one moment, in whole seconds
since 1970. A feature that is left out is missing, as is "", NaN or MISSING_TIME; a sequence may have any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbeddings
from lockstep.errors import VersionMismatchError
from lockstep.features import tower_inputs
from lockstep.schema import Schema
from lockstep.tags import Artifact, Kind, open_artifact
from lockstep.version import ModelVersion


class Tower:
    """A loaded tower; TensorFlow is imported when one is opened, not before."""

    def __init__(self, artifact: Artifact) -> None:
        import tensorflow as tf

        assert artifact.tag.model_version is not None, "towers always have a version"
        self.artifact = artifact
        self.model_version: ModelVersion = artifact.tag.model_version
        self.schema = Schema.from_json((artifact / "schema.json").read_bytes())
        self.side = "query" if artifact.tag.kind is Kind.QUERY_TOWER else "candidate"
        self._module = tf.saved_model.load(str(artifact / "saved_model"))
        self.signatures: Mapping[str, Any] = self._module.signatures
        self._constant = tf.constant

    @classmethod
    def open(cls, path: Path, kind: Kind, model_version: ModelVersion, digest: str | None = None) -> Tower:
        """Check a tower's artifact and load it."""
        return cls(open_artifact(path, kind, model_version=model_version, digest=digest))

    def embed(self, features: pa.StructArray) -> VersionedEmbeddings:
        """Embed rows of raw features.

        Args:
            features: [batch] struct, as `lockstep.features.features_type` describes.

        Raises:
            VersionMismatchError: the weights stamp another version than the artifact's tag.
        """
        return self._call("serving_default", tower_inputs(self.schema, self.side, features))

    def embed_encoded(self, encoded: Mapping[str, NDArray[Any]]) -> VersionedEmbeddings:
        """Embed rows of encoded features, as the tower's own signature `distinct` makes them of raw ones.

        Args:
            encoded: by feature, [batch, length] int64 or float32.

        Raises:
            VersionMismatchError: the weights stamp another version than the artifact's tag.
        """
        return self._call("embed_encoded", encoded)

    def _call(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> VersionedEmbeddings:
        outputs = self.signatures[signature](**{name: self._constant(values) for name, values in inputs.items()})
        self._check_stamp(outputs["model_version"].numpy())
        return VersionedEmbeddings(outputs["embedding"].numpy(), self.model_version)

    def _check_stamp(self, stamped: NDArray[Any]) -> None:
        wrong = stamped[stamped != int(self.model_version)]
        if len(wrong):
            raise VersionMismatchError(
                f"the SavedModel in {self.artifact.path}",
                f"v{wrong[0]}",
                "its tag",
                self.model_version,
                f"rerun train_towers for {self.model_version}",
            )
