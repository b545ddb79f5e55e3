"""The export for Vector Search, read back by other readers than ours, and byte for byte where it is tiny."""

from __future__ import annotations

import io
import json
import logging
import math
import struct
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS, Dtype, VersionedEmbeddings, embedding_batch
from lockstep.errors import (
    ConfigError,
    CorruptArtifactError,
    DataError,
    LockstepError,
    StorageError,
    VersionMismatchError,
    WrongKindError,
)
from lockstep.registry import Part, Registry, Release
from lockstep.storage import LocalStorage
from lockstep.tags import Kind, Tag, write_tag
from lockstep.version import ModelVersion, ReleaseId
from pipelines.cli import main
from serving.index import vector_search, vector_search_avro
from serving.index.vector_search import export_candidates

V7 = ModelVersion(7)
FORMATS = ("json", "avro")
ROCK = {"namespace": "genre", "allow": ["rock", "pop"], "deny": ["live"]}
ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "embedding": [0.5, -1.0],
        "restricts": [ROCK, {"namespace": "only", "allow": None, "deny": ["x"]}],
        "numeric_restricts": [{"namespace": "price", "value": 9.75}, {"namespace": "age", "value": -2.0}],
        "crowding_tag": "tag",
    },
    {"id": 'q"\\\n\x01é', "embedding": [0.1, 1e-7], "restricts": [], "numeric_restricts": [], "crowding_tag": None},
    {"id": "c", "embedding": [0.0, 1 / 3], "restricts": None, "numeric_restricts": None, "crowding_tag": 'a"b'},
    {
        "id": "字" * 100,
        "embedding": [-0.0, 3.4e38],
        "restricts": [{"namespace": "genre", "allow": [], "deny": []}],
        "numeric_restricts": [{"namespace": "n", "value": 0.1}],
        "crowding_tag": "",
    },
]


def batch_of(rows: list[dict[str, Any]], dtype: Dtype = "float32") -> pa.RecordBatch:
    vectors = np.array([row["embedding"] for row in rows], np.float32).reshape(len(rows), -1)
    types = {"restricts": RESTRICTS, "numeric_restricts": NUMERIC_RESTRICTS, "crowding_tag": pa.string()}
    columns = {name: pa.array([row[name] for row in rows], of) for name, of in types.items()}
    return embedding_batch(
        Kind.CANDIDATE_EMBEDDINGS,
        pa.array([row["id"] for row in rows], pa.string()),
        VersionedEmbeddings(vectors, V7),
        pa.array(["0"] * len(rows)),
        restricts=columns["restricts"],
        numeric_restricts=columns["numeric_restricts"],
        crowding_tags=columns["crowding_tag"],
        dtype=dtype,
    )


def write_artifact(folder: Path, rows: list[dict[str, Any]] = ROWS, parts: int = 2, dtype: Dtype = "float32") -> Tag:
    """Candidate embeddings of v7.3, spread over some files."""
    folder.mkdir(parents=True)
    for part in range(parts):
        name = f"part-{part:05d}-of-{parts:05d}.parquet"
        first, end = len(rows) * part // parts, len(rows) * (part + 1) // parts
        pq.write_table(pa.Table.from_batches([batch_of(rows[first:end], dtype)]), folder / name)
    kind = Kind.CANDIDATE_EMBEDDINGS
    return write_tag(folder, kind, run="r", schema="s", rows=len(rows), model_version=V7, snapshot=3)


def as_read(row: dict[str, Any], file_format: str) -> dict[str, Any]:
    """What a reader finds of a candidate: JSON leaves out what there is not, Avro has null."""
    restricts = [
        {"namespace": one["namespace"], "allow": one["allow"] or None, "deny": one["deny"] or None}
        for one in row["restricts"] or []
    ]
    numbers = [{"namespace": one["namespace"], "value_double": one["value"]} for one in row["numeric_restricts"] or []]
    if file_format == "json":
        restricts = [{key: value for key, value in one.items() if value is not None} for one in restricts]
    else:
        numbers = [{**one, "value_int": None, "value_float": None} for one in numbers]
    found = {
        "id": row["id"],
        "embedding": np.array(row["embedding"], np.float32).tolist(),
        "restricts": restricts or None,
        "numeric_restricts": numbers or None,
        "crowding_tag": row["crowding_tag"],
    }
    if file_format == "avro":
        return {**found, "sparse_embedding": None}
    return {key: value for key, value in found.items() if value is not None}


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, by a reader that knows nothing of ours; JSON's numbers as float32."""
    if path.suffix == ".avro":
        return list(fastavro.reader(io.BytesIO(path.read_bytes())))  # type: ignore[arg-type]
    text = path.read_bytes().decode()
    assert text.endswith("\n")
    records = [json.loads(line) for line in text[:-1].split("\n")]
    for record in records:
        record["embedding"] = np.array(record["embedding"], np.float32).tolist()
    return records


def signs(records: list[dict[str, Any]]) -> list[list[float]]:
    return [[math.copysign(1, value) for value in record["embedding"]] for record in records]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("rows_per_file", [1, 3, 4, 100])
def test_every_value_is_read_back_by_another_reader(tmp_path: Path, file_format: str, rows_per_file: int) -> None:
    tag = write_artifact(tmp_path / "e")
    export = export_candidates(
        tmp_path / "e", tmp_path / "out", file_format, model_version=V7, rows_per_file=rows_per_file
    )
    count = -(-4 // rows_per_file)
    names = [f"part-{number:05d}-of-{count:05d}.{file_format}" for number in range(count)]
    assert sorted(path.name for path in (tmp_path / "out" / "batch_root").iterdir()) == names
    files = [tmp_path / "out" / "batch_root" / name for name in names]
    records = [record for file in files for record in read(file)]
    assert records == [as_read(row, file_format) for row in ROWS]
    assert signs(records) == signs(ROWS)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == {
        "format": 1,
        "file_format": file_format,
        "model_version": 7,
        "snapshot": 3,
        "rows": 4,
        "dim": 2,
        "tag": tag.digest,
        "files": {file.name: {"rows": len(read(file)), "bytes": file.stat().st_size} for file in files},
    }
    assert (export.rows, export.dim, len(export.files)) == (4, 2, count)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["batch_root", "export.json"]


def test_a_json_file_is_these_bytes(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e", ROWS[:2])
    export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7)
    assert (tmp_path / "out" / "batch_root" / "part-00000-of-00001.json").read_bytes() == (
        b'{"id":"a","embedding":[0.5,-1.0],'
        b'"restricts":[{"namespace":"genre","allow":["rock","pop"],"deny":["live"]},{"namespace":"only","deny":["x"]}],'
        b'"numeric_restricts":[{"namespace":"price","value_double":9.75},{"namespace":"age","value_double":-2.0}],'
        b'"crowding_tag":"tag"}\n'
        b'{"id":"q\\"\\\\\\n\\u0001\xc3\xa9","embedding":[0.1,1e-7]}\n'
    )


def test_an_avro_file_is_these_bytes(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e", ROWS[:2])
    export_candidates(tmp_path / "e", tmp_path / "out", "avro", model_version=V7)
    found = (tmp_path / "out" / "batch_root" / "part-00000-of-00001.avro").read_bytes()
    # Two rows from two input files, so two blocks. A length n is the byte 2n; a union's branch is 0 (null) or 2.
    first = (
        b"\x02a\x04" + struct.pack("<2f", 0.5, -1.0) + b"\x00\x00"
        b"\x02\x04\x0agenre\x02\x04\x08rock\x06pop\x00\x02\x02\x08live\x00"
        b"\x08only\x00\x02\x02\x02x\x00\x00"
        b"\x02\x04\x0aprice\x00\x00\x02" + struct.pack("<d", 9.75) + b"\x06age\x00\x00\x02" + struct.pack("<d", -2.0)
        + b"\x00\x02\x06tag"
    )  # fmt: skip
    second = b'\x0eq"\\\n\x01\xc3\xa9\x04' + struct.pack("<2f", 0.1, 1e-7) + b"\x00\x00\x00\x00\x00"
    marker = found[-16:]
    # Of 93 bytes, in zigzag's base 128: 186 = 0b1_0111010.
    assert len(first) == 93
    blocks = b"\x02\xba\x01" + first + marker + b"\x02" + bytes([2 * len(second)]) + second + marker
    header = found[: -len(blocks)]
    assert found == header + blocks
    assert header.startswith(b"Obj\x01\x04\x14avro.codec\x08null\x16avro.schema")
    assert header.endswith(b"\x00" + marker)
    assert found.count(marker) == 3


def test_the_avro_schema_is_the_documented_one(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e")
    export_candidates(tmp_path / "e", tmp_path / "out", "avro", model_version=V7)
    data = (tmp_path / "out" / "batch_root" / "part-00000-of-00001.avro").read_bytes()
    schema = json.loads(fastavro.reader(io.BytesIO(data)).metadata["avro.schema"])

    def of(fields: list[dict[str, Any]]) -> dict[str, Any]:
        return {field["name"]: field["type"] for field in fields}

    assert (schema["type"], schema["name"]) == ("record", "FeatureVector")
    fields = of(schema["fields"])
    strings = ["null", {"type": "array", "items": "string"}]
    assert list(fields) == ["id", "embedding", "sparse_embedding", "restricts", "numeric_restricts", "crowding_tag"]
    assert (fields["id"], fields["crowding_tag"]) == ("string", ["null", "string"])
    assert fields["embedding"] == {"type": "array", "items": "float"}
    null, sparse = fields["sparse_embedding"]
    assert (null, sparse["name"]) == ("null", "sparse_embedding")
    assert of(sparse["fields"]) == {
        "values": {"type": "array", "items": "float"},
        "dimensions": {"type": "array", "items": "long"},
    }
    null, restricts = fields["restricts"]
    assert (null, restricts["type"], restricts["items"]["name"]) == ("null", "array", "Restrict")
    assert of(restricts["items"]["fields"]) == {"namespace": "string", "allow": strings, "deny": strings}
    null, numbers = fields["numeric_restricts"]
    assert (null, numbers["type"], numbers["items"]["name"]) == ("null", "array", "NumericRestrict")
    kinds = {f"value_{kind}": ["null", kind] for kind in ("int", "float", "double")}
    assert of(numbers["items"]["fields"]) == {"namespace": "string", **kinds}


def many(rows: int, dim: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    tokens = [[{"namespace": "n", "allow": ["t" * (row % 90)], "deny": None}] * (row % 3 == 1) for row in range(rows)]
    return [
        {
            "id": "i" * (row % 70 + 1) + str(row),
            "embedding": vectors[row].tolist(),
            "restricts": tokens[row],
            "numeric_restricts": [{"namespace": "n", "value": float(vectors[row, 0])}] * (row % 2),
            "crowding_tag": None if row % 5 else "c" * (row % 200),
        }
        for row in range(rows)
    ]


@pytest.mark.parametrize("file_format", FORMATS)
def test_rows_keep_their_order_through_chunks_blocks_and_files(
    tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "_CHUNK_BYTES", 4 * 3 * 17)
    monkeypatch.setattr(vector_search_avro, "_BLOCK_BYTES", 400)
    rows = many(500)
    write_artifact(tmp_path / "e", rows, parts=3)
    export_candidates(tmp_path / "e", tmp_path / "out", file_format, model_version=V7, rows_per_file=200)
    files = sorted((tmp_path / "out" / "batch_root").iterdir())
    assert [len(read(file)) for file in files] == [200, 200, 100]
    assert [record for file in files for record in read(file)] == [as_read(row, file_format) for row in rows]
    if file_format == "avro":
        blocks = list(fastavro.block_reader(io.BytesIO(files[0].read_bytes())))
        # Chunks have 17 rows, and more than 400 bytes.
        assert len(blocks) > 200 / 17
        assert max(block.num_records for block in blocks) < 17
        assert len({file.read_bytes()[-16:] for file in files}) == 3


@pytest.mark.parametrize("file_format", FORMATS)
def test_equal_embeddings_give_equal_bytes(tmp_path: Path, file_format: str) -> None:
    write_artifact(tmp_path / "e", many(40))
    for name in ("one", "two"):
        export_candidates(tmp_path / "e", tmp_path / name, file_format, model_version=V7, rows_per_file=15)
    for file in sorted((tmp_path / "one").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("file_format", FORMATS)
def test_embeddings_of_half_precision_are_exported_as_they_are(tmp_path: Path, file_format: str) -> None:
    rows = many(5)
    write_artifact(tmp_path / "e", rows, dtype="float16")
    export_candidates(tmp_path / "e", tmp_path / "out", file_format, model_version=V7)
    (file,) = (tmp_path / "out" / "batch_root").iterdir()
    halves = [np.array(row["embedding"], np.float16).astype(np.float32).tolist() for row in rows]
    assert [record["embedding"] for record in read(file)] == halves


def test_there_are_never_more_files_than_vector_search_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vector_search.MAX_FILES == 5_000
    monkeypatch.setattr(vector_search, "MAX_FILES", 3)
    write_artifact(tmp_path / "e", many(10))
    export = export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7, rows_per_file=1)
    assert [file.rows for file in export.files.values()] == [4, 4, 2]


def test_progress_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_artifact(tmp_path / "e")
    with caplog.at_level(logging.INFO, "serving.index.vector_search"):
        export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7, rows_per_file=3)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 4 candidates exported",
        "4 of 4 candidates exported",
    ]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embedding": [math.nan, 1]}, "the embedding of 'bad' is not finite: rerun train_towers, then"),
        ({"embedding": [math.inf, 1]}, "the embedding of 'bad' is not finite: rerun train_towers, then"),
        ({"restricts": [None]}, "a restrict of a candidate lacks its namespace or a token: rerun embed_candidates"),
        ({"restricts": [{**ROCK, "namespace": None}]}, "a restrict of a candidate lacks its namespace or a token"),
        ({"restricts": [{**ROCK, "allow": ["x", None]}]}, "a restrict of a candidate lacks its namespace or a token"),
        ({"restricts": [{**ROCK, "deny": [None]}]}, "a restrict of a candidate lacks its namespace or a token"),
        ({"numeric_restricts": [{"namespace": None, "value": 1.0}]}, "a restrict of a candidate lacks its namespace"),
        ({"numeric_restricts": [{"namespace": "n", "value": None}]}, "a numeric restrict of a candidate is not a"),
        ({"numeric_restricts": [{"namespace": "n", "value": math.nan}]}, "a numeric restrict of a candidate is not"),
        ({"numeric_restricts": [{"namespace": "n", "value": -math.inf}]}, "a numeric restrict of a candidate is not"),
    ],
)
def test_what_no_reader_could_use_is_refused_and_leaves_nothing(
    tmp_path: Path, file_format: str, changes: dict[str, Any], sentence: str
) -> None:
    write_artifact(tmp_path / "e", [*ROWS, {**ROWS[0], "id": "bad", **changes}])
    with pytest.raises(DataError) as caught:
        export_candidates(tmp_path / "e", tmp_path / "out", file_format, model_version=V7, rows_per_file=2)
    assert sentence in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_only_the_embeddings_of_the_version_are_exported(tmp_path: Path) -> None:
    tag = write_artifact(tmp_path / "e")
    refused: list[tuple[dict[str, Any], type[LockstepError]]] = [
        ({"model_version": ModelVersion(8)}, VersionMismatchError),
        ({"model_version": V7, "snapshot": 4}, VersionMismatchError),
        ({"model_version": V7, "digest": "0" * 64}, CorruptArtifactError),
    ]
    for named, error in refused:
        with pytest.raises(error):
            export_candidates(tmp_path / "e", tmp_path / "out", "json", **named)
    (tmp_path / "index").mkdir()
    write_tag(tmp_path / "index", Kind.INDEX, run="r", schema="s", rows=4, model_version=V7, snapshot=3)
    with pytest.raises(WrongKindError):
        export_candidates(tmp_path / "index", tmp_path / "out", "json", model_version=V7)
    # A row of another version below the right tag.
    table = pq.read_table(tmp_path / "e" / "part-00000-of-00002.parquet")
    other = table.set_column(2, table.schema.field(2), pa.array([7, 6], pa.int64()))
    pq.write_table(other, tmp_path / "e" / "part-00000-of-00002.parquet")
    write_tag(tmp_path / "e", tag.kind, run="r", schema="s", rows=4, model_version=V7, snapshot=3)
    with pytest.raises(VersionMismatchError, match="v6"):
        export_candidates(tmp_path / "e", tmp_path / "out", "avro", model_version=V7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "index"]


def test_an_unknown_format_and_no_candidates_are_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e", [], parts=0)
    with pytest.raises(ConfigError, match=r"'csv' is none .* writes: json, avro"):
        export_candidates(tmp_path / "e", tmp_path / "out", "csv", model_version=V7)
    with pytest.raises(DataError, match="holds no candidates: there is nothing to export"):
        export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e")
    (tmp_path / "out").mkdir()
    export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7)  # an empty folder is taken
    before = (tmp_path / "out" / "export.json").read_bytes()
    (tmp_path / "file").write_text("mine")
    for place in ("out", "file"):
        with pytest.raises(StorageError, match=f"{place} is to be written, but it holds something: name an empty"):
            export_candidates(tmp_path / "e", tmp_path / place, "avro", model_version=V7)
    assert (tmp_path / "out" / "export.json").read_bytes() == before
    with pytest.raises(StorageError, match=r"cannot write beside /proc/x/out: .*; name another folder"):
        export_candidates(tmp_path / "e", Path("/proc/x/out"), "json", model_version=V7)


def test_the_remains_of_a_killed_export_are_removed(tmp_path: Path) -> None:
    write_artifact(tmp_path / "e")
    remains = tmp_path / ".out.unfinished" / "batch_root"
    remains.mkdir(parents=True)
    (remains / "part-00000-of-00009.json").write_text("half")
    export_candidates(tmp_path / "e", tmp_path / "out", "json", model_version=V7)
    assert [path.name for path in (tmp_path / "out" / "batch_root").iterdir()] == ["part-00000-of-00001.json"]
    assert not remains.parent.exists()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with release v7.3, which is not live yet."""
    folder = tmp_path / "root"
    tag = write_artifact(folder / "runs" / "r" / "candidate_embeddings")
    registry = Registry(LocalStorage(str(folder)))
    assert max(registry.mint_version("r", "test") for _ in range(7)) == V7
    part = Part(tag.kind, "runs/r/candidate_embeddings", tag.digest)
    registry.add_release(Release(ReleaseId(V7, 3), "r", "s", {str(tag.kind): part}, {}))
    return folder


def test_the_command_exports_a_release_or_the_live_one(root: Path, tmp_path: Path) -> None:
    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["export-candidates", "--root", str(root), *arguments])
        return result.exit_code, result.output

    one, two = tmp_path / "one", tmp_path / "two"
    code, output = invoke("--output", str(one))
    assert (code, "nothing is published in" in output) == (1, True)
    code, output = invoke("--output", str(one), "--release", "v7.4")
    assert (code, "v7.4" in output) == (1, True)
    code, output = invoke("--output", str(one), "--release", "7.3", "--format", "json")
    assert code == 0
    assert output == (
        f"exported 4 candidates of release v7.3, 2 floats each, to {one}/batch_root (1 json files): copy that folder "
        "to a bucket and give it as contentsDeltaUri; name the index after v7, for Vector Search keeps no version\n"
    )
    Registry(LocalStorage(str(root))).publish(ReleaseId(V7, 3), by="test", why="test")
    code, output = invoke("--output", str(two))
    assert (code, output.startswith(f"exported 4 candidates of release v7.3, 2 floats each, to {two}")) == (0, True)
    assert read(two / "batch_root" / "part-00000-of-00001.avro") == [as_read(row, "avro") for row in ROWS]
    assert read(one / "batch_root" / "part-00000-of-00001.json") == [as_read(row, "json") for row in ROWS]
    code, output = invoke("--output", str(two))
    assert (code, "is to be written, but it holds something" in output) == (1, True)


def test_the_command_refuses_embeddings_that_are_not_those_of_the_release(root: Path, tmp_path: Path) -> None:
    folder = root / "runs" / "r" / "candidate_embeddings"
    write_tag(folder, Kind.CANDIDATE_EMBEDDINGS, run="later", schema="s", rows=4, model_version=V7, snapshot=3)
    arguments = ["--root", str(root), "--release", "v7.3", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["export-candidates", *arguments])
    assert result.exit_code == 1
    assert f"{folder}/tag.json is corrupt: found " in result.output
    assert not (tmp_path / "out").exists()
