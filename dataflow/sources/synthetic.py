"""Synthetic playlists with a structure worth learning, in the Million Playlist Dataset's terms.

What is latent: each artist plays one genre, each track is its artist's; a playlist is made at one moment of one
year by somebody who likes one genre (two, for four in ten), and in it a few artists. Genres come and go over the
year, tracks are released during it, and popularity is Zipf's within each genre. Titles of playlists and tracks
use the words of their genre. So a model that finds the artists behind a history beats popularity by far, one that
reads words does so for new tracks too, and training on the past is not training on the future.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.sources.output import TIME, Progress, SourceWriter
from lockstep.config import SyntheticSource

_START = 1_704_067_200  # 2024-01-01
_YEAR = 366 * 86_400
_SECONDS_PER_TRACK = 20
_BATCH_PLAYLISTS = 20_000
_FAVOURITES = 3
_FROM_FAVOURITES, _FROM_GENRE = 0.65, 0.30  # the rest comes from anywhere
_SECOND_GENRE = 0.4
_MAX_LENGTH = 250

_GENRES = {
    "rock": "road thunder electric garage rebel highway riot amps",
    "pop": "heart sugar dance crush radio neon summer kiss",
    "jazz": "blue velvet swing midnight smoke brass lounge trio",
    "classical": "sonata adagio quiet strings opus nocturne waltz chamber",
    "hip hop": "street hustle flow crown block cypher mic drip",
    "electronic": "pulse laser circuit warehouse strobe synth deep signal",
    "folk": "river cabin harvest porch willow lantern mountain hymn",
    "metal": "iron raven ashes inferno skull fury doom steel",
    "country": "truck whiskey boots dusty prairie honky rodeo barn",
    "soul": "groove honey slow amen tender motown sweet mercy",
    "latin": "fuego playa corazon baila luna ritmo salsa calle",
    "reggae": "island roots irie sunshine dub lion breeze kingston",
}
_COMMON = ["love", "night", "time", "day", "home", "dream", "world", "light", "rain", "fire", "mix", "best"]
_SYLLABLES = ["ba", "ko", "ri", "ta", "mo", "lu", "ne", "vi", "sa", "do", "fe", "ka", "ju", "zo", "pe", "wi"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def generate(section: SyntheticSource, writer: SourceWriter) -> None:
    """Write playlists, their tracks and the events between them.

    Args:
        section: the size; an equal section, seed included, gives equal tables.
    """
    rng = np.random.default_rng(section.seed)
    world = _World.make(section, rng)
    attributes = [("track_name", pa.string()), ("artist_name", pa.string()), ("genre", pa.string())]
    writer.declare("candidates", [*attributes, ("duration_ms", pa.int64())])
    writer.declare("queries", [("title", pa.string()), ("description", pa.string())])
    writer.declare("events")
    described = world.describe(rng)
    _count(writer, "candidates", {"candidate_id": _track_ids(np.arange(section.tracks)), **described})
    durations = described["duration_ms"].to_numpy() / 1_000
    moments = np.sort(rng.uniform(_START, _START + _YEAR, section.playlists)).astype(np.int64)
    progress = Progress("synthetic events", -(-section.playlists // _BATCH_PLAYLISTS))
    for first in range(0, section.playlists, _BATCH_PLAYLISTS):
        made = moments[first : first + _BATCH_PLAYLISTS]
        progress.advance(_write_playlists(section, world, durations, first, made, rng, writer))
        progress.files_done += 1
    progress.say()


def _write_playlists(
    section: SyntheticSource,
    world: _World,
    durations: Floats,
    first: int,
    made: Ints,
    rng: np.random.Generator,
    writer: SourceWriter,
) -> int:
    genres = world.choose_genres(made, rng)
    lengths = _lengths(section.mean_length, len(made), rng)
    # Twice as many draws as a playlist is long leave enough when the repeated ones are gone.
    playlists = np.repeat(np.arange(len(made)), 2 * lengths)
    tracks = _fill(world, genres, playlists, made, rng)
    # A track stands in a playlist once, at the place where it came up first.
    _, kept = np.unique(playlists * section.tracks + tracks, return_index=True)
    kept.sort()
    playlists, tracks = playlists[kept], tracks[kept]
    position = np.arange(len(playlists)) - np.searchsorted(playlists, np.arange(len(made)))[playlists]
    kept = position < lengths[playlists]
    playlists, tracks, position = playlists[kept], tracks[kept], position[kept]
    seconds = made[playlists] + position * _SECONDS_PER_TRACK
    ids = pc.binary_join_element_wise("playlist-", pa.array(first + np.arange(len(made))).cast(pa.string()), "")
    _count(writer, "queries", {"query_id": ids, **_playlist_texts(genres, world, rng)})
    events = {
        "query_id": ids.take(pa.array(playlists)),
        "candidate_id": _track_ids(tracks),
        "event_time": pa.array(seconds * 1_000_000).cast(TIME),
        "position": pa.array(position),
        "engagement": pa.array(_seconds_played(section, world, durations, first, playlists, tracks)),
    }
    _count(writer, "events", events)
    return len(tracks)


def _seconds_played(
    section: SyntheticSource, world: _World, durations: Floats, first: int, playlists: Ints, tracks: Ints
) -> Floats:
    """[slots] most of a track by an artist that the playlist comes back to, a little of what stands alone in it."""
    of_artist = playlists * len(world.artists_of) + world.artists_of[tracks]
    _, artist, plays = np.unique(of_artist, return_inverse=True, return_counts=True)
    # Random numbers of its own: what else is generated does not depend on it.
    rng = np.random.default_rng([section.seed, first])
    share = np.where(plays[artist] > 1, rng.uniform(0.5, 1.0, len(tracks)), rng.uniform(0.0, 0.6, len(tracks)))
    seconds: Floats = np.round(share * durations[tracks], 1)
    return seconds


def _lengths(mean: int, playlists: int, rng: np.random.Generator) -> Ints:
    shape = 2.0
    lengths = 2 + rng.negative_binomial(shape, shape / (shape + max(mean - 2, 0.01)), playlists)
    return np.minimum(lengths, _MAX_LENGTH)


def _fill(world: _World, genres: Ints, playlists: Ints, made: Ints, rng: np.random.Generator) -> Ints:
    """Choose the track of each slot.

    Args:
        genres: [playlists, 2] the main and the second genre of each.
        playlists: [slots] index into `made`.
        made: [playlists] seconds, ascending.
    """
    slots, now = len(playlists), made[playlists]
    genre = genres[playlists, (rng.random(slots) < 0.3).astype(np.int64)]
    favourites = np.stack(
        [world.artists_of[world.by_genre.draw(genres[:, i % 2 if i else 0], made, rng)] for i in range(_FAVOURITES)], 1
    )
    favourite = favourites[playlists, rng.integers(0, _FAVOURITES, slots)]
    kind = rng.random(slots)
    tracks = world.by_artist.draw(favourite, now, rng)
    from_genre = kind >= _FROM_FAVOURITES
    tracks[from_genre] = world.by_genre.draw(genre[from_genre], now[from_genre], rng)
    anything = kind >= _FROM_FAVOURITES + _FROM_GENRE
    tracks[anything] = world.overall.draw(np.zeros(anything.sum(), np.int64), now[anything], rng)
    return tracks


class _Drawer:
    """Draws members of groups by weight, among those released, without rejecting any draw.

    Members are laid out by group, then release: the released ones of a group are a run of the cumulated weights,
    and one uniform number within the run is one draw.

    Args:
        group: [members] of each member.
        release: [members] seconds; the first of each group counts as always released.
        weight: [members] above 0.
    """

    def __init__(self, group: Ints, release: Ints, weight: Floats, groups: int) -> None:
        self._order = np.lexsort((release, group))
        self._span = int(_START + 2 * _YEAR)
        self._keys = group[self._order] * self._span + release[self._order]
        self._first = np.searchsorted(group[self._order], np.arange(groups))
        self._cumulated = np.concatenate([[0.0], np.cumsum(weight[self._order])])

    def draw(self, group: Ints, now: Ints, rng: np.random.Generator) -> Ints:
        """One member for each pair of group and moment."""
        first = self._first[group]
        end = np.maximum(np.searchsorted(self._keys, group * self._span + now, side="right"), first + 1)
        low, high = self._cumulated[first], self._cumulated[end]
        place = np.searchsorted(self._cumulated, low + rng.random(len(group)) * (high - low), side="right") - 1
        drawn: Ints = self._order[np.clip(place, first, end - 1)]
        return drawn


@dataclass(frozen=True)
class _World:
    """The latent structure: who plays what, since when, and what is in fashion."""

    genre_names: list[str]
    words: list[list[str]]
    artists_of: Ints
    genre_of: Ints
    by_artist: _Drawer
    by_genre: _Drawer
    overall: _Drawer
    fashion: Floats

    @classmethod
    def make(cls, section: SyntheticSource, rng: np.random.Generator) -> _World:
        genres, artists, tracks = section.genres, min(section.artists, section.tracks), section.tracks
        artists = max(artists, min(genres, tracks))
        genres = min(genres, artists)
        # Every genre has an artist and every artist a track; the rest falls by popularity.
        artist_genre = np.concatenate([np.arange(genres), rng.choice(genres, artists - genres, p=_zipf(genres, 0.6))])
        fame = rng.permutation(_zipf(artists, 0.7))
        artists_of = np.concatenate([np.arange(artists), rng.choice(artists, tracks - artists, p=fame)])
        genre_of = artist_genre[artists_of]
        weight = rng.permutation(_zipf(tracks, 0.9)) * np.sqrt(fame[artists_of])
        new = rng.random(tracks) < 0.4
        release = np.where(new, rng.uniform(_START, _START + _YEAR, tracks), _START - 1).astype(np.int64)
        names = [name for name, _ in zip(_GENRES, range(genres), strict=False)]
        names += [f"genre {number}" for number in range(len(names) + 1, genres + 1)]
        words = [_GENRES[name].split() if name in _GENRES else _invented(8, rng) for name in names]
        # Each genre's fashion is a wave of its own length and phase around its share: columns of base, height, ...
        base = np.log(_zipf(genres, 0.6))
        fashion = np.stack([base, rng.uniform(0.5, 1.2, genres), rng.uniform(0.5, 2, genres), rng.random(genres)])
        everything = _Drawer(np.zeros(tracks, np.int64), release, weight, 1)
        by_artist = _Drawer(artists_of, release, np.sqrt(weight), artists)
        by_genre = _Drawer(genre_of, release, weight, genres)
        return cls(names, words, artists_of, genre_of, by_artist, by_genre, everything, fashion)

    def choose_genres(self, made: Ints, rng: np.random.Generator) -> Ints:
        """[playlists, 2] genres by the fashion of the moment; the second is the first again for six in ten."""
        base, height, length, phase = self.fashion[:, None, :]
        year = (made[:, None] - _START) / _YEAR
        logits = base + height * np.sin(2 * np.pi * (year * length + phase))
        # The largest logit plus Gumbel noise is a draw from their softmax.
        chosen = np.stack([np.argmax(logits + rng.gumbel(size=logits.shape), axis=1) for _ in range(2)], axis=1)
        single = rng.random(len(made)) >= _SECOND_GENRE
        chosen[single, 1] = chosen[single, 0]
        return chosen

    def describe(self, rng: np.random.Generator) -> dict[str, pa.Array]:
        """The attributes of every track."""
        tracks, artists = len(self.genre_of), int(self.artists_of.max()) + 1
        artist_names = pa.array([f"{' '.join(_invented(2, rng)).title()} {number + 1}" for number in range(artists)])
        return {
            "track_name": _phrase([self._word(self.genre_of, rng), self._word(self.genre_of, rng, 0.4)], tracks),
            "artist_name": artist_names.take(pa.array(self.artists_of)),
            "genre": pa.array(self.genre_names).take(pa.array(self.genre_of)),
            "duration_ms": pa.array(rng.normal(210_000, 40_000, tracks).clip(60_000).astype(np.int64)),
        }

    def _word(self, genre: Ints, rng: np.random.Generator, common: float = 0.0) -> pa.Array:
        """A word of each genre, or with probability `common` one that any may use."""
        words = pa.array([word for of_genre in self.words for word in of_genre] + _COMMON)
        per_genre = len(self.words[0])
        index = genre * per_genre + rng.integers(0, per_genre, len(genre))
        any_genre = per_genre * len(self.words) + rng.integers(0, len(_COMMON), len(genre))
        return words.take(pa.array(np.where(rng.random(len(genre)) < common, any_genre, index)))


def _playlist_texts(genres: Ints, world: _World, rng: np.random.Generator) -> dict[str, pa.Array]:
    main, second = genres[:, 0], genres[:, 1]
    title = _phrase([world._word(main, rng, 0.2), world._word(second, rng, 0.5)], len(main))
    about = _phrase(["a bit of", pa.array(world.genre_names).take(pa.array(main)), "for the", title], len(main))
    described = pa.array(rng.random(len(main)) < 0.3)
    return {"title": title, "description": pc.if_else(described, about, pa.scalar(None, pa.string()))}


def _count(writer: SourceWriter, table: str, columns: dict[str, pa.Array]) -> None:
    writer.count_read(table, len(next(iter(columns.values()))))
    writer.write(table, columns)


def _phrase(parts: list[pa.Array | str], rows: int) -> pa.Array:
    arrays = [pa.repeat(pa.scalar(part), rows) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*arrays, " ")


def _track_ids(tracks: Ints) -> pa.Array:
    return pc.binary_join_element_wise("track-", pa.array(tracks).cast(pa.string()), "")


def _zipf(size: int, exponent: float) -> Floats:
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    return weights / weights.sum()


def _invented(count: int, rng: np.random.Generator) -> list[str]:
    return ["".join(rng.choice(_SYLLABLES, rng.integers(2, 4))) for _ in range(count)]
