"""Training rows as the query of dataflow/queries makes them, drawn at random: the input of benchmarks/examples.py.

The schema is that of configs/mpd.toml. Tracks, artists and words follow Zipf's law; most histories are full.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.encoded import Learned
from lockstep.config import load_config
from lockstep.features import features_type
from lockstep.schema import Schema

TRACKS, ARTISTS, WORDS = 200_000, 40_000, 10_000
HISTORY = 20
_ROW_GROUP = 122_880
"""DuckDB's."""


@dataclass(frozen=True)
class Catalogue:
    """What can be drawn, most popular first."""

    schema: Schema
    tracks: pa.Array
    artists: pa.Array
    names: pa.Array
    artist_of: NDArray[np.int64]
    learned: Learned

    @classmethod
    def draw(cls, config: Path) -> Catalogue:
        """The catalogue of a seed that is always the same."""
        generator = np.random.default_rng(1)
        words = np.array([f"w{number:05d}" if number % 2 else f"wörd{number}" for number in range(WORDS)])
        lengths = generator.integers(1, 6, TRACKS)
        names = [" ".join(words[_zipf(generator, WORDS, length)]).title() for length in lengths]
        pairs = sorted({" ".join(name.lower().split()[:2]) for name in names[:WORDS] if " " in name})
        tracks = [f"spotify:track:{number:022x}" for number in range(TRACKS)]
        artists = [f"Artist of the number {number}" for number in range(ARTISTS)]
        tokens = [*words.tolist(), *pairs]
        # A tenth of the tracks and artists is too rare to be in a vocabulary.
        learned = Learned(
            {
                "candidate_track": tracks[: TRACKS * 9 // 10],
                "candidate_artist": artists[: ARTISTS * 9 // 10],
                "candidate_track_name": tokens,
                "query_title": tokens,
            },
            {},
        )
        artist_of = _zipf(generator, ARTISTS, TRACKS)
        schema = load_config(config).schema_
        return cls(schema, pa.array(tracks), pa.array(artists), pa.array(names), artist_of, learned)

    def write_known(self, file: Path) -> None:
        """Write the catalogue as queries/known_candidates.sql makes it."""
        names = {"track": self.tracks, "artist": self.artists.take(pa.array(self.artist_of)), "track_name": self.names}
        past = {"history": "track", "history_artists": "artist", "history_names": "track_name"}
        columns = {"candidate_index": pa.array(range(TRACKS))} | {f"c_{name}": values for name, values in names.items()}
        pq.write_table(pa.table(columns | {f"past_{name}": names[of] for name, of in past.items()}), file)

    def write_shard(self, folder: Path, shard: int, shards: int, rows: int, *, raw: bool) -> None:
        """Write the rows of one shard.

        Args:
            raw: with every feature spelt out, as pipelines take them whose elements are rows.
        """
        generator = np.random.default_rng([2, shard])
        folder.mkdir(parents=True)
        writer: pq.ParquetWriter | None = None
        for first in range(0, rows, _ROW_GROUP):
            table = self._rows(generator, shard, shards, min(_ROW_GROUP, rows - first), raw=raw)
            writer = writer or pq.ParquetWriter(folder / "data_0.parquet", table.schema, compression="snappy")
            writer.write_table(table)
        if writer is not None:
            writer.close()

    def _rows(self, generator: np.random.Generator, shard: int, shards: int, rows: int, *, raw: bool) -> pa.Table:
        lengths = np.minimum(generator.integers(1, 60, rows), HISTORY)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        past = _zipf(generator, TRACKS, int(lengths.sum()))
        label = _zipf(generator, TRACKS, rows)
        title = self.names.take(pa.array(_zipf(generator, TRACKS, rows)))
        features: dict[str, pa.Array] = (
            self._spelt_out(offsets, past, label, title)
            if raw
            else {"q_title": title, "past": pa.ListArray.from_arrays(offsets, pa.array(past))}
        )
        return pa.table(
            features
            | {
                "candidate_index": label,
                "age_days": generator.exponential(100, rows),
                "weight": np.ones(rows),
                "order_hash": generator.integers(0, 2**60 // shards, rows) * shards + shard,
            }
        )

    def _spelt_out(
        self, offsets: pa.Array, past: NDArray[np.int64], label: NDArray[np.int64], title: pa.Array
    ) -> dict[str, pa.Array]:
        def history(values: pa.Array, chosen: NDArray[np.int64]) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, values.take(pa.array(chosen)))

        query = {
            "history": history(self.tracks, past),
            "history_artists": history(self.artists, self.artist_of[past]),
            "history_names": history(self.names, past),
            "title": title,
        }
        candidate = {
            "track": self.tracks.take(pa.array(label)),
            "artist": self.artists.take(pa.array(self.artist_of[label])),
            "track_name": self.names.take(pa.array(label)),
        }
        structs = {}
        for tower, values in {"query": query, "candidate": candidate}.items():
            kind = features_type(self.schema, tower)
            structs[tower] = pa.StructArray.from_arrays([values[f.name].cast(f.type) for f in kind], fields=list(kind))
        return structs


def _zipf(generator: np.random.Generator, below: int, count: int) -> NDArray[np.int64]:
    """Numbers below a bound, about proportional to 1 / (number + 1): the inverse of the logarithm."""
    return np.minimum(np.exp(generator.random(count) * np.log(below + 1)) - 1, below - 1).astype(np.int64)
