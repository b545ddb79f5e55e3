"""Training at scale: 10 M generated examples over a catalogue of 1 M candidates, with the memory that it takes.

    python benchmarks/training_scale.py --examples 10000000 --candidates 1000000 --output scale.json

Records are drawn from a seed and written as the data step writes them: 20 past candidates, candidates by Zipf's law,
titles of 8 token ids. Then the product's own training loop runs one epoch over them, with mixed negatives, as it would
by default with such a catalogue; the process's memory is read every second, and told at each tenth of the epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from dataflow.encoded import encoded_features, features_json
from dataflow.records import RecordFeature, RecordLayout
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.schema import Schema
from lockstep.tags import Artifact, Kind, open_artifact, write_tag
from trainer.encoding import read_encoded_features
from trainer.input_pipeline import open_training_records
from trainer.loop import TrainingLoop
from trainer.towers import build_towers
from trainer.two_tower import TwoTowerModel

log = logging.getLogger("scale")
LENGTH, TOKENS, WORDS, SHARD = 20, 8, 50_000, 250_000
HOURS = 365 * 24
SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {
                "type": "id_sequence",
                "columns": ["history.candidate_id"],
                "max_length": LENGTH,
                "shares": "track",
            },
            "titles": {
                "type": "text_sequence",
                "columns": ["history.title"],
                "max_length": LENGTH,
                "max_tokens": TOKENS,
                "shares": "title",
            },
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"]},
            "title": {"type": "text", "max_tokens": TOKENS},
        },
    }
)


def write_examples(folder: Path, examples: int, candidates: int, seed: int) -> Artifact:
    """Write an `examples` artifact of random records."""
    rng = np.random.default_rng(seed)
    (folder / "train").mkdir(parents=True)
    (folder / "candidates").mkdir()
    tracks = np.arange(2, candidates + 2, dtype=np.int32)[:, np.newaxis]
    titles = rng.integers(2, WORDS + 2, (candidates, TOKENS), dtype=np.int32)
    arrays = {"candidate_track": tracks, "query_history": tracks, "candidate_title": titles, "query_titles": titles}
    for name, values in arrays.items():
        np.save(folder / "candidates" / f"{name}.npy", values)
    vocabularies = {"candidate_track": range(candidates), "candidate_title": range(WORDS)}
    (folder / "features.json").write_bytes(features_json(encoded_features(SCHEMA, vocabularies)))  # type: ignore[arg-type]
    (folder / "schema.json").write_bytes(SCHEMA.to_json())
    numbers = [RecordFeature(name, 1, None) for name in ("age_days", "weight")]
    places = [RecordFeature("candidate_index", 1, candidates), RecordFeature("past", LENGTH, candidates + 1)]
    layout = RecordLayout([*places, *numbers])
    shards, labels = -(-examples // SHARD), []
    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
    for shard in range(shards):
        rows = min(SHARD, examples - shard * SHARD)
        drawn = np.minimum(rng.zipf(1.3, (rows, LENGTH + 1)) - 1, candidates - 1)
        values = {"candidate_index": drawn[:, :1], "past": drawn[:, 1:] + 1}
        values |= {"age_days": rng.random((rows, 1)) * 365, "weight": np.ones((rows, 1))}
        labels.append(drawn[:, 0] * HOURS + (values["age_days"][:, 0] * 24).astype(np.int64))
        records = layout.serialize(values)
        path = folder / "train" / f"part-{shard:05d}-of-{shards:05d}.tfrecord.gz"
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for record in records:
                writer.write(record.tobytes())
        log.info("wrote %d of %d shards", shard + 1, shards)
    of_label, counts = np.unique(np.concatenate(labels), return_counts=True)
    columns = {"candidate": of_label // HOURS, "age_hours": of_label % HOURS, "examples": counts}
    pq.write_table(pa.table(columns), folder / "labels.parquet")
    # All of the catalogue that training asks for.
    pq.write_table(pa.table({"known_before_validation": np.ones(candidates, bool)}), folder / "catalogue.parquet")
    write_tag(folder, Kind.EXAMPLES, run="scale", schema=SCHEMA.digest, rows=examples)
    return open_artifact(folder, Kind.EXAMPLES)


class Memory(threading.Thread):
    """Reads the process's resident memory every second, with the step that training is at."""

    def __init__(self, step: tf.Variable) -> None:
        super().__init__(daemon=True)
        self.readings: list[tuple[int, float]] = []
        self._step, self._over = step, threading.Event()

    def run(self) -> None:
        while not self._over.wait(1.0):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.readings.append((int(self._step), pages * os.sysconf("SC_PAGE_SIZE") / 1e9))

    def stop(self) -> None:
        self._over.set()
        self.join()


def train(examples: Artifact, work: Path, batch_size: int) -> dict[str, Any]:
    """One epoch of the product's loop."""
    features = read_encoded_features(examples / "features.json")
    section = TrainSection(batch_size=batch_size, epochs=1, checkpoint_every_steps=100_000)
    model = ModelSection(embedding_dim=64, feature_dim=64)
    records = open_training_records(examples, features, section)
    towers = build_towers(features, model, 1)
    two_tower = TwoTowerModel(*towers, records.candidates, records.probability, model, section)
    loop = TrainingLoop(two_tower, records, section, work)
    memory = Memory(loop.step)
    memory.start()
    started = time.perf_counter()
    loop.run()
    seconds = time.perf_counter() - started
    memory.stop()
    steps = records.steps_per_epoch
    tenths = {
        f"{10 * tenth} %": peak(memory.readings, steps * (tenth - 1) / 10, steps * tenth / 10) for tenth in range(1, 11)
    }
    return {"seconds": seconds, "examples_per_second": steps * batch_size / seconds, "peak_gb_of_each_tenth": tenths}


def peak(readings: list[tuple[int, float]], first: float, last: float) -> float | None:
    return max((gigabytes for step, gigabytes in readings if first <= step < last), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000_000)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "dim": 64}
    report |= {name: getattr(arguments, name) for name in ("examples", "candidates", "batch_size")}
    with tempfile.TemporaryDirectory() as folder:
        examples = write_examples(Path(folder) / "examples", arguments.examples, arguments.candidates, seed=1)
        report |= train(examples, Path(folder) / "work", arguments.batch_size)
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
