"""The generator: the same from the same seed, shaped as told, and learnable only through its latent structure."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflow.dead_letters import DeadLetters
from dataflow.sources import read_source, synthetic
from lockstep.config import DataSection, SyntheticSource, load_config
from tests.unit.sources_harness import CONFIGS, Read, read


def generate(directory: Path, **sizes: int) -> Read:
    return read(DataSection(synthetic=SyntheticSource(**sizes)), directory)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Read:
    return generate(tmp_path_factory.mktemp("synthetic"), playlists=3_000, tracks=1_500, artists=150, mean_length=20)


def test_sizes_are_as_told_and_no_row_is_bad(made: Read) -> None:
    assert (len(made.queries), len(made.candidates)) == (3_000, 1_500)
    assert len(made.events) / 3_000 == pytest.approx(20, rel=0.1)
    assert len({row["artist_name"] for row in made.candidates}) == 150
    assert len({row["genre"] for row in made.candidates}) == 12
    assert made.dead == []
    assert made.counts.rows_in == made.counts.rows_written == 4_500 + len(made.events)


def test_equal_seeds_give_equal_tables_and_others_do_not(tmp_path: Path) -> None:
    one, same, other = (
        generate(tmp_path / name, playlists=50, tracks=40, artists=8, seed=seed)
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert (one.events, one.candidates, one.queries) == (same.events, same.candidates, same.queries)
    assert one.events != other.events


def test_batches_leave_no_trace_in_ids_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_BATCH_PLAYLISTS", 7)
    made = generate(tmp_path, playlists=50, tracks=40, artists=8)
    assert [row["query_id"] for row in made.queries] == [f"playlist-{n}" for n in range(50)]
    assert {event["query_id"] for event in made.events} == {row["query_id"] for row in made.queries}
    starts = [event["event_time"] for event in made.events if event["position"] == 0]
    assert len(starts) == 50
    assert starts == sorted(starts)


def test_a_playlist_holds_a_track_once_in_consecutive_places_moments_after_it_was_made(made: Read) -> None:
    by_playlist = defaultdict(list)
    for event in made.events:
        by_playlist[event["query_id"]].append(event)
    for events in by_playlist.values():
        assert [event["position"] for event in events] == list(range(len(events)))
        assert len({event["candidate_id"] for event in events}) == len(events)
        assert events[-1]["event_time"] - events[0]["event_time"] == timedelta(seconds=20 * (len(events) - 1))
    moments = [event["event_time"] for event in made.events]
    assert datetime(2024, 1, 1, tzinfo=UTC) <= min(moments) < datetime(2024, 1, 10, tzinfo=UTC)
    assert datetime(2024, 12, 20, tzinfo=UTC) < max(moments) < datetime(2025, 1, 2, tzinfo=UTC)


def test_a_playlist_has_one_or_two_genres_and_few_artists(made: Read) -> None:
    of = {row["candidate_id"]: row for row in made.candidates}
    by_playlist = defaultdict(list)
    for event in made.events:
        by_playlist[event["query_id"]].append(of[event["candidate_id"]])
    two_genres, three_artists, all_genres = (
        [],
        [],
        Counter(row["genre"] for rows in by_playlist.values() for row in rows),
    )
    for rows in by_playlist.values():
        if len(rows) >= 10:
            two_genres.append(sum(n for _, n in Counter(r["genre"] for r in rows).most_common(2)) / len(rows))
            three_artists.append(sum(n for _, n in Counter(r["artist_name"] for r in rows).most_common(3)) / len(rows))
    assert np.mean(two_genres) > 0.9
    assert np.mean(three_artists) > 0.5
    # In all playlists together no two genres come near that.
    assert sum(n for _, n in all_genres.most_common(2)) / all_genres.total() < 0.5


def test_popularity_is_skewed_and_genres_come_and_go(made: Read) -> None:
    genre = {row["candidate_id"]: row["genre"] for row in made.candidates}
    counts = sorted(Counter(event["candidate_id"] for event in made.events).values(), reverse=True)
    assert sum(counts[:150]) / len(made.events) > 0.3  # the first tenth of the tracks
    spring, autumn = Counter(), Counter()
    for event in made.events:
        (spring if event["event_time"].month <= 4 else autumn if event["event_time"].month >= 9 else Counter())[
            genre[event["candidate_id"]]
        ] += 1
    moved = sum(abs(spring[g] / spring.total() - autumn[g] / autumn.total()) for g in set(genre.values())) / 2
    assert moved > 0.1


def test_new_tracks_appear_during_the_year_and_never_before_their_release(made: Read) -> None:
    first_seen: dict[str, datetime] = {}
    for event in made.events:
        first_seen.setdefault(event["candidate_id"], event["event_time"])
    late = [moment for moment in first_seen.values() if moment > datetime(2024, 7, 1, tzinfo=UTC)]
    assert len(late) > 0.15 * len(made.candidates)


def test_what_fits_the_playlist_is_played_longer(made: Read) -> None:
    of = {row["candidate_id"]: row for row in made.candidates}
    plays = Counter((event["query_id"], of[event["candidate_id"]]["artist_name"]) for event in made.events)
    fits, noise = [], []
    for event in made.events:
        track = of[event["candidate_id"]]
        share = event["engagement"] * 1_000 / track["duration_ms"]
        (fits if plays[event["query_id"], track["artist_name"]] > 1 else noise).append(share)
    assert min(fits) == pytest.approx(0.5, abs=0.01)
    assert max(fits) == pytest.approx(1.0, abs=0.01)
    assert (min(noise), max(noise)) == (pytest.approx(0.0, abs=0.01), pytest.approx(0.6, abs=0.01))


def test_titles_tell_the_genre(made: Read) -> None:
    genre = {row["candidate_id"]: row["genre"] for row in made.candidates}
    main: dict[str, Counter[str]] = defaultdict(Counter)
    for event in made.events:
        main[event["query_id"]][genre[event["candidate_id"]]] += 1
    words: dict[str, Counter[str]] = defaultdict(Counter)
    labelled = [(row["title"].split()[0], main[row["query_id"]].most_common(1)[0][0]) for row in made.queries]
    for word, of in labelled:
        words[word][of] += 1
    right = sum(words[word].most_common(1)[0][0] == of for word, of in labelled)
    assert right / len(labelled) > 0.6
    described = sum(row["description"] is not None for row in made.queries) / len(made.queries)
    assert described == pytest.approx(0.3, abs=0.05)


def test_the_artists_of_a_history_beat_popularity_by_far(made: Read) -> None:
    """What a two-tower can learn, done by a rule: rank the tracks of the artists in the first five events."""
    artist = {row["candidate_id"]: row["artist_name"] for row in made.candidates}
    cut = datetime(2024, 11, 25, tzinfo=UTC)
    month = Counter(e["candidate_id"] for e in made.events if cut - timedelta(days=30) <= e["event_time"] < cut)
    ever = Counter(e["candidate_id"] for e in made.events if e["event_time"] < cut)
    of_artist = defaultdict(list)
    for track, _ in ever.most_common():
        of_artist[artist[track]].append(track)
    playlists = defaultdict(list)
    for event in made.events:
        if event["event_time"] >= cut:
            playlists[event["query_id"]].append(event["candidate_id"])
    popular, ruled = [], []
    for tracks in playlists.values():
        if len(tracks) < 8:
            continue
        seen, wanted = tracks[:5], set(tracks[5:])
        ranked = [t for a, _ in Counter(artist[t] for t in seen).most_common() for t in of_artist[a] if t not in seen]
        popular.append(len(wanted & {t for t, _ in month.most_common(100)}) / len(wanted))
        ruled.append(len(wanted & set(ranked[:100])) / len(wanted))
    assert len(ruled) > 100
    assert np.mean(ruled) > 1.5 * np.mean(popular)


@pytest.mark.parametrize(
    "sizes",
    [
        {"playlists": 10, "tracks": 10, "artists": 1, "genres": 1, "mean_length": 2},
        {"playlists": 30, "tracks": 10, "artists": 50, "genres": 40, "mean_length": 30},
        {"playlists": 30, "tracks": 300, "artists": 3, "genres": 40},
    ],
)
def test_extreme_sizes_work(tmp_path: Path, sizes: dict[str, int]) -> None:
    made = generate(tmp_path, **sizes)
    assert (len(made.queries), len(made.candidates)) == (sizes["playlists"], sizes["tracks"])
    assert {event["query_id"] for event in made.events} == {row["query_id"] for row in made.queries}


def test_the_demo_is_made_in_seconds(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.toml")
    started = time.monotonic()
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        counts = read_source(config.data, tmp_path / "source", letters)
    assert counts.events_written > 50_000
    assert time.monotonic() - started < 20
    names = pq.read_schema(tmp_path / "source" / "candidates" / "part-00000.parquet").names
    assert names == ["candidate_id", "track_name", "artist_name", "genre", "duration_ms", "row_number"]
