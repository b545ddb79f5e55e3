"""The Beam step: from folders of training rows to training records."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from apache_beam.options import pipeline_options as beam
from apache_beam.portability.api import beam_runner_api_pb2

from dataflow.beam_options import pipeline_options
from dataflow.encoded import Learned, Statistics, encoded_features
from dataflow.encoding import load_modules
from dataflow.examples import ExamplesPlan, Folders, WrittenExamples, examples_pipeline, write_examples
from dataflow.known import encode_counted, encode_known
from dataflow.preprocessing import save_preprocessing
from dataflow.sample import with_features
from dataflow.worker_files import matches, seen_by_workers, written
from lockstep.errors import ConfigError, DataError
from lockstep.features import arrow_type, features_type
from lockstep.schema import Schema
from tests.fakes import memory_files

SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 3, "shares": "track"},
            "names": {"type": "text_sequence", "columns": ["history.name"], "max_length": 2, "max_tokens": 2},
            "hashed": {"type": "categorical", "encoding": "hash", "size": 1},
            "moment": {"type": "timestamp"},
            "vector": {"type": "vector", "size": 2},
            "prices": {"type": "numeric_sequence", "max_length": 2},
            "paid": {"type": "numeric_sequence", "columns": ["history.price"], "max_length": 2},
        },
        "candidate": {
            "track": {"type": "id"},
            "title": {"type": "text", "ngrams": 1, "max_tokens": 2},
            "price": {"type": "numeric"},
            "trend": {"type": "numeric", "columns": ["events.7d"]},
        },
    }
)
LEARNED = Learned(
    {"candidate_track": ["a", "b"], "query_names": ["red"], "candidate_title": ["red", "cup"]},
    {("candidate", "price"): Statistics(10.0, 2.0)},
)
CANDIDATES = 300
BUCKET = Folders("gs://bucket/rows", "gs://bucket/known", "gs://bucket/preprocessing", "gs://bucket/train")
MIDNIGHT = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = pa.schema(
    [
        *((f"q_{name}", arrow_type(SCHEMA.query[name])) for name in ("hashed", "moment", "vector", "prices")),
        ("c_trend", pa.float64()),
        ("past", pa.list_(pa.int64())),
        ("candidate_index", pa.int64()),
        *((name, pa.float64()) for name in ("age_days", "weight")),
        ("order_hash", pa.int64()),
    ]
)
KNOWN = pa.schema(
    [
        ("candidate_index", pa.int64()),
        ("c_track", pa.string()),
        ("c_title", pa.string()),
        ("c_price", pa.float64()),
        ("past_history", pa.string()),
        ("past_names", pa.string()),
        ("past_paid", pa.float64()),
    ]
)
NOBODY: dict[str, Any] = dict.fromkeys(KNOWN.names) | {"past_history": "", "past_names": "", "past_paid": math.nan}
CATALOGUE = [
    {"c_track": "b", "c_title": "cup RED", "c_price": 13.0, "past_history": "b"},
    {"c_track": "a", "c_title": "red", "c_price": 1.0, "past_history": "a"},
    {"c_track": "?", "c_title": "!!", "past_history": "?", "past_names": "red", "past_paid": 1.0},
    {
        "c_track": "?",
        "c_price": math.nan,
        "past_history": "b",
        "past_names": "Red cup!",
        "past_paid": 3.0,
    },
    {"c_track": "b", "c_title": "tall red cup", "past_history": "?", "past_names": "blue"},
]
"""Candidates 0 to 4; all others, 5 to 299, have nothing."""


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preprocessing")
    save_preprocessing(made, SCHEMA, LEARNED)
    return made


def numbered(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row | {"candidate_index": index} for index, row in enumerate(rows)], KNOWN)


@pytest.fixture(scope="module")
def known(preprocessing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    rows = [NOBODY | row for row in CATALOGUE] + [NOBODY] * (CANDIDATES - len(CATALOGUE))
    pq.write_table(numbered(rows), folder / "known.parquet")
    encode_known(folder / "known.parquet", folder / "encoded", SCHEMA, load_modules(preprocessing), CANDIDATES)
    return folder / "encoded"


@pytest.fixture
def train(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    return tmp_path / "train"


def row(order_hash: int, candidate: int | None = None, **given: Any) -> dict[str, Any]:
    """A training row; what is not named is missing, and its candidate is that of its hash."""
    return {
        **dict.fromkeys(ROWS.names),
        "candidate_index": order_hash % CANDIDATES if candidate is None else candidate,
        "age_days": float(order_hash),
        "weight": 2.0,
        "order_hash": order_hash,
        **given,
    }


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], shards: int, files: int = 1) -> Path:
    """Rows as a warehouse exports them: the shard is the hash's remainder."""
    for shard in range(shards):
        of_shard = [one for one in rows if one["order_hash"] % shards == shard]
        for file in range(files):
            if of_shard[file::files]:
                path = folder / f"shard={shard}" / f"data_{file}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(of_shard[file::files], ROWS), path)
    return folder


@dataclass(frozen=True)
class Step:
    """What every run of the step shares."""

    preprocessing: Path
    known: Path

    def write(self, rows: Path, train: Path, number: int, shards: int, **options: Any) -> WrittenExamples:
        plan = plan_of(number, shards)
        return write_examples(
            rows, self.known, self.preprocessing, train, plan, runner="DirectRunner", options=options, run_id="r1"
        )


@pytest.fixture(scope="module")
def step(preprocessing: Path, known: Path) -> Step:
    return Step(preprocessing, known)


def plan_of(rows: int, shards: int) -> ExamplesPlan:
    return ExamplesPlan(SCHEMA.to_json(), encoded_features(SCHEMA, LEARNED.vocabularies), CANDIDATES, shards, rows)


def records(file: Path) -> list[dict[str, list[Any]]]:
    read = []
    for one in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator():
        feature = tf.train.Example.FromString(one).features.feature
        read.append({name: list(getattr(of, of.WhichOneof("kind")).value) for name, of in feature.items()})
    return read


def test_a_record_holds_exactly_its_row(step: Step, train: Path, tmp_path: Path) -> None:
    query = {"q_hashed": "x", "q_moment": MIDNIGHT, "q_vector": [0.5, -1.0], "q_prices": [1.0, 3.0]}
    rows = [row(7, 0, past=[0, 1, 2, 3], c_trend=4.0, **query), row(9)]
    result = step.write(write_rows(tmp_path / "rows", rows, 1), train, 2, 1)
    assert result.records == 2
    full, empty = records(train / "part-00000-of-00001.tfrecord.gz")
    day_of_week, day_of_year = [0.0, 1.0], [0.0, 1.0]  # 2024-01-01 is a Monday
    assert full == {
        "past": [2, 3, 4],  # the last three, by their indices + 1
        "query/hashed": [1],
        "query/moment": [0.0, 1.0, *day_of_week, *day_of_year],
        "query/vector": [0.5, -1.0],
        "query/prices": [2.0, 3.0, 0.0],
        "candidate/trend": [4.0, 0.0],
        "candidate_index": [0],
        "age_days": [7.0],
        "weight": [2.0],
    }
    assert empty == {
        "past": [0, 0, 0],
        "query/hashed": [0],
        "query/moment": [0.0] * 6,
        "query/vector": [0.0, 0.0],
        "query/prices": [0.0, 0.0, 1.0],
        "candidate/trend": [0.0, 1.0],
        "candidate_index": [9],
        "age_days": [9.0],
        "weight": [2.0],
    }


def test_a_candidate_is_encoded_once_as_itself_and_as_an_element_of_a_history(known: Path) -> None:
    encoded = {file.stem: np.load(file)[:6].tolist() for file in known.glob("*.npy")}
    assert str(encoded.pop("query_paid")) == "[[nan], [nan], [1.0], [3.0], [nan], [nan]]"
    assert encoded == {
        "candidate_track": [[3], [2], [1], [1], [3], [0]],
        "candidate_title": [[3, 2], [2, 0], [0, 0], [0, 0], [1, 2], [0, 0]],
        "candidate_price": [[1.5, 0.0], [-4.5, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]],
        "query_history": [[3], [2], [1], [3], [1], [0]],
        "query_names": [[0, 0], [0, 0], [2, 0], [2, 1], [1, 0], [0, 0]],
    }


def test_counts_of_candidates_are_encoded_as_of_the_cut(preprocessing: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "encoded").mkdir()
    for part, trends in enumerate([[1.0, 2.0], [None]]):
        rows = [{"id": "x", "features": {"trend": trend}} for trend in trends]
        table = pa.Table.from_pylist(
            rows, pa.schema([("id", pa.string()), ("features", features_type(SCHEMA, "candidate"))])
        )
        pq.write_table(table, tmp_path / "source" / f"part-{part:05d}.parquet")
    encode_counted(tmp_path / "source", tmp_path / "encoded", SCHEMA, load_modules(preprocessing), 3)
    assert np.load(tmp_path / "encoded" / "candidate_trend.npy").tolist() == [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]


def test_what_a_worker_left_when_it_died_is_removed(step: Step, train: Path, tmp_path: Path) -> None:
    (train / ".part-00000-of-00001.tfrecord.gz.5f1c").write_bytes(b"half")
    step.write(write_rows(tmp_path / "rows", [row(1)], 1), train, 1, 1)
    assert [file.name for file in train.iterdir()] == ["part-00000-of-00001.tfrecord.gz"]


def test_a_shard_is_a_file_in_the_order_of_its_hashes_even_without_rows(
    step: Step, train: Path, tmp_path: Path
) -> None:
    hashes = [252, 3, 12, 7, 99, 0, 5, 201, 4]  # none of them 2 modulo 4
    folder = write_rows(tmp_path / "rows", [row(one) for one in hashes], 4, files=2)
    assert not (folder / "shard=2").exists()
    step.write(folder, train, len(hashes), 4)
    found = {file.name: [r["candidate_index"][0] for r in records(file)] for file in sorted(train.iterdir())}
    assert found == {
        "part-00000-of-00004.tfrecord.gz": [0, 4, 12, 252],
        "part-00001-of-00004.tfrecord.gz": [5, 201],
        "part-00002-of-00004.tfrecord.gz": [],
        "part-00003-of-00004.tfrecord.gz": [3, 7, 99],
    }


def test_the_bytes_depend_on_the_rows_alone(step: Step, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    rows = [row(int(one), past=[1] * (one % 4)) for one in generator.integers(0, 200, 120)]
    # Equal hashes, different records: their order must not be that of the files either.
    assert len({one["order_hash"] for one in rows}) < len(rows)
    rows += [row(8, q_prices=[1.0]), row(8, q_prices=[2.0])]
    digests = []
    for number, (files, workers) in enumerate([(1, 1), (1, 1), (3, 2), (2, 3)]):
        shuffled = [rows[i] for i in generator.permutation(len(rows))]
        folder = write_rows(tmp_path / f"rows{number}", shuffled, 3, files)
        train = tmp_path / f"train{number}"
        train.mkdir()
        result = step.write(folder, train, len(rows), 3, direct_num_workers=workers)
        digests.append(({file.name: file.read_bytes() for file in train.iterdir()}, result))
    first, told = digests[0]
    assert len(first) == 3
    for found, result in digests[1:]:
        assert found == first
        assert result.counters == told.counters
        assert result.sample.equals(told.sample)


def test_small_row_groups_and_batches_change_nothing(
    step: Step, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(one, past=[one % 5, 2], q_prices=[float(one)]) for one in range(40)]
    folder = write_rows(tmp_path / "rows", rows, 1, files=3)
    step.write(folder, train, 40, 1)
    whole = (train / "part-00000-of-00001.tfrecord.gz").read_bytes()
    monkeypatch.setattr("dataflow.examples._BATCH_ROWS", 7)
    monkeypatch.setattr("dataflow.encoding.REMEMBERED", 3)
    assert step.write(folder, train, 40, 1).counters["rows_read"] == 40
    assert (train / "part-00000-of-00001.tfrecord.gz").read_bytes() == whole


def test_missing_and_unknown_values_are_counted_exactly(step: Step, train: Path, tmp_path: Path) -> None:
    rows = [
        row(0, 1, past=[1, 2], q_hashed="x", q_vector=[0.5, 0.0], c_trend=0.0),
        row(1, 2, past=[4, 2], q_prices=[1.0]),
        row(2, 3, past=[], q_moment=MIDNIGHT, q_prices=[None]),
        row(3, 4, past=[0], q_vector=[]),
    ]
    result = step.write(write_rows(tmp_path / "rows", rows, 2), train, 4, 2)
    assert result.counters == {
        "rows_read": 4,
        "records_written": 4,
        "query/history/missing": 1,
        "query/history/unknown": 2,
        "query/names/missing": 2,  # nothing in the history, or nothing with a name
        "query/names/unknown": 1,
        "query/hashed/missing": 3,  # and no unknown: its first bin is no sign of anything
        "query/moment/missing": 3,
        "query/vector/missing": 3,
        "query/prices/missing": 3,
        "query/paid/missing": 2,
        "candidate/track/missing": 0,
        "candidate/track/unknown": 2,
        "candidate/title/missing": 2,
        "candidate/title/unknown": 1,
        "candidate/price/missing": 3,
        "candidate/trend/missing": 3,
    }


def test_the_sample_is_the_rows_of_the_smallest_hashes(
    step: Step, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflow.sample.SAMPLE_ROWS", 5)
    monkeypatch.setattr("dataflow.sample._HASHES", 300)  # of 100 rows, those below 82 may be chosen
    rows = [row(one, past=[one]) for one in range(0, 300, 3)]
    result = step.write(write_rows(tmp_path / "rows", rows[::-1], 4, files=2), train, 100, 4)
    assert result.sample.schema.equals(ROWS)
    assert result.sample["order_hash"].to_pylist() == [0, 3, 6, 9, 12]
    assert result.sample["past"].to_pylist() == [[0], [3], [6], [9], [12]]


def test_candidates_in_another_order_are_refused(preprocessing: Path, tmp_path: Path) -> None:
    table = numbered([NOBODY | row for row in CATALOGUE])
    pq.write_table(table.take([0, 1, 3, 2, 4]), tmp_path / "known.parquet")
    with pytest.raises(DataError, match="the candidate of index 3 came in place 2: the warehouse did not keep"):
        encode_known(tmp_path / "known.parquet", tmp_path / "out", SCHEMA, load_modules(preprocessing), 5)


def test_sampled_rows_get_back_the_features_that_they_stand_for(tmp_path: Path) -> None:
    pq.write_table(numbered([NOBODY | row for row in CATALOGUE]), tmp_path / "known", row_group_size=2)
    rows = [
        row(0, 4, past=[3, 0], q_hashed="x", q_moment=MIDNIGHT, c_trend=2.0),
        row(1, 1, past=None, q_prices=[1.0]),
    ]
    found = with_features(pa.Table.from_pylist(rows, ROWS), tmp_path / "known", SCHEMA)
    assert found["query"].type == features_type(SCHEMA, "query")
    assert found["candidate"].type == features_type(SCHEMA, "candidate")
    first, second = found["query"].to_pylist()
    assert first["history"] == ["b", "b"]
    assert first["names"] == ["Red cup!", ""]
    assert first["paid"][0] == 3.0
    assert (first["hashed"], first["moment"], second["prices"]) == ("x", MIDNIGHT, [1.0])
    assert (second["history"], second["names"]) == ([], [])
    assert found["candidate"].to_pylist() == [
        {"track": "b", "title": "tall red cup", "price": None, "trend": 2.0},
        {"track": "a", "title": "red", "price": 1.0, "trend": None},
    ]
    assert found["order_hash"].to_pylist() == [0, 1]


def test_few_rows_are_all_in_the_sample(step: Step, train: Path, tmp_path: Path) -> None:
    # The greatest hash there is: the bound of the sample must not leave it out.
    rows = [row(one) for one in (5, 2**60 - 1)]
    result = step.write(write_rows(tmp_path / "rows", rows, 2), train, 2, 2)
    assert result.sample["age_days"].to_pylist() == [5.0, float(2**60 - 1)]


def test_rows_that_are_not_all_there_are_refused(step: Step, train: Path, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows", [row(one) for one in range(10)], 2)
    with pytest.raises(DataError, match="read 10 rows and wrote 10 records of 11 training rows: rerun"):
        step.write(folder, train, 11, 2)
    with pytest.raises(DataError, match="read 0 rows and wrote 0 records of 10"):
        step.write(tmp_path / "elsewhere", train, 10, 2)


def test_a_crash_leaves_no_file_of_that_shard(step: Step, train: Path, tmp_path: Path) -> None:
    bad = row(201) | {"candidate_index": CANDIDATES}
    folder = write_rows(tmp_path / "rows", [row(0), row(1), bad], 2)
    with pytest.raises(Exception, match="index 300 is out of bounds"):
        step.write(folder, train, 3, 2, direct_num_workers=1)
    assert "part-00001-of-00002.tfrecord.gz" not in {file.name for file in train.iterdir()}


@pytest.mark.parametrize("copying", [False, True], ids=["while it is written", "while it is copied"])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copying: bool) -> None:
    seen: list[str] = []

    def half_copied(source: IO[bytes], target: IO[bytes]) -> None:
        target.write(source.read(2))
        target.flush()
        seen.extend(path.name for path in tmp_path.iterdir())
        raise RuntimeError("crash")

    def write_part(crash: bool) -> None:
        with written(f"{tmp_path}/part") as file:
            file.write_bytes(b"whole")
            if crash:
                raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", half_copied)
        with pytest.raises(RuntimeError, match="crash"):
            write_part(crash=not copying)
    assert list(tmp_path.iterdir()) == []
    assert [name.startswith(".part.") for name in seen] == [True] * copying
    write_part(crash=False)
    assert (tmp_path / "part").read_bytes() == b"whole"
    assert matches(str(tmp_path), "*") == [f"{tmp_path}/part"]


def test_everything_is_reached_through_beams_file_systems(
    step: Step, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(one, past=[2]) for one in range(20)]
    local = write_rows(tmp_path / "rows", rows, 3, files=2)
    step.write(local, train, 20, 3)
    monkeypatch.setattr(memory_files, "FILES", files := {})
    for folder, name in ((local, "rows"), (step.preprocessing, "preprocessing"), (step.known, "known")):
        for file in folder.rglob("*"):
            if file.is_file() and "sample" not in file.parts:
                files[f"memory://bucket/{name}/{file.relative_to(folder)}"] = file.read_bytes()
    given = set(files)
    folders = Folders(*(f"memory://bucket/{name}" for name in ("rows", "known", "preprocessing", "train")))
    options = pipeline_options("DirectRunner", {}, "r1")
    examples_pipeline(options, plan_of(20, 3), folders).run().wait_until_finish()
    expected = {f"memory://bucket/train/{file.name}": file.read_bytes() for file in train.iterdir()}
    expected |= {f"memory://bucket/rows/sample/{file.name}": file.read_bytes() for file in (local / "sample").iterdir()}
    assert len(expected) == 6
    assert {name: data for name, data in files.items() if name not in given} == expected


def test_beam_options_reach_beam() -> None:
    given = {
        "region": "europe-west4",
        "setup_file": "./setup.py",
        "max_num_workers": 20,
        "worker_machine_type": "n2-standard-4",
        "experiments": ("use_runner_v2", "shuffle_mode=service"),
        "use_public_ips": False,
        "labels": "team=search",
    }
    options = pipeline_options("DataflowRunner", given, "Run_20261121.Ab")
    cloud, workers = options.view_as(beam.GoogleCloudOptions), options.view_as(beam.WorkerOptions)
    assert options.view_as(beam.StandardOptions).runner == "DataflowRunner"
    assert (cloud.region, cloud.job_name) == ("europe-west4", "lockstep-examples-run-20261121-ab")
    assert cloud.labels == ["team=search", "lockstep-run=run-20261121-ab"]
    assert (workers.max_num_workers, workers.machine_type, workers.use_public_ips) == (20, "n2-standard-4", False)
    assert options.view_as(beam.SetupOptions).setup_file == "./setup.py"
    assert options.view_as(beam.SetupOptions).save_main_session is False
    assert options.get_all_options()["experiments"] == ["use_runner_v2", "shuffle_mode=service"]


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"max_num_worker": 3}, r"max_num_worker: Beam has no such option; did you mean 'max_num_workers'"),
        ({"runner": "DataflowRunner"}, r"runner: leave it out, Lockstep sets it itself; the runner is \[data\] runner"),
        ({"template_location": "gs://b/t"}, "template_location: leave it out"),
        ({"max_num_workers": "many"}, "argument --max_num_workers: invalid int value: 'many'"),
        ({"region": True}, "argument --region: expected one argument"),
    ],
)
def test_options_that_beam_would_ignore_are_refused(
    option: dict[str, Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=problem):
        pipeline_options("DataflowRunner", option, "r1")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "runner", "address"),
    [
        ("/gcs/bucket/root/x", "DataflowRunner", "gs://bucket/root/x"),
        ("/gcs/bucket/root/x", "FlinkRunner", "gs://bucket/root/x"),
        ("/gcs/bucket/root/x", "DirectRunner", "/gcs/bucket/root/x"),
        ("gs://bucket/root/x", "DataflowRunner", "gs://bucket/root/x"),
        ("/mnt/shared/x", "FlinkRunner", "/mnt/shared/x"),
    ],
)
def test_workers_elsewhere_take_the_buckets_own_address(path: str, runner: str, address: str) -> None:
    assert seen_by_workers(Path(path), runner) == address


def test_dataflow_workers_cannot_see_a_local_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"DataflowRunner cannot see {tmp_path}: run with a gs:// root"):
        write_examples(*[tmp_path] * 4, plan_of(1, 1), runner="DataflowRunner", options={}, run_id="r1")


def test_a_runner_that_is_not_there_is_a_sentence(step: Step, train: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", [row(1)], 1)
    with pytest.raises(DataError, match=r"the PortableRunner did not run the examples job: .*job_endpoint"):
        write_examples(
            rows, step.known, step.preprocessing, train, plan_of(1, 1), runner="PortableRunner", options={}, run_id="r1"
        )


def test_what_dataflow_lacks_is_said_before_anything_runs() -> None:
    pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason="needs the extra gcp")
    given = {"project": "p", "region": "europe-west4", "temp_location": "gs://bucket/tmp"}
    options = pipeline_options("DataflowRunner", given, "r1")
    options.view_as(beam.TestOptions).dry_run = True  # otherwise Beam asks Cloud Storage for the bucket first
    with pytest.raises(ConfigError, match=r"\[data.beam\]: Invalid Project ID \(p\)"):
        examples_pipeline(options, plan_of(1, 1), BUCKET)


def test_the_job_is_one_that_dataflow_takes() -> None:
    """Everything up to sending it: the graph, its pickled functions and its options, as the service would get them."""
    pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason="needs the extra gcp")
    given = {
        "project": "a-project",
        "region": "europe-west4",
        "temp_location": "gs://bucket/tmp",
        "max_num_workers": 20,
        "sdk_container_image": "europe-docker.pkg.dev/p/r/lockstep:1",
        "sdk_location": "container",
    }
    options = pipeline_options("DataflowRunner", given, "r1")
    options.view_as(beam.TestOptions).dry_run = True
    job = examples_pipeline(options, plan_of(10, 2), BUCKET).run().job
    assert job.options.view_as(beam.GoogleCloudOptions).job_name == "lockstep-examples-r1"
    parts = job.proto_pipeline.components
    images = [environment.payload for environment in parts.environments.values()]
    assert any(b"europe-docker.pkg.dev/p/r/lockstep:1" in payload for payload in images)
    steps = {transform.unique_name: transform.spec.payload for transform in parts.transforms.values()}
    assert {"Shards", "Spread", "Write"} <= set(steps)
    # A worker that has nothing but the installed packages can read the function.
    pickled = beam_runner_api_pb2.ParDoPayload.FromString(steps["Write"]).do_fn.payload.decode()
    code = "import sys; from apache_beam.internal import pickler; print(pickler.loads(sys.argv[1])[0])"
    unpickled = subprocess.run([sys.executable, "-c", code, pickled], capture_output=True, text=True, check=True)
    assert "dataflow.examples._WriteShard" in unpickled.stdout
