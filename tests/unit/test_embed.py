"""Batch embedding with a tower so small that its vectors are known by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow import embed
from dataflow.digests import FeatureDigests
from lockstep.config import EmbedSection
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS, read_embeddings
from lockstep.errors import (
    CorruptArtifactError,
    DataError,
    EmbeddingError,
    IncompleteArtifactError,
    InputMismatchError,
    VersionMismatchError,
    WrongKindError,
)
from lockstep.features import features_type
from lockstep.schema import Schema
from lockstep.storage import fresh_directory
from lockstep.tags import Kind, Tag, open_artifact, read_tag, write_tag
from lockstep.version import ModelVersion

SCHEMA = Schema.model_validate(
    {
        "query": {"history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 4}},
        "candidate": {"title": {"type": "text"}, "price": {"type": "numeric"}},
    }
)
V7 = ModelVersion(7)
OTHER = "0" * 64


def make_tower(
    directory: Path, kind: Kind, *, tag: int = 7, stamps: int = 7, length: float = 1.0, skew: float = 0.0
) -> Path:
    """A tower: a candidate's vector is along (1, price, letters of its title), a query's along (1, history length).

    `skew` is what batch embedding adds to a candidate's price, and serving does not.
    """
    tf = pytest.importorskip("tensorflow")
    floats, strings, ids = tf.float32, tf.string, tf.int64
    tokens = SCHEMA.candidate["title"].max_tokens  # type: ignore[union-attr]

    def signature(*specs: tuple[str, Any, list[int | None]]) -> Any:
        return tf.function(input_signature=[tf.TensorSpec(shape, dtype, name) for name, dtype, shape in specs])

    def stamped(*columns: Any) -> dict[str, Any]:
        vector = length * tf.math.l2_normalize(tf.stack(columns, axis=1), axis=1)
        return {"embedding": vector, "model_version": tf.fill([tf.shape(vector)[0]], tf.constant(stamps, tf.int64))}

    class CandidateModule(tf.Module):
        @signature(("title", strings, [None]), ("price", floats, [None]))
        def distinct(self, title: Any, price: Any) -> dict[str, Any]:
            letters = tf.strings.length(title)[:, tf.newaxis]
            return {"title": tf.cast(tf.pad(letters, [[0, 0], [0, tokens - 1]]), ids), "price": price[:, tf.newaxis]}

        @signature(("title", ids, [None, tokens]), ("price", floats, [None, 1]))
        def embed_encoded(self, title: Any, price: Any) -> dict[str, Any]:
            return stamped(tf.ones_like(price[:, 0]), price[:, 0] + skew, tf.cast(title[:, 0], floats))

        @signature(("title", strings, [None]), ("price", floats, [None]))
        def serve(self, title: Any, price: Any) -> dict[str, Any]:
            encoded = self.distinct(title, price)
            return self.embed_encoded(encoded["title"], encoded["price"] - skew)

    class QueryModule(tf.Module):
        @signature(("history", strings, [None]))
        def distinct(self, history: Any) -> dict[str, Any]:
            return {"history": tf.cast(history != b"", ids)[:, tf.newaxis]}

        @signature(("history", ids, [None, 4]))
        def embed_encoded(self, history: Any) -> dict[str, Any]:
            known = tf.cast(tf.reduce_sum(history, axis=1), floats)
            return stamped(tf.ones_like(known), known)

        @signature(("history", strings, [None, None]))
        def serve(self, history: Any) -> dict[str, Any]:
            known = tf.reduce_sum(tf.cast(history != b"", floats), axis=1)
            return stamped(tf.ones_like(known), known)

    directory.mkdir(parents=True)
    module = CandidateModule() if kind is Kind.CANDIDATE_TOWER else QueryModule()
    signatures = {
        "serving_default": module.serve,
        "distinct": module.distinct,
        "embed_encoded": module.embed_encoded,
    }
    tf.saved_model.save(module, str(directory / "saved_model"), signatures=signatures)
    (directory / "schema.json").write_bytes(SCHEMA.to_json())
    write_tag(directory, kind, run="r1", schema=SCHEMA.digest, rows=1, model_version=ModelVersion(tag))
    return directory


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {
        "candidate": make_tower(root / "candidate", Kind.CANDIDATE_TOWER),
        "query": make_tower(root / "query", Kind.QUERY_TOWER),
    }


def candidate(identifier: str | None, title: str = "abc", price: float | None = 2.0) -> dict[str, Any]:
    return {
        "id": identifier,
        "features": {"title": title, "price": price},
        "restricts": [{"namespace": "genre", "allow": [title], "deny": ["x"]}],
        "numeric_restricts": [{"namespace": "price", "value": 2.5}],
        "crowding_tag": f"by {title}",
    }


def write_entities(
    directory: Path,
    candidates: list[dict[str, Any]],
    queries: list[dict[str, Any]] | None = None,
    *,
    files: int = 1,
    group: int | None = None,
    rows: int | None = None,
    schema: str = SCHEMA.digest,
) -> Path:
    queries = [{"id": "q1", "features": {"history": ["a"]}, "history": ["a"]}] if queries is None else queries
    types = {
        "candidates": [
            *(("id", pa.string()), ("features", features_type(SCHEMA, "candidate")), ("display", pa.string())),
            *(("restricts", RESTRICTS), ("numeric_restricts", NUMERIC_RESTRICTS), ("crowding_tag", pa.string())),
        ],
        "queries": [
            *(("id", pa.string()), ("features", features_type(SCHEMA, "query")), ("history", pa.list_(pa.string()))),
        ],
    }
    for name, values in (("candidates", candidates), ("queries", queries)):
        (directory / name).mkdir(parents=True)
        for number in range(files):
            part = pa.Table.from_pylist(values[number::files], pa.schema(types[name]))
            pq.write_table(part, directory / name / f"part-{number:05d}.parquet", row_group_size=group)
    total = len(candidates) + len(queries) if rows is None else rows
    write_tag(directory, Kind.ENTITIES, run="r1", schema=schema, rows=total)
    return directory


def run(tower: Path, entities: Path, output: Path, side: str = "candidate", snapshot: int = 2, **section: Any) -> Tag:
    return embed.run(
        tower=tower,
        entities=entities,
        output=output,
        side=side,  # type: ignore[arg-type]
        model_version=V7,
        snapshot=snapshot,
        run_id="r2",
        section=EmbedSection(**{"batch_size": 64} | section),
    )


def rows_of(output: Path, kind: Kind) -> list[dict[str, Any]]:
    artifact = open_artifact(output, kind, model_version=V7, snapshot=2)
    return [row for batch, _ in read_embeddings(artifact) for row in batch.to_pylist()]


def test_a_candidate_row_holds_its_vector_version_digest_restricts_and_crowding_tag(
    towers: dict[str, Path], tmp_path: Path
) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a", "abc", 2.0), candidate("b", "", 0.0)])
    tag = run(towers["candidate"], entities, tmp_path / "out")
    first, second = rows_of(tmp_path / "out", Kind.CANDIDATE_EMBEDDINGS)
    # (1, 2, 3) / sqrt(14) and (1, 0, 0).
    assert first["embedding"] == pytest.approx([0.26726, 0.53452, 0.80178], abs=1e-5)
    assert second["embedding"] == pytest.approx([1, 0, 0])
    assert first | {"embedding": None} == {
        "id": "a",
        "embedding": None,
        "model_version": 7,
        "feature_digest": first["feature_digest"],
        "restricts": [{"namespace": "genre", "allow": ["abc"], "deny": ["x"]}],
        "numeric_restricts": [{"namespace": "price", "value": 2.5}],
        "crowding_tag": "by abc",
    }
    features = pa.array([{"title": "abc", "price": 2.0}], features_type(SCHEMA, "candidate"))
    assert [first["feature_digest"]] == FeatureDigests().of(features).to_pylist()
    assert first["feature_digest"] != second["feature_digest"]
    assert (tag.kind, tag.model_version, tag.snapshot, tag.rows) == (Kind.CANDIDATE_EMBEDDINGS, 7, 2, 2)
    assert tag.schema == SCHEMA.digest
    assert tag.inputs == {"tower": read_tag(towers["candidate"]).digest, "entities": read_tag(entities).digest}


def test_query_entities_are_embedded_without_restricts(towers: dict[str, Path], tmp_path: Path) -> None:
    queries = [
        {"id": "q1", "features": {"history": ["a", "b", "c"]}, "history": []},
        {"id": "q2", "features": {"history": None}, "history": []},
    ]
    entities = write_entities(tmp_path / "entities", [candidate("a")], queries)
    tag = run(towers["query"], entities, tmp_path / "out", "query")
    rows = rows_of(tmp_path / "out", Kind.QUERY_EMBEDDINGS)
    assert [row["id"] for row in rows] == ["q1", "q2"]
    assert rows[0]["embedding"] == pytest.approx([1 / 10**0.5, 3 / 10**0.5])
    assert set(rows[0]) == {"id", "embedding", "model_version", "feature_digest"}
    assert (tag.kind, tag.rows) == (Kind.QUERY_EMBEDDINGS, 2)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_files_hold_shard_rows_each_whatever_the_batches(
    towers: dict[str, Path], tmp_path: Path, batch_size: int
) -> None:
    made = [candidate(f"c{number}", "x" * number) for number in range(10)]
    entities = write_entities(tmp_path / "entities", made, files=2)
    run(towers["candidate"], entities, tmp_path / "out", batch_size=batch_size, shard_rows=4)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [part.name for part in parts] == [f"part-{n:05d}-of-00003.parquet" for n in range(3)]
    assert [pq.read_metadata(part).num_rows for part in parts] == [4, 4, 2]
    rows = rows_of(tmp_path / "out", Kind.CANDIDATE_EMBEDDINGS)
    # The entities of the first file, then of the second, each with its own vector: (1, 2, n) normalised.
    numbers = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert [row["id"] for row in rows] == [f"c{number}" for number in numbers]
    assert [row["embedding"][2] / row["embedding"][0] for row in rows] == pytest.approx(numbers, abs=1e-4)


def test_a_tower_that_stamps_another_version_than_its_tag_is_refused(tmp_path: Path) -> None:
    tower = make_tower(tmp_path / "tower", Kind.CANDIDATE_TOWER, tag=7, stamps=8)
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    with pytest.raises(VersionMismatchError, match=r"is of v8, but its tag is of v7: rerun train_towers for v7"):
        run(tower, entities, tmp_path / "out")
    with pytest.raises(IncompleteArtifactError):
        read_tag(tmp_path / "out")


def test_a_tower_of_another_version_than_the_job_is_refused(tmp_path: Path) -> None:
    tower = make_tower(tmp_path / "tower", Kind.CANDIDATE_TOWER, tag=8, stamps=8)
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    with pytest.raises(VersionMismatchError, match=r"is of v8, but its reader is of v7"):
        run(tower, entities, tmp_path / "out")


def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path: Path) -> None:
    tower = make_tower(tmp_path / "tower", Kind.CANDIDATE_TOWER, length=1.002)
    entities = write_entities(tmp_path / "entities", [candidate("a"), candidate("b")])
    with pytest.raises(EmbeddingError, match=r"2 vectors are not of length 1 \(such as 'a', 'b'\)"):
        run(tower, entities, tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        # A missing price reaches this tower as NaN.
        ([candidate("a"), candidate("b", price=None)], r"v7 are refused: 1 vectors are not finite \(such as 'b'\)"),
        ([candidate("a"), candidate("b"), candidate("a", "z")], r"an id stands in several entities \(such as 'a'\)"),
        ([candidate("a"), candidate("")], r"an entity has no id \(such as ''\)"),
        ([candidate(None), candidate("a")], r"an entity has no id \(such as None\)"),
    ],
)
def test_entities_that_cannot_be_served_are_refused(
    towers: dict[str, Path], tmp_path: Path, rows: list[dict[str, Any]], error: str
) -> None:
    entities = write_entities(tmp_path / "entities", rows)
    with pytest.raises(EmbeddingError, match=error):
        run(towers["candidate"], entities, tmp_path / "out", batch_size=2)
    with pytest.raises(IncompleteArtifactError):
        read_tag(tmp_path / "out")


def test_no_entities_is_an_error_and_not_an_empty_artifact(towers: dict[str, Path], tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [])
    with pytest.raises(DataError, match="holds no candidates to embed"):
        run(towers["candidate"], entities, tmp_path / "out")


def test_entities_that_are_not_as_many_as_tagged_are_refused(towers: dict[str, Path], tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a")], rows=3)
    with pytest.raises(CorruptArtifactError, match="found 2 rows, expected 3 rows"):
        run(towers["candidate"], entities, tmp_path / "out")


def test_a_tower_of_another_schema_is_refused(towers: dict[str, Path], tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a")], schema=OTHER)
    with pytest.raises(InputMismatchError, match="the schema of"):
        run(towers["candidate"], entities, tmp_path / "out")


def test_the_tower_of_the_other_side_is_refused(towers: dict[str, Path], tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    with pytest.raises(WrongKindError):
        run(towers["query"], entities, tmp_path / "out", "candidate")


def test_what_a_crash_left_is_replaced_and_a_flipped_byte_is_found(towers: dict[str, Path], tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    fresh_directory(tmp_path / "out")
    (tmp_path / "out" / "part-00000-of-00009.parquet").write_bytes(b"half")
    run(towers["candidate"], entities, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "canaries.parquet",
        "part-00000-of-00001.parquet",
        "tag.json",
    ]
    part = entities / "candidates" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20] + b"X" + part.read_bytes()[-19:])
    with pytest.raises(CorruptArtifactError, match=r"part-00000\.parquet is corrupt"):
        run(towers["candidate"], entities, tmp_path / "out2")


def test_progress_is_said_in_rows_a_second(
    towers: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a"), candidate("b")])
    with caplog.at_level(logging.INFO, logger="dataflow.embed"):
        run(towers["candidate"], entities, tmp_path / "out")
    assert "embedded 2 of 2 candidates, " in caplog.text
    assert "rows/s" in caplog.text


def test_vectors_of_a_batch_equal_those_of_single_rows(towers: dict[str, Path], tmp_path: Path) -> None:
    made = [candidate(f"c{number}", "t" * number, float(number % 5)) for number in range(20)]
    entities = write_entities(tmp_path / "entities", made)
    run(towers["candidate"], entities, tmp_path / "one", batch_size=1)
    run(towers["candidate"], entities, tmp_path / "all", batch_size=20)
    one, all_ = (
        np.array([row["embedding"] for row in rows_of(tmp_path / name, Kind.CANDIDATE_EMBEDDINGS)])
        for name in ("one", "all")
    )
    np.testing.assert_allclose(one, all_, atol=1e-6)
