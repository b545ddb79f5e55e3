"""Whole towers over encoded features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import ConfigError, SchemaError
from lockstep.model_sections import ModelSection, TrainSection
from trainer import task
from trainer.encoding import EncodedFeature, EncodedFeatures, Repeated
from trainer.pooling import AttentionWeights, MeanWeights, RecencyWeights
from trainer.towers import TowerNetwork, build_towers

HISTORY = EncodedFeature("history", "id_sequence", "int64", 4, elements=4, size=10, table="track", dim=3)
TITLES = EncodedFeature("titles", "text_sequence", "int64", 6, elements=2, size=7, table="title")
MOOD = EncodedFeature("mood", "numeric", "float32", 2)
TRACK = EncodedFeature("track", "id", "int64", 1, size=10, table="track", dim=3)
TITLE = EncodedFeature("title", "text", "int64", 3, size=7, table="title")
GENRE = EncodedFeature("genre", "categorical", "int64", 1, size=5, table="genre")
FEATURES = EncodedFeatures(query=(HISTORY, TITLES, MOOD), candidate=(TRACK, TITLE, GENRE))
QUERIES = {
    "history": tf.constant([[2, 3, 0, 0], [0] * 4, [4, 1, 2, 9]], tf.int64),
    "titles": tf.constant([[2, 3, 0, 4, 0, 0], [0] * 6, [5, 0, 0, 0, 0, 0]], tf.int64),
    "mood": tf.constant([[0.5, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
}
CANDIDATES = {
    "track": tf.constant([[2], [0], [1]], tf.int64),
    "title": tf.constant([[2, 3, 0], [0, 0, 0], [6, 1, 0]], tf.int64),
    "genre": tf.constant([[2], [0], [4]], tf.int64),
}
EVERYTHING = {
    "feature_dim": 4,
    "combine": "sum",
    "pooling": "attention",
    "query": {"hidden": [6, 5], "cross_layers": 2, "cross_rank": 2, "cross": "parallel", "pooling": {"titles": "mean"}},
    "candidate": {"hidden": [6], "cross_layers": 1},
    "residual": True,
    "layer_norm": True,
    "dropout": 0.2,
}


def towers(seed: int = 1, unknown_id_share: float = 0.0, **model: object) -> tuple[TowerNetwork, TowerNetwork]:
    return build_towers(FEATURES, ModelSection(**model), seed, unknown_id_share)


@pytest.fixture
def half() -> Iterator[None]:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def test_features_of_one_table_share_one_object_across_towers() -> None:
    query, candidate = towers()
    shared = query.blocks["history"].table
    assert candidate.blocks["track"].table is shared
    assert candidate.blocks["genre"].table is not shared
    # track and title tables, two dense layers with bias
    assert len(query.trainable_variables) == 2 + 4
    assert len(candidate.trainable_variables) == 3 + 4
    both = {id(v) for v in query.trainable_variables} & {id(v) for v in candidate.trainable_variables}
    assert both == {id(shared.embeddings), id(candidate.blocks["title"].table.embeddings)}


def test_vectors_have_unit_length_and_the_configured_size() -> None:
    query, _ = towers(embedding_dim=7, query={"hidden": [5, 4]})
    vectors = query(QUERIES)
    assert vectors.shape == (3, 7)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0] * 3, rtol=1e-5)
    assert [layer.dense.units for layer in query.hidden] == [5, 4]


def test_nothing_but_missing_values_has_a_direction_too() -> None:
    _, candidate = towers()
    np.testing.assert_allclose(np.linalg.norm(candidate(CANDIDATES)[1]), 1.0, rtol=1e-5)


@pytest.mark.parametrize("layers", [0, 1, 8])
def test_a_stray_float_leaves_a_vector_of_unit_length(layers: int) -> None:
    query, _ = towers(query={"cross_layers": layers})
    vectors = query({**QUERIES, "mood": tf.constant([[1e30, 0.0], [-3e38, 3e38], [float("inf"), 0.0]])})
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0] * 3, rtol=1e-5)


def test_a_table_takes_the_feature_s_dim_or_the_default() -> None:
    query, candidate = towers(feature_dim=11)
    assert query.blocks["history"].table.embeddings.shape == (10, 3)
    assert candidate.blocks["genre"].table.embeddings.shape == (5, 11)


@pytest.mark.parametrize("model", [{}, EVERYTHING])
def test_the_seed_decides_every_weight(model: dict[str, object]) -> None:
    first, again, other = (towers(seed, **model) for seed in (1, 1, 2))
    for a, b in zip(first[0].variables + first[1].variables, again[0].variables + again[1].variables, strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [v for v in first[0].trainable_variables + first[1].trainable_variables if len(v.shape) == 2]
    others = [v for v in other[0].trainable_variables + other[1].trainable_variables if len(v.shape) == 2]
    assert len({v.numpy().tobytes() for v in kernels + others}) == 2 * len({id(v) for v in kernels})


def test_variables_are_named_by_what_they_are_whatever_was_built_before() -> None:
    for _ in range(2):
        query, _ = towers(combine="sum", pooling="recency", query={"hidden": [4], "cross_layers": 1})
        assert [variable.name for variable in query.trainable_variables] == [
            "table_track/embeddings:0",
            "query_tower/history/recency/logit:0",
            "table_title/embeddings:0",
            "query_tower/titles/recency/logit:0",
            "query_tower/widening_history/kernel:0",
            "query_tower/widening_mood/kernel:0",
            "query_tower/cross/expansion_0/kernel:0",
            "query_tower/cross/expansion_0/bias:0",
            "query_tower/hidden_0/dense/kernel:0",
            "query_tower/hidden_0/dense/bias:0",
            "query_tower/projection/kernel:0",
            "query_tower/projection/bias:0",
        ]


def test_one_table_of_two_sizes_is_refused() -> None:
    wider = EncodedFeature("track", "id", "int64", 1, size=10, table="track", dim=4)
    with pytest.raises(SchemaError, match=r"'track' makes it 10 ids x 4, another feature 10 x 3"):
        build_towers(EncodedFeatures((HISTORY,), (wider,)), ModelSection(), seed=1)


def test_the_features_of_a_tower_are_concatenated_in_order() -> None:
    _, candidate = towers(feature_dim=4, embedding_dim=11, candidate={"hidden": []})
    candidate.projection.kernel.assign(tf.eye(11))
    candidate.projection.bias.assign(tf.zeros(11))
    track, title, genre = (candidate.blocks[name].table.embeddings.numpy() for name in ("track", "title", "genre"))
    joined = np.concatenate([track[2], (title[2] + title[3]) / 2**0.5, genre[2]])
    np.testing.assert_allclose(candidate(CANDIDATES)[0], joined / np.linalg.norm(joined), rtol=1e-5)


def test_a_sum_projects_features_of_another_width() -> None:
    query, candidate = towers(feature_dim=4, combine="sum", embedding_dim=4, candidate={"hidden": []})
    assert sorted(candidate.widenings) == ["track"]
    assert sorted(query.widenings) == ["history", "mood"]
    candidate.projection.bias.assign(tf.zeros(4))
    track, title, genre = (candidate.blocks[name].table.embeddings.numpy() for name in ("track", "title", "genre"))
    total = track[2] @ candidate.widenings["track"].kernel.numpy() + (title[2] + title[3]) / 2**0.5 + genre[2]
    np.testing.assert_allclose(candidate(CANDIDATES)[0], total / np.linalg.norm(total), rtol=1e-5)


def test_cross_layers_below_or_beside_the_hidden_ones() -> None:
    # joined: history 3, titles 4, mood 2
    stacked, _ = towers(feature_dim=4, query={"hidden": [5], "cross_layers": 2})
    parallel, _ = towers(feature_dim=4, query={"hidden": [5], "cross_layers": 2, "cross": "parallel"})
    alone, _ = towers(feature_dim=4, query={"hidden": [5], "cross": "parallel"})
    assert [t.projection.kernel.shape[0] for t in (stacked, parallel, alone)] == [5, 9 + 5, 5]
    joined = tf.concat(
        [parallel.blocks["history"](QUERIES["history"]), parallel.blocks["titles"](QUERIES["titles"])], 1
    )
    joined = tf.concat([joined, QUERIES["mood"]], 1)
    for tower, expected in (
        (stacked, stacked.hidden[0](stacked.cross(joined))),
        (parallel, tf.concat([parallel.cross(joined), parallel.hidden[0](joined)], 1)),
    ):
        np.testing.assert_allclose(tower(QUERIES), tf.math.l2_normalize(tower.projection(expected), 1), rtol=1e-4)


def test_a_sequence_takes_its_own_pooling_or_the_model_s() -> None:
    query, _ = towers(pooling="recency", query={"pooling": {"titles": "attention"}})
    assert isinstance(query.blocks["history"].pooling, RecencyWeights)
    assert isinstance(query.blocks["titles"].pooling, AttentionWeights)
    assert isinstance(towers()[0].blocks["titles"].pooling, MeanWeights)


@pytest.mark.parametrize("name", ["mood", "track", "histroy"])
def test_a_pooling_of_no_sequence_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[model.query.pooling\] names \['{name}'\].*\['history', 'titles'\]"):
        towers(query={"pooling": {name: "recency"}})


@pytest.mark.parametrize("model", [{}, {"pooling": "recency"}, EVERYTHING])
def test_repeated_sequences_give_the_vectors_of_dense_ones(model: dict[str, object]) -> None:
    query, _ = towers(**model)
    history = Repeated(
        tf.constant([[0], [2], [3], [4], [1], [9]], tf.int32),
        tf.constant([[0, 1, 2, 0, 0], [0] * 5, [3, 4, 0, 1, 5]]),
    )
    titles = Repeated(
        tf.constant([[0, 0, 0], [2, 3, 0], [4, 0, 0], [5, 0, 0]], tf.int32), tf.constant([[1, 2], [0, 0], [0, 3]])
    )
    repeated = query({"history": history, "titles": titles, "mood": QUERIES["mood"]})
    np.testing.assert_allclose(repeated, query(QUERIES), atol=1e-6)


def test_hidden_ids_give_the_vector_of_an_unknown_candidate() -> None:
    _, candidate = towers(unknown_id_share=1.0)
    unknown = candidate({**CANDIDATES, "track": tf.constant([[1], [0], [1]], tf.int64)})
    np.testing.assert_array_equal(candidate(CANDIDATES, training=True), unknown)
    # The genre, which is no id, is not hidden; and nothing is outside training.
    assert not np.allclose(candidate(CANDIDATES)[0], unknown[0])
    other = candidate({**CANDIDATES, "genre": tf.constant([[3], [0], [4]], tf.int64)}, training=True)
    assert not np.allclose(other[0], unknown[0])


def test_hiding_ids_takes_a_candidate_feature_of_type_id() -> None:
    without = EncodedFeatures((HISTORY,), (TITLE, GENRE))
    with pytest.raises(ConfigError, match=r"unknown_id_share is 0\.1, but no candidate feature .* is of type `id`"):
        build_towers(without, ModelSection(), 1, 0.1)
    build_towers(without, ModelSection(), 1, 0.0)


def test_the_history_of_a_query_is_not_hidden() -> None:
    query, _ = towers(unknown_id_share=1.0)
    np.testing.assert_array_equal(query(QUERIES, training=True), query(QUERIES))


def test_dropout_is_off_outside_training() -> None:
    query, _ = towers(dropout=0.5)
    np.testing.assert_array_equal(query(QUERIES), query(QUERIES))
    assert not np.allclose(query(QUERIES, training=True), query(QUERIES))


def test_a_checkpoint_restores_weights_and_random_state(tmp_path: Path) -> None:
    _, running = towers(1, 0.5, **EVERYTHING)
    _, resumed = towers(2, 0.5, **EVERYTHING)
    running(CANDIDATES, training=True)
    path = tf.train.Checkpoint(tower=running).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(tower=resumed).read(path).assert_consumed()
    for _ in range(3):
        np.testing.assert_array_equal(running(CANDIDATES, training=True), resumed(CANDIDATES, training=True))


@pytest.mark.parametrize("model", [{"query": {"cross_layers": 1}}, EVERYTHING])
def test_mixed_precision_multiplies_in_half_and_answers_in_float32(half: None, model: dict[str, object]) -> None:
    query, _ = towers(**model)
    with tf.GradientTape() as tape:
        vectors = query(QUERIES)
        loss = tf.reduce_sum(vectors[:, 0])
    assert vectors.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0] * 3, rtol=1e-5)
    assert query.projection.compute_dtype == query.hidden[0].dense.compute_dtype == "bfloat16"
    assert {v.dtype for v in query.trainable_variables} == {tf.float32}
    table = query.blocks["history"].table.embeddings
    assert tape.gradient(loss, table).dtype == tf.float32
    tf.keras.mixed_precision.set_global_policy("float32")
    full, _ = towers(**model)
    np.testing.assert_allclose(vectors, full(QUERIES), atol=0.03)
    assert not np.array_equal(vectors, full(QUERIES))


def test_a_sum_of_the_embeddings_width_is_the_embedding() -> None:
    bare = {
        "embedding_dim": 3,
        "feature_dim": 3,
        "combine": "sum",
        "candidate": {"hidden": ()},
        "query": {"hidden": ()},
    }
    features = EncodedFeatures((HISTORY,), (TRACK,))
    _, candidate = build_towers(features, ModelSection.model_validate(bare), 1)
    assert [variable.shape.as_list() for variable in candidate.trainable_variables] == [[10, 3], [3]]
    table, bias = candidate.blocks["track"].table.embeddings.numpy(), candidate.projection.bias.numpy()
    expected = table[[2, 5]] + bias
    found = candidate({"track": tf.constant([[2], [5]])})
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    # With anything above the sum, or another width, there is a matrix.
    changes = [{"embedding_dim": 4}, {"candidate": {"hidden": (3,)}}, {"candidate": {"hidden": (), "cross_layers": 1}}]
    for change in changes:
        _, other = build_towers(features, ModelSection.model_validate(bare | change), 1)
        assert any(variable.shape.rank == 2 for variable in other.projection.trainable_variables)


def test_a_tower_trained_in_half_precision_is_exported_with_the_limits_of_its_training() -> None:
    model = ModelSection.model_validate({"query": {"cross_layers": 2}})
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        trained = SimpleNamespace(
            **dict(zip(("query_tower", "candidate_tower"), build_towers(FEATURES, model, 1), strict=True))
        )
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    plain, _ = task.plain_towers(trained, FEATURES, model, TrainSection())  # type: ignore[arg-type]
    assert plain.largest == trained.query_tower.largest == pytest.approx(10.0)
    large = {**QUERIES, "mood": tf.constant([[50.0, -3.0], [2000.0, 20.0], [0.5, -1.0]])}
    np.testing.assert_allclose(plain(large), trained.query_tower(large), atol=1e-2)
