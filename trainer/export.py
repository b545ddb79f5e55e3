"""A trained tower as a SavedModel that takes raw features.

The preprocessing module and the tower become one graph, so training and serving cannot encode a feature in two
ways, and the graph stamps what it embeds with its model version (layout: `lockstep.towers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import tensorflow as tf

from lockstep.errors import CorruptArtifactError, SchemaError
from lockstep.features import MISSING_TIME
from lockstep.schema import Schema
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, write_tag
from lockstep.version import ModelVersion
from trainer.encoding import Side
from trainer.towers import TowerNetwork

_KINDS: Mapping[Side, Kind] = {"query": Kind.QUERY_TOWER, "candidate": Kind.CANDIDATE_TOWER}


_MISSING: Mapping[tf.DType, str | float | int] = {tf.string: "", tf.float32: math.nan, tf.int64: MISSING_TIME}
"""What a raw feature holds where there is no value (`lockstep.features`)."""


def export_tower(
    tower: TowerNetwork,
    side: Side,
    preprocessing: Artifact,
    output: Path,
    *,
    model_version: ModelVersion,
    run_id: str,
    rows: int,
    inputs: Mapping[str, Tag],
) -> Tag:
    """Write a tower artifact.

    Args:
        rows: training examples that the tower has learnt from; the tag's row count.
        inputs: the tags of what it was made from, by role.

    Raises:
        SchemaError: the preprocessing module takes other features than its schema declares.
        CorruptArtifactError: the preprocessing module or its schema cannot be read.
    """
    schema = _read_schema(preprocessing)
    module = serving_module(tower, side, preprocessing, schema, model_version)
    fresh_directory(output)
    signatures = {
        "serving_default": module.serve,
        "tf_example": module.serve_examples,
        "distinct": module.encode_distinct,
        "embed_encoded": module.embed_encoded,
    }
    tf.saved_model.save(module, str(output / "saved_model"), signatures=signatures)
    (output / "schema.json").write_bytes(schema.to_json())
    return write_tag(
        output,
        _KINDS[side],
        run=run_id,
        schema=preprocessing.tag.schema,
        rows=rows,
        model_version=model_version,
        inputs=inputs,
    )


def serving_module(
    tower: TowerNetwork, side: Side, preprocessing: Artifact, schema: Schema, model_version: ModelVersion
) -> tf.Module:
    """Preprocessing, tower and version stamp as one module.

    Its functions are `serve`, of raw features by name, `serve_examples`, of the same as serialized tf.Examples, and
    the two halves of `serve` that batch embedding calls one by one: `encode_distinct`, which is the preprocessing's
    own, and `embed_encoded`.
    """
    loaded = tf.saved_model.load(str(preprocessing / side))
    encode = loaded.signatures["serving_default"]
    specs = encode.structured_input_signature[1]
    declared = sorted(schema.features(side))
    if sorted(specs) != declared:
        raise SchemaError(
            f"the {side} preprocessing in {preprocessing.path} takes {sorted(specs)}, its schema declares {declared}: "
            "rerun generate_examples"
        )
    module = tf.Module(name=f"{side}_tower")
    # The variables are tracked, the Keras objects are not: they would bring their own functions into the SavedModel.
    module.preprocessing = loaded
    module.weights = list(tower.variables)
    embed_encoded = _embed_function(tower, model_version)
    module.embed_encoded = embed_encoded.get_concrete_function(
        **{of.name: tf.TensorSpec([None, of.length], of.dtype, name=of.name) for of in tower.features}
    )
    module.encode_distinct = _again(loaded.signatures["distinct"])
    module.serve = _serve_function(tower, encode, embed_encoded).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
    )
    module.serve_examples = _serve_examples_function(module.serve, specs).get_concrete_function(
        tf.TensorSpec([None], tf.string, name="examples")
    )
    return module


def _embed_function(tower: TowerNetwork, model_version: ModelVersion) -> tf.types.experimental.PolymorphicFunction:
    @tf.function(autograph=False)
    def embed_encoded(**encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        embedding = tower(encoded, training=False)
        version = tf.constant(int(model_version), tf.int64)
        return {"embedding": embedding, "model_version": tf.fill(tf.shape(embedding)[:1], version)}

    return embed_encoded


def _serve_function(
    tower: TowerNetwork,
    encode: Callable[..., Mapping[str, tf.Tensor]],
    embed_encoded: Callable[..., Mapping[str, tf.Tensor]],
) -> tf.types.experimental.PolymorphicFunction:
    lengths = {feature.name: feature.length for feature in tower.features}

    @tf.function(autograph=False)
    def serve(**features: tf.Tensor) -> Mapping[str, tf.Tensor]:
        encoded = encode(**features)
        # A SavedModel's signature forgets the static length that pooling relies on.
        return embed_encoded(**{name: tf.reshape(encoded[name], [-1, length]) for name, length in lengths.items()})

    return serve


def _again(signature: tf.types.experimental.ConcreteFunction) -> tf.types.experimental.ConcreteFunction:
    """A loaded signature as a function that can be saved as one."""

    @tf.function(autograph=False)
    def call(**inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return signature(**inputs)

    specs = signature.structured_input_signature[1]
    return call.get_concrete_function(**{name: tf.TensorSpec(of.shape, of.dtype, name) for name, of in specs.items()})


def _serve_examples_function(
    serve: Callable[..., Mapping[str, tf.Tensor]], specs: Mapping[str, tf.TensorSpec]
) -> tf.types.experimental.PolymorphicFunction:
    parsing = {name: _parsing(spec) for name, spec in specs.items()}

    @tf.function(autograph=False)
    def serve_examples(examples: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return serve(**tf.io.parse_example(examples, parsing))

    return serve_examples


def _parsing(spec: tf.TensorSpec) -> tf.io.FixedLenFeature | tf.io.FixedLenSequenceFeature:
    """How a raw feature stands in a tf.Example: a value, a vector of fixed size, or a list of any length."""
    missing = _MISSING[spec.dtype]
    if spec.shape.rank == 1:
        return tf.io.FixedLenFeature([], spec.dtype, missing)
    size = spec.shape[1]
    if size is not None:
        return tf.io.FixedLenFeature([size], spec.dtype, [missing] * size)
    return tf.io.FixedLenSequenceFeature([], spec.dtype, allow_missing=True, default_value=missing)


def _read_schema(preprocessing: Artifact) -> Schema:
    path = preprocessing / "schema.json"
    try:
        schema = Schema.from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(path, repr(error), "a schema") from error
    if schema.digest != preprocessing.tag.schema:
        raise CorruptArtifactError(path, f"schema {schema.digest[:12]}", f"schema {preprocessing.tag.schema[:12]}")
    return schema
